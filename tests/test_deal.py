"""An audit launched on several processes is the audit of one; asserted on real processes, with the shipped settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from audit.conftest import folder_of

from hf_unlearn.distributed import deal
from hf_unlearn.errors import UserError

CPU_CONFIG = Path(__file__).parents[1] / "recipes" / "accelerate_configs" / "cpu.yaml"


def audit(*options, processes=None):
    launcher = [] if processes is None else ["-m", "accelerate.commands.launch", "--config_file", str(CPU_CONFIG)]
    launcher += [] if processes is None else ["--num_processes", str(processes), "--main_process_port", "0"]
    command = [sys.executable, *launcher, "-m", "hf_unlearn.cli", "audit", *map(str, options)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def options(checkpoints, tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    mine, controls = folder_of(root / "mine", 20), folder_of(root / "controls", 18, 40)  # three chunks
    given = ["--before", checkpoints["simclr_a"], "--after", checkpoints["simclr_b"], "--images", mine]
    return [*given, "--never_trained", controls, "--view_count", "2", "--device", "cpu"]


@pytest.mark.slow
def test_two_processes_write_one_audit_with_the_numbers_of_one(options, tmp_path):
    reports = {}
    for count in (None, 2):
        folder = tmp_path / str(count)
        done = audit(*options, "--output_dir", folder, processes=count)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Report:") == 1
        reports[count] = json.loads((folder / "audit.json").read_text())
        for moment in ("started", "finished"):
            assert reports[count]["measurement"].pop(moment)
        names = {path.name for path in folder.iterdir()}
        assert {"audit.json", "report.html"} <= names and not any("partial" in name for name in names)
    assert json.dumps(reports[2], sort_keys=True) == json.dumps(reports[None], sort_keys=True)  # to the last bit
    again = audit(*options, "--output_dir", tmp_path / "2", processes=2)
    assert again.returncode != 0 and again.stderr.count("error: '") == 1 and "holds a finished audit" in again.stderr


def test_one_process_does_all_parts_in_order_and_passes_its_fault_on():
    done = []

    def work(number):
        done.append(number)
        if number == 3:
            raise UserError("part 3 is bad")
        return np.full(2, number)

    assert np.concatenate(deal(3, work)).tolist() == [0, 0, 1, 1, 2, 2]
    assert deal(0, work) == []
    with pytest.raises(UserError, match="part 3 is bad"):
        deal(6, work)
    assert done == [0, 1, 2, 0, 1, 2, 3]
