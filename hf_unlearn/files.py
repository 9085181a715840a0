"""Files and folders that are whole or absent: written beside, synced to disk, then renamed; one owner at a time."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from hf_unlearn.errors import UserError, is_disk_full

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

LOCK_NAME = ".lock"


def write_atomically(path: str | Path, text: str) -> Path:
    """Write a text file so that a reader, or a crash at any moment, sees the old file or the new one, never a part.

    Args:
        path: The file; its folder must exist.
        text: The whole content, written as UTF-8; what a file name held that is none is escaped as `\\udce9`, which
            JSON reads back.

    Returns:
        The path written.
    """
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
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

    A crash at any moment leaves the old folder or the new one, never a part of either; `clear_interrupted` puts an
    old one back that a crash left between two names.

    Raises:
        UserError: when the disk is full.
    """
    with disk_full_as_user_error(destination.parent, destination.name):
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(".tmp", f".{destination.name}.", destination.parent))
        try:
            yield temporary
            sync_tree(temporary)
            temporary.chmod(0o755)
            for weights in temporary.rglob("*.safetensors"):  # which safetensors writes for its own user alone
                weights.chmod(0o644)
            if destination.exists():
                old = Path(tempfile.mkdtemp(".old", f".{destination.name}.", destination.parent))
                destination.rename(old / destination.name)
                temporary.rename(destination)
                shutil.rmtree(old)
            else:
                temporary.rename(destination)
            sync(destination.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def clear_interrupted(folder: Path, name: str = "?*") -> None:
    """Clear up after a process that was killed while it wrote; nobody else may be writing the same now.

    What `write_atomically` and `finished_folder` had begun goes, and what the latter had just moved aside comes back.

    Args:
        folder: where was written.
        name: the file or folder that was written there; by default any.
    """
    for aside in folder.glob(f".{name}.????????.old"):
        for old in aside.iterdir():
            if not (folder / old.name).exists():
                old.rename(folder / old.name)
        shutil.rmtree(aside)
    for begun in folder.glob(f".{name}.????????.tmp"):
        shutil.rmtree(begun) if begun.is_dir() else begun.unlink()


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
def disk_full_as_user_error(folder: Path, what: str) -> Iterator[None]:
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


def refuse_unwritable(folder: str | Path, option: str = "--output_dir") -> None:
    """Refuse a folder that could not be made or written to, before the work whose results are to go there.

    It is tried out by a folder that is made in it, or in the nearest one around it that is there, and goes again.

    Args:
        folder: what is to be written to.
        option: what names it.

    Raises:
        UserError: naming the folder and what stands in the way.
    """
    folder = Path(folder)
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists() or place.is_symlink())
        Path(tempfile.mkdtemp(".tmp", ".", there)).rmdir()
    except OSError as error:
        raise _unwritable(folder, option, error) from error


def _unwritable(folder: Path, option: str, error: OSError) -> UserError:
    return UserError(f"{folder} cannot be written to ({error.strerror}); choose another {option}")


def refuse_revision(source: str | Path | None, revision: str | None, option: str = "the revision") -> None:
    """Refuse a revision of a folder on this machine: it has none, and whatever it holds would be taken for that.

    Args:
        source: what is read, a folder or a Hub id.
        revision: the branch, tag or commit that is asked for.
        option: the option that names it.

    Raises:
        UserError: naming both.
    """
    if revision is not None and source is not None and Path(source).is_dir():
        raise UserError(f"{option} {revision} would have no effect: {source} is a folder, not on the Hub; leave it out")


@contextmanager
def owned(folder: str | Path, what: str, option: str = "--output_dir", wait: bool = False) -> Iterator[Path]:
    """Own a folder while the block runs: nobody else who asks for it gets it, here or on a machine that shares it.

    The lock is the system's, on the file `.lock` in the folder, and ends with the process, however that ends. The file
    goes with it, and so does a folder that was made for it and stayed empty.

    Args:
        folder: what is written to; it is made if it is not there.
        what: what the owner does there, for the message, such as "a run".
        option: the option that names the folder.
        wait: whether to wait for the other owner instead of refusing.

    Yields:
        The folder.

    Raises:
        UserError: somebody else owns it, or it cannot be written to.
    """
    folder = Path(folder)
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        file = _locked(folder, wait)
    except BlockingIOError as error:
        raise UserError(
            f"{what} is still at work in {folder}; wait until it has ended, or choose another {option}"
        ) from error
    except OSError as error:
        raise _unwritable(folder, option, error) from error
    try:
        yield folder
    finally:
        with suppress(OSError):  # on Windows an open file stays; it is nobody's then
            (folder / LOCK_NAME).unlink()
        file.close()
        for place in missing:
            with suppress(OSError):  # it holds something
                place.rmdir()


def _locked(folder: Path, wait: bool) -> IO[str]:
    """The open lock file of a folder, locked by this process."""
    path = folder / LOCK_NAME
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("w")
        except FileNotFoundError:  # the other owner has just taken the empty folder away
            continue
        try:
            _lock(file, wait)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # and not one that its owner has just removed
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: IO[str], wait: bool) -> None:
    """Lock an open file for this process.

    Raises:
        BlockingIOError: another process has it.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return
    while True:
        try:
            return msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EDEADLOCK):
                raise
            if not wait:  # LK_LOCK itself gives up after ten seconds
                raise BlockingIOError from error
