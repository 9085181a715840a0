"""OpenCLIP checkpoints as `CLIPModel`, and back: the same numbers under other names."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from hf_unlearn.errors import UserError
from hf_unlearn.models.loading_errors import refuse_larger
from hf_unlearn.models.open_clip_processor import CLIP_END, CLIP_TOKENS, preprocess_config, read_config
from hf_unlearn.models.weights import OPEN_CLIP_CONFIG_NAME, OPEN_CLIP_WEIGHTS_NAME
from hf_unlearn.parsing import Fields, read_tensors

INSTEAD = "convert it with the package that made it, or name a checkpoint of transformers"
# transformers' CLIP takes the greatest token for the end of a text where its config says 2, as old configs wrongly do.
# OpenCLIP has a name for it, the pooling `argmax`.
GREATEST_IS_END = 2
NORM_EPS = 1e-5  # of every layer norm there
# Fields of OpenCLIP's configuration that are read here, and values of others that change nothing.
READ = {
    "model_cfg": ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale"),
    "vision_cfg": ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout"),
    "text_cfg": (
        *("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "eos_id", "pad_id"),
        *("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"),
    ),
}
NEUTRAL = {"pool_type": "tok", "pos_embed_type": "learnable", "proj_type": "linear", "block_type": "default"}
# (OpenCLIP's name, CLIPModel's name); a block's attention is one matrix there and three here.
_BLOCK = (
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)
_OUTSIDE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_PROJECTIONS = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}  # transposed
_TOWERS = {
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
}


def load_open_clip(folder: Path) -> CLIPModel:
    """The `CLIPModel` in float32 that an OpenCLIP folder describes.

    Raises:
        UserError: naming what of it cannot be mapped, or what it lacks.
    """
    weights = folder / OPEN_CLIP_WEIGHTS_NAME
    if not weights.is_file():
        raise UserError(
            f"{folder.name} holds no {OPEN_CLIP_WEIGHTS_NAME}; pickled weights can run code when they are loaded and "
            "are refused: where you trust them, save them with safetensors"
        )
    settings = read_config(folder)
    config, state = clip_config(settings["model_cfg"]), from_open_clip(read_tensors(weights))
    refuse_larger(folder.name, config, CLIPModel, [tuple(tensor.shape) for tensor in state.values()])
    model = CLIPModel(config)
    expected = model.state_dict()
    for what, names in (
        ("lacks", expected.keys() - state.keys()),
        ("has no place for", state.keys() - expected.keys()),
    ):
        if names:
            raise UserError(f"{folder.name}: its CLIPModel {what} {', '.join(sorted(names)[:4])}; {INSTEAD}")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise UserError(
                f"{folder.name}: {name} has shape {list(value.shape)} where {OPEN_CLIP_CONFIG_NAME} asks for "
                f"{list(expected[name].shape)}; save both together"
            )
    model.load_state_dict({name: value.float() for name, value in state.items()})
    model.name_or_path = str(folder)
    return model.eval()


def save_open_clip(model: CLIPModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write a `CLIPModel` and its processor as OpenCLIP reads them.

    Raises:
        UserError: when the model is no CLIP, or its preprocessing has no counterpart there.
    """
    if not isinstance(model, CLIPModel):
        raise UserError(f"a {type(model).__name__} cannot be saved in OpenCLIP's form, which is CLIP's; leave it unset")
    settings = open_clip_settings(model, processor)
    save_file(to_open_clip(model.state_dict()), folder / OPEN_CLIP_WEIGHTS_NAME, metadata={"format": "pt"})
    (folder / OPEN_CLIP_CONFIG_NAME).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    processor.tokenizer.save_pretrained(folder)


def open_clip_settings(model: CLIPModel, processor: ProcessorMixin) -> dict[str, object]:
    """The content of OpenCLIP's configuration file for a `CLIPModel` and its processor.

    Raises:
        UserError: naming what OpenCLIP has no field for.
    """
    return {
        "model_cfg": open_clip_config(model.config, processor.tokenizer),
        "preprocess_cfg": preprocess_config(processor),
    }


