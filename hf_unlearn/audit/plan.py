"""The randomised request: which half of the owner's images to ask for, drawn and committed before anyone acts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hf_unlearn.audit.results import Arm


@dataclass(frozen=True)
class AuditPlan:
    """A committed split of the owner's images into a request and a control half.

    Args:
        requested: name -> SHA-256 of the images to be unlearned.
        still_trained: the same for the images that stay in training.
        seed: seed of the draw.
        sha256: hash over all of the above.
    """

    requested: dict[str, str]
    still_trained: dict[str, str]
    seed: int
    sha256: str


def draw_plan(image_hashes: Mapping[str, str], seed: int) -> AuditPlan:
    """Draw which half of the images (name -> SHA-256) to request."""
    raise NotImplementedError


def write_plan(plan: AuditPlan, folder: Path) -> None:
    """Write `request.csv`, `still_trained.csv` and `plan.json` into a folder that holds none of them."""
    raise NotImplementedError


def read_plan(path: Path) -> AuditPlan:
    """Read `plan.json` and check its content against its own hash."""
    raise NotImplementedError


def check_plan(plan: AuditPlan, arms: Mapping[Arm, Mapping[str, str]]) -> None:
    """Check by hash that the audited arms (arm -> name -> SHA-256) are the ones the plan committed to.

    Raises:
        UserError: an arm holds an image the plan did not put there, or lacks one.
    """
    raise NotImplementedError
