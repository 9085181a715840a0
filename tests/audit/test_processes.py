"""An audit launched on several processes is the audit of one; asserted on real processes, with the shipped settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from audit.conftest import folder_of

CPU_CONFIG = Path(__file__).parents[2] / "recipes" / "accelerate_configs" / "cpu.yaml"


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
    return [*given, "--never_trained", controls, "--view_count", "2", "--device", "cpu", "--seed", "0"]


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
