"""Requests one after another, by every method, beside a Retrain after each: does what was unlearned stay unlearned?"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from datasets import DatasetDict, load_from_disk

from hf_unlearn.benchmarks.benchmark import Benchmark
from hf_unlearn.benchmarks.row_alignments import RowAlignments, row_alignments
from hf_unlearn.data.requests import read_request
from hf_unlearn.distributed import owned_together
from hf_unlearn.errors import UserError, listed
from hf_unlearn.files import write_atomically
from hf_unlearn.methods import description_of
from hf_unlearn.metrics.agreement import agreement
from hf_unlearn.parsing import read_json
from hf_unlearn.records.file_names import EVALUATION_NAME
from hf_unlearn.records.schemas import EvaluationRecord
from hf_unlearn.runs.builders import BUILDERS
from hf_unlearn.runs.command_line import Run, as_words, grouped_options, options_of, parse_run
from hf_unlearn.runs.results import markdown
from hf_unlearn.runs.resuming import differences, given_settings, settings_hash
from hf_unlearn.runs.run_arguments import UNLEARN
from hf_unlearn.runs.run_data import prepare_task
from hf_unlearn.runs.unlearn import base_model, unlearn_and_compare

logger = logging.getLogger(__name__)

RETRAIN = "retrain"
AT_ONCE = "at once"  # all requests in one run, from the original model
AGAIN = "again"  # all requests in one more run, from the last model of the sequence
HELD_OUT = ("validation", "test")
PARTING_NAME = "parting.json"  # of a trial: into how many requests its rows are parted, and its data and base model
KEY_NAME = "key.json"  # of a finished run: the hash of its settings
LEFT_OUT = "is left out of the table"


@dataclass(frozen=True)
class RequestSequence:
    """What is unlearned how often.

    Args:
        benchmark: its options, and the share of train that all requests name together; of image-text pairs.
        methods: ids of the methods, each a sequence of its own; `retrain` trains anew after each request.
        requests: how many requests the rows are parted into.
        extra: further options of the runs.
    """

    benchmark: Benchmark
    methods: tuple[str, ...]
    requests: int = 5
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.requests < 2:
            raise UserError(f"a sequence has at least 2 requests, not {self.requests}")
        if self.benchmark.family != "clip":
            raise UserError(
                f"a sequence is compared by cosines of pairs, which {self.benchmark.family} has none of; name a "
                "benchmark of image-text pairs"
            )


@dataclass(frozen=True)
class SequenceRow:
    """One run of a sequence: `after` is the number of its request, or whether all were asked for at once or again.

    Cosines are in points. What needs a Retrain is None where there is none yet.

    Attributes:
        average_gap: mean of the differences from Retrain in the cosine of retain and of the request's pairs.
        average_gap_so_far: the same with the pairs of all requests so far.
        agreement: correlation with Retrain over the rows of all requests so far.
        drift: largest rise of an earlier request's mean over rows since its own run; None for the first.
        came_back: how many earlier requests are called drifted back.
        utility: retrieval on validation, in percent.
        minutes: what the runs of this sequence took so far.
        cost: these as a share of what the last Retrain took.
    """

    method: str
    trial: int
    after: str
    average_gap: float | None
    average_gap_so_far: float | None
    agreement: float | None
    drift: float | None
    came_back: int
    utility: float | None
    minutes: float
    cost: float | None


def run_sequence(sequence: RequestSequence, output_dir: Path, after: Sequence[int] | None = None) -> list[SequenceRow]:
    """Run what is missing, and return a row for each finished run, of methods that were run before, too.

    A finished run is taken only if its settings were those of now; with others it is run again, or left out of the rows
    where its method is not among the sequence's.

    Args:
        sequence: what is unlearned how often.
        output_dir: where everything is kept; a stopped sequence goes on where it was.
        after: requests to train anew after; default: each.

    Raises:
        UserError: there are fewer requests than `after` names, or the folder holds a sequence of other requests, other
            data or another base model; nothing is written then.
    """
    if beyond := [number for number in after or () if not 1 <= number <= sequence.requests]:
        raise UserError(
            f"--after {beyond[0]}: the requests have the numbers 1 to {sequence.requests}; name some of them, or give "
            "more --requests"
        )
    trials = [Trial(sequence, number, output_dir / f"trial-{number}") for number in sequence.benchmark.trials]
    rows = []
    for trial in trials:
        trial.part()
        for method in sequence.methods:
            for name in trial.names(method):
                if method != RETRAIN or after is None or int(name.rpartition("-")[2]) in after:
                    trial.run(method, name)
        rows += trial.rows()
    return rows


class Trial:
    """One split and base model: its data, with held-out rows parted off for good, and one file a request.

    Raises:
        UserError: the folder is of other requests, other data or another base model.
    """

    def __init__(self, sequence: RequestSequence, number: int, folder: Path) -> None:
        self.sequence, self.number, self.folder = sequence, number, folder
        self.last = sequence.requests
        self._keys: dict[str, str] = {}
        self._is_parted()

    def part(self) -> None:
        """Part off the held-out rows, and the requests, once for all methods."""
        if not self._is_parted():
            with owned_together(self.folder, "Another parting of this data"):
                if not self._is_parted():  # nobody has done it meanwhile
                    self._part()

    def _is_parted(self) -> bool:
        """Whether the folder holds these requests; others are refused, for their runs would be taken for these."""
        path, remedy = self.folder / PARTING_NAME, "choose another --output_dir"
        if not path.is_file():
            if any(self.folder.glob(f"*/*/*/{EVALUATION_NAME}")):
                raise UserError(f"{self.folder} holds runs, but not what their requests were; {remedy}")
            return False
        was = read_json(path, remedy)
        if not isinstance(was, dict):
            raise UserError(f"{path} is damaged; {remedy}")
        if differing := differences(was, self._parting):
            raise UserError(f"{self.folder} holds another sequence ({listed(differing)}); repeat it, or {remedy}")
        return True

    @cached_property
    def _parting(self) -> dict[str, object]:
        """What all runs of the trial share: how many requests, the data and the base model."""
        run = self._run_of(RETRAIN)
        shared = given_settings(replace(run, methods={}))
        shared.pop("processes")  # how many are at work parts nothing; a run's own key has it
        content = {"requests": self.last, **shared, "model": run.model}
        plain: dict[str, object] = json.loads(json.dumps(content, default=str))
        return plain

    def _run_of(self, method: str) -> Run:
        """The run of one method on the benchmark's own data, which has its settings."""
        return parse_run(self.sequence.benchmark.argv(self.number, *self.sequence.extra, methods=[method]))

    def _part(self) -> None:
        run = self._run_of(RETRAIN)
        task = prepare_task(run.arguments)
        self.folder.mkdir(parents=True, exist_ok=True)
        held_out = {name: task.splits[name] for name in HELD_OUT}
        DatasetDict(train=task.train, **held_out).save_to_disk(self.folder / "data")
        ids = np.random.default_rng(self.number).permutation(task.splits["unlearn"]["id"])
        parts = np.array_split(ids, self.last)
        if not len(parts[-1]):
            raise UserError(f"{len(ids)} rows cannot be parted into {self.last} requests; ask for fewer")
        for number, part in enumerate(parts, start=1):
            self._write(f"request-{number}", part)
            self._write(f"request-1-to-{number}", np.concatenate(parts[:number]))
        write_atomically(self.folder / PARTING_NAME, json.dumps(self._parting, indent=1) + "\n")  # all is there

    def names(self, method: str) -> list[str]:
        """Names of a method's runs, in order: a Retrain after each request, or the sequence and then all requests."""
        each = range(1, self.last + 1)
        if method == RETRAIN:
            return [f"request-1-to-{number}" for number in each]
        return [*(f"request-{number}" for number in each), AT_ONCE, AGAIN]

    def run(self, method: str, name: str) -> Path:
        """The folder of one run's model, whose start must be finished; a finished one is not run again."""
        folder = self.folder_of(method, name)
        if self._is_finished(method, name, "is run again"):
            return folder
        number = 1 if name in (AT_ONCE, AGAIN) or method == RETRAIN else int(name.rpartition("-")[2])
        before = self.last if name == AGAIN else number - 1
        model = self.folder_of(method, f"request-{before}") if before else self.base
        request = f"request-1-to-{self.last}" if name in (AT_ONCE, AGAIN) else name
        run = parse_run(self._argv(method, request, model_name_or_path=str(model), output_dir=folder.parent))
        run = replace(run, arguments=replace(run.arguments, overwrite=folder.parent.exists()))
        (folder.parent / KEY_NAME).unlink(missing_ok=True)  # what comes must not be taken for a run of other settings
        unlearn_and_compare(run, BUILDERS[self.sequence.benchmark.family])
        row_alignments(folder, self._data["train"], run.data, run.pretrain.device).save(folder)
        write_atomically(folder.parent / KEY_NAME, json.dumps({"key": self._key(method)}) + "\n")
        return folder

    def _is_finished(self, method: str, name: str, otherwise: str = "") -> bool:
        """Whether a run is done with the settings of now; one of other settings is told of, and what becomes of it."""
        path = self.folder_of(method, name).parent / KEY_NAME
        if not path.is_file():
            return False
        found = read_json(path, "delete it, and its run is done again")
        same = isinstance(found, dict) and found.get("key") == self._key(method)
        if otherwise and not same:
            logger.warning("%s/%s had other settings and %s.", method, path.parent.name, otherwise)
        return same

    def _key(self, method: str) -> str:
        """What all runs of a method must agree in, beside what the whole trial shares."""
        if method not in self._keys:
            self._keys[method] = f"{method}-{settings_hash(self._run_of(method))}"
        return self._keys[method]

    def folder_of(self, method: str, name: str) -> Path:
        """Where a run leaves its model."""
        return self.folder / method / name.replace(" ", "-") / method

    def rows(self) -> list[SequenceRow]:
        """A row for each run that is finished with the settings of now, Retrains first."""
        found = {path.name for path in self.folder.iterdir() if path.is_dir()} - {RETRAIN, "data"}
        others = [*(m for m in self.sequence.methods if m in found), *sorted(found - set(self.sequence.methods))]
        return [row for method in (RETRAIN, *others) for row in self._rows_of(method)]

    def _rows_of(self, method: str) -> Iterator[SequenceRow]:
        spent, levels = 0.0, dict[int, float]()
        for number in range(1, self.last + 1):
            name = f"request-1-to-{number}" if method == RETRAIN else f"request-{number}"
            if self._is_finished(method, name, LEFT_OUT):
                folder = self.folder_of(method, name)
                minutes = self._minutes(folder)
                spent += minutes
                now = RowAlignments.load(folder)
                level = {n: 100 * float(now.of(self._ids(f"request-{n}")).mean()) for n in range(1, number + 1)}
                rises = [level[n] - levels[n] for n in range(1, number) if n in levels]
                levels[number] = level[number]
                yield self._row(method, str(number), number, folder, max(rises, default=None), spent)
        for name in () if method == RETRAIN else (AT_ONCE, AGAIN):
            if self._is_finished(method, name, LEFT_OUT):
                folder = self.folder_of(method, name)
                before = spent if name == AGAIN else 0.0
                yield self._row(method, name, self.last, folder, None, before + self._minutes(folder))

    def _row(
        self, method: str, after: str, number: int, folder: Path, drift: float | None, minutes: float
    ) -> SequenceRow:
        record, now = EvaluationRecord.load(folder), RowAlignments.load(folder)
        so_far = self._ids(f"request-1-to-{number}")
        own = so_far if after in (AT_ONCE, AGAIN) else self._ids(f"request-{number}")
        retain = sorted(set(self._data["train"]["id"]) - set(so_far))
        same_rows, last = (f"request-1-to-{n}" for n in (number, self.last))
        has_retrain = self._is_finished(RETRAIN, same_rows)
        exact = RowAlignments.load(self.folder_of(RETRAIN, same_rows)) if has_retrain else None
        gaps: list[float | None] = [None, None]
        if exact is not None and method != RETRAIN:
            off = abs(now.mean(retain) - exact.mean(retain))
            gaps = [(off + abs(now.mean(rows) - exact.mean(rows))) / 2 for rows in (own, so_far)]
        whole = self._minutes(self.folder_of(RETRAIN, last)) if self._is_finished(RETRAIN, last) else 0.0
        return SequenceRow(
            method=method,
            trial=self.number,
            after=after,
            average_gap=gaps[0],
            average_gap_so_far=gaps[1],
            agreement=None if gaps[0] is None or exact is None else agreement(now.of(so_far), exact.of(so_far)).pearson,
            drift=None if method == RETRAIN else drift,
            came_back=sum(status.drifted for status in record.requests[:-1]),
            utility=record.metrics.get("recall_validation"),
            minutes=minutes,
            cost=minutes / whole if whole else None,
        )

    @cached_property
    def base(self) -> str:
        """The model before any request: the one that is named, or a small one that is trained on the data."""
        run = parse_run(self._argv(RETRAIN, f"request-1-to-{self.last}"))
        return base_model(run, prepare_task(run.arguments), BUILDERS[self.sequence.benchmark.family])

    @cached_property
    def _data(self) -> DatasetDict:
        data = load_from_disk(str(self.folder / "data"))
        assert isinstance(data, DatasetDict)  # as `_part` saved it
        return data

    def _ids(self, name: str) -> list[str]:
        return read_request(self._request(name))

    def _write(self, name: str, ids: npt.NDArray[np.str_]) -> None:
        write_atomically(self._request(name), json.dumps(ids.tolist(), indent=1) + "\n")

    def _request(self, name: str) -> Path:
        """The file of a request: of lines, some would be read as others, such as ids that begin with `#` or a space."""
        return self.folder / f"{name}.json"

    def _minutes(self, folder: Path) -> float:
        return EvaluationRecord.load(folder).metrics["run_time_minutes"] or 0.0

    def _argv(self, method: str, request: str, **more: object) -> list[str]:
        benchmark = self.sequence.benchmark
        options: dict[str, object] = {n: v for n, v in benchmark.options.items() if n not in UNLEARN}
        given = {"dataset_name": self.folder / "data", "unlearn_request": self._request(request), **more}
        extra = as_words(option for option in grouped_options(self.sequence.extra) if option[0] not in UNLEARN)
        argv = replace(benchmark, options=options).argv(self.number, *extra, methods=[method])
        return [*argv, *as_words(options_of(given))]


