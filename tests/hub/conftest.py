"""A finished run to publish: a tiny CLIP, its records, heatmaps and card; and a Hub to send it to."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from folders import watched
from hub.finished_run import CAPTIONS, describe, perturb
from hub.local_hub import LocalHub, serve
from PIL import Image as Picture
from trainers import encoder, splits  # noqa: F401  (fixtures)

from hf_unlearn.models.small_clip import build_small_clip


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The data owner's six pictures."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = [folder / f"{caption.replace(' ', '_')}.png" for caption in CAPTIONS]
    for path in paths:
        Picture.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="session")
def requested(pictures: list[Path]) -> Dataset:
    """The same pictures as the unlearn split of a run."""
    features = Features({"image": Image(), "captions": List(Value("string")), "id": Value("string")})
    rows = {"image": [str(path) for path in pictures], "captions": [[c] for c in CAPTIONS], "id": CAPTIONS}
    return Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model before unlearning, with a licence of its own."""
    folder = tmp_path_factory.mktemp("models") / "small-clip"
    model, processor = build_small_clip(CAPTIONS)
    config = model.config  # of fewer layers: it is loaded wherever tensors are checked
    config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers = 1, 1
    torch.manual_seed(0)
    model = type(model)(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n\n# small-clip\n")
    return watched(folder)


@pytest.fixture(scope="session")
def finished_run(base: Path, requested: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as the recipes leave it, with what a Trainer leaves beside; never written to by a test."""
    folder = tmp_path_factory.mktemp("runs") / "alignment_calibration"
    shutil.copytree(base, folder)
    (folder / "README.md").unlink()
    perturb(folder)
    describe(folder, base, requested)
    torch.save({"lr": 0.1}, folder / "training_args.bin")
    (folder / "checkpoint-4").mkdir()
    torch.save({"step": 4}, folder / "checkpoint-4" / "optimizer.pt")
    (folder / "events.log").write_text("started in /home/ada/runs\n")
    return folder


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "alignment_calibration"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub on this machine that the real client talks to, with a cache of its own and retries that do not wait."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    home = tmp_path_factory.mktemp("home")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(_http, "time", SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None}))
        yield hub
