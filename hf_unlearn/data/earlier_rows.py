"""Rows of requests that a model has been through: kept out of its splits, and held where their own runs left them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

EARLIER = "earlier"  # the split of rows of earlier requests on the same model
REQUEST_COLUMN = "request"  # of that split: the number of the request that named a row


@dataclass(frozen=True)
class PastRows:
    """Where rows of this data were in the unlearning runs that the base model has been through.

    Attributes:
        requested: By split, `train` for rows that can be unlearned: the id of each row that an earlier request named,
            and that request's number, from 1; of several, the last.
        held_out: Ids of the rows among those of `train` that the first run held out, by the name of their split; a
            split that is not named was not recorded, and is drawn.
        notes: What a reader must know of rows that were not found, or not as they were recorded.
        found: By a request's number, its rows that are in the data, each as its split and its id: also those that a
            later request named again.
    """

    requested: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    held_out: Mapping[str, Collection[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    found: Mapping[int, Collection[tuple[str, str]]] = field(default_factory=dict)


def marked(
    ids: pa.Array | pa.ChunkedArray | Sequence[str] | NDArray[np.str_], wanted: Collection[str]
) -> NDArray[np.bool_]:
    """`[n]` which of the ids are wanted."""
    column = ids if isinstance(ids, (pa.Array, pa.ChunkedArray)) else pa.array(ids, pa.string())
    return np.asarray(pc.is_in(column, value_set=pa.array(list(wanted), column.type)), dtype=bool)
