"""Requests one after another on a tiny CLIP: a row for each run, earlier requests measured, and going on."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from datasets import load_from_disk
from folders import folder_hash

from hf_unlearn.benchmarks import sequence as sequences
from hf_unlearn.benchmarks.benchmark import Benchmark
from hf_unlearn.errors import UserError
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.run_data import prepare_task

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
            ids = set(json.loads((trial / f"{part}.json").read_text()))
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
    assert first["measured"] == first["count"] == len(json.loads((trial / "request-1.json").read_text()))
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


@pytest.fixture
def parted(benchmark, tmp_path):
    """A folder whose rows are parted into two requests, and what makes a sequence on it."""

    def sequence(requests=2, *extra, methods=()):
        return sequences.RequestSequence(Benchmark.load(benchmark), methods, requests, extra)

    sequences.run_sequence(sequence(), tmp_path / "out")
    return sequence


def test_every_id_is_asked_for_as_it_is(benchmark, shapes, tmp_path):
    odd = ["#7", " c", "a\u2028b"]
    ids = [f"{odd[place % len(odd)]}{place // len(odd)}" for place in range(len(shapes))]
    shutil.rmtree(tmp_path / "pictures")
    renamed = shapes.remove_columns("id").add_column("id", ids)
    renamed.save_to_disk(tmp_path / "pictures")
    sequence = sequences.RequestSequence(Benchmark.load(benchmark), (), 2)
    sequences.run_sequence(sequence, tmp_path / "out")
    trial = sequences.Trial(sequence, 0, tmp_path / "out/trial-0")
    asked = set(trial._ids("request-1-to-2"))
    assert sorted(asked) == sorted([*trial._ids("request-1"), *trial._ids("request-2")])
    assert all(any(row.startswith(start) for row in asked) for start in odd)
    run = parse_run(trial._argv("fine_tune", "request-1-to-2"))
    assert set(prepare_task(run.arguments).splits["unlearn"]["id"]) == asked


def test_a_folder_of_other_requests_or_data_is_refused_before_anything_is_written(parted, tmp_path):
    before = folder_hash(tmp_path / "out")
    for other, told in (
        (parted(3), r"\(requests was 2 and is 3\); repeat it, or choose another --output_dir"),
        (parted(2, "--num_samples", "60"), r"\(num_samples was None and is 60\)"),
    ):
        with pytest.raises(UserError, match=told):
            sequences.run_sequence(other, tmp_path / "out")
    assert folder_hash(tmp_path / "out") == before
    assert sequences.run_sequence(parted(), tmp_path / "out") == []


def test_a_folder_that_does_not_tell_what_its_runs_are_of_is_refused(parted, tmp_path):
    (tmp_path / "out/trial-0/parting.json").unlink()
    assert sequences.run_sequence(parted(), tmp_path / "out") == []  # nothing was run: parted again
    (tmp_path / "out/trial-0/parting.json").unlink()
    run = tmp_path / "out/trial-0/fine_tune/request-1/fine_tune"
    run.mkdir(parents=True)
    (run / "evaluation.json").write_text("{}")
    with pytest.raises(UserError, match="not what their requests were; choose another --output_dir"):
        sequences.run_sequence(parted(), tmp_path / "out")


def test_a_run_of_other_settings_is_run_again_and_no_row_until_then(parted, tmp_path, monkeypatch, caplog):
    ran: list[str] = []
    monkeypatch.setattr(
        sequences, "unlearn_and_compare", lambda run, _: ran.append(Path(run.arguments.output_dir).name)
    )
    monkeypatch.setattr(sequences, "row_alignments", lambda *_: SimpleNamespace(save=lambda folder: None))
    names = ["request-1", "request-2", "at-once", "again"]
    sequence = parted(2, methods=("fine_tune",))
    trial = sequences.Trial(sequence, 0, tmp_path / "out/trial-0")
    for name in names:
        (trial.folder / "fine_tune" / name).mkdir(parents=True)
    for extra, again in (((), names), ((), []), (("--fine_tune.learning_rate", "1e-5"), names)):
        ran.clear()
        trial = sequences.Trial(parted(2, *extra, methods=("fine_tune",)), 0, trial.folder)
        for name in trial.names("fine_tune"):
            trial.run("fine_tune", name)
        assert ran == again
    assert "fine_tune/at-once had other settings and is run again" in caplog.text
    caplog.clear()
    assert sequences.Trial(parted(), 0, trial.folder).rows() == []
    assert "fine_tune/again had other settings and is left out of the table" in caplog.text


@pytest.mark.parametrize("number", [0, 7])
def test_a_retrain_after_a_request_that_there_is_not_is_refused(number, tmp_path):
    sequence = sequences.RequestSequence(Benchmark("clip", {}), ("retrain",), 2)
    with pytest.raises(UserError, match=f"--after {number}: the requests have the numbers 1 to 2"):
        sequences.run_sequence(sequence, tmp_path / "out", [number])
    assert not (tmp_path / "out").exists()
