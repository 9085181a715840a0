"""From the splits that a Trainer is given to its rows: what cannot be trained on is refused, the rest is encoded.

How, is said by a preprocessor: image-text pairs for dual encoders, random views for SimCLR and MoCo.
"""

import hashlib
import logging
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedModel

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit, EncodedSplits
from hf_unlearn.data.fingerprint import row_hashes
from hf_unlearn.data.preprocessing import ContrastivePreprocessor, ImageTextPreprocessor, ImageViewPreprocessor
from hf_unlearn.data.resizing import Processor
from hf_unlearn.data.streaming import SHUFFLE_BUFFER, StreamedBatches, StreamedSplit, known_rows
from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.distributed import rank, world_size
from hf_unlearn.errors import UserError
from hf_unlearn.models.contrastive import caption_length, is_dual_encoder, unwrap
from hf_unlearn.models.effective_settings import processor_hash
from hf_unlearn.models.origin import origin_of
from hf_unlearn.models.processor_fit import check_fit
from hf_unlearn.records.file_names import MANIFEST_NAME
from hf_unlearn.records.schemas import UnlearningManifest
from hf_unlearn.training.config import UnlearningConfig

logger = logging.getLogger(__name__)

PROBE_SAMPLES = 128  # retain samples that a training is watched on

Stream: TypeAlias = IterableDataset | StreamedSplit
Split: TypeAlias = Dataset | EncodedSplit | Stream


SPLITS = ("retain", "unlearn", "validation")  # what methods may learn from, or take targets from


def make_preprocessor(model: PreTrainedModel, processing_class: Processor, data: DataConfig) -> ContrastivePreprocessor:
    """How rows become batches for a model.

    Args:
        model: the encoder, wrapped or not.
        processing_class: the processor saved with it.
        data: the settings of the data.

    Raises:
        UserError: without the model's processor, when it does not fit the model, when the text encoder takes fewer
            tokens than `max_length`, when a setting is of another kind of model, or when the model was unlearned with
            other views, or longer or shorter captions, by its record.
    """
    if processing_class is None:
        raise UserError(
            "processing_class is missing; pass the processor saved with the model (AutoProcessor.from_pretrained)"
        )
    check_fit(model, processing_class, model.name_or_path or type(model).__name__)
    name, recorded = _recorded_settings(model)
    model = unwrap(model)  # type: ignore[assignment]
    data.refuse_idle(is_dual_encoder(model))
    if is_dual_encoder(model):
        tokenizer = getattr(processing_class, "tokenizer", None)
        length = caption_length(model, tokenizer, data.max_length)
        _refuse_other(name, recorded, "max_length", length)
        # CLIP's text encoder looks back only, from a text's first end: padding after it changes nothing, and a mask
        # would cost a read on the host at every step and the fused attention without one.
        looks_back = model.config.model_type == "clip" and tokenizer.padding_side == "right"  # type: ignore[union-attr]
        return ImageTextPreprocessor(processing_class, length, data.flip_probability, masked=not looks_back)
    _refuse_other(name, recorded, "views", data.views)
    return ImageViewPreprocessor(processing_class, VIEW_PRESETS[data.views])


def _recorded_settings(model: PreTrainedModel) -> tuple[str, Mapping[str, object]]:
    """A model's folder, and what the record there says of its run's settings; nothing without one, or on the Hub."""
    name = origin_of(model).name
    if name is None or not (Path(name) / MANIFEST_NAME).is_file():
        return "", {}
    return name, UnlearningManifest.load(name).hyper_parameters


def _refuse_other(model: str, recorded: Mapping[str, object], name: str, now: object) -> None:
    """Refuse to read rows otherwise than a model's own run did: where samples stand would be told by other figures."""
    was = recorded.get(name, now)
    if was != now:
        raise UserError(
            f"{model} was unlearned with {name}={was}, and figures with {name}={now} cannot be compared with its own; "
            f"give --{name} {was} (DataConfig({name}={was!r}))"
        )


