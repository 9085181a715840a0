import numpy as np
import pytest

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.three_sample import nearer_to_base


def discrepancy(a: np.ndarray, b: np.ndarray, width: float) -> float:
    def mean(p: np.ndarray, q: np.ndarray) -> float:
        return np.mean([[np.exp(-((x - y) ** 2).sum() / width) for y in q] for x in p])

    return np.sqrt(mean(a, a) - 2 * mean(a, b) + mean(b, b))


def test_it_is_the_ratio_of_discrepancies_by_loops() -> None:
    rng = np.random.default_rng(0)
    base, retrain, model = rng.normal(0, 1, (12, 3)), rng.normal(1, 1, (12, 3)), rng.normal(0.4, 1, (12, 3))
    width = np.median([[((x - y) ** 2).sum() for y in base] for x in retrain])
    to_retrain, to_base = discrepancy(model, retrain, width), discrepancy(model, base, width)
    assert nearer_to_base(model, retrain, base) == pytest.approx(to_retrain / (to_retrain + to_base))


def test_it_grows_from_retrain_to_the_base_model() -> None:
    rng = np.random.default_rng(1)
    base, retrain = rng.normal(0, 1, (60, 4)), rng.normal(3, 1, (60, 4))
    values = [nearer_to_base((1 - t) * retrain + t * base, retrain, base) for t in (0, 0.3, 0.7, 1)]
    assert values == sorted(values) and values[0] == 0 and values[-1] == 1


def test_nothing_lies_between_equal_samples() -> None:
    same, retrain = np.ones((4, 2)), np.random.default_rng(2).normal(size=(4, 2))
    assert np.isnan(nearer_to_base(same, same, same)) and np.isnan(nearer_to_base(same, retrain, retrain))


def test_other_shapes_are_refused() -> None:
    same = np.ones((4, 2))
    with pytest.raises(UserError, match="must have one shape"):
        nearer_to_base(same, same, np.ones((4, 3)))
