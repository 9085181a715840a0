"""`hf-unlearn unlearn`, the recipes' command of the installed package."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from hf_unlearn.cli import main
from hf_unlearn.cli import unlearn as command
from hf_unlearn.cli.guard import guarded
from hf_unlearn.errors import UserError
from hf_unlearn.runs.results import make_results


def call(monkeypatch, capsys, *argv: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["hf-unlearn", "unlearn", *argv])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


def test_a_request_is_unlearned_by_a_config_and_its_options(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    shapes.save_to_disk(tmp_path / "data")
    given = ["--config", "clip_openmoji", "--dataset_name", str(tmp_path / "data"), "--model.image_size", "16"]
    given += [
        "--output_dir",
        str(tmp_path / "out"),
        "--methods",
        "fine_tune",
        "--unlearn_fraction",
        "0.1",
        "--use_cpu",
        "true",
    ]
    given += ["--pretrain.num_train_epochs", "2", "--num_train_epochs", "1", "--disable_tqdm", "true"]
    status, out, err = call(monkeypatch, capsys, *given)
    assert status == 0, err
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["before", "fine_tune"]
    assert "Fine-Tune" in out and f"Cards, heatmaps and checkpoints: {tmp_path / 'out'}" in out


@pytest.mark.parametrize(
    ("argv", "family", "expected"),
    [
        ([], None, ("clip", "openmoji", "runs/clip_openmoji")),
        ([], "moco", ("moco", "openmoji", "runs/moco_openmoji")),
        ([], "simclr", ("simclr", "openmoji", "runs/simclr_openmoji")),
        (["--config", "moco_cifar10_10pct"], None, ("moco", "uoft-cs/cifar10", "runs/moco_cifar10_10pct")),
        (["--config", "{}/own.yaml"], "simclr", ("simclr", "mine", "runs/unlearn")),
        (["--config", "{}/own.yaml"], None, (None, "mine", "runs/unlearn")),
        (["--model_name_or_path", "m"], None, (None, "openmoji", "runs/unlearn")),
    ],
)
def test_what_is_run_where_little_is_said(argv, family, expected, tmp_path):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"dataset_name": "mine"}))
    run = command._parse([word.replace("{}", str(tmp_path)) for word in argv], family)
    assert (run.family, run.arguments.dataset_name, run.arguments.output_dir) == expected


def test_a_config_of_another_family_is_refused(monkeypatch, capsys):
    status, _, err = call(monkeypatch, capsys, "--family", "clip", "--config", "simclr_openmoji")
    assert status == 2 and "config is for the family simclr, and --family says clip" in err


def test_without_any_option_it_says_what_to_name_and_starts_nothing(monkeypatch, capsys):
    status, out, err = call(monkeypatch, capsys)
    assert status == 2 and not out
    assert "name what to run: --config" in err and "clip_openmoji" in err and "--dataset_name" in err


def test_what_views_tell_is_said_of_the_model_before_this_request(monkeypatch, capsys):
    metrics = {"original": {"emia": 50.0, "emia_signal_auc": 61.0}, "before": {"emia": 50.0, "emia_signal_auc": 72.0}}
    results = make_results("views", ("emia",), metrics, None)
    monkeypatch.setattr("hf_unlearn.runs.unlearn.unlearn_and_compare", lambda *_, **__: results)
    command.run_methods(["--methods", "npo", "--use_cpu", "true"], "simclr")
    out = capsys.readouterr().out
    assert "members from non-members with an AUC of 72.0%" in out
    assert "The original model's EMIA and gaps are of the first request's samples." in out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("--pretrain.num_train_epochs 2", "--pretrain.num_train_epochs would have no effect: it is of the training"),
        ("--model.width=8", "--model.width would have no effect: it is of the architecture of a model that a run"),
    ],
)
def test_options_of_a_model_that_is_not_made_are_refused(argv, told, monkeypatch, capsys):
    status, _, err = call(monkeypatch, capsys, "--model_name_or_path", "m", *argv.split())
    assert status == 2 and told in err and "--model_name_or_path names one; leave it out" in err
    own = command._parse(["--config", "simclr_openmoji", "--model_name_or_path", "m"], None)  # whose sections may stay
    assert own.model["width"] == 16
    with pytest.raises(UserError, match=r"--model.width would have no effect: .* --initial_model names one"):
        command._parse(["--initial_model", "m", "--model.width", "8"], "simclr")
    command._parse(["--initial_model", "m", "--pretrain.num_train_epochs", "2"], "simclr")


def test_recipes_are_thin():
    recipes = Path(__file__).parents[2] / "recipes"
    for path in recipes.glob("unlearn_*.py"):
        code = [line for line in path.read_text().split('"""')[2].splitlines() if line]
        assert len(code) <= 5, path


def test_a_base_model_is_trained_for_a_family_that_there_is(monkeypatch, capsys):
    recipe = str(Path(__file__).parents[2] / "recipes" / "pretrain.py")
    for argv in ([], ["--config", "clip_openmoji"], ["vit"]):
        monkeypatch.setattr(sys, "argv", [recipe, *argv])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(recipe, run_name="__main__")
        assert ended.value.code == 2 and "usage: pretrain.py [-h] {clip,simclr,moco}" in capsys.readouterr().err
    asked = []
    monkeypatch.setattr(command, "pretrain_base", lambda argv, family: asked.append((argv, family)))
    monkeypatch.setattr(sys, "argv", [recipe, "moco", "--num_samples", "90"])
    runpy.run_path(recipe, run_name="__main__")
    assert asked == [(["--num_samples", "90"], "moco")]


def test_a_recipe_explains_itself_as_the_command_does(monkeypatch, capsys):
    told = []
    for program in (main, lambda: guarded(lambda: command.run_methods(sys.argv[1:], family="clip"))):
        monkeypatch.setattr(sys, "argv", ["program", *(["unlearn"] if program is main else []), "--help"])
        with pytest.raises(SystemExit) as ended:
            program()
        assert not ended.value.code
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] and "--unlearn_request" in told[0] and "hf-unlearn methods NAME" in told[0]
