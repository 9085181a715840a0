"""What an audit of a given size could see: minimum detectable effects, power curves and sample sizes.

Power is that of the t-test at the level the permutation test really attains (its p-values are multiples of one over the
number of re-assignments), which the simulations in the tests match.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, comb, floor, inf, isfinite

import numpy as np
from numpy.typing import ArrayLike
from statsmodels.stats.power import TTestIndPower, TTestPower

from hf_unlearn.audit.levels import TOLERANCE
from hf_unlearn.records.audit_result import MinimumDetectableEffect

POWER = 0.8
_EFFECTS = {"T1": "a gap before", "T2": "a targeted change", "forgetting_score": "a mean forgetting score"}
_CURVE_POINTS = 41
_CURVE_REACH = 2.0  # the curve ends at twice the minimum detectable effect


def attained_level(n: int, m: int | None = None, level: float = 0.05) -> float:
    """The largest p-value up to `level` that a permutation test of two arms (or sign flips of one) can give; 0 if none.

    >>> round(attained_level(8), 4), attained_level(2, 2)
    (0.0469, 0.0)
    """
    count = 2**n if m is None else comb(n + m, n)
    return floor(level * count + 1e-9) / count if count < 1e12 else level


def power(effect: ArrayLike, n: int, m: int | None = None, level: float = 0.05) -> np.ndarray:
    """Chance that a one-sided test of two arms (or one) finds a true standardised effect.

    Args:
        effect: Cohen's d, at least 0.
        n: images in the treated arm.
        m: images in the control arm; None for one arm against 0.
        level: one-sided level.

    Returns:
        Power in [0, 1], one value an effect.
    """
    effect = np.asarray(effect, float)
    alpha = attained_level(n, m, level)
    if alpha == 0:
        return np.zeros_like(effect)
    if m is None:
        return np.asarray(TTestPower().power(effect, n, alpha, alternative="larger"))
    return np.asarray(TTestIndPower().power(effect, n, alpha, ratio=m / n, alternative="larger"))


@lru_cache(maxsize=256)
def detectable_effect(n: int, m: int | None = None, level: float = 0.05, power: float = POWER) -> float:
    """The standardised effect that a one-sided test finds with the given power; infinite if no effect can be found.

    >>> round(detectable_effect(8, 8), 2), detectable_effect(2, 2)
    (1.31, inf)
    """
    alpha = attained_level(n, m, level)
    if alpha == 0:
        return inf
    if m is None:
        return float(TTestPower().solve_power(nobs=n, alpha=alpha, power=power, alternative="larger"))
    return float(TTestIndPower().solve_power(nobs1=n, ratio=m / n, alpha=alpha, power=power, alternative="larger"))


def images_needed(effect: float, *, arms: int = 2, level: float = 0.05, power: float = POWER) -> int:
    """Images per arm that find a standardised effect with the given power.

    >>> [images_needed(d) for d in (0.025 / 0.081, 0.5, 0.75, 1.0)]
    [131, 51, 23, 14]
    """
    solver = TTestIndPower() if arms == 2 else TTestPower()
    return ceil(solver.solve_power(effect_size=effect, alpha=level, power=power, alternative="larger"))


def level_of_one(level: float, owners: int) -> float:
    """The level that Benjamini-Yekutieli leaves to one of several owners at worst, when no other finds anything.

    `level / (m (1 + 1/2 + ... + 1/m))` for m owners: a p-value up to it passes whatever the others' are.

    >>> level_of_one(0.05, 1), round(level_of_one(0.05, 5), 6)
    (0.05, 0.00438)
    """
    return level / (owners * sum(1 / rank for rank in range(1, owners + 1)))


def minimum_detectable_effect(
    test: str, treated: ArrayLike, control: ArrayLike | None = None, *, level: float = 0.05, owners: int = 1
) -> MinimumDetectableEffect:
    """The smallest effect that these arms find with 80% power, standardised and on the cosine scale.

    `cosine = d * pooled standard deviation`, the standard deviation being that of the arms at hand.

    Args:
        test: the test it is for: `T1`, `T2` or `forgetting_score`.
        treated: values of the treated arm `[n]`.
        control: values of the control arm `[m]`; None for one arm against 0.
        level: one-sided level.
        owners: how many owners the p-values are adjusted over; the power is that at the level left to one of them.

    Returns:
        The effect, the power curve around it, and one sentence.
    """
    arms = [np.asarray(arm, float) for arm in (treated, control) if arm is not None]
    sizes = tuple(len(arm) for arm in arms)
    n, m = sizes[0], sizes[1] if len(sizes) == 2 else None
    level = level_of_one(level, owners)
    standardised = detectable_effect(n, m, level)
    freedom = sum(sizes) - len(sizes)
    std = float(np.sqrt(sum(np.sum((arm - arm.mean()) ** 2) for arm in arms) / freedom)) if freedom else None
    if std is not None and not TOLERANCE <= std < inf:  # what spreads less is rounding: nothing changed
        std = None
    cosine = standardised * std if std is not None and isfinite(standardised) else None
    effects = np.linspace(0, _CURVE_REACH * standardised, _CURVE_POINTS) if cosine is not None else np.zeros(0)
    curve = zip((effects * (std or 0)).tolist(), power(effects, n, m, level).tolist(), strict=True)
    return MinimumDetectableEffect(
        test,
        sizes,
        standardised,
        cosine,
        std,
        level,
        POWER,
        tuple(curve),
        _words(test, sizes, standardised, cosine, level, owners),
    )


def _words(
    test: str, sizes: tuple[int, ...], standardised: float, cosine: float | None, level: float, owners: int
) -> str:
    images = " and ".join(str(size) for size in sizes) + (" image" if sizes == (1,) else " images")
    what = _EFFECTS.get(test, "an effect")
    share = f", which is left to one of {owners} owners at worst" if owners > 1 else ""
    if not isfinite(standardised):
        return (
            f"The minimum detectable effect is not defined: with {images} no effect, however large, could reach "
            f"p ≤ {level:.2g}{share}."
        )
    at = f", at p ≤ {level:.2g}{share}" if owners > 1 else ""
    deviations = f"{standardised:.2f} standard deviations"
    size = deviations if cosine is None else f"{cosine:.3f} in cosine ({deviations})"
    return f"With {images}, {what} of {size} is found in {POWER:.0%} of audits{at}."


def plan_words(requested: int, still_trained: int, audits: int = 1, level: float = 0.05) -> tuple[str, ...]:
    """What an audit of a planned request could see, said before anything is asked for.

    Args:
        requested: pictures in the requested half; near-duplicates count as one.
        still_trained: pictures in the other half.
        audits: how many audits are planned.
        level: the level they share.

    Returns:
        A few sentences.
    """
    share = level / audits
    effect = detectable_effect(requested, still_trained, share)
    found = [
        f"These count as {requested} and {still_trained} pictures. "
        + (
            f"A change directed at the requested ones is found in {POWER:.0%} of audits if it is {effect:.1f} times as "
            "large as the pictures' own spread."
            if isfinite(effect)
            else f"With so few no change, however large, could reach p ≤ {share:.2g}; add pictures."
        )
    ]
    if audits > 1:
        found.append(
            f"Each of the {audits} planned audits is tested at {share:.3g}, so that all together keep {level:g}."
        )
    sizes = ", ".join(f"{images_needed(size, level=share)} for {size:g}" for size in (0.5, 1.0, 2.0))
    found.append(
        f"Pictures needed in each half, by the size of the change in spreads: {sizes}. To say that nothing is left "
        "takes as many pictures that never were in training."
    )
    found.append(
        "Small models trained for many epochs change by two or three spreads. Models trained on hundreds of millions "
        "of pairs, each seen a few times, leave almost no trace of one picture in their answers: expect INCONCLUSIVE "
        "there."
    )
    return tuple(found)
