"""Permutation tests whose confidence intervals are found by inverting them.

Every test re-assigns the images to the arms (or flips the sign of their scores), so the image is the unit: never the
view, never the cell of a matrix. A small number of re-assignments is enumerated; a large one is sampled with the
observed assignment among the draws, which makes the p-value `(b + 1) / (m + 1)` and valid for every number of draws.

Values may carry leading batch dimensions (one simulated owner a row), so that simulations run the same code as audits.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from functools import lru_cache
from math import comb
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control

Floats = NDArray[np.float64]
Alternative = Literal["greater", "less", "two-sided"]

SHIFT_LEVEL = 0.05
"""Level at which unequal spreads of two arms show that one is not the other, shifted."""
ENUMERATION_LIMIT = 20_000
"""Up to so many re-assignments are enumerated."""
STUDENTISE_FROM = 4
"""Smallest arm whose own variance is worth estimating."""

_RELATIVE_FLOOR = 1e-8  # a spread below this share of the values is rounding
_TIE = 1e-7  # statistics closer than this (in standard errors) count as equal, so rounding never breaks a tie
_BISECTIONS = 40  # from a bracket of 100 spreads to 1e-10 of one


class PermutationTest(ABC):
    """One observed statistic among those of every re-assignment, as a function of the assumed true value (`shift`)."""

    estimate: Floats
    """The observed mean or difference of means, `[...]`."""
    exact: bool
    """Whether every re-assignment was enumerated."""
    permutations: int
    """How many re-assignments, the observed one included."""
    _reach: Floats

    @abstractmethod
    def _statistics(self, shift: ArrayLike) -> Floats:
        """Studentised statistics `[..., permutations]` had the true value been `shift`, the observed one first."""

    @abstractmethod
    def _standard_error(self) -> Floats:
        """The observed statistic's standard error `[...]`."""

    def p_value(self, alternative: Alternative, shift: ArrayLike = 0.0) -> Floats:
        """Share of re-assignments at least as extreme as the observed one when the true value is `shift`.

        Args:
            alternative: "greater", "less", or "two-sided" (twice the smaller one, at most 1).
            shift: the value under the null hypothesis, a number or one for each batch entry.

        Returns:
            p-values `[...]` in (0, 1].
        """
        statistics = self._statistics(shift)
        observed = statistics[..., :1]
        tie = _TIE * (1 + np.abs(observed))
        if alternative == "greater":
            return np.mean(statistics >= observed - tie, axis=-1)
        if alternative == "less":
            return np.mean(statistics <= observed + tie, axis=-1)
        smaller = np.minimum(
            np.mean(statistics >= observed - tie, axis=-1), np.mean(statistics <= observed + tie, axis=-1)
        )
        return np.minimum(1.0, 2 * smaller)

    def interval(self, confidence: float) -> tuple[Floats, Floats]:
        """The values that the two one-sided tests do not reject, each at level `(1 - confidence) / 2`.

        An end is infinite when the arms are too small for any value to be rejected.
        """
        tail = (1 - confidence) / 2
        return self._bound("greater", -1.0, tail), self._bound("less", 1.0, tail)

    def shift_is_false(self) -> bool:
        """Whether the assumption of `interval`, that all images of an arm moved about alike, is visibly false."""
        return False

    def null(self) -> Floats:
        """The permutation distribution under "no difference", in units of the estimate: `[..., permutations]`."""
        return self._statistics(0.0) * self._standard_error()[..., None]

    def _bound(self, alternative: Alternative, direction: float, tail: float) -> Floats:
        """Bisect between the estimate, never rejected, and a value far enough out to be rejected if any is."""
        kept, rejected = self.estimate.copy(), self.estimate + direction * self._reach
        unbounded = self.p_value(alternative, rejected) > tail
        for _ in range(_BISECTIONS):
            middle = (kept + rejected) / 2
            keep = self.p_value(alternative, middle) > tail
            kept, rejected = np.where(keep, middle, kept), np.where(keep, rejected, middle)
        return np.where(unbounded, direction * np.inf, rejected)


