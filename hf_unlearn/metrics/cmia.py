"""CMIA: classifier membership inference from the confidence of encoder and probe (Eq. 6 of arXiv 2406.03603)."""

import numpy as np
import numpy.typing as npt

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._checks import Array, Scores, check_scores
from hf_unlearn.metrics.attacks import MembershipAttack, fitting_scores, membership_attack

MOST_FITTED = 5_000
"""Members, and as many non-members, that the classifier is fitted on at most."""

_TERMS = 32


def cmia(retain: Array, unlearn: Array, test: Array) -> MembershipAttack:
    """Confidence-based attack on encoder and linear probe: how many unlearn samples look like non-members.

    `CMIA-efficacy = #{unlearn samples predicted non-member} / |D_unlearn|`, predicted by a support vector classifier
    (C = 3, RBF kernel, gamma "auto") of the true-class confidence, fitted on as many retain members as test
    non-members: all of the smaller set, at most 5,000, and a seeded draw from the other, whatever the order of the rows
    (`fitting_scores`). AUC and TPR rank samples by the confidence itself.

    The classifier is libsvm's, to its own tolerance: another solver of the same problem moves its boundary and with it
    the efficacy. An RBF classifier of one feature is no threshold, so there is no shortcut by sorting; time grows with
    the square of the samples. 5,000 members against 5,000 non-members take about 2 s on one core, 10,000 of each 20 s.

    Args:
        retain: `[r]` probe's probability of the true class, in [0, 1], of retain samples.
        unlearn: `[u]` the same for the unlearn samples.
        test: `[t]` the same for unseen samples.

    Returns:
        Efficacy, two-sided distance from test, AUC and TPR at 1% FPR, in percent.

    Raises:
        UserError: A set is empty or a confidence is not in [0, 1].

    Source: arXiv 2406.03603, Eq. 6 and Appendix A.3; Song and Mittal, "Systematic Evaluation of Privacy Risks of
    Machine Learning Models", arXiv 2003.10595.

    Example:
        >>> result = cmia(retain=[0.9, 0.95, 0.99], unlearn=[0.97, 0.1], test=[0.1, 0.2, 0.3])
        >>> result.efficacy, result.signal_auc
        (50.0, 100.0)
    """
    from sklearn.svm import SVC  # a second to import, which the other metrics do without

    kept, forgotten, unseen = (
        _confidence(values, name) for name, values in (("retain", retain), ("unlearn", unlearn), ("test", test))
    )
    fitted_on = fitting_scores(kept, unseen, MOST_FITTED)
    attack = SVC(C=3, kernel="rbf", gamma="auto").fit(
        np.concatenate(fitted_on)[:, None], np.repeat([True, False], len(fitted_on[0]))
    )
    support, weights = attack.support_vectors_[:, 0], attack.dual_coef_[0]
    towards_member = weights @ _kernel_features(support)  # a feature's weight in the decision

    def is_member(scores: Scores) -> npt.NDArray[np.bool_]:
        return _kernel_features(scores) @ towards_member + attack.intercept_[0] > 0

    return membership_attack(kept, forgotten, unseen, fitted_on, is_member)


def _kernel_features(scores: Scores) -> Scores:
    """`[n, 32]` features whose inner products are the kernel's values `exp(-(s - t)^2)` of scores in [0, 1].

    `exp(-(s - t)^2) = sum_k phi_k(s) phi_k(t)` with `phi_k(s) = exp(-s^2) s^k sqrt(2^k / k!)`; what is left out after
    32 terms is below 1e-25. So a decision costs 32 products, not one exponential for every support vector.
    """
    order = np.arange(_TERMS)
    scale = np.sqrt(2.0**order / np.cumprod(np.maximum(order, 1.0)))
    return np.exp(-(scores[:, None] ** 2)) * scores[:, None] ** order * scale


def fitted_note(retain: int, test: int) -> str | None:
    """What a reader must know where CMIA's classifier is fitted on some of the samples alone; None where on all it can.

    Args:
        retain: Number of members.
        test: Number of non-members.

    Example:
        >>> fitted_note(45_000, 10_000)
        "CMIA's classifier is fitted on a seeded draw of 5,000 of 45,000 members and 5,000 of 10,000 non-members."
        >>> fitted_note(4_000, 1_000)
    """
    if min(retain, test) <= MOST_FITTED:
        return None
    return (
        f"CMIA's classifier is fitted on a seeded draw of {MOST_FITTED:,} of {retain:,} members and {MOST_FITTED:,} of "
        f"{test:,} non-members."
    )


def _confidence(values: Array, name: str) -> Scores:
    scores = check_scores(values, f"confidence of {name}")
    outside = (scores < 0) | (scores > 1)
    if outside.any():
        first = int(np.argmax(outside))
        raise UserError(f"confidence of {name}: sample {first} is {scores[first]}; a probability lies in [0, 1]")
    return scores
