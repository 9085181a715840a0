"""`hf-unlearn audit`: what a data owner runs, alone, with a folder of pictures and two encoders."""

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args

import typer

from hf_unlearn.errors import UserError
from hf_unlearn.records.audit_result import Arm, AuditResult, Verdict

if TYPE_CHECKING:
    from hf_unlearn.audit.run import AuditSettings

T = TypeVar("T")

WIDTH = 80  # columns of wrapped text

app = typer.Typer(
    help="Audit two encoders, before and after unlearning, on your own pictures.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"token_normalize_func": lambda name: name.replace("-", "_")},
)

Before = Annotated[
    str | None,
    typer.Option("--before", help="Encoder before: folder, Hub id (id@revision), endpoint URL, or file of embeddings."),
]
After = Annotated[str | None, typer.Option("--after", help="Encoder after, likewise.")]
Images = Annotated[Path | None, typer.Option("--images", help="Folder of the pictures whose removal was requested.")]
StillTrained = Annotated[
    Path | None,
    typer.Option("--still_trained", help="Folder of your pictures that stay in training."),
]
NeverTrained = Annotated[
    Path | None,
    typer.Option("--never_trained", help="Folder of pictures of the same source that never were in training."),
]
Captions = Annotated[
    Path | None,
    typer.Option("--captions", help="CSV with a column image and caption (image-text pairs), owner, or both."),
]
Views = Annotated[
    str | None,
    typer.Option("--views", help="How views are drawn: caption, cifar, imagenet or light; as in training, if known."),
]
ViewCount = Annotated[int, typer.Option("--view_count", help="Views a picture.")]
ViewSide = Annotated[
    int | None, typer.Option("--view_side", help="Side of a view in pixels; the encoder's by default.")
]
FeaturesOption = Annotated[
    str, typer.Option("--features", help="For SimCLR and MoCo: projection (as trained) or backbone (as used).")
]
BackendOption = Annotated[
    str, typer.Option("--backend", help="Image processors' backend on both sides: torchvision or pil.")
]
Device = Annotated[str | None, typer.Option("--device", help="Where checkpoints compute, such as cpu or cuda.")]
BatchSize = Annotated[int, typer.Option("--endpoint_batch_size", help="Pictures a request to an endpoint.")]
Timeout = Annotated[float, typer.Option("--endpoint_timeout", help="Seconds to wait for an endpoint's answer.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the views and of random permutations.")]


