"""Who and what an audit is about: pictures in arms, their captions and owners, and the plan they follow."""

import csv
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hf_unlearn.audit.clusters import picture_clusters
from hf_unlearn.audit.pictures import Picture, list_pictures
from hf_unlearn.audit.plan import AuditPlan, check_plan, read_plan
from hf_unlearn.errors import UserError
from hf_unlearn.records.audit_result import Arm

logger = logging.getLogger(__name__)

MOST_STRANGERS = 10_000  # that are counted


@dataclass(frozen=True)
class AuditedPictures:
    """What is audited: every picture with its arm, captions and owner, in one order.

    Args:
        pictures: The pictures, requested first, then still trained, then never trained.
        arms: Each picture's arm.
        captions: Each picture's captions; empty lists for an audit of views alone.
        owners: Each picture's owner; empty strings for a single owner, or for controls that serve every owner.
        clusters: `[n]`, which pictures are near-duplicates of each other or one group in the owner's words: they count
            as one.
        decoys: Pictures that were never requested and are in no arm, asked about among the others.
        plan: The committed plan that the arms follow.
    """

    pictures: tuple[Picture, ...]
    arms: tuple[Arm, ...]
    captions: tuple[tuple[str, ...], ...]
    owners: tuple[str, ...]
    clusters: tuple[int, ...]
    decoys: tuple[Picture, ...] = ()
    plan: AuditPlan | None = None

    @property
    def names(self) -> list[str]:
        """The pictures' names."""
        return [picture.name for picture in self.pictures]


def collect_pictures(
    images: str | Path,
    still_trained: str | Path | None = None,
    never_trained: str | Path | None = None,
    *,
    captions: str | Path | None = None,
    plan: str | Path | None = None,
    decoys: str | Path | None = None,
) -> AuditedPictures:
    """Read every folder and table of an audit and check that they fit together.

    Args:
        images: As for `run_audit`, as are the others.
        still_trained: Folder of pictures still in training.
        never_trained: Folder of pictures never in training.
        captions: CSV file of captions, owners and groups.
        plan: The committed plan.
        decoys: Folder of pictures that were never requested, to be mixed in.

    Returns:
        Every picture with its arm, captions and owner.

    Raises:
        UserError: When something cannot be read, or does not fit.
    """
    folders = {Arm.REQUESTED: images, Arm.STILL_TRAINED: still_trained, Arm.NEVER_TRAINED: never_trained}
    arms = {arm: list_pictures(folder) for arm, folder in folders.items() if folder is not None}
    committed = read_plan(Path(plan)) if plan is not None else None
    if committed is not None:
        arms = _follow(committed, arms)
    seen: dict[str, Arm] = {}
    for arm, pictures in arms.items():
        for picture in pictures:
            if seen.setdefault(picture.sha256, arm) is not arm:
                raise UserError(
                    f"The picture '{picture.name}' ({arm.value}) is also in the arm {seen[picture.sha256].value}; "
                    "a picture belongs to one arm, so remove it from the other."
                )
    arms = _distinct_names(arms, folders)
    everyone = tuple(picture for group in arms.values() for picture in group)
    of_arm = tuple(arm for arm, group in arms.items() for _ in group)
    texts, owners, groups = read_table(Path(captions), everyone) if captions is not None else ({}, {}, {})
    if missing := [picture.name for picture in everyone if texts and picture.name not in texts]:
        raise UserError(
            f"{len(missing)} pictures have no caption in '{captions}': {', '.join(missing[:5])}; add a row for each."
        )
    requested = [picture.name for picture, arm in zip(everyone, of_arm, strict=True) if arm is Arm.REQUESTED]
    if missing := [name for name in requested if owners and name not in owners]:
        raise UserError(f"Requested pictures have no owner in '{captions}': {', '.join(missing[:5])}; fill it in.")
    return AuditedPictures(
        pictures=everyone,
        arms=of_arm,
        captions=tuple(tuple(texts.get(picture.name, ())) for picture in everyone),
        owners=tuple(owners.get(picture.name, "") for picture in everyone),
        clusters=tuple(_clusters(everyone, groups, committed)),
        decoys=tuple(
            replace(picture, name=f"decoy/{picture.name}")
            for picture in (list_pictures(decoys) if decoys is not None else ())
            if picture.sha256 not in seen
        ),
        plan=committed,
    )


