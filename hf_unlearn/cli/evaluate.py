"""`hf-unlearn evaluate`: a finished checkpoint against its base model and Retrain."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_unlearn.cli.run_command import RunCommand
from hf_unlearn.cli.terminal import quiet_loading
from hf_unlearn.errors import UserError

if TYPE_CHECKING:
    from hf_unlearn.runs.command_line import Run

# Of the recipes' options, those that say what is measured and how; any other would be taken and have no effect.
HONOURED = (
    "config", "dataset_config", "dataset_revision", "image_column", "caption_column", "label_column", "id_column",
    "streaming", "max_eval_samples", "num_samples", "unlearn_fraction", "unlearn_request", "unlearn_where",
    "split_seed", "validation_fraction", "test_fraction", "duplicates", "skip_bad_images", "model_revision",
    "trust_remote_code", "max_length", "views", "resident_bytes", "prompt_templates", "class_names", "use_cpu",
    "initial_model", "initial_revision",
)  # fmt: skip
ENCODING = "fine_tune"  # any method: its config says how rows are encoded, and on which device


def run_of(options: Sequence[str], base: str, dataset: str, retrain: str | None = None) -> "Run":
    """Parse the options that say what is measured; any other would have no effect, and is refused."""
    from hf_unlearn.runs.command_line import grouped_options, parse_run

    for name, _ in grouped_options(options):
        if name not in HONOURED:
            raise UserError(
                f"evaluate takes no option --{name}, as it measures and trains nothing; beside its own (see --help) it "
                f"takes --{', --'.join(HONOURED)}"
            )
    given = ["--model_name_or_path", base, "--dataset_name", dataset, "--methods", ENCODING]
    return parse_run([*options, *given, *(["--retrain_model", retrain] if retrain else [])])


class Command(RunCommand):
    """`hf-unlearn evaluate`."""

    listed = HONOURED
    footer = "--config takes the YAML file of the run, or a config of the package: its data options are these."


def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Unlearned checkpoint: local folder or Hub id.")],
    base: Annotated[str | None, typer.Option("--base", help="The model before unlearning.")] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Dataset, as --dataset_name of 'hf-unlearn unlearn'.")
    ] = None,
    retrain: Annotated[str | None, typer.Option("--retrain", help="A Retrain checkpoint to measure gaps to.")] = None,
    oracle: Annotated[
        str | None,
        typer.Option(
            "--oracle",
            help="Instead of these: an embedded task with its Retrains, clip_openmoji, moco_openmoji or "
            "simclr_openmoji.",
        ),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="Also write results.json and results.md here.")
    ] = None,
) -> None:
    """Measure a finished checkpoint on retain, unlearn and test.

    Say which rows were unlearned as the run did: --unlearn_request FILE, --unlearn_fraction or --unlearn_where. Options
    of the training are refused. Where the checkpoint's record names an initial model, its estimated gap is to what that
    predicts: it is taken where it is at hand, and --initial_model names it elsewhere.
    """
    from accelerate import PartialState

    from hf_unlearn.benchmarks.oracles import load_oracle
    from hf_unlearn.files import refuse_to_write_to, refuse_unwritable
    from hf_unlearn.runs.comparable import record_doubts
    from hf_unlearn.runs.recorded_initial import measuring
    from hf_unlearn.runs.results import save_results, text_table
    from hf_unlearn.runs.run_data import prepare_task

    if model.startswith("--"):
        raise UserError("name the checkpoint first: hf-unlearn evaluate MODEL --base BASE --dataset DATA ...")
    if oracle is not None:
        if context.args or any((base, dataset, retrain, output_dir)):
            raise UserError("--oracle brings its base model, data and Retrains; give it the checkpoint alone")
        quiet_loading()
        score = load_oracle(oracle).score(model)
        if PartialState().is_main_process:
            print(score)
        return
    if base is None or dataset is None:
        raise UserError("evaluate needs --base and --dataset, or --oracle; see 'hf-unlearn evaluate --help'")
    run = run_of(context.args, base, dataset, retrain)
    if output_dir is not None:
        read_from = {"the checkpoint": model, "--base": base, "--retrain": retrain, "--dataset": dataset}
        for flag, read in {**read_from, "--initial_model": run.arguments.initial_model}.items():
            refuse_to_write_to(read, flag, output_dir)
        refuse_unwritable(output_dir)
    quiet_loading()
    again = measuring(run, prepare_task(run.arguments), base, model)
    experiment = again.experiment
    experiment.evaluations[Path(model).name] = experiment.evaluate(model)
    results = experiment.results()
    if not PartialState().is_main_process:
        return
    typer.echo(text_table(results))
    for sentence in experiment.told_of_earlier_requests(experiment.evaluations[Path(model).name]):
        typer.echo(sentence)
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
        save_results(results, output_dir)
    base_sha256, request = experiment.base_record.sha256, experiment.task.request
    for doubt in record_doubts(model, base_sha256, request, "these options name"):
        typer.echo(doubt)
    if again.standing is not None and not again.is_alike:
        typer.echo(f"Of its {again.standing.subject}: {again.standing.detail}.")
