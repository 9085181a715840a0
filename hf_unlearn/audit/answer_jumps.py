"""Answers that jump: where a picture hardly changes, a network's answer hardly moves, and noise laid over it does.

Each picture is asked again as it is and after nudges of growing size (`transforms.draw_nudges`); besides, its two views
that were most alike before are a nudge of each other. With `v` the answer about the picture and `v_s` that about it
after nudge s,

    jump_s = 1 - cos(v, v_s),        relative jump_s = jump_s / (1 - mean cosine between the picture's views)

Unlearning may lower the cosines of a picture's views, and then small changes move its answers further. The relative
jump takes that out: a filter that pulls answers apart at every scale is not seen here, noise of any key is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_unlearn.audit.embeddings import Embeddings, directions
from hf_unlearn.audit.statistics import TwoSample, known_mean, smallest_p_value
from hf_unlearn.metrics.alignment_matrices import Matrix

LEAST_JUMP = 1e-3
RATIO = 1.5
"""Requested pictures' jumps, plain and relative, are this many times other pictures', and were not so before. On honest
models they are 0.9 to 1.1 times, whatever the method; under noise that lowers alignment by 0.1, 11 times."""
STEADY_RATIO = 1.4
"""The same of answers that stay where they were, beside how far the views lie apart: up to 1.13 on honest models."""
LEVEL = 0.01
"""Level of all sizes together."""
MOST_TRIED = 4
"""Sizes that an audit's own answers are compared at: three nudges and the nearest views."""
FEWEST_VIEWS = 3
FEWEST_OTHERS = 3


@dataclass(frozen=True)
class Units:
    """What counts as one picture on each side: a cluster of near-duplicates, whose measurements are averaged.

    Args:
        requested: rows of each requested cluster.
        others: the same of pictures that were not requested.
    """

    requested: tuple[NDArray[np.int64], ...]
    others: tuple[NDArray[np.int64], ...]

    def sides(self, values: Matrix) -> tuple[Matrix, Matrix]:
        """`values[n]`, a number a picture, as one number a cluster: of requested ones, and of others."""
        own, rest = (np.array([known_mean(values[rows]) for rows in side]) for side in (self.requested, self.others))
        return own, rest


def units(requested: Sequence[int], others: Sequence[int], clusters: NDArray[np.int64]) -> Units:
    """Put the rows of one cluster together, on either side.

    Args:
        requested: rows of the requested pictures.
        others: rows of pictures that were not requested.
        clusters: `[n]`, which pictures are near-duplicates.
    """

    def grouped(rows: Sequence[int]) -> tuple[NDArray[np.int64], ...]:
        groups: dict[int, list[int]] = {}
        for row in rows:
            groups.setdefault(int(clusters[row]), []).append(int(row))
        return tuple(np.array(group, dtype=np.int64) for group in groups.values())

    return Units(grouped(requested), grouped(others))


def checkable(compared: Units) -> bool:
    """Whether there are enough pictures of both kinds for answers to requested ones to be told from others' at all."""
    own, rest = len(compared.requested), len(compared.others)
    return own > 0 and rest >= FEWEST_OTHERS and smallest_p_value(own, rest) <= LEVEL / MOST_TRIED


def jumping(before: Embeddings, after: Embeddings, compared: Units) -> str | None:
    """Whether answers about requested pictures jump where those about others do not: a sentence, or None.

    Args:
        before: answers before.
        after: answers after.
        compared: what counts as one picture, requested and not.
    """
    spreads = [compared.sides(_spread(side)) for side in (before, after)]
    requested = np.isin(np.arange(len(after.images)), np.concatenate(compared.requested))
    tried = _nudges(before, after) + _nearest_views(before, after)
    for what, (earlier, now) in tried:
        # What is not answered is at its worst: a requested picture's answer jumps, another's stays.
        own, rest = compared.sides(np.where(np.isfinite(now), now, requested))
        if np.median(own) < LEAST_JUMP:
            continue
        usual = 1.0 if earlier is None else max(1.0, _ratio(compared.sides(earlier), spreads[0]))
        if _ratio((own, rest), spreads[1]) <= RATIO * usual:
            continue
        logs = [np.log(np.maximum(values, LEAST_JUMP)) for values in (own, rest)]
        if TwoSample(*logs, permutations=999).p_value("greater") <= LEVEL / len(tried):
            return (
                f"The answers about the requested pictures jump: {what} moves them by {np.median(own):.3f} (1 - "
                f"cosine), other pictures' answers by {np.median(rest):.4f}. Noise laid over answers does so, training "
                "does not."
            )
    return None


