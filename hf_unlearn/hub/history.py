"""The requests that a model has been through, and their rows, found again in the data of the next run."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_unlearn.data.earlier_rows import REQUEST_COLUMN, PastRows
from hf_unlearn.data.fingerprint import combine_hashes, row_hashes
from hf_unlearn.data.requests import checked_ids, read_entries
from hf_unlearn.data.splits import rows_by_role
from hf_unlearn.errors import UserError, listed
from hf_unlearn.files import write_atomically
from hf_unlearn.hub.download import fetch
from hf_unlearn.parsing import read_text
from hf_unlearn.records.codec import from_json, to_json
from hf_unlearn.records.file_names import EVALUATION_NAME, MANIFEST_NAME
from hf_unlearn.records.schemas import EvaluationRecord, HistoryEntry, RequestRecord, RequestStatus, UnlearningManifest

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

PRIVATE_ROWS_NAME = "private_rows.json"


@dataclass(frozen=True)
class PrivateRows:
    """What `private_rows.json` holds: hashes without a salt, by which the next run knows the rows of this one.

    Whoever has a picture can look for it here, so the file stays beside the weights and is never published.

    Attributes:
        requests: SHA-256 of each request that the model has been through, and `sample_hash` of each of its rows.
        held_out: The same of the rows that the first run held out, by split.
    """

    requests: dict[str, tuple[str, ...]] = field(default_factory=dict)
    held_out: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "PrivateRows":
        """Read the file beside a model's weights; empty where there is none."""
        path = folder / PRIVATE_ROWS_NAME
        return from_json(cls, read_text(path), PRIVATE_ROWS_NAME) if path.is_file() else cls()

    @classmethod
    def of(cls, request: RequestRecord, unlearn: "Dataset", held_out: "Mapping[str, Dataset]") -> "PrivateRows":
        """What a run leaves of its own rows."""
        kept = {name: tuple(sorted(row_hashes(rows))) for name, rows in held_out.items()}
        return cls({request.sha256: tuple(sorted(row_hashes(unlearn)))}, kept)

    def joined(self, later: "PrivateRows") -> "PrivateRows":
        """With the requests of a later run; what was held out first stays."""
        return PrivateRows({**self.requests, **later.requests}, self.held_out or later.held_out)

    def save(self, folder: Path) -> None:
        """Write the file beside freshly saved weights; not where there is nothing to tell."""
        if self.requests or self.held_out:
            write_atomically(folder / PRIVATE_ROWS_NAME, to_json(self))


