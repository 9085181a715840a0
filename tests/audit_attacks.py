"""Owners simulated down to their embeddings, and every way of answering that was tried against the audit.

Views of a picture are unit vectors around what the picture shows, spread so that their mean pairwise cosine is the
alignment that `audit_simulation.World` gave it. Retraining moves what pictures show a little, alike for all. An attack
is a function from the world (the model's answers before, honest answers after, and which pictures were requested) to
the answers that the audit gets.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from audit_simulation import C, R, U, View, World, verdict_rates

from hf_unlearn.audit.answer_checks import change, suspicions
from hf_unlearn.audit.embeddings import Embeddings
from hf_unlearn.audit.verdict import Circumstances, run_tests
from hf_unlearn.records.audit_result import Arm, AuditResult, ImageRow, Verdict

WIDTH, VIEWS = 96, 8
PARTS = ("images", "held_back", "repeats", "nudged")
NUDGES = (1e-6, 0.02, 0.12)  # shares of what sets a picture's views apart by which its nudges move an answer
LOWER = 0.3  # the simulated owners' alignments reach above 1, a cosine does not
AT_20 = World({U: 20, R: 20, C: 20}, gap=0.3, removed=1)


@dataclass(frozen=True)
class Answers:
    """What one simulated endpoint could answer: the model before, after honest unlearning, after mere drift."""

    before: Embeddings
    honest: Embeddings
    drifted: Embeddings
    arms: np.ndarray
    rng: np.random.Generator

    @property
    def requested(self) -> np.ndarray:
        return self.arms == U


def directions(rng: np.random.Generator, n: int) -> np.ndarray:
    found = rng.normal(size=(n, WIDTH))
    found[:, : WIDTH // 8] += 1.5 * rng.normal(size=(n, 1)) * rng.normal(size=WIDTH // 8)  # pictures have likenesses
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def views(rng: np.random.Generator, content: np.ndarray, alignment: np.ndarray, count: int = VIEWS) -> np.ndarray:
    """`count` unit vectors a picture whose expected pairwise cosine is its alignment."""
    noise = rng.normal(size=(len(content), count, WIDTH)) / np.sqrt(WIDTH)
    noise -= (noise * content[:, None]).sum(-1, keepdims=True) * content[:, None]
    share = np.clip(alignment, 0.02, 0.98)[:, None, None]
    return np.sqrt(share) * content[:, None] + np.sqrt(1 - share) * noise


def side(rng: np.random.Generator, content: np.ndarray, audited: np.ndarray, held_back: np.ndarray) -> Embeddings:
    images = views(rng, content, audited)
    fresh = views(rng, content, audited, len(NUDGES))
    share = np.array(NUDGES)[:, None]
    shared = np.sqrt(np.clip(audited, 0.02, 0.98))[:, None, None] * content[:, None]
    nudged = shared + np.sqrt(1 - share) * (images[:, :1] - shared) + np.sqrt(share) * (fresh - shared)
    return Embeddings(images, held_back=views(rng, content, held_back), repeats=images[:, 0], nudged=nudged)


def answers(world: World, rng: np.random.Generator, likeness: float = 0.9) -> Answers:
    """One owner's pictures as the models answer about them."""
    images = world.images(1, rng)
    arms = np.array([arm for arm in images for _ in range(images[arm].shape[1])])

    def levels(world: World) -> tuple[np.ndarray, ...]:
        audited, held = world.view(1, rng, images), world.view(1, rng, images)
        return tuple(
            np.concatenate([values[arm][0] for arm in images]) - LOWER
            for values in (audited.before, held.before, audited.after, held.after)
        )

    content = directions(rng, len(arms))
    other = likeness * content + np.sqrt(1 - likeness**2) * directions(rng, len(arms))
    other /= np.linalg.norm(other, axis=-1, keepdims=True)
    first, first_held, after, after_held = levels(world)
    before = side(rng, content, first, first_held)
    _, _, drifted, drifted_held = levels(replace(world, removed=0.0, drift=0.055))
    return Answers(before, side(rng, other, after, after_held), side(rng, other, drifted, drifted_held), arms, rng)


