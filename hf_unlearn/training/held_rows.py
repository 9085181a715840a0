"""Rows of earlier requests, held where their own runs left them, whatever a method does about the request at hand."""

from typing import ClassVar, cast

import numpy as np
import torch
from datasets import DatasetDict
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_unlearn.data.earlier_rows import REQUEST_COLUMN
from hf_unlearn.data.encoded import EncodedSplit, EncodedSplits
from hf_unlearn.data.preprocessing import ContrastivePreprocessor, ImageTextPreprocessor
from hf_unlearn.hub.history import PastRequests
from hf_unlearn.hub.request_levels import Levels, request_statuses
from hf_unlearn.models.contrastive import contrastive_terms, evaluation_mode
from hf_unlearn.models.origin import origin_of, remember_training
from hf_unlearn.records.schemas import RequestStatus
from hf_unlearn.training.batch import BatchTrainer
from hf_unlearn.training.earlier_requests import EARLIER, EarlierRequests
from hf_unlearn.training.rows import rows_hash
from hf_unlearn.training.targets import own_alignments

HELD_WEIGHT = 20.0  # ten times as much keeps Fine-Tune at 4e-3 from learning retain again
HELD_SHARE = 8  # rows of a batch for one that is held beside it
NOT_HELD = (
    "This method cannot hold rows of earlier requests where their own runs left them; where they are now is measured."
)


class HeldRows:
    """A term that every method's loss is given where its model has been through earlier requests.

    `w mean_i (c_i - t_i)^2` with the cosine c_i of a held row. Its target t_i is the cosine under the model that
    training starts from, less what the mean of its request has risen by since the request's own run. A request that
    came back is so brought down again, one that did not stays, and no rise adds up from run to run.

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

    def distance(self, model: nn.Module, place: tuple[int, ...], chunk_size: int | None = None) -> Tensor:
        """Scalar, with gradient: the weighted mean squared distance of some rows, drawn anew at every place.

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
        return HELD_WEIGHT * (terms.cosine - targets[:, 0]).square().mean()


class HoldingTrainer(BatchTrainer):
    """A `Trainer` that holds the rows of earlier requests, if its model has been through any.

    Attributes:
        holds_earlier: whether the steps of a method can; not where what they learn is taken away, or none are made.
        earlier: what is known of the requests; None for a model that has been through none.
        held: the rows that are held; None where there are none to hold.
    """

    holds_earlier: ClassVar[bool] = True
    earlier: EarlierRequests | None
    held: HeldRows | None = None
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

    def remember_training(self) -> None:
        """Note in the model that its weights are not those beside its records any more, if rows are unlearned."""
        if self.rows.unlearn_to_retain:
            remember_training(self.model, self.args.title)

    def held_distance(self) -> Tensor:
        """`HeldRows.distance` at this step."""
        assert self.held is not None
        place = (self.state.global_step, self._micro_step, self.args.process_index)
        return self.held.distance(self.model_wrapped, place, self.args.forward_chunk_size)

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
    def holding_notes(self) -> list[str]:
        """What a reader of the model's card must know of it."""
        return [NOT_HELD] if self.earlier is not None and self.earlier.rows and not self.holds_earlier else []
