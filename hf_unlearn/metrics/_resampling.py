"""The interval of an estimate: what it would be of samples drawn anew, with replacement, from those measured."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from hf_unlearn.metrics._checks import Scores

RESAMPLES, RESAMPLING_SEED, COVERAGE = 500, 2406, 0.95
"""Draws of the bootstrap, their seed, and the share of them that the interval holds."""

_WEIGHTS_AT_ONCE = 2**21

Weights = npt.NDArray[np.float64]
"""`[draws, n]`: how often each of n samples is in each draw."""
Parts = dict[str, Scores]


def with_interval(
    estimate: Callable[[Weights, Weights, Weights, Weights], Parts],
    total: Callable[[Mapping[str, Scores]], Scores],
    sizes: tuple[int, int, int, int],
) -> tuple[dict[str, float], float, float, float]:
    """The estimate of all samples, and the middle 95% of those of samples drawn anew with replacement.

    Parts are absolute values, so draws lie above an estimate near 0 more often than below: the interval is widened to
    hold the estimate.

    Args:
        estimate: From draws of retain, unlearn, validation and holdout to the parts, `[draws]` each.
        total: From the parts to the estimate.
        sizes: How many samples there are of each; 0 where none are drawn.

    Returns:
        The parts, the estimate, and both ends of its interval.
    """
    parts = estimate(*(np.ones((1, size)) for size in sizes))
    rng, value = np.random.default_rng(RESAMPLING_SEED), float(total(parts)[0])
    at_once = max(1, min(RESAMPLES, _WEIGHTS_AT_ONCE // (1 + sum(sizes))))
    draws = [
        total(estimate(*(_drawn(rng, min(at_once, RESAMPLES - first), size) for size in sizes)))
        for first in range(0, RESAMPLES, at_once)
    ]
    tail = 100 * (1 - COVERAGE) / 2
    low, high = np.percentile(np.concatenate(draws), (tail, 100 - tail))
    measured = {name: float(part[0]) for name, part in parts.items()}
    return measured, value, min(float(low), value), max(float(high), value)


def _drawn(rng: np.random.Generator, draws: int, size: int) -> Weights:
    rows = rng.integers(0, max(size, 1), (draws, size))
    return np.stack([np.bincount(row, minlength=size) for row in rows]).astype(np.float64)


def shift(values: Scores, weights: Weights) -> Scores:
    """How far the mean of each draw lies from that of all samples, `[draws]`.

    Example:
        >>> shift(np.array([0.0, 1.0]), np.array([[1.0, 1.0], [0.0, 2.0]])).tolist()
        [0.0, 0.5]
    """
    return (weights - 1) @ values / len(values) if len(values) else np.zeros(len(weights))
