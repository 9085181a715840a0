import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.agreement import agreement


def test_equals_scipy_and_a_loop_with_ties() -> None:
    rng = np.random.default_rng(0)
    a, b, c = np.round(rng.normal(size=(3, 40)), 1)
    a += b
    result = agreement(a, b, c)
    assert result.pearson == pytest.approx(pearsonr(a, b).statistic)
    assert result.spearman == pytest.approx(spearmanr(a, b).statistic)
    assert result.mean_absolute_difference == pytest.approx(
        math.fsum(abs(p - q) for p, q in zip(a, b, strict=True)) / 40
    )
    assert result.ceiling == agreement(c, b) and agreement(a, b).ceiling is None


def test_equal_means_hide_the_wrong_samples() -> None:
    retrain = np.linspace(0, 1, 11)
    wrong = agreement(retrain[::-1], retrain)
    assert wrong.pearson == pytest.approx(-1) and wrong.mean_absolute_difference > 0.5


def test_no_spread_has_no_correlation() -> None:
    flat = agreement([0.1, 0.1, 0.1], [0.1, 0.2, 0.3])
    assert math.isnan(flat.pearson) and math.isnan(flat.spearman)
    assert flat.mean_absolute_difference == pytest.approx(0.1)


def test_samples_must_correspond() -> None:
    with pytest.raises(UserError, match="model 1, retrain 2"):
        agreement([0.1], [0.1, 0.2])