class TwoSample(PermutationTest):
    """Difference of means between two arms, re-assigning images to arms.

    Statistic: `(mean_A - mean_B) / sqrt(var_A / n + var_B / m)`, after `shift` is taken off the treated images. Under
    exchangeability the test is exact whatever the statistic; dividing by the arms' own variances keeps it honest when
    they differ in size and spread (8 requested against 50 controls). Arms below `STUDENTISE_FROM` share one variance.

    Args:
        treated: `[..., n]` values of the arm whose mean comes first.
        control: `[..., m]` values of the other arm.
        permutations: Monte-Carlo draws if a full enumeration exceeds `ENUMERATION_LIMIT`.
        seed: seed of those draws.

    Source: Janssen, "Studentized permutation tests for non-i.i.d. hypotheses" (1997); Chung and Romano (2013).
    """

    def __init__(self, treated: ArrayLike, control: ArrayLike, *, permutations: int = 9_999, seed: int = 0) -> None:
        x, y = self._arms = np.asarray(treated, float), np.asarray(control, float)
        self._n, self._m = x.shape[-1], y.shape[-1]
        self.estimate = np.asarray(x.mean(-1) - y.mean(-1))
        both = np.concatenate([x, y], axis=-1)
        self._floor = (_RELATIVE_FLOOR * np.abs(both).max(-1, keepdims=True)) ** 2 + np.finfo(float).tiny
        self._reach = 100 * np.maximum(np.ptp(x, axis=-1), np.ptp(y, axis=-1)) + 1e-6
        both = both - both.mean(-1, keepdims=True)
        in_treated = np.arange(self._n + self._m) < self._n
        picks, self.exact = _assignments(self._n, self._m, permutations, seed)
        self.permutations = len(picks)
        self._treated_picked = picks[:, : self._n].sum(1).astype(float)
        # Sums over the picked group, and over everyone, of x, x^2 and x restricted to the treated images: with these
        # the statistics for any shift cost a few operations an assignment.
        values = np.stack([both, both**2, both * in_treated])
        self._sums, self._totals = _picked_sums(values, picks), values.sum(-1, keepdims=True)

    def _statistics(self, shift: ArrayLike) -> Floats:
        return self._difference_and_variance(shift, slice(None))[0]

    def _standard_error(self) -> Floats:
        return self._difference_and_variance(0.0, slice(0, 1))[1][..., 0]

    def shift_is_false(self) -> bool:
        """Whether the arms' deviations from their medians differ: a minority holds what the mean spreads over all.

        A permutation test of the absolute deviations (Brown and Forsythe), two-sided at `SHIFT_LEVEL`.
        """
        x, y = self._arms
        if min(self._n, self._m) < STUDENTISE_FROM:
            return False
        deviations = [np.abs(arm - np.median(arm, axis=-1, keepdims=True)) for arm in (x, y)]
        spread = TwoSample(*deviations, permutations=min(self.permutations, 999), seed=0)
        return bool(np.all(spread.p_value("two-sided") <= SHIFT_LEVEL))

    def _difference_and_variance(self, shift: ArrayLike, which: slice) -> tuple[Floats, Floats]:
        """Studentised differences and standard errors of the chosen assignments."""
        n, m = self._n, self._m
        delta = np.asarray(shift, float)[..., None]
        moved = self._treated_picked[which]
        first, second, treated = (values[..., which] for values in self._sums)
        picked = first - delta * moved
        picked_squares = second - 2 * delta * treated + delta**2 * moved
        rest = self._totals[0] - delta * n - picked
        rest_squares = self._totals[1] - 2 * delta * self._totals[2] + delta**2 * n - picked_squares
        if min(n, m) >= STUDENTISE_FROM:
            variance = (picked_squares - picked**2 / n) / (n * (n - 1)) + (rest_squares - rest**2 / m) / (m * (m - 1))
        else:  # the variance of everyone together is the same in every assignment
            everyone = picked_squares + rest_squares - (picked + rest) ** 2 / (n + m)
            variance = everyone / max(n + m - 1, 1) * (1 / n + 1 / m)
        error = np.sqrt(np.maximum(variance, self._floor))
        return (picked / n - rest / m) / error, error