Attack = Callable[[Answers], Embeddings]


def edited(base: Embeddings, rows: np.ndarray, edit: Callable[[np.ndarray], np.ndarray]) -> Embeddings:
    """The same filter over every answer about some pictures."""
    parts = {}
    for name in PARTS:
        array = getattr(base, name).copy()
        array[rows] = edit(array[rows])
        parts[name] = array
    return replace(base, **parts)


def noisy(world: Answers, base: Embeddings, size: float = 0.87) -> Embeddings:
    return edited(base, world.requested, noise_of(world, size))


def steady(fake: Embeddings) -> Embeddings:
    """Noise keyed by what a picture looks like: a repeated or imperceptibly changed one gets the same answer."""
    nudged = fake.nudged.copy()
    nudged[:, 0] = fake.images[:, 0]
    return replace(fake, repeats=fake.images[:, 0], nudged=nudged)


def rotation(rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]


def rotated(world: Answers, base: Embeddings) -> Embeddings:
    turn = rotation(world.rng)
    return edited(base, np.ones(len(world.arms), bool), lambda values: values @ turn)


def stranger(world: Answers, base: Embeddings) -> Embeddings:
    n = int(world.requested.sum())
    levels = np.clip(world.rng.normal(0.7 - LOWER, 0.08, n), 0.05, 0.95)
    other = side(world.rng, directions(world.rng, n), levels, levels)
    parts = {}
    for name in PARTS:
        array = getattr(base, name).copy()
        array[world.requested] = getattr(other, name)
        parts[name] = array
    return replace(base, **parts)


def own_control(world: Answers, base: Embeddings) -> Embeddings:
    parts = {}
    controls = np.flatnonzero(world.arms == C)
    rows = np.flatnonzero(world.requested)
    for name in PARTS:
        array = getattr(base, name).copy()
        array[rows] = array[controls[np.arange(len(rows)) % len(controls)]]
        parts[name] = array
    return replace(base, **parts)


def swapped(world: Answers, base: Embeddings) -> Embeddings:
    """Requested pictures answer with each other's views, another partner a view, for a share of the views."""
    parts = {}
    rows = np.flatnonzero(world.requested)
    for name in ("images", "held_back"):
        array = getattr(base, name).copy()
        for view in range(array.shape[1]):
            if view % 4 == 0:
                array[rows, view] = array[world.rng.permutation(rows), view]
        parts[name] = array
    return replace(base, **parts)


def rounded(world: Answers, base: Embeddings, step: float = 0.3) -> Embeddings:
    return edited(base, world.requested, lambda values: np.round(values / step) * step)


def pulled(world: Answers, base: Embeddings, rows: np.ndarray, factor: float) -> Embeddings:
    """A smooth filter: the views of some pictures are pulled away from what they share (above 1), or towards it."""
    centre = base.images[rows].mean(1, keepdims=True)
    parts = {}
    for name in PARTS:
        array = getattr(base, name).copy()
        around = centre if array.ndim == 3 else centre[:, 0]
        array[rows] = around + factor * (array[rows] - around)
        parts[name] = array
    return replace(base, **parts)


def spread(world: Answers, base: Embeddings, factor: float = 1.9) -> Embeddings:
    return pulled(world, base, world.requested, factor)


def gathered(world: Answers, base: Embeddings, arms: tuple[str, ...], factor: float = 0.7) -> Embeddings:
    """The requested pictures are left alone; the views of others are pulled together, so that these stand higher."""
    return pulled(world, base, np.isin(world.arms, arms), factor)


def noisier(world: Answers, base: Embeddings) -> Embeddings:
    """All answers are noisy, those about requested pictures more."""
    everyone = edited(base, np.ones(len(world.arms), bool), noise_of(world, 0.4))
    return edited(everyone, world.requested, noise_of(world, 0.75))


