"""Datasets whose batches come ready: one indexing operation where they fit in memory, decoded on the fly elsewhere."""

from collections.abc import Iterator, Sequence
from copy import copy
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, Image
from torch import Tensor
from tqdm.auto import tqdm

from hf_unlearn.data.device import to_device
from hf_unlearn.data.preprocessing import ContrastivePreprocessor, Encoded, RowError
from hf_unlearn.errors import UserError

# A split whose encoding needs no more than this is decoded once and kept in memory.
RESIDENT_BYTES = 4 * 2**30
ENCODE_ROWS = 512


class EncodedSplit:
    """The rows of one split as encoded tensors, kept in memory if they fit and encoded when asked for if not.

    Args:
        dataset: rows in the schema of `hf_unlearn.data`; messages call a row by its `id`, or else by its number.
        preprocessor: how rows are encoded.
        resident_bytes: the most memory to keep them in.

    Raises:
        UserError: a column is missing, or a row holds something else than pictures and captions.
    """

    def __init__(
        self, dataset: Dataset, preprocessor: ContrastivePreprocessor, resident_bytes: int = RESIDENT_BYTES
    ) -> None:
        preprocessor.check_columns(dataset.column_names)
        columns = [*preprocessor.columns, *(["id"] if "id" in dataset.column_names else [])]
        # Stored bytes, so that `encode` decodes them (upright, any mode, within the pixel limit) and nothing else does.
        try:
            stored = dataset.select_columns(columns).cast_column("image", Image(decode=False))
        except (pa.ArrowException, TypeError) as error:
            raise UserError(
                f"The column 'image' holds {dataset.features['image']}, neither images nor encoded bytes nor paths; "
                "rename the one that holds them"
            ) from error
        self.dataset = stored.with_format(None)
        self.preprocessor = preprocessor
        self.resident: Encoded | None = None
        # No row takes more than one with the most captions.
        row = self.rows([_row_of_most_captions(self.dataset)]) if len(dataset) else {}
        if _nbytes(row) * len(dataset) <= resident_bytes:
            whole = {name: value.new_empty((len(dataset), *value.shape[1:])) for name, value in row.items()}
            starts = range(0, len(dataset), ENCODE_ROWS)
            for first in tqdm(starts, desc="Encoding", unit=" batches", leave=False, delay=2):
                places = range(first, min(first + ENCODE_ROWS, len(dataset)))
                room = {name: value[first : places.stop] for name, value in whole.items()}
                _write(self.rows(places), torch.arange(len(places)), room)
            self.resident = whole

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def nbytes(self) -> int | None:
        """Bytes of memory the encoded rows take; None if they are encoded when asked for."""
        return None if self.resident is None else _nbytes(self.resident)

    @property
    def device(self) -> torch.device:
        """Where the rows are kept; those that are not come on the CPU."""
        return next(iter(self.resident.values())).device if self.resident else torch.device("cpu")

    def on(self, device: torch.device) -> "EncodedSplit":
        """The same split with the rows it keeps on `device`; the original keeps its own."""
        moved = copy(self)
        if self.resident is not None:
            moved.resident = {name: value.to(device) for name, value in self.resident.items()}
        return moved

    def rows(self, indices: Sequence[int]) -> Encoded:
        """The encoded rows at `indices`, in that order."""
        if self.resident is not None:
            index = to_device(torch.as_tensor(indices), self.device)
            return {name: value[index] for name, value in self.resident.items()}
        rows = self.dataset[indices]
        try:
            return self.preprocessor.encode(rows)
        except RowError as error:
            raise error.named(str(rows.get("id", indices)[error.place])) from error

    def source(self, index: Tensor) -> tuple[Encoded, Tensor]:
        """Tensors with the rows at `index` (on this split's device) among others, and where in them these rows are."""
        if self.resident is not None:
            return self.resident, index
        return self.rows(index.tolist()), torch.arange(len(index))

    def batches(self, size: int, indices: Sequence[int] | None = None) -> Iterator[Encoded]:
        """All rows (or those at `indices`) in order, `size` at a time."""
        indices = range(len(self)) if indices is None else indices
        for start in range(0, len(indices), size):
            yield self.rows(indices[start : start + size])


def _nbytes(encoded: Encoded) -> int:
    return sum(value.nbytes for value in encoded.values())


