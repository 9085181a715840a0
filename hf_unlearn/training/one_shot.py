"""Methods without a training loop: they measure, change the weights once, and are done."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import set_seed
from transformers.trainer_utils import TrainOutput

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.errors import UserError, is_out_of_memory
from hf_unlearn.training.config import StartingPoint, UnlearningConfig
from hf_unlearn.training.rows import Stream
from hf_unlearn.training.trainer import UnlearningTrainer


@dataclass
class OneShotConfig(UnlearningConfig):
    """The config of a method without a training loop: what only a training could use is refused."""

    makes_steps = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.saliency_share is not None:
            raise UserError(
                f"{self.title} chooses its weights itself; set saliency_share for others alone, as in "
                "--neg_grad.saliency_share"
            )
        if self.shrink_perturb:
            raise UserError(
                f"{self.title} trains nothing, so what shrink_perturb takes would not be learned again; set it for "
                "others alone, as in --neg_grad.shrink_perturb"
            )

    def check_for(self, splits: Mapping[str, Any], start: StartingPoint) -> None:
        """As every config does; retain must be at hand."""
        super().check_for(splits, start)
        if isinstance(splits.get("retain"), Stream):
            raise UserError(f"{self.title} passes over retain as it likes; give it a datasets.Dataset, no stream")


class OneShotTrainer(UnlearningTrainer, ABC):
    """An `UnlearningTrainer` whose `train` edits the weights once, through `edit`, where others make steps.

    It writes no checkpoint: a run that was interrupted starts over. Settings of the optimiser and of epochs have no
    effect; `per_device_train_batch_size` is the size of the batches it measures on.
    """

    iterative: ClassVar[bool] = False
    adaptable: ClassVar[bool] = False
    holds_earlier: ClassVar[bool] = False

    @property
    def _retain(self) -> EncodedSplit:
        return self.train_dataset.splits[0]  # type: ignore[union-attr]

    @property
    def _unlearn(self) -> EncodedSplit:
        return self.train_dataset.splits[-1]  # type: ignore[union-attr]

    @abstractmethod
    def edit(self) -> dict[str, float]:
        """Change the model's weights, the same way on all processes; returns what is logged."""

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *positional: object, **kwargs: object
    ) -> TrainOutput:
        """Measure and edit.

        Args:
            resume_from_checkpoint: as there never is a checkpoint, naming one is an error.
            positional: without effect, like `kwargs`.

        Returns:
            One step, the loss as not a number, and the run time.

        Raises:
            UserError: when a checkpoint is named, `output_dir` is the folder of the model that it starts from, memory
                does not suffice, or the weights would not be finite.
        """
        if resume_from_checkpoint:
            raise UserError(
                f"{self.args.title} writes no checkpoints that it could go on from; leave resume_from_checkpoint unset"
            )
        self.refuse_sources(str(self.args.output_dir), "output_dir")
        self.begin_holding()
        self.remember_training()
        set_seed(self.args.seed)
        started = time.monotonic()
        try:
            found = self.edit()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(self._memory_advice()) from error
        sound = torch.stack([value.isfinite().all() for value in self.model.parameters()]).all()
        if not sound:
            raise UserError(
                f"{self.args.title} ended with weights that are not finite: the model it started from has some, or the "
                "gradient that it follows is not finite there; evaluate that model, and load it anew"
            )
        self.state.global_step = self.state.max_steps = 1
        metrics = {**found, "train_runtime": time.monotonic() - started}
        self.log(metrics)
        return TrainOutput(1, float("nan"), metrics)