@dataclass(frozen=True)
class PastRequests:
    """What the records of a model say of the unlearning runs it has been through.

    Attributes:
        runs: The runs, oldest first; those with a salt bring the hashes of their rows.
        salted_held_out: Salted hashes of the rows that the first run held out, by split.
        private: The hashes without a salt.
        evaluation: What was measured after the last run; None where nothing was.
        levels: Where a Trainer on its own left each request.
    """

    runs: tuple[HistoryEntry, ...] = ()
    salted_held_out: dict[str, tuple[str, ...]] = field(default_factory=dict)
    private: PrivateRows = field(default_factory=PrivateRows)
    evaluation: EvaluationRecord | None = None
    levels: tuple[RequestStatus, ...] = ()

    @classmethod
    def read(cls, name_or_path: str | Path | None, revision: str | None = None) -> "PastRequests":
        """Read the records beside a model's weights; a model without any has been through no request.

        Args:
            name_or_path: A model's folder, or its Hub id.
            revision: A branch, tag or commit on the Hub.

        Raises:
            UserError: A record is not valid, or the Hub cannot be reached.
        """
        if name_or_path is None:
            return cls()
        folder = Path(name_or_path)
        if not folder.is_dir():
            folder = fetch(str(name_or_path), (MANIFEST_NAME, EVALUATION_NAME), revision)
        if not (folder / MANIFEST_NAME).is_file():
            return cls()
        manifest = UnlearningManifest.load(folder)
        runs = (*manifest.history, manifest.as_history_entry())
        evaluation = EvaluationRecord.load_if_evaluated(folder)
        return cls(runs, dict(manifest.held_out), PrivateRows.load(folder), evaluation, manifest.requests)

    @property
    def original(self) -> dict[str, float | None] | None:
        """Metrics of the model before any request, as far as it was measured."""
        return None if self.evaluation is None else self.evaluation.original or self.evaluation.before

    def statuses(self) -> tuple[RequestStatus, ...]:
        """Where each request stood after the last run; without figures where it was not measured."""
        measured = self.levels if self.evaluation is None else self.evaluation.requests
        known = {status.number: status for status in measured}
        unmeasured = (
            RequestStatus(number, run.method, run.created, run.request.count, 0)
            for number, run in enumerate(self.runs, start=1)
        )
        return tuple(replace(known.get(row.number, row), created=row.created) for row in unmeasured)

    def risen(self, number: int) -> float:
        """By how much a request lies above what its own run left, a cosine; 0 where that was not measured."""
        status = self.statuses()[number - 1]
        return 0.0 if status.now is None or status.then is None else (status.now - status.then) / 100

    @property
    def unseen_risen(self) -> float:
        """By how much held-out rows lie above where the original model had them; 0 where that was not measured."""
        statuses = self.statuses()
        first, last = statuses[0].unseen, statuses[-1].non_member
        return 0.0 if first is None or last is None else (last - first) / 100

    def notes(self, splits: "DatasetDict") -> tuple[str, ...]:
        """What a reader must know of earlier requests whose rows are not in the data any more."""
        there = Counter(splits["earlier"][REQUEST_COLUMN]) if self.runs else {}
        return tuple(
            f"Of the {run.request.count} rows of request {number}, {run.request.count - there.get(number, 0)} are not "
            "in the data any more or are asked for again: whether the model has drifted back to them is measured on "
            f"the other {there.get(number, 0)}."
            for number, run in enumerate(self.runs, start=1)
            if there.get(number, 0) < run.request.count
        )

    def _row_hashes(self, run: HistoryEntry) -> tuple[str, ...] | None:
        return run.request.row_hashes if run.request.salted else self.private.requests.get(run.request.sha256)

    def find(
        self, data: "Dataset | DatasetDict", salt: str | None = None, files: Sequence[str | Path] = ()
    ) -> PastRows | None:
        """Find the rows of earlier requests, and those that the first run held out.

        A row is known by the hash of its stored image and captions; where a run recorded none that can be compared,
        by the ids in the request's file.

        Args:
            data: The next run's data, in the library's schema.
            salt: The text that the recorded hashes were salted with.
            files: Requests of earlier runs (`read_request`), in any order.

        Returns:
            The rows by their ids; None for a model that has been through no request.

        Raises:
            UserError: A request's rows can be told neither by hash nor by file, or a file is of no request.
        """
        if not self.runs:
            if files:
                raise UserError(
                    "--earlier_requests: the model's records name no earlier request; leave the option out, or name "
                    "the unlearned model with --model_name_or_path"
                )
            return None
        pool, ready, held_out = rows_by_role(data)
        parts = {"train": pool, **({} if ready is None else {"unlearn": ready}), **held_out}
        rows = [(name, row) for name, part in parts.items() for row in part["id"]]
        by_salt = {given: dict(zip(rows, _hashes(parts, given), strict=True)) for given in self._salts(salt)}
        named = self._files(files, by_salt)
        requested: dict[str, dict[str, int]] = {name: {} for name in parts}
        for number, run in enumerate(self.runs, start=1):
            if number in named:
                found = [row for row in rows if row[0] == "train" and row[1] in named[number]]
            else:
                known, hashes = by_salt[salt if run.request.salted else None], frozenset(self._row_hashes(run) or ())
                found = [row for row, sha256 in known.items() if sha256 in hashes]
            for name, row in found:
                requested[name][row] = number
            logger.info("Request %d: %d of its %d rows are in the data.", number, len(found), run.request.count)
        kept: dict[str, frozenset[str]] = {}
        for given, recorded in ((None, self.private.held_out), (salt, self.salted_held_out)):
            for name, of_split in recorded.items():
                hashes, known = frozenset(of_split), by_salt.get(given, {})
                kept[name] = kept.get(name, frozenset()) | {
                    row for (_, row), sha256 in known.items() if sha256 in hashes
                }
        if salt is not None and any(run.request.salted for run in self.runs):
            self._check_salt(requested, kept)
        return PastRows(requested, kept)

    def _salts(self, salt: str | None) -> list[str | None]:
        """Salts under which rows must be hashed to be compared with what was recorded."""
        recorded = {run.request.salted for run in self.runs if self._row_hashes(run) is not None}
        return [*([None] if False in recorded else []), *([salt] if True in recorded and salt is not None else [])]

    def _files(
        self, files: Sequence[str | Path], by_salt: dict[str | None, dict[tuple[str, str], str]]
    ) -> dict[int, frozenset[str]]:
        """The ids of the requests that a file was given for, by number; each other one must be known by hashes."""
        named: dict[int, frozenset[str]] = {}
        for file in files:
            ids, problems = checked_ids(read_entries(file))
            if problems:
                raise UserError(f"The earlier request {file} must be corrected; it has {'; '.join(problems)}.")
            number = self._number_of(ids, by_salt, taken=named)
            if number is None:
                raise UserError(f"--earlier_requests {file} is none of the requests that this model has been through")
            named[number] = frozenset(ids)
        unknown = [
            f"{number} ({run.request.count} rows, {run.created[:10]})"
            for number, run in enumerate(self.runs, start=1)
            if number not in named and (self._row_hashes(run) is None or (run.request.salted and not any(by_salt)))
        ]
        if unknown:
            raise UserError(
                f"the model has been through earlier requests, and the rows of request {listed(unknown)} cannot be "
                "told from its records alone: name the files of these requests with --earlier_requests, or give the "
                "salt they were recorded with as --request_salt; else their rows would be taught again"
            )
        return named

    def _number_of(
        self, ids: list[str], by_salt: dict[str | None, dict[tuple[str, str], str]], taken: dict[int, frozenset[str]]
    ) -> int | None:
        """Which request these ids are: the one with their hash, or else the first salted one of their number."""
        known = next((known for given, known in by_salt.items() if given is not None), None)
        salted = None if known is None else {row: sha256 for (name, row), sha256 in known.items() if name == "train"}
        for number, run in enumerate(self.runs, start=1):
            if number in taken:
                continue
            if not run.request.salted:
                if run.request.sha256 == combine_hashes(ids):
                    return number
            elif salted is None or not all(row in salted for row in ids):
                if run.request.count == len(ids):  # nothing more can be compared
                    return number
            elif combine_hashes(salted[row] for row in ids) == run.request.sha256:
                return number
        return None

    def _check_salt(self, requested: dict[str, dict[str, int]], held_out: dict[str, frozenset[str]]) -> None:
        salted = {n for n, run in enumerate(self.runs, start=1) if run.request.salted}
        found = {number for of_split in requested.values() for number in of_split.values()}
        if not salted & found and not any(held_out.values()):
            raise UserError(
                "--request_salt: none of the rows that earlier runs recorded, removed or held out, is in this data; "
                "give the salt that those runs were given, or the files of their requests with --earlier_requests"
            )


