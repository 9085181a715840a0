"""The initial model, by which a gap is estimated: recorded, taken where figures are measured again, and told."""

import json
import re
import shutil

import pytest
import torch
from datasets import concatenate_datasets

from hf_unlearn.hub.card import write_card
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.records.schemas import BaseModel, EvaluationRecord, UnlearningManifest
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.recorded_initial import recorded_initial
from hf_unlearn.runs.unlearn import unlearn_and_compare


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_clip, shapes):
    """A folder with data, an initial model `public`, and a run that was told of it."""
    folder = tmp_path_factory.mktemp("run")
    shapes.save_to_disk(folder / "data")
    model, processor = load_encoder(str(tiny_clip))
    torch.manual_seed(7)
    for name in ("public", "other"):
        type(model)(model.config).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    given = ["--model_name_or_path", tiny_clip, "--initial_model", folder / "public", "--output_dir", folder / "out"]
    given += ["--dataset_name", folder / "data", "--unlearn_where", "owner=alice", "--methods", "fine_tune"]
    given += ["--max_steps", "1", "--learning_rate", "1e-2", "--warmup_steps", "0", "--use_cpu", "true"]
    unlearn_and_compare(parse_run([str(word) for word in given]), build=None)
    return folder


@pytest.fixture
def measured(cli, run, tiny_clip, tmp_path, monkeypatch):
    """A command that measures the run's result again, from a folder where nothing else lies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))

    def measure(command: str, *argv: object, out=run / "out" / "fine_tune"):
        given = ["--base", tiny_clip, "--dataset", run / "data", "--unlearn_where", "owner=alice", "--use_cpu", "true"]
        return cli(command, *map(str, (out, *given, *argv)))

    return measure


def estimated(path) -> float:
    return json.loads((path / "results.json").read_text())["rows"][-1]["metrics"]["estimated_gap"]


def test_it_is_recorded_and_on_the_card(run):
    manifest = UnlearningManifest.load(run / "out" / "fine_tune")
    sha256 = weights_sha256(run / "public")
    assert manifest.initial_model == BaseModel("public", None, sha256)
    card = (run / "out" / "fine_tune" / "README.md").read_text()
    assert "| Initial model | `public`, local |" in card and f"| Initial weights, SHA-256 | `{sha256}` |" in card


@pytest.mark.parametrize("place", ["named", "here", "beside the cache"])
def test_with_it_the_figures_hold(place, measured, run, tmp_path, monkeypatch):
    if place == "here":
        monkeypatch.chdir(run)
    elif place != "named":
        monkeypatch.setenv("HF_UNLEARN_CACHE", str(run))
    argv = ["--initial_model", run / "public"] if place == "named" else []
    status, out, _ = measured("verify", *argv)
    assert status == 0 and f"recomputed and holds    initial model: SHA-256 {weights_sha256(run / 'public')}" in out
    assert "not measured here: run_time_minutes\n" in out
    status, out, _ = measured("evaluate", *argv, "--output_dir", tmp_path / "found")
    recorded = EvaluationRecord.load(run / "out" / "fine_tune").metrics["estimated_gap"]
    assert status == 0 and estimated(tmp_path / "found") == pytest.approx(recorded, abs=1e-3)
    assert "initial model" not in out


def test_without_it_the_estimated_gap_is_said_to_be_of_another_kind(measured, run, tmp_path):
    shutil.copytree(run / "other", tmp_path / "public")  # a folder of its name, with other weights
    status, out, _ = measured("verify")
    assert status == 0 and "does not hold: 0" in out
    told = "the recorded public is not used here, so the estimated gap here is of another kind than the recorded one;"
    assert f"cannot be checked here  initial model: {told} name it with --initial_model" in out
    assert "not measured here: estimated_gap, low_estimated_gap" in out
    status, out, _ = measured("evaluate", "--output_dir", tmp_path / "found")
    recorded = EvaluationRecord.load(run / "out" / "fine_tune").metrics["estimated_gap"]
    assert status == 0 and abs(estimated(tmp_path / "found") - recorded) > 0.01
    assert out.endswith(f"Of its initial model: {told} name it with --initial_model.\n")


def test_another_one_is_told_of(measured, run):
    status, out, _ = measured("verify", "--initial_model", run / "other")
    assert status == 1 and f"does not hold           initial model: SHA-256 is {weights_sha256(run / 'other')}" in out
    assert "does not hold: 1" in out and "not measured here: estimated_gap" in out
    status, out, _ = measured("evaluate", "--initial_model", run / "other")
    assert status == 0 and "Of its initial model: SHA-256 is" in out.splitlines()[-1]


def test_another_base_takes_no_initial_model(cli, measured, run, monkeypatch):
    """The initial model itself as the base: the record's doubts are told, and nothing that nobody named is refused."""
    monkeypatch.chdir(run)
    status, out, err = measured("evaluate", "--base", run / "public")
    assert status == 0 and "Its record names another base model" in out, err


def test_a_record_of_before_names_it_without_a_hash(measured, run, tmp_path):
    out = shutil.copytree(run / "out" / "fine_tune", tmp_path / "old")
    content = json.loads((out / "unlearning.json").read_text())
    del content["initial_model"]
    (out / "unlearning.json").write_text(json.dumps(content))
    write_card(out)
    record = UnlearningManifest.load(out)
    assert record.initial_model is None and recorded_initial(record) == BaseModel("public")
    given = ["--initial_model", run / "public"]
    for argv, told in (([], "the recorded public is not used here"), (given, "whether public is the recorded public")):
        status, said, _ = measured("verify", *argv, out=out)
        assert status == 0 and f"cannot be checked here  initial model: {told}" in said
        assert "does not hold: 0" in said and "not measured here: estimated_gap" in said


def test_figures_are_not_held_against_other_data(measured, run, shapes, tmp_path):
    concatenate_datasets([shapes, shapes.select([1]).map(lambda row: {"id": "more"})]).save_to_disk(tmp_path / "more")
    sha256 = UnlearningManifest.load(run / "out" / "fine_tune").dataset.sha256
    status, out, _ = measured("verify", "--dataset", tmp_path / "more", "--duplicates", "keep")
    assert status == 0 and "does not hold: 0" in out
    assert re.search(r"cannot be checked here  metrics: \d+ figures cannot be checked with other rows than", out)
    ours, theirs = r"\(SHA-256 [0-9a-f]{8}\.\.\.\)", rf"\({sha256[:8]}\.\.\.\)"
    told = f"data: the training rows here are others {ours} than the recorded ones {theirs}; give --dataset and"
    assert re.search(f"cannot be checked here  {told}", out)
    _, out, _ = measured("verify", "--initial_model", run / "public")
    assert f"recomputed and holds    data: SHA-256 {sha256} of the training rows here" in out


def test_without_measuring_it_is_said_to_be_unseen(cli, run):
    status, out, _ = cli("verify", str(run / "out" / "fine_tune"))
    assert status == 0 and "cannot be checked here  initial model: its weights are compared where" in out
    sha256 = UnlearningManifest.load(run / "out" / "fine_tune").dataset.sha256
    assert (
        f"data: the training data is not part of the repository; its SHA-256 {sha256} is compared with that of" in out
    )
