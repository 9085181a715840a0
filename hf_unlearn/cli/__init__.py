"""`hf-unlearn`: one file a subcommand, and the only place of the library that prints."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

if TYPE_CHECKING:
    import typer

# Subcommand -> what it does. Each lives in the module of its name; only the one called is imported.
COMMANDS = {
    "unlearn": "Unlearn a request by one or more methods, and compare.",
    "methods": "List the methods, their equations and settings.",
    "tune": "Find the best method and settings without retraining.",
    "evaluate": "Measure a checkpoint against its base and Retrain.",
    "audit": "Audit two encoders, before and after, on your pictures.",
    "card": "Write a run's model card from its records, or check it.",
    "publish": "Publish a finished run to the Hub.",
    "verify": "Check what a published model says about itself.",
    "descendants": "List the models that descend from another.",
    "env": "Print versions and devices, for a bug report.",
}

HELP = (
    "Machine unlearning for contrastive encoders. Options may be spelt with - or _; any command takes --debug for a "
    "traceback.\n\nExit status: 2 for bad input, 70 for an unforeseen error, 1 where a statement does not hold or "
    "--fail_on asks for it, 0 otherwise."
)


def main() -> None:
    """Entry point of the `hf-unlearn` command."""
    from hf_unlearn.cli.guard import guarded

    guarded(lambda: dispatch(sys.argv[1:]))


def _show_version(asked: bool) -> None:
    if asked:
        import typer

        from hf_unlearn import __version__

        print(f"hf-unlearn {__version__}")
        raise typer.Exit()


def build_app(called: str | None) -> "typer.Typer":
    """The program, with the one subcommand that is called in full and the others by name."""
    import typer

    app = typer.Typer(
        name="hf-unlearn",
        help=HELP,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: at 80 columns boxes cut the names of options
        # Declared as they are in the help, options are found by either spelling; a run's are its own to parse.
        context_settings={"token_normalize_func": lambda name: name.replace("-", "_")},
    )

    @app.callback()
    def about(
        version: Annotated[
            bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
        ] = False,
    ) -> None:
        """Options of the program."""

    for name, summary in COMMANDS.items():
        if name != called:
            app.command(name, help=summary)(lambda: None)
            continue
        module = importlib.import_module(f"hf_unlearn.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name, cls=getattr(module, "Command", None))(getattr(module, name))
    return app


def dispatch(argv: Sequence[str]) -> NoReturn:
    """Run the command that the words name, and end with its status."""
    import typer

    from hf_unlearn.errors import UserError

    usage_error: Any = typer.BadParameter.__base__  # of click, or of the one that newer versions of typer bring along
    typed = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""  # what a shell completes
    app = build_app(next((word for word in argv or typed.split() if word in COMMANDS), None))
    try:
        status = app(list(argv) or ["--help"], prog_name=app.info.name, standalone_mode=False)
    except usage_error as error:  # typer itself would show it in a box, and what was typed may be a secret
        command = error.ctx.command_path if error.ctx else app.info.name
        raise UserError(f"{error.format_message().rstrip('.')}; see '{command} --help'") from error
    sys.exit(status)
