"""`hf-unlearn methods`: what can be chosen, and what it minimises."""

from dataclasses import fields
from inspect import cleandoc
from typing import Annotated

import typer


def methods(
    method: Annotated[str | None, typer.Argument(help="Show this method's settings and their defaults.")] = None,
) -> None:
    """List the unlearning methods; with a method's id, its equation and settings."""
    from hf_unlearn.methods import METHODS, load_method
    from hf_unlearn.training.config import UnlearningConfig

    if method is None:
        width = max(map(len, METHODS)) + 2
        for name, trainer in METHODS.items():
            typer.echo(f"{name:{width}}{(trainer.__doc__ or '').strip().splitlines()[0]}")
        return
    trainer = METHODS[load_method(method)]
    typer.echo(cleandoc(trainer.__doc__ or ""))
    inherited = {field.name: field.default for field in fields(UnlearningConfig)}
    for setting in fields(trainer.config_class):
        if setting.name not in inherited or setting.default != inherited[setting.name]:
            typer.echo(f"  --{setting.name:24}{setting.default!s:12}{setting.metadata.get('help', '')}")
