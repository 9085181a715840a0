"""What a training leaves: checksummed checkpoints, weights beside their record and card, a published repository."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_unlearn import files
from hf_unlearn.errors import UserError
from hf_unlearn.hub.publishing import PublishResult
from hf_unlearn.hub.trainer_push import leave_records, push_trainer, trainer_record
from hf_unlearn.models.adapters import is_adapted
from hf_unlearn.models.origin import refuse_folder_of_origin
from hf_unlearn.models.sharding import gather_whole
from hf_unlearn.models.weights import refuse_other_kind
from hf_unlearn.records.schemas import RequestStatus, UnlearningManifest
from hf_unlearn.training import checkpoints
from hf_unlearn.training.config import NO_PUSHED_CHECKPOINTS, UnlearningConfig

logger = logging.getLogger(__name__)


class SavingTrainer(Trainer):
    """A `Trainer` whose checkpoints can be trusted, and whose model is saved and published with its record and card.

    Attributes:
        source_splits: the rows it was given, unless they came encoded or as a stream.
    """

    args: UnlearningConfig
    model: PreTrainedModel
    source_splits: DatasetDict | None = None
    _seconds_before = 0.0  # of training, before it was resumed
    _started = 0.0
    _partial_folder: str | None = None

    @property
    def identity(self) -> Mapping[str, object]:
        """What identifies this training: a checkpoint of one that differs in it is not gone on from."""
        raise NotImplementedError

    def refuse_sources(self, folder: str | Path, what: str) -> None:
        """Refuse to write into the folder that the model was loaded from."""
        refuse_folder_of_origin(self.model, folder, what)

    def saved_keys(self) -> AbstractContextManager[None]:
        """Keys of requested pictures are not in the model while the block saves it; most models have none."""
        return nullcontext()

    def request_statuses(self) -> tuple[RequestStatus, ...]:
        """Where every request that the model has been through stands, as far as it was measured."""
        return ()

    def whole_model(self) -> PreTrainedModel:
        """The model without wrappers; where FSDP sharded it, a copy that is whole on every process.

        All processes must call it together.
        """
        return gather_whole(self.accelerator.unwrap_model(self.model))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights as `transformers.Trainer` does, with `unlearning.json` and the model card beside them.

        Raises:
            UserError: the folder is that of the model which training started from, cannot be written to, or holds an
                adapter where a whole model is saved, or the other way round.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        if not _internal_call:
            self.refuse_sources(folder, "save_model to")
            if self.args.should_save:
                files.refuse_unwritable(folder, "folder")
        refuse_other_kind(folder, is_adapted(self.model))
        with nullcontext() if _internal_call else self.saved_keys():
            super().save_model(output_dir, _internal_call)
        if _internal_call or not self.is_world_process_zero():
            return
        if self.source_splits is None:
            logger.warning(
                "%s has no record and no card: they describe the rows that were unlearned, and these came encoded or "
                "as a stream; pass train_dataset as a DatasetDict.",
                folder,
            )
            return
        leave_records(folder, self._record(self.source_splits))

    def push_to_hub(  # type: ignore[override]  # a commit, and what was in it
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **options: Any,
    ) -> PublishResult | None:
        """Publish the trained model with its card and records, in one commit.

        The arguments are those of `transformers.Trainer.push_to_hub`; `options` are those of
        `hf_unlearn.hub.trainer_push.push_trainer`, such as `create_pr` and `dry_run`.

        Returns:
            What was sent; None on every process but the first.

        Raises:
            UserError: when the rows came encoded, which can no longer be hashed, `output_dir` is the folder of the
                model that training started from, or `blocking=False` is asked for.
        """
        if not blocking:
            raise UserError("push_to_hub checks what it sends before and after, so it blocks; leave blocking=True")
        if self.source_splits is None:
            raise UserError("push_to_hub needs the rows that were unlearned; pass train_dataset as a DatasetDict")
        self.refuse_sources(str(self.args.output_dir), "push_to_hub from")
        with self.saved_keys():
            return push_trainer(
                self,
                self._record(self.source_splits),
                commit_message=commit_message,
                token=token,
                revision=revision,
                private=private,
                **options,
            )

    def _record(self, splits: DatasetDict) -> Callable[[Path], UnlearningManifest]:
        statuses = self.request_statuses()
        return trainer_record(self, self.args.method, splits, description=self.args.description, requests=statuses)

    def create_model_card(self, *positional: object, **kwargs: object) -> None:
        """Nothing: the card is written from the run's records, by `save_model` and `hf-unlearn card`."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        raise UserError(NO_PUSHED_CHECKPOINTS)  # the config refuses the setting, but may be changed afterwards

    def _get_output_dir(self, trial: Any) -> str:
        return self._partial_folder or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer does, but beside, and put in place once it is complete, checksummed and on disk."""
        run_folder, name = Path(super()._get_output_dir(trial)), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        partial = run_folder / f".{name}.partial"
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            with files.disk_full_as_user_error(run_folder, name):
                self._partial_folder = str(partial)
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    if self.state.best_global_step == self.state.global_step:
                        self.state.best_model_checkpoint = str(run_folder / name)
                        self.state.save_to_json(str(partial / name / TRAINER_STATE_NAME))
                    seconds = self._seconds_before + time.monotonic() - self._started
                    checkpoints.write_checksums(partial / name, seconds, self.identity)
                    files.put_in_place(partial / name, run_folder / name)
                    best = self.state.best_model_checkpoint
                    checkpoints.rotate(run_folder, self.args.save_total_limit, keep=Path(best) if best else None)
        finally:
            self._partial_folder = None
            if self.args.should_save:
                shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if isinstance(self.model, FSDPModule):  # as the model is without shards; all processes come here
            state_dict = self.whole_model().state_dict()
        super()._save(output_dir, state_dict)
        # The Trainer pickles its arguments beside the weights; unlearning.json records them readably instead.
        (Path(output_dir or str(self.args.output_dir)) / TRAINING_ARGS_NAME).unlink(missing_ok=True)
