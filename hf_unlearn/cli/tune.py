"""`hf-unlearn tune`: the best settings, and the best method, without retraining."""

from pathlib import Path
from typing import Annotated

import typer

from hf_unlearn.cli.run_command import Family, RunCommand
from hf_unlearn.cli.terminal import quiet_loading


class Command(RunCommand):
    """`hf-unlearn tune`."""

    arguments = "[CONFIG]"
    left_out = ("output_dir", "resume", "overwrite", "seed")  # its own, or without effect


def tune(
    context: typer.Context,
    n_trials: Annotated[int, typer.Option("--n_trials", help="Settings to try of each method.")] = 20,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the search and of every training.")] = 0,
    family: Family = None,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Folder of trials.json and tuned.yaml.")] = Path(
        "runs/tune"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the trials in output_dir.")] = False,
    run: Annotated[bool, typer.Option("--run", help="Then unlearn with the best setting, as the recipes do.")] = False,
) -> None:
    """Find the setting with the smallest gap to Retrain, estimated on held-out samples without retraining.

    CONFIG is a YAML file, or a config of the package such as clip_openmoji. Name the methods with --methods A B: each
    gets as many trials, or one of each setting where it has fewer, and the best setting of all is chosen. What is
    tried is a method's search space around its setting in CONFIG or, else, its default; epochs stay as they are. The
    test split is never looked at.
    """
    from hf_unlearn.methods.retrain import RetrainConfig
    from hf_unlearn.records.metric_labels import shown
    from hf_unlearn.runs.command_line import grouped_options, parse_run, refuse_idle_sections
    from hf_unlearn.runs.results import text_table
    from hf_unlearn.runs.tuning import TUNED_NAME, Search, trials_table
    from hf_unlearn.runs.tuning import tune as search_settings
    from hf_unlearn.runs.unlearn import unlearn_and_compare

    quiet_loading()
    argv = ["--config", *context.args] if context.args and not context.args[0].startswith("--") else context.args
    argv = ["--methods" if word == "--method" else word for word in argv] + ["--seed", str(seed)]
    argv += ["--family", family] if family is not None else []
    parsed = parse_run(argv)
    refuse_idle_sections(argv, parsed.arguments)
    methods = tuple(parsed.methods)
    chosen = any(name == "methods" for name, _ in grouped_options(argv))
    search = Search(
        tuple(argv), methods if chosen else tuple(m for m in methods if m != RetrainConfig.method), n_trials, seed
    )
    rows = search_settings(search, output_dir, resume, typer.echo)
    typer.echo(f"\n{trials_table(rows)}\n")
    tuned = output_dir / TUNED_NAME
    typer.echo(f"Best: {rows[0]['method']}, estimated gap {shown(rows[0])}. Run it with --config {tuned}")
    if run:
        best = parse_run(["--config", str(tuned), *(["--resume"] if resume else [])])
        typer.echo(text_table(unlearn_and_compare(best, search.builder)))
