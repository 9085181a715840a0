"""The randomised request: which half of the owner's images to ask for, drawn and committed before anyone acts.

An owner who lets chance pick the requested half makes the audit's main test exact whatever the model: had the request
been ignored, the other half would have moved alike. The plan is committed by its SHA-256; publish or deposit that hash
(or the file) when the request is sent, and the audit later checks that its arms are the ones committed to.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hf_unlearn.errors import UserError
from hf_unlearn.records.audit_result import Arm

SCHEMA = 1
PLAN_FILE, REQUEST_FILE, STILL_TRAINED_FILE = "plan.json", "request.csv", "still_trained.csv"


@dataclass(frozen=True)
class AuditPlan:
    """A committed split of the owner's images into a request and a control half.

    Args:
        requested: name -> SHA-256 of the images to be unlearned.
        still_trained: the same for the images that stay in training.
        seed: seed of the draw.
    """

    requested: dict[str, str]
    still_trained: dict[str, str]
    seed: int

    @property
    def sha256(self) -> str:
        """The commitment: a hash over the seed and every image of both halves, whatever their order."""
        content = json.dumps(self._content(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def to_dict(self) -> dict[str, object]:
        """The plan and its hash as JSON values."""
        return {**self._content(), "sha256": self.sha256}

    def _content(self) -> dict[str, object]:
        return {
            "schema": SCHEMA,
            "seed": self.seed,
            "requested": dict(sorted(self.requested.items())),
            "still_trained": dict(sorted(self.still_trained.items())),
        }


def draw_plan(image_hashes: Mapping[str, str], seed: int) -> AuditPlan:
    """Draw which half of the images to request, every half being equally likely.

    The images are put in the order of `sha256(seed:image_hash)` and the first half is requested (of an odd number, the
    larger half): anyone can repeat the draw. Copies of one image stay together.

    Args:
        image_hashes: name -> SHA-256 of the image's bytes.
        seed: any whole number, chosen before looking at any model.

    Returns:
        The plan.

    Raises:
        UserError: there are fewer than two different images.
    """
    order = sorted(set(image_hashes.values()), key=lambda value: hashlib.sha256(f"{seed}:{value}".encode()).digest())
    if len(order) < 2:
        raise UserError(f"A plan needs at least 2 different images, got {len(order)}; add images to the folder.")
    requested = set(order[: (len(order) + 1) // 2])
    return AuditPlan(
        requested={name: value for name, value in image_hashes.items() if value in requested},
        still_trained={name: value for name, value in image_hashes.items() if value not in requested},
        seed=seed,
    )


def write_plan(plan: AuditPlan, folder: Path) -> None:
    """Write `request.csv`, `still_trained.csv` (columns `id,sha256`) and, last, `plan.json`.

    Raises:
        UserError: the folder already holds one of them; a committed plan is never replaced.
    """
    for name in (PLAN_FILE, REQUEST_FILE, STILL_TRAINED_FILE):
        if (folder / name).exists():
            raise UserError(f"'{folder / name}' exists and a committed plan is never replaced; choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, half in ((REQUEST_FILE, plan.requested), (STILL_TRAINED_FILE, plan.still_trained)):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("id", "sha256"), *sorted(half.items())])
    (folder / PLAN_FILE).write_text(json.dumps(plan.to_dict(), indent=2) + "\n", encoding="utf-8")


def read_plan(path: Path) -> AuditPlan:
    """Read a `plan.json` and check its content against its own hash.

    Raises:
        UserError: the file is no plan, or its content was edited after it was committed.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        plan = AuditPlan(dict(data["requested"]), dict(data["still_trained"]), int(data["seed"]))
        committed = data["sha256"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"'{path}' is no readable audit plan ({error}); give the plan.json that was written."
        ) from error
    if committed != plan.sha256:
        raise UserError(
            f"'{path}' does not match its own hash {committed}: it was edited after it was committed; restore it."
        )
    return plan


def check_plan(plan: AuditPlan, arms: Mapping[Arm, Mapping[str, str]]) -> None:
    """Check by hash that the audited arms are the ones the plan committed to; names may differ.

    Args:
        plan: the committed plan.
        arms: arm -> name -> SHA-256 of the images to be audited.

    Raises:
        UserError: an arm lacks a planned image, holds another one, or a planned image stands among the controls.
    """
    for arm, planned in ((Arm.REQUESTED, plan.requested), (Arm.STILL_TRAINED, plan.still_trained)):
        given = arms.get(arm, {})
        missing = sorted(name for name, value in planned.items() if value not in set(given.values()))
        added = sorted(name for name, value in given.items() if value not in set(planned.values()))
        if missing or added:
            lacks, holds = ", ".join(missing) or "none", ", ".join(added) or "none"
            raise UserError(
                f"The arm '{arm.value}' is not the one that plan {plan.sha256[:12]} committed to (missing: {lacks}; "
                f"unplanned: {holds}); audit exactly the planned images."
            )
    everyone = {*plan.requested.values(), *plan.still_trained.values()}
    if stray := sorted(name for name, value in arms.get(Arm.NEVER_TRAINED, {}).items() if value in everyone):
        raise UserError(
            f"The arm 'never_trained' holds images of the plan: {', '.join(stray)}; remove them from the controls."
        )
