"""Where a model in memory comes from: the folder or repository with its records, and what it was trained by since."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from hf_unlearn.errors import UserError
from hf_unlearn.models.contrastive import unwrap

_ATTRIBUTE = "_hf_unlearn_origin"  # of the model itself, so that copies in memory have it, too


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        name: The folder or Hub id that it was loaded from; None for a model that was made here.
        revision: The revision on the Hub; None for a folder.
        trained_by: The method that unlearned rows from it since.
    """

    name: str | None = None
    revision: str | None = None
    trained_by: str | None = None


def origin_of(model: nn.Module | None) -> Origin:
    """What is known of a model's origin; of one that transformers loaded, what its config remembers."""
    if model is None:
        return Origin()
    plain = unwrap(model)
    known = vars(plain).get(_ATTRIBUTE)
    if known is not None:
        return known
    config = getattr(plain, "config", None)
    return Origin(getattr(config, "_name_or_path", None) or None, getattr(config, "_commit_hash", None))


def remember_origin(model: nn.Module, name_or_path: str, revision: str | None) -> None:
    """Note where a model was loaded from, which for an adapter or another form its config does not say."""
    plain = unwrap(model)
    if Path(name_or_path).is_dir():
        origin = Origin(str(Path(name_or_path).resolve()))
    else:  # some forms leave no commit in the config
        commit = revision or getattr(getattr(plain, "config", None), "_commit_hash", None)
        origin = Origin(name_or_path, commit or "main")
    vars(plain)[_ATTRIBUTE] = origin


def remember_training(model: nn.Module | None, title: str) -> None:
    """Note that a method unlearned rows from a model, so that its weights are not those of its origin any more."""
    assert model is not None  # no training without one
    vars(unwrap(model))[_ATTRIBUTE] = replace(origin_of(model), trained_by=title)


def lies_in_origin(model: nn.Module | None, folder: str | Path) -> bool:
    """Whether a folder is the one that a model was loaded from, or lies in it."""
    origin = origin_of(model).name
    if origin is None or not Path(origin).is_dir():
        return False
    return Path(folder).resolve().is_relative_to(Path(origin).resolve())


def refuse_folder_of_origin(model: nn.Module | None, folder: str | Path, what: str) -> None:
    """Refuse to write into the folder that a model was loaded from: it is only read, and records point to it.

    Args:
        model: The model.
        folder: Where something is to be written.
        what: What names it, for the message.

    Raises:
        UserError: It is that folder, or lies in it.
    """
    if lies_in_origin(model, folder):
        raise UserError(
            f"{what} {folder} would write into the folder that the model was loaded from, which is only read; name "
            "another one"
        )
