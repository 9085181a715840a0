"""Do the figures of `evaluation.json` follow from each other, is no request back, and are they drawn as they are."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hf_unlearn.errors import UserError, listed
from hf_unlearn.figures.drawing import is_plain_png
from hf_unlearn.hub.drift import few_note, has_no_width, untold
from hf_unlearn.hub.verification_report import Statement, failed, held, judged, unchecked
from hf_unlearn.parsing import PICTURE_DAMAGE
from hf_unlearn.records.file_names import EVALUATION_NAME, published_names
from hf_unlearn.records.metric_labels import GAP_KEYS, gap_keys, metric_label
from hf_unlearn.records.schemas import (
    ComparisonRow,
    DatasetRecord,
    EvaluationRecord,
    Matrices,
    RequestStatus,
    UnlearningManifest,
)

RETRAIN = "retrain"  # the method's id
_TOLERANCE = 1e-5  # the matrices are stored with six decimals
_LEVEL_TOLERANCE = 1e-6
_AGREE = 0.98  # share of a heatmap's cells that have the colour of their value
_MEASURED_WITHIN = 0.5  # of 100: another machine, batch size or precision moves a figure by less
_NOT_AGAIN = ("run_time_minutes",)  # of the training, which is not repeated
_RANGES = {"%": (0, 100), "×100": (-200, 200), "minutes": (0, math.inf)}


def load_evaluation(folder: Path) -> EvaluationRecord | Statement | None:
    """Read `evaluation.json`; a statement of what is wrong where it cannot be read."""
    try:
        return EvaluationRecord.load_if_evaluated(folder)
    except UserError as error:
        return failed(EVALUATION_NAME, str(error))


def verify_figures(evaluation: EvaluationRecord, manifest: UnlearningManifest) -> Iterator[Statement]:
    """Check that the evaluation is of these weights, and that its figures follow from each other."""
    if evaluation.weights_sha256 is None:
        yield unchecked(f"{EVALUATION_NAME}: weights", "it does not say which weights it measured")
    else:
        same, problem = evaluation.weights_sha256 == manifest.weights_sha256, f"it measured {evaluation.weights_sha256}"
        yield judged(f"{EVALUATION_NAME}: weights", same, "measured these", problem)
    if evaluation.family not in GAP_KEYS:
        yield failed(f"{EVALUATION_NAME}: family", f"{evaluation.family!r} is none that is known")
    yield _ranges(evaluation)
    keys = (
        gap_keys(evaluation.family, evaluation.metrics) if evaluation.gap_keys or evaluation.retrain is not None else ()
    )
    due, found = ", ".join(keys) or "nothing", ", ".join(evaluation.gap_keys) or "nothing"
    yield judged(
        f"{EVALUATION_NAME}: gap", evaluation.gap_keys == keys, f"over {due}", f"is over {found}, and should be {due}"
    )
    yield _agrees(
        f"{EVALUATION_NAME}: average gap",
        evaluation.avg_gap,
        _average_gap(evaluation.metrics, evaluation.retrain, keys),
    )
    scores = evaluation.per_sample.get("forgetting_score", ())
    yield _forgetting_score(evaluation, scores, manifest.splits.get("unlearn", 0))
    if evaluation.matrices is not None:
        yield from _matrices(evaluation.matrices, scores, evaluation.family)
    problems = [
        problem for row in evaluation.comparison for problem in _row_problems(row, evaluation, manifest.method, keys)
    ]
    if evaluation.comparison:
        fine = f"{len(evaluation.comparison)} rows, whose gaps follow from their figures and Retrain's"
        yield judged(f"{EVALUATION_NAME}: comparison", not problems, fine, "; ".join(problems))


def _forgetting_score(evaluation: EvaluationRecord, scores: Sequence[float | None], count: int) -> Statement:
    """Check the mean against the scores of the samples, one each."""
    subject, recorded = f"{EVALUATION_NAME}: forgetting score", evaluation.metrics.get("forgetting_score")
    known = [score for score in scores if score is not None]
    if recorded is None or not scores or len(known) < len(scores):
        return unchecked(subject, "not every sample's score is recorded")
    if len(scores) != count:
        return failed(subject, f"{len(scores)} scores for the {count} samples of the unlearn split")
    return _agrees(subject, recorded, 100 * sum(known) / len(known))


def _ranges(evaluation: EvaluationRecord) -> Statement:
    """Shares lie between 0 and 100, cosines and their differences between -2 and 2, deviations and gaps above 0."""
    columns = {"before": evaluation.before or {}, "metrics": evaluation.metrics, "retrain": evaluation.retrain or {}}
    columns |= {"original": evaluation.original or {}}
    columns |= {f"comparison of {row.method}": row.metrics for row in evaluation.comparison}
    wrong = []
    for column, metrics in columns.items():
        for key, value in metrics.items():
            low, high = (
                (0.0, math.inf) if key.endswith("_std") else _RANGES.get(metric_label(key).unit, (-math.inf, math.inf))
            )
            if value is not None and not low - _TOLERANCE <= value <= high + _TOLERANCE:
                wrong.append(f"{key} of {column} is {value:g}")
    subject = f"{EVALUATION_NAME}: ranges"
    return judged(subject, not wrong, "every figure lies where its unit can", listed(wrong))


Metrics = Mapping[str, float | None]


def _average_gap(metrics: Metrics, retrain: Metrics | None, keys: Sequence[str]) -> float | None:
    """Mean absolute difference to Retrain; None without Retrain, or where a figure is missing or not finite."""
    gaps = [_difference(metrics.get(key), (retrain or {}).get(key)) for key in keys]
    known = [gap for gap in gaps if gap is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(gaps) else None


def _row_problems(row: ComparisonRow, evaluation: EvaluationRecord, method: str, keys: Sequence[str]) -> Iterator[str]:
    """What is wrong in a row: figures other than those of the column with its name, or a gap that does not follow.

    Retrain's own row may leave its gap out, which is zero.
    """
    columns: dict[str, Metrics] = {
        "original": evaluation.original or {},
        "before": evaluation.before or {},
        RETRAIN: evaluation.retrain or {},
        method: evaluation.metrics,
    }
    if row.method in columns:
        column = columns[row.method]
        shown = dict.fromkeys((*keys, "run_time_minutes", *row.metrics))
        if differing := [key for key in shown if not _close(row.metrics.get(key), column.get(key))]:
            yield f"{', '.join(differing)} of {row.method} differ from its figures above"
    if row.method == RETRAIN and not row.gap and row.avg_gap is None:
        return
    gaps = {key: _difference(row.metrics.get(key), (evaluation.retrain or {}).get(key)) for key in keys}
    wrong = [key for key in dict.fromkeys((*keys, *row.gap)) if not _close(row.gap.get(key), gaps.get(key))]
    if wrong:
        yield f"the gap of {row.method} in {', '.join(wrong)} does not follow"
    if not _close(row.avg_gap, _average_gap(row.metrics, evaluation.retrain, keys)):
        yield f"the average gap of {row.method} is {row.avg_gap}, and does not follow"


def _matrices(am: Matrices, scores: Sequence[float | None], family: str) -> Iterator[Statement]:
    """Check that the matrices have one shape and that AGM follows from the other two, and look at its diagonal."""
    subject = f"{EVALUATION_NAME}: matrices"
    count = len(am.agm)
    square = all(
        len(matrix) == count and all(len(row) == count for row in matrix)
        for matrix in (am.am_before, am.am_after, am.agm)
    )
    if not square or len(am.labels) not in (0, count):
        yield failed(subject, "AM before, AM after, AGM and their labels differ in size")
        return
    cells = [cell for matrix in (am.am_before, am.am_after) for row in matrix for cell in row if cell is not None]
    if count and not cells:
        yield unchecked(subject, "every cell is empty, so nothing follows from them")
        return
    if far := [cell for cell in cells if abs(cell) > 1 + _TOLERANCE]:
        yield failed(subject, f"{far[0]:g} is no cosine")
        return
    wrong = [
        f"agm[{i}][{j}]"
        for i, rows in enumerate(zip(am.am_before, am.am_after, am.agm, strict=True))
        for j, (before, after, gap) in enumerate(zip(*rows, strict=True))
        if not _close(gap, None if before is None or after is None else before - after)
    ]
    yield judged(subject, not wrong, "AGM is AM before minus AM after", f"differs at {listed(wrong)}")
    if family == "image-text" and am.agm and scores:
        diagonal = [row[i] for i, row in enumerate(am.agm)]
        same = len(scores) >= count and all(_close(*pair) for pair in zip(diagonal, scores[:count], strict=True))
        # The matrix shows an image's first caption, the score is the mean over all of them: with several they differ.
        reason = "is not the forgetting scores, as it may only be where images have several captions"
        subject = f"{EVALUATION_NAME}: diagonal of AGM"
        yield (held(subject, "is the forgetting scores") if same else unchecked(subject, reason))


def verify_heatmaps(
    folder: Path, manifest: UnlearningManifest, evaluation: EvaluationRecord | None
) -> Iterator[Statement]:
    """Check the pictures: the heatmaps against the recorded matrices, cell by cell; any other cannot be."""
    there = published_names(folder)  # a recorded name may lead anywhere, and what lies there may never end
    pictures = sorted(name for name in manifest.files if name.startswith("assets/") and name in there)
    matrices = evaluation.matrices if evaluation is not None else None
    panels = [] if matrices is None else [matrices.am_before, matrices.am_after, matrices.agm]
    sizes = {(len(panel), *map(len, panel)) for panel in panels}
    if matrices is None or all(cell is None for panel in panels for row in panel for cell in row):
        yield unchecked("heatmaps", "no matrices are recorded")
    elif len(sizes) != 1 or set(next(iter(sizes))) != {len(matrices.agm)}:
        yield unchecked("heatmaps", "the matrices differ in size, so that none can be drawn")
    elif not pictures:
        yield failed("heatmaps", "the matrices are recorded, but their picture is missing")
    else:
        shares = {name: _agreement(folder / name, matrices) for name in pictures}
        best = max(shares, key=lambda name: shares[name])
        problem = f"{best} does not show the recorded matrices: {shares[best]:.0%} of its cells agree"
        fine = f"the colours of {best} show the recorded matrices; what is written in it is not read"
        if shares[best] >= _AGREE and not is_plain_png((folder / best).read_bytes()):
            problem = f"{best} holds more than one plain picture, so that viewers may show another"
            yield failed("heatmaps", problem)
        else:
            yield judged("heatmaps", shares[best] >= _AGREE, fine, problem)
        pictures.remove(best)
    for name in pictures:
        yield unchecked(f"picture {name}", "is the publisher's own; no record says what it shows")


def verify_requests(evaluation: EvaluationRecord, manifest: UnlearningManifest) -> Iterator[Statement]:
    """Check that every request is accounted for, that the figures follow, and that none has come back.

    A request has come back when the interval of its mean alignment lies above what its own run left the same samples
    at, and above what held-out samples have: `low > max(then, non_member)`. Where either is not known, nobody can tell.
    """
    subject, runs = f"{EVALUATION_NAME}: requests", (*manifest.history, manifest.as_history_entry())
    if not evaluation.requests:
        if manifest.history:
            yield unchecked(subject, "where its requests stand is not recorded")
        return
    recorded = [(status.number, status.count) for status in evaluation.requests]
    due = [(number, run.request.count) for number, run in enumerate(runs, start=1)]
    yield judged(
        subject,
        recorded == due,
        f"{len(due)}, as in the history",
        f"{len(recorded)} with {[count for _, count in recorded]} samples, and the history has "
        f"{[count for _, count in due]}",
    )
    unseen = evaluation.requests[0].unseen
    wrong = [
        str(status.number)
        for status in evaluation.requests
        if None not in (status.now, status.estimated_gap, unseen)
        and not math.isclose(status.estimated_gap, abs(status.now - unseen), abs_tol=_LEVEL_TOLERANCE)  # type: ignore[operator,arg-type]
    ]
    if wrong:
        told = f"that of request {listed(wrong)} does not follow from its level and the first run's held-out samples"
        yield failed(f"{EVALUATION_NAME}: estimated gap", told)
    for status in evaluation.requests:
        yield _stands(status)


def _stands(status: RequestStatus) -> Statement:
    subject = f"request {status.number}"
    if status.now is None or status.measured == 0:
        return unchecked(subject, "its samples were not in the data: whether it came back was not measured")
    interval, reason = (status.low, status.high), untold(status)
    due = [status.now, status.non_member, *(() if interval == (None, None) and has_no_width(status) else interval)]
    if any(value is None or not math.isfinite(value) for value in due):
        return failed(subject, "its level is recorded without an interval")
    low, high = (status.now if end is None else end for end in interval)
    if not low - _LEVEL_TOLERANCE <= status.now <= high + _LEVEL_TOLERANCE:
        return failed(subject, f"its mean {status.now:.4g} lies outside its own interval")
    assert status.non_member is not None
    expected = max(status.non_member, math.inf if status.then is None else status.then)
    is_certain = status.low is not None and low > expected  # earlier versions judged by an interval without width, too
    if is_certain != status.drifted and status.then != status.now:
        told = "drifted back" if status.drifted else "as it was"
        return failed(subject, f"is called {told}, which does not follow from its figures")
    is_own = status.then == status.now  # just unlearned: nothing to come back from
    then = "" if status.then is None or is_own else f"{status.then:.1f} after its own run, "
    shown = "" if has_no_width(status) else f" ({low:.1f} to {high:.1f})"
    level = f"mean alignment {status.now:.1f}{shown}, {then}held-out samples {status.non_member:.1f}"
    if reason and not is_own:
        return unchecked(subject, f"{level}; whether it came back cannot be told: {reason}")
    if status.drifted:
        return failed(subject, f"the model has drifted back to it: {level}.{few_note(status)}")
    return unchecked(subject, f"{level}; the publisher's own measurement, cannot be checked here")


@dataclass(frozen=True)
class Measurements:
    """What was measured here.

    Attributes:
        data: The training rows here; of other rows than the recorded ones nothing is measured.
        request: What was found of the request that the options name; of another than the recorded one nothing is
            measured.
        before: Metrics of the base model.
        after: Metrics of the model; as of the base, none that is of another kind than the recorded one.
        statements: What is to be said of how they were measured.
    """

    data: DatasetRecord
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    statements: tuple[Statement, ...] = ()
    request: Statement | None = None


def verify_data(recorded: DatasetRecord, measured: Measurements | None) -> Statement:
    """Compare the training rows at hand, if there are any, with the recorded hash."""
    if recorded.sha256 is None:
        return unchecked("data", "the training data is not part of the repository, nor is its SHA-256 recorded")
    if measured is None or measured.data.sha256 is None:
        told = f"the training data is not part of the repository; its SHA-256 {recorded.sha256} is compared with "
        return unchecked("data", told + "that of --dataset where figures are measured")
    if recorded.differs(measured.data):
        ours, theirs = (f"{each[:8]}..." for each in (measured.data.sha256, recorded.sha256))
        told = f"the training rows here are others (SHA-256 {ours}) than the recorded ones ({theirs}); give --dataset "
        return unchecked("data", told + "and options as the run had them")
    return held("data", f"SHA-256 {recorded.sha256} of the training rows here")


def verify_measurements(
    evaluation: EvaluationRecord, recorded_data: DatasetRecord, measured: Measurements | None
) -> Iterator[Statement]:
    """Compare the figures with those measured here, or say that nobody but the publisher has measured them.

    Args:
        evaluation: The record.
        recorded_data: The rows that it is of.
        measured: On the data at hand.
    """
    recorded = {"before": evaluation.before or {}, "after": evaluation.metrics}
    count = sum(
        value is not None for metrics in (*recorded.values(), evaluation.retrain or {}) for value in metrics.values()
    )
    if measured is None:
        detail = f"{count} figures are the publisher's own measurement; give --base, --dataset and --unlearn_request"
        yield unchecked("metrics", f"{detail}, and they are measured here, where nothing fails")
        return
    if measured.request is not None:
        yield measured.request
        if measured.request.fails:
            yield unchecked("metrics", f"{count} figures cannot be checked with another request than the recorded one")
            return
    if recorded_data.differs(measured.data):
        yield unchecked("metrics", f"{count} figures cannot be checked with other rows than the recorded ones")
        return
    yield from measured.statements
    for side, again in (("before", measured.before), ("after", measured.after)):
        metrics = recorded[side]
        known = {
            key: value for key, value in metrics.items() if value is not None and key in again and key not in _NOT_AGAIN
        }
        wrong = [
            f"{key} is {again[key]:.4g} here, recorded {value:.4g}"
            for key, value in known.items()
            if not abs(again[key] - value) <= _MEASURED_WITHIN
        ]
        fine = f"{len(known)} figures measured again, none further off than {_MEASURED_WITHIN}"
        yield judged(f"metrics {side}", bool(known) and not wrong, fine, "; ".join(wrong) or "none could be measured")
        if left := [key for key, value in metrics.items() if value is not None and key not in known]:
            yield unchecked(f"metrics {side}", f"not measured here: {listed(left)}")
    if evaluation.retrain is not None:
        yield unchecked("metrics of Retrain", "its weights are not published; so neither is the gap")


def _agreement(path: Path, matrices: Matrices) -> float:
    """The share of cells that agree, with the captions that may stand below the columns or without."""
    from PIL import Image

    from hf_unlearn.figures.reading import agreeing_cells

    panels = {
        name: np.array(matrix, dtype=np.float64)
        for name, matrix in (("before", matrices.am_before), ("after", matrices.am_after), ("gap", matrices.agm))
    }
    captions = [None, matrices.labels] if len(matrices.labels) == len(matrices.agm) else [None]
    try:
        return max(agreeing_cells(path, panels, labels) or 0.0 for labels in captions)
    except (*PICTURE_DAMAGE, Image.DecompressionBombError):
        return 0.0  # no picture, or numbers beyond any picture's


def _agrees(subject: str, recorded: float | None, expected: float | None) -> Statement:
    return judged(
        subject,
        _close(recorded, expected),
        "none" if recorded is None else f"{recorded:.4g}",
        f"is {_figure(recorded)}, follows as {_figure(expected)}",
    )


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _difference(value: float | None, exact: float | None) -> float | None:
    return None if value is None or exact is None else abs(value - exact)


def _close(value: float | None, expected: float | None) -> bool:
    if value is None or expected is None:
        return value is expected
    return math.isclose(value, expected, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
