"""Three-sample test: whether a model's outputs lie nearer to Retrain's or to those before unlearning."""

import numpy as np
import numpy.typing as npt

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._checks import check_features

Array = npt.NDArray[np.floating]


def nearer_to_base(model: Array, retrain: Array, base: Array) -> float:
    """How far a model has stayed on the side of the base model, from 0 (Retrain itself) to 1 (the base model itself).

    `d(model, retrain) / (d(model, retrain) + d(model, base))` with the maximum mean discrepancy
    `d(a, b)^2 = mean k(a, a') - 2 mean k(a, b) + mean k(b, b')` of a Gaussian kernel as wide as the median distance
    between retrain's and base's outputs. All means run over all pairs, so that d is 0 for equal samples.

    Args:
        model: `[n, k]` outputs for the unlearn samples that can be compared between models, such as cosines to anchors.
        retrain: `[n, k]` the same of Retrain.
        base: `[n, k]` the same before unlearning.

    Returns:
        The ratio; not a number where Retrain's outputs and the base model's are the same, so that nothing lies between.

    Raises:
        UserError: the shapes differ, or an output is NaN or infinite.

    Source: after the three-sample test of arXiv 2601.19755; the statistic is that of arXiv 1511.04581, as a ratio.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> base, retrain = rng.normal(0, 1, (50, 3)), rng.normal(2, 1, (50, 3))
        >>> nearer_to_base(retrain, retrain, base), nearer_to_base(base, retrain, base)
        (0.0, 1.0)
    """
    ours, theirs, start = (np.asarray(part, dtype=np.float64) for part in (model, retrain, base))
    if not ours.shape == theirs.shape == start.shape or ours.ndim != 2:
        raise UserError(f"the three samples must have one shape, got {ours.shape}, {theirs.shape} and {start.shape}")
    for name, outputs in (("the model", ours), ("Retrain", theirs), ("the base model", start)):
        check_features(outputs, f"outputs of {name}")
    width = float(np.median(_squared_distances(theirs, start)))
    if width == 0 or (theirs == start).all():
        return float("nan")
    to_retrain, to_base = _discrepancy(ours, theirs, width), _discrepancy(ours, start, width)
    return float(to_retrain / (to_retrain + to_base))


def _squared_distances(a: Array, b: Array) -> Array:
    return ((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T).clip(min=0)


def _discrepancy(a: Array, b: Array, width: float) -> float:
    def mean(p: Array, q: Array) -> float:
        return float(np.exp(-_squared_distances(p, q) / width).mean())

    return float(np.sqrt(max(0.0, mean(a, a) - 2 * mean(a, b) + mean(b, b))))
