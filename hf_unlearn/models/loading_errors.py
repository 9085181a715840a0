"""What the loaders of others raise on files that are not what they say, and sizes beyond those of the weights."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn
from transformers import PreTrainedConfig

from hf_unlearn.errors import UserError, is_out_of_memory, no_such_model, sentence_of_panic
from hf_unlearn.models.weights import has_weights, tensor_header, weight_files

SMALL = 10_000_000  # parameters, which are 40 MB and in nobody's way
MOST_PARTS = 1_000_000  # of a kind, such as labels: a table of them is made while a configuration is read
Shapes = Sequence[tuple[int, ...]]
Config = TypeVar("Config", bound=PreTrainedConfig)
CONVERT = (
    "its weights are pickled, which can run code when they are loaded, and are refused: where you trust them, load "
    "them with transformers and use_safetensors=False, and call save_pretrained"
)


@contextmanager
def told(sentence: Callable[[str], str], name_or_path: str) -> Iterator[None]:
    """Turn whatever a loader of another library raises into one sentence.

    transformers, tokenizers, peft and pillow check what they read here and there: what a file with a wrong value raises
    has no kind in common, and tokenizers raises `Exception` itself.

    Args:
        sentence: Makes the sentence of the reason.
        name_or_path: What is loaded.

    Raises:
        UserError: Anything was raised, but for want of memory.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, NameError):  # the last is a fault of the code itself
            raise
        if "Repo id must" in str(error):  # the client's words for what could not be a name
            raise no_such_model(name_or_path) from error
        raise UserError(sentence(reason(name_or_path, error))) from error
    except BaseException as error:
        if (words := sentence_of_panic(error)) is None:
            raise
        raise UserError(sentence(words)) from error


def reason(name_or_path: str, error: Exception) -> str:
    """Why a model cannot be loaded, in few words."""
    if _is_pickled(name_or_path, error):
        return CONVERT
    if isinstance(error, LocalEntryNotFoundError) and not Path(name_or_path).exists():
        go = "unset HF_HUB_OFFLINE" if constants.is_offline_mode() else "mend the connection to the Hub"
        return f"no folder of that name is here, and it was not downloaded before; name one that is, or {go}"
    if "trust_remote_code" in str(error):
        return "it needs code that comes with it; read that code, and pass --trust_remote_code if you trust it"
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or type(error).__name__


def _is_pickled(name_or_path: str, error: Exception) -> bool:
    """Whether a model failed to load because its weights are pickled."""
    folder = Path(name_or_path)
    if folder.exists():
        pickled = any(any(folder.glob(f"*.{kind}")) for kind in ("bin", "pt", "pth", "ckpt"))
        return pickled and folder.is_dir() and not has_weights(folder)
    return "safetensors" in str(error) or "pytorch_model.bin" in str(error)


def refuse_larger(name: str, config: Config, build: Callable[[Config], nn.Module], shapes: Shapes) -> None:
    """Refuse a configuration of a far larger model than its weights are, before memory is taken for it.

    The model is built without memory for its numbers. Building takes its time in the number of layers, of which each
    has a tensor at least.

    Args:
        name: What the model is called.
        config: What it is built of.
        build: Builds it, with random weights.
        shapes: Of every tensor of its weights.

    Raises:
        UserError: The model would have over twice as many numbers as its weights, or more layers than these tensors.
    """
    words = ("layers", "n_layer", "depth")
    named = [value for name, value in fields_of(config.to_dict()) if any(word in name for word in words)]
    counts = [count for value in named for count in (value if isinstance(value, list | tuple) else [value])]
    layers = max((count for count in counts if isinstance(count, int)), default=0)
    remedy = "save weights and config together with save_pretrained"
    if layers > len(shapes):
        raise UserError(
            f"the model {name} has {layers:,} layers by its config.json, and its weights are {len(shapes):,} tensors; "
            f"{remedy}"
        )
    with torch.device("meta"):
        model = build(config)
    asked = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(math.prod(shape) for shape in shapes)
    if asked > 2 * stored + SMALL:
        raise UserError(
            f"the model {name} has {asked:,} parameters by its config.json, and its weights are {stored:,} numbers; "
            f"{remedy}"
        )


def refuse_many(name: str, config: object) -> None:
    """Refuse a number of labels, experts or other parts that takes memory before there is a model to compare.

    Raises:
        UserError: A field `num_...` or `n_...`, wherever it stands, is beyond a million.
    """
    for field, value in fields_of(config):
        counts = value if isinstance(value, list) else [value]
        numbers = [count for count in counts if isinstance(count, int | float)]
        if field.startswith(("num_", "n_")) and any(count > MOST_PARTS for count in numbers):
            raise UserError(
                f"the model {name} has {field} = {str(max(numbers))[:40]} in its config.json, more than "
                f"{MOST_PARTS:,}; name another checkpoint"
            )


def stored_shapes(folder: Path) -> Shapes:
    """The shape of every tensor of a checkpoint, from the headers of its files.

    Raises:
        UserError: A file is damaged.
    """
    return [shape for file in weight_files(folder) for _, shape in tensor_header(file).values()]


def fields_of(config: object) -> Iterator[tuple[str, Any]]:
    """Every field of a configuration, by its name, and of the parts of it."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield str(name), value
            yield from fields_of(value)
    elif isinstance(config, list | tuple):
        for part in config:
            yield from fields_of(part)
