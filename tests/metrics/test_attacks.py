import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.attacks import fitting_scores, membership_attack, roc_auc, tpr_at_fpr


def auc_by_pairs(positives: np.ndarray, negatives: np.ndarray) -> float:
    return float(np.mean([(p > n) + 0.5 * (p == n) for p in positives for n in negatives]))


def tpr_by_search(positives: np.ndarray, negatives: np.ndarray, fpr: float) -> float:
    rates = [0.0]
    for threshold in np.concatenate([positives, negatives]):
        if sum(n >= threshold for n in negatives) <= fpr * len(negatives) + 1e-9:
            rates.append(sum(p >= threshold for p in positives) / len(positives))
    return max(rates)


@pytest.mark.parametrize("digits", [1, 8])  # with and without ties
@pytest.mark.parametrize("seed", range(3))
def test_auc_and_tpr_equal_brute_force(digits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    positives, negatives = np.round(rng.normal(0.5, 1, 37), digits), np.round(rng.normal(size=101), digits)
    assert roc_auc(positives, negatives) == pytest.approx(auc_by_pairs(positives, negatives), abs=1e-12)
    for fpr in (0.0, 0.01, 0.05, 0.29, 1.0):
        assert tpr_at_fpr(positives, negatives, fpr) == tpr_by_search(positives, negatives, fpr)


def test_auc_and_tpr_equal_sklearn() -> None:
    rng = np.random.default_rng(3)
    positives, negatives = np.round(rng.normal(1, 1, 500), 2), np.round(rng.normal(size=700), 2)
    truth = np.r_[np.ones(500), np.zeros(700)]
    scores = np.r_[positives, negatives]
    assert roc_auc(positives, negatives) == pytest.approx(roc_auc_score(truth, scores))
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert tpr_at_fpr(positives, negatives) == tpr[fpr <= 0.01 + 1e-12].max()


def test_allowed_false_positives_survive_floating_point() -> None:
    negatives = np.arange(100.0)
    assert 0.29 * 100 < 29
    assert tpr_at_fpr([71.0], negatives, 0.29) == 1  # 29 negatives reach 71
    assert tpr_at_fpr([70.0], negatives, 0.29) == 0


def test_over_forgetting_lies_on_the_other_side_of_test() -> None:
    test = np.linspace(0, 1, 200)
    members, over = test + 0.5, test - 0.5
    remembered = membership_attack(members, members, test, (members, test), lambda scores: scores >= 0.75)
    forgotten = membership_attack(members, test, test, (members, test), lambda scores: scores >= 0.75)
    overshot = membership_attack(members, over, test, (members, test), lambda scores: scores >= 0.75)
    assert remembered.efficacy < forgotten.efficacy < overshot.efficacy
    assert remembered.distance < 0 == forgotten.distance < overshot.distance
    assert remembered.auc == remembered.signal_auc > 50 > overshot.auc
    assert forgotten.auc == pytest.approx(50)


def test_unusable_scores_are_refused() -> None:
    with pytest.raises(UserError, match="positives: sample 1"):
        roc_auc([0.0, math.nan], [0.0])
    with pytest.raises(UserError, match="negatives: expected a non-empty"):
        tpr_at_fpr([0.0], [])
    with pytest.raises(UserError, match=r"from 0 to 1, got 1\.5"):
        tpr_at_fpr([0.0], [0.0], 1.5)


def test_fitting_scores_are_a_draw_that_the_order_of_rows_does_not_change() -> None:
    rng = np.random.default_rng(0)
    retain, test = rng.normal(1, 1, 400), rng.normal(size=90)
    drawn = fitting_scores(retain, test)
    assert [len(side) for side in drawn] == [90, 90]
    assert set(drawn[0]) <= set(retain) and len(set(drawn[0])) == 90 and sorted(drawn[1]) == sorted(test)
    for retain_order, test_order in ((np.sort(retain), np.sort(test)[::-1]), (rng.permutation(retain), test)):
        for side, again in zip(drawn, fitting_scores(retain_order, test_order), strict=True):
            np.testing.assert_array_equal(side, again)


def test_fitting_scores_of_rows_in_classes_are_of_every_class() -> None:
    classes = np.repeat(np.arange(10.0), 100)  # sorted, as image folders are
    members, _ = fitting_scores(classes, np.arange(200.0))
    counts = np.bincount(members.astype(int), minlength=10)
    assert counts.sum() == 200 and counts.min() >= 8 and counts.max() <= 35  # 20 of each on average, sd 4


def test_no_more_than_so_many_are_fitted_on() -> None:
    members, non_members = fitting_scores(np.arange(50.0), np.arange(60.0), most=7)
    assert len(members) == len(non_members) == 7
    assert sorted(members) != sorted(non_members), "two draws, not the same places of both"


def test_accuracy_is_of_the_samples_fitted_on_alone() -> None:
    fitted_on = np.array([0.9, 0.1]), np.array([0.2, 0.8])  # one of each is taken for the other
    test = np.array([0.2, 0.3, 0.4, 0.8, 0.95])
    result = membership_attack(np.array([0.9, 0.1, 0.1]), test, test, fitted_on, lambda scores: scores >= 0.5)
    assert result.accuracy == 50
    assert result.efficacy == pytest.approx(60) and result.distance == 0
