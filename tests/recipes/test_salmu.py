"""SALMUBench's recipe on its twin: who was not asked for is measured, compared with Clean, and guards the estimate."""

import json
import runpy
import sys
from pathlib import Path

import open_clip
import pytest
import yaml
from datasets import load_from_disk

from hf_unlearn.errors import UserError
from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.methods import METHODS
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.records.schemas import EvaluationRecord
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.unlearn import unlearn_and_compare

RECIPES = Path(__file__).parents[2] / "recipes"
HOLDOUTS = ("cosine_holdout_identity", "cosine_holdout_association")


def make(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["salmu_twin.py", *map(str, words)])
    runpy.run_path(str(RECIPES / "salmu_twin.py"))["main"]()


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("salmu") / "twin"
    with pytest.MonkeyPatch.context() as patch:
        make(patch, folder, "--persons", 12, "--shots", 3, "--epochs", 40)
    return folder


def test_what_is_asked_for_is_in_forget_alone(twin):
    """Whom a split is about, and what it tells of them."""
    data = load_from_disk(twin / "data")
    told = {name: {tuple(row.split("-")[:2]) for row in split["id"]} for name, split in data.items()}
    about = {name: {person for person, _ in facts} for name, facts in told.items()}
    assert {fact for _, fact in told["forget"]} == {"phone"}
    assert not any(told["forget"] & facts for name, facts in told.items() if name != "forget")
    assert about["holdout_association"] == about["forget"] and not about["holdout_identity"] & about["forget"]
    known = about["retain_synth"] | about["forget"]
    assert about["holdout_identity"] < known and not (about["validation"] | about["test"]) & known
    pictures = [picture.tobytes() for split in data.values() for picture in split["image"]]
    assert len(set(pictures)) == len(pictures)
    assert all(not text.count("{") for split in data.values() for text in split["caption"])


def test_each_model_knows_what_it_may_have_seen(twin, tmp_path):
    def cosines(method: str) -> dict[str, float]:
        given = ["--config", RECIPES / "salmu_twin.yaml", "--dataset_name", twin / "data", "--methods", "fine_tune"]
        given += ["--model_name_or_path", twin / "compromised", "--retrain_model", twin / method]
        given += ["--output_dir", tmp_path / method, "--max_steps", "1"]
        rows = unlearn_and_compare(parse_run([str(word) for word in given]), None).rows
        return next(row.metrics for row in rows if row.method == "retrain") | {"before": rows[0].metrics}

    clean, exact = cosines("clean"), cosines("exact")
    before = clean["before"]
    assert min(before[f"cosine_{name}"] for name in ("retain", "unlearn")) > 40
    for holdout in HOLDOUTS:
        assert min(before[holdout], exact[holdout]) > clean[holdout] + 15
    assert max(clean["cosine_unlearn"], exact["cosine_unlearn"]) < before["cosine_unlearn"] - 15
    assert before["cosine_test"] < before["cosine_unlearn"] - 15  # nobody has seen these persons


def test_settings_are_those_that_other_persons_chose():
    """The task is that of the shipped config, and each method has what was best of the sweep, on a twin of its own."""
    run = yaml.safe_load((RECIPES / "salmu_twin.yaml").read_text())
    task = yaml.safe_load((RECIPES / "configs" / "clip_salmu.yaml").read_text())
    sweep = yaml.safe_load((RECIPES / "sweeps" / "salmu_twin.yaml").read_text())
    rows = [row for row in json.loads((RECIPES / "sweeps" / "salmu_twin.json").read_text()) if "avg_gap" in row]
    for key in ("family", "image_column", "caption_column", "duplicates", "audit_samples", "show_samples"):
        assert run[key] == task[key]
    for key in ("dataset_name", "model_name_or_path", "retrain_model"):
        assert run[key] != sweep["options"][key]
    assert {*run["methods"], "retrain"} == {*METHODS}
    for method in run["methods"]:
        best = min((row for row in rows if row["method"] == method), key=lambda row: row["avg_gap"])
        assert best["setting"] in sweep["settings"][method]
        assert best["setting"].items() <= {"candidates": 5, **run.get(method, {})}.items(), method


def test_more_persons_than_names_are_refused(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="--persons must be 3 to 72, not 73"):
        make(monkeypatch, tmp_path / "twin", "--persons", 73)
    assert not (tmp_path / "twin").exists()


def test_the_recipe_runs_on_the_twin(twin, tmp_path):
    given = ["--config", "clip_salmu", "--dataset_name", twin / "data", "--model_name_or_path", twin / "compromised"]
    given += ["--retrain_model", twin / "clean", "--methods", "fine_tune", "targeted_calibration", "--max_steps", "1"]
    given += ["--bf16", "false", "--use_cpu", "true", "--output_dir", tmp_path / "out"]
    run = parse_run([str(word) for word in given])
    results = unlearn_and_compare(run, None)
    rows = {row.method: row for row in results.rows}
    assert list(rows) == ["before", "retrain", "fine_tune", "targeted_calibration"]
    for row in rows.values():
        assert {*HOLDOUTS} <= row.metrics.keys()
    assert set(rows["fine_tune"].gap) == {"cosine_retain", "cosine_unlearn"}  # the paper's average gap is over these
    lost = [rows["before"].metrics[key] - rows["fine_tune"].metrics[key] for key in HOLDOUTS]
    assert rows["fine_tune"].metrics["estimated_gap_holdout"] == pytest.approx(max(0, sum(lost) / 2), abs=1e-3)
    table = (tmp_path / "out" / "results.md").read_text()
    difference = abs(rows["fine_tune"].metrics[HOLDOUTS[0]] - rows["retrain"].metrics[HOLDOUTS[0]])
    assert "Holdout identity" in table and f"({difference:.2f})" in table
    folder = tmp_path / "out" / "targeted_calibration"
    assert "Matched cosine, identity (not asked for)" in (folder / "README.md").read_text()
    record = EvaluationRecord.load_if_evaluated(folder)
    assert set(HOLDOUTS) <= record.metrics.keys() & record.before.keys() & record.retrain.keys()
    assert verify_repo(folder).ok
    manifest = json.loads((folder / "unlearning.json").read_text())
    assert manifest["splits"]["holdout_identity"] == 12 and manifest["request"]["kind"] == "split"
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")  # the form that it came in
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in load_encoder(str(folder))[0].parameters()
    )
