"""Rows that repeat a picture under one id, each with a caption of it: one row with all its captions."""

from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hf_unlearn.data.columns import arrow_column, is_text


def join_captions(dataset: Dataset) -> Dataset:
    """Make one row of the rows that share an id and a picture, as data sets of captions hold them.

    Args:
        dataset: Rows with `image`, `captions` (texts or lists of them) and `id`.

    Returns:
        The first row of each id, in order; `captions`, and other columns that differ among the rows of an id, become
        lists of their distinct values. The dataset itself where no id is repeated, or one stands for two pictures.
    """
    ids = arrow_column(dataset, "id").combine_chunks()
    usable = (is_text(ids.type) or pa.types.is_integer(ids.type)) and not ids.null_count
    if not usable or len(pc.unique(ids)) == len(ids):
        return dataset
    group = np.asarray(pc.index_in(ids, pc.unique(ids)))
    first = np.unique(group, return_index=True)[1]
    if not _are_one_picture(dataset, group):
        return dataset
    rows = dataset.select(first)
    for name in dataset.column_names:
        if name in ("image", "id"):
            continue
        values = _values(arrow_column(dataset, name).to_pylist(), group, len(first))
        if name == "captions" or any(len(several) > 1 for several in values):
            rows = rows.remove_columns(name).add_column(name, pa.array(values))
    return rows


def _are_one_picture(dataset: Dataset, group: np.ndarray) -> bool:
    """Whether all rows of each group hold the same file."""
    seen: dict[int, bytes] = {}
    batches = dataset.select_columns("image").with_format("arrow").iter(batch_size=64)
    files = (file or {} for batch in batches for file in batch.column("image").to_pylist())
    for which, file in zip(group.tolist(), files, strict=True):
        path, content = str(file.get("path")), file.get("bytes")
        digest = blake2b(path.encode(errors="surrogateescape") if content is None else content).digest()
        if seen.setdefault(which, digest) != digest:
            return False
    return True


def _values(column: list[object], group: np.ndarray, groups: int) -> list[list[object]]:
    """The distinct values of each group, lists taken apart, in order."""
    found: list[list[object]] = [[] for _ in range(groups)]
    for which, value in zip(group.tolist(), column, strict=True):
        for each in value if isinstance(value, list) else [value]:
            if each not in found[which]:
                found[which].append(each)
    return found
