"""Every request that a model has been through, measured after each run: has the model drifted back to its rows?"""

from dataclasses import replace

import numpy as np

from hf_unlearn.data.earlier_rows import REQUEST_COLUMN
from hf_unlearn.hub.history import PastRequests
from hf_unlearn.metrics.request_level import request_level
from hf_unlearn.records.schemas import RequestStatus
from hf_unlearn.runs.evaluation import EARLIER, Evaluation
from hf_unlearn.runs.run_data import UnlearningTask


def as_original(before: Evaluation, past: PastRequests) -> Evaluation:
    """What is known of the model before any request, from the base model's evaluation and its records."""
    if not past.runs or past.original is None:
        return before
    return replace(before, evidence=before.evidence.as_original(past.original, past.unseen_risen))


def request_statuses(
    task: UnlearningTask, before: Evaluation, after: Evaluation, method: str
) -> tuple[RequestStatus, ...]:
    """Where each request stands after a run, oldest first, the run's own last.

    Args:
        task: The run's rows, those of earlier requests among them.
        before: The evaluation of the model that the run started from.
        after: That of the model it ended with.
        method: Id of the run's method.
    """
    held_out = after.evidence.validation
    numbers = np.asarray(task.splits[EARLIER][REQUEST_COLUMN]) if after.earlier is not None else np.empty(0)
    statuses = []
    for status in task.past.statuses():
        is_its = numbers == status.number
        if not is_its.any():
            statuses.append(replace(status, measured=0, now=None, low=None, high=None, non_member=None, drifted=False))
            continue
        assert after.earlier is not None
        level = request_level(after.earlier[is_its], held_out, status.then)
        statuses.append(
            replace(
                status,
                measured=int(is_its.sum()),
                now=level.now,
                low=level.low,
                high=level.high,
                non_member=level.non_member,
                drifted=level.drifted,
            )
        )
    began, own = request_level(before.alignment, before.evidence.validation), request_level(after.alignment, held_out)
    own_status = RequestStatus(
        number=len(statuses) + 1,
        method=method,
        created=None,
        count=task.request.count,
        measured=len(after.alignment),
        before=began.now,
        unseen=began.non_member,
        then=own.now,
        now=own.now,
        low=own.low,
        high=own.high,
        non_member=own.non_member,
    )
    everything = (*statuses, own_status)
    return tuple(replace(s, estimated_gap=gap_of(s, everything[0].unseen)) for s in everything)


def gap_of(status: RequestStatus, unseen: float | None) -> float | None:
    """The gap of a request to Retrain, estimated from held-out samples of the model before any request."""
    return None if status.now is None or unseen is None else abs(status.now - unseen)


def drift_notes(statuses: tuple[RequestStatus, ...]) -> tuple[str, ...]:
    """What must be said of requests that the model has drifted back to."""
    return tuple(
        f"The model has drifted back to request {status.number}: the mean alignment of its rows is {status.now:.1f} "
        f"(95% interval {status.low:.1f} to {status.high:.1f}), after its own run it was {status.then:.1f}, and "
        f"held-out rows are at {status.non_member:.1f}. Unlearn its rows again, or retrain."
        for status in statuses
        if status.drifted
    )
