"""Relearning: how fast forgotten samples come back when a few of their kind are shown again."""

from dataclasses import dataclass, field

import numpy as np

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._checks import Array, Scores, check_scores


@dataclass(frozen=True, eq=False)
class Relearning:
    """How much faster a model relearns than Retrain does.

    Attributes:
        area: Mean over the curve of alignment minus its start, in the units of the alignments.
        retrain_area: The same for Retrain.
        advantage: `area - retrain_area`: above 0 the model had not forgotten what it seemed to have.
        steps: First update at which the model reaches the highest alignment that Retrain reaches; None if it does not.
        difference: `[s + 1]` curve minus Retrain's curve.
    """

    area: float
    retrain_area: float
    advantage: float
    steps: int | None
    difference: Scores = field(repr=False)


def relearning(curve: Array, retrain_curve: Array) -> Relearning:
    """Compares two recovery curves: mean alignment of samples that are not shown, after each update on others.

    `area = mean_t (c_t - c_0)` over equally spaced t, by trapezoids, so that where a curve starts does not count.

    Args:
        curve: `[s + 1]` mean alignments of the unlearned model before the first update and after each.
        retrain_curve: `[s + 1]` the same for Retrain, with the same updates.

    Returns:
        Both areas and their difference.

    Raises:
        UserError: A curve has a NaN or fewer than two points, or they differ in length.

    Source: "relearn time" of Golatkar et al., arXiv 1911.04933, and Tarun et al., arXiv 2111.08947, there the updates
    until a loss is reached on the very samples that are shown.

    Example:
        >>> result = relearning([0.2, 0.6, 0.8], [0.2, 0.3, 0.4])
        >>> round(result.area, 3), round(result.retrain_area, 3), round(result.advantage, 3), result.steps
        (0.35, 0.1, 0.25, 1)
    """
    ours, theirs = check_scores(curve, "recovery curve"), check_scores(retrain_curve, "Retrain's recovery curve")
    if len(ours) != len(theirs) or len(ours) < 2:
        raise UserError(f"recovery curves need two points or more, equally many: got {len(ours)} and {len(theirs)}")
    reached = np.flatnonzero(ours >= theirs.max())
    area, retrain_area = _area(ours), _area(theirs)
    steps = int(reached[0]) if len(reached) else None
    return Relearning(area, retrain_area, area - retrain_area, steps, ours - theirs)


def _area(curve: Scores) -> float:
    return float(np.trapezoid(curve - curve[0]) / (len(curve) - 1))
