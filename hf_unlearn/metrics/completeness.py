"""Sample-level completeness: where each sample stands between remembered and never seen."""

from dataclasses import dataclass, field

import numpy as np
from scipy.special import log_ndtr, ndtr

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._checks import Array, Scores, check_same_length, check_scores
from hf_unlearn.metrics._gaussians import check_ensemble, fit_gaussians

OVER = 0.975
"""One-sided confidence from which a sample counts as pushed below what a non-member shows."""


@dataclass(frozen=True, eq=False)
class Completeness:
    """How completely each sample was unlearned, from one model.

    Attributes:
        mean: Mean completeness, from 0 (fits the samples as the base model does) to 1 (as a non-member).
        percentile_5: Completeness that 95% of the samples exceed.
        over: Share of the samples pushed below the reference beyond its spread: they stand out by what they lack.
        per_sample: `[n]` completeness.
    """

    mean: float
    percentile_5: float
    over: float
    per_sample: Scores = field(repr=False)


def sample_completeness(
    model: Array, base: Array, references: Array | None = None, held_out: Array | None = None
) -> Completeness:
    """Completeness by interpolating each sample between fitting (the base model) and generalising (a non-member).

    `1 - int_0^1 Phi((a_i - g_i - t (f_i - g_i)) / s_i) dt = 1 - s_i / (f_i - g_i) (G(z_g) - G(z_f))`
    with `G(z) = z Phi(z) + phi(z)`, `z_g = (a_i - g_i) / s_i`, `z_f = (a_i - f_i) / s_i`: the mean over all
    interpolates t of the chance that a model there aligns sample i more than this model (a) does. Without spread it is
    the share of the way from f to g. g and s come from reference models that never saw the samples (offline: one will
    do) or, with none at all, from held-out samples.

    Deviations: alignment instead of the Gumbel-mapped confidence, a Gaussian instead of a Gumbel; the interpolates are
    weighted evenly and integrated in closed form, where the source weights them by t on a grid of a thousand; the same
    spread for all interpolates of a sample. A sample that the base model aligns no more than the reference does has
    nothing to unlearn; the formula then measures it against the reference alone.

    Args:
        model: `[n]` alignments of the unlearn samples under the unlearned model, a.
        base: `[n]` under the model before unlearning, f.
        references: `[k, n]` under k >= 1 models that were not trained on them. With one model the spread is that over
            its samples, wider than over seeds, so the measure is blunter and kinder.
        held_out: `[h]` alignments of samples that the base model never saw, when there is no reference model: their
            mean and spread serve for every sample.

    Returns:
        Mean, 5th percentile, share of over-unlearned samples, and every sample's completeness.

    Raises:
        UserError: Neither or both of `references` and `held_out` are given, they do not vary, an alignment is NaN, or
            the numbers of samples differ.

    Source: Wang et al., "Towards Lifecycle Unlearning Commitment Management" (IAM), arXiv 2506.06112.

    Example:
        >>> held_out = np.random.default_rng(0).normal(0.2, 0.01, 1000)
        >>> result = sample_completeness([0.9, 0.55, 0.1], base=[0.9, 0.9, 0.9], held_out=held_out)
        >>> result.per_sample.round(2).tolist(), round(result.over, 2)
        ([0.01, 0.5, 1.0], 0.33)
    """
    if (references is None) == (held_out is None):
        raise UserError("completeness needs either reference models or held-out samples, and not both")
    ours, fitted = check_scores(model, "alignment of the model"), check_scores(base, "alignment of the base model")
    if references is not None:
        ensemble = check_ensemble(references, "references")
        check_same_length(model=ours, base=fitted, references=ensemble.T)
        if len(ensemble) > 1:
            centre, variance = fit_gaussians(ensemble)
        else:
            centre, variance = ensemble[0], np.full(len(ours), ensemble[0].var())
    else:
        check_same_length(model=ours, base=fitted)
        unseen = check_scores(np.asarray(held_out), "alignment of the held-out samples")
        centre, variance = np.full(len(ours), unseen.mean()), np.full(len(ours), unseen.var())
    if (variance == 0).any():
        raise UserError("the references do not vary, so there is no spread to measure by; pass more of them")
    spread = np.sqrt(variance)
    completeness = 1 - _mean_exceedance((ours - centre) / spread, (fitted - centre) / spread)
    over = float((ndtr((centre - ours) / spread) > OVER).mean())
    return Completeness(float(completeness.mean()), float(np.percentile(completeness, 5)), over, completeness)


def _mean_exceedance(z: Scores, width: Scores) -> Scores:
    """`int_0^1 Phi(z - t width) dt`; by the midpoint where `width` is too small to divide by."""
    narrow = np.abs(width) < 1e-4
    safe = np.where(narrow, 1.0, width)
    integral = (_antiderivative(z) - _antiderivative(z - safe)) / safe
    return np.clip(np.where(narrow, ndtr(z - width / 2), integral), 0.0, 1.0)


def _antiderivative(z: Scores) -> Scores:
    """`z Phi(z) + phi(z)`, the integral of Phi; Phi as an exponential, so that its lower tail survives."""
    return z * np.exp(log_ndtr(z)) + np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
