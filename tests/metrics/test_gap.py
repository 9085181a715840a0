"""The gap recomputed from the numbers printed in the paper's tables."""

import math

import pytest

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.gap import gap_to_retrain

KEYS = ["EMIA", "RA", "TA", "UA", "CMIA"]

# Printed numbers are rounded to .01 and averaged over trials before the gap is, hence the tolerance.
PRINTED = [
    # Table 1, CIFAR-10, 10%: MoCo
    ((49.72, 89.54, 87.76, 88.42, 34.38), (50.15, 88.34, 86.46, 87.59, 29.42), 1.74),
    ((49.72, 89.54, 87.76, 88.42, 34.38), (44.95, 89.92, 88.28, 89.76, 28.53), 2.57),
    ((49.72, 89.54, 87.76, 88.42, 34.38), (48.43, 89.25, 87.35, 88.58, 28.89), 1.53),
    ((49.72, 89.54, 87.76, 88.42, 34.38), (49.38, 88.56, 86.91, 88.12, 29.91), 1.39),
    ((49.72, 89.54, 87.76, 88.42, 34.38), (50.28, 89.14, 87.24, 88.2, 31.5), 0.92),
    # Table 1: SimCLR
    ((48.11, 90.87, 88.94, 89.68, 38.87), (47.72, 89.38, 87.26, 88.93, 30.71), 2.49),
    ((48.11, 90.87, 88.94, 89.68, 38.87), (48.64, 90.24, 88.06, 89.24, 33.12), 1.65),
    # Table 2, CIFAR-10, 50%: SimCLR
    ((53.37, 87.23, 85.16, 85.69, 49.3), (47.12, 86.11, 83.92, 85.24, 37.57), 4.16),
    # Table 6, CIFAR-100, 10%: MoCo, SimCLR
    ((56.24, 62.23, 58.6, 58.43, 59.53), (50.17, 63.2, 58.56, 58.44, 54.15), 2.49),
    ((51.2, 57.76, 56.25, 55.86, 65.6), (46.72, 57.11, 54.7, 55.23, 59.78), 2.63),
]


@pytest.mark.parametrize(("retrain", "method", "average"), PRINTED)
def test_average_gap_of_the_papers_tables(retrain: tuple[float], method: tuple[float], average: float) -> None:
    gap = gap_to_retrain(dict(zip(KEYS, method, strict=True)), dict(zip(KEYS, retrain, strict=True)), KEYS)
    assert gap.average == pytest.approx(average, abs=0.011)
    assert list(gap.per_key) == KEYS and gap.per_key["RA"] == abs(method[1] - retrain[1])


@pytest.mark.parametrize(
    ("retain", "unlearn", "average"),
    [(58.67, 54.75, 4.35), (61.96, 62.03, 6.35), (58.57, 49.19, 2.28), (57.7, 53.54, 4.23), (60.75, 51.23, 1.56)],
)
def test_average_gap_of_table_4(retain: float, unlearn: float, average: float) -> None:
    retrain = {"cosine_retain": 62.47, "cosine_unlearn": 49.84}
    gap = gap_to_retrain({"cosine_retain": retain, "cosine_unlearn": unlearn}, retrain, list(retrain))
    assert gap.average == pytest.approx(average, abs=0.011)


def test_a_missing_or_diverged_metric_is_named() -> None:
    with pytest.raises(UserError, match="Retrain's b is None"):
        gap_to_retrain({"a": 1.0, "b": 1.0}, {"a": 1.0}, ["a", "b"])
    with pytest.raises(UserError, match="the method's a is nan"):
        gap_to_retrain({"a": math.nan}, {"a": 1.0}, ["a"])
    with pytest.raises(UserError, match="at least one"):
        gap_to_retrain({}, {}, [])
