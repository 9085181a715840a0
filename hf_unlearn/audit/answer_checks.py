"""Answers that no training gives: filters in front of an unchanged model, shared, coarse and jittery embeddings.

Whoever serves a model knows which pictures were requested, and can change the answers about them instead of the model.
Training moves the answers about all pictures, since they share its weights. So what is compared is the geometry:
cosines between pictures, which no rotation, scale or added dimension of the outputs moves. On honest models the
requested pictures' geometry moves about as much as that of the others (measured: 0.8 to 1.1 times, whatever the
method).

What a side did not answer is left out of every mean (`known_mean`), so that one unanswered view switches off no check.
Where nothing is left of a picture, its answers jump and stay at their worst; its alignment counts as remembered anyway.

Each check gives at most one sentence. A suspicion bars the best verdict; it accuses nobody.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hf_unlearn.audit.answer_jumps import FEWEST_OTHERS, Units, jumping, steady, units
from hf_unlearn.audit.embeddings import Embeddings, directions
from hf_unlearn.audit.levels import TOLERANCE
from hf_unlearn.audit.statistics import TwoSample, known_mean
from hf_unlearn.metrics.alignment_matrices import Matrix

SHARE = 1 / 3
"""A geometry that moved less than this share of the other's did not move with it."""
SHARED, SHARED_BEFORE = 0.995, 0.9
"""Cosine of two different pictures' answers from which they are one answer, and below which they were two before."""
SHARED_LEVEL = 0.01
FEW_VALUES = 32
"""Different values a coordinate takes in coarse answers, at most."""
ENOUGH_ANSWERS = 40
CONTENT_LEVEL, CONTENT_SHARE, CONTENT_SEEN, LEAST_AGREEMENT = 0.01, 0.85, 0.3, 0.05
"""Requested pictures' likeness to others must be kept 0.85 times as well as other pictures' is, where that is 0.3 or
more. On honest models it is kept 0.93 to 1.0 times as well."""
SLOTS = 4  # views of a picture that are compared
ANCHORS = 256  # pictures that the others are compared with
FEWEST = 3  # pictures that cosines are compared over


@dataclass(frozen=True)
class Geometry:
    """Cosines between a picture's views and all pictures', before and after.

    Args:
        pairs: before and after: `[s, n, m]`, view s of picture i with the next view of anchor picture j, for s of its
            views; and, where both sides have captions, `[1, n, m]`, captions of i with a view of j.
        anchors: `[m]`, which pictures they are.
    """

    pairs: tuple[tuple[Matrix, Matrix], ...]
    anchors: NDArray[np.int64]


def suspicions(
    before: Embeddings, after: Embeddings, requested: Sequence[int], others: Sequence[int], clusters: NDArray[np.int64]
) -> tuple[str, ...]:
    """Run every check on one owner's pictures.

    Args:
        before: answers before.
        after: answers after, to the same questions.
        requested: rows of the requested pictures.
        others: rows of pictures that were not requested.
        clusters: `[n]`, which pictures are near-duplicates; they are not compared with each other.

    Returns:
        One sentence for each check that found something.
    """
    u, o = np.asarray(requested, dtype=np.int64), np.asarray(others, dtype=np.int64)
    found = [_coarse(after, u)]
    if len(u) and len(u) + len(o) >= FEWEST:
        found.append(_shared(before, after, u, o, clusters))
    compared = units(requested, others, clusters)
    if compared.requested and len(compared.others) >= FEWEST_OTHERS:
        seen = geometry(before, after)
        found += [_apart(seen, u, o, clusters), _content(seen, o, clusters, compared)]
        found += [jumping(before, after, compared), steady(before, after, compared)]
    return tuple(sentence for sentence in found if sentence is not None)


def geometry(before: Embeddings, after: Embeddings) -> Geometry:
    """Cosines of every picture's views (and captions) with those of up to 256 anchor pictures."""
    anchors = _anchors(len(before.images))
    count = min(before.images.shape[1], after.images.shape[1])
    first, second = (_cosines(side, anchors, count) for side in (before, after))
    return Geometry(tuple(zip(first, second, strict=False)), anchors)


