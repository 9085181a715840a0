"""Requests one after another, by every method, beside a Retrain after each: does what was unlearned stay unlearned?"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import DatasetDict

from hf_unlearn.benchmarks.benchmark import Benchmark
from hf_unlearn.errors import UserError
from hf_unlearn.files import write_atomically
from hf_unlearn.methods import description_of
from hf_unlearn.records.file_names import EVALUATION_NAME
from hf_unlearn.records.schemas import EvaluationRecord
from hf_unlearn.runs.arguments import UNLEARN, parse_run
from hf_unlearn.runs.builders import BUILDERS
from hf_unlearn.runs.results import markdown
from hf_unlearn.runs.run_data import prepare_task
from hf_unlearn.runs.unlearn import base_model, unlearn_and_compare

RETRAIN = "retrain"
AT_ONCE = "at once"  # all requests in one run, from the original model
AGAIN = "again"  # all requests in one more run, from the last model of the sequence


@dataclass(frozen=True)
class RequestSequence:
    """What is unlearned how often.

    Args:
        benchmark: its options, and the share of train that all requests name together.
        methods: ids of the methods, each a sequence of its own.
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
        if RETRAIN in self.methods:
            raise UserError("every run of a sequence is compared with a Retrain already; leave retrain out")


@dataclass(frozen=True)
class SequenceRow:
    """One run of a sequence: `after` is the number of its request, or whether all were asked for at once or again.

    Gaps and alignments are in points; `drift` is the largest rise of an earlier request since its own run, and None for
    the first; `cost` is what the runs of this sequence took so far, as a share of Retrain's run time.
    """

    method: str
    trial: int
    after: str
    average_gap: float
    agreement: float
    drift: float | None
    came_back: int
    utility: float
    cost: float


def run_sequence(sequence: RequestSequence, output_dir: Path) -> list[SequenceRow]:
    """Run what is missing of every trial, and return a row for each run; a stopped sequence goes on where it was."""
    return [
        row
        for trial in sequence.benchmark.trials
        for row in _Trial(sequence, trial, output_dir / f"trial-{trial}").rows()
    ]