def steady(before: Embeddings, after: Embeddings, compared: Units) -> str | None:
    """Whether small changes move answers about requested pictures less than their views lie apart: a sentence, or None.

    Noise that is the same for all small changes of a picture, keyed by what it looks like from afar, does not jump. But
    it sets the views apart and leaves the small changes where they were, and a network moves both.

    Args:
        before, after, compared: as in `jumping`.
    """
    earlier, now = _jumps(before), _jumps(after)
    if now is None:
        return None
    others = ~np.isin(np.arange(len(now)), np.concatenate(compared.requested))
    first_spread, spread = (np.maximum(_spread(side), LEAST_JUMP) for side in (before, after))
    sizes = range(1, now.shape[1])
    for size in sizes:
        # What is not answered is at its worst: a requested picture's answer stays, another's jumps.
        relative = now[:, size] / spread
        relative = np.where(np.isfinite(relative), relative, others)
        own, rest = (np.maximum(values, LEAST_JUMP / 10) for values in compared.sides(relative))
        usual = 1.0
        if earlier is not None and size < earlier.shape[1]:
            first = compared.sides(earlier[:, size] / first_spread)
            usual = min(1.0, _median(first[0], LEAST_JUMP / 10) / _median(first[1], LEAST_JUMP / 10))
        moved = compared.sides(np.where(np.isfinite(now[:, size]), now[:, size], others))[1]
        if np.median(moved) < LEAST_JUMP or np.median(own) * STEADY_RATIO >= usual * np.median(rest):
            continue
        if TwoSample(np.log(rest), np.log(own), permutations=999).p_value("greater") <= LEVEL / len(sizes):
            return (
                "The views of the requested pictures lie apart, but small changes hardly move their answers: "
                f"{np.median(own):.3f} of the way between two views, other pictures' {np.median(rest):.3f}. Noise that "
                "is kept for alike pictures does so, and so would a method that sets views apart on purpose."
            )
    return None


Pair = tuple[str, tuple[Matrix | None, Matrix]]


def _nudges(before: Embeddings, after: Embeddings) -> list[Pair]:
    """Jumps `[n]` before and after, a pair a size."""
    earlier, now = _jumps(before), _jumps(after)
    if now is None:
        return []
    sizes = now.shape[1] if earlier is None else min(now.shape[1], earlier.shape[1])
    words = ["an imperceptible change of a picture, or none,"] + ["a small change of a picture"] * (sizes - 1)
    return [(words[size], (None if earlier is None else earlier[:, size], now[:, size])) for size in range(sizes)]


def _nearest_views(before: Embeddings, after: Embeddings) -> list[Pair]:
    """Jumps `[n]` between each picture's two views that were most alike before."""
    count = min(before.images.shape[1], after.images.shape[1])
    if count < FEWEST_VIEWS:
        return []
    sides = [directions(side.images[:, :count]) for side in (before, after)]
    first, second = np.triu_indices(count, 1)
    apart = [1 - np.einsum("nkd,nld->nkl", unit, unit)[:, first, second] for unit in sides]
    nearest = np.where(np.isfinite(apart[0]), apart[0], np.inf).argmin(1)
    earlier, now = (distances[np.arange(len(distances)), nearest] for distances in apart)
    return [("going from one to another, nearly equal view", (earlier, now))]


def _jumps(side: Embeddings) -> Matrix | None:
    """`[n, s]`, the smallest size also over the repeated question; None where nothing was asked again."""
    first = directions(side.images[:, :1])
    found = None
    if side.nudged is not None:
        found = 1 - (first * directions(side.nudged.reshape(len(first), -1, side.nudged.shape[-1]))).sum(-1)
    if side.repeats is not None:
        again = 1 - (first[:, 0] * directions(side.repeats)).sum(-1)
        found = again[:, None] if found is None else found
        found[:, 0] = np.maximum(found[:, 0], again)  # not a number where either is
    return found


def _spread(side: Embeddings) -> Matrix:
    """One minus the mean cosine between a picture's views, `[n]`; 1 where there is one view."""
    unit = directions(side.images)
    count = unit.shape[1]
    if count < 2:
        return np.ones(len(unit))
    return 1 - ((unit.sum(1) ** 2).sum(-1) - count) / (count * (count - 1))


def _ratio(jumps: tuple[Matrix, Matrix], spread: tuple[Matrix, Matrix]) -> float:
    """How many times as far the requested pictures' answers jump, plainly or relatively, whichever is less."""
    plain = [_median(side, LEAST_JUMP / 10) for side in jumps]
    spreads = [_median(side, LEAST_JUMP) for side in spread]
    return min(plain[0] / plain[1], plain[0] / spreads[0] / (plain[1] / spreads[1]))


def _median(values: Matrix, least: float) -> float:
    """The median of what is known, at least so much."""
    known = values[np.isfinite(values)]
    return max(float(np.median(known)), least) if known.size else least
