import csv

import numpy as np
import pytest
import torch
from audit.embedding_server import serve
from PIL import Image, ImageDraw
from transformers import CLIPImageProcessor

from hf_unlearn.audit.endpoint import EndpointOptions
from hf_unlearn.audit.endpoint_cache import EmbeddingCache
from hf_unlearn.models.moco import MoCoConfig, MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel
from hf_unlearn.models.small_clip import build_small_clip

FAST = EndpointOptions(batch_size=8, attempts=3, timeout=5, backoff=0.01)


@pytest.fixture
def endpoint():
    with serve() as server:
        yield server


@pytest.fixture
def cache(tmp_path):
    """What endpoints answered."""
    with EmbeddingCache(tmp_path / "answers.sqlite") as opened:
        yield opened


@pytest.fixture
def waits():
    """Seconds that an endpoint was waited for."""
    return []


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch):
    for name in ("HF_UNLEARN_TOKEN", "HF_UNLEARN_BEFORE_TOKEN", "HF_UNLEARN_AFTER_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def small_plots(monkeypatch):
    """Plots at a quarter of their resolution, where a test does not look at them."""
    monkeypatch.setattr("hf_unlearn.figures.drawing.DPI", 40)


def draw(seed, size=40):
    """A picture of coloured discs, another one for every seed."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size + 8), tuple(int(v) for v in rng.integers(0, 256, 3)))
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        x, y, r = rng.integers(0, size, 3)
        pen.ellipse((x - r / 3, y - r / 3, x + r / 3, y + r / 3), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return image


def folder_of(path, count, first=0):
    path.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        draw(i).save(path / f"picture-{i:02}.png")
    return path


@pytest.fixture
def arms(tmp_path):
    """Folders of four requested, four still trained and four never trained pictures."""
    return {
        "images": folder_of(tmp_path / "mine", 4),
        "still_trained": folder_of(tmp_path / "kept", 4, 10),
        "never_trained": folder_of(tmp_path / "controls", 4, 20),
    }


@pytest.fixture
def captions(tmp_path, arms):
    path = tmp_path / "captions.csv"
    names = [file.name for folder in arms.values() for file in sorted(folder.iterdir())]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *((name, f"a drawing, {name}") for name in names)])
    return path


def save_view_encoder(path, kind, seed):
    torch.manual_seed(seed)
    small = {"width": 4, "projection_dim": 6, "image_size": 16}
    model = SimCLRModel(SimCLRConfig(**small)) if kind == "simclr" else MoCoModel(MoCoConfig(**small, queue_size=8))
    model.save_pretrained(path)
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Two SimCLR, one MoCo and two CLIP checkpoints with random weights, by name."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {name: save_view_encoder(root / name, name.split("_")[0], seed) for name, seed in
            (("simclr_a", 0), ("simclr_b", 1), ("moco_a", 2))}  # fmt: skip
    for name, seed in (("clip_a", 3), ("clip_b", 4)):
        torch.manual_seed(seed)
        model, processor = build_small_clip(["a drawing of discs"], image_size=16)
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
        made[name] = root / name
    return made
