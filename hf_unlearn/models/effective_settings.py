"""What of a configuration, an image processor and a tokenizer decides what a model computes, as plain values by name.

Numbers that mean the same are made the same, and what changes no embedding is left out: two checkpoints of one model
in different forms, or one before and one after a training, have the same settings.
"""

import hashlib
import json
from collections.abc import Iterator

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from hf_unlearn.data.resizing import Processor
from hf_unlearn.models.loading_errors import told
from hf_unlearn.models.open_clip import GREATEST_IS_END
from hf_unlearn.parsing import Fields, parse_json

# What things are called and where they came from, not what they do; of a tokenizer, the length it was last asked for.
_NAMES = {"image_processor_type", "processor_class", "architectures", "auto_map", "dtype", "torch_dtype"}
_NAMES |= {"_name_or_path", "transformers_version", "version", "truncation", "padding"}
# What new weights are drawn by, what a model reports beside its embeddings, a token that no encoder looks for, and how
# processes of a training share statistics.
_WITHOUT_EFFECT = {"initializer_range", "initializer_factor", "logit_scale_init_value", "bos_token_id"}
_WITHOUT_EFFECT |= {"sync_batch_norm"}
_WITHOUT_EFFECT |= {"id2label", "label2id", "problem_type", "return_dict", "output_attentions", "output_hidden_states"}
# What a tokenizer does beside its steps.
_TOKENIZER = ("padding_side", "truncation_side", "model_input_names", "special_tokens_map")
# Text encoders, copies of CLIP's, that read a text at its end token; SigLIP's read it at its last place. Neither looks
# for the padding.
_READ_AT_END = ("clip_text_model", "clipseg_text_model", "groupvit_text_model")
_READ_AT_LAST = ("siglip_text_model",)
# A step of an image processor, and what is said of it in vain where it is not taken.
_STEPS = {
    "do_resize": ("size", "resample", "default_to_square"),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
}


def model_settings(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, object]:
    """What of a configuration decides what its weights compute, by names such as `text_config.hidden_act`.

    Args:
        config: the model's.
        tokenizer: that of a dual encoder, by which the end of a text is known.

    Raises:
        UserError: when the tokenizer fails on a text.
    """
    found = dict(_flat(parse_json(config.to_json_string(use_diff=False), "config.json")))
    with told(lambda reason: f"config.json describes no single text encoder ({reason})", str(config.name_or_path)):
        text = config.get_text_config()
    kind, prefix = text.model_type, "text_config." if getattr(config, "text_config", None) is text else ""
    if kind in (*_READ_AT_END, *_READ_AT_LAST):
        found.pop(f"{prefix}pad_token_id", None)
        end = found.pop(f"{prefix}eos_token_id", None)
        if kind in _READ_AT_END:
            found[f"{prefix}eos_token_id"] = _end_of_text(end, tokenizer)
    if config.model_type == "clip":  # whose towers are projected to the size that it names itself
        for tower in ("text_config", "vision_config"):
            found.pop(f"{tower}.projection_dim", None)
    return found


def differing_settings(
    one: PreTrainedConfig,
    other: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    other_tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[str]:
    """What the same weights compute otherwise by the one configuration than by the other, for a sentence.

    What only one of the two holds is what some version of transformers has left there.

    Args:
        one: what is spoken of.
        other: "the model's".
        tokenizer: of the one, if it embeds texts.
        other_tokenizer: of the other.

    Raises:
        UserError: as `model_settings` does.
    """
    ours, theirs = model_settings(one, tokenizer), model_settings(other, other_tokenizer)
    shared = sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name])
    return [f"{name} is {ours[name]}, the model's {theirs[name]}" for name in shared]


def image_settings(image_processor: Processor) -> dict[str, object]:
    """What an image processor does to a picture."""
    found = _plain(parse_json(image_processor.to_json_string(), "image processor"))
    for step, details in _STEPS.items():
        if step in found and not found[step]:
            found = {name: value for name, value in found.items() if name not in details}
    # One image processor has a class for each backend.
    return {**found, "class": type(image_processor).__name__.removesuffix("Fast").removesuffix("Pil")}


def tokenizer_settings(tokenizer: PreTrainedTokenizerBase, positions: object = None) -> dict[str, object]:
    """What a tokenizer does to a text, for an encoder with so many positions: texts are cut there at the latest."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # its steps are code; its words are not
        steps: Fields = {"vocabulary": tokenizer.get_vocab()}
    else:
        steps = _plain(parse_json(backend.to_str(), "tokenizer"))
    longest = tokenizer.model_max_length
    if isinstance(positions, int) and isinstance(longest, int):
        longest = min(longest, positions)
    return {**steps, "model_max_length": longest, **{name: getattr(tokenizer, name, None) for name in _TOKENIZER}}


def processor_hash(processor: Processor) -> str:
    """A hash of all that decides the pixels and tokens that a processor makes, wherever it was loaded from.

    Args:
        processor: of pictures and texts, or of pictures alone.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    settings = image_settings(getattr(processor, "image_processor", processor))
    content = [settings, None if tokenizer is None else tokenizer_settings(tokenizer)]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _end_of_text(end: object, tokenizer: PreTrainedTokenizerBase | None) -> object:
    """The token that a text is read at: its greatest one is the tokenizer's last where that ends every text."""
    if end != GREATEST_IS_END or tokenizer is None:
        return end
    name = tokenizer.name_or_path
    with told(lambda reason: f"the tokenizer of {name} fails on a text ({reason}); save the right one there", name):
        greatest = max(tokenizer.get_vocab().values(), default=end)
        return greatest if tokenizer("a")["input_ids"][-1:] == [greatest] else end


def _flat(fields: Fields, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in fields.items():
        if name in _NAMES or name in _WITHOUT_EFFECT or "dropout" in name:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(fields: Fields) -> Fields:
    """Fields without names; those within a field stay, where a vocabulary may hold the word `version`."""
    return {name: value for name, value in fields.items() if name not in _NAMES}