class OneSample(PermutationTest):
    """Mean of one arm, flipping the signs of its deviations from `shift` (which must be their centre of symmetry).

    Statistic: `mean(sign * (x - shift))` over its root mean square, which no flip changes.

    Args:
        values: `[..., n]`.
        permutations: Monte-Carlo draws if `2^n` exceeds `ENUMERATION_LIMIT`.
        seed: seed of those draws.
    """

    def __init__(self, values: ArrayLike, *, permutations: int = 9_999, seed: int = 0) -> None:
        x = np.asarray(values, float)
        self._n = x.shape[-1]
        self.estimate = np.asarray(x.mean(-1))
        self._floor = (_RELATIVE_FLOOR * np.abs(x).max(-1, keepdims=True)) ** 2 + np.finfo(float).tiny
        self._reach = 100 * np.ptp(x, axis=-1) + 1e-6
        kept, self.exact = _sign_flips(self._n, permutations, seed)
        self.permutations = len(kept)
        self._values = x
        self._signed_sum = 2 * _picked_sums(x, kept) - x.sum(-1, keepdims=True)
        self._sign_sum = 2.0 * kept.sum(1) - self._n

    def _statistics(self, shift: ArrayLike) -> Floats:
        delta = np.asarray(shift, float)[..., None]
        return (self._signed_sum - delta * self._sign_sum) / self._n / self._root_mean_square(delta)

    def _standard_error(self) -> Floats:
        return self._root_mean_square(np.zeros(1))[..., 0]

    def _root_mean_square(self, delta: Floats) -> Floats:
        return np.sqrt(np.maximum(np.mean((self._values - delta) ** 2, axis=-1, keepdims=True), self._floor))


def known_mean(values: ArrayLike, axis: int | tuple[int, ...] | None = None) -> Any:
    """Mean of the values that are finite, over all axes or some; NaN where none is."""
    array = np.asarray(values, dtype=np.float64)
    known = np.isfinite(array)
    with np.errstate(invalid="ignore"):
        return np.where(known, array, 0).sum(axis) / known.sum(axis)


def smallest_p_value(n: int, m: int | None = None) -> float:
    """The smallest one-sided p-value that two arms of `n` and `m` images (or one arm of `n`) can give."""
    return 1 / (2**n if m is None else comb(n + m, n))


def benjamini_yekutieli(p_values: ArrayLike) -> Floats:
    """p-values adjusted for the number of owners, whatever the dependence between them.

    Source: Benjamini and Yekutieli, "The control of the false discovery rate in multiple testing under dependency"
    (2001).
    """
    return np.asarray(false_discovery_control(np.asarray(p_values, float), method="by"))


@lru_cache(maxsize=8)
def _assignments(n: int, m: int, permutations: int, seed: int) -> tuple[NDArray[np.bool_], bool]:
    """Which images each re-assignment calls treated, `[N, n + m]`; the observed one (the first n) leads."""
    if (count := comb(n + m, n)) <= ENUMERATION_LIMIT:
        picks = np.zeros((count, n + m), bool)
        chosen = np.array(list(itertools.combinations(range(n + m), n)))
        np.put_along_axis(picks, chosen, True, axis=1)
        return picks, True
    picks = np.tile(np.arange(n + m) < n, (permutations + 1, 1))
    picks[1:] = np.random.default_rng(seed).permuted(picks[1:], axis=1)
    return picks, False


@lru_cache(maxsize=8)
def _sign_flips(n: int, permutations: int, seed: int) -> tuple[NDArray[np.bool_], bool]:
    """Which signs are kept, `[N, n]`; the observed signs come first."""
    if 2**n <= ENUMERATION_LIMIT:
        return np.array(list(itertools.product([True, False], repeat=n))), True
    kept = np.random.default_rng(seed).random((permutations + 1, n)) < 0.5
    kept[0] = True
    return kept, False


def _picked_sums(values: Floats, picks: NDArray[np.bool_]) -> Floats:
    """`values @ picks.T`, a slice of picks at a time so that thousands of images fit in memory."""
    step = max(1, 4_000_000 // picks.shape[1])
    slices = (picks[start : start + step] for start in range(0, len(picks), step))
    return np.concatenate([values @ part.T.astype(float) for part in slices], axis=-1)
