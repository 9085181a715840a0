"""Pictures and datasets the data tests share."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from hf_unlearn.data.openmoji import load_openmoji


@pytest.fixture(scope="session")
def openmoji_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds OpenMoji at 32 px."""
    folder = tmp_path_factory.mktemp("openmoji")
    load_openmoji(cache_dir=folder)
    return folder


@pytest.fixture(scope="session")
def openmoji(openmoji_cache: Path) -> Dataset:
    return load_openmoji(cache_dir=openmoji_cache)


def png(image: PILImage.Image, **options: object) -> bytes:
    """Encode a picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def noise(seed: int, size: int = 8) -> PILImage.Image:
    """A picture of random pixels that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return PILImage.fromarray(pixels)


def dataset_of(images: list[bytes], ids: list[str] | None = None, **columns: list) -> Dataset:
    """A dataset in the library's schema from encoded pictures."""
    ids = ids or [str(i) for i in range(len(images))]
    features = {"image": Image(), "captions": List(Value("string")), "id": Value("string")}
    rows = {
        "image": [{"bytes": image, "path": None} for image in images],
        "captions": [[f"picture {i}"] for i in ids],
        "id": ids,
    }
    dataset = Dataset.from_dict(rows, features=Features(features))
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset
