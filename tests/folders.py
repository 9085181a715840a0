"""What a folder holds, as one hash, and the folders that nobody may write to."""

import hashlib
from pathlib import Path

# The folder of each base model, and how its files stood when it was made; to read megabytes after each of thousands of
# tests takes a minute.
BASE_MODELS: dict[Path, tuple] = {}


def folder_hash(folder: Path) -> str:
    """Hash of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def files_as_they_stand(folder: Path) -> tuple:
    """Every file with what any write to it, or replacement of it, changes."""
    found = ((path, path.stat()) for path in sorted(p for p in folder.rglob("*") if p.is_file()))
    return tuple((str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in found)


def watched(folder: Path) -> Path:
    """A base model's folder, complete, which is looked at after every test from now on (`tests/conftest.py`)."""
    BASE_MODELS[folder] = files_as_they_stand(folder)
    return folder
