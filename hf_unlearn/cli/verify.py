"""`hf-unlearn verify`: check a published model against its own records."""

from pathlib import Path
from typing import Annotated

import typer

from hf_unlearn.cli.evaluate import HONOURED, run_of
from hf_unlearn.cli.run_command import RunCommand
from hf_unlearn.cli.terminal import quiet_loading


class Command(RunCommand):
    """`hf-unlearn verify`."""

    listed = HONOURED
    footer = "With --dataset the figures are measured again; these options then say which rows were unlearned."


def verify(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="Repository on the Hub, or a folder.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    base: Annotated[Path | None, typer.Option(help="Folder of the base model, to check its hash too.")] = None,
    request: Annotated[Path | None, typer.Option(help="File with the requested ids, to check their hash.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture of yours, to be looked for in the request; repeatable.")
    ] = None,
    caption: Annotated[
        list[str] | None, typer.Option(help="Its captions, for a model trained on pairs; repeatable, for one --image.")
    ] = None,
    salt: Annotated[str | None, typer.Option(help="The request's salt, from the model's owner.")] = None,
    public_key: Annotated[
        Path | None, typer.Option("--public_key", help="The publisher's public key, to check the signature.")
    ] = None,
    tsa_certificate: Annotated[
        Path | None, typer.Option("--tsa_certificate", help="Certificate of the time-stamp's authority, to check it.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="The run's data, to measure the figures again; with --base and the options of the request."),
    ] = None,
    token: Annotated[str | None, typer.Option(help="Token that can read a private repository.")] = None,
) -> None:
    """Recompute what can be, and list each statement as holds, does not hold, or cannot be checked here."""
    from collections import Counter

    from hf_unlearn.errors import UserError
    from hf_unlearn.hub.figures_check import Measurements
    from hf_unlearn.hub.manifest_check import OwnedSample, verify_named_request
    from hf_unlearn.hub.verification import verify_repo
    from hf_unlearn.hub.verification_report import Outcome
    from hf_unlearn.text import printable

    images, captions = image or [], caption or []
    if captions and len(images) != 1:
        raise UserError(f"--caption belongs to a single --image, but {len(images)} are given; verify them one by one.")
    samples = [OwnedSample(path, tuple(captions)) for path in images]
    if dataset is None and context.args:
        raise UserError(
            f"without --dataset nothing is measured, so that this has no effect ({context.args[0]}); see 'hf-unlearn "
            "verify --help'"
        )
    if dataset is not None and base is None:
        raise UserError("--dataset needs --base too: figures are measured of the model and of its base")

    run = None if dataset is None else run_of(context.args, str(base), dataset)

    def measure(folder: Path) -> Measurements:
        from hf_unlearn.records.schemas import UnlearningManifest
        from hf_unlearn.runs.recorded_initial import measuring
        from hf_unlearn.runs.run_data import prepare_task

        assert run is not None  # without data nothing is measured
        quiet_loading()
        manifest = UnlearningManifest.load(folder)
        if manifest.request.salted:
            run.arguments.request_salt = salt
        task = prepare_task(run.arguments)
        is_same = not manifest.dataset.differs(task.dataset)
        named = verify_named_request(manifest, task.request, run.arguments.unlearn_request, is_same)
        if not is_same or (named is not None and named.fails):
            return Measurements(task.dataset, request=named)
        again = measuring(run, task, str(base), str(folder))
        before, after = again.experiment.before.metrics, again.experiment.evaluate(str(folder)).metrics
        if not again.is_alike:  # two kinds of figures, of which neither says that the other is wrong
            before, after = ({k: m[k] for k in m if "estimated_gap" not in k} for m in (before, after))
        told = () if again.standing is None else (again.standing,)
        return Measurements(task.dataset, before, after, told, named)

    report = verify_repo(
        target,
        revision=revision,
        base=base,
        request=request,
        salt=salt,
        samples=samples,
        token=token,
        public_key=public_key,
        tsa_certificate=tsa_certificate,
        measure=measure if dataset is not None else None,
    )
    width = max(len(outcome) for outcome in Outcome)
    for line in report.statements:
        print(f"{line.outcome:{width}}  " + printable(line.subject + (f": {line.detail}" if line.detail else "")))
    counts = Counter(line.outcome for line in report.statements)
    print("\n" + ", ".join(f"{outcome}: {counts[outcome]}" for outcome in Outcome))
    if not report.ok:
        raise typer.Exit(1)
