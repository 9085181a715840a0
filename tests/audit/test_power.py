"""Power figures against the published ones, closed forms and simulated tests."""

import math

import numpy as np
import pytest
from audit_simulation import PAPER_MEAN, PAPER_STD
from scipy import stats

from hf_unlearn.audit.power import (
    attained_level,
    detectable_effect,
    images_needed,
    level_of_one,
    minimum_detectable_effect,
    power,
)
from hf_unlearn.audit.statistics import OneSample, TwoSample, benjamini_yekutieli


def test_images_per_arm() -> None:
    """d = .31 of the page is .025 / .081 = .3086; at .31 sharp 130 images do."""
    effects = (PAPER_MEAN / PAPER_STD, 0.5, 0.75, 1.0)
    assert [images_needed(effect) for effect in effects] == [131, 51, 23, 14]
    assert images_needed(0.31) == 130


def test_the_naive_audit_at_eight_images() -> None:
    """Exact retraining with the paper's figures: 19% of owners see no forgetting, a sign-flip test finds it for 18%."""
    assert stats.norm.cdf(-PAPER_MEAN / PAPER_STD * math.sqrt(8)) == pytest.approx(0.19, abs=0.005)
    scores = np.random.default_rng(0).normal(PAPER_MEAN, PAPER_STD, (8_000, 8))
    assert np.mean(scores.mean(1) <= 0) == pytest.approx(0.19, abs=0.015)
    found = np.mean(OneSample(scores).p_value("greater") <= 0.05)
    assert found == pytest.approx(0.18, abs=0.015)
    assert found == pytest.approx(power(PAPER_MEAN / PAPER_STD, 8), abs=0.015)
    assert images_needed(PAPER_MEAN / PAPER_STD, arms=1) == 67


def test_power_is_that_of_the_noncentral_t() -> None:
    n, m, effect = 9, 14, 0.8
    critical = stats.t.isf(attained_level(n, m), n + m - 2)
    expected = stats.nct.sf(critical, n + m - 2, effect * math.sqrt(n * m / (n + m)))
    assert power(effect, n, m) == pytest.approx(expected, abs=1e-6)
    assert power(detectable_effect(n, m), n, m) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize(("n", "m"), [(4, 4), (6, 6), (4, 12)])
def test_the_permutation_test_has_the_promised_power(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    treated, control = rng.normal(detectable_effect(n, m), 1, (600, n)), rng.normal(0, 1, (600, m))
    found = np.mean(TwoSample(treated, control).p_value("greater") <= 0.05)
    assert found == pytest.approx(0.8, abs=0.06)


def test_sizes_that_can_never_be_significant_have_no_finite_effect() -> None:
    assert attained_level(2, 2) == attained_level(4) == 0
    assert attained_level(3, 3) == 0.05
    assert detectable_effect(1) == detectable_effect(2, 2) == math.inf
    assert math.isfinite(detectable_effect(1, 19))
    effect = minimum_detectable_effect("forgetting_score", [0.1])
    assert effect.cosine is None and effect.curve == ()
    assert "not defined" in effect.words and "1 image " in effect.words


def test_the_cosine_scale_uses_the_pooled_standard_deviation() -> None:
    treated, control = np.array([0.1, 0.3, 0.2, 0.4]), np.array([0.0, 0.1, 0.0, 0.1, 0.2])
    effect = minimum_detectable_effect("T2", treated, control)
    pooled = math.sqrt((3 * treated.var(ddof=1) + 4 * control.var(ddof=1)) / 7)
    assert effect.pooled_std == pytest.approx(pooled)
    assert effect.cosine == pytest.approx(pooled * detectable_effect(4, 5))
    assert f"{effect.cosine:.3f} in cosine" in effect.words
    found = dict(effect.curve)
    assert effect.curve[0] == (0.0, pytest.approx(attained_level(4, 5)))
    assert min(found.values(), key=lambda value: abs(value - 0.8)) == pytest.approx(0.8)
    assert list(found.values()) == sorted(found.values())


def test_unusable_values_leave_the_standardised_effect() -> None:
    effect = minimum_detectable_effect("T2", [math.nan] * 8, [math.nan] * 8)
    assert effect.standardised == pytest.approx(1.31, abs=0.005)
    assert effect.cosine is None and effect.pooled_std is None
    assert "1.31 standard deviations" in effect.words


def test_the_level_of_one_owner_is_where_its_p_value_passes_alone() -> None:
    for owners in (1, 2, 12, 300):
        level = level_of_one(0.05, owners)
        others = [1.0] * (owners - 1)
        assert (
            benjamini_yekutieli([level * 0.999, *others])[0] <= 0.05 < benjamini_yekutieli([level * 1.001, *others])[0]
        )


def test_with_several_owners_the_effect_is_found_at_the_adjusted_level() -> None:
    """The promise is kept where the verdict looks: at the p-value after adjustment."""
    rng, owners, n = np.random.default_rng(1), 5, 12
    effect = minimum_detectable_effect("T2", rng.normal(0, 1, n), rng.normal(0, 1, n), owners=owners)
    assert effect.level == pytest.approx(level_of_one(0.05, owners)) and effect.standardised > detectable_effect(n, n)
    assert "at p ≤ 0.0044, which is left to one of 5 owners at worst" in effect.words
    treated, control = rng.normal(effect.standardised, 1, (400, n)), rng.normal(0, 1, (400, n))
    p_values = TwoSample(treated, control, permutations=1_999).p_value("greater")
    adjusted = [benjamini_yekutieli([p_value, 1, 1, 1, 1])[0] for p_value in p_values]
    assert np.mean(np.array(adjusted) <= 0.05) == pytest.approx(0.8, abs=0.07)
    alone = minimum_detectable_effect("forgetting_score", [0.1, 0.2], owners=3)
    assert "could reach p ≤ 0.0091, which is left to one of 3 owners at worst." in alone.words


def test_large_arms_do_not_overflow() -> None:
    assert 0 < detectable_effect(5_000, 5_000) < 0.06


def test_a_spread_of_rounding_gives_no_size_in_cosine() -> None:
    """Where nothing changed, "a targeted change of 0.000 is found" would be nonsense."""
    effect = minimum_detectable_effect("T2", np.full(6, 1e-6), np.arange(6) * 1e-6)
    assert effect.cosine is None and not effect.curve and "0.000" not in effect.words
