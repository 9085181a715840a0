"""The configs that come with the package, by name."""

from pathlib import Path

import pytest

from hf_unlearn.errors import UserError
from hf_unlearn.runs.command_line import CONFIGS, FAMILIES, config_file, parse_run, shipped_configs

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_parses_by_its_name_and_says_its_family(name):
    run = parse_run(["--config", name, "--bf16", "false", "--pretrain.bf16", "false"])  # no accelerator here
    assert run.methods and run.family in FAMILIES and name.startswith(run.family)


def test_the_configs_have_one_home_and_the_recipes_show_it():
    assert len(shipped_configs()) >= 12
    assert (RECIPES / "configs").samefile(CONFIGS)


def test_a_file_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_file("clip_openmoji") == CONFIGS / "clip_openmoji.yaml"
    (tmp_path / "clip_openmoji").write_text("methods: [npo]\n")
    assert list(parse_run(["--config", "clip_openmoji"]).methods) == ["npo"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("clip_openmojis", "clip_openmoji"), ("../clip_coco.yml", "clip_coco"), ("qqq", "clip_coco, .*clip_openmoji")],
)
def test_a_config_that_is_nowhere_is_named_with_what_there_is(name, hint):
    with pytest.raises(UserError, match=f"--config .*{name} does not exist.*of the package: .*{hint}"):
        parse_run(["--config", name])


def test_family_of_the_config_and_of_the_command_line_must_agree(tmp_path):
    assert parse_run(["--config", "moco_openmoji", "--family", "moco"]).family == "moco"
    assert parse_run(["--family", "simclr"]).family == "simclr"
    assert parse_run([]).family is None
    with pytest.raises(UserError, match="config is for the family moco, and --family says clip"):
        parse_run(["--config", "moco_openmoji", "--family", "clip"])
    (tmp_path / "c.yaml").write_text("family: byol\n")
    with pytest.raises(UserError, match="family 'byol' is unknown; choose from clip, simclr, moco"):
        parse_run(["--config", str(tmp_path / "c.yaml")])
