"""An audit launched on several processes is the audit of one, and so are a plan and a recording; on real processes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from audit.conftest import folder_of

from hf_unlearn.audit.embedding_files import read_embeddings
from hf_unlearn.audit.pictures import list_pictures
from hf_unlearn.audit.plan import read_plan
from hf_unlearn.audit.recording import record_embeddings
from hf_unlearn.audit.run import run_audit
from hf_unlearn.audit.settings import AuditSettings

ROOT = Path(__file__).parents[2]
CPU_CONFIG = ROOT / "recipes" / "accelerate_configs" / "cpu.yaml"


# All in one launch, the audit twice: to import everything once more in both processes would take half of the time.
COMMANDS = """
import json
import os
from pathlib import Path

from hf_unlearn.cli import dispatch, main

for words in json.loads(Path(__file__).with_suffix(".json").read_text()):
    try:
        dispatch(words)  # after which the processes stay joined, as they do not after main
    except SystemExit as ended:
        assert not ended.code
for time in ("first", "second"):
    try:
        main()
    except SystemExit as ended:
        Path(__file__).with_name(f"{time} {os.environ['RANK']}.status").write_text(str(ended.code or 0))
"""


def audit_twice(script, *options, first):
    """Run the first commands, and then an audit with these options twice."""
    script.write_text(COMMANDS)
    script.with_suffix(".json").write_text(json.dumps([[*map(str, words)] for words in first]))
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CPU_CONFIG)]
    launcher += ["--num_processes", "2", "--main_process_port", "0"]
    command = [sys.executable, *launcher, str(script), "audit", *map(str, options)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture
def one_thread():
    """As each of the launched processes has: sums in another order differ in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_two_processes_write_one_plan_one_recording_and_one_audit_with_the_numbers_of_one(
    checkpoints, tmp_path, one_thread
):
    mine, controls = folder_of(tmp_path / "mine", 20), folder_of(tmp_path / "controls", 18, 40)  # three chunks
    models = checkpoints["simclr_a"], checkpoints["simclr_b"]
    settings = AuditSettings(view_count=2, device="cpu", seed=0)
    run_audit(*models, mine, tmp_path / "one", never_trained=controls, settings=settings)
    options = ["--before", models[0], "--after", models[1], "--images", mine, "--never_trained", controls]
    options += ["--view_count", "2", "--device", "cpu", "--seed", "0", "--output_dir", tmp_path / "two"]
    plan = ["audit", "plan", "--images", mine, "--output_dir", tmp_path / "plan"]
    record = ["audit", "record", "--model", models[0], "--images", mine, "--output_file", tmp_path / "a.safetensors"]
    record += ["--view_count", "2", "--device", "cpu"]
    done = audit_twice(tmp_path / "twice.py", *options, first=[plan, record])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("pictures to request") == done.stdout.count("Recorded:") == 1
    assert read_plan(tmp_path / "plan" / "plan.json").sha256 in done.stdout
    pictures = list_pictures(mine)
    recorded = read_embeddings(tmp_path / "a.safetensors", pictures, [()] * len(pictures))
    seed = recorded.source["drawn"]["seed"]  # with which one process gives the same
    again = record_embeddings(models[0], mine, tmp_path / "b.safetensors", settings=replace(settings, seed=seed))
    alone = read_embeddings(again, pictures, [()] * len(pictures))
    np.testing.assert_array_equal(recorded.images, alone.images)
    assert done.stdout.count("Report:") == 1
    reports = [json.loads((tmp_path / name / "audit.json").read_text()) for name in ("one", "two")]
    assert all(report["measurement"].pop(moment) for report in reports for moment in ("started", "finished"))
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert {"audit.json", "report.html"} <= names and not any("partial" in name for name in names)
    assert json.dumps(reports[0], sort_keys=True) == json.dumps(reports[1], sort_keys=True)  # to the last bit
    statuses = [path.read_text() for path in sorted(tmp_path.glob("*.status"))]
    assert statuses == ["0", "0", "2", "2"], "the second audit is refused"
    assert done.stderr.count("error: '") == 1 and "holds a finished audit" in done.stderr
