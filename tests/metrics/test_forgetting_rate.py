import math

import numpy as np
import pytest
from scipy.stats import binomtest

from hf_unlearn.metrics.forgetting_rate import forgetting_rate


def test_it_counts_samples_that_pass_from_above_to_below_their_own_models_threshold() -> None:
    rng = np.random.default_rng(0)
    before, before_test = rng.normal(0.8, 0.2, 60), rng.normal(0.2, 0.2, 80)
    after, after_test = rng.normal(0.4, 0.3, 60), rng.normal(0.2, 0.1, 80)
    known = forgotten = 0
    for sample in range(60):
        if before[sample] > np.quantile(before_test, 0.95):
            known += 1
            forgotten += after[sample] <= np.quantile(after_test, 0.95)
    result = forgetting_rate(before, before_test, after, after_test)
    interval = binomtest(int(forgotten), known).proportion_ci(0.95, method="wilson")
    assert result.remembered == known and 0 < forgotten < known
    assert result.rate == pytest.approx(forgotten / known)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))


def test_the_untouched_model_forgot_nothing_and_one_that_remembers_nothing_all() -> None:
    unseen, seen = np.linspace(0, 0.4, 50), np.full(20, 0.9)
    assert forgetting_rate(seen, unseen, seen, unseen).rate == 0
    assert forgetting_rate(seen, unseen, np.full(20, 0.2), unseen).rate == 1


def test_without_remembered_samples_there_is_no_rate() -> None:
    unseen = np.linspace(0, 0.4, 50)
    result = forgetting_rate(np.zeros(9), unseen, np.zeros(9), unseen)
    assert math.isnan(result.rate) and (result.low, result.high, result.remembered) == (0, 1, 0)
