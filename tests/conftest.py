"""Small real parts shared by all tests: drawn pictures with captions, and a tiny CLIP saved with its processor."""

import gc
import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import accelerate.utils.memory
import datasets.config
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from folders import BASE_MODELS, files_as_they_stand, watched
from hypothesis import Phase, settings
from PIL import Image as PILImage
from PIL import ImageDraw
from tqdm import tqdm
from transformers import CLIPModel

from hf_unlearn.figures import drawing
from hf_unlearn.training import targets

# The same examples on every run, so that a change alone can break the suite; --hypothesis-profile default draws others.
# What fails is not made smaller: that takes minutes, and the first example tells what to look at.
PHASES = (Phase.explicit, Phase.generate)
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, phases=PHASES)
settings.load_profile("repeatable")

torch.set_num_threads(1)
# Progress bars have one lock for a process and its forks: a fork that is killed while it draws one keeps it, and
# whoever draws the next waits for ever. Here each process has its own, and no thread that may hold it when one forks.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0
# Seconds that datasets waits after every pass over streamed parquet, lest reading threads outlive the interpreter;
# tests make many short passes.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.1

COLOURS = ["red", "green", "blue", "orange", "purple", "black"]
SHAPES = ["circle", "square", "triangle"]


def draw(colour: str, shape: str, size: int, side: int = 20) -> PILImage.Image:
    """A coloured shape on white."""
    image = PILImage.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    box = [10 - size, 10 - size, 10 + size, 10 + size]
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(10, 10 - size), (10 - size, 10 + size), (10 + size, 10 + size)], fill=colour)
    return image


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first, so that of two processes none is left with one of them while the other idles."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Of the libraries nothing becomes garbage; accelerate looks through them for each training, for half a second."""
    gc.collect()
    gc.freeze()
    accelerate.utils.memory.gc = SimpleNamespace(collect=lambda: 0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What every run does and few tests look at takes less: pictures at half of their resolution, and fewer views.

    Where the rows are before and after a training is measured in random views, which took as long as the training.
    """
    drawing.DPI = 160 if {"figures", "hub"} & {*item.path.parts} else 80
    targets.VIEW_PAIRS = 2


@pytest.fixture(scope="session")
def shapes() -> Dataset:
    """72 distinct pictures with one or two captions each, a label and an owner, in the library's schema."""
    rows = [(c, s, z) for z in range(3, 7) for c in COLOURS for s in SHAPES]
    features = Features(
        image=Image(),
        captions=List(Value("string")),
        label=ClassLabel(names=SHAPES),
        owner=Value("string"),
        id=Value("string"),
    )
    return Dataset.from_dict(
        {
            "image": [draw(*row) for row in rows],
            "captions": [[f"a {c} {s}", f"{s} of size {z}"][: 1 + z % 2] for c, s, z in rows],
            "label": [s for _, s, _ in rows],
            "owner": ["alice" if i % 9 == 0 else "bob" for i in range(len(rows))],
            "id": [f"{c}-{s}-{z}" for c, s, z in rows],
        },
        features=features,
    )


@pytest.fixture(autouse=True)
def untouched_base_models() -> Iterator[None]:
    """Whatever a test and its fixtures do, faults injected or not, every base model's folder stays as it was made."""
    yield
    changed = {folder: found for folder, made in BASE_MODELS.items() if (found := files_as_they_stand(folder)) != made}
    BASE_MODELS.update(changed)  # one test fails for it, not all that follow
    assert not changed, "a base model's folder was written to"


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory, shapes):
    """Folder of a CLIP with random weights and its processor, 16 px."""
    from hf_unlearn.models.small_clip import build_small_clip

    model, processor = build_small_clip([c for captions in shapes["captions"] for c in captions], image_size=16)
    config = model.config  # of fewer layers, each of which costs as much as all else that is done for a batch
    config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers = 1, 2
    torch.manual_seed(2)
    model = CLIPModel(config)
    folder = tmp_path_factory.mktemp("tiny-clip")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return watched(folder)


@pytest.fixture(scope="session")
def loaded_clip(tiny_clip):
    """The same model and processor loaded once, which takes as long as a training; every test takes a copy."""
    from hf_unlearn.models.loading import load_encoder

    return load_encoder(str(tiny_clip))


@pytest.fixture(scope="session")
def foreign_pairs(tmp_path_factory, shapes):
    """The same pictures as somebody else's dataset: other column names, one caption, numbered rows, saved to disk."""
    folder = tmp_path_factory.mktemp("foreign-pairs")
    data = shapes.remove_columns(["id", "label"]).rename_columns({"image": "photo", "captions": "text"})
    data.map(lambda row: {"text": row["text"][0]}, features=_with_text(data.features)).save_to_disk(folder)
    return folder


def _with_text(features: Features) -> Features:
    changed = features.copy()
    changed["text"] = Value("string")
    return changed
