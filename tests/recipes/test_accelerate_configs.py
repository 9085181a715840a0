"""Every shipped Accelerate config is what Accelerate takes, and the page that recommends them knows them all."""

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

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
