"""Hashes of the rows that runs unlearned and held out, and these rows in the data of the next run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hf_unlearn.data.fingerprint import part_hashes
from hf_unlearn.data.splits import HELD_OUT
from hf_unlearn.errors import UserError
from hf_unlearn.files import write_atomically
from hf_unlearn.parsing import read_text
from hf_unlearn.records.codec import from_json, to_json
from hf_unlearn.records.file_names import MANIFEST_NAME

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_unlearn.records.schemas import HistoryEntry, RequestRecord

PRIVATE_ROWS_NAME = "private_rows.json"

Row: TypeAlias = tuple[str, str]  # its split, and its id there
Hashes: TypeAlias = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class RecordedRows:
    """By what the next run knows the rows of the runs before it.

    Without a salt, these are `private_rows.json`: whoever has a picture can look for it there, so the file stays beside
    the weights and is never published. With a salt they are in `unlearning.json`.

    Attributes:
        requests: SHA-256 of each request that the model has been through, and `sample_hash` of each of its rows.
        held_out: The same of the rows that the first run held out, by split.
        parts: For the hash of a row, that of its picture alone, and of its captions where no other row had them. Rows
            without captions, and those that earlier versions recorded, have none.
        levels: For the hash of a requested row, the cosine that the last run that unlearned it left it at: with some of
            a request's rows measured later, these are compared alone. They are in the private file only.
    """

    requests: Hashes = field(default_factory=dict)
    held_out: Hashes = field(default_factory=dict)
    parts: Hashes = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> RecordedRows:
        """Read the file beside a model's weights; empty where there is none."""
        path = folder / PRIVATE_ROWS_NAME
        return from_json(cls, read_text(path), PRIVATE_ROWS_NAME) if path.is_file() else cls()

    @classmethod
    def of(
        cls,
        request: RequestRecord,
        splits: Mapping[str, Dataset],
        salt: str | None = None,
        alignment: Iterable[float] | None = None,
    ) -> RecordedRows:
        """What a run leaves of its own rows; captions tell a row where no other row of retain and the rest has them.

        Args:
            request: The run's.
            splits: Its splits.
            salt: The text that hashes are salted with, which are published then: no level is recorded beside them.
            alignment: `[u]` cosines of the unlearn rows under the model that the run ended with, if they were measured.
        """
        named = {name: part_hashes(split, salt) for name, split in splits.items() if name in ("unlearn", *HELD_OUT)}
        parts = dict[str, tuple[str, ...]]()
        if "captions" in splits["unlearn"].column_names:
            times = Counter(tuple(sorted(row)) for split in splits.values() for row in split["captions"])
            for name, rows in named.items():
                for row, texts in zip(rows, splits[name]["captions"], strict=True):
                    is_alone = "retain" in splits and times[tuple(sorted(texts))] == 1
                    parts[row.row] = (row.picture, row.captions) if row.captions and is_alone else (row.picture,)
        levels = dict[str, float]()
        if alignment is not None and salt is None:
            levels = {row.row: float(level) for row, level in zip(named["unlearn"], alignment, strict=True)}
        hashes = {name: tuple(sorted(row.row for row in rows)) for name, rows in named.items()}
        return cls({request.sha256: hashes.pop("unlearn")}, hashes, parts, levels)

    def joined(self, later: RecordedRows) -> RecordedRows:
        """With the requests of a later run; what was held out first stays."""
        held_out = self.held_out or later.held_out
        requests, levels = {**self.requests, **later.requests}, {**self.levels, **later.levels}
        return RecordedRows(requests, held_out, {**later.parts, **self.parts}, levels)

    def save(self, folder: Path) -> None:
        """Write the file beside freshly saved weights; not where there is nothing to tell."""
        if self.requests or self.held_out:
            write_atomically(folder / PRIVATE_ROWS_NAME, to_json(self))


class RowIndex:
    """The rows of a data set by their hashes.

    Args:
        splits: The data, in the library's schema.
        salt: The text that recorded hashes were salted with.
    """

    def __init__(self, splits: Mapping[str, Dataset], salt: str | None) -> None:
        self._rows, self._pictures, self._captions = (defaultdict[str | None, list[Row]](list) for _ in range(3))
        self.hashes: dict[Row, str] = {}
        for name, split in splits.items():
            for row_id, (row, picture, captions) in zip(split["id"], part_hashes(split, salt), strict=True):
                place = name, row_id
                self.hashes[place] = row
                self._rows[row].append(place)
                self._pictures[picture].append(place)
                self._captions[captions].append(place)

    def find(self, recorded: Collection[str], parts: Mapping[str, tuple[str, ...]]) -> Found:
        """Find recorded rows: as they were, or else by their picture, or else by captions that one row alone has.

        Args:
            recorded: Hashes of rows.
            parts: From `RecordedRows`.
        """
        places, edited = dict[Row, None](), 0
        found = 0
        for sha256 in recorded:
            there = self._rows.get(sha256)
            if there is None and sha256 in parts:
                picture, *captions = parts[sha256]
                there = self._pictures.get(picture)
                if there is None and captions and len(self._captions.get(captions[0], ())) == 1:
                    there = self._captions[captions[0]]
                edited += there is not None
            found += there is not None
            places |= dict.fromkeys(there or ())
        return Found(tuple(places), len(recorded), found, edited)


@dataclass(frozen=True)
class Found:
    """Recorded rows in a data set.

    Attributes:
        rows: Where they are; copies of one are all there.
        recorded: How many were recorded.
        found: How many of these are there.
        edited: How many of these have another picture, or other captions, than were recorded.
    """

    rows: tuple[Row, ...] = ()
    recorded: int = 0
    found: int = 0
    edited: int = 0

    def __add__(self, other: Found) -> Found:
        """Both together."""
        counts = (getattr(self, name) + getattr(other, name) for name in ("recorded", "found", "edited"))
        return Found((*self.rows, *other.rows), *counts)

    @property
    def is_most(self) -> bool:
        """Whether half of what was recorded is there, or more."""
        return self.found * 2 >= self.recorded


def damaged(folder: Path, reason: str) -> UserError:
    """What to say of records from which something was taken."""
    return UserError(
        f"the records of {folder.name} cannot tell all earlier requests, whose rows would be taught again: {reason}; "
        "restore the file from the run that wrote it"
    )


def check_complete(folder: Path, runs: Sequence[HistoryEntry], private: RecordedRows) -> None:
    """Refuse records from which runs, or hashes of rows, were taken."""
    known = {run.request.sha256 for run in runs}
    if lost := sum(sha256 not in known for sha256 in private.requests):
        raise damaged(folder, f"{PRIVATE_ROWS_NAME} has rows of {lost} requests that {MANIFEST_NAME} does not name")
    for number, run in enumerate(runs, start=1):
        request = run.request
        rows = private.requests.get(request.sha256) if request.row_hashes is None else request.row_hashes
        if rows is not None and len(rows) < request.count:  # there may be more: copies were moved along
            name = PRIVATE_ROWS_NAME if request.row_hashes is None else MANIFEST_NAME
            raise damaged(folder, f"{name} has {len(rows)} of the {request.count} rows of request {number}")
