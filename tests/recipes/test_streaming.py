"""`--streaming` as its user runs it: on small shards, with Retrain, with labels, again with `--resume`, refused."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from folders import folder_hash, watched
from trainers import BACKBONE

from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.methods.retrain import RetrainTrainer
from hf_unlearn.models.image_processor import image_processor_of
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel
from hf_unlearn.runs.tuning import Search, tune

RECIPES = Path(__file__).parents[2] / "recipes"
PARTS = {"train-0": range(25), "train-1": range(25, 50), "validation-0": range(50, 61), "test-0": range(61, 72)}
NO_COPIES = "Copies of unlearn pictures are not looked for in a stream."
NOTE = "Retain is a stream of 47 rows; its figures are of 20 of them."


@pytest.fixture(scope="module")
def shards(tmp_path_factory, shapes):
    """50 pictures to train on in two shards, 22 held out."""
    folder = tmp_path_factory.mktemp("shards")
    for name, rows in PARTS.items():
        shapes.select(rows).to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def asked(tmp_path_factory, shapes):
    """A file of three ids."""
    path = tmp_path_factory.mktemp("request") / "ids.txt"
    path.write_text("\n".join(shapes["id"][row] for row in (3, 30, 44)))
    return path


@pytest.fixture
def options(shards, asked, tiny_clip, tmp_path, monkeypatch):
    """What every run gives: a tiny CLIP, shards, a request, small batches."""
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    given = {"dataset_name": shards, "model_name_or_path": tiny_clip, "unlearn_request": asked, "max_eval_samples": 20}
    given |= {"num_train_epochs": 1, "per_device_train_batch_size": 16, "use_cpu": "true"}
    given |= {"disable_tqdm": "true", "output_dir": tmp_path / "out"}
    return given


@pytest.fixture
def run(options, monkeypatch, capsys):
    """Run a recipe on the stream in this process, with further words and other options (None leaves one out)."""

    def call(*words: str, family: str = "clip", **changed: object) -> str:
        given = {name: value for name, value in (options | changed).items() if value is not None}
        argv = ["--streaming", *(word for name, value in given.items() for word in (f"--{name}", str(value))), *words]
        script = str(RECIPES / f"unlearn_{family}.py")
        monkeypatch.setattr(sys, "argv", [script, *argv])
        runpy.run_path(script, run_name="__main__")
        return capsys.readouterr().out

    return call


def test_clip_on_a_stream_and_again(run, tmp_path, monkeypatch):
    # Pictures of the unlearn samples are shown, and looked for by their owners, as those of loaded data.
    argv = ("--methods", "retrain", "targeted_calibration", "--show_samples", "true", "--request_salt", "a secret")
    # More of either makes the embeddings of so small a model collapse.
    argv += ("--learning_rate", "1e-5", "--targeted_calibration.shrink_perturb", "0.1")
    assert "Targeted Calibration" in run(*argv)
    folder = tmp_path / "out" / "targeted_calibration"
    manifest = json.loads((folder / "unlearning.json").read_text())
    assert manifest["splits"] == {"retain": 47, "unlearn": 3, "validation": 11, "test": 11}
    *notes, few = manifest["notes"]
    assert notes[-2:] == [NOTE, NO_COPIES] and NOTE in (folder / "README.md").read_text()
    assert "is read off few samples (unlearn 3, validation 11)" in few
    assert manifest["request"]["count"] == len(manifest["request"]["row_hashes"]) == 3
    audit = json.loads((folder / "evaluation.json").read_text())
    assert audit["avg_gap"] is not None and audit["matrices"]["labels"][0].startswith("a ")
    weights = {path: path.read_bytes() for path in (tmp_path / "out").glob("*/model.safetensors")}

    trained = []
    monkeypatch.setattr(RetrainTrainer, "train", lambda *_, **__: trained.append("again"))
    run(*argv, "--resume")
    assert trained == [] and {path: path.read_bytes() for path in weights} == weights
    run(*argv, output_dir=tmp_path / "other")  # Retrain comes from the cache, by the stream's hash
    assert trained == []
    retrain = Path("retrain/model.safetensors")
    assert (tmp_path / "other" / retrain).read_bytes() == (tmp_path / "out" / retrain).read_bytes()


def test_simclr_on_a_stream_is_probed_by_its_labels(run, tmp_path):
    torch.manual_seed(0)
    tiny = SimCLRConfig(backbone_config=BACKBONE, projection_dim=16)
    for part in (SimCLRModel(tiny), image_processor_of(VIEW_PRESETS["light"].__class__(size=16))):
        part.save_pretrained(tmp_path / "simclr")
    run("--methods", "neg_grad", family="simclr", model_name_or_path=watched(tmp_path / "simclr"))
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["before", "neg_grad"]
    assert {"emia", "retain_accuracy", "test_accuracy", "unlearn_accuracy", "cmia"} <= set(rows[1]["metrics"])


REFUSED = {
    "no model": ({"model_name_or_path": None}, "needs --model_name_or_path and --unlearn_request"),
    "no request": ({"unlearn_request": None}, "needs --model_name_or_path and --unlearn_request"),
    "a fraction": ({"unlearn_fraction": 0.1}, "exclude each other"),
    "the embedded data": ({"dataset_name": None}, "name their folder or Hub dataset with --dataset_name"),
    "no rows to measure on": ({"max_eval_samples": 1}, "--max_eval_samples 1 must be at least 2"),
    "fewer rows": ({"num_samples": 10}, "--num_samples would need every row at hand"),
    "held-out rows drawn": ({"test_fraction": 0.2}, "--test_fraction would need every row at hand"),
    "copies": ({"duplicates": "move"}, "--duplicates would need every row at hand"),
    "methods that pass over retain": ({"methods": "slug"}, "stream"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_needs_every_row_is_refused(case, run, tmp_path, shards, capsys):
    changed, message = REFUSED[case]
    before = folder_hash(shards)
    with pytest.raises(SystemExit) as ended:
        run(**{"methods": "fine_tune", **changed})
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2 and len(told) == 1 and message in told[0]
    assert not (tmp_path / "out" / "results.json").exists() and folder_hash(shards) == before


def test_a_bound_without_a_stream_is_refused(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["unlearn_clip.py", "--max_eval_samples", "5"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(RECIPES / "unlearn_clip.py"), run_name="__main__")
    assert "bounds what --streaming measures on" in capsys.readouterr().err


def test_tuning_on_a_stream(options, tmp_path):
    argv = [word for name, value in options.items() if name != "output_dir" for word in (f"--{name}", str(value))]
    rows = tune(Search(("--streaming", *argv), ("fine_tune",), trials=1), tmp_path / "tuned")
    assert rows[0]["estimated_gap"] >= 0
