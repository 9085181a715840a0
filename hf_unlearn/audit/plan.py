"""The randomised request: which half of the owner's images to ask for, drawn and committed before anyone acts.

An owner who lets chance pick the requested half makes the audit's main test exact whatever the model: had the request
been ignored, the other half would have moved alike. The plan is committed by its SHA-256; publish or deposit that hash
(or the file) when the request is sent, and the audit later checks that its arms are the ones committed to.

The plan also commits to the views of the audits to come, by the hashes of their secret seeds. The secret itself lies in
a file of its own, which the owner keeps: whoever knows it could answer the audited views only.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_unlearn.errors import UserError, listed
from hf_unlearn.parsing import read_json
from hf_unlearn.records.audit_result import Arm
from hf_unlearn.text import spreadsheet_cell

SCHEMA = 3
SECRET_FILE = "view_secret.json"
PLAN_FILE, REQUEST_FILE, STILL_TRAINED_FILE = "plan.json", "request.csv", "still_trained.csv"


@dataclass(frozen=True)
class AuditPlan:
    """A committed split of the owner's images into a request and a control half.

    Args:
        requested: name -> SHA-256 of the images to be unlearned.
        still_trained: the same for the images that stay in training.
        seed: seed of the draw.
        view_commitments: hashes of the secret seeds of the views, one for each audit that is planned.
        together: names of the images that were drawn as one, a tuple a cluster; None in a plan of an older library.
        counts: how many clusters of near-duplicates each half has, known only to the draw itself.
    """

    requested: dict[str, str]
    still_trained: dict[str, str]
    seed: int
    view_commitments: tuple[str, ...] = ()
    together: tuple[tuple[str, ...], ...] | None = None
    counts: tuple[int, int] | None = field(default=None, compare=False)

    @property
    def sha256(self) -> str:
        """The commitment: a hash over the seed and every image of both halves, whatever their order."""
        content = json.dumps(self._content(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def to_dict(self) -> dict[str, object]:
        """The plan and its hash as JSON values."""
        return {**self._content(), "sha256": self.sha256}

    @property
    def audits(self) -> int:
        """How many audits are planned; they share the error."""
        return max(1, len(self.view_commitments))

    @property
    def clusters(self) -> tuple[int, int]:
        """How many pictures count in each half; exact copies are one, near-duplicates where the draw knew them."""
        return self.counts or (len(set(self.requested.values())), len(set(self.still_trained.values())))

    def follows_its_seed(self) -> bool:
        """Whether its halves are those that its seed draws; in an older plan, if near-duplicates were none."""
        hashes, drawn = {**self.requested, **self.still_trained}, self.drawn_together()
        clusters = None if self.together is None else {name: drawn.get(value, value) for name, value in hashes.items()}
        return draw_plan(hashes, self.seed, clusters).requested == self.requested

    def drawn_together(self) -> dict[str, str]:
        """SHA-256 of the images that were drawn with others -> the name of their cluster."""
        hashes = {**self.requested, **self.still_trained}
        return {hashes[name]: names[0] for names in self.together or () for name in names}

    def _content(self) -> dict[str, object]:
        content: dict[str, object] = {
            "schema": SCHEMA if self.together is not None else 2 if self.view_commitments else 1,
            "seed": self.seed,
            "requested": dict(sorted(self.requested.items())),
            "still_trained": dict(sorted(self.still_trained.items())),
        }
        if self.together is not None:
            content["together"] = [list(names) for names in self.together]
        return content | ({"view_commitments": list(self.view_commitments)} if self.view_commitments else {})


def draw_plan(
    image_hashes: Mapping[str, str],
    seed: int,
    clusters: Mapping[str, int] | Mapping[str, str] | None = None,
    view_commitments: Sequence[str] = (),
) -> AuditPlan:
    """Draw which half of the images to request, every half being equally likely.

    Clusters of near-duplicates are put in the order of `sha256(seed:smallest image hash)` and the first half is
    requested (of an odd number, the larger half): anyone can repeat the draw. What is in one cluster stays together.

    Args:
        image_hashes: name -> SHA-256 of the image's bytes.
        seed: any whole number, chosen before looking at any model.
        clusters: name -> number or name of its cluster; by default exact copies alone are clusters.
        view_commitments: hashes of the secret seeds of the views (`commit_views`).

    Returns:
        The plan.

    Raises:
        UserError: there are fewer than two different images, or one has no cluster.
    """
    if clusters is not None and (missing := [name for name in image_hashes if name not in clusters]):
        raise UserError(f"No cluster is given for {listed(missing)}; give one for every image, or none at all.")
    groups: dict[object, list[str]] = defaultdict(list)
    first: dict[str, object] = {}  # copies stay together, whatever the clusters say
    for name, value in image_hashes.items():
        groups[first.setdefault(value, value if clusters is None else clusters[name])].append(name)
    firsts = {key: min(image_hashes[name] for name in names) for key, names in groups.items()}
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed}:{firsts[key]}".encode()).digest())
    if len(order) < 2:
        raise UserError(
            f"A plan needs at least 2 different images, got {len(order)} (near-duplicates count as one); add images to "
            "the folder."
        )
    requested = {name for key in order[: (len(order) + 1) // 2] for name in groups[key]}
    return AuditPlan(
        requested={name: value for name, value in image_hashes.items() if name in requested},
        still_trained={name: value for name, value in image_hashes.items() if name not in requested},
        seed=seed,
        view_commitments=tuple(view_commitments),
        together=tuple(sorted(tuple(sorted(names)) for names in groups.values() if len(names) > 1)),
        counts=((len(order) + 1) // 2, len(order) // 2),
    )


def commit_views(secret: str, audits: int) -> tuple[str, ...]:
    """Hashes of the seeds that `view_seed` derives for each planned audit."""
    return tuple(view_commitment(view_seed(secret, number)) for number in range(1, audits + 1))


def view_seed(secret: str, number: int) -> int:
    """The seed of the views of the planned audit `number`, 128 bits of SHA-256 over the secret and it."""
    return int.from_bytes(hashlib.sha256(f"{secret}:{number}".encode()).digest()[:16])


def view_commitment(seed: int) -> str:
    """What a plan publishes of a seed."""
    return hashlib.sha256(f"views {seed}".encode()).hexdigest()


def read_view_seed(plan: AuditPlan, folder: Path, number: int) -> int:
    """The committed seed of the planned audit `number`, from the secret beside the plan.

    Raises:
        UserError: there is no such audit, or the secret is missing or another one.
    """
    if not 1 <= number <= plan.audits:
        raise UserError(f"The plan is for {plan.audits} audits, so there is no audit number {number}; draw a new plan.")
    path = folder / SECRET_FILE
    try:
        seed = view_seed(str(read_json(path)["secret"]), number)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The plan commits to views whose secret is in '{SECRET_FILE}', which cannot be read beside it; put it "
            "there, or give --seed."
        ) from error
    if view_commitment(seed) != plan.view_commitments[number - 1]:
        raise UserError(f"'{path}' holds another secret than the plan committed to; restore it.")
    return seed


def check_audit_number(plan_file: object, number: int) -> None:
    """Refuse the number of an audit where there is no plan that numbers any.

    Raises:
        UserError: there is none, and the number is not 1, the default.
    """
    if plan_file is None and number != 1:
        raise UserError(
            f"--audit_number {number} would have no effect without a plan, which alone numbers its audits; give --plan "
            "or leave the number out."
        )


def planned_seed(plan_file: str | Path, number: int) -> int | None:
    """The seed that a written plan committed to for its audit `number`; None where it committed to none.

    Raises:
        UserError: as `read_plan` and `read_view_seed` do.
    """
    plan = read_plan(Path(plan_file))
    return read_view_seed(plan, Path(plan_file).parent, number) if plan.view_commitments else None


def write_plan(plan: AuditPlan, folder: Path, secret: str = "") -> None:
    """Write `request.csv`, `still_trained.csv` (columns `id,sha256`), the secret of the views and, last, `plan.json`.

    Raises:
        UserError: the folder already holds one of them, as a committed plan is never replaced, or a name is a formula.
    """
    names = [*plan.requested, *plan.still_trained]
    if formulas := [name for name in names if spreadsheet_cell(name) != name]:
        raise UserError(
            f"A spreadsheet would take {listed(formulas)} for a formula, and the request goes to others; rename it."
        )
    for name in (PLAN_FILE, REQUEST_FILE, STILL_TRAINED_FILE, SECRET_FILE):
        if (folder / name).exists():
            raise UserError(f"'{folder / name}' exists and a committed plan is never replaced; choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, half in ((REQUEST_FILE, plan.requested), (STILL_TRAINED_FILE, plan.still_trained)):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("id", "sha256"), *sorted(half.items())])
    if secret:
        (folder / SECRET_FILE).touch(mode=0o600)
        (folder / SECRET_FILE).write_text(json.dumps({"secret": secret}) + "\n", encoding="utf-8")
    (folder / PLAN_FILE).write_text(json.dumps(plan.to_dict(), indent=2) + "\n", encoding="utf-8")


def read_plan(path: Path) -> AuditPlan:
    """Read a `plan.json` and check its content against its own hash.

    Raises:
        UserError: the file is no plan, or its content was edited after it was committed.
    """
    try:
        data = read_json(path)
        plan = AuditPlan(
            _hashes(data["requested"]),
            _hashes(data["still_trained"]),
            int(data["seed"]),
            tuple(map(str, data.get("view_commitments", ()))),
            _together(data.get("together"), {*data["requested"], *data["still_trained"]}),
        )
        committed = data["sha256"]
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"'{path}' is no readable audit plan ({error}); give the plan.json that was written."
        ) from error
    if committed != plan.sha256:
        raise UserError(
            f"'{path}' does not match its own hash {committed}: it was edited after it was committed; restore it."
        )
    if plan.together is not None and not plan.follows_its_seed():
        raise UserError(
            f"'{path}' does not hold the halves that its seed {plan.seed} draws, so they were chosen; draw a plan with "
            "hf-unlearn audit plan, or audit without one."
        )
    return plan


def _together(value: object, names: set[str]) -> tuple[tuple[str, ...], ...] | None:
    """Clusters as a plan holds them, each name once and known to it."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(cluster, list) and cluster for cluster in value):
        raise ValueError("what was drawn together is no list of lists")
    listed_names = [name for cluster in value for name in cluster]
    if len(set(listed_names)) < len(listed_names) or not set(listed_names) <= names:
        raise ValueError("what was drawn together is not of the plan")
    return tuple(tuple(cluster) for cluster in value)


def _hashes(value: object) -> dict[str, str]:
    """A mapping of names to hashes as a plan holds it; anything else is no plan."""
    if not isinstance(value, dict) or not all(isinstance(hash_, str) for hash_ in value.values()):
        raise ValueError("a half is no table of names and hashes")
    return dict(value)


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
        have, wanted = set(given.values()), set(planned.values())
        missing = sorted(name for name, value in planned.items() if value not in have)
        added = sorted(name for name, value in given.items() if value not in wanted)
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