class TrainingRows:
    """The splits of a training, encoded as its Trainer takes them.

    Attributes:
        unlearn_to_retain: `|U| / |R|`; 0 where retain is a stream without an end.
        unlearns: whether there are rows to be unlearned.

    Args:
        splits: rows by the name of their split, encoded or not; `retain` may be a stream.
        uses: names of the splits that the method learns from.
        preprocessor: how rows are encoded.
        args: the method's config.
        data: the settings of the data.

    Raises:
        UserError: when these are no splits, one that the method learns from is missing or empty, or no step could be
            made.
    """

    def __init__(
        self,
        splits: Mapping[str, Split],
        uses: tuple[str, ...],
        preprocessor: ContrastivePreprocessor,
        args: UnlearningConfig,
        data: DataConfig,
    ) -> None:
        if not isinstance(splits, Mapping):
            raise UserError(
                f"train_dataset is a {type(splits).__name__}; pass its splits by name, as "
                "DatasetDict(retain=..., unlearn=...), which make_splits gives"
            )
        self._splits, self._uses, self._preprocessor, self._args, self._data = splits, uses, preprocessor, args, data
        self._encoded: WeakKeyDictionary[Dataset, EncodedSplit] = WeakKeyDictionary()
        sizes = checked_sizes(splits, uses, args, data)
        if "unlearn" in uses and sizes["unlearn"] == 1:
            logger.warning("%s: one unlearn sample has no negative pair; terms over such pairs are zero.", args.title)
        self.unlearn_to_retain = sizes["unlearn"] / max(1, sizes["retain"])
        self.unlearns = sizes["unlearn"] > 0
        # Without budgets, too: a state whose next loss would not be finite must not be called good.
        self._watched = sizes["retain"] >= 2 * world_size()
        if not self._watched and (args.retain_loss_budget is not None or args.collapse_floor is not None):
            logger.warning("%s: too few retain samples to watch; its budgets against divergence are off.", args.title)

    def encoded(self, split: object) -> EncodedSplit:
        """A split as encoded rows, encoded once for as long as the split is there.

        Raises:
            UserError: when it is a stream, or no rows at all.
        """
        if not isinstance(split, Dataset):
            return self._encode(split)
        if split not in self._encoded:
            self._encoded[split] = self._encode(split)
        return self._encoded[split]

    def _encode(self, split: object) -> EncodedSplit:
        """As `encoded`, kept by the caller alone: what is moved to a device must not stay here as well."""
        if isinstance(split, EncodedSplit):
            return split
        if not isinstance(split, Dataset):
            raise UserError(
                f"a split to be kept encoded is a {type(split).__name__}; pass its rows as a datasets.Dataset (retain "
                "alone may be a stream)"
            )
        return EncodedSplit(split, self._preprocessor, self._data.resident_bytes)

    def batches(self) -> EncodedSplits | StreamedBatches:
        """The splits the method learns from, as whole batches."""
        parts = {name: self._splits[name] for name in self._uses}
        retain = parts.get("retain")
        unlearn = self._encode(parts["unlearn"]) if "unlearn" in parts else None
        if isinstance(retain, Stream):
            size, seed = self._args.train_batch_size, self._args.seed
            return StreamedBatches(self._streamed(retain), unlearn, size, seed, rank(), world_size())
        return EncodedSplits(None if retain is None else self._encode(retain), unlearn)

    def kept(self, rows: int) -> EncodedSplit | None:
        """At most so many rows of retain, encoded, whether the method learns from them or not; None without any."""
        retain = self._splits.get("retain")
        if isinstance(retain, Stream):
            return self._streamed(retain).sample(rows)
        if isinstance(retain, Dataset):
            return self._encode(retain.select(range(min(rows, len(retain)))))
        return retain

    def unlearn(self, batches: EncodedSplits | StreamedBatches) -> EncodedSplit:
        """The unlearn split encoded, which it already is among the batches of a method that learns from it."""
        if "unlearn" not in self._uses:
            return self.encoded(self._splits["unlearn"])
        split = batches.splits[-1] if isinstance(batches, EncodedSplits) else batches.unlearn
        assert split is not None  # `batches` put it there
        return split

    @cached_property
    def identity(self) -> dict[str, str]:
        """What identifies each split: its rows, in their order, or how many a stream has; and what encodes them."""
        known = {name: split for name, split in self._splits.items() if name in (*SPLITS, *self._uses)}
        rows = {
            f"{name} rows": f"{_size(split, self._data):g}, a stream" if isinstance(split, Stream) else rows_hash(split)
            for name, split in known.items()
            if split is not None
        }
        return {**rows, "processor": processor_hash(self._preprocessor)}

    def evaluation(self, rows: Any) -> Any:
        """Rows for the evaluation loss as whole batches, split by split; what is ready, or a split's name, as it is."""
        if rows is None or isinstance(rows, str | EncodedSplits):
            return rows
        if isinstance(rows, Mapping):
            return {name: self.evaluation(split) for name, split in rows.items()}
        return EncodedSplits(self.encoded(rows), None)

    def probe(self) -> dict[str, Tensor] | None:
        """This process's share of the retain samples that budgets are measured on; None without any to watch.

        They are the first ones of a stream, and spread out over any other split.
        """
        if not self._watched:
            return None
        retain, batch = self._splits["retain"], self._args.per_device_train_batch_size
        if isinstance(retain, Stream):
            first = self._streamed(retain).first(world_size() * min(batch, PROBE_SAMPLES))
            each = len(first["pixels"]) // world_size()  # the same number on every process
            return {name: value[rank() * each : (rank() + 1) * each] for name, value in first.items()}
        size = min(len(retain) // world_size(), batch, PROBE_SAMPLES)
        spread_out = [place * len(retain) // (size * world_size()) for place in range(size * world_size())]
        rows = spread_out[rank() :: world_size()]
        if isinstance(retain, EncodedSplit):
            return retain.rows(rows)
        return self._encode(retain.select(rows)).rows(range(len(rows)))

    def _streamed(self, split: Stream) -> StreamedSplit:
        if isinstance(split, StreamedSplit):
            return split
        return StreamedSplit(
            split, self._preprocessor, self._data.retain_rows, self._data.shuffle_buffer or SHUFFLE_BUFFER
        )


def checked_sizes(
    splits: Mapping[str, Split], uses: tuple[str, ...], args: UnlearningConfig, data: DataConfig
) -> dict[str, float]:
    """Rows of retain and unlearn; infinity for a stream with an unknown number of them.

    Args:
        splits: rows by the name of their split, encoded or not; `retain` may be a stream.
        uses: names of the splits that the method learns from.
        args: the method's config.
        data: the settings of the data.

    Raises:
        UserError: when one that the method learns from is missing or empty, or no step could be made.
    """
    if isinstance(splits.get("unlearn"), Stream):
        raise UserError("The unlearn split is a stream; pass its rows as a datasets.Dataset, which is kept encoded")
    sizes = {name: _size(splits.get(name), data) for name in ("retain", "unlearn")}
    for name in uses:
        if sizes[name] == 0:
            raise UserError(f"{args.title} learns from the {name} split, which is empty or missing; pass one with rows")
    if sum(sizes[name] for name in uses) < 2:
        raise UserError(f"{args.title} has a single sample to learn from, so InfoNCE has no negatives; pass more rows")
    if math.isinf(sizes["retain"]) and "retain" in uses:
        _refuse_endless(uses, args)
    return sizes


def _size(split: Split | None, data: DataConfig) -> float:
    if split is None:
        return 0
    if isinstance(split, Stream):
        known = split.rows if isinstance(split, StreamedSplit) else data.retain_rows or known_rows(split)
        return math.inf if known is None else known
    return len(split)


def _refuse_endless(uses: tuple[str, ...], args: UnlearningConfig) -> None:
    """Say what cannot be done on a retain stream whose number of rows is unknown."""
    if "unlearn" in uses:  # |U| / |R| decides the mixture of a batch and the weight of the unlearn terms
        raise UserError(
            f"{args.title} weighs unlearn against retain samples, and the retain stream does not say how many rows it "
            "has; set retain_rows"
        )
    if args.max_steps <= 0:
        raise UserError("The retain stream does not say how many rows it has; set max_steps, or retain_rows")


def rows_hash(split: Dataset | EncodedSplit) -> str:
    """The number of rows, and a hash of their ids in order; without ids, of their pictures and captions."""
    rows = split.dataset if isinstance(split, EncodedSplit) else split
    named = "id" in rows.column_names
    lines = map(str, rows["id"]) if named else row_hashes(rows)
    return f"{len(rows):,}, {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:16]}"