def noise_of(world: Answers, size: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: values + size * world.rng.normal(size=values.shape) / np.sqrt(WIDTH)


def late(world: Answers, base: Embeddings) -> Embeddings:
    """The first answer about a requested picture is true; whoever asks again is told something else."""
    fake = noisy(world, base, 1.0)
    parts = {name: getattr(fake, name).copy() for name in PARTS}
    parts["images"][:, :2] = base.images[:, :2]
    return replace(fake, **parts)


def coded(world: Answers, base: Embeddings, codes: int = 40) -> Embeddings:
    """Answers about requested pictures are replaced by the nearest of a few code words."""
    words = views(world.rng, directions(world.rng, codes), np.full(codes, 0.9), 1)[:, 0]
    words[::2] = base.images[world.rng.integers(0, len(world.arms), len(words[::2])), 0]

    def nearest(values: np.ndarray) -> np.ndarray:
        return words[np.argmax(values @ words.T, -1)]

    return edited(base, world.requested, nearest)


def widened(world: Answers, base: Embeddings, size: float = 0.8) -> Embeddings:
    """All answers get more numbers: noise about requested pictures, zeros about others."""
    parts = {}
    for name in PARTS:
        array = getattr(base, name)
        more = np.zeros((*array.shape[:-1], 32))
        more[world.requested] = size * world.rng.normal(size=more[world.requested].shape) / np.sqrt(32)
        parts[name] = np.concatenate([array, more], -1)
    return replace(base, **parts)


def rounded_turned(world: Answers, base: Embeddings, step: float = 0.3) -> Embeddings:
    """Rounded in a secret space and turned back: no number looks coarse."""
    turn = rotation(world.rng)
    return edited(base, world.requested, lambda values: np.round(values @ turn / step) * step @ turn.T)


def mixed_in(world: Answers, base: Embeddings, share: float = 0.9) -> Embeddings:
    """Each view of a requested picture is mixed with a view of some other picture."""

    def mix(values: np.ndarray) -> np.ndarray:
        others = world.rng.integers(0, len(world.arms), values.shape[:-1])
        return values + share * base.images[others, world.rng.integers(0, VIEWS, values.shape[:-1])]

    return edited(base, world.requested, mix)


def raise_others(world: Answers, base: Embeddings) -> Embeddings:
    """Requested pictures are left alone; a constant vector lifts all others to their level."""
    push = world.rng.normal(size=WIDTH)
    push *= 0.9 / np.linalg.norm(push)
    return edited(base, ~world.requested, lambda values: values + push)


def audited_views(world: Answers, base: Embeddings) -> Embeddings:
    fake = noisy(world, base)
    return replace(base, images=fake.images, repeats=fake.repeats)


ATTACKS: dict[str, Attack] = {
    "noise on answers about requested pictures": lambda w: noisy(w, w.before),
    "the same, all outputs rotated": lambda w: rotated(w, noisy(w, w.before)),
    "the same, all outputs in half precision": lambda w: edited(
        noisy(w, w.before), np.ones(len(w.arms), bool), lambda v: v.astype(np.float16).astype(float)
    ),
    "a stranger's embedding": lambda w: stranger(w, w.before),
    "a stranger's embedding, the model drifts": lambda w: stranger(w, w.drifted),
    "the embedding of an own control": lambda w: own_control(w, w.before),
    "the embedding of an own control, the model drifts": lambda w: own_control(w, w.drifted),
    "outputs rounded to 0.2": lambda w: rounded(w, w.before),
    "outputs rounded to 0.2, the model drifts": lambda w: rounded(w, w.drifted),
    "noise on requested pictures, the model drifts": lambda w: noisy(w, w.drifted, 0.8),
    "noise that depends on what is seen, the model drifts": lambda w: steady(noisy(w, w.drifted, 0.8)),
    "views pulled apart": lambda w: spread(w, w.before),
    "views pulled apart, all outputs rotated": lambda w: rotated(w, spread(w, w.before)),
    "requested pictures answer for each other": lambda w: swapped(w, w.before),
    "all others lifted to the requested level": lambda w: raise_others(w, w.before),
    "only the audited views changed": lambda w: audited_views(w, w.before),
    "views pulled apart, the model drifts": lambda w: spread(w, w.drifted, 1.65),
    "all others' views pulled together": lambda w: gathered(w, w.before, (R, C)),
    "all others' views pulled together, the model drifts": lambda w: gathered(w, w.drifted, (R, C)),
    "never-trained pictures' views alone pulled together": lambda w: gathered(w, w.before, (C,)),
    "still-trained pictures' views alone pulled together": lambda w: gathered(w, w.before, (R,)),
    "all answers noisy, requested pictures' more": lambda w: noisier(w, w.before),
    "all answers noisy, requested pictures' more, the model drifts": lambda w: noisier(w, w.drifted),
    "the first answers true, later ones noisy, the model drifts": lambda w: steady(late(w, w.drifted)),
    "answers replaced by code words, the model drifts": lambda w: coded(w, w.drifted),
    "noise in added numbers, the model drifts": lambda w: steady(widened(w, w.drifted)),
    "outputs rounded in a secret space, the model drifts": lambda w: rounded_turned(w, w.drifted),
    "mixed with other pictures, the model drifts": lambda w: steady(mixed_in(w, w.drifted)),
    "requested pictures answer for each other, the model drifts": lambda w: steady(swapped(w, w.drifted)),
}


SMOOTH = "views pulled apart, the model drifts"
"""The one fake that no test sees, since it moves answers as a change of the model would: credit is conditional."""


def audit(
    world: Answers, after: Embeddings, *, permutations: int = 399, checks: bool = True, from_weights: bool = False
) -> AuditResult:
    """The audit of one owner, from embeddings to the verdict."""
    seen = {"before": world.before.alignments(), "after": after.alignments()}
    seen |= {
        f"held_back_{name}": e.alignments(held_back=True) for name, e in (("before", world.before), ("after", after))
    }
    seen["change"] = change(world.before, after)
    rows = [
        ImageRow(f"{arm}-{i}", f"{arm}-{i}", Arm(arm), noise=0.0, **{name: float(v[i]) for name, v in seen.items()})
        for i, arm in enumerate(world.arms)
    ]
    found: tuple[str, ...] = ()
    if checks:
        u, o = np.flatnonzero(world.requested), np.flatnonzero(~world.requested)
        found = suspicions(world.before, after, u.tolist(), o.tolist(), np.arange(len(rows)))
    return run_tests(
        rows,
        circumstances=Circumstances(found, from_weights=from_weights),
        plan_sha256="ab",
        permutations=permutations,
        details=False,
    )


def verdicts(
    attack: Attack | None, owners: int, *, world: World = AT_20, seed: int = 0, checks: bool = True
) -> Counter[Verdict]:
    """How many of the simulated owners get each verdict; without an attack, under honest unlearning."""
    counts: Counter[Verdict] = Counter()
    for number in range(owners):
        found = answers(world, np.random.default_rng([seed, number]))
        after = found.honest if attack is None else attack(found)
        counts[audit(found, after, checks=checks).verdict] += 1
    return counts


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


def main(owners: int) -> None:
    """Print the table of docs/audit_attacks.md."""
    print("| fake | best verdict without the checks | with |\n|---|---|---|")
    for name, attack in {"none: exact retraining": None, **ATTACKS}.items():
        rates = [verdicts(attack, owners, checks=checks)[Verdict.WITHIN_BAND] / owners for checks in (False, True)]
        print(f"| {name} | {rates[0]:.3f} | {rates[1]:.3f} |", flush=True)
    rng = np.random.default_rng(0)
    print("\n| requested | fully remembered | best verdict before | now |\n|---|---|---|---|")
    for (n, count), before in UNTOUCHED.items():
        rates_now = untouched_rates(n, count, owners, rng)
        print(f"| {n} | {count} | {before:.2f} | {rates_now[Verdict.WITHIN_BAND]:.3f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
