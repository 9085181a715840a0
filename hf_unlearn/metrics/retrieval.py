"""Cross-modal retrieval: is an image's own caption among the k nearest, and the other way round."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._checks import Array, check_embeddings, check_owner

TIE = 1e-6
"""Cosines closer than this count as tied: equal embeddings may differ by float32 rounding."""


@dataclass(frozen=True)
class Retrieval:
    """Recall at k in percent, keyed by k.

    Attributes:
        image_to_text: Share of images with one of their own captions among the k nearest captions.
        text_to_image: Share of captions whose own image is among the k nearest images.
    """

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]


def retrieval(
    x: Array, y: Array, owner: Array | None = None, ks: Sequence[int] = (1, 5), block_size: int = 1024
) -> Retrieval:
    """Recall at k by cosine, in both directions.

    A query is found at k if fewer than k candidates that are not its own score as high as its best own candidate.
    Ties count against it: a wrong candidate with an equal cosine ranks first, so collapsed embeddings score 0, not 100.
    Similarities are computed `block_size` queries at a time, so memory is O(block_size * candidates).

    Args:
        x: `[n, d]` image embeddings, normalised or not.
        y: `[m, d]` caption embeddings, normalised or not.
        owner: `[m]` index of each caption's image; by default caption i belongs to image i. Every image
            needs a caption.
        ks: Ranks, each at least 1.
        block_size: Queries a block.

    Returns:
        Recalls in percent for each k.

    Raises:
        UserError: An embedding is NaN, infinite or zero, the numbers of samples do not fit, or an image has no caption.

    Example:
        >>> retrieval([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.1], [1.0, 0.2]], ks=(1, 2))
        Retrieval(image_to_text={1: 100.0, 2: 100.0}, text_to_image={1: 50.0, 2: 100.0})
    """
    images, texts = check_embeddings(x, "image embeddings"), check_embeddings(y, "caption embeddings")
    owners = check_owner(owner, len(images), len(texts)).to(images.device)
    without = torch.bincount(owners, minlength=len(images)) == 0
    if without.any():
        raise UserError(f"image {int(without.nonzero()[0, 0])} has no caption to retrieve; leave such images out")
    if min(ks, default=0) < 1:
        raise UserError(f"ks: recall at k needs ranks of at least 1, got {list(ks)}")
    image_ids = torch.arange(len(images), device=images.device)
    return Retrieval(
        _recall(_ranks(images, texts, image_ids, owners, block_size), ks),
        _recall(_ranks(texts, images, owners, image_ids, block_size), ks),
    )


def _ranks(queries: Tensor, candidates: Tensor, query_ids: Tensor, ids: Tensor, block_size: int) -> Iterator[Tensor]:
    """Yields for each block of queries the number of wrong candidates ahead of, or tied with, the best own one."""
    for block, wanted in zip(queries.split(block_size), query_ids.split(block_size), strict=True):
        scores = block @ candidates.T
        own = wanted[:, None] == ids
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        yield ((scores >= best - TIE) & ~own).sum(1)


def _recall(ranks: Iterator[Tensor], ks: Sequence[int]) -> dict[int, float]:
    rank = torch.cat(list(ranks))
    return {k: 100 * float((rank < k).double().mean()) for k in ks}
