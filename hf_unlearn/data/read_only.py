"""Folders that are only read from: models, datasets, and what else is the user's own."""

from pathlib import Path

from hf_unlearn.errors import UserError


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
