"""`hf-unlearn audit`: what a data owner runs, alone, with a folder of pictures and two encoders."""

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer

from hf_unlearn.errors import UserError
from hf_unlearn.records.audit_result import Arm, AuditResult, Verdict

if TYPE_CHECKING:
    from hf_unlearn.audit.settings import AuditSettings

T = TypeVar("T")

WIDTH = 80  # columns of wrapped text
ASKING = (  # options that say how models are asked
    *("views", "view_count", "most_views", "view_side", "features", "backend"),
    *("endpoint_batch_size", "endpoint_timeout"),
)
BESIDE_REPEAT = ("repeat", "output_dir", "overwrite", "fail_on", "device")

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
    Path | None, typer.Option("--still_trained", help="Folder of your pictures that stay in training.")
]
NeverTrained = Annotated[
    Path | None,
    typer.Option("--never_trained", help="Folder of pictures of the same source that never were in training."),
]
Captions = Annotated[
    Path | None,
    typer.Option("--captions", help="CSV with a column image and any of caption, owner and group (a series)."),
]
Plan = Annotated[Path | None, typer.Option("--plan", help="The plan.json that 'hf-unlearn audit plan' wrote.")]
AuditNumber = Annotated[int, typer.Option("--audit_number", help="With --plan: which of its audits this is.")]
Views = Annotated[
    str | None,
    typer.Option("--views", help="How views are drawn: caption, cifar, imagenet or light; as in training, if known."),
]
ViewCount = Annotated[
    int | None, typer.Option("--view_count", help="Views a picture, itself among them; 10 by default.")
]
ViewSide = Annotated[
    int | None, typer.Option("--view_side", help="Side of a view in pixels; the encoder's by default.")
]
FeaturesOption = Annotated[
    str | None,
    typer.Option("--features", help="For SimCLR and MoCo: projection (as trained, the default) or backbone (as used)."),
]
BackendOption = Annotated[
    str | None,
    typer.Option("--backend", help="Image processors' backend on both sides: torchvision (the default) or pil."),
]
Device = Annotated[str | None, typer.Option("--device", help="Where checkpoints compute, such as cpu or cuda.")]
BatchSize = Annotated[int, typer.Option("--endpoint_batch_size", help="Pictures a request to an endpoint.")]
Timeout = Annotated[float, typer.Option("--endpoint_timeout", help="Seconds to wait for an endpoint's answer.")]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", help="Only to repeat a report: the seed of its views. Drawn at random, and secret, by default."
    ),
]


@app.callback()
def run(
    context: typer.Context,
    before: Before = None,
    after: After = None,
    images: Images = None,
    still_trained: StillTrained = None,
    never_trained: NeverTrained = None,
    captions: Captions = None,
    plan: Plan = None,
    audit_number: AuditNumber = 1,
    audits: Annotated[
        int, typer.Option("--audits", help="Without a plan: audits planned of this request; they share the error.")
    ] = 1,
    decoys: Annotated[
        Path | None,
        typer.Option(
            "--decoys",
            help="Folder of pictures never requested, mixed in where both models are asked: they show filters.",
        ),
    ] = None,
    repeat: Annotated[
        Path | None, typer.Option("--repeat", help="A report's folder: repeat that audit and compare.")
    ] = None,
    provenance: Annotated[
        list[str] | None,
        typer.Option("--provenance", help="Where an arm's pictures come from, as arm=words; repeatable."),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output_dir", help="Where the report goes; report by default, REPORT-repeated with --repeat."),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option("--fail_on", help="Exit with status 1 on this verdict, such as no-model-change; repeatable."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished report.")] = False,
    views: Views = None,
    view_count: ViewCount = None,
    most_views: Annotated[
        int, typer.Option("--most_views", help="Views up to which more are drawn for a steady verdict.")
    ] = 40,
    view_side: ViewSide = None,
    features: FeaturesOption = None,
    backend: BackendOption = None,
    device: Device = None,
    endpoint_batch_size: BatchSize = 16,
    endpoint_timeout: Timeout = 60.0,
    seed: Seed = None,
) -> None:
    """Audit two encoders on your pictures and write a report; the exit status is 0 whatever the verdict.

    Tokens of endpoints are read from HF_UNLEARN_BEFORE_TOKEN, HF_UNLEARN_AFTER_TOKEN or HF_UNLEARN_TOKEN.
    """
    if context.invoked_subcommand is not None:
        return
    first = _join_processes(device)
    failing = [_choice(word, {verdict.slug: verdict for verdict in Verdict}, "--fail_on") for word in fail_on or []]
    if repeat is not None:
        _refuse_beside_repeat(context)
        _repeat(repeat, output_dir, failing, device, overwrite, first)
        return
    missing = [name for name, value in (("--before", before), ("--after", after), ("--images", images)) if not value]
    if before is None or after is None or images is None:
        raise UserError(f"An audit needs {', '.join(missing)}; see 'hf-unlearn audit --help'.")
    from hf_unlearn.audit.embedding_files import is_precomputed
    from hf_unlearn.audit.report import report_digest
    from hf_unlearn.audit.run import run_audit

    if is_precomputed(before) and is_precomputed(after) and (given := _given(context, ASKING)):
        raise UserError(
            f"Both sides are files of embeddings, so no model is asked, and {', '.join(given)} would have no effect; "
            "leave that out."
        )
    audit = run_audit(
        before,
        after,
        images,
        output_dir or Path("report"),
        still_trained=still_trained,
        never_trained=never_trained,
        captions=captions,
        plan=plan,
        audit_number=audit_number,
        decoys=decoys,
        provenance=_provenance(provenance or ()),
        settings=_settings(context.params),
        overwrite=overwrite,
    )
    if first:
        for owner, result in audit.results.items():
            typer.echo(summary(result, owner))
        for note in audit.notes:
            typer.echo("\n".join(textwrap.wrap(f"Note: {note}", WIDTH)))
        typer.echo(f"Report: {audit.folder / 'report.html'}")
        typer.echo(f"Digest of the report, to be time-stamped or signed: {report_digest(audit.folder)}")
    if any(result.verdict in failing for result in audit.results.values()):
        raise typer.Exit(1)


