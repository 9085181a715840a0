"""Near-duplicates: pictures so alike that they are one picture told twice, and count as one.

Copies in another format, size, quality or a slightly other crop share what a model remembers. Counted one by one they
inflate the audit; parted between the arms they make exact retraining look like a request ignored, since the copy that
stays in training keeps the other's memory alive. Clusters, not pictures, are therefore drawn, permuted and counted.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hf_unlearn.audit.embeddings import directions
from hf_unlearn.audit.pictures import Picture
from hf_unlearn.metrics.alignment_matrices import Matrix

COARSE, FINE = 8, 16
"""Sides of the thumbnails that are compared: the small ones find candidates, the larger ones decide."""
COARSE_ALIKE, FINE_ALIKE = 0.93, 0.95
"""Correlations of two thumbnails' colours from which pictures are near-duplicates."""
COLOUR_ALIKE = 0.1
"""Root mean square difference of colours (0 to 1), beyond which pictures of one shape are still different."""
ANSWERS_ALIKE = 0.985
"""Cosine of two pictures' embeddings, less what all pictures share, from which an encoder takes them for one."""
BLOCK = 1024

Edges = list[tuple[int, int]]


def picture_clusters(pictures: Sequence[Picture], *groupings: Sequence[str]) -> NDArray[np.int64]:
    """Group pictures that look nearly equal, also mirrored, and those that somebody says belong together.

    Args:
        pictures: The pictures, n.
        groupings: A word for each, the owner's (a series, a scene) or a plan's; an empty one joins nothing.

    Returns:
        `[n]`, the number of each picture's cluster; equal numbers are one cluster.

    Raises:
        UserError: When a picture can no longer be read.
    """
    edges = alike(picture.open() for picture in pictures)
    return connected(len(pictures), edges + [edge for groups in groupings for edge in same_words(groups)])


def alike(images: Iterable[Image.Image]) -> Edges:
    """Pairs of images that look nearly equal, also mirrored: candidates by 8 x 8 colours, decided by 16 x 16.

    Time grows with the square of the number (8,000 images: a few seconds), memory does not: of each image, which may be
    a photograph of many megabytes, only its thumbnails are kept.
    """
    thumbnails = [(_thumbnail(image, FINE), _thumbnail(image, COARSE)) for image in images]
    if len(thumbnails) < 2:
        return []
    fine, coarse = (np.stack(side) for side in zip(*thumbnails, strict=True))
    mirrored = _signatures(coarse[:, :, ::-1])
    straight = _signatures(coarse)
    found = []
    for start in range(0, len(thumbnails), BLOCK):
        block = straight[start : start + BLOCK]
        likeness = np.maximum(block @ straight[start:].T, block @ mirrored[start:].T)
        for i, j in np.argwhere(likeness >= COARSE_ALIKE):
            if i < j and _same_picture(fine[start + i], fine[start + j]):
                found.append((int(start + i), int(start + j)))
    return found


def answers_alike(images: Matrix) -> Edges:
    """Pairs of pictures that an encoder takes for one: its embeddings of the pictures as they are nearly coincide.

    What all pictures share is taken off first, since encoders whose embeddings fill a narrow cone call everything
    alike. With fewer than three pictures there is no common part, and no pair is found.

    Args:
        images: `[n, d]`, one embedding a picture.
    """
    unit = directions(images)
    known = np.flatnonzero(np.isfinite(unit).all(1))
    if len(known) < 3:
        return []
    rest = unit[known] - unit[known].mean(0)
    spread = np.linalg.norm(rest, axis=1, keepdims=True)
    if np.median(spread) < 1e-3:  # a collapsed encoder tells nothing apart
        return []
    rest = rest / np.maximum(spread, 1e-12)
    found = []
    for start in range(0, len(known), BLOCK):
        likeness = rest[start : start + BLOCK] @ rest[start:].T
        found += [
            (int(known[start + i]), int(known[start + j])) for i, j in np.argwhere(likeness >= ANSWERS_ALIKE) if i < j
        ]
    return found


def same_words(groups: Sequence[str]) -> Edges:
    """Pairs that chain all pictures of one group together."""
    last: dict[str, int] = {}
    found = []
    for i, group in enumerate(groups):
        if group:
            if group in last:
                found.append((last[group], i))
            last[group] = i
    return found


def connected(n: int, edges: Edges) -> NDArray[np.int64]:
    """Number the connected components of n pictures, in the order of their first picture.

    >>> connected(4, [(0, 2), (2, 3)]).tolist()
    [0, 1, 0, 0]
    """
    first, second = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges)), (first, second)), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _thumbnail(image: Image.Image, side: int) -> NDArray[np.float32]:
    small = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def _signatures(thumbnails: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit vectors of each thumbnail's colours less their mean; one colour all over has none, and is alike to
    nothing.
    """
    flat: NDArray[np.float32] = thumbnails.reshape(len(thumbnails), -1)
    flat = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.where(length > 1e-6, flat / np.maximum(length, 1e-6), 0).astype(np.float32)
    return unit


def _same_picture(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    for other in (second, second[:, ::-1]):
        one, two = _signatures(np.stack([first, other]))
        if one @ two >= FINE_ALIKE and float(np.sqrt(np.mean((first - other) ** 2))) <= COLOUR_ALIKE:
            return True
    return False
