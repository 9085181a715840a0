"""What another encoder makes of pictures and captions, as features to predict alignments from."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_unlearn.data.resizing import Processor
from hf_unlearn.errors import UserError
from hf_unlearn.models.contrastive import (
    caption_length,
    embed_images,
    embed_texts,
    evaluation_mode,
    is_dual_encoder,
    unwrap,
)
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.weights import is_copy

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class FeatureEncoder:
    """A dual encoder other than the model that is unlearned, with the processor that was saved with it."""

    model: PreTrainedModel
    processor: Processor

    @torch.no_grad()
    def images(self, pixels: Tensor) -> Array:
        """`[n, d]` unit-norm embeddings of pictures `[n, 3, H, W]` uint8."""
        inputs = self.processor.image_processor(list(pixels.cpu()), return_tensors="pt")
        with evaluation_mode(self.model):
            return _unit(embed_images(self.model, inputs["pixel_values"].to(self.model.device)))

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Array:
        """`[m, d]` unit-norm embeddings of captions."""
        tokenizer = self.processor.tokenizer
        length = caption_length(self.model, tokenizer)
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        taken = {name: tokens[name].to(self.model.device) for name in tokenizer.model_input_names if name in tokens}
        with evaluation_mode(self.model):
            return _unit(embed_texts(self.model, **taken))


def load_features(name: str, base: nn.Module) -> FeatureEncoder:
    """The encoder that `target_features` names.

    Args:
        name: its folder or Hub id.
        base: the model to unlearn from.

    Raises:
        UserError: when it cannot be loaded, embeds no texts, or is the base model.
    """
    model, processor = load_encoder(name)
    if not is_dual_encoder(model):
        raise UserError(
            f"target_features={name} is a {type(model).__name__}, which embeds no texts; name an encoder of pictures "
            "and texts"
        )
    if is_copy(model.state_dict(), unwrap(base).state_dict()):
        raise UserError(
            f"target_features={name} has the model's own weights, which remember the requested rows; name an encoder "
            "that never saw them, or leave it unset"
        )
    return FeatureEncoder(model, processor)


def _unit(embeds: Tensor) -> Array:
    if not embeds.isfinite().all():
        raise UserError(
            "An encoder that targets are predicted from (target_features, or the initial model) embeds some rows as "
            "NaN or infinite; its weights are damaged or overflow, so name another one or leave it unset"
        )
    return F.normalize(embeds.float(), dim=-1).cpu().double().numpy()
