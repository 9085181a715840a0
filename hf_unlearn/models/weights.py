"""A checkpoint's weight files and the hash that records and audits identify it by."""

import hashlib
import json
from pathlib import Path

from hf_unlearn.errors import UserError

WEIGHTS_NAME = "model.safetensors"
WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
ADAPTER_NAME = "adapter_model.safetensors"
ADAPTER_CONFIG_NAME = "adapter_config.json"
# Of a checkpoint in another form than transformers' own.
OPEN_CLIP_CONFIG_NAME = "open_clip_config.json"
OPEN_CLIP_WEIGHTS_NAME = "open_clip_model.safetensors"
SENTENCE_CONFIG_NAME = "modules.json"
CLIP_MODULE = "0_CLIPModel"  # the folder that sentence-transformers gives its CLIP
CLIP_MODULE_WEIGHTS = f"{CLIP_MODULE}/{WEIGHTS_NAME}"
# Of each form, the file beside the weights that says what they are.
CONFIG_NAMES = ("config.json", ADAPTER_CONFIG_NAME, OPEN_CLIP_CONFIG_NAME, SENTENCE_CONFIG_NAME)
# What is published calls a model that is on no Hub: `local/<name of its folder>`.
LOCAL_PREFIX = "local/"


def file_sha256(path: str | Path) -> str:
    """Hash one file; for an LFS file this is the SHA-256 that the Hub shows on its page."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_weights(folder: str | Path) -> bool:
    """Say whether a folder holds safetensors weights, of a model or of an adapter."""
    whole = (WEIGHTS_NAME, WEIGHTS_INDEX_NAME, ADAPTER_NAME, OPEN_CLIP_WEIGHTS_NAME, CLIP_MODULE_WEIGHTS)
    return any((Path(folder) / name).is_file() for name in whole)


def weight_files(folder: str | Path) -> list[Path]:
    """List a checkpoint's weight files: `model.safetensors`, every shard its index names, or an adapter's alone.

    Raises:
        UserError: There are no safetensors weights, a shard is missing, or a model lies beside an adapter.
    """
    folder = Path(folder)
    if (folder / ADAPTER_NAME).is_file():
        if any((folder / name).is_file() for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
            raise UserError(f"{folder.name} holds a model and an adapter, and loaders differ on which; remove one.")
        return [folder / ADAPTER_NAME]
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    for other in (OPEN_CLIP_WEIGHTS_NAME, CLIP_MODULE_WEIGHTS):
        if not (folder / "config.json").is_file() and (folder / other).is_file():
            return [folder / other]
    index = folder / WEIGHTS_INDEX_NAME
    if not index.is_file():
        raise UserError(f"{folder.name or folder} holds no {WEIGHTS_NAME}; save the model with save_pretrained.")
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    if missing := [name for name in names if Path(name).name != name or not (folder / name).is_file()]:
        raise UserError(f"{WEIGHTS_INDEX_NAME} names {missing}, which {folder.name} lacks; save the model again.")
    return [folder / name for name in names]


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
