"""Before anything changes: draw and commit the request, and record what the model answers now."""

import logging
import secrets
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from hf_unlearn.audit.audited_pictures import collect_pictures, read_table
from hf_unlearn.audit.both_encoders import CACHE_FILE, how_drawn, open_encoder, view_families
from hf_unlearn.audit.clusters import picture_clusters
from hf_unlearn.audit.embedding_files import save_embeddings
from hf_unlearn.audit.encoders import embed_pictures
from hf_unlearn.audit.pictures import list_pictures
from hf_unlearn.audit.plan import AuditPlan, check_audit_number, commit_views, draw_plan, planned_seed, write_plan
from hf_unlearn.audit.run import refuse_no_folder
from hf_unlearn.audit.settings import LARGEST_AUDITS, AuditSettings
from hf_unlearn.distributed import map_across_processes, owned_together
from hf_unlearn.errors import UserError
from hf_unlearn.files import owned, refuse_to_write_to

logger = logging.getLogger(__name__)


def record_embeddings(
    model: str | Path,
    images: str | Path,
    output_file: str | Path,
    *,
    still_trained: str | Path | None = None,
    never_trained: str | Path | None = None,
    captions: str | Path | None = None,
    plan: str | Path | None = None,
    audit_number: int = 1,
    settings: AuditSettings | None = None,
) -> Path:
    """Record one encoder's embeddings now, for an audit later: the way to keep an endpoint's answers of before.

    The file knows the pictures by hash and how their views were drawn. Give it to `run_audit` as `before`: the other
    side is then asked the same. The pictures may by then be parted into arms in any way. The file holds the secret
    seed of the views; keep it to yourself until the audit is done.

    Args:
        model: A folder, Hub id or HTTP endpoint (whose token is that of `before`).
        images: Folder of the pictures whose removal is to be requested, or of all pictures that may be audited.
        output_file: A `.safetensors` file to write.
        still_trained: Folder of pictures that will stay in training.
        never_trained: Folder of pictures that never were in training. Once the old model is gone, neither can be added.
        captions: CSV file as for `run_audit`.
        plan: A `plan.json`, whose committed views are recorded.
        audit_number: Which of the plan's audits this is for, from 1; only with a plan.
        settings: As for `run_audit`.

    Returns:
        The file written.

    Raises:
        UserError: When any input is bad, or the file exists.
    """
    check_audit_number(plan, audit_number)
    target = Path(output_file)
    if target.suffix != ".safetensors":
        raise UserError(f"Embeddings are recorded as .safetensors; '{target.name}' is something else.")
    if target.exists():
        raise UserError(f"'{target}' exists and is never replaced; choose another file.")
    refuse_no_folder(target.parent)
    refuse_to_write_to(model, "--model", target, "--output_file")
    if never_trained is None:
        logger.warning(
            "Nothing is recorded of pictures never in training (--never_trained); once this model is gone, an audit "
            "cannot compare with them, and no level of memory can be told."
        )
    pictures = collect_pictures(images, still_trained, never_trained, captions=captions)
    chosen = settings or AuditSettings()
    if plan is not None and chosen.seed is None:
        chosen = replace(chosen, seed=planned_seed(plan, audit_number))
    settings = map_across_processes(1, lambda _: chosen.with_defaults())[0]  # one draw of the seed for all processes
    with ExitStack() as stack:
        stack.enter_context(owned_together(target.parent, "Another audit or recording", "--output_file"))
        encoder = open_encoder(str(model), "before", target.parent / CACHE_FILE, settings, stack)
        views, held_back = view_families(settings, [encoder], bool(pictures.captions[0]))
        assert settings.seed is not None and settings.view_count is not None
        embeddings = embed_pictures(
            encoder,
            pictures.pictures,
            pictures.captions,
            views,
            held_back,
            seed=settings.seed,
            count=settings.view_count,
        )
        drawn = how_drawn(views, settings)
        written = map_across_processes(
            1, lambda _: save_embeddings(embeddings, pictures.pictures, target, drawn, pictures.captions)
        )
    return written[0]


def plan_audit(
    images: str | Path,
    output_dir: str | Path,
    seed: int | None = None,
    *,
    captions: str | Path | None = None,
    audits: int = 1,
) -> AuditPlan:
    """Draw which half of the owner's pictures to request, and commit to it before anyone acts.

    Args:
        images: Folder of the owner's pictures, all of them in training.
        output_dir: Where `request.csv`, `still_trained.csv`, `view_secret.json` and `plan.json` go.
        seed: Any whole number, chosen before looking at any model; drawn at random by default.
        captions: CSV file whose column `group` says which pictures belong together.
        audits: How many audits are planned over time; they share the error.

    Returns:
        The plan.

    Raises:
        UserError: When the pictures cannot be read or are too few, or the folder holds a plan.
    """
    if not 1 <= audits <= LARGEST_AUDITS:
        raise UserError(f"A plan is for at least 1 audit and at most {LARGEST_AUDITS}, not {audits}.")
    return map_across_processes(1, lambda _: _draw(images, output_dir, seed, captions, audits))[0]  # one draw for all


def _draw(
    images: str | Path, output_dir: str | Path, seed: int | None, captions: str | Path | None, audits: int
) -> AuditPlan:
    pictures = list_pictures(images)
    groups = read_table(Path(captions), pictures)[2] if captions is not None else {}
    numbers = picture_clusters(pictures, [groups.get(picture.name, "") for picture in pictures]).tolist()
    secret = secrets.token_hex(16)
    plan = draw_plan(
        {picture.name: picture.sha256 for picture in pictures},
        secrets.randbits(63) if seed is None else seed,
        {picture.name: number for picture, number in zip(pictures, numbers, strict=True)},
        commit_views(secret, audits),
    )
    with owned(output_dir, "Another audit or plan"):
        write_plan(plan, Path(output_dir), secret)
    return plan
