"""Simulated owners, thousands at a time, judged by the library's own tests and rules.

An image's alignment is `level + image + gap * member + measurement`: images differ (`image_std`, the same before and
after), training on an image lifts it by `gap`, and the forgetting score of an untouched image has standard deviation
`score_std`. The paper's figures for exact retraining (mean .025, standard deviation .081 at two views) set the scale.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import comb

import numpy as np

from hf_unlearn.audit.levels import (
    BOUND_SHARE,
    MARGIN_SHARE,
    RESIDUAL_LEVEL,
    SHARE_LEVEL,
    TOLERANCE,
    TRANSFER_LEVEL,
    TRANSFER_SHARE,
)
from hf_unlearn.audit.standing_out import flags, tail_scores
from hf_unlearn.audit.statistics import ENUMERATION_LIMIT, TwoSample
from hf_unlearn.audit.verdict import Findings, decide
from hf_unlearn.records.audit_result import Arm, ImageRow, Verdict

PAPER_MEAN, PAPER_STD = 0.025, 0.081
DRAWS = 599
"""Permutations: the observed one included, 600 reach every level of `levels`, as the 10,000 of an audit nearly do."""
U, R, C = Arm.REQUESTED, Arm.STILL_TRAINED, Arm.NEVER_TRAINED


@dataclass(frozen=True)
class View:
    """Alignments `[owners, images]` of each arm, before and after, on one kind of transforms."""

    before: dict[Arm, np.ndarray]
    after: dict[Arm, np.ndarray]

    def __getitem__(self, owners: slice) -> View:
        return View(
            {arm: values[owners] for arm, values in self.before.items()},
            {arm: values[owners] for arm, values in self.after.items()},
        )

    def scores(self, arm: Arm) -> np.ndarray:
        return self.before[arm] - self.after[arm]


@dataclass(frozen=True)
class World:
    """What happened to the model, the same for every simulated owner.

    Args:
        sizes: images in each arm.
        gap: what training adds to an image's alignment.
        removed: share of the gap taken from the requested images.
        kept: share of the gap that the other members keep.
        drift: what every image loses.
        image_std, score_std: spread between images, and of the forgetting score.
        content: how much the never-trained images differ in content.
    """

    sizes: dict[Arm, int]
    gap: float
    removed: float = 0.0
    kept: float = 1.0
    drift: float = 0.0
    image_std: float = 0.08
    score_std: float = PAPER_STD / 2  # ten views halve the spread of two
    content: float = 0.0

    def images(self, owners: int, rng: np.random.Generator) -> dict[Arm, np.ndarray]:
        """The images' own levels `[owners, images]`, the same on every kind of transforms."""
        return {arm: rng.normal(0.7, self.image_std, (owners, n)) for arm, n in self.sizes.items()}

    def view(self, owners: int, rng: np.random.Generator, images: dict[Arm, np.ndarray] | None = None) -> View:
        """Alignments of `owners` owners; pass `images` to see the same images on other transforms."""
        before, after = {}, {}
        for arm, image in (images or self.images(owners, rng)).items():
            image = image - (self.content if arm is C else 0)
            kept = {U: 1 - self.removed, R: self.kept, C: 0.0}[arm]
            first, second = rng.normal(0, self.score_std / np.sqrt(2), (2, *image.shape))
            before[arm] = image + (self.gap if arm is not C else 0) + first
            after[arm] = image + self.gap * kept - self.drift + second
        return View(before, after)


