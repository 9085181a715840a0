"""The requests that a model has been through, and their rows, found again in the data of the next run."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hf_unlearn.data.earlier_rows import REQUEST_COLUMN, PastRows
from hf_unlearn.data.fingerprint import combine_hashes, row_hashes
from hf_unlearn.data.requests import checked_ids, read_entries
from hf_unlearn.data.splits import rows_by_role
from hf_unlearn.errors import UserError, listed
from hf_unlearn.files import refuse_revision
from hf_unlearn.hub.download import fetch
from hf_unlearn.hub.recorded_rows import PRIVATE_ROWS_NAME, Found, RecordedRows, RowIndex, check_complete, damaged
from hf_unlearn.records.file_names import EVALUATION_NAME, MANIFEST_NAME
from hf_unlearn.records.schemas import EvaluationRecord, HistoryEntry, RequestStatus, UnlearningManifest

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PastRequests:
    """What the records of a model say of the unlearning runs it has been through.

    Attributes:
        runs: The runs, oldest first.
        private: Hashes of their rows without a salt.
        salted: Hashes of their rows with one.
        evaluation: What was measured after the last run; None where nothing was.
        levels: Where a Trainer on its own left each request.
    """

    runs: tuple[HistoryEntry, ...] = ()
    private: RecordedRows = field(default_factory=RecordedRows)
    salted: RecordedRows = field(default_factory=RecordedRows)
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
            if (folder / PRIVATE_ROWS_NAME).is_file():
                raise damaged(folder, f"it holds {PRIVATE_ROWS_NAME} and no {MANIFEST_NAME}")
            return cls()
        manifest = UnlearningManifest.load(folder)
        runs = (*manifest.history, manifest.as_history_entry())
        evaluation = EvaluationRecord.load_if_evaluated(folder)
        requests = {run.request.sha256: run.request.row_hashes for run in runs if run.request.row_hashes is not None}
        salted = RecordedRows(requests, manifest.held_out, manifest.parts)
        private = RecordedRows.load(folder)
        check_complete(folder, runs, private)
        return cls(runs, private, salted, evaluation, manifest.requests)

    @property
    def original(self) -> dict[str, float | None] | None:
        """Metrics of the model before any request, as far as it was measured."""
        return None if self.evaluation is None else self.evaluation.original or self.evaluation.before

    @property
    def _measured(self) -> tuple[RequestStatus, ...]:
        return self.levels if self.evaluation is None else self.evaluation.requests

    @property
    def comparable(self) -> "PastRequests":
        """Only the runs whose rows can be told without a salt or a file."""
        return replace(self, runs=tuple(run for run in self.runs if run.request.sha256 in self.private.requests))

    def statuses(self) -> tuple[RequestStatus, ...]:
        """Where each request stood after the last run; without figures where it was not measured."""
        known = {status.number: status for status in self._measured}
        unmeasured = (
            RequestStatus(number, run.method, run.created, run.request.count, 0)
            for number, run in enumerate(self.runs, start=1)
        )
        return tuple(replace(known.get(row.number, row), created=row.created) for row in unmeasured)

    def rows_of(self, number: int) -> int:
        """How many rows the run of a request unlearned, with copies where its hashes tell of them."""
        run = self.runs[number - 1]
        return len(self._recorded(run).requests.get(run.request.sha256, ())) or run.request.count

    def left_at(self, earlier: "Dataset") -> npt.NDArray[np.float64]:
        """`[e]` the cosine that its own run left each row of the split `earlier` at; NaN where none is recorded."""
        levels = self.private.levels
        known = [levels.get(sha256, np.nan) for sha256 in row_hashes(earlier)] if levels else [np.nan] * len(earlier)
        return np.array(known, np.float64)

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

    def notes(self, splits: "DatasetDict", past: PastRows | None) -> tuple[str, ...]:
        """What a reader must know of earlier requests of which some rows are not measured in these splits, and why.

        Args:
            splits: Of the next run.
            past: What `find` gave for its data.
        """
        if past is None:
            return ()
        measured, asked = (
            Counter(splits["earlier"][REQUEST_COLUMN]),
            {("train", row) for row in splits["unlearn"]["id"]},
        )
        notes = []
        for number in range(1, len(self.runs) + 1):
            rows, there, found = self.rows_of(number), measured.get(number, 0), past.found.get(number, ())
            again = sum((name, row) in asked or past.requested[name][row] != number for name, row in found)
            gone = max(0, rows - len(found))
            reasons = {
                "not in the data any more or not as recorded": gone,
                "asked for again": again,
                "left out of this run": rows - there - again - gone,
            }
            told = " and ".join(f"{count:,} {_are(count)} {reason}" for reason, count in reasons.items() if count > 0)
            if there < rows and told:
                other = f"measured on the other {there:,}" if there else "not measured"
                told = f"Of the {rows:,} rows of request {number}, {told}"
                notes.append(f"{told}: whether the model has drifted back to them is {other}.")
        return tuple(notes)

    def _recorded(self, run: HistoryEntry) -> RecordedRows:
        return self.salted if run.request.salted else self.private

    def find(
        self,
        data: "Dataset | DatasetDict",
        salt: str | None = None,
        files: Sequence[str | Path] = (),
        allow_unfound_rows: bool = False,
    ) -> PastRows | None:
        """Find the rows of earlier requests, and those that the first run held out.

        A row is known by the hash of its stored image and captions, or of one of these where the other was edited;
        where a run recorded none that can be compared, by the ids in the request's file.

        Args:
            data: The next run's data, in the library's schema.
            salt: The text that the recorded hashes were salted with.
            files: Requests of earlier runs (`read_request`), in any order.
            allow_unfound_rows: Go on where hardly any recorded row is found.

        Returns:
            The rows by their ids; None for a model that has been through no request.

        Raises:
            UserError: A request's rows can be told neither by hash nor by file, hardly any recorded row is found, so
                that rows may have been edited rather than dropped, or a file is of no request.
        """
        if not self.runs:
            if files:
                raise UserError(
                    "--earlier_requests: the model's records name no earlier request; leave the option out, or name "
                    "the unlearned model with --model_name_or_path"
                )
            return None
        pool, ready, brought = rows_by_role(data)
        splits = {"train": pool, **({} if ready is None else {"unlearn": ready}), **brought}
        known = {None: self.private} | ({} if salt is None else {salt: self.salted})
        indices = {given: RowIndex(splits, given) for given, recorded in known.items() if recorded != RecordedRows()}
        named = self._files(files, indices)
        requested: dict[str, dict[str, int]] = {name: {} for name in splits}
        found, by_hash = dict[int, Found](), dict[int, Found]()
        for number, run in enumerate(self.runs, start=1):
            index = None if run.request.salted and salt is None else indices.get(salt if run.request.salted else None)
            recorded = self._recorded(run)
            if index is not None and run.request.sha256 in recorded.requests:
                by_hash[number] = index.find(recorded.requests[run.request.sha256], recorded.parts)
            found[number] = by_hash.get(number, Found())
            if number in named:
                found[number] = _with_file(found[number], named[number], pool["id"], number)
            for name, row in found[number].rows:
                requested[name][row] = number
            logger.info(
                "Request %d: %d of its %d rows are in the data.", number, len(found[number].rows), run.request.count
            )
        held, groups = dict[str, Found](), [(self.runs[n - 1].request.salted, rows) for n, rows in by_hash.items()]
        for given, index in indices.items():
            for name, hashes in known[given].held_out.items():
                there = index.find(hashes, known[given].parts)
                held.setdefault(name, there)
                groups.append((given is not None, there))
        held_out = sum(held.values(), Found())
        if not allow_unfound_rows:
            if not any(rows.found for salted, rows in groups if salted):
                _refuse_another_salt([n for n in named if n in by_hash and found[n].found], self.runs)
            self._refuse_unfound(found, {salted for salted, rows in groups if rows.recorded and rows.is_most}, held_out)
            if gone := [name for name, of_split in held.items() if name not in brought and not of_split.is_most]:
                raise UserError(
                    f"of the {held_out.recorded} rows that the first run held out, {held_out.found} are found in this "
                    f"data, and {' and '.join(gone)} would be drawn from rows that the model was trained on: bring "
                    "this split with rows that it never saw, or say --allow_unfound_rows true"
                )
        kept = {name: frozenset(r for split, r in of_split.rows if split == "train") for name, of_split in held.items()}
        notes = found_notes(sum(found.values(), held_out), held_out)
        if mixed_in := sum(len(kept[name]) for name in kept if name in brought):
            notes += (
                f"{mixed_in} rows that the first run held out are in train: they stay held out, beside the rows of the "
                "splits that the data brings.",
            )
        return PastRows(requested, kept, notes, {number: of_request.rows for number, of_request in found.items()})

    def _refuse_unfound(self, found: Mapping[int, Found], known: Collection[bool], held_out: Found) -> None:
        """Refuse data in which rows of a request are missing and too few others are known to say: they were dropped.

        What was recorded without a salt (`known` has False) says nothing of what was recorded with one (True), since
        the salt may be another.
        """
        dropped = {status.number for status in self._measured if not status.measured}
        lost = [number for number, of_request in found.items() if not of_request.is_most and number not in dropped]
        lost = [number for number in lost if True not in known and (self.runs[number - 1].request.salted or not known)]
        if not lost:
            return
        counts = [f"{found[number].found} of the {found[number].recorded} rows of request {number}" for number in lost]
        counts += [f"{held_out.found} of the {held_out.recorded} rows that the first run held out"]
        salt = ", or give the salt that they were recorded with as --request_salt" if self.salted.requests else ""
        raise UserError(
            f"the model has been through earlier requests, and this data has {listed(counts)}: where both pictures and "
            "captions were edited, or the ids that a file names, rows are not recognised and would be taught again; "
            f"name the files of these requests with --earlier_requests{salt}, or say --allow_unfound_rows true if "
            "these rows were dropped"
        )

    def _files(self, files: Sequence[str | Path], indices: Mapping[str | None, RowIndex]) -> dict[int, frozenset[str]]:
        """The ids of the requests that a file was given for, by number; each other one must be known by hashes."""
        named: dict[int, frozenset[str]] = {}
        for file in files:
            ids, problems = checked_ids(read_entries(file))
            if problems:
                raise UserError(f"The earlier request {file} must be corrected; it has {'; '.join(problems)}.")
            number = self._number_of(ids, indices, taken=named)
            if number is None:
                raise UserError(f"--earlier_requests {file} is none of the requests that this model has been through")
            named[number] = frozenset(ids)
        unknown = [
            f"{number} ({run.request.count} rows, {run.created[:10]})"
            for number, run in enumerate(self.runs, start=1)
            if number not in named
            and (run.request.sha256 not in self._recorded(run).requests or (run.request.salted and not any(indices)))
        ]
        if unknown:
            raise UserError(
                f"the model has been through earlier requests, and the rows of request {listed(unknown)} cannot be "
                "told from its records alone: name the files of these requests with --earlier_requests, or give the "
                "salt they were recorded with as --request_salt; else their rows would be taught again"
            )
        return named

    def _number_of(
        self, ids: list[str], indices: Mapping[str | None, RowIndex], taken: dict[int, frozenset[str]]
    ) -> int | None:
        """Which request these ids are: the one with their hash, or else the first salted one of their number.

        A salted request cannot be compared without the salt, or where its rows are not in the data as they were.
        """
        index = next((index for given, index in indices.items() if given is not None), None)
        salted = {} if index is None else {r: sha256 for (name, r), sha256 in index.hashes.items() if name == "train"}
        for number, run in enumerate(self.runs, start=1):
            if number in taken:
                continue
            if not run.request.salted:
                if run.request.sha256 == combine_hashes(ids):
                    return number
            elif index is not None and all(row in salted for row in ids):
                if combine_hashes(salted[row] for row in ids) == run.request.sha256:
                    return number
                recorded = self.salted.requests.get(run.request.sha256, ())
                if run.request.count == len(ids) and not index.find(recorded, {}).is_most:
                    return number
            elif run.request.count == len(ids):
                return number
        return None


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _refuse_another_salt(named: Sequence[int], runs: Sequence[HistoryEntry]) -> None:
    """Refuse to go on with another salt, by which a later run would not find the rows of these requests."""
    if salted := [str(number) for number in named if runs[number - 1].request.salted]:
        raise UserError(
            f"--request_salt finds none of the rows that request {listed(salted)} recorded with a salt, though a file "
            "names them: it is another salt, or all these rows were edited; give the salt of the earlier runs, which "
            "serves the whole history, or leave the option out"
        )


def _with_file(by_hash: Found, ids: frozenset[str], pool: Sequence[str], number: int) -> Found:
    """The rows of a request that its hashes tell, and those that have the ids in its file.

    Raises:
        UserError: The hashes tell other rows than the ids, which the data gave to others since.
    """
    there, known = [row for row in pool if row in ids], {row for split, row in by_hash.rows if split == "train"}
    if there and 2 * len(known.intersection(there)) < len(known):
        raise UserError(
            f"--earlier_requests: the ids of request {number} are other rows' in this data, where its recorded rows "
            f"are {listed(sorted(known))}; leave the file out, since the records tell them, or restore the ids"
        )
    rows = dict.fromkeys((*by_hash.rows, *(("train", row) for row in there)))
    return Found(tuple(rows), len(ids), max(len(there), by_hash.found), by_hash.edited)


def found_notes(found: Found, held_out: Found) -> tuple[str, ...]:
    """What a reader must know of recorded rows: how many that were held out are not there, and how many were edited."""
    notes = []
    if held_out.found < held_out.recorded:
        notes.append(f"Of the {held_out.recorded} rows that the first run held out, {held_out.found} are in the data.")
    if found.edited:
        notes.append(
            f"{found.edited} rows of earlier requests or held out by the first run are known by their picture alone or "
            "by their captions alone: the other was edited, so what is measured of them now is of another pair."
        )
    return tuple(notes)


def past_rows(
    model: str | Path,
    data: "Dataset | DatasetDict",
    salt: str | None = None,
    files: Sequence[str | Path] = (),
    revision: str | None = None,
    allow_unfound_rows: bool = False,
) -> PastRows | None:
    """Find the rows of a model's earlier requests in the data of its next run, for `make_splits(..., past=...)`.

    Args:
        model: The model's folder, or its Hub id.
        data: As for `make_splits`.
        salt: The text that the recorded hashes were salted with.
        files: Requests of earlier runs, in any order, where the model's records cannot tell their rows.
        revision: A branch, tag or commit on the Hub.
        allow_unfound_rows: Go on where hardly any recorded row is found, because these rows were dropped.

    Returns:
        The rows by their ids; None for a model that has been through no request.

    Raises:
        UserError: As `PastRequests.read` and `PastRequests.find` do, and when a revision is given of a folder.
    """
    refuse_revision(model, revision)
    past = PastRequests.read(model, revision).find(data, salt, files, allow_unfound_rows)
    for note in () if past is None else past.notes:
        logger.warning("%s", note)
    return past
