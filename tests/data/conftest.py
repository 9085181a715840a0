"""Pictures and datasets the data tests share."""

from __future__ import annotations

import io
from collections.abc import Callable
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


def _encode(image: PILImage.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def _noise(seed: int, size: int = 8) -> PILImage.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return PILImage.fromarray(pixels)


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Encode a picture, as PNG by default."""
    return _encode


@pytest.fixture(scope="session")
def noise() -> Callable[..., PILImage.Image]:
    """A picture of random pixels that no other seed gives."""
    return _noise


@pytest.fixture(scope="session")
def rows() -> Callable[..., Dataset]:
    """Build a dataset in the library's schema from encoded pictures, or from noise with the seeds 0, 1, ..."""

    def build(images: int | list[bytes | None], ids: list[str] | None = None) -> Dataset:
        if isinstance(images, int):
            images = [_encode(_noise(seed)) for seed in range(images)]
        ids = ids or [str(number) for number in range(len(images))]
        columns = {
            "image": [image and {"bytes": image, "path": None} for image in images],
            "captions": [[f"picture {row_id}"] for row_id in ids],
            "id": ids,
        }
        features = Features({"image": Image(), "captions": List(Value("string")), "id": Value("string")})
        return Dataset.from_dict(columns, features=features)

    return build
