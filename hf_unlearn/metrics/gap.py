"""The gap to Retrain: the paper's summary of a method in one number."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_unlearn.errors import UserError


@dataclass(frozen=True)
class Gap:
    """Absolute differences from Retrain, in the metrics' own unit.

    Attributes:
        per_key: The difference for each key, in the order asked for.
        average: Their mean, the paper's "Avg. Gap".
    """

    per_key: dict[str, float]
    average: float


def gap_to_retrain(metrics: Mapping[str, float], retrain: Mapping[str, float], keys: Sequence[str]) -> Gap:
    """Absolute difference from Retrain for each key, and the mean over keys.

    `gap_k = |m_k - r_k|`, `average = mean_k gap_k`

    Args:
        metrics: The method's metrics; other keys than `keys` are left alone.
        retrain: Retrain's metrics.
        keys: What to compare: EMIA, RA, TA, UA and CMIA in Tables 1, 2, 6 and 7; the cosines of retain and unlearn
            in Table 4.

    Returns:
        The difference for each key and their mean.

    Raises:
        UserError: No key is given, or a key is missing or not finite on either side.

    Source: arXiv 2406.03603, "Avg. Gap" of Tables 1-7.

    Example:
        >>> gap_to_retrain({"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 2.0}, ["a", "b"])
        Gap(per_key={'a': 1.0, 'b': 3.0}, average=2.0)
    """
    if not keys:
        raise UserError("the gap to Retrain needs at least one metric to compare")
    for side, values in (("the method's", metrics), ("Retrain's", retrain)):
        for key in keys:
            value = values.get(key)
            if value is None or not math.isfinite(value):
                raise UserError(f"the gap to Retrain cannot be taken: {side} {key} is {value}; leave that key out")
    gaps = {key: abs(metrics[key] - retrain[key]) for key in keys}
    return Gap(gaps, math.fsum(gaps.values()) / len(gaps))
