"""Linear CKA: how alike two encoders' representations of the same samples are, up to rotation and scale."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._checks import Array, as_features, check_embeddings, check_same_length


@dataclass(frozen=True)
class Cka:
    """Similarity of two representations.

    Attributes:
        similarity: Linear CKA, from 0 (nothing in common) to 1 (equal up to rotation, scale and shift).
    """

    similarity: float


def linear_cka(x: Array, y: Array) -> Cka:
    """Linear centred kernel alignment of two representations of the same samples, in its feature-space form.

    `CKA = |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)` with centred columns, in O(n d^2) instead of O(n^2 d).

    Args:
        x: `[n, d]` features under one encoder, not normalised.
        y: `[n, d']` features of the same samples under another, say Retrain.

    Returns:
        The similarity.

    Raises:
        UserError: A feature is NaN, infinite or zero, the numbers of samples differ, or one side does not vary at all.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", arXiv 1905.00414, Section 3.

    Example:
        >>> x = [[1.0, 0.0], [0.0, 1.0], [2.0, 3.0]]
        >>> round(linear_cka(x, [[0.0, -3.0], [3.0, 0.0], [9.0, -6.0]]).similarity, 6)
        1.0
    """
    ours, theirs = _centred(x, "x"), _centred(y, "y")
    check_same_length(x=ours, y=theirs)
    shared = torch.linalg.matrix_norm(theirs.T @ ours) ** 2
    own = torch.linalg.matrix_norm(ours.T @ ours) * torch.linalg.matrix_norm(theirs.T @ theirs)
    return Cka(float(shared / own))


def _centred(x: Array, name: str) -> Tensor:
    """Columns with mean zero and largest entry one (CKA ignores scale), in float64 on the CPU."""
    check_embeddings(x, name)
    features = as_features(x, name).cpu().double()
    scale = features.abs().max()
    features = features / scale
    features = features - features.mean(0)
    if features.abs().max() < 1e-12:
        raise UserError(f"{name}: all samples have the same features, so CKA is undefined; the encoder has collapsed")
    return features