class _Trial:
    """One split and base model: its data, with held-out rows parted off for good, and one file a request."""

    def __init__(self, sequence: RequestSequence, trial: int, folder: Path) -> None:
        self.sequence, self.trial, self.folder = sequence, trial, folder
        benchmark = sequence.benchmark
        run = parse_run(benchmark.argv(trial, *sequence.extra, methods=[RETRAIN]))
        task = prepare_task(run.arguments)
        self.base = base_model(run, task, BUILDERS[benchmark.family])
        folder.mkdir(parents=True, exist_ok=True)
        held_out = {name: task.splits[name] for name in ("validation", "test")}
        DatasetDict(train=task.train, **held_out).save_to_disk(folder / "data")
        ids = np.random.default_rng(trial).permutation(task.splits["unlearn"]["id"])
        parts = np.array_split(ids, sequence.requests)
        if not len(parts[-1]):
            raise UserError(f"{len(ids)} rows cannot be parted into {sequence.requests} requests; ask for fewer")
        for number, part in enumerate(parts, start=1):
            self._write(f"request-{number}", part)
            self._write(f"request-1-to-{number}", np.concatenate(parts[:number]))

    def rows(self) -> list[SequenceRow]:
        """Retrain after each request, then every method's sequence."""
        last = self.sequence.requests
        retrains = {n: self._run(RETRAIN, f"request-1-to-{n}", self.base, None) for n in range(1, last + 1)}
        minutes = _record(retrains[last]).metrics["run_time_minutes"] or 1.0
        rows = []
        for method in self.sequence.methods:
            model, spent = self.base, 0.0
            for number in range(1, last + 1):
                model = str(self._run(method, f"request-{number}", model, retrains[number]))
                spent += _record(Path(model)).metrics["run_time_minutes"] or 0.0
                rows.append(self._row(method, str(number), Path(model), spent / minutes))
            for after, start in ((AT_ONCE, self.base), (AGAIN, model)):
                folder = self._run(method, f"request-1-to-{last}", start, retrains[last], after.replace(" ", "-"))
                cost = (_record(folder).metrics["run_time_minutes"] or 0.0) + (spent if after == AGAIN else 0.0)
                rows.append(self._row(method, after, folder, cost / minutes))
        return rows

    def _write(self, name: str, ids: npt.NDArray[np.str_]) -> None:
        write_atomically(self.folder / f"{name}.txt", "".join(f"{row}\n" for row in ids))

    def _run(self, method: str, request: str, model: str, retrain: Path | None, name: str | None = None) -> Path:
        """The folder of one run's model; a finished one is not run again."""
        folder = self.folder / method / (name or request)
        if not (folder / method / EVALUATION_NAME).is_file():
            benchmark = self.sequence.benchmark
            options: dict[str, Any] = {n: v for n, v in benchmark.options.items() if n not in UNLEARN}
            given = {
                "dataset_name": self.folder / "data",
                "model_name_or_path": model,
                "unlearn_request": self.folder / f"{request}.txt",
                "output_dir": folder,
                **({} if retrain is None else {"retrain_model": retrain}),
            }
            tokens = [word for option, value in given.items() for word in (f"--{option}", str(value))]
            extra = _without(self.sequence.extra, UNLEARN)
            argv = replace(benchmark, options=options).argv(self.trial, *extra, methods=[method])
            again = ["--overwrite"] if folder.exists() else []
            unlearn_and_compare(parse_run([*argv, *tokens, *again]), BUILDERS[benchmark.family])
        return folder / method

    def _row(self, method: str, after: str, folder: Path, cost: float) -> SequenceRow:
        record = _record(folder)
        earlier = [status for status in record.requests[:-1] if status.now is not None and status.then is not None]
        rises = [status.now - status.then for status in earlier if status.now is not None and status.then is not None]
        recall = record.metrics.get("recall_validation", record.metrics.get("validation_accuracy"))
        return SequenceRow(
            method=method,
            trial=self.trial,
            after=after,
            average_gap=record.avg_gap if record.avg_gap is not None else float("nan"),
            agreement=record.metrics.get("agreement_pearson") or float("nan"),
            drift=max(rises) if rises else None,
            came_back=sum(status.drifted for status in earlier),
            utility=recall if recall is not None else float("nan"),
            cost=cost,
        )


def write_sequence(rows: Sequence[SequenceRow], output_dir: Path) -> str:
    """Write `results.json` and `results.md` and return the table: means over trials, with the range of several."""
    write_atomically(output_dir / "results.json", json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    header = ["Method", "After request", "Avg. gap", "Agreement", "Largest drift", "Came back", "Utility", "Cost"]
    lines = [header, ["---", "---", *["---:"] * 6]]
    for method in dict.fromkeys(row.method for row in rows):
        for after in dict.fromkeys(row.after for row in rows if row.method == method):
            own = [row for row in rows if row.method == method and row.after == after]
            drifts = [row.drift for row in own if row.drift is not None]
            lines.append(
                [
                    description_of(method).title,
                    after,
                    _spread([row.average_gap for row in own]),
                    _spread([row.agreement for row in own]),
                    _spread(drifts) if drifts else "–",
                    str(sum(row.came_back for row in own)),
                    _spread([row.utility for row in own]),
                    _spread([100 * row.cost for row in own]) + " %",
                ]
            )
    table = markdown(lines)
    write_atomically(output_dir / "results.md", table)
    return table


def _record(folder: Path) -> EvaluationRecord:
    return EvaluationRecord.load(folder)


def _spread(values: Sequence[float]) -> str:
    middle = f"{np.mean(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def _without(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Words of a command line without the options of these names."""
    kept, skipping = [], False
    for word in words:
        if word.startswith("--"):
            skipping = word[2:].partition("=")[0] in names
        if not skipping:
            kept.append(word)
    return kept
