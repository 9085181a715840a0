"""`hf-unlearn unlearn`: one request, any number of methods, their comparison; the recipes are this command."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from hf_unlearn.cli import dispatch
from hf_unlearn.cli.run_command import Family, RunCommand
from hf_unlearn.cli.terminal import quiet_loading
from hf_unlearn.errors import UserError

if TYPE_CHECKING:
    from hf_unlearn.runs.command_line import Run

DEFAULT_FAMILY = "clip"


class Command(RunCommand):
    """`hf-unlearn unlearn`."""


def unlearn(
    context: typer.Context,
    family: Family = None,
    config: Annotated[
        str | None, typer.Option("--config", help="A YAML file, or a config of the package such as clip_openmoji.")
    ] = None,
) -> None:
    """Unlearn a request from an encoder by one or more methods, and compare what they end with.

    Options without a model or a config are those of the family's embedded demo, which starts at once and takes minutes.
    A config holds the same options; what stands on the command line goes before it.
    """
    if not (context.args or family or config):
        from hf_unlearn.runs.command_line import shipped_configs

        raise UserError(
            "name what to run: --config with a file or one of the package, which are "
            f"{', '.join(shipped_configs())}, or --model_name_or_path and --dataset_name of your own; --help tells more"
        )
    run_methods([*context.args, *(["--config", config] if config is not None else [])], family)


def run_methods(argv: Sequence[str], family: str | None = None) -> None:
    """Unlearn by every chosen method and show the comparison.

    Args:
        argv: the options of a run; without a model or a config among them, the family's embedded default is run.
        family: clip, simclr or moco; default: what the config says, else clip.

    Raises:
        UserError: as `parse_run` and `unlearn_and_compare` do, and when the config is for another family.
    """
    if "--help" in argv:
        dispatch(["unlearn", "--help"])
    from accelerate import PartialState

    from hf_unlearn.runs.builders import BUILDERS
    from hf_unlearn.runs.reports import BEFORE
    from hf_unlearn.runs.results import text_table
    from hf_unlearn.runs.unlearn import unlearn_and_compare

    run = _parse(argv, family)
    quiet_loading()
    results = unlearn_and_compare(run, build=BUILDERS[run.family or DEFAULT_FAMILY])
    if not PartialState().is_main_process:
        return
    before = next(row for row in results.rows if row.method == BEFORE)  # above it may stand the original model
    signal = before.metrics.get("emia_signal_auc")
    if signal is not None:
        print(f"\nBefore unlearning, views tell members from non-members with an AUC of {signal:.1f}% (chance: 50%).")
    print(f"\n{text_table(results)}\n\nCards, heatmaps and checkpoints: {run.arguments.output_dir}")


def pretrain_base(argv: Sequence[str], family: str) -> None:
    """Train a run's base model from scratch, unless the cache already has it, and say where it is."""
    from accelerate import PartialState

    from hf_unlearn.runs.builders import BUILDERS
    from hf_unlearn.runs.run_data import prepare_task
    from hf_unlearn.runs.unlearn import base_model

    run = _parse(argv, family)
    quiet_loading()
    folder = base_model(run, prepare_task(run.arguments), build=BUILDERS[family])
    if PartialState().is_main_process:
        print(f"Base model: {folder}")


def _parse(argv: Sequence[str], family: str | None) -> "Run":
    from hf_unlearn.runs.command_line import parse_run, refuse_idle_sections

    options = [*argv, *(["--family", family] if family is not None else [])]
    run = parse_run(options, default_config=f"{family or DEFAULT_FAMILY}_openmoji")
    refuse_idle_sections(argv, run.arguments)
    return run
