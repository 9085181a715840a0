"""What a Trainer does about requests that its model has been through: it teaches none of their rows again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel

from hf_unlearn.data.earlier_rows import with_earlier
from hf_unlearn.errors import UserError, listed
from hf_unlearn.hub.history import PastRequests

REMEDY = "make the splits with make_splits(data, ..., past=past_rows(MODEL, data)), which keeps them out"


def keep_out_earlier_rows(splits: Mapping[str, Any], model: PreTrainedModel, seed: int) -> Mapping[str, Any]:
    """The splits with rows of earlier requests unlearned along, as `make_splits` found them, or found to have none.

    Args:
        splits: What a Trainer was given.
        model: Its model, which knows where it was loaded from.
        seed: Draws the rows of earlier requests, where there are many.

    Raises:
        UserError: Rows of an earlier request are among those to retain or held out, or it cannot be told.
    """
    base = getattr(model.config, "_name_or_path", None)
    if not isinstance(splits, DatasetDict) or not base or not Path(base).is_dir():
        return splits  # splits that a run encoded, which has looked; or a model without records
    past = PastRequests.read(base)
    if not past.runs:
        return splits
    if "earlier" in splits:
        unlearn = with_earlier(splits["unlearn"], splits["earlier"], len(splits["retain"]), seed)
        return DatasetDict({name: split for name, split in splits.items() if name != "earlier"} | {"unlearn": unlearn})
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
    return splits
