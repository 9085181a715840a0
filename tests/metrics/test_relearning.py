import numpy as np
import pytest

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.relearning import relearning


def test_areas_equal_the_closed_form() -> None:
    t = np.linspace(0, 1, 1001)
    result = relearning(0.1 + 0.8 * np.sqrt(t), 0.3 + 0.5 * t**2)
    assert result.area == pytest.approx(0.8 * 2 / 3, abs=1e-4)
    assert result.retrain_area == pytest.approx(0.5 / 3, abs=1e-4)
    assert result.advantage == pytest.approx(0.8 * 2 / 3 - 0.5 / 3, abs=1e-4)
    assert result.steps == int(np.flatnonzero(0.1 + 0.8 * np.sqrt(t) >= 0.8)[0])


def test_where_a_curve_starts_does_not_count() -> None:
    curve, retrain = np.array([0.1, 0.4, 0.5]), np.array([0.2, 0.3, 0.4])
    assert relearning(curve + 5, retrain).area == pytest.approx(relearning(curve, retrain).area)
    assert relearning(retrain, retrain).advantage == 0


def test_a_model_that_does_not_get_there_has_no_steps() -> None:
    assert relearning([0.0, 0.1], [0.0, 0.5]).steps is None
    assert relearning([0.5, 0.6], [0.0, 0.5]).steps == 0


def test_curves_must_correspond() -> None:
    with pytest.raises(UserError, match="got 2 and 3"):
        relearning([0, 1], [0, 1, 2])
    with pytest.raises(UserError, match="got 1 and 1"):
        relearning([0], [0])
