"""Removal requests: which samples are to be unlearned, as a fraction, a file of ids or a condition on a column."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from hf_unlearn.data.fingerprint import combine_hashes
from hf_unlearn.errors import UserError, listed
from hf_unlearn.parsing import parse_json, read_bytes

# A first line such as "image_id" is a header; "0017" or "a7f3", taken for one, would be an id that is not removed.
_ID_HEADER = re.compile(r"([a-z]+[ _-])*[a-z]*ids?", re.IGNORECASE)


RequestKind = Literal["fraction", "file", "where", "split"]


@dataclass(frozen=True)
class RemovalRequest:
    """What is to be unlearned, and the evidence of it that may be published.

    Args:
        kind: How it was asked for: a random `fraction`, a `file` (or list) of ids, `where` a column has a value, or a
            `split` that came ready.
        ids: The ids asked for. Copies of them that are unlearned along (`--duplicates move`) are not among them.
        fraction: The fraction, for that kind.
        where: The condition as written, for that kind.
        notes: What a reader must know of rows like those asked for that stay.
    """

    kind: RequestKind
    ids: tuple[str, ...] = field(repr=False)
    fraction: float | None = None
    where: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many samples were asked for."""
        return len(self.ids)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the sorted ids, what `LC_ALL=C sort ids.txt | sha256sum` prints."""
        return combine_hashes(self.ids)


def read_request(path: str | os.PathLike[str]) -> list[str]:
    """Read the ids of a removal request from a file.

    Args:
        path: A `.txt` file with an id a line (blank lines and lines that start with `#` do not count), a `.csv` file
            with a column `id` or a single column whose header ends in "id", or a `.json` file with a list of ids or
            `{"ids": [...]}`. Integers in JSON become strings.

    Returns:
        The ids in the file's order.

    Raises:
        UserError: The file is missing, of another form or empty, or holds repeated or wrongly typed ids; all are
            listed.
    """
    ids, problems = checked_ids(read_entries(path))
    if problems:
        raise UserError(f"The removal request {path} must be corrected; it has {'; '.join(problems)}.")
    return ids


def checked_ids(entries: Sequence[object]) -> tuple[list[str], list[str]]:
    """Return the ids among a request's entries, and what is wrong with the others and with repeated ones.

    Example:
        >>> checked_ids(["a", 7, "a", 1.5, ""])
        (['a', '7', 'a'], ["entries that are no id (2): 1.5 (entry 4), '' (entry 5)", 'repeated ids (1): a'])
    """
    ids = [str(entry) for entry in entries if _is_id(entry)]
    problems = []
    if not entries:
        problems.append("no id in it")
    if len(ids) < len(entries):
        wrong = [f"{entry!r} (entry {number})" for number, entry in enumerate(entries, start=1) if not _is_id(entry)]
        problems.append(f"entries that are no id ({len(wrong):,}): {listed(wrong)}")
    if len(set(ids)) < len(ids):
        repeated = [row_id for row_id, times in Counter(ids).items() if times > 1]
        problems.append(f"repeated ids ({len(repeated):,}): {listed(repeated)}")
    return ids, problems


def _is_id(entry: object) -> bool:
    if isinstance(entry, str):  # half a surrogate pair, which JSON can hold, is no text and has no hash
        return bool(entry.strip()) and not any("\ud800" <= letter <= "\udfff" for letter in entry)
    return isinstance(entry, int) and not isinstance(entry, bool)


def read_entries(path: str | os.PathLike[str]) -> list[object]:
    """Read a request file's entries as they stand there, valid or not; see `read_request` for the formats."""
    file = Path(path).expanduser()
    readers = {".txt": _text_entries, ".csv": _csv_entries, ".json": _json_entries}
    if file.suffix.lower() not in readers:
        raise UserError(f"The removal request {file} must be a .txt, .csv or .json file (--unlearn_request).")
    try:
        text = read_bytes(file).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"The removal request {file} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"The removal request {file} is not UTF-8 text (byte {error.start}); convert it.") from error
    return readers[file.suffix.lower()](text, file)


def _text_entries(text: str, file: Path) -> list[object]:
    lines = (line.strip() for line in text.split("\n"))  # splitlines() would also part an id at rarer characters
    return [line for line in lines if line and not line.startswith("#")]


def _csv_entries(text: str, file: Path) -> list[object]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except csv.Error as error:
        raise UserError(f"The removal request {file} is not valid CSV ({error}).") from error
    if not rows:
        return []
    header = [name.strip() for name in rows[0]]
    if len(header) == 1 and not _ID_HEADER.fullmatch(header[0]):
        raise UserError(
            f"The first line of the removal request {file}, {header[0]!r}, may be a header or an id: "
            "call the column id, or give the ids as a .txt file."
        )
    if len(header) > 1 and header.count("id") != 1:
        raise UserError(f"The removal request {file} has no column 'id'; its columns: {', '.join(header)}.")
    column = header.index("id") if len(header) > 1 else 0
    # A row of another width stays a list, which is no id: its cells cannot be told apart.
    return [row[column].strip() if len(row) == len(header) else row for row in rows[1:]]


def _json_entries(text: str, file: Path) -> list[object]:
    content = parse_json(text, f"The removal request {file}", "mend it")
    entries = content.get("ids") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise UserError(f'The removal request {file} must be a JSON list of ids or {{"ids": [...]}}.')
    return entries


def parse_where(condition: str, option: str = "--unlearn_where") -> tuple[str, list[str]]:
    """Parse `column=value` or `column=value,value,...`.

    Args:
        condition: What follows the option; everything after the first "=" belongs to the values.
        option: What the message calls it.

    Returns:
        The column and its values, which are compared as strings.

    Raises:
        UserError: There is no "=", or nothing before it, or an empty or repeated value.

    Example:
        >>> parse_where("owner=alice,bob")
        ('owner', ['alice', 'bob'])
    """
    column, equals, rest = condition.partition("=")
    values = [value.strip() for value in rest.split(",")]
    if not equals or not column.strip() or not all(values) or len(set(values)) < len(values):
        raise UserError(f"{option} {condition!r} is not of the form column=value or column=value,value.")
    return column.strip(), values
