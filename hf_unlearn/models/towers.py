"""The two encoders of a dual encoder, and keeping one of them as it is."""

from torch import nn
from transformers import PreTrainedModel

from hf_unlearn.errors import UserError
from hf_unlearn.models.contrastive import is_dual_encoder, unwrap

TOWERS = {"vision": ("vision_", "visual_"), "text": ("text_",)}  # how the names of their tensors begin


def freeze_tower(model: PreTrainedModel, tower: str) -> None:
    """Train only the other encoder of a dual encoder, in place; the temperature stays trainable.

    Args:
        model: the dual encoder, perhaps with an adapter.
        tower: `vision` or `text`, with its projection.

    Raises:
        UserError: when the model has no such part, or its batch norms would move all the same.
    """
    family = unwrap(model)
    own = [(name, part) for name, part in family.named_children() if name.startswith(TOWERS[tower])]
    if not is_dual_encoder(family) or not own:
        raise UserError(f"freeze={tower} keeps one encoder of an image-text model; a {type(family).__name__} has none")
    for _, part in own:
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in part.modules()):
            raise UserError(f"freeze={tower} cannot keep the batch norms of a {type(family).__name__}; leave it unset")
        part.requires_grad_(False)
