"""A likelihood-ratio attack for every sample: can "unlearned" be told from "never trained on" with shadow ensembles?"""

from dataclasses import dataclass, field

import numpy as np

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._checks import Array, Scores, check_same_length
from hf_unlearn.metrics._gaussians import check_ensemble, fit_gaussians
from hf_unlearn.metrics.attacks import roc_auc, tpr_at_fpr


@dataclass(frozen=True, eq=False)
class LikelihoodRatioAttack:
    """How well the attack tells unlearned models from Retrains; shares in percent.

    Attributes:
        auc: Area under the ROC curve over samples, mean over folds: 50 when nothing is left to see.
        tpr_at_1_fpr: Share recognised where at most 1% of Retrain's is mistaken, mean over folds: 1 by guessing.
        ratios: `[folds, 2, n]` log likelihood ratios of the unlearned model and the Retrain that each fold held out.
    """

    auc: float
    tpr_at_1_fpr: float
    ratios: Scores = field(repr=False)


def likelihood_ratio_attack(unlearned: Array, retrains: Array) -> LikelihoodRatioAttack:
    """U-LiRA with leave-one-out: the attacker knows how each sample ends under other seeds of both worlds.

    `r_i(a) = log N(a; m_U,i, v_U,i) - log N(a; m_R,i, v_R,i)`: fold k fits both Gaussians of every sample without the
    k-th unlearned model and the k-th Retrain, then scores the alignments of these two. As the held-out models are
    exchangeable if unlearning is exact, the expected AUC is then exactly 50.

    Deviations: alignments instead of logits; the out-world is exact Retrains; samples were all unlearned in one
    request, from one base model, so the in-world's Gaussians vary over seeds of unlearning alone. That knows more than
    the source's attacker and only makes the test harder to pass. Variances borrow from all samples (`fit_gaussians`).

    Args:
        unlearned: `[k, n]` alignments of the unlearn samples under k >= 3 unlearned models of different seeds.
        retrains: `[k, n]` the same under as many Retrains.

    Returns:
        AUC and TPR at 1% FPR over the samples of a held-out model, averaged over folds.

    Raises:
        UserError: There are fewer than three models a side or not equally many, or an alignment is NaN or infinite.

    Source: Hayes et al., arXiv 2403.01218 (U-LiRA); Carlini et al., arXiv 2112.03570 (LiRA).

    Example:
        >>> retrains = np.random.default_rng(0).normal(size=(4, 100))
        >>> likelihood_ratio_attack(retrains + 9, retrains).auc
        100.0
    """
    ours, theirs = check_ensemble(unlearned, "unlearned", least=3), check_ensemble(retrains, "retrains", least=3)
    check_same_length(unlearned=ours.T, retrains=theirs.T)
    if len(ours) != len(theirs):
        raise UserError(f"as many Retrains as unlearned models are needed, got {len(theirs)} and {len(ours)}")
    folds = []
    for k in range(len(ours)):
        in_world, out_world = (fit_gaussians(np.delete(side, k, axis=0)) for side in (ours, theirs))
        folds.append([_log_density(a, *in_world) - _log_density(a, *out_world) for a in (ours[k], theirs[k])])
    return LikelihoodRatioAttack(
        auc=100 * float(np.mean([roc_auc(ours, theirs) for ours, theirs in folds])),
        tpr_at_1_fpr=100 * float(np.mean([tpr_at_fpr(ours, theirs) for ours, theirs in folds])),
        ratios=np.array(folds),
    )


def _log_density(values: Scores, mean: Scores, variance: Scores) -> Scores:
    return -((values - mean) ** 2 / variance + np.log(2 * np.pi * variance)) / 2