def summary(result: AuditResult, owner: str = "") -> str:
    """The audit of one owner as it is told in the terminal.

    Args:
        result: The owner's result.
        owner: The owner's name, if there are several.

    Returns:
        A few lines: verdict, explanation, alignments by arm, and the footer.
    """
    lines = textwrap.wrap(f"{owner}: {result.headline}" if owner else result.headline, WIDTH)
    lines += ["", result.verdict.value, "", *textwrap.wrap(result.explanation, WIDTH), ""]
    lines += [line for sentence in result.findings for line in textwrap.wrap(f"! {sentence}", WIDTH)]
    lines += [""] if result.findings else []
    lines.append(f"{'':18}{'images':>7}{'before':>9}{'after':>9}{'forgetting score':>18}")
    for arm in result.arms:
        rows = [row for row in result.images if row.arm is arm.arm]
        known = [row for row in rows if isfinite(row.before) and isfinite(row.after)] or rows
        before, after = fmean(row.before for row in known), fmean(row.after for row in known)
        name = arm.arm.value.replace("_", " ")
        lines.append(f"{name:18}{arm.size:>7}{before:>9.4f}{after:>9.4f}{before - after:>+18.4f}")
    if result.stability is not None:
        lines += ["", *textwrap.wrap(result.stability_words, WIDTH)]
    lines += ["", *textwrap.wrap(result.footer, WIDTH), ""]
    # Names and answers from elsewhere may carry control characters.
    return "\n".join("".join(letter if letter.isprintable() else "?" for letter in line) for line in lines)


def _refuse_beside_repeat(context: typer.Context) -> None:
    """Refuse options that would have no effect, as the report says what was audited and how."""
    if given := _given(context, [name for name in context.params if name not in BESIDE_REPEAT]):
        raise UserError(
            f"--repeat takes what was audited, and how, from the report, and {', '.join(given)} would have no effect; "
            "leave that out, or audit anew without --repeat."
        )


