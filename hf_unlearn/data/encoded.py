"""Datasets whose batches come ready: one indexing operation where they fit in memory, decoded on the fly elsewhere."""

from collections.abc import Sequence

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from hf_unlearn.data.inputs import ContrastiveInputs, Encoded

# Encoded splits up to this size are decoded once and kept in memory.
RESIDENT_BYTES = 4 * 2**30
ENCODE_ROWS = 512


def encode_dataset(dataset: Dataset, inputs: ContrastiveInputs, description: str = "Encoding") -> Encoded:
    """Encode every row of a dataset once, with a progress bar."""
    parts: list[Encoded] = []
    for start in tqdm(range(0, len(dataset), ENCODE_ROWS), desc=description, leave=False, disable=len(dataset) < 2048):
        parts.append(inputs.encode(dataset[start : start + ENCODE_ROWS]))
    return concatenate(parts)


def concatenate(parts: Sequence[Encoded]) -> Encoded:
    """Join encoded parts; caption tensors of different widths are widened by repeating their first caption."""
    joined = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if values[0].dim() == 3:  # captions
            width = max(value.shape[1] for value in values)
            values = [torch.cat([v, v[:, :1].expand(-1, width - v.shape[1], -1)], dim=1) for v in values]
        joined[name] = torch.cat(values)
    return joined


class EncodedSplits(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Retain rows followed by unlearn rows, fetched as whole encoded batches.

    A batch holds the encoded tensors plus `index [n]` (place in this dataset) and `is_unlearn [n]` bool.

    Args:
        retain: rows to keep.
        unlearn: rows to remove; may be empty.
        inputs: how rows are encoded.
        resident_bytes: splits whose encoding needs no more than this are kept in memory.
    """

    def __init__(
        self,
        retain: Dataset | None,
        unlearn: Dataset | None,
        inputs: ContrastiveInputs,
        resident_bytes: int = RESIDENT_BYTES,
    ) -> None:
        self.splits = [split for split in (retain, unlearn) if split is not None and len(split)]
        self.inputs = inputs
        self.retain = len(retain) if retain is not None else 0
        self.unlearn = len(unlearn) if unlearn is not None else 0
        row = inputs.encode(self.splits[0][:1])
        row_bytes = sum(value.nbytes for value in row.values())
        self.resident: Encoded | None = None
        if row_bytes * len(self) <= resident_bytes:
            self.resident = concatenate([encode_dataset(split, inputs) for split in self.splits])

    def __len__(self) -> int:
        return self.retain + self.unlearn

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """One batch; called by PyTorch's loader with all indices of a batch at once."""
        index = torch.tensor(indices)
        if self.resident is not None:
            batch = {name: value[index] for name, value in self.resident.items()}
        else:
            batch = self._decode(indices)
        return {**batch, "index": index, "is_unlearn": index >= self.retain}

    def _decode(self, indices: list[int]) -> Encoded:
        """Encode the rows of one batch, split by split, in the order asked for."""
        parts, places = [], []
        first = 0
        for split in self.splits:
            chosen = [(place, i - first) for place, i in enumerate(indices) if first <= i < first + len(split)]
            if chosen:
                parts.append(self.inputs.encode(split[[row for _, row in chosen]]))
                places.extend(place for place, _ in chosen)
            first += len(split)
        order = torch.tensor(places).argsort()
        return {name: value[order] for name, value in concatenate(parts).items()}


def as_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The collator of `EncodedSplits`: its batches come ready."""
    return batch
