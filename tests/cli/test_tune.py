"""`hf-unlearn tune` from a YAML file to the unlearned checkpoint."""

import sys

import pytest
import yaml

from hf_unlearn.cli import main


@pytest.fixture
def task(shapes, tiny_clip, tmp_path, monkeypatch):
    """A recipe's YAML for 72 pictures and a tiny CLIP."""
    monkeypatch.chdir(tmp_path)
    shapes.save_to_disk(tmp_path / "data")
    config = {"dataset_name": str(tmp_path / "data"), "model_name_or_path": str(tiny_clip), "use_cpu": True}
    config |= {"unlearn_fraction": 0.1}
    config |= {"disable_tqdm": True, "num_train_epochs": 1, "per_device_train_batch_size": 16}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def call(monkeypatch, capsys, *argv: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["hf-unlearn", "tune", *argv])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


def test_the_better_of_two_methods_is_chosen_and_run(task, monkeypatch, capsys):
    argv = ("task.yaml", "--methods", "fine_tune", "neg_grad", "--n_trials", "2", "--output_dir", "out")
    status, out, err = call(monkeypatch, capsys, *argv, "--run")
    assert status == 0, err
    tuned = yaml.safe_load((task / "out" / "tuned.yaml").read_text())
    (best,) = tuned["methods"]
    assert f"Best: {best}, estimated gap" in out and out.count(" 2/2: ") == 2
    assert (task / "out" / best / "model.safetensors").is_file() and "Est. gap" in out
    status, _, err = call(monkeypatch, capsys, *argv)
    assert status == 2 and "--resume" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--family", "clip", "--method", "amnesia"), "unknown method amnesia"),
        (("--method", "fine_tune"), "--family"),
        (("nowhere.yaml",), "nowhere.yaml does not exist"),
        (("task.yaml", "--method", "fine_tune", "--unlern_fraction", "0.1"), "did you mean --unlearn_fraction"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(task, monkeypatch, capsys, argv, message):
    status, _, err = call(monkeypatch, capsys, *argv)
    assert status == 2 and message in err and err.count("\n") == 1
    assert {path.name for path in task.iterdir()} == {"data", "task.yaml"}


def test_options_of_a_base_that_is_not_trained_are_refused(task, monkeypatch, capsys):
    status, _, err = call(monkeypatch, capsys, "task.yaml", "--methods", "neg_grad", "--pretrain.seed", "1")
    assert status == 2 and "--pretrain.seed would have no effect" in err and not (task / "runs").exists()
