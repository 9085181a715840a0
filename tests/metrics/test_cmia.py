import sys

import numpy as np
import pytest
from sklearn.svm import SVC

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.attacks import fitting_scores
from hf_unlearn.metrics.cmia import cmia, fitted_note

module = sys.modules["hf_unlearn.metrics.cmia"]  # whose name in the package is the function's


def decisions(retain: np.ndarray, test: np.ndarray, queries: np.ndarray) -> list[float]:
    """The SVC's decision on each query, summed up kernel by kernel from its support vectors."""
    fitted_on = fitting_scores(retain, test)
    x, size = np.concatenate(fitted_on), len(fitted_on[0])
    svc = SVC(C=3, kernel="rbf", gamma=1.0).fit(x.reshape(-1, 1), [1] * size + [0] * size)
    vectors, weights = x[svc.support_], svc.dual_coef_[0]
    return [
        sum(w * np.exp(-((q - v) ** 2)) for w, v in zip(weights, vectors, strict=True)) + svc.intercept_[0]
        for q in queries
    ]


@pytest.mark.parametrize("sizes", [(150, 70, 90), (60, 70, 90)])
@pytest.mark.parametrize("seed", range(3))
def test_efficacy_equals_brute_force_exactly(seed: int, sizes: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    retain, unlearn, test = (
        1 / (1 + np.exp(-rng.normal(mean, 2, n))) for mean, n in zip((2, 1.5, 1), sizes, strict=True)
    )
    result = cmia(retain, unlearn, test)
    share = 100 * np.mean([d <= 0 for d in decisions(retain, test, unlearn)])
    of_test = 100 * np.mean([d <= 0 for d in decisions(retain, test, test)])
    assert result.efficacy == pytest.approx(share, abs=1e-12)
    assert result.distance == pytest.approx(share - of_test, abs=1e-12)


def test_certain_members_and_uncertain_others() -> None:
    rng = np.random.default_rng(0)
    retain, test = rng.uniform(0.9, 1, 50), rng.uniform(0, 0.4, 50)
    kept, forgotten = cmia(retain, retain, test), cmia(retain, test, test)
    assert (kept.efficacy, kept.distance, kept.auc, kept.accuracy) == (0, -100, 100, 100)
    assert (forgotten.efficacy, forgotten.distance, forgotten.auc, forgotten.signal_auc) == (100, 0, 50, 100)


def test_only_probabilities_are_confidences() -> None:
    with pytest.raises(UserError, match=r"confidence of unlearn: sample 1 is 1\.5"):
        cmia([0.9], [0.1, 1.5], [0.2])
    with pytest.raises(UserError, match="confidence of test: sample 0 is NaN"):
        cmia([0.9], [0.1], [np.nan])


def test_many_samples_are_fitted_on_a_draw_and_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    retain, unlearn, test = (1 / (1 + np.exp(-rng.normal(mean, 2, 300))) for mean in (2, 1.5, 1))
    whole = cmia(retain, unlearn, test)
    assert fitted_note(300, 300) is None
    monkeypatch.setattr(module, "MOST_FITTED", 300)
    assert cmia(retain, unlearn, test) == whole, "up to the limit, every digit stays"
    monkeypatch.setattr(module, "MOST_FITTED", 100)
    some = cmia(retain, unlearn, test)
    assert some.auc == whole.auc and some.efficacy == pytest.approx(whole.efficacy, abs=10) and some != whole
    assert "100 of 300 members and 100 of 300 non-members" in (fitted_note(300, 300) or "")


def test_the_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    retain, unlearn, test = (
        np.sort(1 / (1 + np.exp(-rng.normal(mean, 2, n)))) for mean, n in ((2, 250), (1, 60), (1, 80))
    )
    assert cmia(retain, unlearn, test) == cmia(rng.permutation(retain), unlearn, rng.permutation(test))
