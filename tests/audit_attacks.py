"""Every way of answering that was tried against the audit.

An attack is a function from the world (the model's answers before, honest answers after, and which pictures were
requested) to the answers that the audit gets.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from audit_answers import AT_20, LOWER, PARTS, VIEWS, WIDTH, Answers, answers, directions, edited, rotation, side, views
from audit_simulation import DRAWS, C, R, World

from hf_unlearn.audit.answer_checks import change, suspicions
from hf_unlearn.audit.answer_jumps import checkable, units
from hf_unlearn.audit.embeddings import Embeddings
from hf_unlearn.audit.verdict import Circumstances, run_tests
from hf_unlearn.records.audit_result import Arm, AuditResult, ImageRow, Verdict

Attack = Callable[[Answers], Embeddings]


def noisy(world: Answers, base: Embeddings, size: float = 0.87) -> Embeddings:
    return edited(base, world.requested, noise_of(world, size))


def steady(fake: Embeddings) -> Embeddings:
    """Noise keyed by what a picture looks like: a repeated or imperceptibly changed one gets the same answer."""
    nudged = fake.nudged.copy()
    nudged[:, 0] = fake.images[:, 0]
    return replace(fake, repeats=fake.images[:, 0], nudged=nudged)


def rotated(world: Answers, base: Embeddings, bent: float = 0.0) -> Embeddings:
    turn = rotation(world.rng) + bent * world.rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)
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


def kept_noise(world: Answers, base: Embeddings) -> Embeddings:
    """Noise keyed by a coarse hash: all small changes of a picture share it, its views do not."""
    fake, rows = noisy(world, base, 0.8), world.requested
    nudged = base.nudged.copy()
    nudged[rows] += fake.images[rows, :1] - base.images[rows, :1]
    return replace(fake, repeats=fake.images[:, 0], nudged=nudged)


def noisy_views(world: Answers, base: Embeddings) -> Embeddings:
    """The picture and its small changes get true answers; its views, found in an index, get noisy ones."""
    fake = noisy(world, base, 0.8)
    images = np.concatenate([base.images[:, :1], fake.images[:, 1:]], 1)
    return replace(base, images=images, held_back=fake.held_back)


def routed(world: Answers, others: Embeddings, turned: bool = False) -> Embeddings:
    """A retrained model answers about requested pictures alone; a turned one comes of a training of its own."""
    turn = rotation(world.rng) if turned else np.eye(WIDTH)
    parts = {name: getattr(others, name).copy() for name in PARTS}
    for name, array in parts.items():
        array[world.requested] = getattr(world.honest, name)[world.requested] @ turn
    return replace(others, **parts)


def recorded_others(world: Answers) -> Embeddings:
    """Answers about all but the requested pictures come from the recording of before."""
    fake = noisy(world, world.drifted, 0.8)
    for name in PARTS:
        getattr(fake, name)[~world.requested] = getattr(world.before, name)[~world.requested]
    return fake


def one_answer(world: Answers, base: Embeddings) -> Embeddings:
    """All requested pictures share their answers, view by view."""
    return edited(base, world.requested, lambda values: np.broadcast_to(values.mean(0), values.shape))


def shifted(world: Answers, base: Embeddings) -> Embeddings:
    """A constant is added to all answers, which squeezes every difference."""
    push = world.rng.normal(size=WIDTH)
    return edited(base, np.ones(len(world.arms), bool), lambda values: values + 2 * push / np.linalg.norm(push))


def captions_of(base: Embeddings, rows: np.ndarray, values: np.ndarray) -> Embeddings:
    """The same pictures' answers, other answers about some captions."""
    assert base.texts is not None
    texts = base.texts.copy()
    texts[rows] = values
    return replace(base, texts=texts)


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
    "noise kept for alike pictures, the model drifts": lambda w: kept_noise(w, w.drifted),
    "pictures true, their views noisy, the model drifts": lambda w: noisy_views(w, w.drifted),
    "a retrained model for requested pictures alone": lambda w: routed(w, w.before),
    "a model retrained apart for requested pictures alone, drift": lambda w: routed(w, w.drifted, turned=True),
    "other pictures answered from the recording of before": recorded_others,
    "one answer for all requested pictures, the model drifts": lambda w: one_answer(w, w.drifted),
    "a constant added to all answers": lambda w: shifted(w, w.before),
    "a constant added to all answers, the model drifts": lambda w: shifted(w, w.drifted),
}
CAPTION_ATTACKS: dict[str, Attack] = {
    "captions: noise": lambda w: captions_of(w.before, w.requested, noise_of(w, 1.3)(w.before.texts[w.requested])),
    "captions: an own control's": lambda w: captions_of(w.before, w.requested, w.before.texts[w.arms == C]),
    "captions: each other's": lambda w: captions_of(w.before, w.requested, np.roll(w.before.texts[w.requested], 1, 0)),
}
"""Answers about the requested pictures' captions are changed, and none about pictures."""


SMOOTH = "views pulled apart, the model drifts"
MAPPED = "views pulled apart, one linear map over all answers"
LIMITS: dict[str, Attack] = {
    SMOOTH: lambda w: spread(w, w.drifted, 1.65),
    MAPPED: lambda w: rotated(w, spread(w, w.before), bent=0.5),
    "a model retrained for requested pictures alone, drift": lambda w: routed(w, w.drifted),
}
CAPTION_LIMITS: dict[str, Attack] = {
    "captions: noise, the model drifts": lambda w: captions_of(
        w.drifted, w.requested, noise_of(w, 1.3)(w.drifted.texts[w.requested])
    ),
}
"""Fakes that no test sees, since they move answers as a change of the model would: credit is conditional."""


def audit(
    world: Answers, after: Embeddings, *, permutations: int = DRAWS, checks: bool = True, from_weights: bool = False
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
    checked = True
    if checks:
        u, o = np.flatnonzero(world.requested), np.flatnonzero(~world.requested)
        found = suspicions(world.before, after, u.tolist(), o.tolist(), np.arange(len(rows)))
        checked = checkable(units(u.tolist(), o.tolist(), np.arange(len(rows))))
    return run_tests(
        rows,
        circumstances=Circumstances(found, from_weights=from_weights, checked=checked),
        plan_sha256="ab",
        permutations=permutations,
        details=False,
    )


def verdicts(
    attack: Attack | None,
    owners: int,
    *,
    world: World = AT_20,
    seed: int = 0,
    checks: bool = True,
    captions: bool = False,
) -> Counter[Verdict]:
    """How many of the simulated owners get each verdict; without an attack, under honest unlearning."""
    counts: Counter[Verdict] = Counter()
    for number in range(owners):
        found = answers(world, np.random.default_rng([seed, number]), captions=captions)
        after = found.honest if attack is None else attack(found)
        counts[audit(found, after, checks=checks).verdict] += 1
    return counts


def main(owners: int) -> None:
    """Print the table of docs/audit_attacks.md."""
    print("| fake | best verdict without the checks | with |\n|---|---|---|")
    tried = [(False, {"none: exact retraining": None, **ATTACKS, **LIMITS})]
    tried.append((True, {"captions: exact retraining": None, **CAPTION_ATTACKS, **CAPTION_LIMITS}))
    for captions, attacks in tried:
        for name, attack in attacks.items():
            rates = [
                verdicts(attack, owners, checks=checks, captions=captions)[Verdict.WITHIN_BAND] / owners
                for checks in (False, True)
            ]
            print(f"| {name} | {rates[0]:.3f} | {rates[1]:.3f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
