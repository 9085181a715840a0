"""`hf-unlearn methods`: what can be chosen, what it minimises, and its settings."""

from dataclasses import fields
from functools import partial
from inspect import cleandoc
from textwrap import fill, shorten
from typing import Annotated

import typer

WIDTH = 80  # columns


def methods(
    method: Annotated[str | None, typer.Argument(help="Show this method's equations, source and settings.")] = None,
) -> None:
    """List the unlearning methods; with a method's id, what it does, its equations, source and settings."""
    from hf_unlearn.methods import METHODS, description_of, load_method
    from hf_unlearn.training.config import UnlearningConfig

    if method is None:
        column = max(map(len, METHODS)) + 2
        for name in METHODS:
            told = description_of(name)
            sentence = f"{told.title} {told.summary.removeprefix('It ')}"
            typer.echo(f"{name:{column}}{shorten(sentence, max(WIDTH - column, 20), placeholder=' …')}")
        return
    trainer = METHODS[load_method(method)]
    told, wrap = trainer.config_class.description, partial(fill, width=WIDTH, break_on_hyphens=False)
    notes = [part for part in cleandoc(trainer.__doc__ or "").split("\n\n") if not part.startswith("Raises:")]
    equations = [wrap(line, initial_indent="  ", subsequent_indent="    ") for line in told.equations]
    citation = [wrap(line, subsequent_indent=" " * 13) for line in told.citation.splitlines()]
    parts = [told.title, wrap(told.summary), "\n".join(["Equations, as TeX:", *equations]), *map(wrap, notes)]
    parts += ["\n".join(["To cite:", *citation])] if citation else []
    typer.echo("\n\n".join([*parts, "Settings that are its own, or have a default of their own:"]))
    inherited = {field.name: field.default for field in fields(UnlearningConfig)}
    for setting in fields(trainer.config_class):
        if setting.name not in inherited or setting.default != inherited[setting.name]:
            words = setting.metadata.get("help", "")
            if setting.default is not None:
                words = f"{words.rstrip('.')} (default {setting.default})."
            typer.echo(wrap(words, initial_indent=f"  --{setting.name:21} ", subsequent_indent=" " * 26))
