"""The data owner's audit from end to end: folders of pictures and two encoders in, a verdict and a report out."""

import json
import logging
import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hf_unlearn.audit.embeddings import (
    Embeddings,
    captions_sha256,
    change,
    is_precomputed,
    noise,
    read_embeddings,
    save_embeddings,
)
from hf_unlearn.audit.encoders import Backend, Encoder, Features, LocalEncoder, measure
from hf_unlearn.audit.endpoint import EmbeddingCache, EndpointEncoder, EndpointOptions, check_endpoint, is_endpoint
from hf_unlearn.audit.images import list_pictures
from hf_unlearn.audit.plan import AuditPlan, draw_plan, write_plan
from hf_unlearn.audit.report import REPORT_FILE, AlignmentMatrices, Audit, write_report
from hf_unlearn.audit.roster import Subjects, collect_subjects
from hf_unlearn.audit.transforms import HeldBackViews, TrainingViews, Transform
from hf_unlearn.audit.verdict import run_tests, run_tests_by_owner
from hf_unlearn.distributed import deal, world_size
from hf_unlearn.errors import UserError
from hf_unlearn.files import refuse_to_write_to
from hf_unlearn.records.audit_result import Arm, ImageRow

logger = logging.getLogger(__name__)

VIEW_SIDE = 224  # for encoders that do not say what they were made for
CACHE_FILE = "answers.sqlite"
MOST_IN_MATRIX = 200
_QUESTION = {  # what both sides must have in common, as a recording notes it, and how a message calls it
    "views": "views",
    "seed": "seed",
    "count": "view count",
    "captions_sha256": "captions",
    "features": "features",
    "processor_backend": "image processors' backend",
}
LIBRARIES = ("hf-unlearn", "torch", "torchvision", "transformers", "kornia", "numpy", "scipy", "pillow")


@dataclass(frozen=True)
class AuditSettings:
    """How two encoders are measured; the same for both.

    Args:
        views: A name in `transforms.training_views()`; by default `caption` with captions and `cifar` without.
        view_count: Views a picture, K.
        view_side: Side of a view in pixels; by default the larger of the two encoders', else 224.
        features: For SimCLR and MoCo checkpoints, which output: `projection` or `backbone`.
        backend: Backend of both checkpoints' image processors, `torchvision` or `pil`.
        device: Where checkpoints compute; the accelerator, if there is one, by default.
        endpoint: Batch size and patience with endpoints.
        seed: Seed of the views and of Monte-Carlo permutations, at least 0.
        anonymous: Whether Hub models are fetched as anybody could, without the token logged in with.

    Raises:
        UserError: When there are fewer than two views a picture, or a number is out of its range.
    """

    views: str | None = None
    view_count: int = 10
    view_side: int | None = None
    features: Features = "projection"
    backend: Backend = "torchvision"
    device: str | None = None
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    seed: int = 0
    anonymous: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"The seed must be a whole number of at least 0, not {self.seed}.")
        if self.view_side is not None and self.view_side < 1:
            raise UserError(f"A view needs a side of at least 1 pixel, not {self.view_side}.")
        if self.view_count < 2:
            raise UserError(f"An audit needs at least 2 views a picture to compare, not {self.view_count}.")


