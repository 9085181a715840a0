"""What a run says of every request that its model has been through."""

from dataclasses import replace

import numpy as np

from hf_unlearn.data.earlier_rows import EARLIER, REQUEST_COLUMN
from hf_unlearn.hub import request_levels
from hf_unlearn.hub.history import PastRequests
from hf_unlearn.hub.request_levels import Levels
from hf_unlearn.metrics.estimated_gap import ImageTextEvidence
from hf_unlearn.records.schemas import RequestStatus
from hf_unlearn.runs.evaluation import Evaluation
from hf_unlearn.runs.run_data import UnlearningTask


def as_original(before: Evaluation, past: PastRequests) -> Evaluation:
    """What is known of the model before any request, from the base model's evaluation and its records.

    Its recorded figures take the place of the base model's, and held-out alignments are lowered by what their mean has
    risen by since. Views are attacked with alignments of now alone, so only what a probe found is replaced.
    """
    original, evidence = past.original, before.evidence
    if not past.runs or original is None:
        return before

    def recorded(*names: str) -> dict[str, float]:
        return {name: value for name in names if (value := original.get(name)) is not None}

    if isinstance(evidence, ImageTextEvidence):
        held_out = np.asarray(evidence.validation) - past.unseen_risen
        known = recorded("cosine_retain", "cosine_validation", "recall_validation")
        predicted = None if evidence.predicted is None else np.asarray(evidence.predicted) - past.unseen_risen
        return replace(before, evidence=replace(evidence, validation=held_out, predicted=predicted, **known))
    if evidence.probe is None:
        return before
    probe = replace(evidence.probe, **recorded("retain_accuracy", "validation_accuracy"))
    return replace(before, evidence=replace(evidence, probe=probe))


def request_statuses(
    task: UnlearningTask, before: Evaluation, after: Evaluation, method: str
) -> tuple[RequestStatus, ...]:
    """`hf_unlearn.hub.request_levels.request_statuses` of a run, from the evaluations before and after it."""
    earlier = np.empty(0) if after.earlier is None else after.earlier
    numbers = np.empty(0, np.int64) if after.earlier is None else np.asarray(task.splits[EARLIER][REQUEST_COLUMN])
    start, end = (np.asarray(evaluation.evidence.validation) for evaluation in (before, after))
    began, ended = Levels(before.alignment, start), Levels(after.alignment, end, earlier)
    return request_levels.request_statuses(task.past, numbers, began, ended, method, task.request.count)
