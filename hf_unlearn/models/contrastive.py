"""From a batch to `ContrastiveTerms`: the one function a model family implements.

A new family registers how its outputs become terms; every method then works on it:

    @terms_from_outputs.register
    def _(model: MyModel, outputs) -> ContrastiveTerms: ...
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import singledispatch
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPModel, PreTrainedModel
from transformers.tokenization_utils_base import LARGE_INTEGER

from hf_unlearn.distributed import all_reduce_sum, world_size
from hf_unlearn.errors import UserError
from hf_unlearn.losses import ContrastiveTerms, CrossModalTerms, SigmoidTerms

ModelInputs = Mapping[str, Tensor]


def is_dual_encoder(model: nn.Module) -> bool:
    """Whether a model embeds images and texts into one space, as CLIP, SigLIP and their kin do."""
    return hasattr(model, "get_image_features") and hasattr(model, "get_text_features")


def is_contrastive(model: nn.Module) -> bool:
    """Whether a (wrapped) model's outputs become `ContrastiveTerms`: a dual encoder, or one of a registered family."""
    kind, default = type(unwrap(model)), terms_from_outputs.dispatch(object)
    return is_dual_encoder(unwrap(model)) or terms_from_outputs.dispatch(kind) is not default


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, without data-parallel, compile or adapter wrappers; its layers keep their adapters."""
    while hasattr(model, "module") or hasattr(model, "_orig_mod"):
        model = getattr(model, "module", None) or model._orig_mod  # type: ignore[assignment]
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def logit_scale(model: nn.Module) -> Tensor:
    """Scalar inverse temperature of a dual encoder, with gradient; training bounds it (`LogitScaleBound`)."""
    if hasattr(model, "logit_scale"):
        return _whole(model.logit_scale).float().exp().squeeze()
    if hasattr(model, "temperature"):  # ALIGN
        return 1 / model.temperature.float().squeeze()  # type: ignore[operator,union-attr]
    raise UserError(
        f"{type(model).__name__} has neither logit_scale nor temperature; register it in terms_from_outputs"
    )


def _whole(scalar: Any) -> Tensor:
    """A scalar parameter; one that FSDP sharded in full, with each rank's gradient made the mean over ranks."""
    return all_reduce_sum(scalar.full_tensor() / world_size()) if hasattr(scalar, "full_tensor") else scalar


def is_sigmoid(model: nn.Module) -> bool:
    """Whether a model is trained with SigLIP's sigmoid loss, which a bias of its logits tells, and not with InfoNCE."""
    return getattr(model, "logit_bias", None) is not None


@singledispatch
def terms_from_outputs(model: nn.Module, outputs: Any) -> ContrastiveTerms:
    """`ContrastiveTerms` of one forward pass; the default serves every dual encoder of the Hugging Face kind.

    Raises:
        UserError: for a model of an unknown family.
    """
    if not is_dual_encoder(model):
        raise UserError(
            f"{type(model).__name__} is no contrastive encoder this library knows; it needs get_image_features and "
            "get_text_features, or a function registered in hf_unlearn.models.contrastive.terms_from_outputs"
        )
    elements = _elements(model, outputs)
    if is_sigmoid(model):
        return SigmoidTerms(*elements, logit_scale(model), _whole(model.logit_bias).squeeze())
    return CrossModalTerms(*elements, logit_scale(model))


