"""Do the records say where every request of the model's history stands, and has it drifted back to one."""

import math
from collections.abc import Iterator

from hf_unlearn.errors import listed
from hf_unlearn.hub.verification_report import Statement, failed, judged, unchecked
from hf_unlearn.records.file_names import EVALUATION_NAME
from hf_unlearn.records.schemas import EvaluationRecord, RequestStatus, UnlearningManifest

_TOLERANCE = 1e-6


def verify_requests(evaluation: EvaluationRecord, manifest: UnlearningManifest) -> Iterator[Statement]:
    """Check that every request is accounted for, that the figures follow, and that none has come back.

    A request has come back when the interval of its mean alignment lies above what its own run left and above what
    held-out samples have: `low > max(then, non_member)`.
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
        and not math.isclose(status.estimated_gap, abs(status.now - unseen), abs_tol=_TOLERANCE)  # type: ignore[operator,arg-type]
    ]
    if wrong:
        told = f"that of request {listed(wrong)} does not follow from its level and the first run's held-out samples"
        yield failed(f"{EVALUATION_NAME}: estimated gap", told)
    for status in evaluation.requests:
        yield _stands(status)


def _stands(status: RequestStatus) -> Statement:
    subject = f"request {status.number}"
    figures = (status.now, status.low, status.high, status.non_member)
    if status.now is None or status.measured == 0:
        return unchecked(subject, "its samples were not in the data: whether it came back was not measured")
    if any(value is None or not math.isfinite(value) for value in figures):
        return failed(subject, "its level is recorded without an interval")
    assert status.low is not None and status.high is not None and status.non_member is not None
    if not status.low - _TOLERANCE <= status.now <= status.high + _TOLERANCE:
        return failed(subject, f"its mean {status.now:.4g} lies outside its own interval")
    expected = max(status.non_member, -math.inf if status.then is None else status.then)
    if (status.low > expected) != status.drifted and status.then != status.now:
        told = "drifted back" if status.drifted else "as it was"
        return failed(subject, f"is called {told}, which does not follow from its figures")
    then = "" if status.then is None or status.then == status.now else f"{status.then:.1f} after its own run, "
    level = f"mean alignment {status.now:.1f} ({status.low:.1f} to {status.high:.1f}), {then}held-out samples "
    level += f"{status.non_member:.1f}"
    if status.drifted:
        return failed(subject, f"the model has drifted back to it: {level}")
    return unchecked(subject, f"{level}; the publisher's own measurement, cannot be checked here")
