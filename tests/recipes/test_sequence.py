"""Requests one after another on a tiny CLIP: a row for each run, earlier requests measured, and going on."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from hf_unlearn.benchmarks import sequence as sequences
from hf_unlearn.benchmarks.benchmark import Benchmark
from hf_unlearn.errors import UserError

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def benchmark(tmp_path, shapes, tiny_clip, monkeypatch):
    """A benchmark file of 72 pictures, a fifth of which is to be unlearned."""
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    shapes.save_to_disk(tmp_path / "pictures")
    options = {
        "dataset_name": str(tmp_path / "pictures"),
        "model_name_or_path": str(tiny_clip),
        "unlearn_fraction": 0.2,
        "use_cpu": True,
        "disable_tqdm": True,
        "per_device_train_batch_size": 16,
        "num_train_epochs": 1,
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"family": "clip", "trials": [0], "options": options}))
    return path


def test_a_sequence_measures_every_request_after_each_run(benchmark, tmp_path, monkeypatch, capsys):
    words = [str(benchmark), "--methods", "fine_tune", "--requests", "2", "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["sequence.py", *words])
    runpy.run_path(str(RECIPES / "sequence.py"), run_name="__main__")
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["after"] for row in rows] == ["1", "2", "at once", "again"]
    assert [row["drift"] is None for row in rows] == [True, False, True, True]  # the last asks for all again
    assert all(row["average_gap"] >= 0 for row in rows) and "| Fine-Tune | 2 |" in printed
    assert rows[1]["cost"] == pytest.approx(rows[0]["cost"], rel=20) and rows[1]["cost"] > rows[0]["cost"]
    second = json.loads(
        (tmp_path / "out" / "trial-0" / "fine_tune" / "request-2" / "fine_tune" / "evaluation.json").read_text()
    )
    (first, own) = second["requests"]
    asked = (tmp_path / "out" / "trial-0" / "request-1.txt").read_text().split()
    assert first["measured"] == first["count"] == len(asked) and own["number"] == 2
    # Finished runs are not run again.
    monkeypatch.setattr(sequences, "unlearn_and_compare", lambda *_: pytest.fail("a finished run was run again"))
    again = sequences.run_sequence(
        sequences.RequestSequence(Benchmark.load(benchmark), ("fine_tune",), 2), tmp_path / "out"
    )
    assert [row.average_gap for row in again] == [row["average_gap"] for row in rows]


@pytest.mark.parametrize(
    ("options", "told"), [({"requests": 1}, "at least 2"), ({"methods": ("retrain",)}, "leave retrain out")]
)
def test_what_is_no_sequence_is_refused(options, told):
    with pytest.raises(UserError, match=told):
        sequences.RequestSequence(Benchmark("clip", {}), **{"methods": ("fine_tune",), **options})
