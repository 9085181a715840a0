"""One Gaussian a sample over a handful of models: what the ensemble attacks fit where histograms would be empty."""

import numpy as np

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._checks import Array, Scores, check_scores

PRIOR_WEIGHT = 4.0
"""Degrees of freedom that the variance pooled over samples counts as beside a sample's own."""


def check_ensemble(scores: Array, name: str, least: int = 1) -> Scores:
    """Returns `scores [k, n]`, one row a model and one column a sample, as float64.

    Raises:
        UserError: `scores` is no matrix, holds a NaN or an infinity, or has fewer than `least` models.
    """
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise UserError(f"{name}: expected a matrix [models, samples], got shape {list(matrix.shape)}")
    if len(matrix) < least:
        raise UserError(f"{name}: {least} models are needed to fit Gaussians, got {len(matrix)}; train more seeds")
    return np.stack([check_scores(row, f"{name}, model {k}") for k, row in enumerate(matrix)])


def fit_gaussians(scores: Scores, prior_weight: float = PRIOR_WEIGHT) -> tuple[Scores, Scores]:
    """Mean and variance of every sample over models, the variance shrunk towards the mean variance of all samples.

    `v_i = (w v + (k - 1) s_i^2) / (w + k - 1)` with the unbiased `s_i^2` and `v = mean_i s_i^2`. Few models cannot tell
    each sample's variance; many can, and then the prior fades.

    Args:
        scores: `[k, n]` of k >= 2 models.
        prior_weight: w; infinite for one variance for all samples.

    Returns:
        Means `[n]` and variances `[n]`; a variance is at least a rounding error of the scores.

    Source: Carlini et al., arXiv 2112.03570, fit one variance for all samples where shadow models are few; this is the
    step between that and each sample's own.

    Example:
        >>> mean, variance = fit_gaussians(np.array([[0.0, 0.0], [2.0, 4.0]]), prior_weight=1)
        >>> mean.tolist(), variance.tolist()
        ([1.0, 2.0], [3.5, 6.5])
    """
    own = scores.var(0, ddof=1)
    freedom = len(scores) - 1
    share = 1.0 if np.isinf(prior_weight) else prior_weight / (prior_weight + freedom)
    variance = share * own.mean() + (1 - share) * own
    return scores.mean(0), np.maximum(variance, (1e-7 * np.abs(scores).max()) ** 2 + np.finfo(np.float64).tiny)
