"""A checkpoint's weight files, as loading would choose them, and the hash that records and audits identify it by."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_unlearn.errors import UserError, listed
from hf_unlearn.parsing import parse_json, read_object, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_NAME = "model.safetensors"
WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
ADAPTER_NAME = "adapter_model.safetensors"
ADAPTER_CONFIG_NAME = "adapter_config.json"
CONFIG_NAME = "config.json"
# Of a checkpoint in another form than transformers' own.
OPEN_CLIP_CONFIG_NAME = "open_clip_config.json"
OPEN_CLIP_WEIGHTS_NAME = "open_clip_model.safetensors"
SENTENCE_CONFIG_NAME = "modules.json"
CLIP_MODULE = "0_CLIPModel"  # the folder that sentence-transformers gives its CLIP
CLIP_MODULE_WEIGHTS = f"{CLIP_MODULE}/{WEIGHTS_NAME}"
# Of each form, the file beside the weights that says what they are.
CONFIG_NAMES = (CONFIG_NAME, ADAPTER_CONFIG_NAME, OPEN_CLIP_CONFIG_NAME, SENTENCE_CONFIG_NAME)
# A field of config.json by which transformers loads another file than the usual one.
EXPLICIT_WEIGHTS = "transformers_weights"
# What is published calls a model that is on no Hub: `local/<name of its folder>`.
LOCAL_PREFIX = "local/"
REMEDY = "save the model again"


def file_sha256(path: str | Path) -> str:
    """Hash one file; for an LFS file this is the SHA-256 that the Hub shows on its page."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_weights(folder: str | Path) -> bool:
    """Say whether a folder holds safetensors weights, of a model or of an adapter."""
    whole = (WEIGHTS_NAME, WEIGHTS_INDEX_NAME, ADAPTER_NAME, OPEN_CLIP_WEIGHTS_NAME, CLIP_MODULE_WEIGHTS)
    return any((Path(folder) / name).is_file() for name in whole)


def refuse_other_kind(folder: str | Path, adapter: bool) -> None:
    """Refuse to save an adapter into a folder that holds a whole model, or the other way round.

    Args:
        folder: Where it is to be saved.
        adapter: Whether what is saved is an adapter.

    Raises:
        UserError: Of the two that would lie there, loaders would choose differently.
    """
    names = (WEIGHTS_NAME, WEIGHTS_INDEX_NAME) if adapter else (ADAPTER_NAME, ADAPTER_CONFIG_NAME)
    if there := [name for name in names if (Path(folder) / name).is_file()]:
        kinds = ("an adapter", "a whole model") if adapter else ("a whole model", "an adapter")
        raise UserError(
            f"{folder} holds {there[0]}, and of {kinds[0]} beside {kinds[1]} loaders differ on which they read; name "
            "another folder, or remove that file"
        )


def weight_files(folder: str | Path) -> list[Path]:
    """List the files that `from_pretrained` reads weights from: one, every shard of an index, or an adapter's alone.

    Where loaders could differ on which files these are, the folder is refused: what is hashed is what is loaded.

    Raises:
        UserError: There are no safetensors weights, a shard is missing or outside the folder, a file is a link that
            leads out of it, config.json names other weights, or there are two kinds of weights side by side.
    """
    folder = Path(folder)
    for config in (CONFIG_NAME, f"{CLIP_MODULE}/{CONFIG_NAME}"):
        if read_object(folder / config, f"{config} of {folder.name}", REMEDY).get(EXPLICIT_WEIGHTS) is not None:
            raise UserError(
                f"{config} of {folder.name} names weights of its own ({EXPLICIT_WEIGHTS}), which not every loader "
                f"reads; call them {WEIGHTS_NAME} and remove the field."
            )
    there = [name for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME) if (folder / name).is_file()]
    adapter = [name for name in (ADAPTER_NAME, ADAPTER_CONFIG_NAME) if (folder / name).is_file()]
    if adapter and there:
        raise UserError(f"{folder.name} holds a model and an adapter, and loaders differ on which; remove one.")
    if len(there) > 1:
        raise UserError(f"{folder.name} holds {' and '.join(there)}, and loaders differ on which; remove one.")
    others = [name for name in (OPEN_CLIP_WEIGHTS_NAME, CLIP_MODULE_WEIGHTS) if (folder / name).is_file()]
    if ADAPTER_NAME in adapter:
        found = [folder / ADAPTER_NAME]
    elif others and not there and not (folder / CONFIG_NAME).is_file():
        found = [folder / others[0]]
    elif not there:
        raise UserError(f"{folder.name or folder} holds no {WEIGHTS_NAME}; save the model with save_pretrained.")
    else:
        found = [folder / WEIGHTS_NAME] if WEIGHTS_NAME in there else _shards(folder)
    if links := [path.name for path in found if leads_out(path, folder)]:
        raise UserError(f"{listed(links)} of {folder.name} leads out of the folder; put the file itself there.")
    return found


