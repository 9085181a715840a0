"""The recipes of the data that cannot be fetched here, run on local data of the same schema."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from datasets import DatasetDict

RECIPES = Path(__file__).parents[2] / "recipes"
QUICK = ["--num_train_epochs", "1", "--methods", "retrain", "alignment_calibration"]
QUICK += ["--per_device_train_batch_size", "16", "--use_cpu", "true", "--bf16", "false"]
QUICK_BASE = ["--pretrain.num_train_epochs", "1", "--pretrain.per_device_train_batch_size", "16"]


def run(monkeypatch, tmp_path, recipe: str, config: str, *argv: str) -> dict:
    """Run a recipe in this process; the rows of its results by method."""
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    given = ["--config", str(RECIPES / "configs" / config), "--dataset_name", str(tmp_path / "data")]
    given += ["--output_dir", str(tmp_path / "out"), *QUICK, *argv]
    given += [] if "--model_name_or_path" in argv else QUICK_BASE
    monkeypatch.setattr(sys, "argv", [recipe, *given])
    runpy.run_path(str(RECIPES / recipe), run_name="__main__")
    return {row["method"]: row for row in json.loads((tmp_path / "out" / "results.json").read_text())["rows"]}


@pytest.mark.parametrize("family", ["simclr", "moco"])
def test_cifar(family, shapes, tmp_path, monkeypatch):
    rows = shapes.select_columns(["image", "label"]).rename_column("image", "img")
    DatasetDict(train=rows.select(range(60)), test=rows.select(range(60, 72))).save_to_disk(tmp_path / "data")
    small = ["--model.width", "8", "--model.stem", "imagenet", "--model.projection_dim", "16"]
    small += ["--model.queue_size", "24"] if family == "moco" else []
    found = run(monkeypatch, tmp_path, f"unlearn_{family}.py", f"{family}_cifar10_10pct.yaml", *small)
    assert set(found["alignment_calibration"]["gap"]) == {
        "emia",
        "retain_accuracy",
        "test_accuracy",
        "unlearn_accuracy",
        "cmia",
    }
    splits = json.loads((tmp_path / "out" / "retrain" / "unlearning.json").read_text())["splits"]
    assert splits == {"validation": 6, "unlearn": 5, "retain": 49, "test": 12}  # 10% of 60, then of the rest


def test_vit_b32(shapes, tiny_clip, tmp_path, monkeypatch):
    """Batches in chunks, layers computed again in backward, a fused optimiser: all of it but the size."""
    shapes.select_columns(["image", "captions"]).save_to_disk(tmp_path / "data")
    small = ["--model_name_or_path", str(tiny_clip), "--forward_chunk_size", "5", "--dataloader_num_workers", "0"]
    found = run(monkeypatch, tmp_path, "unlearn_clip.py", "clip_vit_b32.yaml", *small)
    assert set(found["alignment_calibration"]["gap"]) == {"cosine_retain", "cosine_unlearn"}


def test_coco(shapes, tmp_path, monkeypatch):
    shapes.select_columns(["image", "captions"]).save_to_disk(tmp_path / "data")
    found = run(monkeypatch, tmp_path, "unlearn_clip.py", "clip_coco.yaml", "--model.image_size", "16")
    assert set(found["alignment_calibration"]["gap"]) == {"cosine_retain", "cosine_unlearn"}
