"""Whether a model and the processor beside it fit each other: sizes, tokens, the end of a text."""

import logging
from functools import cache
from typing import Any

import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from hf_unlearn.data.resizing import Processor, check_parts
from hf_unlearn.errors import UserError
from hf_unlearn.models.contrastive import (
    caption_length,
    contrastive_terms,
    embed_images,
    embed_texts,
    evaluation_mode,
    is_dual_encoder,
    unwrap,
)
from hf_unlearn.models.loading_errors import told
from hf_unlearn.models.open_clip import GREATEST_IS_END

logger = logging.getLogger(__name__)

TEXTS = ("a photograph of the sea", "two dogs")
MOST_SIDE = 4096  # pixels of what a model takes
OTHER_MODELS = "name a CLIP, SigLIP, ALIGN or another dual encoder, or a SimCLR or MoCo"


def check_fit(model: PreTrainedModel, processor: Processor, name: str) -> None:
    """Embed two pictures and two texts, and refuse what cannot be right, before anything is trained or measured.

    Args:
        model: a contrastive encoder, perhaps with an adapter.
        processor: its processor (dual encoders) or image processor (views).
        name: what the model is called.

    Raises:
        UserError: when the processor's pictures or tokens are not those the model takes, every text gets one embedding,
            or an embedding is not finite.
    """
    family: Any = unwrap(model)
    if not is_dual_encoder(family):
        pixels = check_pictures(family, processor, name)
        _terms(family, {"pixel_values": pixels[:, None].expand(-1, 2, -1, -1, -1)}, name)
        return
    check_parts(processor)
    texts = check_texts(family, processor.tokenizer, name)
    _terms(family, {"pixel_values": check_pictures(family, processor.image_processor, name), **texts}, name)


def check_pictures(model: PreTrainedModel, image_processor: BaseImageProcessor, name: str) -> torch.Tensor:
    """Check that an encoder takes what an image processor makes of a picture.

    Returns:
        Two grey squares as it prepares them, `[2, 3, H, W]`, on the model's device.

    Raises:
        UserError: when it does not.
    """
    remedy = "save the image processor that the model was trained with beside it"
    sizes = [getattr(image_processor, name, None) for name in ("size", "crop_size", "pad_size")]
    with told(lambda reason: f"{name}: its image processor fails ({reason}); {remedy}", name):
        sides = [side for size in sizes if size is not None for side in dict(size).values()]
        if any(isinstance(side, int | float) and side > MOST_SIDE for side in sides):
            raise UserError(f"{name}: its image processor makes pictures of over {MOST_SIDE} pixels a side; {remedy}")
        square = [Image.new("RGB", (64, 64), "grey")] * 2
        pixels = torch.as_tensor(image_processor(images=square, return_tensors="pt")["pixel_values"])
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        made = f"{type(image_processor).__name__} makes arrays of shape {list(pixels.shape[1:])} of a picture"
        raise UserError(f"{name}: {made}, and [3, height, width] is needed; {remedy}")
    pixels = pixels.to(model.device)
    taken = f"pictures of {pixels.shape[2]} x {pixels.shape[3]} pixels, which its image processor makes"
    with (
        told(lambda reason: f"{name}: {type(model).__name__} does not take {taken} ({reason}); {remedy}", name),
        torch.no_grad(),
        evaluation_mode(model),
    ):
        embeds = embed_images(model, pixels)
    _check_vectors(embeds, f"{name}: {type(model).__name__} does not embed a picture", name)
    return pixels