def _hashes(parts: "Mapping[str, Dataset]", salt: str | None) -> list[str]:
    return [sha256 for part in parts.values() for sha256 in row_hashes(part, salt)]


def past_rows(
    model: str | Path,
    data: "Dataset | DatasetDict",
    salt: str | None = None,
    files: Sequence[str | Path] = (),
    revision: str | None = None,
) -> PastRows | None:
    """Find the rows of a model's earlier requests in the data of its next run, for `make_splits(..., past=...)`.

    Args:
        model: The model's folder, or its Hub id.
        data: As for `make_splits`.
        salt: The text that the recorded hashes were salted with.
        files: Requests of earlier runs, in any order, where the model's records cannot tell their rows.
        revision: A branch, tag or commit on the Hub.

    Returns:
        The rows by their ids; None for a model that has been through no request.

    Raises:
        UserError: As `PastRequests.read` and `PastRequests.find` do.
    """
    return PastRequests.read(model, revision).find(data, salt, files)


def drift_notes(statuses: tuple[RequestStatus, ...]) -> tuple[str, ...]:
    """What must be said of requests that the model has drifted back to."""
    return tuple(
        f"The model has drifted back to request {status.number}: the mean alignment of its rows is {status.now:.1f} "
        f"(95% interval {status.low:.1f} to {status.high:.1f}), after its own run it was {status.then:.1f}, and "
        f"held-out rows are at {status.non_member:.1f}. Unlearn its rows again, or retrain."
        for status in statuses
        if status.drifted
    )
