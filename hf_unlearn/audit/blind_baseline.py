"""A blind baseline: can requested and compared pictures be told apart without any model?

If they can, by their colours, sizes or file types, then a difference in a model's answers need not be memory. Tested
by permutation: how well a ridge regression on simple features of pictures and files, each picture left out in turn,
tells which arm it is from.

Source: after Das, Zhang and Tramer, "Blind baselines beat membership inference attacks" (arXiv 2406.16201).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_unlearn.audit.pictures import Picture
from hf_unlearn.audit.statistics import Floats
from hf_unlearn.metrics.alignment_matrices import Matrix

LEVEL = 0.01
"""Level of all comparisons of an audit together: alike arms are called different in 1 of 100 audits."""
FEWEST = 5
PERMUTATIONS = 999
RIDGE = 1.0
SIDE = 64


def told_apart(first: Sequence[Picture], second: Sequence[Picture], seed: int, *, comparisons: int = 1) -> float | None:
    """How well two arms are told apart without a model, if they are.

    Args:
        first: Pictures of one arm, one a cluster of near-duplicates.
        second: Pictures of the other, likewise.
        seed: Seed of the permutations.
        comparisons: How many pairs of arms the audit compares; they share the level.

    Returns:
        The share of pairs, one picture of each arm, that are put in the right order (0.5 is guessing); None where the
        arms are not told apart at the level, or too small to say.
    """
    if min(len(first), len(second)) < FEWEST:
        return None
    features = np.stack([picture_features(picture) for picture in (*first, *second)])
    return separability(features, len(first), seed, level=LEVEL / comparisons)


def separability(features: Matrix, first: int, seed: int, *, level: float = LEVEL) -> float | None:
    """As `told_apart`, from features `[n, f]` whose first rows are one arm's."""
    spread = features.std(0)
    standard = (features - features.mean(0))[:, spread > 1e-9] / spread[spread > 1e-9]
    if standard.shape[1] == 0:
        return None
    n = len(standard)
    hat = standard @ np.linalg.solve(standard.T @ standard + RIDGE * n * 0.1 * np.eye(standard.shape[1]), standard.T)
    hat += 1 / n  # the mean
    leverage = np.diag(hat)
    labels = np.where(np.arange(n) < first, 1.0, -1.0)
    generator = np.random.default_rng(seed)
    drawn = np.stack([labels, *(generator.permutation(labels) for _ in range(PERMUTATIONS))])
    guesses = (drawn @ hat.T - leverage * drawn) / (1 - leverage)
    scores = _areas(guesses, drawn > 0)
    p_value = float(np.mean(scores >= scores[0] - 1e-9))
    return float(scores[0]) if p_value <= level and scores[0] > 0.5 else None


def picture_features(picture: Picture) -> Floats:
    """What is known of a picture without a model: colours, contrast, detail, shape and file."""
    image = picture.open()
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64) / 255
    grey = small.mean(-1)
    saturation = small.max(-1) - small.min(-1)
    edges = np.abs(np.diff(grey, axis=0)).mean(), np.abs(np.diff(grey, axis=1)).mean()
    pixels = image.width * image.height
    size = picture.path.stat().st_size
    kind = picture.path.suffix.lower()
    return np.array(
        [
            *small.mean((0, 1)),
            *small.std((0, 1)),
            saturation.mean(),
            *edges,
            np.log(pixels),
            np.log(image.width / image.height),
            np.log(max(size, 1) / pixels),
            float(kind == ".png"),
            float(kind in (".jpg", ".jpeg")),
        ]
    )


def _areas(guesses: Floats, positive: NDArray[np.bool_]) -> Floats:
    """Share of pairs in the right order (area under the curve), one a draw `[p, n]`."""
    ranks = np.argsort(np.argsort(guesses, axis=1), axis=1) + 1.0
    n = int(positive[0].sum())
    m = positive.shape[1] - n
    return (np.where(positive, ranks, 0).sum(1) - n * (n + 1) / 2) / (n * m)
