"""`hf-unlearn`: one file a subcommand, and the only place of the library that prints."""

import importlib
import sys
from typing import Any

# Subcommand -> what it does. Each lives in the module of its name; only the one called is imported.
COMMANDS = {
    "unlearn": "Unlearn a request from an encoder by one or more methods, and compare them.",
    "methods": "List the unlearning methods, their equations and settings.",
    "tune": "Find the best settings, and the best method, without retraining.",
    "evaluate": "Measure a finished checkpoint against its base model and Retrain.",
    "audit": "Audit two encoders, before and after unlearning, on your own pictures.",
    "card": "Write a run's model card again from its records, or check one.",
    "publish": "Publish a finished run to the Hub.",
    "verify": "Check what a published model says about itself.",
}

HELP = (
    "Machine unlearning for contrastive encoders. Options may be spelt with - or _; any command takes --debug for a "
    "traceback.\n\nExit status: 2 for bad input, 70 for an unforeseen error, 1 where a statement does not hold or "
    "--fail-on asks for it, 0 otherwise."
)


def main() -> None:
    """Entry point of the `hf-unlearn` command."""
    from hf_unlearn.cli.guard import guarded

    guarded(_dispatch)


def _dispatch() -> None:
    import typer

    from hf_unlearn.errors import UserError

    usage_error: Any = typer.BadParameter.__base__  # of click, or of the one that newer versions of typer bring along

    app = typer.Typer(
        name="hf-unlearn",
        help=HELP,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    called = next((word for word in sys.argv[1:] if word in COMMANDS), None)
    for name, summary in COMMANDS.items():
        if name != called:
            app.command(name, help=summary)(lambda: None)
            continue
        module = importlib.import_module(f"hf_unlearn.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, help=summary)
        else:
            app.command(name, help=summary, context_settings=getattr(module, "CONTEXT_SETTINGS", None))(
                getattr(module, name)
            )
    try:
        status = app(
            sys.argv[1:] or ["--help"],
            prog_name=app.info.name,
            standalone_mode=False,
            # Declared as they are in the help, options are found by either spelling; those passed on are the recipes'
            # to parse.
            token_normalize_func=lambda name: name.replace("-", "_"),
        )
    except usage_error as error:  # typer itself would show it in a box, and what was typed may be a secret
        command = error.ctx.command_path if error.ctx else app.info.name
        raise UserError(f"{error.format_message().rstrip('.')}; see '{command} --help'") from error
    sys.exit(status)