@app.callback()
def run(
    context: typer.Context,
    before: Before = None,
    after: After = None,
    images: Images = None,
    still_trained: StillTrained = None,
    never_trained: NeverTrained = None,
    captions: Captions = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="The plan.json that 'hf-unlearn audit plan' wrote.")
    ] = None,
    provenance: Annotated[
        list[str] | None,
        typer.Option("--provenance", help="Where an arm's pictures come from, as arm=words; repeatable."),
    ] = None,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where the report goes.")] = Path("report"),
    fail_on: Annotated[
        list[str] | None,
        typer.Option("--fail_on", help="Exit with status 1 on this verdict, such as no-model-change; repeatable."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished report.")] = False,
    views: Views = None,
    view_count: ViewCount = 10,
    view_side: ViewSide = None,
    features: FeaturesOption = "projection",
    backend: BackendOption = "torchvision",
    device: Device = None,
    endpoint_batch_size: BatchSize = 16,
    endpoint_timeout: Timeout = 60.0,
    seed: Seed = 0,
) -> None:
    """Audit two encoders on your pictures and write a report; the exit status is 0 whatever the verdict.

    Tokens of endpoints are read from HF_UNLEARN_BEFORE_TOKEN, HF_UNLEARN_AFTER_TOKEN or HF_UNLEARN_TOKEN.
    """
    if context.invoked_subcommand is not None:
        return
    missing = [name for name, value in (("--before", before), ("--after", after), ("--images", images)) if not value]
    if before is None or after is None or images is None:
        raise UserError(f"An audit needs {', '.join(missing)}; see 'hf-unlearn audit --help'.")
    first = _join_processes(device)
    from hf_unlearn.audit.run import run_audit

    failing = [_choice(word, {verdict.slug: verdict for verdict in Verdict}, "--fail-on") for word in fail_on or []]
    words = {}
    for entry in provenance or []:
        arm, _, text = entry.partition("=")
        words[_choice(arm, {arm.value: arm for arm in Arm}, "--provenance")] = text
    audit = run_audit(
        before,
        after,
        images,
        output_dir,
        still_trained=still_trained,
        never_trained=never_trained,
        captions=captions,
        plan=plan,
        provenance=words,
        settings=_settings(
            views, view_count, view_side, features, backend, device, endpoint_batch_size, endpoint_timeout, seed
        ),
        overwrite=overwrite,
    )
    if first:
        for owner, result in audit.results.items():
            typer.echo(summary(result, owner))
        typer.echo(f"Report: {audit.folder / 'report.html'}")
    if any(result.verdict in failing for result in audit.results.values()):
        raise typer.Exit(1)


@app.command(short_help="Draw at random which of your pictures to request.")
def plan(
    images: Annotated[Path, typer.Option("--images", help="Folder of your pictures, all of them in training.")],
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where the plan goes.")],
    seed: Annotated[int, typer.Option("--seed", help="Any whole number, chosen before looking at any model.")] = 0,
) -> None:
    """Draw at random which half of your pictures to request, and commit to it: the audit is then exact."""
    from hf_unlearn.audit.run import plan_request

    drawn = plan_request(images, output_dir, seed)
    typer.echo(
        f"{len(drawn.requested)} pictures to request ({output_dir / 'request.csv'}), {len(drawn.still_trained)} to "
        f"leave in training ({output_dir / 'still_trained.csv'})."
    )
    typer.echo(f"Publish or deposit this hash when you send the request: {drawn.sha256}")
    typer.echo(f"Later: hf-unlearn audit --before A --after B --images {images} --plan {output_dir / 'plan.json'}")


@app.command(short_help="Record an encoder's embeddings, to audit later.")
def record(
    model: Annotated[str, typer.Option("--model", help="Folder, Hub id or endpoint URL.")],
    images: Annotated[Path, typer.Option("--images", help="Folder of all pictures that may be audited later.")],
    output_file: Annotated[Path, typer.Option("--output_file", help="A .safetensors file to write.")],
    captions: Captions = None,
    views: Views = None,
    view_count: ViewCount = 10,
    view_side: ViewSide = None,
    features: FeaturesOption = "projection",
    backend: BackendOption = "torchvision",
    device: Device = None,
    endpoint_batch_size: BatchSize = 16,
    endpoint_timeout: Timeout = 60.0,
    seed: Seed = 0,
) -> None:
    """Record an encoder's embeddings now, to audit later: an endpoint's answers of before are gone once it changes."""
    from hf_unlearn.audit.run import record_embeddings

    settings = _settings(
        views, view_count, view_side, features, backend, device, endpoint_batch_size, endpoint_timeout, seed
    )
    written = record_embeddings(model, images, output_file, captions=captions, settings=settings)
    typer.echo(f"Recorded: {written}")


@app.command("app", short_help="Open the audit as a local web page.")
def serve(
    port: Annotated[int | None, typer.Option("--port", help="Port of the local web page.")] = None,
) -> None:
    """Open the audit as a local web page: upload pictures, name two models, see the heatmaps and the verdict."""
    from hf_unlearn.audit.app import build_app

    build_app().launch(server_port=port)


def summary(result: AuditResult, owner: str = "") -> str:
    """The audit of one owner as it is told in the terminal.

    Args:
        result: The owner's result.
        owner: The owner's name, if there are several.

    Returns:
        A few lines: verdict, explanation, alignments by arm, and the footer.
    """
    lines = [f"{owner}: {result.verdict.value}" if owner else result.verdict.value, ""]
    lines += [*textwrap.wrap(result.explanation, WIDTH), ""]
    lines.append(f"{'':18}{'images':>7}{'before':>9}{'after':>9}{'forgetting score':>18}")
    for arm in result.arms:
        rows = [row for row in result.images if row.arm is arm.arm]
        before, after = fmean(row.before for row in rows), fmean(row.after for row in rows)
        name = arm.arm.value.replace("_", " ")
        lines.append(f"{name:18}{arm.size:>7}{before:>9.4f}{after:>9.4f}{before - after:>+18.4f}")
    return "\n".join([*lines, "", *textwrap.wrap(result.footer, WIDTH), ""])


def _settings(
    views: str | None,
    view_count: int,
    view_side: int | None,
    features: str,
    backend: str,
    device: str | None,
    endpoint_batch_size: int,
    endpoint_timeout: float,
    seed: int,
) -> "AuditSettings":
    """How encoders are measured, from the options that audits and recordings have in common."""
    from hf_unlearn.audit.encoders import Backend, Features
    from hf_unlearn.audit.endpoint import EndpointOptions
    from hf_unlearn.audit.run import AuditSettings

    return AuditSettings(
        views=views,
        view_count=view_count,
        view_side=view_side,
        features=_choice(features, {word: word for word in get_args(Features)}, "--features"),
        backend=_choice(backend, {word: word for word in get_args(Backend)}, "--backend"),
        device=device,
        endpoint=EndpointOptions(batch_size=endpoint_batch_size, timeout=endpoint_timeout),
        seed=seed,
    )


def _choice(word: str, choices: Mapping[str, T], option: str) -> T:
    key = word.strip().lower()
    for spelling in (key, key.replace("_", "-"), key.replace("-", "_")):
        if spelling in choices:
            return choices[spelling]
    raise UserError(f"{option} knows no '{word}'; choose among {', '.join(choices)}.")


def _join_processes(device: str | None) -> bool:
    """Join the other processes of `accelerate launch`, if there are any; gives whether this is the first one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    import torch
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu" or not torch.accelerator.is_available()).is_main_process
