"""Drift of earlier requests: told from sampling error, and from a rise to what non-members have."""

import tracemalloc

import numpy as np
import pytest

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.request_level import request_level


def spread(mean, count, width=0.1):
    """Alignments with exactly this mean."""
    return np.linspace(mean - width, mean + width, count)


@pytest.mark.parametrize(
    ("now", "then", "non_member", "drifted"),
    [
        (0.80, 25.0, 0.34, True),
        (0.34, 25.0, 0.34, False),  # up to the level of what was never seen
        (0.37, 36.0, 0.20, False),  # within the sampling error of its mean
        (0.45, 36.0, 0.20, True),
        (0.60, None, 0.34, False),  # nobody knows where it was
        (0.20, None, 0.34, False),
    ],
)
def test_what_came_back_is_told_from_what_did_not(now, then, non_member, drifted):
    level = request_level(spread(now, 40), spread(non_member, 60), then)
    assert level.drifted is drifted
    assert level.now == pytest.approx(100 * now) and level.non_member == pytest.approx(100 * non_member)


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(0.4, 0.3, 200)
    level = request_level(values, [0.1])
    error = 100 * values.std() / np.sqrt(len(values))
    assert level.high - level.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert level.low < level.now < level.high
    assert request_level(values[::-1], [0.1]).now == pytest.approx(level.now)


@pytest.mark.parametrize("values", [[0.9], [0.9, 0.9 + 1e-8], [0.9] * 4])
def test_so_few_samples_without_spread_have_no_interval_and_no_verdict(values):
    level = request_level(values, [0.1, 0.2], then=20.0)
    assert level.now == pytest.approx(90) and level.non_member == pytest.approx(15)
    assert (level.low, level.high, level.drifted) == (None, None, False)


def test_two_samples_that_differ_have_an_interval():
    level = request_level([0.8, 0.9], [0.1, 0.2], then=20.0)
    assert (level.low, level.high, level.drifted) == (pytest.approx(80), pytest.approx(90), True)


@pytest.mark.parametrize("count", [2, 7, 333])
def test_the_draws_are_those_of_one_table(count):
    values = np.random.default_rng(3).random(count)
    drawn = values[np.random.default_rng(0).integers(0, count, (1_000, count))].mean(1)
    level = request_level(values, [0.1])
    assert [level.low, level.high] == pytest.approx(100 * np.percentile(drawn, [2.5, 97.5]), rel=1e-12)


def test_many_samples_take_little_memory():
    values = np.random.default_rng(4).random(20_000)
    tracemalloc.start()
    request_level(values, values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * values.nbytes  # all draws at once: 2,000 times


def test_an_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = [
        level.low <= 40 <= level.high for level in (request_level(rng.normal(0.4, 0.3, 40), [0.1]) for _ in range(400))
    ]
    assert 0.91 <= np.mean(covered) <= 0.98


def test_what_is_not_finite_has_no_level():
    with pytest.raises(UserError, match="request"):
        request_level([np.nan, 0.2], [0.1])
