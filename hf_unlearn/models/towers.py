"""The two encoders of a dual encoder, and keeping one of them as it is."""

import logging

import torch
from torch import nn

from hf_unlearn.errors import UserError, listed
from hf_unlearn.models.contrastive import is_dual_encoder, unwrap

logger = logging.getLogger(__name__)

TOWERS = {"vision": ("vision_", "visual_"), "text": ("text_",)}  # how the names of their tensors begin


def freeze_tower(model: nn.Module, tower: str) -> None:
    """Train only the other encoder of a dual encoder, in place; the temperature stays trainable.

    Args:
        model: the dual encoder, perhaps with an adapter.
        tower: `vision` or `text`, with its projection.

    Raises:
        UserError: as `check_freezable` does.
    """
    check_freezable(model, tower)
    for part in _parts(model, tower):
        part.requires_grad_(False)


def say_what_is_frozen(model: nn.Module) -> str | None:
    """Log, and return for the card, that some weights came frozen, perhaps from a training before; None if none did.

    MoCo's key encoder is an average of the other one, and never trained itself.
    """
    weights = dict(unwrap(model).named_parameters())
    kept = {name: w for name, w in weights.items() if not (w.requires_grad or name.startswith("key_encoder."))}
    if not kept:
        return None
    note = (
        f"{sum(map(torch.numel, kept.values())):,} of {sum(map(torch.numel, weights.values())):,} weights came frozen "
        f"and are not trained ({listed(list(kept)[:3])}); where that is not meant, call model.requires_grad_(True) "
        "before."
    )
    logger.warning("%s", note)
    return note


def check_freezable(model: nn.Module, tower: str) -> None:
    """Refuse a model that has no such part, or whose batch norms would move all the same."""
    family, own = unwrap(model), _parts(model, tower)
    if not is_dual_encoder(family) or not own:
        raise UserError(f"freeze={tower} keeps one encoder of an image-text model; a {type(family).__name__} has none")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for part in own for module in part.modules()):
        raise UserError(f"freeze={tower} cannot keep the batch norms of a {type(family).__name__}; leave it unset")


def name_patterns(tower: str) -> str:
    """A regular expression of the names of an encoder's modules."""
    return "|".join(f"{start}.*" for start in TOWERS[tower])


def _parts(model: nn.Module, tower: str) -> list[nn.Module]:
    return [part for name, part in unwrap(model).named_children() if name.startswith(TOWERS[tower])]
