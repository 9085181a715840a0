"""Unlearning methods: one file each, with a Config, a Trainer that overrides `batch_loss`, and what is said of them.

Every file in this folder is found by itself. A method from elsewhere is known as soon as its file is imported: a run
takes it as `--methods its_module:ItsTrainer`, and an installed package offers it through the entry point group
`hf_unlearn.methods`.
"""

import importlib
from importlib import metadata
from math import inf
from pkgutil import iter_modules

from hf_unlearn.errors import UserError
from hf_unlearn.records.method_description import MethodDescription
from hf_unlearn.training.trainer import METHODS

__all__ = ["METHODS", "PAPER_METHODS", "description_of", "load_method", "methods_table", "needs_table"]


for _module in iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
# The paper's methods in the order of its tables, then further ones by their ids.
_own = sorted(METHODS.items(), key=lambda item: (item[1].config_class.paper_row or inf, item[0]))
METHODS.clear()
METHODS.update(_own)

# The methods that the paper compares, and that a run takes by default.
PAPER_METHODS: tuple[str, ...] = tuple(
    method for method, trainer in METHODS.items() if trainer.config_class.paper_row is not None
)


def load_method(name: str) -> str:
    """The id of a method that is named by its id, or by where its Trainer is: `its_module:ItsTrainer`.

    Raises:
        UserError: there is no such method, or its module cannot be imported.
    """
    module, colon, trainer = name.partition(":")
    if colon:
        try:
            found = getattr(importlib.import_module(module), trainer)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"the method {name} cannot be imported ({error}); name it as its_module:ItsTrainer"
            ) from error
        config = getattr(found, "config_class", None)
        name = getattr(config, "method", name)
    if name not in METHODS:
        raise UserError(f"unknown method {name}; choose from {', '.join(METHODS)}")
    return name


def description_of(method: str) -> MethodDescription:
    """What a method says of itself."""
    return METHODS[method].config_class.description


def methods_table() -> str:
    """All methods as a Markdown table: what each does, and which splits it learns from."""
    lines = ["| Method | `--methods` | What it does | Learns from |", "| --- | --- | --- | --- |"]
    for method, trainer in METHODS.items():
        told = trainer.config_class.description
        summary = told.summary.removeprefix("It ")
        lines.append(f"| {told.title} | `{method}` | {summary[:1].upper()}{summary[1:]} | {', '.join(trainer.uses)} |")
    return "\n".join(lines) + "\n"


def needs_table() -> str:
    """All methods as a short Markdown table: which splits each learns from, and whether it trains."""
    lines = ["| Method | `--methods` | Learns from | Trains |", "| --- | --- | --- | --- |"]
    for method, trainer in METHODS.items():
        cells = (trainer.config_class.description.title, f"`{method}`", ", ".join(trainer.uses))
        lines.append(f"| {' | '.join(cells)} | {'yes' if trainer.iterative else 'no'} |")
    return "\n".join(lines) + "\n"


for _entry in metadata.entry_points(group=__name__):
    try:
        _entry.load()
    except (ImportError, AttributeError) as _error:
        raise UserError(f"the method {_entry.value} of an installed package cannot be imported ({_error})") from _error
