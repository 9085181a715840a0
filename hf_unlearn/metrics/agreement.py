"""Per-sample agreement with Retrain: were the right samples forgotten, or only as many?"""

from dataclasses import dataclass

import numpy as np

from hf_unlearn.metrics._checks import Array, Scores, check_same_length, check_scores
from hf_unlearn.metrics.attacks import midranks


@dataclass(frozen=True)
class Agreement:
    """How well two models' alignments of the same samples agree.

    Attributes:
        pearson: Linear correlation over samples, -1 to 1; NaN when one side does not vary.
        spearman: Rank correlation over samples (ties share their middle rank); NaN when one side does not vary.
        mean_absolute_difference: Mean over samples, in the units of the alignments.
        ceiling: The same between two Retrain models of different seeds, the best that can be hoped for; or None.
    """

    pearson: float
    spearman: float
    mean_absolute_difference: float
    ceiling: "Agreement | None" = None


def agreement(model: Array, retrain: Array, second_retrain: Array | None = None) -> Agreement:
    """Agreement of a model with Retrain on each unlearn sample's alignment.

    Means can match while the wrong samples were forgotten; correlation and mean absolute difference over samples show
    it. Two honest Retrain models differ too, by their seed alone: that agreement is the ceiling.

    Args:
        model: `[n]` alignments of the unlearn samples: `matched_cosine(...).per_sample` or `view_alignment(...)`.
        retrain: `[n]` the same samples under Retrain.
        second_retrain: `[n]` the same samples under a Retrain of another seed.

    Returns:
        The agreement, with the ceiling where a second Retrain is given.

    Raises:
        UserError: An alignment is NaN or infinite, or the numbers of samples differ.

    Example:
        >>> result = agreement([0.1, 0.2, 0.6], [0.2, 0.3, 0.4])
        >>> round(result.pearson, 3), round(result.spearman, 3), round(result.mean_absolute_difference, 3)
        (0.945, 1.0, 0.133)
    """
    ours, theirs = check_scores(model, "alignment of the model"), check_scores(retrain, "alignment of Retrain")
    check_same_length(model=ours, retrain=theirs)
    return Agreement(
        pearson=_correlation(ours, theirs),
        spearman=_correlation(midranks(ours), midranks(theirs)),
        mean_absolute_difference=float(np.abs(ours - theirs).mean()),
        ceiling=None if second_retrain is None else agreement(second_retrain, retrain),
    )


def _correlation(a: Scores, b: Scores) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
