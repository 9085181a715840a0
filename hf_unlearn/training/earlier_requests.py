"""What a Trainer does about requests that its model has been through: it teaches none of their rows again."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from datasets import Dataset, DatasetDict, IterableDataset
from transformers import PreTrainedModel

from hf_unlearn.data.earlier_rows import REQUEST_COLUMN
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.errors import UserError, listed
from hf_unlearn.hub.history import PastRequests
from hf_unlearn.models.origin import Origin, origin_of

logger = logging.getLogger(__name__)

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
        UserError: Rows of an earlier request are among those to retain or held out, or rows that the first run held
            out among those to retain, or it cannot be told; or the model was trained since it was loaded.
    """
    if not isinstance(splits, Mapping):
        return splits, None  # nothing that a Trainer takes
    earlier = splits.get(EARLIER)
    rest = {name: split for name, split in splits.items() if name != EARLIER}
    if isinstance(earlier, EarlierRequests):  # a run has looked
        return rest, earlier
    if not any(isinstance(split, Dataset | IterableDataset) for split in splits.values()):
        return splits, None  # splits that a run encoded, which has looked
    origin = origin_of(model)
    if origin.trained_by is not None:
        raise UserError(
            f"{origin.trained_by} has unlearned rows from this model already, and its records are not beside it; save "
            "it with trainer.save_model(FOLDER), and load what goes on with load_encoder(FOLDER)"
        )
    past = _read(origin)
    if not past.runs:
        return splits, None
    if not all(isinstance(split, Dataset) for split in splits.values()):
        raise UserError(f"the model has been through earlier requests, whose rows cannot be told in a stream; {REMEDY}")
    _refuse_again(past if earlier is None else past.comparable, DatasetDict(rest), earlier is not None)
    if earlier is None:
        return splits, EarlierRequests(None, np.empty(0), past.unseen_risen)
    return (DatasetDict(rest) if isinstance(splits, DatasetDict) else rest), EarlierRequests.of(past, earlier)


def _read(origin: Origin) -> PastRequests:
    """The records beside the weights that a model was loaded from; none for a model that was made here."""
    if origin.name is None:
        return PastRequests()
    if Path(origin.name).is_dir() or origin.revision is not None:  # a folder, or a commit on the Hub
        return PastRequests.read(origin.name, origin.revision)
    logger.warning(
        "The folder %s that the model was loaded from is not there any more: whether it has been through earlier "
        "requests, whose rows must not be taught again, cannot be seen.",
        origin.name,
    )
    return PastRequests()


def _refuse_again(past: PastRequests, splits: DatasetDict, is_known: bool) -> None:
    """Refuse to train on rows that were unlearned, or held out, before.

    Args:
        past: What the model has been through.
        splits: All but the rows of earlier requests.
        is_known: Whether these rows were found before, so that few are left to be found here.
    """
    try:
        found = past.find(splits, allow_unfound_rows=is_known)
    except UserError as error:
        raise UserError(
            f"the model has been through earlier requests, and a Trainer cannot tell their rows; {REMEDY}"
        ) from error
    if found is None:
        return
    again = [row for name, of_split in found.requested.items() if name != "unlearn" for row in of_split]
    if again:
        raise UserError(
            f"{len(again)} rows of the splits were unlearned from this model before, and would be taught again "
            f"({listed(again)}); {REMEDY}"
        )
    held_out = sorted(row for of_split in found.held_out.values() for row in of_split)
    if held_out:
        raise UserError(
            f"{len(held_out)} rows of retain were held out by the first run on this model ({listed(held_out)}), and "
            f"would be no held-out rows any more; {REMEDY}"
        )
