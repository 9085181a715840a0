"""Checkpoints with the hashes of their files, so that damage is seen before anything is resumed from."""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor, nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_unlearn.errors import UserError, listed
from hf_unlearn.files import sync_tree
from hf_unlearn.models.adapters import lora_settings
from hf_unlearn.models.weights import file_sha256
from hf_unlearn.parsing import Fields, read_json

logger = logging.getLogger(__name__)

CHECKSUMS_NAME = "checkpoint.json"
_PART = 2**18  # values that are hashed at a time: few enough to stay in a processor's cache as 64-bit integers
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # of so many bytes


def write_checksums(folder: Path, seconds: float, training: Mapping[str, object]) -> None:
    """Write the SHA-256 of each of a checkpoint's files, and flush everything to disk.

    Args:
        folder: the checkpoint, complete.
        seconds: how long training took to get there.
        training: what identifies the training, by name.
    """
    files = {path.relative_to(folder).as_posix(): file_sha256(path) for path in folder.rglob("*") if path.is_file()}
    content = {"seconds": seconds, "training": training, "files": files}
    (folder / CHECKSUMS_NAME).write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
    sync_tree(folder)


def damage(folder: Path) -> str | None:
    """What keeps a training from going on from a checkpoint; None if it is complete, and as it was written."""
    try:
        content = _read_checksums(folder)
    except FileNotFoundError:
        return f"it has no {CHECKSUMS_NAME}"
    except (ValueError, RecursionError):
        return f"its {CHECKSUMS_NAME} cannot be read"
    content = content if isinstance(content, dict) else {}
    files, seconds = content.get("files"), content.get("seconds")
    if not isinstance(files, dict) or not files or not isinstance(seconds, int | float):
        return f"its {CHECKSUMS_NAME} cannot be read"
    for name, expected in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            return f"its {CHECKSUMS_NAME} names {name}, which is not inside it"
        if not (folder / path).is_file():
            return f"its {name} is missing"
        if file_sha256(folder / path) != expected:
            return f"its {name} is not as it was written"
    if not any(name.startswith("optimizer") for name in files):  # transformers would begin with a new one, unsaid
        return "it holds no state of the optimiser"
    return None


def seconds_trained(folder: Path) -> float:
    """How long training had taken when a checkpoint was written."""
    return float(_read_checksums(folder)["seconds"])


def _differences(folder: Path, training: Mapping[str, object]) -> list[str]:
    """What differs between the training that wrote a checkpoint and another."""
    was = _read_checksums(folder).get("training")
    now = json.loads(json.dumps(training, default=str))
    was = was if isinstance(was, dict) else {}
    return [
        f"{name} was {was.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    ]


def newest_checkpoint(output_dir: Path, training: Mapping[str, object] | None = None) -> Path | None:
    """The newest `checkpoint-N` that is undamaged; the damaged ones are told in a warning.

    Args:
        output_dir: where they are.
        training: what identifies the training, of which it is the newest if there is any; default: of whichever.
    """
    others = None
    for _, folder in sorted(_numbered(output_dir).items(), reverse=True):
        fault = damage(folder)
        if fault is not None:
            logger.warning("%s is damaged (%s) and is left out.", folder.name, fault)
        elif training is None or not _differences(folder, training):
            return folder
        else:
            others = others or folder
    return others


def checked_checkpoint(
    wanted: str | Path | bool | None, output_dir: Path, training: Mapping[str, object] | None = None
) -> Path | None:
    """What `resume_from_checkpoint` means: True for the newest undamaged checkpoint, a folder for that one.

    Args:
        wanted: the argument.
        output_dir: where checkpoints are.
        training: what identifies the training that is to go on, by name; default: it is not compared.

    Raises:
        UserError: when there is none, or the one named is damaged; or it is of another training, showing what differs.
    """
    if wanted is None or wanted is False:
        return None
    if wanted is True:
        newest = newest_checkpoint(output_dir, training)
        if newest is None:
            raise UserError(f"{output_dir} holds no undamaged checkpoint to resume from; train from the start")
        folder = newest
    else:
        folder = Path(wanted)
        fault = damage(folder) if folder.is_dir() else "there is no such folder"
        if fault is not None:
            raise UserError(f"the checkpoint {folder} cannot be resumed from ({fault}); name an earlier one")
    if training is not None and (differing := _differences(folder, training)):
        raise UserError(
            f"{folder.name} is of another training ({listed(differing)}); repeat its settings, or train from the start"
        )
    return folder


def rotate(output_dir: Path, limit: int | None, keep: Path | None = None) -> None:
    """Remove all but the `limit` checkpoints that were written last, and the one to `keep`; None keeps them all.

    An earlier training may have left some of higher numbers, and one that went on from an earlier checkpoint has them.
    """
    folders = _numbered(output_dir)
    written = sorted(folders, key=lambda number: (folders[number].stat().st_mtime_ns, number), reverse=True)
    for number in written[limit:] if limit else ():
        if folders[number] != keep:
            shutil.rmtree(folders[number])


def _numbered(output_dir: Path) -> dict[int, Path]:
    paths = output_dir.iterdir() if output_dir.is_dir() else ()
    matches = ((re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name), path) for path in paths)
    return {int(match[1]): path for match, path in matches if match}


def _read_checksums(folder: Path) -> Fields:
    return read_json(folder / CHECKSUMS_NAME)


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's weights and buffers, bit for bit and in their order; taken on their device, alike on each."""
    values = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    found = {name: [str(value.dtype), *value.shape, _sums(value.detach())] for name, value in values.items()}
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def beside_weights(model: nn.Module, initial_model: nn.Module | None) -> dict[str, object]:
    """What identifies the models of a training beside the weights it starts from: an adapter's settings, and another.

    Args:
        model: What is trained.
        initial_model: What it was fine-tuned from, where that is known.
    """
    adapter = lora_settings(getattr(model, "active_peft_config", None))
    initial = {} if initial_model is None else {"initial_model": fingerprint(initial_model)}
    return {**initial, **{f"adapter.{name}": value for name, value in adapter.items()}}


def _sums(value: Tensor) -> list[int]:
    """A sum for every part of a tensor: its bits as integers, each times an odd number of its place.

    Integers wrap around, so that no order of adding changes a sum; a changed or moved value does.
    """
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    if not value.numel():
        return []
    bits = value.reshape(-1).view(_INTEGERS[value.element_size()])
    if bits.dtype == torch.int64:  # two signs that change would cancel: an odd multiple of 2^63 is 2^63
        bits = bits ^ (bits >> 32)
    factors = _factors(value.device)
    return torch.stack([(part * factors[: len(part)]).sum() for part in bits.split(_PART)]).tolist()


@lru_cache(1)
def _factors(device: torch.device) -> Tensor:
    """Odd numbers that differ in all their bits, as the two steps of SplitMix64 make them of places."""
    places = torch.arange(_PART, device=device) * -0x61C8864680B583EB
    return ((places ^ (places >> 31)) * -0x6B2FB644ECCEEE15) | 1
