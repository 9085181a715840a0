"""Folders that are either finished or absent: written beside, synced to disk, then renamed."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_unlearn.methods.checkpoints import sync, sync_tree, told_if_disk_is_full


@contextmanager
def finished_folder(destination: Path) -> Iterator[Path]:
    """A temporary folder that becomes `destination` when the block ends well, replacing what was there.

    A crash at any moment leaves the old folder or the new one, never a part of either; `recover` puts an old one back
    that a crash left between two names.

    Raises:
        UserError: when the disk is full.
    """
    with told_if_disk_is_full(destination.parent, destination.name):
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}."))
        try:
            yield temporary
            sync_tree(temporary)
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


def recover(destination: Path) -> None:
    """Clear up after a process that was killed while it wrote `destination`; nobody else may be writing it now."""
    for old in destination.parent.glob(f".{destination.name}.old.*"):
        if (old / destination.name).exists() and not destination.exists():
            (old / destination.name).rename(destination)
    for left in destination.parent.glob(f".{destination.name}.*"):
        shutil.rmtree(left)
