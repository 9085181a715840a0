"""From the per-image table to the three arms: one row an image, with everything unusable named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_unlearn.audit.statistics import Floats
from hf_unlearn.errors import UserError
from hf_unlearn.metrics.alignment_matrices import COLLAPSED
from hf_unlearn.records.audit_result import Arm, ArmSummary, ImageRow

_NAMED = 5  # at most so many images are named in a sentence


@dataclass(frozen=True)
class Arms:
    """The images of one owner by arm, copies folded together.

    Args:
        rows: the images of each arm that is not empty.
        collapsed: names of the rows folded into another row, by arm.
    """

    rows: dict[Arm, tuple[ImageRow, ...]]
    collapsed: dict[Arm, tuple[str, ...]]

    def __contains__(self, arm: Arm) -> bool:
        return arm in self.rows

    def size(self, arm: Arm) -> int:
        """Number of images in an arm."""
        return len(self.rows.get(arm, ()))

    def images(self) -> tuple[ImageRow, ...]:
        """All images, requested first."""
        return tuple(row for arm in Arm for row in self.rows.get(arm, ()))

    def before(self, arm: Arm, *, held_back: bool = False) -> Floats:
        """Alignments before, `[n]`."""
        return np.array([row.held_back_before if held_back else row.before for row in self.rows[arm]], float)

    def after(self, arm: Arm, *, held_back: bool = False) -> Floats:
        """Alignments after, `[n]`."""
        return np.array([row.held_back_after if held_back else row.after for row in self.rows[arm]], float)

    def problems(self) -> list[str]:
        """What makes the measurement unusable, a sentence each: alignments that are not finite, a collapsed model."""
        return _not_finite(self.images()) or _collapsed(self.images())

    def summaries(self, *, planned: bool, provenance: Mapping[Arm, str]) -> tuple[ArmSummary, ...]:
        """Each arm's size and origin; a plan covers the owner's two halves, never the controls."""
        return tuple(
            ArmSummary(
                arm=arm,
                size=len(rows),
                drawn="plan" if planned and arm is not Arm.NEVER_TRAINED else "chosen",
                provenance=provenance.get(arm, ""),
                collapsed=self.collapsed[arm],
                unusable=tuple(row.image for row in rows if not np.isfinite(_alignments(row)).all()),
            )
            for arm, rows in self.rows.items()
        )


def collect(images: Sequence[ImageRow]) -> Arms:
    """Sort one owner's images into arms, folding rows that share a hash into one by averaging their measurements.

    Raises:
        UserError: no image was requested, or one image stands in two arms.
    """
    groups: dict[tuple[Arm, str], list[ImageRow]] = defaultdict(list)
    seen: dict[str, ImageRow] = {}
    for row in images:
        key = row.sha256 or row.image
        first = seen.setdefault(key, row)
        if first.arm != row.arm:
            raise UserError(
                f"The image '{row.image}' ({row.arm.value}) is also '{first.image}' ({first.arm.value}); an image "
                "belongs to one arm, so remove it from the other."
            )
        groups[row.arm, key].append(row)
    if not any(arm is Arm.REQUESTED for arm, _ in groups):
        raise UserError("The audit has no requested image; give the images whose removal was requested.")
    present = [arm for arm in Arm if any(arm is other for other, _ in groups)]
    return Arms(
        rows={arm: tuple(_fold(rows) for (other, _), rows in groups.items() if other is arm) for arm in present},
        collapsed={
            arm: tuple(row.image for (other, _), rows in groups.items() if other is arm for row in rows[1:])
            for arm in present
        },
    )


def _fold(rows: Sequence[ImageRow]) -> ImageRow:
    """One row for several of the same image; a measurement that one of them lacks is lacking."""

    def mean(name: str) -> float | None:
        values = [getattr(row, name) for row in rows]
        return None if None in values else float(np.mean(values))

    measured = ("before", "after", "held_back_before", "held_back_after", "change", "noise")
    means: dict[str, Any] = {name: mean(name) for name in measured}
    return replace(rows[0], **means)


def _alignments(row: ImageRow) -> list[float]:
    values = (row.before, row.after, row.held_back_before, row.held_back_after, row.change, row.noise)
    return [value for value in values if value is not None]


def _not_finite(rows: Sequence[ImageRow]) -> list[str]:
    names = [row.image for row in rows if not np.isfinite(_alignments(row)).all()]
    if not names:
        return []
    listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return [f"{len(names)} of {len(rows)} images have no finite alignment (zero or NaN embeddings): {listed}."]


def _collapsed(rows: Sequence[ImageRow]) -> list[str]:
    """Distinct images share one alignment to six digits only if the model gives every image the same embedding."""
    sides = {"before": [row.before for row in rows], "after": [row.after for row in rows]}
    return [
        f"The model {side} has collapsed: all {len(rows)} images have the same alignment ({values[0]:.6f})."
        for side, values in sides.items()
        if len(rows) > 1 and np.ptp(values) < 1 - COLLAPSED
    ]
