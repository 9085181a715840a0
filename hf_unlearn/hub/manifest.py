"""Fill in `unlearning.json`: what a run knows about its base model, its settings and itself."""

import dataclasses
import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_unlearn import __version__
from hf_unlearn.errors import UserError
from hf_unlearn.hub.download import fetch
from hf_unlearn.models.weights import ADAPTER_NAME, CLIP_MODULE_WEIGHTS, OPEN_CLIP_WEIGHTS_NAME, weights_sha256
from hf_unlearn.records.file_names import CARD_NAME, MANIFEST_NAME
from hf_unlearn.records.provenance import environment_versions, hardware_summary
from hf_unlearn.records.schemas import BaseModel, HistoryEntry, RequestRecord, UnlearningManifest
from hf_unlearn.records.settings import weight_settings

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_unlearn.data.requests import RemovalRequest

logger = logging.getLogger(__name__)

UNCHANGED = "Nothing was unlearned: the weights are those of the base model, to the bit."

# Settings that a card shows whatever their value; of the others that change weights, those that are not as they come.
_TRAINING_FIELDS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "optim", "weight_decay", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "bf16", "fp16",
)  # fmt: skip
_LEFT_OUT = {
    "token", "path", "dir", "file", "folder", "cache", "name", "secret", "key", "url", "bytes", "minutes", "cpu",
    "preset", "salt",
}  # fmt: skip
# What is looked up of a base model on the Hub.
_WANTED = (
    *("model*.safetensors", "model.safetensors.index.json", ADAPTER_NAME, OPEN_CLIP_WEIGHTS_NAME, CLIP_MODULE_WEIGHTS),
    *(CARD_NAME, MANIFEST_NAME),
)


def describe_base_model(name_or_path: str, revision: str | None = None) -> tuple[BaseModel, tuple[HistoryEntry, ...]]:
    """Identify the model that is unlearned from, and the unlearning runs it already went through.

    A Hub id is pinned to the commit it stands for now; only its weights, card and manifest are looked up, from the
    cache where they are there. A local folder is named by its last part alone.

    Args:
        name_or_path: A Hub id, or a local folder.
        revision: A branch, tag or commit on the Hub.

    Returns:
        The base model with its hash and licence, and its history, oldest first.

    Raises:
        UserError: There is no such model, or it has no safetensors weights.
    """
    if Path(name_or_path).is_dir():
        folder, name, commit = Path(name_or_path).resolve(), Path(name_or_path).resolve().name, None
    else:
        folder = fetch(name_or_path, _WANTED, revision)
        name, commit = name_or_path, folder.name
    base = BaseModel(name, commit, weights_sha256(folder), **_license(folder))
    if not (folder / MANIFEST_NAME).is_file():
        return base, ()
    earlier = UnlearningManifest.load(folder)
    return base, (*earlier.history, earlier.as_history_entry())


def describe_request(request: "RemovalRequest", unlearn: "Dataset", salt: str | None = None) -> RequestRecord:
    """Describe a removal request without saying what it was.

    Args:
        request: The request.
        unlearn: The unlearn split, in the library's schema; copies that were moved along are not part of the request.
        salt: A text for the data owners alone: with it they find their samples among the row hashes.

    Returns:
        Without a salt, the hash of the ids; with one, the salted hashes of the requested rows, in no telling order.

    Raises:
        UserError: A requested row cannot be hashed, or the salt is empty.
    """
    if salt is None:
        return RequestRecord(request.kind, request.count, request.sha256)
    from hf_unlearn.data.fingerprint import check_salt, combine_hashes, row_hashes

    check_salt(salt, "salt")
    ids = set(request.ids)
    rows = unlearn.select([index for index, name in enumerate(unlearn["id"]) if name in ids])
    hashes = tuple(sorted(row_hashes(rows, salt)))
    return RequestRecord(request.kind, len(hashes), combine_hashes(hashes), salted=True, row_hashes=hashes)


