"""SALMUBench's recipe on its twin: who was not asked for is measured, compared with Clean, and guards the estimate."""

import json

import open_clip
import pytest
from salmu_twin import make_data, make_models

from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.records.schemas import EvaluationRecord
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.unlearn import unlearn_and_compare

HOLDOUTS = ("cosine_holdout_identity", "cosine_holdout_association")


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("salmu")
    data = make_data()
    data.save_to_disk(folder / "data")
    models = make_models(data, folder, max_steps=6, learning_rate=3e-3, warmup_steps=0, per_device_train_batch_size=64)
    return folder / "data", *models


def test_the_recipe_runs_on_the_twin(twin, tmp_path):
    data, compromised, clean = twin
    given = ["--config", "clip_salmu", "--dataset_name", data, "--model_name_or_path", compromised]
    given += ["--retrain_model", clean, "--methods", "fine_tune", "targeted_calibration", "--max_steps", "1"]
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
