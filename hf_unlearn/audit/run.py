"""The data owner's audit from end to end: folders of pictures and two encoders in, a verdict and a report out."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from hf_unlearn.audit.audited_pictures import AuditedPictures, collect_pictures
from hf_unlearn.audit.both_encoders import BothEncoders, embed_both
from hf_unlearn.audit.embeddings import Embeddings
from hf_unlearn.audit.endpoint_address import is_endpoint
from hf_unlearn.audit.finished_audit import AlignmentMatrices, Audit
from hf_unlearn.audit.judging import judge
from hf_unlearn.audit.plan import check_audit_number, planned_seed
from hf_unlearn.audit.report import REPORT_FILE, write_report
from hf_unlearn.audit.settings import SEED_FILE, AuditSettings, unfinished_seed
from hf_unlearn.distributed import map_across_processes, owned_together
from hf_unlearn.errors import UserError
from hf_unlearn.files import refuse_to_write_to
from hf_unlearn.records.audit_result import Arm

MOST_IN_MATRIX = 200


def run_audit(
    before: str | Path,
    after: str | Path,
    images: str | Path,
    output_dir: str | Path,
    *,
    still_trained: str | Path | None = None,
    never_trained: str | Path | None = None,
    decoys: str | Path | None = None,
    captions: str | Path | None = None,
    plan: str | Path | None = None,
    audit_number: int = 1,
    provenance: Mapping[Arm, str] | None = None,
    settings: AuditSettings | None = None,
    overwrite: bool = False,
) -> Audit:
    """Audit two encoders on an owner's pictures and write the report.

    Args:
        before: The encoder before unlearning: a folder or Hub id (`id@revision`), an HTTP endpoint, or a file of
            embeddings (`.npy`, `.safetensors`, `.parquet`).
        after: The encoder after it, likewise.
        images: Folder of the pictures whose removal was requested; with a plan, of both its halves.
        output_dir: Where the report goes: `audit.json`, `report.html`, recordings and PNGs.
        still_trained: Folder of the owner's pictures that stay in training.
        never_trained: Folder of pictures of the same source that never were in training.
        decoys: Folder of pictures that were never requested, asked about among the others: they make filters on answers
            costly, and show them. Left out, and noted, where a side is a file of embeddings; refused where both are.
        captions: CSV file with a column `image` and any of `caption` (image-text pairs), `owner` (several owners) and
            `group` (pictures that belong together, such as a series: they count as one).
        plan: A `plan.json` that the arms must follow; it also parts `images` into its two halves.
        audit_number: Which of the plan's audits this is, from 1; only with a plan.
        provenance: Where each arm's pictures come from, in the owner's words; folder names by default.
        settings: How both encoders are measured.
        overwrite: Whether a finished report in `output_dir` may be replaced.

    Returns:
        The results, matrices and where the report lies.

    Raises:
        UserError: When any input is bad; nothing is written then, except what endpoints have answered.
    """
    folder = Path(output_dir)
    check_audit_number(plan, audit_number)
    map_across_processes(1, lambda _: _refuse_finished(folder, overwrite))  # by one process, while the others wait
    refuse_to_write_to(before, "--before", folder)
    refuse_to_write_to(after, "--after", folder)
    with ExitStack() as stack:
        stack.enter_context(owned_together(folder, "Another audit"))
        pictures = collect_pictures(images, still_trained, never_trained, captions=captions, plan=plan, decoys=decoys)
        settings = settings or AuditSettings()
        if pictures.plan is not None:
            settings = replace(settings, audits=max(settings.audits, pictures.plan.audits))
        seed = unfinished_seed(folder)
        if plan is not None and settings.seed is None:
            seed = planned_seed(plan, audit_number)
        measured = embed_both(str(before), str(after), pictures, settings, folder, stack, seed)
        given = _provenance(pictures, images, still_trained, never_trained, provenance or {})
        results = judge(measured, given)
        while measured.can_grow and any(result.unsteady for result in results.values()):
            measured.grow()
            results = judge(measured, given)
        arguments = {
            **{"before": before, "after": after, "images": images, "still_trained": still_trained},
            **{"never_trained": never_trained, "captions": captions, "plan": plan},
            "decoys": decoys if measured.pictures.decoys else None,
        }
        sides = {side: embeddings.take(range(len(pictures.pictures))) for side, embeddings in measured.sides.items()}
        audit = Audit(
            results=results,
            matrices={owner: _matrices(sides, pictures, owner) for owner in results},
            pictures={picture.name: picture for picture in pictures.pictures},
            measurement=measured.describe(),
            notes=_notes(sides, pictures, str(before), str(after)) + _decoy_notes(decoys, pictures, measured),
            folder=folder,
            command=relative_command(arguments, folder),
            recordings=sides,
            captions=pictures.captions,
        )
        map_across_processes(1, lambda _: write_report(audit))
        map_across_processes(1, lambda _: (folder / SEED_FILE).unlink(missing_ok=True))
        return audit


def _refuse_finished(folder: Path, overwrite: bool) -> None:
    refuse_no_folder(folder)
    if (folder / REPORT_FILE).exists() and not overwrite:
        raise UserError(f"'{folder}' holds a finished audit; choose another output folder, or give --overwrite.")


def refuse_no_folder(folder: Path) -> None:
    """Refuse a place where no folder can be made, since a file is in the way."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"'{there}' is a file, and what is written needs a folder there; choose another.")


