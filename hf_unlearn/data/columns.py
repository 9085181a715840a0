"""Columns of a dataset as Arrow holds them: looked at and replaced without touching the others."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hf_unlearn.errors import UserError


def is_text(kind: pa.DataType) -> bool:
    """Tell whether an Arrow type holds strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def blank(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Mark the texts that are null or nothing but white space."""
    return np.asarray(pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), True), dtype=bool)


def id_texts(column: pa.Array | pa.ChunkedArray, source: str, name: str) -> pa.Array | pa.ChunkedArray:
    """The ids in a column as text, integers by their digits; so read everywhere, or a requested row would be missed.

    Args:
        column: The column.
        source: What it is called, for the message.
        name: How the message calls the data.

    Raises:
        UserError: It holds neither strings nor integers.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise UserError(
            f"The id column {source!r} of {name} holds {column.type}, neither strings nor integers (--id_column)."
        )
    return pc.cast(column, pa.string())


def captions_are_lists(kind: pa.DataType, source: str, name: str) -> bool:
    """Whether a column of captions has a list of them for each row, or one; integers are captions by their digits.

    Args:
        kind: The column's type.
        source: What it is called, for the message.
        name: How the message calls the data.

    Raises:
        UserError: It holds neither strings nor integers nor lists of them.
    """
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    text = kind.value_type if is_list else kind
    if not (is_text(text) or pa.types.is_integer(text)):
        raise UserError(
            f"The caption column {source!r} of {name} holds {kind}, neither strings nor lists of strings "
            "(--caption_column)."
        )
    return is_list


def arrow_column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """Return a column as Arrow holds it, without touching the others."""
    return dataset.select_columns(name).with_format("arrow")[:].column(name)


def replace_column(dataset: Dataset, name: str, column: pa.ChunkedArray, feature: object) -> Dataset:
    """Put another column in a column's place."""
    added = dataset.add_column(f"new_{name}", column, feature=feature)
    return added.remove_columns(name).rename_column(f"new_{name}", name)