def findings(view: View, held_back: View | None = None, *, permutations: int = DRAWS) -> list[Findings]:
    """What `find(measure(...))` gives for each owner, as many owners at once as fit in the processor's cache."""
    found: list[Findings] = []
    sizes = [values.shape[-1] for values in view.before.values()]
    count = comb(sizes[0] + sizes[1], sizes[0])
    step = max(1, 25_000 // (count if count <= ENUMERATION_LIMIT else permutations))
    for start in range(0, len(view.before[U]), step):
        part = slice(start, start + step)
        # Fresh draws for every part: few permutations shared by all owners would make one lucky or unlucky rate.
        found += _findings(view[part], held_back and held_back[part], permutations, seed=start)
    return found


def _findings(view: View, held_back: View | None, permutations: int, seed: int) -> list[Findings]:
    level = 0.05
    reference = R if R in view.before else C
    owners = len(view.before[U])

    def two(x: np.ndarray, y: np.ndarray) -> TwoSample:
        return TwoSample(x, y, permutations=permutations, seed=seed)

    def levels(view: View) -> tuple[np.ndarray, ...]:
        targeted = two(view.scores(U), view.scores(reference)).p_value("greater") <= level
        if C not in view.before:
            return targeted, *[np.zeros(owners, bool)] * 4
        after = two(view.after[U], view.after[C])
        margin = MARGIN_SHARE * (view.before[U].mean(-1) - view.before[C].mean(-1))
        inside = np.maximum(after.p_value("less", margin), after.p_value("greater", -margin)) <= level
        two_sided = after.p_value("two-sided")
        above, below = (two_sided <= level) & (after.estimate > 0), (two_sided <= level) & (after.estimate < 0)
        return targeted, above, below, inside & (margin > 0), above & (two_sided / 2 <= RESIDUAL_LEVEL)

    targeted, above, overshoot, equivalent, residual = levels(view)
    targeted &= two(view.scores(U), view.scores(reference)).estimate > TOLERANCE
    sensitive = bounded = blind = standing_out = np.zeros(owners, bool)
    if C in view.before:
        gap = two(view.before[U], view.before[C])
        sensitive = gap.p_value("greater") <= level
        blind = ~sensitive
        bound = two(view.scores(U), view.scores(reference)).p_value("less", BOUND_SHARE * gap.estimate) <= level
        rest = {arm: (1 - BOUND_SHARE) * view.before[arm] - view.after[arm] for arm in (U, C)}
        bounded = bound & (gap.estimate > 0) & (two(rest[U], rest[C]).p_value("less") <= SHARE_LEVEL)
        residual = residual | (two(*tail_scores(view.after[U], view.after[C])).p_value("greater") <= RESIDUAL_LEVEL)
        seen = (view.before[U], view.after[U], view.scores(R if R in view.before else C), view.after[C], gap.estimate)
        flagged = [flags(*one).any() if one[-1] > 0 else False for one in zip(*seen, strict=True)]
        standing_out = np.array(flagged) & sensitive & targeted & (sizes_of(view, C) >= 4)
    if held_back is not None:
        again, higher, lower, inside, surely = levels(held_back)
        above, overshoot, equivalent = above | higher, overshoot | lower, equivalent & again & inside
        residual = residual | surely
        if C in view.before:
            excess = two(held_back.after[U] - view.after[U], held_back.after[C] - view.after[C])
            share = np.maximum(0, TRANSFER_SHARE * gap.estimate)
            equivalent = equivalent & (excess.p_value("greater", share) > TRANSFER_LEVEL)
    columns = (sensitive, blind, targeted, bounded, residual, above, overshoot, equivalent, standing_out)
    return [Findings(True, False, *map(bool, row)) for row in zip(*columns, strict=True)]


def sizes_of(view: View, arm: Arm) -> int:
    return view.before[arm].shape[-1]


def verdict_rates(view: View, held_back: View | None = None, **settings: int) -> Counter[Verdict]:
    """Share of owners with each verdict."""
    found = findings(view, held_back, **settings)
    counts = Counter(decide(one) for one in found)
    return Counter({verdict: count / len(found) for verdict, count in counts.items()})


def table(view: View, owner: int, held_back: View | None = None) -> list[ImageRow]:
    """The per-image table of one simulated owner."""
    return [
        ImageRow(
            image=f"{arm}-{i}",
            sha256=f"{arm}-{i}",
            arm=arm,
            before=float(view.before[arm][owner, i]),
            after=float(view.after[arm][owner, i]),
            held_back_before=float(held_back.before[arm][owner, i]) if held_back else None,
            held_back_after=float(held_back.after[arm][owner, i]) if held_back else None,
            change=0.1,
            noise=0.0,
        )
        for arm in view.before
        for i in range(view.before[arm].shape[1])
    ]


def untouched(view: View, count: int, world: World) -> View:
    """Some requested pictures fully remembered: as they would stand had nothing been done about them."""
    after = {arm: values.copy() for arm, values in view.after.items()}
    after[U][:, :count] += world.gap * world.removed
    return View(view.before, after)


UNTOUCHED = {(12, 1): 0.89, (12, 2): 0.63, (20, 4): 0.67, (50, 10): 0.29, (149, 15): 0.26}
"""Arms of so many pictures, so many of them fully remembered, and how often that got the best verdict before."""


def untouched_rates(n: int, count: int, owners: int, rng: np.random.Generator) -> Counter[Verdict]:
    """Verdicts where `count` of `n` requested pictures were left alone."""
    world = World({U: n, R: n, C: n}, gap=0.3, removed=1)
    images = world.images(owners, rng)
    seen = [untouched(world.view(owners, rng, images), count, world) for _ in range(2)]
    return verdict_rates(seen[0], seen[1])