def _clusters(everyone: Sequence[Picture], groups: Mapping[str, str], plan: AuditPlan | None) -> list[int]:
    """Pictures that look alike, that the owner puts together, or that the plan drew as one."""
    drawn = plan.drawn_together() if plan is not None else {}
    owners_words = [groups.get(picture.name, "") for picture in everyone]
    return picture_clusters(everyone, owners_words, [drawn.get(picture.sha256, "") for picture in everyone]).tolist()


def _follow(plan: AuditPlan, arms: Mapping[Arm, Sequence[Picture]]) -> dict[Arm, list[Picture]]:
    """Part the owner's pictures as the plan did, by hash; pictures it does not know make the check fail by name."""
    requested, still_trained = set(plan.requested.values()), set(plan.still_trained.values())
    parted: dict[Arm, list[Picture]] = {arm: [] for arm in Arm}
    for arm, pictures in arms.items():
        for picture in pictures:
            planned = arm
            if arm is not Arm.NEVER_TRAINED and picture.sha256 in requested | still_trained:
                planned = Arm.REQUESTED if picture.sha256 in requested else Arm.STILL_TRAINED
            parted[planned].append(picture)
    check_plan(plan, {arm: {picture.name: picture.sha256 for picture in group} for arm, group in parted.items()})
    return {arm: group for arm, group in parted.items() if group}


def _distinct_names(
    arms: Mapping[Arm, Sequence[Picture]], folders: Mapping[Arm, str | Path | None]
) -> dict[Arm, list[Picture]]:
    """Put the folder's name before names that occur in several arms."""
    counts = Counter(picture.name for group in arms.values() for picture in group)

    def renamed(arm: Arm, picture: Picture) -> Picture:
        folder = folders.get(arm)
        if counts[picture.name] == 1 or folder is None:
            return picture
        return replace(picture, name=f"{Path(folder).resolve().name}/{picture.name}")

    distinct = {arm: [renamed(arm, picture) for picture in group] for arm, group in arms.items()}
    counts = Counter(picture.name for group in distinct.values() for picture in group)
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        raise UserError(f"Pictures of two arms share the name {', '.join(repeated[:5])}; rename them or their folders.")
    return distinct


def read_table(path: Path, pictures: Sequence[Picture]) -> tuple[dict[str, list[str]], dict[str, str], dict[str, str]]:
    """Captions, owners and groups by picture name, from a CSV file.

    Args:
        path: The file, with the column `image` and at least one of `caption`, `owner` and `group`.
        pictures: The pictures; rows for others are passed over.

    Raises:
        UserError: When the file cannot be read, a line has more fields than the header, or a value is missing.
    """
    names = {picture.name for picture in pictures}
    texts: dict[str, list[str]] = {}
    owners: dict[str, str] = {}
    groups: dict[str, str] = {}
    strangers: set[str] = set()
    if path.exists() and not path.is_file():
        raise UserError(f"The captions file '{path}' is no regular file; put the file itself there.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = set(reader.fieldnames or ())
            if len(columns) < len(reader.fieldnames or ()):
                raise UserError(f"The header of the captions file '{path.name}' repeats a column; call each otherwise.")
            if "image" not in columns or not columns & {"caption", "owner", "group"}:
                raise UserError(
                    f"The captions file '{path.name}' has the columns {sorted(columns)}; "
                    "it needs 'image', and 'caption', 'owner' or 'group'."
                )
            for number, row in enumerate(reader, start=2):  # one at a time: a small file may have millions
                name = (row["image"] or "").strip()
                if None in row:
                    raise UserError(
                        f"Line {number} of '{path.name}' has more fields than the header; put quotes around a text "
                        "with commas."
                    )
                if name not in names:
                    if len(strangers) < MOST_STRANGERS:
                        strangers.add(name)
                    continue
                if group := (row.get("group") or "").strip():
                    groups[name] = group
                if "caption" in columns:
                    caption = (row["caption"] or "").strip()
                    if not caption:
                        raise UserError(
                            f"Line {number} of '{path.name}' has an empty caption for '{name}'; fill it in."
                        )
                    texts.setdefault(name, []).append(caption)
                owner = (row.get("owner") or "").strip()
                if owner and owners.setdefault(name, owner) != owner:
                    raise UserError(f"'{path.name}' gives '{name}' two owners, {owners[name]} and {owner}; keep one.")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The captions file '{path}' cannot be read ({error}); give a CSV file in UTF-8.") from error
    if strangers:
        more = " or more" if len(strangers) == MOST_STRANGERS else ""
        logger.warning("%d%s images named in '%s' are in no audited folder.", len(strangers), more, path.name)
    return texts, owners, groups
