"""What a folder holds, as one hash, and the folders that nobody may write to."""

import hashlib
from pathlib import Path

BASE_MODELS: dict[Path, str] = {}  # the folder of each base model, and its hash when it was made


def folder_hash(folder: Path) -> str:
    """Hash of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def watched(folder: Path) -> Path:
    """A base model's folder, complete, whose hash is compared after every test from now on (`tests/conftest.py`)."""
    BASE_MODELS[folder] = folder_hash(folder)
    return folder
