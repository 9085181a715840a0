"""Matched cosine: how close the two elements of each pair lie (Table 4 of arXiv 2406.03603)."""

from dataclasses import dataclass, field

from hf_unlearn.metrics._checks import Array, Scores, check_embeddings, check_owner, to_numpy


@dataclass(frozen=True, eq=False)
class MatchedCosine:
    """Cosines of the matched pairs.

    Attributes:
        mean: Mean over pairs, times 100.
        std: Population standard deviation over pairs, times 100.
        per_sample: `[m]`, the plain cosine of each pair, in the order of the captions (or second views).
    """

    mean: float
    std: float
    per_sample: Scores = field(repr=False)


def matched_cosine(x: Array, y: Array, owner: Array | None = None) -> MatchedCosine:
    """Cosine of each caption with its image, or of the second view with the first.

    `c_j = <x_o(j), y_j> / (|x_o(j)| |y_j|)`

    Args:
        x: `[n, d]` image (or first-view) embeddings, normalised or not.
        y: `[m, d]` caption (or second-view) embeddings, normalised or not.
        owner: `[m]` index of each caption's image; by default caption i belongs to image i.

    Returns:
        Mean and standard deviation times 100 as the paper prints them, and the plain cosines.

    Raises:
        UserError: An embedding is NaN, infinite or zero, or the numbers of samples do not fit.

    Source: arXiv 2406.03603, Table 4, "image-text cosine similarity".

    Example:
        >>> images, captions = [[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]]
        >>> result = matched_cosine(images, captions, owner=[0, 0, 1])
        >>> result.per_sample.round(3).tolist(), round(result.mean, 2)
        ([1.0, 0.6, 1.0], 86.67)
    """
    images, texts = check_embeddings(x, "image embeddings"), check_embeddings(y, "caption embeddings")
    owners = check_owner(owner, len(images), len(texts)).to(images.device)
    cosines = to_numpy((images[owners] * texts).sum(1))
    return MatchedCosine(100 * float(cosines.mean()), 100 * float(cosines.std()), cosines)
