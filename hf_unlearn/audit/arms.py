"""From the per-image table to the three arms: one row a cluster of near-duplicates, with everything unusable named.

Two rules keep an audit from being escaped or inflated. What was not answered, or not with finite numbers, counts as
remembered (`_worst_case`), so breaking answers never helps. And an image whose near-duplicate stands in another arm is
left out, since the twin that stays in training keeps its memory alive whatever was unlearned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_unlearn.audit.statistics import Floats
from hf_unlearn.errors import UserError, listed
from hf_unlearn.metrics.alignment_matrices import COLLAPSED
from hf_unlearn.records.audit_result import Arm, ArmSummary, ImageRow

_NAMED = 5  # at most so many images are named in a sentence
_MOST_BROKEN = 0.5  # with a larger share of answers broken there is no measurement

Names = dict[Arm, tuple[str, ...]]


@dataclass(frozen=True)
class Arms:
    """The images of one owner by arm, near-duplicates folded together.

    Args:
        rows: the images of each arm as they are tested: one a cluster, without twins, unanswered ones at their worst.
        measured: every image as it was measured, requested first.
        collapsed: names of the rows folded into another row, by arm.
        unusable: names of the images that were not answered, or not with finite numbers, by arm.
        twins: names of the images left out because a near-duplicate stands in another arm, by arm.
    """

    rows: dict[Arm, tuple[ImageRow, ...]]
    measured: tuple[ImageRow, ...]
    collapsed: Names
    unusable: Names
    twins: Names

    def __contains__(self, arm: Arm) -> bool:
        return arm in self.rows

    def size(self, arm: Arm) -> int:
        """Number of images that count in an arm."""
        return len(self.rows.get(arm, ()))

    def images(self) -> tuple[ImageRow, ...]:
        """All images as tested, requested first."""
        return tuple(row for arm in Arm for row in self.rows.get(arm, ()))

    def before(self, arm: Arm, *, held_back: bool = False) -> Floats:
        """Alignments before, `[n]`."""
        return np.array([row.held_back_before if held_back else row.before for row in self.rows[arm]], float)

    def after(self, arm: Arm, *, held_back: bool = False) -> Floats:
        """Alignments after, `[n]`."""
        return np.array([row.held_back_after if held_back else row.after for row in self.rows[arm]], float)

    def problems(self) -> list[str]:
        """What makes the measurement unusable, a sentence each."""
        found = []
        broken = [row.image for row in self.measured if _broken(row)]
        if len(broken) > _MOST_BROKEN * len(self.measured):
            named = listed(broken, most=_NAMED)
            found.append(
                f"{len(broken)} of {len(self.measured)} images have no finite alignment (zero or NaN embeddings): "
                f"{named}."
            )
        if not self.rows[Arm.REQUESTED]:
            found.append(
                "Every requested image has a near-duplicate among the images still in training, so what is remembered "
                "of it may rightly stay; request both, or compare with other images."
                if self.twins[Arm.REQUESTED]
                else "The model before gave no finite alignment for any requested image."
            )
        if found:
            return found
        # Distinct images share one alignment to six digits only if the model gives every image the same embedding.
        rows = self.images()
        sides = {"before": [row.before for row in rows], "after": [row.after for row in rows]}
        return [
            f"The model {side} has collapsed: all {len(rows)} images have the same alignment ({values[0]:.6f})."
            for side, values in sides.items()
            if len(rows) > 1 and np.ptp(values) < 1 - COLLAPSED
        ]

    def summaries(self, *, planned: bool, provenance: Mapping[Arm, str]) -> tuple[ArmSummary, ...]:
        """Each arm's size and origin; a plan covers the owner's two halves, never the controls."""
        return tuple(
            ArmSummary(
                arm=arm,
                size=self.size(arm),
                drawn="plan" if planned and arm is not Arm.NEVER_TRAINED else "chosen",
                provenance=provenance.get(arm, ""),
                collapsed=self.collapsed[arm],
                unusable=self.unusable[arm],
                twins=self.twins[arm],
            )
            for arm in self.collapsed
        )


def collect(images: Sequence[ImageRow]) -> Arms:
    """Sort one owner's images into arms, folding near-duplicates into one row by averaging their measurements.

    Raises:
        UserError: no image was requested, or one image stands in two arms.
    """
    arm_of: dict[str, ImageRow] = {}
    for row in images:
        first = arm_of.setdefault(row.sha256 or row.image, row)
        if first.arm != row.arm:
            raise UserError(
                f"The image '{row.image}' ({row.arm.value}) is also '{first.image}' ({first.arm.value}); an image "
                "belongs to one arm, so remove it from the other."
            )
    if not any(row.arm is Arm.REQUESTED for row in images):
        raise UserError("The audit has no requested image; give the images whose removal was requested.")
    present = [arm for arm in Arm if any(row.arm is arm for row in images)]
    twins = _twins(images)
    usable = _worst_case([row for row in images if row.image not in twins[row.arm]])
    groups: dict[tuple[Arm, str], list[ImageRow]] = defaultdict(list)
    for row in usable:
        groups[row.arm, _cluster(row)].append(row)
    rows = {arm: tuple(_fold(group) for (other, _), group in groups.items() if other is arm) for arm in present}
    return Arms(
        rows={arm: folded for arm, folded in rows.items() if folded or arm is Arm.REQUESTED},
        measured=tuple(row for arm in present for row in images if row.arm is arm),
        collapsed={
            arm: tuple(row.image for (other, _), group in groups.items() if other is arm for row in group[1:])
            for arm in present
        },
        unusable={arm: tuple(row.image for row in images if row.arm is arm and _broken(row)) for arm in present},
        twins={arm: tuple(sorted(twins[arm])) for arm in present},
    )


def _cluster(row: ImageRow) -> str:
    return row.cluster or row.sha256 or row.image


def _twins(images: Sequence[ImageRow]) -> dict[Arm, set[str]]:
    """Images to leave out, by arm, because their cluster reaches into another arm.

    An image still in training keeps its requested twin in memory, so both go. A control that resembles a training image
    is none, so it alone goes.
    """
    arms: dict[str, set[Arm]] = defaultdict(set)
    for row in images:
        arms[_cluster(row)].add(row.arm)
    left_out: dict[Arm, set[str]] = {arm: set() for arm in Arm}
    for row in images:
        others = arms[_cluster(row)]
        if len(others) > 1 and (row.arm is not Arm.REQUESTED or Arm.STILL_TRAINED in others):
            left_out[row.arm].add(row.image)
    return left_out


def _worst_case(rows: Sequence[ImageRow]) -> list[ImageRow]:
    """Fill in what the model after did not answer so that it counts as remembered; drop what it never could show.

    A requested image then stands where it stood before. One still in training has lost as much as the one that lost
    most, and a control stands as low as the lowest, so that neither makes the requested ones look better.
    """
    known = [row for row in rows if not _broken(row)]
    filled = []
    for row in rows:
        if not _broken(row):
            filled.append(row)
        elif np.isfinite(row.before):
            filled.append(_at_worst(row, [other for other in known if other.arm is row.arm]))
    return filled


def _at_worst(row: ImageRow, known: Sequence[ImageRow]) -> ImageRow:
    held_before = row.held_back_before
    if held_before is not None and not np.isfinite(held_before):
        held_before = row.before
    quiet = row.noise if row.noise is not None and np.isfinite(row.noise) else None if row.noise is None else 0.0
    row = replace(row, held_back_before=held_before, change=quiet, noise=quiet)
    pairs = {"after": ("before", row.before), "held_back_after": ("held_back_before", held_before)}
    worst: dict[str, float | None] = {}
    for name, (earlier, before) in pairs.items():
        if getattr(row, name) is None or before is None:
            continue
        others = [(getattr(other, earlier), getattr(other, name)) for other in known]
        pairs_known = [(first, second) for first, second in others if first is not None and second is not None]
        if row.arm is Arm.REQUESTED or not pairs_known:
            worst[name] = before
        elif row.arm is Arm.STILL_TRAINED:
            worst[name] = before - max(first - second for first, second in pairs_known)
        else:
            worst[name] = min(second for _, second in pairs_known)
    return replace(row, **worst)  # type: ignore[arg-type]


def _fold(rows: Sequence[ImageRow]) -> ImageRow:
    """One row for several of the same image; a measurement that one of them lacks is lacking."""
    if len(rows) == 1:
        return rows[0]

    def mean(name: str) -> float | None:
        values = [getattr(row, name) for row in rows]
        return None if None in values else float(np.mean(values))

    measured = ("before", "after", "held_back_before", "held_back_after", "change", "noise")
    means: dict[str, Any] = {name: mean(name) for name in measured}
    return replace(rows[0], **means)


def _broken(row: ImageRow) -> bool:
    values = (row.before, row.after, row.held_back_before, row.held_back_after, row.change, row.noise)
    return not np.isfinite([value for value in values if value is not None]).all()