def change(before: Embeddings, after: Embeddings) -> Matrix:
    """How far each picture's cosines with all pictures moved: root mean square `[n]`, NaN where a side has no
    answer.
    """
    seen = geometry(before, after)
    moved = np.concatenate([now - earlier for earlier, now in seen.pairs])
    answered = np.isfinite(before.images).all((1, 2)) & np.isfinite(after.images).all((1, 2))
    return np.where(answered, np.sqrt(known_mean(moved**2, (0, 2))), np.nan)


def noise(embeddings: Embeddings) -> Matrix | None:
    """What `change` would be between two identical models that answer as unsteadily: `[n]`; None without repeats."""
    if embeddings.repeats is None:
        return None
    n, count = embeddings.images.shape[:2]
    unit = directions(embeddings.images[_anchors(n), 1 % count])
    moved = (directions(embeddings.repeats) - directions(embeddings.images[:, 0])) @ unit.T
    # Of two models' cosines both sides are unsteady, here one: twice the variance.
    return np.sqrt(2 * known_mean(moved**2, 1))


def _anchors(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, ANCHORS)).round().astype(np.int64))


def _cosines(embeddings: Embeddings, anchors: NDArray[np.int64], count: int) -> list[Matrix]:
    views = directions(embeddings.images[:, : max(count, 1)])
    slots = range(min(SLOTS, count))
    cosines = np.stack([views[:, s] @ views[anchors, (s + 1) % count].T for s in slots])
    captions = embeddings.mean_captions()
    return [cosines] if captions is None else [cosines, (captions @ views[anchors, 0].T)[None]]


def _apart(seen: Geometry, u: NDArray[np.int64], o: NDArray[np.int64], clusters: NDArray[np.int64]) -> str | None:
    """Only one side's answers changed: requested pictures against others, each side's among itself."""
    for before, after in seen.pairs:

        def moved(
            rows: NDArray[np.int64], with_rows: NDArray[np.int64], before: Matrix = before, after: Matrix = after
        ) -> tuple[float, float]:
            """How far the cosines of two groups of pictures moved, and how far they differed before."""
            columns = np.isin(seen.anchors, with_rows)
            different = clusters[rows][:, None] != clusters[seen.anchors[columns]][None, :]
            first, second = (side[:, rows][:, :, columns][:, different] for side in (before, after))
            if columns.sum() < FEWEST or not np.isfinite(first).any():  # none was asked: decoys have no captions
                return float("nan"), float("nan")
            square = known_mean((second - first) ** 2)  # not a number where all that was asked is unanswered now
            return float(np.sqrt(np.nan_to_num(square))), float(np.sqrt(known_mean((first - known_mean(first)) ** 2)))

        (across, _), (among, varied), (own, own_varied) = moved(u, o), moved(o, o), moved(u, u)
        if across > 2 * TOLERANCE and among < SHARE * across:
            return (
                f"Only the answers about the requested pictures changed: their cosines with other pictures moved by "
                f"{across:.3f}, those among other pictures by {among:.3f}. Training moves both; a filter on answers "
                "does not."
            )
        # Requested pictures that are all alike have little to move: their move counts beside how far they differed.
        still = own < SHARE * among and own * varied < SHARE * among * own_varied
        if among > 2 * TOLERANCE and (across < SHARE * among or still):
            return (
                f"The answers about all pictures but the requested ones changed: cosines among others moved by "
                f"{among:.3f}, those of requested pictures by {min(across, own):.3f}. Training moves both."
            )
    return None