def _given(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Which of these options somebody gave."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [f"--{name}" for name, source in sources.items() if source is not None and source.name != "DEFAULT"]


def _provenance(entries: Iterable[str]) -> dict[Arm, str]:
    """The owner's words about each arm."""
    words = {}
    for entry in entries:
        name, _, text = entry.partition("=")
        arm = _choice(name, {arm.value: arm for arm in Arm}, "--provenance")
        if not text.strip():
            raise UserError(f"--provenance {entry} has no words; give them as {arm.value}=words, or leave it out.")
        words[arm] = text
    return words


def _repeat(
    report: Path,
    output_dir: Path | None,
    failing: Sequence[Verdict],
    device: str | None,
    overwrite: bool,
    first: bool,
) -> None:
    """Repeat a report's audit into another folder and tell whether both agree; exit status 1 where they do not."""
    from hf_unlearn.audit.repeat import repeat_audit

    target = output_dir or Path(f"{report.resolve()}-repeated")
    comparison = repeat_audit(report, target, device=device, overwrite=overwrite)
    if first:
        for line in comparison.lines():
            typer.echo(line)
        typer.echo(f"Report: {target / 'report.html'}")
    verdicts = {again for _, again in comparison.verdicts.values()}
    if not comparison.agrees or any(verdict.value in verdicts for verdict in failing):
        raise typer.Exit(1)


@app.command(short_help="Draw at random which of your pictures to request.")
def plan(
    images: Annotated[Path, typer.Option("--images", help="Folder of your pictures, all of them in training.")],
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where the plan goes.")],
    captions: Annotated[
        Path | None, typer.Option("--captions", help="CSV with the columns image and group: what belongs together.")
    ] = None,
    audits: Annotated[
        int, typer.Option("--audits", help="How many audits of this request are planned; they share the error.")
    ] = 1,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Any whole number, chosen before looking at any model; random by default."),
    ] = None,
) -> None:
    """Draw at random which half of your pictures to request, and commit to it: the audit is then exact."""
    first = _join_processes("cpu")
    from hf_unlearn.audit.power import plan_words
    from hf_unlearn.audit.recording import plan_audit

    drawn = plan_audit(images, output_dir, seed, captions=captions, audits=audits)
    if not first:
        return
    typer.echo(
        f"{len(drawn.requested)} pictures to request ({output_dir / 'request.csv'}), {len(drawn.still_trained)} to "
        f"leave in training ({output_dir / 'still_trained.csv'}); near-duplicates stay together."
    )
    for sentence in plan_words(*drawn.clusters, audits=audits):
        typer.echo("\n".join(textwrap.wrap(sentence, WIDTH)))
    typer.echo(f"Publish or deposit this hash when you send the request: {drawn.sha256}")
    typer.echo(f"Keep {output_dir / 'view_secret.json'} to yourself: whoever knows it knows the views of your audit.")
    both = f"--images {images} --plan {output_dir / 'plan.json'} --never_trained C"
    typer.echo(
        f"Now, while the model is unchanged: hf-unlearn audit record --model A {both} --output_file a.safetensors"
    )
    typer.echo(f"Later: hf-unlearn audit --before a.safetensors --after B {both}")


@app.command(short_help="Record an encoder's embeddings, to audit later.")
def record(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", help="Folder, Hub id or endpoint URL.")],
    images: Annotated[Path, typer.Option("--images", help="Folder of the pictures whose removal will be requested.")],
    output_file: Annotated[Path, typer.Option("--output_file", help="A .safetensors file to write.")],
    still_trained: StillTrained = None,
    never_trained: NeverTrained = None,
    captions: Captions = None,
    plan: Plan = None,
    audit_number: AuditNumber = 1,
    views: Views = None,
    view_count: ViewCount = None,
    view_side: ViewSide = None,
    features: FeaturesOption = None,
    backend: BackendOption = None,
    device: Device = None,
    endpoint_batch_size: BatchSize = 16,
    endpoint_timeout: Timeout = 60.0,
    seed: Seed = None,
) -> None:
    """Record an encoder's embeddings now, to audit later: an endpoint's answers of before are gone once it changes."""
    first = _join_processes(device)
    from hf_unlearn.audit.recording import record_embeddings

    written = record_embeddings(
        model,
        images,
        output_file,
        still_trained=still_trained,
        never_trained=never_trained,
        captions=captions,
        plan=plan,
        audit_number=audit_number,
        settings=_settings(context.params),
    )
    if not first:
        return
    typer.echo(f"Recorded: {written}")
    typer.echo("Keep it to yourself until the audit is done: it holds the secret seed of the views.")


@app.command("app", short_help="Open the audit as a local web page.")
def serve(port: Annotated[int | None, typer.Option("--port", help="Port of the local web page.")] = None) -> None:
    """Open the audit as a local web page: upload pictures, name two models, see the heatmaps and the verdict."""
    from hf_unlearn.audit.app import serve as serve_page

    serve_page(port=port)


def _settings(given: Mapping[str, Any]) -> "AuditSettings":
    """How encoders are measured, from the options of an audit or a recording."""
    from hf_unlearn.audit.encoders import Backend, Features
    from hf_unlearn.audit.endpoint import EndpointOptions
    from hf_unlearn.audit.settings import AuditSettings

    settings = {field.name: given[field.name] for field in fields(AuditSettings) if field.name in given}
    for option, known in (("features", get_args(Features)), ("backend", get_args(Backend))):
        if (word := given[option]) is not None:
            settings[option] = _choice(word, {choice: choice for choice in known}, f"--{option}")
    endpoint = EndpointOptions(batch_size=given["endpoint_batch_size"], timeout=given["endpoint_timeout"])
    return AuditSettings(**settings, endpoint=endpoint)


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
