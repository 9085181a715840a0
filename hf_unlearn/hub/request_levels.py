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
    past: PastRequests, numbers: npt.NDArray[np.int64], before: Levels, after: Levels, method: str, count: int
) -> tuple[RequestStatus, ...]:
    """Where each request stands after a run, oldest first, the run's own last.

    Args:
        past: What the model has been through before.
        numbers: `[e]` the request that named each earlier row.
        before: Under the model that the run started from.
        after: Under the model it ended with.
        method: Id of the run's method.
        count: Rows that were asked for.
    """
    statuses = []
    for status in past.statuses():
        is_its = numbers == status.number
        if not is_its.any():
            statuses.append(replace(status, measured=0, now=None, low=None, high=None, non_member=None, drifted=False))
            continue
        level = request_level(after.earlier[is_its], after.held_out, status.then)
        statuses.append(replace(status, measured=int(is_its.sum()), **asdict(level)))
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
        **{**asdict(own), "drifted": False},  # it has just been unlearned
    )
    everything = (*statuses, of_this_run)
    unseen = everything[0].unseen
    return tuple(
        replace(s, estimated_gap=None if s.now is None or unseen is None else abs(s.now - unseen)) for s in everything
    )
