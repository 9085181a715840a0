"""The recipe as its user runs it: on a model and a dataset that are not the embedded ones, and on bad input."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk
from folders import folder_hash
from transformers import AutoProcessor, CLIPModel

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "unlearn_clip.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_clip, foreign_pairs):
    """Output folder of a run with Retrain and Alignment Calibration, through `accelerate launch`."""
    folder = tmp_path_factory.mktemp("run")
    request = folder / "ids.txt"
    request.write_text("".join(f"{i}\n" for i in range(0, 72, 9)))
    before = folder_hash(tiny_clip)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", str(RECIPE)]
    command += ["--model_name_or_path", str(tiny_clip), "--dataset_name", str(foreign_pairs)]
    command += ["--image_column", "photo", "--caption_column", "text", "--unlearn_request", str(request)]
    command += ["--methods", "retrain", "alignment_calibration", "--num_train_epochs", "2", "--learning_rate", "1e-4"]
    command += ["--per_device_train_batch_size", "16", "--output_dir", str(folder / "out"), "--use_cpu", "true"]
    environment = {**os.environ, "HF_UNLEARN_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert folder_hash(tiny_clip) == before, "the base model's folder was written to"
    return folder / "out", done.stdout


def test_prints_the_comparison_and_leaves_a_complete_folder(finished):
    out, printed = finished
    assert "Alignment Calibration" in printed and printed.count("Avg.") == 1
    shown = printed.replace(str(out), "out")  # a temporary folder may have a long name
    assert max(map(len, shown.splitlines())) <= 80 and "{'loss'" not in printed
    assert {p.name for p in out.iterdir()} == {
        "retrain",
        "alignment_calibration",
        "assets",
        "results.json",
        "results.md",
        "run.json",
        "log.jsonl",
    }
    names = {str(p.relative_to(out / "retrain")) for p in (out / "retrain").rglob("*") if p.is_file()}
    assert {"config.json", "model.safetensors", "README.md", "unlearning.json", "evaluation.json"} <= names
    assert "assets/alignment_matrices.png" in names and "tokenizer.json" in names
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in names)


def test_records_what_was_unlearned(finished):
    manifest = json.loads((finished[0] / "alignment_calibration" / "unlearning.json").read_text())
    assert manifest["request"]["kind"] == "file" and manifest["request"]["count"] == 8
    assert manifest["splits"]["unlearn"] == 8 and manifest["splits"]["validation"] and manifest["splits"]["test"]
    assert manifest["hyper_parameters"]["learning_rate"] == 1e-4
    assert manifest["base_model"]["name_or_path"].startswith("tiny-clip")  # a name, not a path


def test_gap_is_the_mean_absolute_difference_from_retrain(finished):
    rows = {row["method"]: row for row in json.loads((finished[0] / "results.json").read_text())["rows"]}
    ours, exact = rows["alignment_calibration"]["metrics"], rows["retrain"]["metrics"]
    expected = np.mean([abs(ours[k] - exact[k]) for k in ("cosine_retain", "cosine_unlearn")])
    assert rows["alignment_calibration"]["avg_gap"] == pytest.approx(expected)
    assert rows["retrain"]["avg_gap"] is None


def test_plain_transformers_reloads_what_was_measured(finished, foreign_pairs):
    folder = finished[0] / "alignment_calibration"
    model, processor = CLIPModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    rows = load_from_disk(str(foreign_pairs)).select(range(0, 72, 9))
    with torch.no_grad():
        batch = processor(
            images=[image.convert("RGB") for image in rows["photo"]],
            text=list(rows["text"]),
            padding="max_length",
            max_length=16,
            return_tensors="pt",
        )
        outputs = model(**batch)
    cosine = (outputs.image_embeds * outputs.text_embeds).sum(-1)
    metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
    assert 100 * cosine.mean().item() == pytest.approx(metrics["cosine_unlearn"], abs=1e-3)


def run_recipe(monkeypatch, capsys, *argv: str) -> str:
    """Run the recipe in this process; returns its error after checking that it exits with status 2."""
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *argv])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(RECIPE), run_name="__main__")
    assert exit_info.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


CASES = {
    "empty request": (["--unlearn_request", "{empty}"], r"empty"),
    "unknown ids": (["--unlearn_request", "{unknown}"], r"no-such-id"),
    "everything": (["--unlearn_request", "{everything}"], r"retain|everything|all"),
    "fraction zero": (["--unlearn_fraction", "0"], r"0"),
    "missing column": (["--image_column", "picture"], r"picture"),
    "missing model": (["--model_name_or_path", "{folder}/nowhere"], r"nowhere"),
    "empty caption": (["--dataset_name", "{blank}"], r"caption"),
    "unreadable image": (["--dataset_name", "{broken}"], r"broken-7"),
}


@pytest.fixture(scope="module")
def bad_inputs(tmp_path_factory, shapes):
    folder = tmp_path_factory.mktemp("bad")
    paths = {name: folder / f"{name}.txt" for name in ("empty", "unknown", "everything")}
    paths["empty"].write_text("")
    paths["unknown"].write_text("red-circle-3\nno-such-id\n")
    paths["everything"].write_text("\n".join(shapes["id"]))
    captions = [[*row] for row in shapes["captions"]]
    captions[5] = ["  "]
    blank = shapes.remove_columns("captions").add_column("captions", captions)
    blank.save_to_disk(folder / "blank")
    rows = shapes.cast_column("image", shapes.features["image"].__class__(decode=False))[:]
    rows["image"][7] = {"bytes": rows["image"][7]["bytes"][:60], "path": None}
    rows["id"][7] = "broken-7"
    Dataset.from_dict(rows, features=shapes.features).save_to_disk(folder / "broken")
    return {"folder": folder, "blank": folder / "blank", "broken": folder / "broken", **paths}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_sentence_and_nothing_written(
    case, bad_inputs, shapes, tiny_clip, tmp_path, monkeypatch, capsys
):
    argv, message = CASES[case]
    shapes.save_to_disk(tmp_path / "data")
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    given = ["--dataset_name", str(tmp_path / "data"), "--model_name_or_path", str(tiny_clip)]
    given += ["--methods", "alignment_calibration", "--output_dir", str(tmp_path / "out")]
    given += [] if any("--unlearn_" in word for word in argv) else ["--unlearn_fraction", "0.1"]
    error = run_recipe(monkeypatch, capsys, *given, *(word.format(**bad_inputs) for word in argv))
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()
