"""A command that takes the options of a run: they are the run's to parse, and its help lists them in groups."""

from collections.abc import Container
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand

Family = Annotated[
    str | None,
    typer.Option("--family", help="clip, simclr or moco: the small encoder to pre-train where no model is named."),
]


class RunCommand(TyperCommand):
    """A subcommand whose further options are those of a run.

    Attributes:
        arguments: what its usage line shows before the options.
        listed: the options of a run that its help lists; None: all.
        left_out: those that it does not list.
        footer: what stands below them.
    """

    arguments: ClassVar[str] = ""
    listed: ClassVar[Container[str] | None] = None
    left_out: ClassVar[Container[str]] = ()
    footer: ClassVar[str] = (
        "Further settings of a training are those of transformers' TrainingArguments. An option reaches every method "
        "that has it, --alignment_calibration.beta 0.5 that method alone and --pretrain.num_train_epochs 3 the base "
        "model's own training. 'hf-unlearn methods' lists the methods, 'hf-unlearn methods NAME' the settings of one."
    )

    def __init__(self, *given: Any, **settings: Any) -> None:
        context = {"allow_extra_args": True, "ignore_unknown_options": True, **(settings.pop("context_settings") or {})}
        super().__init__(*given, context_settings=context, **settings)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words after the command's name in the usage line."""
        pieces = super().collect_usage_pieces(ctx)
        return [*self.arguments.split(), *pieces]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The command's own options, then the run's in their groups."""
        from hf_unlearn.runs.help import option_groups

        super().format_options(ctx, formatter)
        for title, rows in option_groups(self.listed, self.left_out).items():
            with formatter.section(title):
                formatter.write_dl(rows)
        formatter.write_paragraph()
        formatter.write_text(self.footer)
