"""LoRA through peft: a small trained part beside a base model that stays as it is, bit for bit."""

import re
import warnings
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from hf_unlearn.errors import UserError, first_line, listed, missing_extra
from hf_unlearn.models.contrastive import is_dual_encoder, unwrap
from hf_unlearn.models.moco import MoCoModel
from hf_unlearn.models.towers import name_patterns
from hf_unlearn.models.weights import ADAPTER_NAME, LOCAL_PREFIX, tensor_header, weight_files, weights_sha256
from hf_unlearn.parsing import read_json

if TYPE_CHECKING:
    from peft import LoraConfig

# A pattern with a group that repeats, or four repetitions: on some names they take longer than anybody waits.
_SLOW = re.compile(r"\)[*+{]|([*+{][^*+{]*){4}")
PLAIN_STARTS = (True, False, "gaussian")  # of LoRA: what loading overwrites
ALL_LINEAR = "all-linear"  # of peft: every linear layer
# Settings of an adapter: what its base is called, and how the file is read.
_WITHOUT_EFFECT = {"base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "peft_version"}
RECORDS_NAME = "unlearning.json"  # where a finished run notes the hash of its base model


# What peft says where no layer is adapted.
_NOTHING_LEFT = re.compile("All modules were excluded|No modules were targeted|Target modules .* not found")


def require_peft() -> ModuleType:
    """The peft package.

    Raises:
        UserError: when it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise missing_extra("LoRA", "peft", "peft") from error
    return peft


def is_adapted(model: object) -> bool:
    """Whether a model is a `PeftModel`: a base model with an adapter."""
    return hasattr(model, "get_base_model")


def add_adapter(model: PreTrainedModel, config: "LoraConfig", frozen: str | None = None) -> Any:
    """Wrap an encoder, in place, with a new LoRA adapter: W x becomes W x + (alpha / r) B A x, with B = 0 at first.

    A batch norm changes its running statistics in training; each is copied into the adapter (`modules_to_save`) and
    trained there, so that the base model stays as it is.

    Args:
        model: a dual encoder, or a view encoder without a momentum encoder.
        config: without `target_modules`, every linear layer is adapted, and a view encoder's convolutions, too.
        frozen: the encoder of a dual encoder that stays as it is, and so is given no adapter: `vision` or `text`.

    Returns:
        The `PeftModel`; only its adapter is trainable.

    Raises:
        UserError: when the model has an adapter already, or cannot have one, or the config does not fit it.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
    """
    peft = require_peft()
    if is_adapted(model):
        raise UserError("the model has an adapter already; leave peft_config unset, or merge it with merge_and_unload")
    if isinstance(model, MoCoModel):
        raise UserError(
            "MoCo cannot be trained through an adapter: its momentum encoder averages all weights over the steps, and "
            "an average of low-rank changes is no low-rank change; leave peft_config (--use_peft) unset"
        )
    if not isinstance(config, peft.LoraConfig):
        raise UserError(f"peft_config is a {type(config).__name__}; pass a peft.LoraConfig")
    config = deepcopy(config)  # peft writes into it, and several methods may share it
    if config.target_modules is None:
        config.target_modules = ALL_LINEAR if is_dual_encoder(model) else _named(model, nn.Conv2d, nn.Linear)
    if norms := _named(model, nn.modules.batchnorm._BatchNorm):
        config.modules_to_save = [*(config.modules_to_save or ()), *norms]
    if frozen is not None:
        kept, own_choice = name_patterns(frozen), config.exclude_modules or ()
        if isinstance(own_choice, str):
            config.exclude_modules = f"{own_choice}|{kept}"
        else:  # a list takes names alone
            names = [name for name, _ in model.named_modules() if re.fullmatch(kept, name)]
            config.exclude_modules = [*own_choice, *names] if own_choice else kept
    try:
        adapted = peft.get_peft_model(model, config, revision=getattr(model.config, "_commit_hash", None))
    except (ValueError, TypeError) as error:
        reason = first_line(error).partition(". ")[0]
        targets = config.target_modules if isinstance(config.target_modules, str) else sorted(config.target_modules)
        if frozen is not None and _NOTHING_LEFT.match(reason):
            raise UserError(
                f"freeze={frozen} keeps that encoder as it is, and the adapter (target_modules {targets}) fits no "
                "layer of the other one; name some of that (--lora_target_modules), or leave freeze unset"
            ) from error
        raise UserError(
            f"the adapter (target_modules {targets}) does not fit {type(model).__name__}: {reason}"
        ) from error
    own = adapted.active_peft_config
    if own.base_model_name_or_path and Path(own.base_model_name_or_path).is_dir():
        # Wherever the adapter is loaded from; publishing puts the folder's bare name in its place.
        own.base_model_name_or_path = str(Path(own.base_model_name_or_path).resolve())
    return adapted


def adapter_settings(model: Any) -> dict[str, object]:
    """What a card says of a model's adapter; empty without one."""
    if not is_adapted(model):
        return {}
    config = model.active_peft_config
    return {"lora_r": config.r, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout}


def lora_settings(config: "LoraConfig | None") -> dict[str, object]:
    """Every setting of an adapter that may change weights, by name, as plain values; empty without one."""
    if config is None:
        return {}
    settings = {name: value for name, value in config.to_dict().items() if name not in _WITHOUT_EFFECT}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}


