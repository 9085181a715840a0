"""What a Trainer does about requests that its model has been through: it teaches none of their rows again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel

from hf_unlearn.data.earlier_rows import REQUEST_COLUMN
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.errors import UserError, listed
from hf_unlearn.hub.history import PastRequests

EARLIER = "earlier"  # the split of rows of earlier requests
REMEDY = "make the splits with make_splits(data, ..., past=past_rows(MODEL, data)), which keeps them out"


@dataclass(frozen=True, eq=False)
class EarlierRequests:
    """Rows of earlier requests, and how far the model that a training starts from has moved since.

    Attributes:
        rows: All that the data has, encoded or not; None where it has none.
        risen: `[n]` by how much the mean alignment of each row's request lies above what its own run left, a cosine.
        unseen_risen: By how much that of held-out rows lies above where the original model had them.
    """

    rows: Dataset | EncodedSplit | None
    risen: npt.NDArray[np.float64]
    unseen_risen: float = 0.0

    @classmethod
    def of(cls, past: PastRequests, earlier: Dataset) -> "EarlierRequests":
        """Of what the records of the model say, and the split `earlier` of `make_splits`."""
        risen = np.array([past.risen(number) for number in earlier[REQUEST_COLUMN]], dtype=np.float64)
        return cls(earlier.remove_columns(REQUEST_COLUMN), risen, past.unseen_risen)


def find_earlier_requests(
    splits: Mapping[str, object], model: PreTrainedModel
) -> tuple[Mapping[str, object], EarlierRequests | None]:
    """The splits without rows of earlier requests, and these, as `make_splits` found them; None if it found none.

    Args:
        splits: What a Trainer was given.
        model: Its model, which knows where it was loaded from.

    Raises:
        UserError: Rows of an earlier request are among those to retain or held out, or it cannot be told.
    """
    earlier = splits.get(EARLIER) if isinstance(splits, Mapping) else None
    if isinstance(earlier, EarlierRequests):  # a run has looked
        return {name: split for name, split in splits.items() if name != EARLIER}, earlier
    base = getattr(model.config, "_name_or_path", None)
    if not isinstance(splits, DatasetDict) or not base or not Path(base).is_dir():
        return splits, None  # splits that a run encoded, which has looked; or a model without records
    past = PastRequests.read(base)
    if not past.runs:
        return splits, None
    if earlier is not None:
        rest = DatasetDict({name: split for name, split in splits.items() if name != EARLIER})
        return rest, EarlierRequests.of(past, earlier)
    if not all(isinstance(split, Dataset) for split in splits.values()):
        raise UserError(f"the model has been through earlier requests, whose rows cannot be told in a stream; {REMEDY}")
    try:
        found = past.find(splits)
    except UserError as error:
        raise UserError(
            f"the model has been through earlier requests, and a Trainer cannot tell their rows; {REMEDY}"
        ) from error
    again = [
        row for name, of_split in (found.requested if found else {}).items() if name != "unlearn" for row in of_split
    ]
    if again:
        raise UserError(
            f"{len(again)} rows of the splits were unlearned from this model before, and would be taught again "
            f"({listed(again)}); {REMEDY}"
        )
    return splits, EarlierRequests(None, np.empty(0), past.unseen_risen)
