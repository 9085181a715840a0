"""Negative alignment: what unlearning did to the pairs that do not belong together (Fig. 2 of arXiv 2406.03603)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._checks import Array, check_embeddings, check_owner, check_same_length


@dataclass(frozen=True)
class NegativeAlignment:
    """Off-diagonal of the alignment gap matrix, in units of cosine.

    Attributes:
        mean: Mean over the negative pairs of cosine before minus after; negative where unlearning pulled them together.
        std: Population standard deviation over the negative pairs.
        pairs: Number of negative pairs.
    """

    mean: float
    std: float
    pairs: int


def negative_alignment(
    x_before: Array, y_before: Array, x_after: Array, y_after: Array, owner: Array | None = None
) -> NegativeAlignment:
    """Mean and standard deviation of the gap matrix `AGM = AM(before) - AM(after)` off its diagonal.

    With unit rows the gap matrix is one product of stacked embeddings, `AGM = A B^T` for `A = [x_before, x_after]` and
    `B = [y_before, -y_after]`, so its sums have closed forms and cost O(n d^2) time and O(n d) memory:
    `sum AGM = <sum_i A_i, sum_j B_j>` and `sum AGM^2 = <A^T A, B^T B>`, from which the matched pairs are taken out.

    Args:
        x_before: `[n, d]` image (or first-view) embeddings of the unlearn samples under the base model.
        y_before: `[m, d]` caption (or second-view) embeddings under the base model.
        x_after: `[n, d']` as `x_before`, under the unlearned model.
        y_after: `[m, d']` as `y_before`, under the unlearned model.
        owner: `[m]` index of each caption's image; by default caption i belongs to image i.

    Returns:
        Mean and standard deviation over all pairs of an image and another image's caption.

    Raises:
        UserError: An embedding is NaN, infinite or zero, the numbers of samples do not fit, or no negative pair exists.

    Source: arXiv 2406.03603, Section 3.3 (the gap matrix) and Fig. 2 (its off-diagonal on the unlearn set).

    Example:
        >>> before, after = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.8]]
        >>> result = negative_alignment(before, before, after, after)
        >>> round(result.mean, 3), round(result.std, 3), result.pairs
        (-0.6, 0.0, 2)
    """
    images = _stack(check_embeddings(x_before, "x_before"), check_embeddings(x_after, "x_after"))
    texts = _stack(check_embeddings(y_before, "y_before"), -check_embeddings(y_after, "y_after"))
    owners = check_owner(owner, len(images), len(texts))
    pairs = len(images) * len(texts) - len(texts)
    if pairs == 0:
        raise UserError("negative alignment needs at least two unlearn samples; one sample has no negative pair")
    matched = (images[owners] * texts).sum(1)
    mean = float(images.sum(0) @ texts.sum(0) - matched.sum()) / pairs
    squares = float(((images.T @ images) * (texts.T @ texts)).sum() - matched.square().sum()) / pairs
    return NegativeAlignment(mean, max(squares - mean**2, 0.0) ** 0.5, pairs)


def _stack(before: Tensor, after: Tensor) -> Tensor:
    """`[n, d + d']` in float64 on the CPU: the variance is a small difference of large sums."""
    check_same_length(before=before, after=after)
    return torch.cat([before.cpu().double(), after.cpu().double()], 1)
