"""Permutation tests against SciPy's, brute force over loops, and simulations with fixed seeds."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from hf_unlearn.audit.statistics import OneSample, TwoSample, benjamini_yekutieli, smallest_p_value

ALTERNATIVES = ("greater", "less", "two-sided")


def difference(x: np.ndarray, y: np.ndarray) -> float:
    return x.mean() - y.mean()


def welch(x: np.ndarray, y: np.ndarray) -> float:
    return difference(x, y) / np.sqrt(x.var(ddof=1) / len(x) + y.var(ddof=1) / len(y))


def brute_force(
    x: np.ndarray, y: np.ndarray, alternative: str, shift: float, statistic: Callable[[np.ndarray, np.ndarray], float]
) -> float:
    """The p-value by a loop over every choice of images."""
    everyone, n = np.concatenate([x - shift, y]), len(x)
    null = []
    for chosen in itertools.combinations(range(len(everyone)), n):
        rest = [i for i in range(len(everyone)) if i not in chosen]
        null.append(statistic(everyone[list(chosen)], everyone[rest]))
    greater, less = np.mean(np.array(null) >= null[0] - 1e-9), np.mean(np.array(null) <= null[0] + 1e-9)
    return {"greater": greater, "less": less, "two-sided": min(1, 2 * min(greater, less))}[alternative]


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize(
    ("n", "m", "shift"), [(5, 5, 0.0), (4, 7, 0.0), (4, 7, 0.4), (2, 6, 0.0), (3, 5, -0.3), (1, 9, 0.1)]
)
def test_two_sample_p_values_equal_brute_force(alternative: str, n: int, m: int, shift: float) -> None:
    rng = np.random.default_rng(n * 10 + m)
    x, y = rng.normal(0.5, 2, n), rng.normal(0, 1, m)
    statistic = welch if min(n, m) >= 4 else difference
    test = TwoSample(x, y)
    assert test.exact
    assert test.p_value(alternative, shift) == pytest.approx(brute_force(x, y, alternative, shift, statistic))


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_equal_arms_agree_with_scipy(alternative: str) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.3, 1, 8), rng.normal(0, 1, 8)
    expected = stats.permutation_test(
        (x, y), lambda a, b, axis: a.mean(axis) - b.mean(axis), alternative=alternative, n_resamples=np.inf
    )
    assert TwoSample(x, y).p_value(alternative) == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_one_sample_p_values_equal_brute_force(alternative: str) -> None:
    x = np.random.default_rng(2).normal(0.4, 1, 7)
    null = np.array([np.mean(np.array(signs) * (x - 0.1)) for signs in itertools.product([1, -1], repeat=7)])
    greater, less = np.mean(null >= null[0] - 1e-12), np.mean(null <= null[0] + 1e-12)
    expected = {"greater": greater, "less": less, "two-sided": min(1, 2 * min(greater, less))}
    assert OneSample(x).p_value(alternative, 0.1) == pytest.approx(expected[alternative])


def test_the_interval_is_where_brute_force_stops_rejecting() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(0.5, 1, 5), rng.normal(0, 1, 6)
    low, high = TwoSample(x, y).interval(0.9)
    for end, alternative, outward in ((low, "greater", -1e-5), (high, "less", 1e-5)):
        assert brute_force(x, y, alternative, end + outward, welch) <= 0.05
        assert brute_force(x, y, alternative, end - outward, welch) > 0.05


def test_the_sign_flip_interval_ends_at_means_of_subsets() -> None:
    """Flipping a subset matters exactly when its mean passes the shift: the ends are order statistics of such means."""
    x = np.random.default_rng(4).normal(size=8)
    means = sorted(np.mean(part) for size in range(1, 9) for part in itertools.combinations(x, size))
    low, high = OneSample(x).interval(0.95)
    k = int(0.025 * 2**8)  # so many of the 256 flips (the identity among them) may be as extreme
    assert low == pytest.approx(means[k - 1], abs=1e-6)
    assert high == pytest.approx(means[-k], abs=1e-6)


def test_intervals_resemble_student_in_large_normal_arms() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(0, 2, 200), rng.normal(0, 1, 300)
    expected = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    assert TwoSample(x, y, permutations=4_999).interval(0.95) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_arms_too_small_to_reject_anything_have_an_unbounded_interval() -> None:
    for test in (TwoSample([0.9, 0.8], [0.4, 0.3]), OneSample([0.1]), TwoSample([0.9], [0.4])):
        low, high = test.interval(0.95)
        assert (low, high) == (-np.inf, np.inf)
    assert smallest_p_value(2, 2) == 1 / 6
    assert smallest_p_value(3) == 1 / 8


def test_constant_arms_are_ties_or_a_sharp_difference_never_a_crash() -> None:
    same, apart = TwoSample([0.9] * 5, [0.9] * 5), TwoSample([0.9] * 5, [0.4] * 5)
    assert same.p_value("greater") == same.p_value("less") == 1
    assert apart.p_value("greater") == pytest.approx(1 / 252)
    assert apart.interval(0.95) == pytest.approx((0.5, 0.5), abs=1e-6)
    assert OneSample([0.0] * 8).p_value("greater") == 1


def test_ties_from_rounding_count_as_ties() -> None:
    """0.1 + 0.2 differs from 0.3 in its last digit, and no p-value may hang on it."""
    x, y = [0.1 + 0.2, 0.5, 0.7, 0.1], [0.3, 0.5, 0.7, 0.1]
    assert TwoSample(x, y).p_value("greater") == TwoSample(y, x).p_value("greater")


def test_monte_carlo_counts_the_observed_assignment_and_is_repeatable() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(5, 1, 20), rng.normal(0, 1, 20)
    test = TwoSample(x, y, permutations=199, seed=8)
    assert not test.exact and test.permutations == 200
    assert test.p_value("greater") == 1 / 200  # (b + 1) / (m + 1) with b = 0
    assert test.interval(0.95) == TwoSample(x, y, permutations=199, seed=8).interval(0.95)


def test_the_null_distribution_is_in_units_of_the_estimate() -> None:
    rng = np.random.default_rng(7)
    x, y = rng.normal(1, 1, 5), rng.normal(0, 2, 9)
    test = TwoSample(x, y)
    null = test.null()
    assert null[0] == pytest.approx(difference(x, y))
    assert np.mean(null >= null[0] - 1e-9) == pytest.approx(float(test.p_value("greater")))


arms = st.lists(st.floats(-1, 1), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(arms, arms, st.floats(-0.5, 0.5))
def test_p_values_are_shares_and_shifts_move_with_the_data(x: list[float], y: list[float], shift: float) -> None:
    test, moved = TwoSample(x, y), TwoSample(np.array(x) + shift, y)
    assert smallest_p_value(len(x), len(y)) <= test.p_value("greater") <= 1
    assert test.p_value("greater") + test.p_value("less") >= 1
    low, high = test.interval(0.9)
    assert low <= test.estimate <= high
    assert test.p_value("two-sided") == TwoSample(y, x).p_value("two-sided")
    np.testing.assert_allclose(moved.interval(0.9), (low + shift, high + shift), atol=1e-5)


def test_a_batch_of_owners_is_each_owner_alone() -> None:
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(3, 5)), rng.normal(size=(3, 6))
    together = TwoSample(x, y)
    for i in range(3):
        alone = TwoSample(x[i], y[i])
        assert together.p_value("less", [0.1, 0.2, 0.3])[i] == alone.p_value("less", 0.1 * (i + 1))
        assert together.interval(0.95)[0][i] == pytest.approx(float(alone.interval(0.95)[0]))


def test_benjamini_yekutieli_agrees_with_statsmodels() -> None:
    p_values = np.random.default_rng(10).uniform(0, 0.05, 30)
    np.testing.assert_allclose(benjamini_yekutieli(p_values), multipletests(p_values, method="fdr_by")[1])
