"""What a Trainer does about requests that its model has been through.

It teaches none of their rows again, and holds them where their own runs left them, whatever a method does about the
request at hand.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_unlearn.data.earlier_rows import EARLIER, REQUEST_COLUMN
from hf_unlearn.data.encoded import EncodedSplit, EncodedSplits
from hf_unlearn.data.preprocessing import ContrastivePreprocessor, ImageTextPreprocessor
from hf_unlearn.errors import UserError, listed
from hf_unlearn.hub.past_requests import PastRequests
from hf_unlearn.hub.request_levels import Levels, request_statuses
from hf_unlearn.models.contrastive import contrastive_terms, evaluation_mode
from hf_unlearn.models.origin import Origin, origin_of, remember_training
from hf_unlearn.records.schemas import RequestStatus
from hf_unlearn.training.batch import BatchTrainer
from hf_unlearn.training.rows import rows_hash
from hf_unlearn.training.standing_excess import StandingExcess
from hf_unlearn.training.targets import own_alignments

logger = logging.getLogger(__name__)

REMEDY = "make the splits with make_splits(data, ..., past=past_rows(MODEL, data)), which keeps them out"
HELD_WEIGHT = 20.0  # ten times as much keeps Fine-Tune at 4e-3 from learning retain again
HELD_SHARE = 8  # rows of a batch for one that is held beside it
NOT_HELD = (
    "This method cannot hold rows of earlier requests where their own runs left them; where they are now is measured."
)


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


class HeldRows:
    """A term that every method's loss is given where its model has been through earlier requests.

    `w mean_i (c_i - t_i)^2` with the cosine c_i of a held row. Its target t_i is the cosine under the model that
    training starts from, less what the mean of its request has risen by since the request's own run, and less what rows
    stand above their targets (`StandingExcess`). A request that came back is so brought down again, one that did not
    stays, and no rise adds up from run to run.

    Rows are embedded by themselves, in evaluation mode: none is a candidate of another sample's, batch norms do not
    learn from them, and no queue takes them.

    Args:
        earlier: the rows, encoded.
        model: what training starts from, on its device.
        preprocessor: how the rows were encoded.
        batch_size: of a step; an eighth as many held rows are drawn beside it.
        seed: of the draws.
    """

    def __init__(
        self,
        earlier: EarlierRequests,
        rows: EncodedSplit,
        model: PreTrainedModel,
        preprocessor: ContrastivePreprocessor,
        batch_size: int,
        seed: int,
    ) -> None:
        own = own_alignments(model, preprocessor, rows)
        self.targets = (own - torch.from_numpy(earlier.risen)[:, None].to(own)).to(model.device)
        self._rows, self._preprocessor, self._seed = rows, preprocessor, seed
        self._each = min(len(rows), max(2, batch_size // HELD_SHARE))

    def excess(self, model: nn.Module, place: tuple[int, ...], chunk_size: int | None = None) -> Tensor:
        """`[rows]`, with gradient: how far some rows, drawn anew at every place, lie above their targets.

        Args:
            model: the model, wrapped or not.
            place: numbers of the step, and of what else tells draws apart.
            chunk_size: as `contrastive_terms` takes it.
        """
        drawn = np.random.default_rng((self._seed, *place))
        chosen = drawn.permutation(len(self._rows))[: self._each]
        seed = int(drawn.integers(2**31))
        encoded = {name: value.to(self.targets.device) for name, value in self._rows.rows(chosen.tolist()).items()}
        targets = self.targets[torch.from_numpy(chosen).to(self.targets.device)]
        if isinstance(self._preprocessor, ImageTextPreprocessor):
            caption, _ = self._preprocessor.draw(encoded["caption_counts"], seed)
            targets = targets.gather(1, caption[:, None])
        with evaluation_mode(model):
            terms = contrastive_terms(model, self._preprocessor.batch(encoded, seed), chunk_size)
        return terms.cosine - targets[:, 0]


class HoldingTrainer(BatchTrainer):
    """A `Trainer` that holds the rows of earlier requests, if its model has been through any.

    Attributes:
        holds_earlier: whether the steps of a method can; not where what they learn is taken away, or none are made.
        held_weight: of the mean squared distance of held rows from their targets, beside the method's own loss.
        earlier: what is known of the requests; None for a model that has been through none.
        held: the rows that are held; None where there are none to hold.
        trainings: how often the weights were trained.
    """

    holds_earlier: ClassVar[bool] = True
    held_weight: ClassVar[float] = HELD_WEIGHT
    earlier: EarlierRequests | None
    held: HeldRows | None = None
    trainings: int = 0
    source_splits: DatasetDict | None
    _began: Levels | None = None

    @property
    def unseen_risen(self) -> float:
        """By how much held-out rows lie above where the model before any request had them, a cosine."""
        return 0.0 if self.earlier is None else self.earlier.unseen_risen

    def begin_holding(self) -> None:
        """Measure where the rows are, under the model that training starts from, once."""
        if self._began is not None:
            return
        self._began = self._levels()
        if not self.holds_earlier or self.earlier is None or not self.earlier.rows:
            return
        rows, batches = self.rows.encoded(self.earlier.rows), self.train_dataset
        if isinstance(batches, EncodedSplits):
            rows = rows.on(batches.splits[0].device)
        size, model = self.args.per_device_train_batch_size, cast("PreTrainedModel", self.model)
        self.held = HeldRows(self.earlier, rows, model, self.preprocessor, size, self.args.seed)

    def remember_training(self, resumed: bool = False) -> None:
        """Note in the model that its weights are not those beside its records any more, if rows are unlearned.

        Args:
            resumed: Whether it goes on with a training that was counted, in this process or an earlier one.
        """
        self.trainings = max(1, self.trainings + (not resumed))
        if self.rows.unlearns:
            remember_training(self.model, self.args.title)

    def held_distance(self, excess: StandingExcess) -> Tensor:
        """Scalar, with gradient: the weighted mean squared distance of some held rows from their targets."""
        assert self.held is not None
        place = (self.state.global_step, self._micro_step, self.args.process_index)
        above = self.held.excess(self.model_wrapped, place, self.args.forward_chunk_size) + excess.lowered["held"]
        excess.see("held", above.detach().mean(), self.state, self.args.gradient_accumulation_steps)
        return self.held_weight * above.square().mean()

    def request_statuses(self) -> tuple[RequestStatus, ...]:
        """Where every request stands under the model as it is, for its record; nothing without held-out rows."""
        ended, splits = self._levels(), self.source_splits
        if ended is None or splits is None:
            return ()
        numbers = np.asarray(splits[EARLIER][REQUEST_COLUMN] if EARLIER in splits else [], dtype=np.int64)
        origin = origin_of(self.model)
        past = PastRequests.read(origin.name, origin.revision)
        began = self._began or ended  # of a model that was not trained
        return request_statuses(past, numbers, began, ended, self.args.method, len(splits["unlearn"]))

    def _levels(self) -> Levels | None:
        splits = self.source_splits
        if splits is None or self.is_fsdp_enabled or not (splits.get("unlearn") and splits.get("validation")):
            return None
        model = cast("PreTrainedModel", self.model)
        measured = [self.rows.unlearn(self.train_dataset), self.rows.encoded(splits["validation"])]
        measured += [self.rows.encoded(splits[EARLIER])] if splits.get(EARLIER) else []
        own = (own_alignments(model, self.preprocessor, split) for split in measured)
        return Levels(*(torch.nanmean(alignments, 1).double().numpy() for alignments in own))

    @property
    def held_identity(self) -> dict[str, str]:
        """What decides the weights beside the splits of the request at hand."""
        return {} if self.earlier is None or not self.earlier.rows else {"earlier rows": rows_hash(self.earlier.rows)}

    @property
    def repetition_note(self) -> str | None:
        """That the weights were trained more than once, which the steps and the time of a record do not show."""
        if self.trainings < 2:
            return None
        return (
            f"The weights were trained {self.trainings} times with these settings, each time from where they were; "
            "steps and time are those of the last."
        )

    @property
    def holding_notes(self) -> list[str]:
        """What a reader of the model's card must know of it."""
        return [NOT_HELD] if self.earlier is not None and self.earlier.rows and not self.holds_earlier else []
