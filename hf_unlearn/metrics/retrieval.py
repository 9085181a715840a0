"""Cross-modal retrieval: is an image's own caption among the k nearest, and the other way round."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

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
        image_ranks: `[n]` number of wrong captions ahead of each image's best own one, or tied with it.
        text_ranks: `[m]` likewise for each caption.
    """

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]
    image_ranks: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)
    text_ranks: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)


def retrieval(
    x: Array,
    y: Array,
    owner: Array | None = None,
    ks: Sequence[int] = (1, 5),
    block_size: int = 1024,
    captions: Sequence[Hashable] | None = None,
) -> Retrieval:
    """Recall at k by cosine, in both directions.

    A query is found at k if fewer than k candidates that are not its own score as high as its best own candidate.
    A candidate is a query's own if it is of the same pair, or has the same caption as one of the same pair: images that
    share a caption cannot be told apart by it, so any of them is a hit.
    Other ties count against the query: a wrong candidate with an equal cosine ranks first, so collapsed embeddings
    score 0, not 100. Similarities are computed `block_size` queries at a time, so memory is
    O(block_size * candidates).

    Args:
        x: `[n, d]` image embeddings, normalised or not.
        y: `[m, d]` caption embeddings, normalised or not.
        owner: `[m]` index of each caption's image; by default caption i belongs to image i. Every image
            needs a caption.
        ks: Ranks, each at least 1.
        block_size: Queries a block.
        captions: `[m]` the captions, or whatever else is equal where they are; by default no two are the same.

    Returns:
        Recalls in percent for each k.

    Raises:
        UserError: An embedding is NaN, infinite or zero, the numbers of samples do not fit, or an image has no caption.

    Example:
        >>> retrieval([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.1], [1.0, 0.2]], ks=(1, 2))
        Retrieval(image_to_text={1: 100.0, 2: 100.0}, text_to_image={1: 50.0, 2: 100.0})
        >>> retrieval([[1.0, 0.0], [0.8, 0.6]], [[1.0, 0.0], [1.0, 0.0]], ks=(1,), captions=["a dog", "a dog"])
        Retrieval(image_to_text={1: 100.0}, text_to_image={1: 100.0})
    """
    images, texts = check_embeddings(x, "image embeddings"), check_embeddings(y, "caption embeddings")
    owners = check_owner(owner, len(images), len(texts)).to(images.device)
    without = torch.bincount(owners, minlength=len(images)) == 0
    if without.any():
        raise UserError(f"image {int(without.nonzero()[0, 0])} has no caption to retrieve; leave such images out")
    if min(ks, default=0) < 1:
        raise UserError(f"ks: recall at k needs ranks of at least 1, got {list(ks)}")
    said = _numbered(captions, len(texts)).to(images.device)
    image_ranks = _ranks(images, texts, partial(_own_captions, owners, said), block_size)
    text_ranks = _ranks(texts, images, partial(_own_images, owners, said, len(images)), block_size)
    return Retrieval(_recall(image_ranks, ks), _recall(text_ranks, ks), image_ranks, text_ranks)


def _own_captions(owners: Tensor, said: Tensor, images: range) -> Tensor:
    """`[images, m]` bool: whether a caption says what one of the image's own does."""
    theirs = (owners >= images.start) & (owners < images.stop)
    has = torch.zeros(len(images), int(said.max()) + 1, dtype=torch.bool, device=said.device)
    has[owners[theirs] - images.start, said[theirs]] = True
    return has[:, said]


def _own_images(owners: Tensor, said: Tensor, count: int, captions: range) -> Tensor:
    """`[captions, count]` bool: whether one of an image's own captions says what the caption does."""
    wanted, place = said[captions.start : captions.stop].unique(return_inverse=True)
    at = torch.searchsorted(wanted, said).clamp_(max=len(wanted) - 1)
    same = wanted[at] == said
    has = torch.zeros(len(wanted), count, dtype=torch.bool, device=said.device)
    has[at[same], owners[same]] = True
    return has[place]


def _ranks(queries: Tensor, candidates: Tensor, own_of: Callable[[range], Tensor], block_size: int) -> Tensor:
    """For each query the number of wrong candidates ahead of, or tied with, the best own one."""
    ranks = []
    for start in range(0, len(queries), block_size):
        scores = queries[start : start + block_size] @ candidates.T
        own = own_of(range(start, start + len(scores)))
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        ranks.append(((scores >= best - TIE) & ~own).sum(1))
    return torch.cat(ranks)


def _numbered(captions: Sequence[Hashable] | None, count: int) -> Tensor:
    """A number for each caption, the same for the same."""
    if captions is None:
        return torch.arange(count)
    if len(captions) != count:
        raise UserError(f"captions: {count} caption embeddings have {len(captions)} captions; give one for each")
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions])


def _recall(ranks: Tensor, ks: Sequence[int]) -> dict[int, float]:
    return {k: 100 * float((ranks < k).double().mean()) for k in ks}