def _matrices(measured: Mapping[str, Embeddings], pictures: AuditedPictures, owner: str) -> AlignmentMatrices:
    everyone = [
        i
        for i, (arm, whose) in enumerate(zip(pictures.arms, pictures.owners, strict=True))
        if arm is Arm.REQUESTED and whose == owner
    ]
    rows = everyone[:MOST_IN_MATRIX]
    captioned = all(pictures.captions[i] for i in rows)
    return AlignmentMatrices(
        pictures=tuple(pictures.pictures[i] for i in rows),
        captions=tuple(pictures.captions[i][0] for i in rows) if captioned else None,
        am_before=measured["before"].alignment_matrix(rows),
        am_after=measured["after"].alignment_matrix(rows),
        omitted=len(everyone) - len(rows),
    )


def _notes(
    measured: Mapping[str, Embeddings], pictures: AuditedPictures, before_name: str, after_name: str
) -> tuple[str, ...]:
    """What a reader should know of a measurement that forbids no verdict, and what would make the next one stronger."""
    found = [note for side, e in measured.items() for note in e.faults(f"The model {side}", pictures.names)]
    if before_name == after_name:
        kind = (
            "one address, so unless its model was exchanged in between both sides are the same model; record its "
            "answers before the change (hf-unlearn audit record)"
            if is_endpoint(before_name)
            else "one model, so nothing can have changed"
        )
        found.append(f"Before and after are {kind}.")
    left, right = (measured[side].images.shape[2] for side in ("before", "after"))
    if left != right:
        found.append(
            f"The model before gives {left} numbers a picture, the model after {right}; cosines are compared all "
            "the same."
        )
    precomputed = [side for side, e in measured.items() if e.source.get("kind") == "precomputed"]
    if foreign := [side for side in precomputed if not {"drawn", "captions_sha256"} <= set(measured[side].source)]:
        found.append(
            f"The embeddings {' and '.join(foreign)} were computed elsewhere; that both sides saw the same views and "
            "captions is taken on trust."
        )
    elif precomputed:
        found.append(
            f"The embeddings {' and '.join(precomputed)} were recorded earlier; by that record, both sides saw the "
            "same views and captions."
        )
    before, after = (measured[side].source for side in ("before", "after"))
    for key, what in (("processor", "image processors"), ("processor_size", "picture sizes")):
        if key in before and key in after and before[key] != after[key]:
            found.append(f"The two checkpoints bring different {what} ({before[key]}, {after[key]}).")
    if not any(pictures.captions) and before.get("has_text") is True:
        found.append(
            "The model also embeds texts, and captions were not given; a model trained on pairs remembers pictures "
            "with their captions, so an audit with --captions sees much more."
        )
    return tuple(found)


def _decoy_notes(decoys: str | Path | None, pictures: AuditedPictures, measured: BothEncoders) -> tuple[str, ...]:
    """Why decoys that were given are not mixed in; empty where they are."""
    if decoys is None or measured.pictures.decoys:
        return ()
    files = [side for side in measured.sides if side not in measured.encoders]
    why = f"the embeddings {' and '.join(files)} come from a file, which holds no answers about them"
    if not pictures.decoys:
        why = "all of them are audited pictures; decoys are others"
    return (f"The decoys (--decoys) were left out, as {why}. A filter on answers is harder to notice without them.",)


def _provenance(
    pictures: AuditedPictures,
    images: str | Path,
    still_trained: str | Path | None,
    never_trained: str | Path | None,
    given: Mapping[Arm, str],
) -> dict[Arm, str]:
    """The owner's words, or the folder's name (never its whole path, which may tell the owner's name)."""
    folders = {Arm.REQUESTED: images, Arm.STILL_TRAINED: still_trained or images, Arm.NEVER_TRAINED: never_trained}
    return {
        arm: given.get(arm) or f"folder '{Path(folder).resolve().name}'"
        for arm, folder in folders.items()
        if folder is not None and arm in pictures.arms
    }


def relative_command(arguments: Mapping[str, object], folder: Path) -> dict[str, object]:
    """An audit's arguments as they can be repeated from its report: paths relative to it, which tell no one's home."""
    return {
        name: os.path.relpath(Path(value).resolve(), folder.resolve())
        if isinstance(value, str | Path) and Path(value).exists()
        else None
        if value is None
        else str(value)
        for name, value in arguments.items()
    }
