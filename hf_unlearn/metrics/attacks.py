"""What the membership attacks share: their result, ROC AUC and the true-positive rate at a low false-positive rate."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._checks import Array, Scores, check_scores

FITTING_SEED = 2406  # the same draw for every model, whatever the run's seed


@dataclass(frozen=True)
class MembershipAttack:
    """Outcome of a membership attack that was fitted on retain members against test non-members; all in percent.

    The efficacy alone rewards over-forgetting: it is highest when every unlearn sample looks less like a member than
    unseen data does. `distance` and `auc` show on which side of the non-members the unlearn samples lie.

    Attributes:
        efficacy: Share of unlearn samples predicted to be non-members (Eqs. 6 and 7).
        distance: `efficacy` minus the same share of the test samples: below 0 the unlearn samples still look like
            members, above 0 they look less like members than unseen data (over-forgetting), at 0 like unseen data.
        auc: Area under the ROC curve of unlearn (as members) against test: 50 when the attack cannot tell them apart,
            below 50 when over-forgotten.
        tpr_at_1_fpr: Share of unlearn samples recognised as members where at most 1% of test is mistaken for one.
        signal_auc: As `auc` for retain against test: whether the attack sees membership at all.
        signal_tpr_at_1_fpr: As `tpr_at_1_fpr` for retain against test.
        accuracy: Accuracy of the attack on the members and non-members it was fitted on.
    """

    efficacy: float
    distance: float
    auc: float
    tpr_at_1_fpr: float
    signal_auc: float
    signal_tpr_at_1_fpr: float
    accuracy: float


def midranks(scores: Scores) -> Scores:
    """Ranks from 1; equal scores share the mean of the ranks they take up. (`scipy.stats` takes a second to import.)

    Example:
        >>> midranks(np.array([0.3, 0.1, 0.3, 0.9])).tolist()
        [2.5, 1.0, 2.5, 4.0]
    """
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[group]


def roc_auc(positives: Array, negatives: Array) -> float:
    """Probability that a positive scores above a negative, ties counting one half.

    `AUC = (sum of the positives' midranks - p (p + 1) / 2) / (p q)`

    Args:
        positives: `[p]` scores.
        negatives: `[q]` scores.

    Returns:
        The area under the ROC curve, from 0 to 1.

    Raises:
        UserError: A side is empty or holds a NaN or an infinity.

    Example:
        >>> roc_auc([0.9, 0.5], [0.5, 0.1])
        0.875
    """
    members, others = check_scores(positives, "positives"), check_scores(negatives, "negatives")
    p, q = len(members), len(others)
    ranks = midranks(np.concatenate([members, others]))[:p]
    return float((ranks.sum() - p * (p + 1) / 2) / (p * q))


def tpr_at_fpr(positives: Array, negatives: Array, fpr: float = 0.01) -> float:
    """Largest share of positives at or above a threshold that at most a share `fpr` of the negatives reaches.

    The ROC curve is not interpolated: with fewer than `1 / fpr` negatives none may reach the threshold.

    Args:
        positives: `[p]` scores.
        negatives: `[q]` scores.
        fpr: Allowed false-positive rate, from 0 to 1.

    Returns:
        The true-positive rate, from 0 to 1.

    Raises:
        UserError: A side is empty or holds a NaN or an infinity, or `fpr` is no rate.

    Source: Carlini et al., "Membership Inference Attacks From First Principles", arXiv 2112.03570, Section IV.

    Example:
        >>> tpr_at_fpr([0.9, 0.7, 0.2], [0.8, 0.1], fpr=0.5)
        1.0
        >>> round(tpr_at_fpr([0.9, 0.7, 0.2], [0.8, 0.1], fpr=0.01), 3)
        0.333
    """
    if not 0 <= fpr <= 1:
        raise UserError(f"fpr: a false-positive rate lies from 0 to 1, got {fpr}")
    members, others = check_scores(positives, "positives"), check_scores(negatives, "negatives")
    allowed = int(fpr * len(others) + 1e-9)  # .29 * 100 is 28.999999999999996 in floating point
    if allowed == len(others):
        return 1.0
    first_refused = np.sort(others)[::-1][allowed]
    return float((members > first_refused).mean())


def fitting_scores(retain: Scores, test: Scores, most: int | None = None) -> tuple[Scores, Scores]:
    """As many members as non-members: seeded draws that do not depend on the order of the rows.

    Rows may come sorted, by class say, so that the first ones are no sample of them. Scores are therefore put in order
    and then permuted by a fixed seed, of which the first `size = min(r, t, most)` are taken.

    Args:
        retain: `[r]` scores of members.
        test: `[t]` scores of non-members.
        most: Most of each; by default all of the smaller set.

    Returns:
        `[size]` scores of members, `[size]` of non-members.
    """
    size = min(len(retain), len(test), most or len(test))
    draws = (
        np.random.default_rng([FITTING_SEED, side]).permutation(np.sort(s)) for side, s in enumerate((retain, test))
    )
    members, non_members = (drawn[:size] for drawn in draws)
    return members, non_members


def membership_attack(
    retain: Scores,
    unlearn: Scores,
    test: Scores,
    fitted_on: tuple[Scores, Scores],
    is_member: Callable[[Scores], npt.NDArray[np.bool_]],
) -> MembershipAttack:
    """Measures a fitted attack whose prediction is `is_member` and whose score is higher for members.

    Args:
        retain: `[r]` scores of members.
        unlearn: `[u]` scores of the unlearn samples.
        test: `[t]` scores of non-members.
        fitted_on: The members and non-members that the attack was fitted on (`fitting_scores`).
        is_member: From scores to whether each is taken for a member's.

    Returns:
        The attack's outcome, in percent.
    """
    members, non_members = fitted_on
    # One call: a support vector machine's prediction costs as much as its fit.
    parts = (unlearn, test, members, non_members)
    said = np.split(is_member(np.concatenate(parts)), np.cumsum([len(part) for part in parts])[:-1])
    of_unlearn, of_test, of_members, of_non_members = said
    efficacy = 100 * float((~of_unlearn).mean())
    right = int(of_members.sum()) + int((~of_non_members).sum())
    return MembershipAttack(
        efficacy=efficacy,
        distance=efficacy - 100 * float((~of_test).mean()),
        auc=100 * roc_auc(unlearn, test),
        tpr_at_1_fpr=100 * tpr_at_fpr(unlearn, test),
        signal_auc=100 * roc_auc(retain, test),
        signal_tpr_at_1_fpr=100 * tpr_at_fpr(retain, test),
        accuracy=100 * right / (len(members) + len(non_members)),
    )
