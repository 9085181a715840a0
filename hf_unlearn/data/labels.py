"""Classes: one numbering for all splits, by name."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict

from hf_unlearn.data.columns import arrow_column, blank, is_text, replace_column
from hf_unlearn.errors import UserError, listed


def align_classes(splits: Mapping[str, Dataset], column: str = "label", name: str = "the data") -> DatasetDict:
    """Number the classes of a column of ClassLabels alike in all splits: by their names, sorted where they differ.

    Args:
        splits: Rows; splits whose column holds no ClassLabel, or that lack it, are left alone.
        column: The column.
        name: How messages call the data.

    Returns:
        The splits, the same ones where their classes are numbered alike already.

    Raises:
        UserError: Two splits have no class in common, so that their names cannot mean the same.
    """
    kinds = {split: rows.features.get(column) for split, rows in splits.items()}
    named = {split: kind.names for split, kind in kinds.items() if isinstance(kind, ClassLabel)}
    if len(set(map(tuple, named.values()))) <= 1:
        return DatasetDict(splits)
    first, *others = named
    strange = [split for split in others if not set(named[split]) & set(named[first])]
    if strange:
        raise UserError(
            f"The column {column!r} of {name} has classes {listed(named[first])} in {first} and "
            f"{listed(named[strange[0]])} in {strange[0]}, none of them the same; name them alike in all splits."
        )
    feature = ClassLabel(names=sorted(set().union(*named.values())))
    aligned = dict(splits)
    for split, names in named.items():
        places = pa.array([feature.str2int(label) for label in names], pa.int64())
        old = arrow_column(splits[split], column)
        known = pc.take(places, pc.if_else(pc.less(old, 0), pa.scalar(None, old.type), old))
        aligned[split] = replace_column(splits[split], column, pc.fill_null(known, -1), feature)
    return DatasetDict(aligned)


def encode_labels(splits: DatasetDict, name: str) -> DatasetDict:
    """Make `label` one ClassLabel over all splits: names sorted, numbers by value; -1 where a row has no class.

    Rows without a class are those with a number below 0, and those of a split where nobody has one.

    Raises:
        UserError: Some labels of a split are missing, or they are neither strings nor integers, or two splits have no
            class in common.
    """
    if all(isinstance(dataset.features.get("label"), ClassLabel) for dataset in splits.values()):
        return align_classes(splits, name=name)
    labelled = {split: dataset for split, dataset in splits.items() if "label" in dataset.features}
    columns = {split: _named(dataset) for split, dataset in labelled.items()}
    missing = {
        split: blank(column) if is_text(column.type) else np.asarray(pc.is_null(column), dtype=bool)
        for split, column in columns.items()
    }
    given = {split: column for split, column in columns.items() if not missing[split].all()}
    kinds = {column.type for column in given.values()}
    usable = len(kinds) == 1 and all(is_text(kind) or pa.types.is_integer(kind) for kind in kinds)
    if not usable or any(missing[split].any() for split in given):
        raise UserError(
            f"The labels of {name} hold {listed(kinds)}: give strings or integers in all splits, none missing "
            "(--label_column)."
        )
    found = {value for column in given.values() for value in pc.unique(column).to_pylist()}
    classes = sorted((value for value in found if not (isinstance(value, int) and value < 0)), key=_by_value)
    feature = ClassLabel(names=[str(value) for value in classes])
    values = pa.array(classes, next(iter(kinds)))
    encoded = {}
    for split, column in columns.items():
        numbers = pa.chunked_array([pa.array(np.full(len(column), -1))])
        if split in given:
            numbers = pc.fill_null(pc.cast(pc.index_in(column, values), pa.int64()), -1)
        encoded[split] = replace_column(splits[split], "label", numbers, feature)
    return DatasetDict({**splits, **encoded})


def _named(dataset: Dataset) -> pa.ChunkedArray:
    """The labels, by name where they are numbered: another split may have names alone."""
    column, kind = arrow_column(dataset, "label"), dataset.features["label"]
    if not isinstance(kind, ClassLabel):
        return column
    names = pa.array(kind.names, pa.string())
    return pc.take(names, pc.if_else(pc.less(column, 0), pa.scalar(None, column.type), column))


def _by_value(label: int | str) -> tuple[int, str]:
    """Numbers, written out or not, in their order, and then texts."""
    text = str(label)
    return (int(text), text) if text.isascii() and text.isdigit() and len(text) < 20 else (10**20, text)