def find_adapter(name_or_path: str, revision: str | None = None) -> Path | None:
    """The folder of an adapter's files, fetched where a Hub id is named; None for anything but an adapter.

    Raises:
        UserError: when its weights are missing or pickled.
        OSError: when there is no such repository.
    """
    found = find_adapter_config_file(name_or_path, revision=revision)
    if found is None:
        return None
    folder = Path(found).parent
    if not Path(name_or_path).is_dir():
        for name in (ADAPTER_NAME, RECORDS_NAME):  # of the same commit, which a cache's folder is called after
            cached_file(name_or_path, name, revision=folder.name, _raise_exceptions_for_missing_entries=False)
    if not (folder / ADAPTER_NAME).is_file():
        raise UserError(
            f"the adapter {name_or_path} holds no {ADAPTER_NAME}; pickled weights can run code when they are loaded "
            "and are refused: where you trust them, load them with peft and call save_pretrained"
        )
    return folder


def base_of(folder: Path) -> tuple[str, str | None]:
    """What the base model of an adapter is called, and its revision.

    Raises:
        UserError: when the adapter is no plain LoRA, or names no base that could be looked for.
    """
    config = _plain_config(folder)
    name = config.base_model_name_or_path
    if not name or name.startswith(LOCAL_PREFIX):
        raise UserError(
            f"the adapter {folder.name} was trained on a model that is on no Hub ({name or 'without a name'}); give "
            "that model's folder: load_encoder(..., base=FOLDER)"
        )
    return name, config.revision


def apply_adapter(model: PreTrainedModel, folder: Path) -> Any:
    """A base model with the adapter of a folder, for use, not for training.

    Raises:
        UserError: when the adapter lacks weights for this model, or is recorded as that of another base.
    """
    _refuse_more(_plain_config(folder), folder)
    _check_base(str(model.name_or_path), folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return require_peft().PeftModel.from_pretrained(model, str(folder))
        except UserWarning as error:
            raise UserError(f"the adapter {folder.name} does not fit its base model: weights are missing") from error


def _plain_config(folder: Path) -> "LoraConfig":
    """The settings of an adapter, which could make peft import any module by its name.

    Raises:
        UserError: when it is no plain LoRA.
    """
    peft = require_peft()
    config = peft.PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, peft.LoraConfig) or config.megatron_config is not None:
        raise UserError(f"{folder.name} is no plain LoRA adapter ({config.peft_type}), and no other kind is loaded")
    if config.init_lora_weights not in PLAIN_STARTS:
        raise UserError(
            f"{folder.name} is made of its base's weights (init_lora_weights {config.init_lora_weights!r}), which "
            "loading would compute anew; convert it to a plain LoRA with peft"
        )
    patterns = [config.target_modules, config.exclude_modules, config.layers_pattern]
    patterns += [*(config.rank_pattern or ()), *(config.alpha_pattern or ())]
    if slow := [text for text in patterns if isinstance(text, str) and _SLOW.search(text)]:
        raise UserError(f"{folder.name} names layers by {slow[0][:80]!r}, which may take for ever; list their names")
    return config


def _refuse_more(config: "LoraConfig", folder: Path) -> None:
    """Refuse an adapter that is more than its settings say, or less, before memory is taken for it.

    Raises:
        UserError: It holds tensors of its base model, which loading would put in place of those that are there; or a
            rank is beyond every side of its weights, or layers are to be repeated.
    """
    shapes = {name: shape for file in weight_files(folder) for name, (_, shape) in tensor_header(file).items()}
    own = [".lora_", *(f".{name}." for name in config.modules_to_save or ())]
    biases = config.bias != "none"
    if base := [name for name in shapes if not any(o in name for o in own) and not (biases and name.endswith(".bias"))]:
        raise UserError(
            f"the adapter {folder.name} holds {listed(sorted(base)[:4])} of its base model, which loading would "
            "replace; save it with save_pretrained"
        )
    widest = max((side for shape in shapes.values() for side in shape), default=0)
    ranks = [config.r, *(config.rank_pattern or {}).values()]
    if config.layer_replication or not all(isinstance(rank, int) and rank <= widest for rank in ranks):
        raise UserError(
            f"the adapter {folder.name} is far larger by its adapter_config.json than its weights are; save both "
            "together with save_pretrained"
        )


def check_adapter(model: PreTrainedModel, config: "LoraConfig", frozen: str | None = None) -> None:
    """Refuse an adapter that a model cannot have, as `add_adapter` does; the model is as it was afterwards."""
    add_adapter(model, config, frozen).unload().requires_grad_(True)


def merged(model: Any) -> PreTrainedModel:
    """A plain model, trainable again, with the adapter, where there is one, added to its weights."""
    return model.merge_and_unload().requires_grad_(True) if is_adapted(model) else model


def _check_base(base: str, folder: Path) -> None:
    """An adapter on another base than its own gives embeddings that mean nothing."""
    records = folder / RECORDS_NAME
    if not records.is_file() or not Path(base).is_dir():  # a Hub's base is pinned by its commit
        return
    content = read_json(records)
    named = content.get("base_model") if isinstance(content, dict) else None
    recorded = named.get("sha256") if isinstance(named, dict) else None
    if recorded is not None and recorded != weights_sha256(base):
        raise UserError(
            f"{Path(base).name} is not the base model of this adapter: its weights are not those that {RECORDS_NAME} "
            "names; pass the model that was unlearned from"
        )


def _named(model: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    return [name for name, module in unwrap(model).named_modules() if isinstance(module, kinds)]
