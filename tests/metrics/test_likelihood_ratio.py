import numpy as np
import pytest
from scipy.stats import norm

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._gaussians import fit_gaussians
from hf_unlearn.metrics.likelihood_ratio import likelihood_ratio_attack


def worlds(seed: int, shift: float = 0.0, spread: float = 1.0, models: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Two ensembles whose samples have centres of their own, much wider apart than seeds differ."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 10, 150)
    retrains, unlearned = rng.normal(size=(2, models, 150))
    return centres + shift + spread * unlearned, centres + retrains


def test_ratios_equal_scipy_on_the_other_models() -> None:
    unlearned, retrains = worlds(0, shift=0.5)
    result = likelihood_ratio_attack(unlearned, retrains)
    (m, v), (p, w) = fit_gaussians(unlearned[[0, 1, 3]]), fit_gaussians(retrains[[0, 1, 3]])
    for side, values in enumerate((unlearned[2], retrains[2])):
        expected = norm.logpdf(values, m, v**0.5) - norm.logpdf(values, p, w**0.5)
        assert np.allclose(result.ratios[2, side], expected)


def test_exact_unlearning_is_not_told_apart() -> None:
    results = [likelihood_ratio_attack(*worlds(seed)) for seed in range(40)]
    aucs = np.array([r.auc for r in results])
    assert aucs.mean() == pytest.approx(50, abs=4 * aucs.std(ddof=1) / 40**0.5)
    assert abs(aucs.mean() - 50) < 1
    assert np.mean([r.tpr_at_1_fpr for r in results]) == pytest.approx(1, abs=0.6)


def test_power_grows_with_shift_and_with_spread() -> None:
    by_shift = [likelihood_ratio_attack(*worlds(1, shift)).auc for shift in (0, 1, 2, 4)]
    assert by_shift == sorted(by_shift) and by_shift[-1] > 97
    assert likelihood_ratio_attack(*worlds(1, spread=0.2)).auc > 75


def test_sees_what_attacks_on_the_population_cannot() -> None:
    from hf_unlearn.metrics.attacks import roc_auc

    unlearned, retrains = worlds(2, shift=3)
    assert 100 * roc_auc(unlearned[0], retrains[0]) < 65 < 90 < likelihood_ratio_attack(unlearned, retrains).auc


def test_unequal_or_small_ensembles_are_refused() -> None:
    unlearned, retrains = worlds(3)
    with pytest.raises(UserError, match="as many Retrains"):
        likelihood_ratio_attack(unlearned, retrains[:3])
    with pytest.raises(UserError, match="3 models are needed"):
        likelihood_ratio_attack(unlearned[:2], retrains[:2])
