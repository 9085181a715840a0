"""Every request that a model has been through, measured after each run."""

from dataclasses import asdict, dataclass, field, replace

import numpy as np
import numpy.typing as npt

from hf_unlearn.hub.past_requests import PastRequests
from hf_unlearn.metrics.request_level import request_level
from hf_unlearn.records.schemas import RequestStatus

Array = npt.NDArray[np.floating]


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
