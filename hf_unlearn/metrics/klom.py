"""KLoM: is each sample's outcome, over random seeds, distributed as retraining would distribute it?"""

from dataclasses import dataclass, field

import numpy as np

from hf_unlearn.metrics._checks import Array, Scores, check_same_length
from hf_unlearn.metrics._gaussians import check_ensemble, fit_gaussians


@dataclass(frozen=True, eq=False)
class Klom:
    """KL divergence of each sample's alignment under Retrain from that under the unlearned models, in nats.

    Attributes:
        mean: Mean over samples; 0 when the two ensembles cannot be told apart.
        percentile_95: 95th percentile over samples: a method may be right for most and wrong for some.
        shift: The part of `mean` that differing means make, the variances given; the rest is differing spread.
        per_sample: `[n]`.
    """

    mean: float
    percentile_95: float
    shift: float
    per_sample: Scores = field(repr=False)


def klom(unlearned: Array, retrains: Array) -> Klom:
    """KL divergence of margins between an ensemble of Retrains and one of unlearned models, sample by sample.

    `KLoM_i = KL(N(m_R, v_R) || N(m_U, v_U)) = (log(v_U / v_R) + v_R / v_U - 1) / 2 + (m_R - m_U)^2 / (2 v_U)`, where
    means and variances of sample i's alignment are over the models of each ensemble.

    Deviations: the margin of a classifier becomes the sample's alignment; the histogram of 20 bins over a hundred
    models becomes a Gaussian whose variance borrows from all samples (`fit_gaussians`), so that 4 to 8 models do. The
    source unlearns from many base models; unlearned models of one base spread less than Retrains do, which counts
    against them here. Few models make even two ensembles of Retrains differ: compare with `klom` of two halves of the
    Retrains, never with 0.

    Args:
        unlearned: `[m, n]` alignments of n samples under m >= 2 unlearned models of different seeds.
        retrains: `[k, n]` of the same samples under k >= 2 Retrains.

    Returns:
        Mean, 95th percentile and the divergence of every sample.

    Raises:
        UserError: An ensemble has fewer than two models, holds a NaN, or the samples differ in number.

    Source: Georgiev et al., "Attribute-to-Delete", arXiv 2410.23232, Appendix E.1.

    Example:
        >>> retrains = [[0.1, 0.3], [0.3, 0.5]]
        >>> klom(retrains, retrains).mean
        0.0
        >>> round(klom([[0.3, 0.5], [0.5, 0.7]], retrains).mean, 6)  # both means one standard deviation * sqrt(2) off
        1.0
    """
    ours, theirs = check_ensemble(unlearned, "unlearned", least=2), check_ensemble(retrains, "retrains", least=2)
    check_same_length(unlearned=ours.T, retrains=theirs.T)
    mean, variance = fit_gaussians(ours)
    mean_retrain, variance_retrain = fit_gaussians(theirs)
    ratio = variance_retrain / variance
    shift = (mean_retrain - mean) ** 2 / (2 * variance)
    per_sample = (ratio - 1 - np.log(ratio)) / 2 + shift
    return Klom(float(per_sample.mean()), float(np.percentile(per_sample, 95)), float(shift.mean()), per_sample)