def public_hyper_parameters(config: Any, idle: Collection[str] = ()) -> dict[str, object]:
    """Pick from a dataclass of settings what a card may show: what changes the weights, nothing private.

    These are the fields that the method's own config declares, the usual ones of the optimiser and schedule, and every
    other that changes weights (`hf_unlearn.records.settings`) and is not as it comes.
    Fields named after tokens, paths, files, sizes in memory or minutes between checkpoints are left out, and so are
    the preset, which a card shows elsewhere, and every value that is unset or no number, flag or plain word.

    Args:
        config: The settings; None has none.
        idle: Fields without effect on this model, which are left out, too.
    """
    from transformers import TrainingArguments

    if config is None:
        return {}
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    settings = weight_settings(config)
    own = [name for name in settings if name not in (*inherited, *idle)]
    usual = [name for name in _TRAINING_FIELDS if name in settings]
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    unset = {name for name, value in settings.items() if value == defaults[name] or not (value or defaults[name])}
    others = [name for name in settings if name not in {*own, *usual, *unset}]
    names = (name for name in (*own, *usual, *others) if _LEFT_OUT.isdisjoint(name.split("_")))
    return {name: settings[name] for name in names if _is_plain(settings[name])}


def caption_length_of(preprocessor: object) -> dict[str, object]:
    """The tokens that a run's captions were cut to, set or not, by which a model's figures are measured again."""
    length = getattr(preprocessor, "max_length", None)
    return {} if length is None else {"max_length": length}


def record_run(
    folder: str | Path,
    *,
    base_model: BaseModel,
    request: RequestRecord,
    splits: Mapping[str, int],
    notes: Sequence[str] = (),
    **known: Any,
) -> UnlearningManifest:
    """Write `unlearning.json` beside freshly saved weights, hashing them and naming versions, hardware and time.

    Args:
        folder: Where the model was saved.
        base_model: From `describe_base_model`, as is `history`.
        request: What was asked to be removed.
        splits: Rows in `retain`, `unlearn`, `validation` and `test`.
        notes: Sentences a reader of the card must see.
        known: What else the run knows of itself, as fields of `UnlearningManifest`: `method` and `dataset`, and where
            there are, `hyper_parameters` (from `public_hyper_parameters`), `seed`, `run_time_seconds` and so on.

    Returns:
        The manifest as written.

    Raises:
        UserError: The folder holds no safetensors weights, or the unlearn split lacks part of the request.
    """
    if request.count > splits["unlearn"]:  # it may be smaller: duplicates are moved along
        raise UserError(f"The request names {request.count} samples, but the unlearn split holds {splits['unlearn']}.")
    weights = weights_sha256(folder)
    unchanged = weights == base_model.sha256
    if unchanged:
        notes = (UNCHANGED, *notes)
    manifest = UnlearningManifest(
        base_model=base_model,
        weights_sha256=weights,
        request=request,
        splits=dict(splits),
        notes=tuple(notes),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        library_version=__version__,
        versions=environment_versions(),
        hardware=hardware_summary(),
        **known,
    )
    if unchanged:
        logger.warning("%s: %s", manifest.method_title, UNCHANGED)
    manifest.save(folder)
    return manifest


def _license(folder: Path) -> dict[str, str | None]:
    """Read the licence from a model's card."""
    from huggingface_hub import ModelCard

    card = folder / CARD_NAME
    if not card.is_file():
        return {}
    data = ModelCard.load(card, ignore_metadata_errors=True).data
    return {"license": data.license, "license_name": data.license_name, "license_link": data.license_link}


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(isinstance(name, str) and _is_plain(item) for name, item in value.items())
    if isinstance(value, str):  # a word, or options such as momentum=0.9,nesterov=True
        return re.fullmatch(r"[\w.-]+(=[\w.-]+)?(, ?[\w.-]+=[\w.-]+)*", value) is not None and len(value) <= 80
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
