"""How well choosing without Retrain works: the estimated gap's ranking of finished runs against the true gap's."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_unlearn.benchmarks.benchmark import RETRAIN_AGAIN
from hf_unlearn.errors import UserError
from hf_unlearn.metrics.gap import gap_to_retrain
from hf_unlearn.parsing import Fields, read_json
from hf_unlearn.runs.evaluation import ImageTextEvaluator, ImageViewEvaluator
from hf_unlearn.runs.experiment import BEFORE, RETRAIN
from hf_unlearn.runs.results import markdown

REFERENCES = (BEFORE, RETRAIN, RETRAIN_AGAIN)  # no candidates
ESTIMATE = "estimated_gap"


@dataclass(frozen=True)
class Candidate:
    """A finished run: its name, its true average gap to Retrain and what estimates it."""

    name: str
    gap: float
    estimates: Mapping[str, float]


@dataclass(frozen=True)
class Selection:
    """How choosing the smallest estimate fares on one task.

    Attributes:
        runs: Number of candidates.
        spearman: Rank correlation of estimate and true gap; NaN when one of them does not vary.
        kendall: The same by the share of pairs in the same order.
        selected: The run with the smallest estimate.
        best: The run with the smallest true gap.
        regret: True gap of the selected run minus that of the best.
        regret_at_random: The same, averaged over all runs: what choosing blindly costs.
    """

    runs: int
    spearman: float
    kendall: float
    selected: Candidate
    best: Candidate
    regret: float
    regret_at_random: float


def assess_selection(candidates: Sequence[Candidate], estimate: str = ESTIMATE) -> Selection:
    """Rank finished runs of one task by an estimate and by the true gap.

    Args:
        candidates: Runs on the same task, two at least.
        estimate: What to choose by: the estimated gap or one of its parts.

    Raises:
        UserError: When there are fewer than two runs.

    Example:
        >>> runs = [Candidate(n, gap, {"estimated_gap": e}) for n, gap, e in (("a", 1, 3), ("b", 2, 2), ("c", 5, 6))]
        >>> chosen = assess_selection(runs)
        >>> chosen.selected.name, chosen.regret, round(chosen.spearman, 6), round(chosen.regret_at_random, 6)
        ('b', 1, 0.5, 1.666667)
    """
    from scipy.stats import kendalltau, spearmanr

    if len(candidates) < 2:
        raise UserError(f"ranking needs at least two finished runs with a gap and an estimate, got {len(candidates)}")
    gaps = [candidate.gap for candidate in candidates]
    estimates = [candidate.estimates[estimate] for candidate in candidates]
    varies = len(set(gaps)) > 1 and len(set(estimates)) > 1
    selected = min(candidates, key=lambda candidate: candidate.estimates[estimate])
    best = min(candidates, key=lambda candidate: candidate.gap)
    return Selection(
        runs=len(candidates),
        spearman=float(spearmanr(estimates, gaps)[0]) if varies else math.nan,
        kendall=float(kendalltau(estimates, gaps)[0]) if varies else math.nan,
        selected=selected,
        best=best,
        regret=selected.gap - best.gap,
        regret_at_random=float(np.mean(gaps)) - best.gap,
    )


def read_candidates(path: Path) -> list[Candidate]:
    """Finished runs of one task that have both gaps.

    Args:
        path: A sweep's JSON file, a run's `results.json`, or a benchmark's folder `trial-<seed>`.

    Raises:
        UserError: When it is none of these.
    """
    if path.is_dir() and not (path / f"{RETRAIN}.json").is_file():
        raise UserError(f"{path} has no {RETRAIN}.json; name a benchmark's trial folder that is finished")
    try:
        rows = _trial_rows(path) if path.is_dir() else _file_rows(path)
        return [
            Candidate(
                _name(row), float(row["avg_gap"]), {k: float(v) for k, v in row.items() if k.startswith(ESTIMATE)}
            )
            for row in rows
            if row.get("avg_gap") is not None and ESTIMATE in row and row["method"] not in REFERENCES
        ]
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path} holds no finished runs; name a sweep's JSON, a results.json or a trial folder"
        ) from error


def averaged(tasks: Iterable[Sequence[Candidate]]) -> list[Candidate]:
    """The runs that every task has, each with its mean gap and estimates: the same task over several splits.

    With few unlearn or held-out samples a single split's gaps are mostly sampling error, the true one's included.
    """
    named = [{candidate.name: candidate for candidate in candidates} for candidates in tasks]
    return [
        Candidate(
            name,
            float(np.mean([runs[name].gap for runs in named])),
            {k: float(np.mean([runs[name].estimates[k] for runs in named])) for k in first.estimates},
        )
        for name, first in named[0].items()
        if all(name in runs for runs in named)
    ]


def selection_table(tasks: Mapping[str, Sequence[Candidate]], by_part: bool = False) -> str:
    """Markdown: one line a task; with `by_part` also what choosing by each part of the estimate alone would give."""
    header = ["Task", "Chosen by", "Runs", "Spearman", "Kendall", "Selected", "Best", "Regret", "Regret at random"]
    lines = [header, ["---", "---", *["---:"] * 3, "---", "---", "---:", "---:"]]
    for task, candidates in tasks.items():
        common = set.intersection(*(set(candidate.estimates) for candidate in candidates)) if candidates else set()
        for estimate in sorted(common) if by_part else [ESTIMATE]:
            outcome = assess_selection(candidates, estimate)
            runs = [f"{run.name} ({run.gap:.2f})" for run in (outcome.selected, outcome.best)]
            numbers = [str(outcome.runs), f"{outcome.spearman:.2f}", f"{outcome.kendall:.2f}"]
            lines.append([task, estimate, *numbers, *runs, f"{outcome.regret:.2f}", f"{outcome.regret_at_random:.2f}"])
    return markdown(lines)


def _file_rows(path: Path) -> Iterable[Fields]:
    """Rows of a sweep, whose metrics lie beside the gap, or of a comparison, whose metrics are a mapping in it."""
    content = read_json(path)
    rows = content if isinstance(content, list) else content["rows"]
    return [{**row.get("metrics", {}), **row, "method": row["method"]} for row in rows]


def _trial_rows(folder: Path) -> Iterable[Fields]:
    """Rows of a benchmark's trial, with the gap to its own Retrain."""
    runs = {file.stem: read_json(file) for file in sorted(folder.glob("*.json"))}
    evaluator = ImageTextEvaluator if "cosine_retain" in runs[RETRAIN] else ImageViewEvaluator
    keys = [key for key in evaluator.gap_keys if key in runs[RETRAIN]]
    return [
        {**row, "method": n, "avg_gap": gap_to_retrain(row, runs[RETRAIN], keys).average} for n, row in runs.items()
    ]


def _name(row: Fields) -> str:
    setting = ", ".join(f"{name} {value}" for name, value in row.get("setting", {}).items())
    return f"{row['method']} {setting}".strip()