def check_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> dict[str, torch.Tensor]:
    """Check that a dual encoder takes what a tokenizer makes of a text, and tells texts apart.

    Returns:
        Token tensors `[2, length]` of two texts, on the model's device.

    Raises:
        UserError: when a token, the padding or the end of a text is not what the model takes.
    """
    remedy = "save the tokenizer that the model was trained with beside it"
    if tokenizer is None or tokenizer.pad_token is None:
        raise UserError(
            f"{name}: its tokenizer has no pad token, so captions cannot be made equally long; set tokenizer.pad_token "
            "to what the model was trained with, and save it beside the model"
        )
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):  # what is made of a tokenizer without its files
        raise UserError(f"{name}: its tokenizer knows no words, so its files are not complete; {remedy}")
    with told(
        lambda reason: f"{name}: {type(model).__name__} does not take what its tokenizer makes ({reason}); {remedy}",
        name,
    ):
        size = getattr(model.config.get_text_config(), "vocab_size", None)
        last = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))  # numbers may leave some out
        if size is not None and last > size:
            raise UserError(f"{name}: its tokenizer knows {last} tokens and the model {size}; {remedy}")
        length = caption_length(model, tokenizer)
        _check_end(model, tokenizer(TEXTS[0], truncation=True, max_length=length)["input_ids"], tokenizer, name)
        tokens = tokenizer(list(TEXTS), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        texts = {key: tokens[key].to(model.device) for key in tokenizer.model_input_names if key in tokens}
        with torch.no_grad(), evaluation_mode(model):
            embeds = embed_texts(model, **texts)
    _check_vectors(embeds, f"{name}: {type(model).__name__} does not embed a text", name)
    read = [ids[: ids.argmax() + 1] if GREATEST_IS_END in _ends(model) else ids for ids in texts["input_ids"]]
    if not read[0].equal(read[1]) and embeds[0].equal(embeds[1]):
        end = getattr(model.config.get_text_config(), "eos_token_id", None)
        raise UserError(
            f"{name}: every text gets the same embedding; eos_token_id of config.json, which says where a text ends "
            f"({end}), does not fit its tokenizer ({tokenizer.eos_token_id}); {remedy}"
        )
    return texts


def _terms(model: PreTrainedModel, inputs: dict[str, torch.Tensor], name: str) -> None:
    """What training needs of a model: both elements from one forward pass."""
    pass_ = f"{name}: a forward pass of {type(model).__name__} does not give the two elements of a pair"
    with (
        told(lambda reason: f"{pass_} ({reason}); {OTHER_MODELS}", name),
        torch.no_grad(),
        evaluation_mode(model),
    ):
        terms = contrastive_terms(model, inputs)
    _require_finite(torch.stack([terms.x, terms.y]), name)


def _check_vectors(embeds: object, failing: str, name: str) -> None:
    if not (isinstance(embeds, torch.Tensor) and embeds.ndim == 2):
        raise UserError(f"{failing} as one vector; {OTHER_MODELS}")
    _require_finite(embeds, name)


def _require_finite(embeds: torch.Tensor, name: str) -> None:
    if not embeds.isfinite().all():
        raise UserError(f"{name}: an embedding is not finite; its weights are damaged, name another checkpoint")


def _check_end(model: PreTrainedModel, tokens: list[int], tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """A text encoder that reads a caption at its end token must know the token its tokenizer ends captions with."""
    for end in _ends(model):
        found = max(tokens) if end == GREATEST_IS_END else end
        if tokens[-1] not in (found, end):
            raise UserError(
                f"{name}: its model takes token {found} for the end of a text (eos_token_id of config.json: {end}), "
                f"but its tokenizer ends texts with {tokens[-1]} ({tokenizer.convert_ids_to_tokens(tokens[-1])}); set "
                "eos_token_id of the text_config to that, or save the tokenizer that the model was trained with"
            )
        if tokens[-1] != found:
            _say_where_it_ends(name)


@cache
def _say_where_it_ends(name: str) -> None:
    """Once for each model, which is checked wherever it is used."""
    logger.warning(
        "%s reads a text up to its greatest token and no further, as eos_token_id of its config is 2, which "
        "transformers takes for a mistake; what its tokenizer puts behind that token changes nothing.",
        name,
    )


def _ends(model: PreTrainedModel) -> set[int]:
    """The tokens that the text encoder takes for a caption's end."""
    return {end for module in model.modules() if isinstance(end := getattr(module, "eos_token_id", None), int)}