def run_audit(
    before: str | Path,
    after: str | Path,
    images: str | Path,
    output_dir: str | Path,
    *,
    still_trained: str | Path | None = None,
    never_trained: str | Path | None = None,
    captions: str | Path | None = None,
    plan: str | Path | None = None,
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
        output_dir: Where the report goes: `audit.json`, `report.html` and PNGs.
        still_trained: Folder of the owner's pictures that stay in training.
        never_trained: Folder of pictures of the same source that never were in training.
        captions: CSV file with a column `image` and `caption` (image-text pairs), `owner` (several owners), or both.
        plan: A `plan.json` that the arms must follow; it also parts `images` into its two halves.
        provenance: Where each arm's pictures come from, in the owner's words; folder names by default.
        settings: How both encoders are measured.
        overwrite: Whether a finished report in `output_dir` may be replaced.

    Returns:
        The results, matrices and where the report lies.

    Raises:
        UserError: When any input is bad; nothing is written then, except what endpoints have answered.
    """
    folder = Path(output_dir)
    deal(1, lambda _: _refuse_finished(folder, overwrite))  # by one process, while the others wait
    refuse_to_write_to(before, "--before", folder)
    refuse_to_write_to(after, "--after", folder)
    settings = settings or AuditSettings()
    subjects = collect_subjects(images, still_trained, never_trained, captions=captions, plan=plan)
    with ExitStack() as stack:
        measured, measurement = _measure_both(str(before), str(after), subjects, settings, folder, stack)
    notes = _notes(measured, subjects)
    rows = table(measured["before"], measured["after"], subjects)
    how: dict[str, Any] = {
        "plan_sha256": subjects.plan.sha256 if subjects.plan else None,
        "provenance": _provenance(subjects, images, still_trained, never_trained, provenance or {}),
        "problems": _problems(measured),
        "seed": settings.seed,
    }
    results = run_tests_by_owner(rows, **how) if any(subjects.owners) else {"": run_tests(rows, **how)}
    audit = Audit(
        results=results,
        matrices={owner: _matrices(measured, subjects, owner) for owner in results},
        pictures={picture.name: picture for picture in subjects.pictures},
        measurement=measurement,
        notes=notes,
        folder=folder,
    )
    deal(1, lambda _: write_report(audit))
    return audit


def record_embeddings(
    model: str | Path,
    images: str | Path,
    output_file: str | Path,
    *,
    captions: str | Path | None = None,
    settings: AuditSettings | None = None,
) -> Path:
    """Record one encoder's embeddings now, for an audit later: the way to keep an endpoint's answers of before.

    The file knows the pictures by hash and how their views were drawn. Give it to `run_audit` as `before`, with the
    same settings for the other side; the pictures may by then be parted into arms in any way.

    Args:
        model: A folder, Hub id or HTTP endpoint (whose token is that of `before`).
        images: Folder of all pictures that may be audited.
        output_file: A `.safetensors` file to write.
        captions: CSV file as for `run_audit`.
        settings: As for `run_audit`.

    Returns:
        The file written.

    Raises:
        UserError: When any input is bad, or the file exists.
    """
    target = Path(output_file)
    if target.suffix != ".safetensors":
        raise UserError(f"Embeddings are recorded as .safetensors; '{target.name}' is something else.")
    if target.exists():
        raise UserError(f"'{target}' exists and is never replaced; choose another file.")
    _refuse_no_folder(target.parent)
    refuse_to_write_to(model, "--model", target, "--output_file")
    subjects = collect_subjects(images, captions=captions)
    settings = settings or AuditSettings()
    with ExitStack() as stack:
        encoder = _open_encoder(str(model), "before", target.parent / CACHE_FILE, settings, stack)
        transform, held_back = _transforms(settings, [encoder], bool(subjects.captions[0]))
        embeddings = _measure(encoder, subjects, settings, transform, held_back)
    return save_embeddings(embeddings, subjects.pictures, target, _drawn(transform, settings), subjects.captions)


def plan_request(images: str | Path, output_dir: str | Path, seed: int) -> AuditPlan:
    """Draw which half of the owner's pictures to request, and commit to it before anyone acts.

    Args:
        images: Folder of the owner's pictures, all of them in training.
        output_dir: Where `request.csv`, `still_trained.csv` and `plan.json` go.
        seed: Any whole number, chosen before looking at any model.

    Returns:
        The plan.

    Raises:
        UserError: When the pictures cannot be read or are too few, or the folder holds a plan.
    """
    plan = draw_plan({picture.name: picture.sha256 for picture in list_pictures(images)}, seed)
    write_plan(plan, Path(output_dir))
    return plan


def table(before: Embeddings, after: Embeddings, subjects: Subjects) -> list[ImageRow]:
    """Turn two encoders' answers into the per-image table that is tested.

    Args:
        before: Embeddings before.
        after: Embeddings after.
        subjects: The pictures.

    Returns:
        One row a picture.
    """
    columns = {"before": before.alignments(), "after": after.alignments()}
    if before.held_back is not None and after.held_back is not None:
        columns |= {
            "held_back_before": before.alignments(held_back=True),
            "held_back_after": after.alignments(held_back=True),
        }
    if before.images.shape == after.images.shape:
        columns["change"] = change(before, after)
    repeated = [noises for side in (before, after) if (noises := noise(side)) is not None]
    if len(repeated) == 2:
        columns["noise"] = (repeated[0] + repeated[1]) / 2
    return [
        ImageRow(
            image=picture.name,
            sha256=picture.sha256,
            arm=arm,
            owner=owner,
            **{name: float(values[i]) for name, values in columns.items()},
        )
        for i, (picture, arm, owner) in enumerate(zip(subjects.pictures, subjects.arms, subjects.owners, strict=True))
    ]


def _refuse_finished(folder: Path, overwrite: bool) -> None:
    _refuse_no_folder(folder)
    if (folder / REPORT_FILE).exists() and not overwrite:
        raise UserError(f"'{folder}' holds a finished audit; choose another output folder, or give --overwrite.")


def _refuse_no_folder(folder: Path) -> None:
    """Refuse a place where no folder can be made, since a file is in the way."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"'{there}' is a file, and what is written needs a folder there; choose another.")


def _measure_both(
    before: str, after: str, subjects: Subjects, settings: AuditSettings, folder: Path, stack: ExitStack
) -> tuple[dict[str, Embeddings], dict[str, Any]]:
    """Open both encoders, then ask both the same; a wrong name fails before anything long begins."""
    started = _now()
    opened: dict[str, Embeddings | Encoder] = {}
    for side, name in (("before", before), ("after", after)):
        if is_precomputed(name):
            opened[side] = read_embeddings(name, subjects.pictures, subjects.captions)
        else:
            opened[side] = _open_encoder(name, side, folder / CACHE_FILE, settings, stack)
    encoders = [found for found in opened.values() if not isinstance(found, Embeddings)]
    how: dict[str, Any] = {"views": "precomputed", "held_back_views": None, "seed": settings.seed}
    if encoders:
        transform, held_back = _transforms(settings, encoders, bool(subjects.captions[0]))
        how |= {"views": transform.describe(), "held_back_views": held_back.describe()}
    _check_same_question(
        {
            side: _recorded_question(found)
            if isinstance(found, Embeddings)
            else {
                **_drawn(transform, settings),
                "captions_sha256": captions_sha256(subjects.captions),
                **_choices(found),
            }
            for side, found in opened.items()
        }
    )
    measured = {}
    for side, found in opened.items():
        if isinstance(found, Embeddings):
            measured[side] = found
        else:
            logger.info("Measuring the model %s.", side)
            measured[side] = _measure(found, subjects, settings, transform, held_back)
    measurement = {
        "started": started,
        "finished": _now(),
        "family": "image-text" if measured["before"].texts is not None or any(subjects.captions) else "views",
        "view_count": measured["before"].images.shape[1],
        **how,
        "processor_backend": settings.backend if any(isinstance(e, LocalEncoder) for e in encoders) else None,
        "device": next((e.device for e in encoders if isinstance(e, LocalEncoder)), None),
        "encoders": {side: dict(embeddings.source) for side, embeddings in measured.items()},
        "versions": _versions(),
    }
    return measured, measurement


def _measure(
    encoder: Encoder, subjects: Subjects, settings: AuditSettings, transform: Transform, held_back: Transform
) -> Embeddings:
    return measure(
        encoder,
        subjects.pictures,
        subjects.captions,
        transform,
        held_back,
        seed=settings.seed,
        count=settings.view_count,
    )


def _open_encoder(name: str, side: str, cache: Path, settings: AuditSettings, stack: ExitStack) -> Encoder:
    if is_endpoint(name):
        if world_size() > 1:
            raise UserError(f"The endpoint of the model {side} is asked by a single process; launch the audit as one.")
        check_endpoint(name, side)  # before a file is made for its answers
        return EndpointEncoder(name, side, stack.enter_context(EmbeddingCache(cache)), settings.endpoint)
    return LocalEncoder(
        name,
        features=settings.features,
        backend=settings.backend,
        device=settings.device,
        anonymous=settings.anonymous,
    )


def _transforms(
    settings: AuditSettings, encoders: Sequence[Encoder], captioned: bool
) -> tuple[TrainingViews, HeldBackViews]:
    preset = settings.views or ("caption" if captioned else "cifar")
    side = settings.view_side or max((encoder.view_side or 0 for encoder in encoders), default=0) or VIEW_SIDE
    return TrainingViews(preset, side), HeldBackViews(side)


def _drawn(transform: Transform, settings: AuditSettings) -> dict[str, Any]:
    """How views are drawn, as JSON gives it back."""
    drawn = {"views": transform.describe(), "seed": settings.seed, "count": settings.view_count}
    return json.loads(json.dumps(drawn))


def _choices(encoder: Encoder) -> dict[str, str]:
    """What was chosen for a checkpoint; an endpoint leaves no choice."""
    return encoder.choices if isinstance(encoder, LocalEncoder) else {}


def _recorded_question(recorded: Embeddings) -> dict[str, Any]:
    """What a file says of how it was made: everything if it was recorded here, nothing if it is another's."""
    told = recorded.source
    return {**told.get("drawn", {}), **{name: told[name] for name in _QUESTION if name in told}}


def _check_same_question(asked: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to compare a recording with what is measured, or was recorded, otherwise."""
    before, after = asked["before"], asked["after"]
    if other := [name for name in _QUESTION if name in before and name in after and before[name] != after[name]]:
        told = {side: json.dumps({name: question[name] for name in other}) for side, question in asked.items()}
        raise UserError(
            f"A model was recorded with another question than the other is asked: before {told['before']}, after "
            f"{told['after']}; use the same {', '.join(_QUESTION[name] for name in other)} for both."
        )


def _problems(measured: Mapping[str, Embeddings]) -> list[str]:
    """Faults of the whole measurement; a fault of single pictures is left to the tests, which know whose they are."""
    before, after = measured["before"], measured["after"]
    found = [sentence for side, e in measured.items() if (sentence := e.collapse(f"The model {side}"))]
    for what, left, right in (
        ("numbers a picture", before.images.shape[2], after.images.shape[2]),
        ("views a picture", before.images.shape[1], after.images.shape[1]),
        ("captions", _captions(before), _captions(after)),
    ):
        if left != right:
            found.append(f"The model before gives {left} {what}, the model after {right}: they cannot be compared.")
    return found


def _captions(embeddings: Embeddings) -> int:
    return 0 if embeddings.texts is None else len(embeddings.texts)


def _notes(measured: Mapping[str, Embeddings], subjects: Subjects) -> tuple[str, ...]:
    """What a reader should know about the measurement, though it forbids no verdict by itself."""
    notes = [note for side, e in measured.items() for note in e.faults(f"The model {side}", subjects.names)]
    precomputed = [side for side, e in measured.items() if e.source.get("kind") == "precomputed"]
    if foreign := [side for side in precomputed if not {"drawn", "captions_sha256"} <= set(measured[side].source)]:
        notes.append(
            f"The embeddings {' and '.join(foreign)} were computed elsewhere; that both sides saw the same views and "
            "captions is taken on trust."
        )
    elif precomputed:
        notes.append(
            f"The embeddings {' and '.join(precomputed)} were recorded earlier; by that record, both sides saw the "
            "same views and captions."
        )
    before, after = (measured[side].source for side in ("before", "after"))
    for key, what in (("processor", "image processors"), ("processor_size", "picture sizes")):
        if key in before and key in after and before[key] != after[key]:
            notes.append(f"The two checkpoints bring different {what} ({before[key]}, {after[key]}).")
    return tuple(notes)


def _matrices(measured: Mapping[str, Embeddings], subjects: Subjects, owner: str) -> AlignmentMatrices:
    everyone = [
        i
        for i, (arm, whose) in enumerate(zip(subjects.arms, subjects.owners, strict=True))
        if arm is Arm.REQUESTED and whose == owner
    ]
    rows = everyone[:MOST_IN_MATRIX]
    captioned = all(subjects.captions[i] for i in rows)
    return AlignmentMatrices(
        pictures=tuple(subjects.pictures[i] for i in rows),
        captions=tuple(subjects.captions[i][0] for i in rows) if captioned else None,
        am_before=measured["before"].alignment_matrix(rows),
        am_after=measured["after"].alignment_matrix(rows),
        omitted=len(everyone) - len(rows),
    )


def _provenance(
    subjects: Subjects,
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
        if folder is not None and arm in subjects.arms
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from its sources, without having been installed
            continue
    return versions


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