def write_sequence(rows: Sequence[SequenceRow], output_dir: Path) -> str:
    """Write `results.json` and `results.md` and return the table: means over trials, with the range of several."""
    write_atomically(output_dir / "results.json", json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    header = ["Method", "After request", "Trials", "Avg. gap", "of all so far", "Agreement", "Largest drift"]
    header += ["Came back", "Utility", "Cost"]
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    for method in dict.fromkeys(row.method for row in rows):
        for after in dict.fromkeys(row.after for row in rows if row.method == method):
            own = [row for row in rows if row.method == method and row.after == after]
            lines.append(
                [
                    description_of(method).title,
                    after,
                    str(len(own)),
                    _spread([row.average_gap for row in own]),
                    _spread([row.average_gap_so_far for row in own]),
                    _spread([row.agreement for row in own]),
                    _spread([row.drift for row in own]),
                    str(sum(row.came_back for row in own)),
                    _spread([row.utility for row in own]),
                    _spread([None if row.cost is None else 100 * row.cost for row in own], " %"),
                ]
            )
    table = markdown(lines)
    write_atomically(output_dir / "results.md", table)
    return table


def _spread(values: Sequence[float | None], unit: str = "") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    middle = f"{np.mean(known):.2f}"
    return (middle if len(known) == 1 else f"{middle} ({min(known):.2f} to {max(known):.2f})") + unit