def _row_of_most_captions(dataset: Dataset) -> int:
    """Such a row, the first; 0 where captions are missing or no lists. Lengths are read off Arrow's offsets."""
    if "captions" not in dataset.column_names:
        return 0
    kind = dataset.features.arrow_schema.field("captions").type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return 0
    tables = dataset.select_columns("captions").with_format("arrow").iter(batch_size=10_000)
    lengths = [pc.fill_null(pc.list_value_length(table["captions"]), 0).to_numpy() for table in tables]
    return int(np.concatenate(lengths).argmax())


def concatenate(parts: Sequence[Encoded]) -> Encoded:
    """Join encoded parts; caption tensors of different widths are widened by repeating their first caption."""
    return _gather([(part, torch.arange(len(part["pixels"]))) for part in parts])


def _gather(sources: Sequence[tuple[Encoded, Tensor]]) -> Encoded:
    """Rows of several encoded parts, one part after the other, each copied once, to where it stays."""
    joined: Encoded = {}
    for name in sources[0][0] if sources else ():
        widest = max((part[name] for part, _ in sources), key=lambda value: value.shape[1:].numel())
        joined[name] = widest.new_empty((sum(len(rows) for _, rows in sources), *widest.shape[1:]))
    first = 0
    for part, rows in sources:
        _write(part, rows, {name: value[first : first + len(rows)] for name, value in joined.items()})
        first += len(rows)
    return joined


def _write(part: Encoded, rows: Tensor, room: Encoded) -> None:
    """Copy rows of an encoded part into tensors of as many rows, which may have room for more captions than it has."""
    for name, value in part.items():
        space = room[name]
        if value.shape[1:] == space.shape[1:]:
            torch.index_select(value, 0, rows, out=space)
        else:  # [rows, captions, tokens]
            captions = value[rows]
            space[:, : value.shape[1]] = captions
            space[:, value.shape[1] :] = captions[:, :1]


class EncodedSplits(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Retain rows followed by unlearn rows, fetched as whole batches.

    A batch holds the encoded tensors plus `index [n]` (place in this dataset) and `is_unlearn [n]` bool.
    """

    def __init__(self, retain: EncodedSplit | None, unlearn: EncodedSplit | None) -> None:
        self.splits = [split for split in (retain, unlearn) if split is not None and len(split)]
        self.retain = len(retain) if retain is not None else 0
        self.unlearn = len(unlearn) if unlearn is not None else 0

    def __len__(self) -> int:
        return self.retain + self.unlearn

    @property
    def nbytes(self) -> int | None:
        """Bytes of memory the encoded rows take; None if some are encoded when asked for."""
        sizes = [split.nbytes for split in self.splits]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def on(self, device: torch.device) -> "EncodedSplits":
        """The same rows, those kept in memory on `device`, where batches are then put together."""
        moved = copy(self)
        moved.splits = [split.on(device) for split in self.splits]
        return moved

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """One batch; PyTorch's loader calls this with all indices of a batch at once."""
        wanted = torch.tensor(indices)
        of_unlearn = wanted >= self.retain
        retained = len(wanted) - int(of_unlearn.sum())
        if not of_unlearn[retained:].all():  # unlike the batches of `SplitSampler`
            order = of_unlearn.int().argsort(stable=True)
            grouped = self.__getitems__(wanted[order].tolist())
            back = to_device(order.argsort(), grouped["index"].device)
            return {name: value[back] for name, value in grouped.items()}
        index = to_device(wanted, self.splits[0].device)  # one copy, for every tensor of both splits
        places = ((index[:retained], self.retain), (index[retained:] - self.retain, self.unlearn))
        rows = zip(self.splits, (place for place, size in places if size), strict=True)
        batch = _gather([split.source(place) for split, place in rows if len(place)])
        return {**batch, "index": index, "is_unlearn": _follow(retained, len(wanted), index.device)}


@lru_cache(maxsize=8)
def _follow(retained: int, size: int, device: torch.device) -> Tensor:
    """`[size]` bool, true from `retained` on: one mask for all batches, by which more is kept."""
    with torch.inference_mode(False):
        return torch.arange(size, device=device) >= retained


def as_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The collator of `EncodedSplits`: its batches come ready."""
    return batch
