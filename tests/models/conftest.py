"""A checkpoint that a test may change."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(tiny_clip: Path, tmp_path: Path) -> Path:
    """A copy of a CLIP and its processor, to be changed."""
    return Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