def clip_config(model: Fields) -> CLIPConfig:
    """CLIP's configuration of OpenCLIP's `model_cfg`.

    Raises:
        UserError: naming the field that CLIP has no counterpart for.
    """
    vision, text = model["vision_cfg"], model["text_cfg"]
    if vision.get("timm_model_name"):
        raise UserError(
            f"its pictures go through the timm model {vision['timm_model_name']}, which CLIPModel has no place for; "
            "name the same checkpoint of transformers (for SigLIP: google/siglip-...)"
        )
    if text.get("hf_model_name"):
        raise UserError(f"its texts go through {text['hf_model_name']}, which CLIPModel has no place for; {INSTEAD}")
    for section, fields in (("model_cfg", model), ("vision_cfg", vision), ("text_cfg", text)):
        for name, value in fields.items():
            if name not in READ[section] and value and NEUTRAL.get(name) != value:
                raise UserError(f"{section}.{name} = {value!r} is nothing that CLIPModel can do; {INSTEAD}")
    sizes = {
        name: vision.get(name, default) for name, default in (("layers", 12), ("patch_size", 16), ("image_size", 224))
    }
    for name, size in sizes.items():
        if not isinstance(size, int):
            raise UserError(f"vision_cfg.{name} = {size!r} is no single number, as CLIPModel needs; {INSTEAD}")
    pooling = text.get("pool_type", "argmax")
    if pooling not in ("argmax", "eos"):
        raise UserError(f"text_cfg.pool_type = {pooling!r} is nothing that CLIPModel can do; {INSTEAD}")
    act = "quick_gelu" if model.get("quick_gelu") else "gelu"
    shared = {"hidden_act": act, "projection_dim": model["embed_dim"]}
    vocabulary = text.get("vocab_size", CLIP_TOKENS)
    return CLIPConfig(
        projection_dim=model["embed_dim"],
        text_config={
            **shared,
            **_tower(text, text.get("heads", 8), text.get("layers", 12)),
            "vocab_size": vocabulary,
            "max_position_embeddings": text.get("context_length", 77),
            "eos_token_id": GREATEST_IS_END if pooling == "argmax" else text.get("eos_id", 2),
            "bos_token_id": vocabulary - 2,
            "pad_token_id": text.get("pad_id", 0),
        },
        vision_config={
            **shared,
            **_tower(vision, vision["width"] // vision.get("head_width", 64), sizes["layers"]),
            "patch_size": sizes["patch_size"],
            "image_size": sizes["image_size"],
        },
    )


def open_clip_config(config: CLIPConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """OpenCLIP's `model_cfg` of a CLIP's configuration.

    Raises:
        UserError: naming what OpenCLIP has no field for.
    """
    vision: Any = config.vision_config
    text: Any = config.text_config
    if {vision.hidden_act, text.hidden_act} not in ({"gelu"}, {"quick_gelu"}):
        raise UserError(
            f"OpenCLIP has no towers with {vision.hidden_act} and {text.hidden_act}; use another --save_format"
        )
    if odd := {vision.layer_norm_eps, text.layer_norm_eps} - {NORM_EPS}:
        raise UserError(f"OpenCLIP's layer norms add {NORM_EPS:g}, not {odd.pop():g}; use another --save_format")
    at_greatest = text.eos_token_id == GREATEST_IS_END
    own_tokenizer = len(tokenizer) == CLIP_TOKENS and tokenizer.eos_token_id == CLIP_END
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": vision.hidden_act == "quick_gelu",
        "vision_cfg": {
            **_sizes(vision),
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
        "text_cfg": {
            **_sizes(text),
            "heads": text.num_attention_heads,
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            **({} if at_greatest else {"pool_type": "eos", "eos_id": text.eos_token_id}),
            **({} if own_tokenizer else {"hf_tokenizer_name": _public(tokenizer.name_or_path)}),
        },
    }


def from_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's tensors under CLIPModel's names; one that has no counterpart keeps its name."""
    state: dict[str, Tensor] = {}
    for full, value in weights.items():
        name = full.removeprefix("text.")  # where text is a tower of its own
        if name == "attn_mask":  # computed, not learnt
            continue
        if name in _PROJECTIONS:
            state[_PROJECTIONS[name]] = value.T.contiguous()
            continue
        tower = next((tower for tower in _TOWERS if name.startswith(f"{tower}.")), None)
        if tower is None:
            state[_OUTSIDE.get(name, full)] = value
            continue
        layer, _, leaf = name.removeprefix(f"{tower}.").partition(".")
        block = f"{_TOWERS[tower]}.{layer}"
        if found := re.fullmatch(r"attn\.in_proj_(weight|bias)", leaf):
            for part, third in zip("qkv", value.chunk(3), strict=True):
                state[f"{block}.self_attn.{part}_proj.{found[1]}"] = third.contiguous()
        else:
            module, _, kind = leaf.rpartition(".")
            state[f"{block}.{dict(_BLOCK).get(module, module)}.{kind}"] = value
    return state


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIPModel's tensors under OpenCLIP's names."""
    names = {ours: theirs for theirs, ours in _OUTSIDE.items()}
    projections = {ours: theirs for theirs, ours in _PROJECTIONS.items()}
    modules = {ours: theirs for theirs, ours in _BLOCK}
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in projections:
            weights[projections[name]] = value.T.contiguous()
        elif name in names:
            weights[names[name]] = value.contiguous()
        else:
            theirs, ours = next(pair for pair in _TOWERS.items() if name.startswith(f"{pair[1]}."))
            layer, _, leaf = name.removeprefix(f"{ours}.").partition(".")
            module, _, kind = leaf.rpartition(".")
            if module == "self_attn.q_proj":
                parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                weights[f"{theirs}.{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
            elif module not in ("self_attn.k_proj", "self_attn.v_proj"):
                weights[f"{theirs}.{layer}.{modules[module]}.{kind}"] = value.contiguous()
    return weights


def _tower(cfg: Fields, heads: int, layers: int) -> dict[str, int]:
    width = cfg["width"]
    return {
        "hidden_size": width,
        "intermediate_size": int(width * cfg.get("mlp_ratio", 4.0)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _public(name: str) -> str:
    """A tokenizer's Hub id, or its folder's name: OpenCLIP reads a local one from the checkpoint's own folder."""
    return Path(name or "tokenizer").name if not name or Path(name).is_absolute() or Path(name).exists() else name


def _sizes(config: PreTrainedConfig) -> dict[str, object]:
    width = config.hidden_size
    return {"width": width, "layers": config.num_hidden_layers, "mlp_ratio": config.intermediate_size / width}
