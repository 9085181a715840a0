"""Datasets whose batches come ready: one indexing operation where they fit in memory, decoded on the fly elsewhere."""

from collections.abc import Iterator, Sequence
from copy import copy

import torch
from datasets import Dataset, Image
from torch import Tensor
from tqdm.auto import tqdm

from hf_unlearn.data.inputs import ContrastiveInputs, Encoded

# A split whose encoding needs no more than this is decoded once and kept in memory.
RESIDENT_BYTES = 4 * 2**30
ENCODE_ROWS = 512


class EncodedSplit:
    """The rows of one split as encoded tensors, kept in memory if they fit and encoded when asked for if not.

    Args:
        dataset: rows in the schema of `hf_unlearn.data`.
        inputs: how rows are encoded.
        resident_bytes: the most memory to keep them in.
    """

    def __init__(self, dataset: Dataset, inputs: ContrastiveInputs, resident_bytes: int = RESIDENT_BYTES) -> None:
        columns = [name for name in ("image", "captions") if name in dataset.column_names]
        # Stored bytes, so that `encode` decodes them (upright, any mode, within the pixel limit) and nothing else does.
        self.dataset = dataset.select_columns(columns).cast_column("image", Image(decode=False)).with_format(None)
        self.inputs = inputs
        self.resident: Encoded | None = None
        row_bytes = sum(value.nbytes for value in inputs.encode(self.dataset[:1]).values()) if len(dataset) else 0
        if row_bytes * len(dataset) <= resident_bytes:
            starts = range(0, len(dataset), ENCODE_ROWS)
            bar = tqdm(starts, desc="Encoding", unit=" batches", leave=False, delay=2)
            self.resident = concatenate([inputs.encode(self.dataset[i : i + ENCODE_ROWS]) for i in bar])

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def nbytes(self) -> int | None:
        """Bytes of memory the encoded rows take; None if they are encoded when asked for."""
        return None if self.resident is None else sum(value.nbytes for value in self.resident.values())

    def on(self, device: torch.device) -> "EncodedSplit":
        """The same split with the rows it keeps on `device`; the original keeps its own."""
        moved = copy(self)
        if self.resident is not None:
            moved.resident = {name: value.to(device) for name, value in self.resident.items()}
        return moved

    def rows(self, indices: Sequence[int]) -> Encoded:
        """The encoded rows at `indices`, in that order."""
        if self.resident is not None:
            index = torch.as_tensor(indices)
            return {name: value[index] for name, value in self.resident.items()}
        return self.inputs.encode(self.dataset[list(indices)])

    def batches(self, size: int, indices: Sequence[int] | None = None) -> Iterator[Encoded]:
        """All rows (or those at `indices`) in order, `size` at a time."""
        indices = range(len(self)) if indices is None else indices
        for start in range(0, len(indices), size):
            yield self.rows(indices[start : start + size])


def concatenate(parts: Sequence[Encoded]) -> Encoded:
    """Join encoded parts; caption tensors of different widths are widened by repeating their first caption."""
    joined: Encoded = {}
    for name in parts[0] if parts else ():
        values = [part[name] for part in parts]
        if values[0].dim() == 3:  # [rows, captions, tokens]
            width = max(value.shape[1] for value in values)
            values = [torch.cat([v, v[:, :1].expand(-1, width - v.shape[1], -1)], dim=1) for v in values]
        joined[name] = torch.cat(values)
    return joined


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
        index = torch.tensor(indices)
        parts, places, first = [], [], 0
        for split in self.splits:
            place = ((index >= first) & (index < first + len(split))).nonzero().flatten()
            if len(place):
                parts.append(split.rows((index[place] - first).tolist()))
                places.append(place)
            first += len(split)
        order = torch.cat(places).argsort()
        batch = {name: value[order] for name, value in concatenate(parts).items()}
        return {**batch, "index": index, "is_unlearn": index >= self.retain}


def as_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The collator of `EncodedSplits`: its batches come ready."""
    return batch
