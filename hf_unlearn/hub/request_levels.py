"""Every request that a model has been through, measured after each run."""

from dataclasses import asdict, dataclass, field, replace

import numpy as np
import numpy.typing as npt

from hf_unlearn.hub.past_requests import PastRequests
from hf_unlearn.metrics.request_level import FEW, request_level
from hf_unlearn.records.schemas import RequestStatus

Array = npt.NDArray[np.floating]
_NO_WIDTH = 1e-4  # of an interval, in hundredths of a cosine


@dataclass(frozen=True)
class Levels:
    """Alignments under one model, cosines.

    Attributes:
        unlearn: `[u]` of the rows asked for.
        held_out: `[v]` of rows that no model saw.
        earlier: `[e]` of rows of earlier requests.
    """

    unlearn: Array
    held_out: Array
    earlier: Array = field(default_factory=lambda: np.empty(0))


def request_statuses(
    past: PastRequests,
    numbers: npt.NDArray[np.int64],
    before: Levels,
    after: Levels,
    method: str,
    count: int,
    left: Array | None = None,
) -> tuple[RequestStatus, ...]:
    """Where each request stands after a run, oldest first, the run's own last.

    Args:
        past: What the model has been through before.
        numbers: `[e]` the request that named each earlier row.
        before: Under the model that the run started from.
        after: Under the model it ended with.
        method: Id of the run's method.
        count: Rows that were asked for.
        left: `[e]` where its own run left each earlier row, NaN where that is not recorded; None where none is.
    """
    known = np.full(len(numbers), np.nan) if left is None else left.copy()
    if len(before.earlier) == len(numbers):  # the last request's run left what this run started from
        fallback = np.where(numbers == len(past.runs), before.earlier, np.nan)
    else:
        fallback = np.full(len(numbers), np.nan)
    statuses = []
    for number, status in enumerate(past.statuses(), start=1):
        its = np.flatnonzero(numbers == number)
        status = replace(status, then_all=_then_all(status), then_rows=_then_rows(past, status))
        if not len(its):
            status = replace(status, then=status.then_all, measured=0, drifted=False)
            statuses.append(replace(status, now=None, low=None, high=None, non_member=None))
            continue
        its, then = _comparable(status, its, known[its], fallback[its])
        level = request_level(after.earlier[its], after.held_out, then)
        statuses.append(replace(status, then=then, measured=len(its), **asdict(level)))
    began, own = request_level(before.unlearn, before.held_out), request_level(after.unlearn, after.held_out)
    of_this_run = RequestStatus(
        number=len(statuses) + 1,
        method=method,
        created=None,
        count=count,
        measured=len(after.unlearn),
        before=began.now,
        unseen=began.non_member,
        then=own.now,
        then_all=own.now,
        then_rows=len(after.unlearn),
        **asdict(own),
    )
    everything = (*statuses, of_this_run)
    unseen = everything[0].unseen
    return tuple(
        replace(s, estimated_gap=None if s.now is None or unseen is None else abs(s.now - unseen)) for s in everything
    )


def _comparable(
    status: RequestStatus, its: npt.NDArray[np.int64], known: Array, fallback: Array
) -> tuple[npt.NDArray[np.int64], float | None]:
    """The rows of a request to measure, and the mean that its own run left these at; None where that is not known.

    Rows differ far more among each other than a request drifts: some of them say nothing beside the mean of all.
    """
    is_known = np.isfinite(known)
    if len(its) == status.then_rows and (is_known.all() or not is_known.any()):
        return its, status.then_all
    known = np.where(is_known, known, fallback)
    if not (is_known := np.isfinite(known)).any():
        return its, None
    return its[is_known], 100 * float(known[is_known].mean())


def _then_all(status: RequestStatus) -> float | None:
    """The mean of all rows that a request's own run left; records of earlier versions have it as `then`."""
    return status.then if status.then_rows is None else status.then_all


def _then_rows(past: PastRequests, status: RequestStatus) -> int:
    """Over how many rows that is; records of earlier versions tell the rows by their hashes, or else by their count."""
    return status.then_rows or past.rows_of(status.number)


def untold(status: RequestStatus) -> str:
    """Why the figures of a measured request cannot say whether it came back; empty where they can."""
    recorded = status.then if status.then_all is None else status.then_all
    if recorded is None:
        return "what its own run left its rows at was not measured"
    # Earlier versions compared any rows with the mean of all.
    is_of_others = status.then_rows is None and status.measured < status.count
    if status.then is None or is_of_others:
        rows = status.then_rows or status.count
        return (
            f"of the {rows} rows that its own run left at {recorded:.1f}, {status.measured} are measured, and what it "
            "left these at is not recorded"
        )
    if has_no_width(status):
        alike = f"the {status.measured} rows measured are alike, which have"
        return f"{'one row is measured, which has' if status.measured == 1 else alike} no interval"
    return ""


def has_no_width(status: RequestStatus) -> bool:
    """Whether so few rows are measured that they have no interval; earlier versions recorded one without width."""
    if status.measured >= FEW:
        return False
    return status.low is None or status.high is None or status.high - status.low < _NO_WIDTH


def drift_notes(statuses: tuple[RequestStatus, ...]) -> tuple[str, ...]:
    """What must be said of earlier requests that the model has drifted back to, or may have."""
    notes = []
    for status in statuses:
        if status.drifted:
            notes.append(
                f"The model has drifted back to request {status.number}: the mean alignment of its rows is "
                f"{status.now:.1f} (95% interval {status.low:.1f} to {status.high:.1f}), after its own run it was "
                f"{status.then:.1f}, and held-out rows are at {status.non_member:.1f}. Unlearn its rows again, or "
                f"retrain.{few_note(status)}"
            )
        elif status.created is not None and status.measured and (reason := untold(status)):
            then = "" if status.then is None else f", after its own run it was {status.then:.1f}"
            notes.append(
                f"Whether the model has drifted back to request {status.number} cannot be told: {reason}. The mean "
                f"alignment measured is {status.now:.1f}{then}, and held-out rows are at {status.non_member:.1f}."
            )
    return tuple(notes)


def few_note(status: RequestStatus) -> str:
    """What is to be said beside an interval that is read off few rows."""
    return f" The interval is too narrow, as it is read off {status.measured} rows." if status.measured < FEW else ""
