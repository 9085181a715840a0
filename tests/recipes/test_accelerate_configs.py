"""Every shipped Accelerate config is what Accelerate takes, and the page that recommends them knows them all."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

from hf_unlearn.cli.unlearn import run_methods

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parents[2] / "recipes" / "accelerate_configs"
KINDS = {
    "single_gpu": DistributedType.NO,
    "multi_gpu": DistributedType.MULTI_GPU,
    "multi_node": DistributedType.MULTI_GPU,
    "cpu": DistributedType.MULTI_GPU,
    "fsdp": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
}


def launch_arguments(name, *options):
    """What `accelerate launch` makes of a config and the command line."""
    parsed = launch_command_parser().parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), *options, "recipe.py"])
    return _validate_launch_command(parsed)[0]


def test_all_configs_are_known_here():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_takes_it(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))  # raises on unknown keys
    assert config.distributed_type == KINDS[name]
    assert config.num_processes >= config.num_machines
    assert config.mixed_precision == "no", "precision is a setting of the run, which its records tell"


@pytest.mark.parametrize("name", KINDS)
def test_nested_settings_are_options_of_the_launcher(name):
    """Accelerate does not check the names within `fsdp_config` and `deepspeed_config`."""
    known = vars(launch_command_parser().parse_args(["recipe.py"]))
    written = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    nested = [key for value in written.values() if isinstance(value, dict) for key in value]
    assert set(nested) <= set(known)
    assert bool(nested) == (name in ("fsdp", "zero2"))


def test_fsdp_and_deepspeed_reach_the_launcher():
    fsdp = launch_arguments("fsdp", "--num_processes", "4")
    assert fsdp.use_fsdp and fsdp.fsdp_version == 2 and fsdp.num_processes == 4
    assert fsdp.fsdp_state_dict_type == "FULL_STATE_DICT" and not fsdp.fsdp_cpu_ram_efficient_loading
    zero = launch_arguments("zero2")
    assert zero.use_deepspeed and zero.zero_stage == 2


def test_the_command_line_names_the_machines():
    options = ["--num_machines", "3", "--num_processes", "12", "--machine_rank", "2", "--main_process_ip", "10.0.0.1"]
    nodes = launch_arguments("multi_node", *options)
    assert (nodes.num_machines, nodes.num_processes, nodes.machine_rank) == (3, 12, 2)
    assert nodes.main_process_ip == "10.0.0.1" and nodes.main_process_port == 29500 and nodes.multi_gpu


def test_the_page_names_every_config_and_no_other():
    page = (FOLDER / "README.md").read_text()
    assert set(re.findall(r"(\w+)\.yaml", page)) == set(KINDS)
    for test in re.findall(r"`(tests/[\w/]+\.py)`", page):
        assert (FOLDER.parents[1] / test).is_file()


def test_the_documented_launch_on_a_cpu_trains_on_two_processes_as_on_one(shapes, tmp_path, monkeypatch):
    """The recipe itself, its base model's pre-training included, with one global batch shared out or not."""
    shapes.map(lambda row: {"captions": row["captions"][:1]}).save_to_disk(tmp_path / "data")
    launcher = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(FOLDER / "cpu.yaml"),
        "--main_process_port",
        "0",
    ]
    found = {}
    for processes in (2, 1):
        each, out = str(16 // processes), tmp_path / str(processes)
        words = ["--dataset_name", str(tmp_path / "data"), "--unlearn_fraction", "0.1", "--methods", "fine_tune"]
        words += ["--num_train_epochs", "1", "--pretrain.num_train_epochs", "1", "--model.image_size", "16"]
        words += ["--per_device_train_batch_size", each, "--pretrain.per_device_train_batch_size", each]
        words += ["--use_cpu", "true", "--output_dir", str(out)]
        monkeypatch.setenv("HF_UNLEARN_CACHE", str(out / "cache"))
        if processes == 1:
            run_methods(words, family="clip")
        else:
            environment = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1])}
            command = [sys.executable, *launcher, str(FOLDER.parent / "unlearn_clip.py"), *words]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
            assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads((out / "run.json").read_text())["key"]["processes"] == processes
        assert len(list((out / "cache").glob("clip-*"))) == 1
        rows = json.loads((out / "results.json").read_text())["rows"]
        found[processes] = {row["method"]: row["metrics"] for row in rows}
    for name in ("cosine_retain", "cosine_unlearn", "cosine_validation"):
        before, after = ([found[n][method][name] for n in (1, 2)] for method in ("before", "fine_tune"))
        assert before[0] == pytest.approx(before[1], abs=0.01)
        assert after[0] == pytest.approx(after[1], abs=0.2) and abs(after[0] - before[0]) > 2, "in points; it did train"
