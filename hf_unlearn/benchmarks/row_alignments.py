"""The alignment of every row under a model, kept beside its weights: whatever is compared later is read off it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.files import write_atomically
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.records.codec import from_json, to_json
from hf_unlearn.training.rows import make_preprocessor
from hf_unlearn.training.targets import own_alignments

ROW_ALIGNMENTS_NAME = "row_alignments.json"


@dataclass(frozen=True)
class RowAlignments:
    """Alignments by row id.

    Attributes:
        ids: of the rows.
        alignment: mean cosine of each with its captions.
        captions: how many these are.
    """

    ids: tuple[str, ...]
    alignment: tuple[float, ...]
    captions: tuple[int, ...]

    def of(self, ids: Sequence[str]) -> npt.NDArray[np.float64]:
        """`[n]` alignment of some rows, in this order."""
        return np.asarray(self.alignment)[self._places(ids)]

    def mean(self, ids: Sequence[str]) -> float:
        """Mean cosine of the pairs of some rows, times 100, as the tables show it."""
        captions = np.asarray(self.captions)[self._places(ids)]
        return 100 * float(np.average(self.of(ids), weights=captions))

    def _places(self, ids: Sequence[str]) -> list[int]:
        place = {row: number for number, row in enumerate(self.ids)}
        return [place[row] for row in ids]

    def save(self, folder: Path) -> None:
        """Write them beside a model's weights."""
        write_atomically(folder / ROW_ALIGNMENTS_NAME, to_json(self))

    @classmethod
    def load(cls, folder: Path) -> "RowAlignments":
        """Read them from beside a model's weights."""
        return from_json(cls, (folder / ROW_ALIGNMENTS_NAME).read_text(encoding="utf-8"), ROW_ALIGNMENTS_NAME)


def row_alignments(folder: Path, rows: Dataset, data: DataConfig, device: torch.device) -> RowAlignments:
    """Embed rows of image-text pairs with a finished model.

    Args:
        folder: The model's.
        rows: In the library's schema, with ids.
        data: How they are encoded.
        device: Where to embed them.
    """
    model, processor = load_encoder(str(folder))
    preprocessor = make_preprocessor(model, processor, data)
    moved = model.to(device)  # type: ignore[arg-type]  # the stub of `to` lacks devices
    own = own_alignments(moved, preprocessor, EncodedSplit(rows, preprocessor, data.resident_bytes)).double().numpy()
    alignment = np.nanmean(own, axis=1).round(6)
    return RowAlignments(tuple(rows["id"]), tuple(alignment.tolist()), tuple(map(len, rows["captions"])))
