"""Folders that are either finished or absent: written beside, synced to disk, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def finished_folder(destination: Path) -> Iterator[Path]:
    """A temporary folder that becomes `destination` when the block ends well, replacing what was there.

    A crash at any moment leaves the old folder or the new one, never a part of either.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}."))
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            sync(path)
        sync(temporary)
        temporary.chmod(0o755)
        if destination.exists():
            old = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}.old."))
            destination.rename(old / destination.name)
            temporary.rename(destination)
            shutil.rmtree(old)
        else:
            temporary.rename(destination)
        sync(destination.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
