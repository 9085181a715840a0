"""Files and folders that are whole or absent: written beside, synced to disk, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hf_unlearn.errors import UserError, is_disk_full


def write_atomically(path: str | Path, text: str) -> Path:
    """Write a text file so that a reader, or a crash at any moment, sees the old file or the new one, never a part.

    Args:
        path: The file; its folder must exist.
        text: The whole content, written as UTF-8.

    Returns:
        The path written.
    """
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


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


def put_in_place(finished: Path, destination: Path) -> None:
    """Rename a checkpoint to its final name; one that is there already, an interrupted run's, gives way."""
    if destination.exists():
        shutil.rmtree(destination)
    finished.rename(destination)
    sync(destination.parent)


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush a folder and all it holds to disk."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


@contextmanager
def told_if_disk_is_full(folder: Path, what: str) -> Iterator[None]:
    """Turn a write that fails for want of space into one sentence; everything else passes.

    Args:
        folder: where is written.
        what: what is written, for the message.

    Raises:
        UserError: when the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        raise UserError(
            f"no space left on the disk of {folder}: {what} was not written, and what was there before is as it was; "
            "free some space, or choose another --output_dir"
        ) from error


def refuse_to_write_to(source: str | Path | None, flag: str, output: str | Path, option: str = "--output_dir") -> None:
    """Refuse an output that lies in a folder that is only read from, or is a folder around it.

    Args:
        source: what is read; anything but a folder here, such as a Hub id, is in nobody's way.
        flag: the option that names it.
        output: the folder, or file, to write.
        option: the option that names that.

    Raises:
        UserError: naming both.
    """
    if source is None or not Path(source).is_dir():
        return
    read, written = Path(source).resolve(), Path(output).resolve()
    if read.is_relative_to(written):
        raise UserError(f"{flag} {source} lies in {option} {output}, which is written to; choose another {option}")
    if written.is_relative_to(read):
        raise UserError(f"{option} {output} lies in {flag} {source}, which is only read; choose another {option}")