def _shards(folder: Path) -> list[Path]:
    index = read_object(folder / WEIGHTS_INDEX_NAME, f"{WEIGHTS_INDEX_NAME} of {folder.name}", REMEDY)
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{WEIGHTS_INDEX_NAME} of {folder.name} names no shards; save the model again.")
    names = sorted(set(shards.values()))
    plain = [name for name in names if Path(name).name == name and name.endswith(".safetensors") and "\0" not in name]
    if missing := [name for name in names if name not in plain or not (folder / name).is_file()]:
        raise UserError(
            f"{WEIGHTS_INDEX_NAME} names {listed(map(repr, missing))}, which {folder.name} lacks; save the model again."
        )
    for name in names:
        held, due = set(tensor_header(folder / name)), {tensor for tensor, file in shards.items() if file == name}
        if odd := sorted(held ^ due):
            raise UserError(
                f"{name} of {folder.name} and {WEIGHTS_INDEX_NAME} differ on {listed(odd)}, and loaders on which they "
                "follow; save the model again."
            )
    return [folder / name for name in names]


def tensor_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The type (`F32`) and shape of every tensor of a safetensors file, from its header.

    Raises:
        UserError: It is damaged, or names a tensor twice, of which readers take the one or the other.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):  # refuses what is not whole
            pass
        with path.open("rb") as file:
            header = parse_json(file.read(int.from_bytes(file.read(8), "little")).decode(), path.name)
    except (SafetensorError, OSError, ValueError) as error:
        whole = f"{path.name} of {path.parent.name} is no whole safetensors file"
        raise UserError(f"{whole} ({error}); save the model again.") from error
    return {name: (field["dtype"], tuple(field["shape"])) for name, field in header.items() if name != "__metadata__"}


def leads_out(path: Path, folder: Path) -> bool:
    """Say whether a file of a folder really lies elsewhere.

    The Hub's cache keeps the files of a repository in `blobs`, and links to them in `snapshots/COMMIT` and below.
    """
    target, folder = path.resolve(), folder.resolve()
    cached = target.parent.name == "blobs" and target.parent.parent / "snapshots" in folder.parents
    return not cached and not target.is_relative_to(folder)


def weights_sha256(folder: str | Path) -> str:
    """Hash a checkpoint's weights.

    One file: the SHA-256 of its bytes. Shards: the SHA-256 of the lines `<name> <sha256>` in the order of their names.

    Raises:
        UserError: As `weight_files` does.
    """
    files = weight_files(folder)
    if len(files) == 1 and files[0].name in (WEIGHTS_NAME, ADAPTER_NAME, OPEN_CLIP_WEIGHTS_NAME):
        return file_sha256(files[0])
    lines = "".join(f"{file.name} {file_sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def stored_tensors(folder: str | Path) -> "dict[str, Tensor]":
    """Every tensor of a checkpoint by its name, however it is cut into files.

    Raises:
        UserError: As `weight_files` does, or a file is damaged.
    """
    return {
        name: tensor
        for file in weight_files(folder)
        for name, tensor in read_tensors(file, f"save {Path(folder).name} again").items()
    }


@dataclass(frozen=True)
class Difference:
    """How the tensors of two checkpoints differ.

    Args:
        differing: Tensors of one name and shape whose values differ.
        shared: Tensors of one name and shape.
        alone: Names or shapes that only one of the two has.
        apart: How far the shared ones lie apart, as a share of the other's size (both as Euclidean norms).
    """

    differing: int
    shared: int
    alone: int
    apart: float


def difference(ours: "Mapping[str, Tensor]", theirs: "Mapping[str, Tensor]") -> Difference:
    """Compare the tensors of two checkpoints by value, in the coarser of their types."""
    shared = [name for name in ours.keys() & theirs.keys() if ours[name].shape == theirs[name].shape]
    apart = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in shared)
    size = sum(float(theirs[name].double().square().sum()) for name in shared)
    return Difference(
        differing=sum(not _same(ours[name], theirs[name]) for name in shared),
        shared=len(shared),
        alone=len(ours) + len(theirs) - 2 * len(shared),
        apart=math.sqrt(apart / size) if size else 0.0,
    )


def is_copy(ours: "Mapping[str, Tensor]", theirs: "Mapping[str, Tensor]") -> bool:
    """Whether two models have the same tensors by name, shape and value, once both are rounded to 16 bits.

    One that was saved in 16 bits and read again differs from itself by that rounding.
    """
    from torch import bfloat16, float16

    return ours.keys() == theirs.keys() and any(
        all(
            tensor.shape == theirs[name].shape and bool((tensor.to(kind) == theirs[name].to(tensor.device, kind)).all())
            for name, tensor in ours.items()
        )
        for kind in (bfloat16, float16)
    )


def _same(ours: "Tensor", theirs: "Tensor") -> bool:
    """Whether two tensors of one shape hold the same values, once both have the coarser of their types."""
    coarser = min(ours.dtype, theirs.dtype, key=lambda kind: kind.itemsize)
    return bool((ours.to(coarser) == theirs.to(coarser)).all())
