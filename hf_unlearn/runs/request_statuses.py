"""What a run says of every request that its model has been through."""

from dataclasses import replace

import numpy as np

from hf_unlearn.data.earlier_rows import REQUEST_COLUMN
from hf_unlearn.hub import request_levels
from hf_unlearn.hub.history import PastRequests
from hf_unlearn.hub.request_levels import Levels
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
    """`hf_unlearn.hub.request_levels.request_statuses` of a run, from the evaluations before and after it."""
    earlier = np.empty(0) if after.earlier is None else after.earlier
    numbers = np.empty(0, np.int64) if after.earlier is None else np.asarray(task.splits[EARLIER][REQUEST_COLUMN])
    start, end = (np.asarray(evaluation.evidence.validation) for evaluation in (before, after))
    began, ended = Levels(before.alignment, start), Levels(after.alignment, end, earlier)
    return request_levels.request_statuses(task.past, numbers, began, ended, method, task.request.count)