def _content(seen: Geometry, o: NDArray[np.int64], clusters: NDArray[np.int64], compared: Units) -> str | None:
    """What the model says of requested pictures depends less on what they show: a stranger's answers, or noise.

    Over the mean of views, and beside how far a picture's single views agree with each other: pictures that were
    removed stand lower than those still in training, so that less of what any of their answers say is content. Noise
    is for `jumping` and `steady`. Captions are left out: where a model had learned one by heart, exact retraining moves
    it anywhere (its likeness agrees with that before by 0.24 in the CLIP demo, others' by 0.46).
    """
    others = np.flatnonzero(np.isin(seen.anchors, o))
    columns = others[np.unique(clusters[seen.anchors[others]], return_index=True)[1]]  # one a cluster
    different = clusters[:, None] != clusters[seen.anchors[columns]][None, :]
    before, after = (side[:, :, columns] for side in seen.pairs[0])
    first, second = known_mean(before, 0), known_mean(after, 0)
    kept = [_correlation(first[i][apart], second[i][apart]) for i, apart in enumerate(different)]
    seen_alike = [compared.sides(_agreement(side, different)) for side in (before, after)]
    own, rest = (
        values[np.isfinite(values)]
        / np.sqrt(np.prod([_reliable(agreement[side], len(before)) for agreement in seen_alike]))
        for side, values in enumerate(compared.sides(np.array(kept)))
    )
    if not len(own) or len(rest) < FEWEST or rest.mean() < CONTENT_SEEN or own.mean() > CONTENT_SHARE * rest.mean():
        return None
    if TwoSample(rest, own, permutations=999).p_value("greater") > CONTENT_LEVEL:
        return None
    return (
        "The answers about the requested pictures show less of what is on them: their likeness to other pictures "
        f"agrees with that before by {own.mean():.2f} (correlation), other pictures' by {rest.mean():.2f}. A "
        "stranger's embedding in their place would look so, and so would a method that sets unmatched pairs apart on "
        "purpose."
    )


def _agreement(views: Matrix, different: NDArray[np.bool_]) -> Matrix:
    """How far the likenesses `[s, n, m]` that a picture's views find agree with each other: mean correlation `[n]`."""
    pairs = list(itertools.combinations(range(len(views)), 2))
    found = [
        known_mean([_correlation(views[s, i][apart], views[t, i][apart]) for s, t in pairs]) if pairs else 1.0
        for i, apart in enumerate(different)
    ]
    return np.array(found)


def _reliable(agreement: Matrix, count: int) -> float:
    """Share of what the mean of a picture's `count` views says that is not their scatter (Spearman and Brown)."""
    known = float(known_mean(agreement))
    single = 1.0 if np.isnan(known) else max(known, LEAST_AGREEMENT)
    return count * single / (1 + (count - 1) * single)


def _correlation(x: Matrix, y: Matrix) -> float:
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < FEWEST or np.ptp(x[known]) < TOLERANCE or np.ptp(y[known]) < TOLERANCE:
        return float("nan")
    return float(np.corrcoef(x[known], y[known])[0, 1])


def _shared(
    before: Embeddings, after: Embeddings, u: NDArray[np.int64], o: NDArray[np.int64], clusters: NDArray[np.int64]
) -> str | None:
    """Different pictures that get one answer now and had two before; of thousands a few do so in any new model."""

    def merged(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> int:
        different = clusters[rows][:, None] != clusters[columns][None, :]
        now, earlier = (_closest(side, rows, columns) for side in (after, before))
        return int(((now >= SHARED) & (earlier < SHARED_BEFORE) & different).any(1).sum())

    count = merged(u, np.concatenate([u, o]))
    others = merged(o, o) if count else 0
    table = [[count, len(u) - count], [others, len(o) - others]]
    if not count or (others and stats.fisher_exact(table, "greater").pvalue > SHARED_LEVEL):
        return None
    return (
        f"{count} of {len(u)} requested pictures now get the answer of a different picture (cosine {SHARED} or more, "
        "where they were told apart before)."
    )


def _closest(side: Embeddings, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Matrix:
    unit = directions(side.images[:, :SLOTS])
    slots = range(unit.shape[1])
    closest = np.full((len(rows), len(columns)), np.nan)  # one by one: a list of them all takes gigabytes
    for s, t in itertools.product(slots, slots):
        np.fmax(closest, unit[rows, s] @ unit[columns, t].T, out=closest)  # of what is known
    return closest


def _coarse(after: Embeddings, u: NDArray[np.int64]) -> str | None:
    """Answers that take a few values only: rounding that hides what is left."""
    values = after.images[u].reshape(-1, after.images.shape[-1])
    values = values[np.isfinite(values).all(1) & (values != 0).any(1)]
    if len(values) < ENOUGH_ANSWERS:
        return None
    distinct = float(np.median([len(np.unique(column)) for column in np.unique(values, axis=0).T]))
    if distinct > min(FEW_VALUES, 0.5 * len(values)):
        return None
    return (
        f"The answers about the requested pictures are coarse: each of their numbers takes about {distinct:.0f} "
        "values. Rounding of that size hides what is left of a picture."
    )