def contrastive_terms(model: nn.Module, inputs: ModelInputs, chunk_size: int | None = None) -> ContrastiveTerms:
    """Run a (wrapped) model on a batch and return its `ContrastiveTerms`.

    Args:
        model: any registered family, possibly wrapped for data-parallel training.
        inputs: what the model's forward takes, batch first; pictures are cast to the type of the model's weights.
        chunk_size: if set, embed this many samples at a time and compute their activations again in the backward
            pass: exact gradients of a batch beyond memory (gradient caching, arXiv 2101.06983).

    Raises:
        UserError: for an unknown family, or chunks with a model that embeds a sample by more than the sample itself.
    """
    family = unwrap(model)
    inputs = {name: as_weights(family, value) for name, value in inputs.items()}
    size = len(next(iter(inputs.values())))
    if chunk_size is None or size <= chunk_size:
        return terms_from_outputs(family, model(**inputs))
    check_chunkable(family)
    chunks = zip(*(value.split(chunk_size) for value in inputs.values()), strict=True)
    outputs = [
        checkpoint(
            lambda *values: _elements(family, model(**dict(zip(inputs, values, strict=True)))),
            *chunk,
            use_reentrant=False,
        )
        for chunk in chunks
    ]
    images, texts = map(torch.cat, zip(*outputs, strict=True))
    return terms_from_outputs(family, SimpleNamespace(image_embeds=images, text_embeds=texts))


def check_chunkable(model: nn.Module) -> None:
    """Refuse a model that embeds a sample by more than the sample itself, for which chunks are not exact."""
    family = unwrap(model)
    normalises = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in family.modules())
    if normalises or not is_dual_encoder(family):
        raise UserError(
            f"forward_chunk_size cannot be exact for {type(family).__name__}: it needs an image-text model without "
            "batch norm, which embeds each sample by itself; leave it unset"
        )


def _elements(model: nn.Module, outputs: Any) -> tuple[Tensor, Tensor]:
    """`[n, d]` embeddings of pictures and of texts, which the terms normalise; their length does not matter."""
    images, texts = (getattr(outputs, f"{tower}_model_output", None) for tower in ("vision", "text"))
    if isinstance(model, CLIPModel) and images is not None and texts is not None:
        # As they were before its forward normalised them, whose backward pass takes 22 operations.
        return images.pooler_output, texts.pooler_output
    return outputs.image_embeds, outputs.text_embeds


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and back into its own afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def embed_images(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """`[n, d]` embeddings of `pixel_values [n, 3, H, W]`: a dual encoder's projection, a view encoder's backbone."""
    pixels = as_weights(model, pixel_values)
    if pixels.device.type != "cpu":  # where convolutions are faster so
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    return _pooled(model.get_image_features(pixel_values=pixels))  # type: ignore[operator]


def embed_texts(model: PreTrainedModel, **text_inputs: Tensor) -> Tensor:
    """`[n, d]` text embeddings of tokenised captions."""
    return _pooled(model.get_text_features(**text_inputs))  # type: ignore[operator]


def as_weights(model: nn.Module, value: Tensor) -> Tensor:
    """An input in the floating type of the model's weights, which convolutions insist on; token ids as they are."""
    return value.to(model.dtype) if value.is_floating_point() else value  # type: ignore[arg-type]


def caption_length(model: PreTrainedModel, tokenizer: object, wanted: int | None = None) -> int:
    """Tokens a caption may have, by the text encoder's positions and by its tokenizer, which may reserve some.

    Args:
        model: the dual encoder.
        tokenizer: its tokenizer.
        wanted: another length than theirs, within the encoder's positions.

    Raises:
        UserError: when neither of them says, or more tokens are wanted than there are positions.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", LARGE_INTEGER)
    if wanted is not None:
        if wanted > positions:
            raise UserError(
                f"max_length={wanted} is more than the {positions} tokens that {type(model).__name__} has positions "
                "for; use fewer, or leave it unset"
            )
        return wanted
    length = min(positions, getattr(tokenizer, "model_max_length", LARGE_INTEGER))
    if length >= LARGE_INTEGER:
        raise UserError(
            f"neither {type(model).__name__} nor its tokenizer says how many tokens a caption may have; set "
            "model_max_length of the tokenizer"
        )
    return length


def _pooled(output: Any) -> Tensor:
    """An output's pooled features, or the tensor itself, which code that comes with a model may return."""
    return getattr(output, "pooler_output", output)
