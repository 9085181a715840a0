"""Owners simulated down to their embeddings: what an endpoint could answer about their pictures.

Views of a picture are unit vectors around what the picture shows, spread so that their mean pairwise cosine is the
alignment that `audit_simulation.World` gave it. Retraining moves what pictures show a little, alike for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from audit_simulation import C, R, U, World

from hf_unlearn.audit.embeddings import Embeddings

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


def side(
    rng: np.random.Generator, content: np.ndarray, audited: np.ndarray, held_back: np.ndarray, captions: bool = False
) -> Embeddings:
    images = views(rng, content, audited)
    fresh = views(rng, content, audited, len(NUDGES))
    share = np.array(NUDGES)[:, None]
    shared = np.sqrt(np.clip(audited, 0.02, 0.98))[:, None, None] * content[:, None]
    nudged = shared + np.sqrt(1 - share) * (images[:, :1] - shared) + np.sqrt(share) * (fresh - shared)
    seen = Embeddings(images, held_back=views(rng, content, held_back), repeats=images[:, 0], nudged=nudged)
    if not captions:
        return seen
    return replace(seen, texts=views(rng, content, audited, 1)[:, 0], text_owner=np.arange(len(content)))


def answers(world: World, rng: np.random.Generator, likeness: float = 0.9, captions: bool = False) -> Answers:
    """One owner's pictures, or pictures and captions, as the models answer about them."""
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
    before = side(rng, content, first, first_held, captions)
    _, _, drifted, drifted_held = levels(replace(world, removed=0.0, drift=0.055))
    honest, drift = ((after, after_held), (drifted, drifted_held))
    return Answers(before, *(side(rng, other, *levels, captions) for levels in (honest, drift)), arms, rng)


def edited(base: Embeddings, rows: np.ndarray, edit: Callable[[np.ndarray], np.ndarray]) -> Embeddings:
    """The same filter over every answer about some pictures."""
    parts = {}
    for name in PARTS:
        array = getattr(base, name).copy()
        array[rows] = edit(array[rows])
        parts[name] = array
    return replace(base, **parts)


def rotation(rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
