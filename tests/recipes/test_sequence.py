"""Requests one after another on a tiny CLIP: a row for each run, earlier requests measured, and going on."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import load_from_disk

from hf_unlearn.benchmarks import sequence as sequences
from hf_unlearn.benchmarks.benchmark import Benchmark
from hf_unlearn.errors import UserError
from hf_unlearn.models.loading import load_encoder

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


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["sequence.py", *map(str, words)])
    runpy.run_path(str(RECIPES / "sequence.py"), run_name="__main__")


def test_a_sequence_measures_every_request_after_each_run(benchmark, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    words = [benchmark, "--requests", 2, "--output_dir", out]
    call(monkeypatch, *words, "--methods", "fine_tune")
    without = json.loads((out / "results.json").read_text())
    assert [(row["after"], row["average_gap"]) for row in without] == [
        (n, None) for n in ("1", "2", "at once", "again")
    ]
    call(monkeypatch, *words, "--methods", "retrain")
    printed = capsys.readouterr().out
    retrains, rows = (
        [row for row in json.loads((out / "results.json").read_text()) if row["method"] == method]
        for method in ("retrain", "fine_tune")
    )
    assert [row["after"] for row in retrains] == ["1", "2"] and "| Fine-Tune | 2 |" in printed
    assert [row["drift"] is None for row in rows] == [True, False, True, True]  # the last asks for all again
    assert rows[1]["cost"] == pytest.approx(rows[0]["cost"], rel=20) and rows[1]["cost"] > rows[0]["cost"]

    # The gap by hand: mean cosine of pairs, of retain and of the request, from the weights alone.
    trial, (asked, both) = out / "trial-0", ("request-2", "request-1-to-2")
    model, retrain = trial / "fine_tune" / asked / "fine_tune", trial / "retrain" / both / "retrain"
    data = load_from_disk(trial / "data")["train"]
    levels = {}
    for name, folder in (("model", model), ("retrain", retrain)):
        encoder, processor = load_encoder(str(folder))
        for part in (asked, both):
            ids = set((trial / f"{part}.txt").read_text().split())
            chosen = data.filter(lambda row, ids=ids, part=part: (row["id"] in ids) == (part == asked))
            texts = [text for said in chosen["captions"] for text in said]
            shown = [image for image, said in zip(chosen["image"], chosen["captions"], strict=True) for _ in said]
            inputs = processor(images=shown, text=texts, padding=True, return_tensors="pt")
            with torch.no_grad():
                found = encoder(**inputs)
            levels[name, part] = 100 * (found.image_embeds * found.text_embeds).sum(1).mean().item()
    by_hand = sum(abs(levels["model", part] - levels["retrain", part]) for part in (asked, both)) / 2
    assert rows[1]["average_gap"] == pytest.approx(by_hand, abs=1e-3)

    second = json.loads((model / "evaluation.json").read_text())
    (first, own) = second["requests"]
    assert first["measured"] == first["count"] == len((trial / "request-1.txt").read_text().split())
    assert own["number"] == 2 and rows[1]["drift"] == pytest.approx(first["now"] - first["then"], abs=1e-3)
    # Finished runs are not run again.
    monkeypatch.setattr(sequences, "unlearn_and_compare", lambda *_: pytest.fail("a finished run was run again"))
    again = sequences.run_sequence(sequences.RequestSequence(Benchmark.load(benchmark), ("fine_tune",), 2), out)
    assert [row.average_gap for row in again] == [row["average_gap"] for row in (*retrains, *rows)]


@pytest.mark.parametrize(
    ("options", "told"), [({"requests": 1}, "at least 2"), ({"family": "moco"}, "moco has none of")]
)
def test_what_is_no_sequence_is_refused(options, told):
    family = options.pop("family", "clip")
    with pytest.raises(UserError, match=told):
        sequences.RequestSequence(Benchmark(family, {}), ("fine_tune",), **options)
