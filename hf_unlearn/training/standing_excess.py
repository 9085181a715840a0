"""How far unlearn alignments stand above their targets on average, taken off the targets."""

from typing import cast

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_unlearn.distributed import all_reduce_sum, world_size

GAIN = 8.0  # over a whole training; half of it is used, which leaves e^-4 of what stood above


class StandingExcess(TrainerCallback, ExportableState):
    """Adds up, from half of the training on, the mean excess of unlearn alignments over their targets.

    What teaches retain lifts every alignment, so that unlearn samples come to rest above their targets: by 1.8 points
    on the embedded CLIP task, and by 1 with four times their weight. Targets that are lower by this sum bring the mean
    to where it was meant to be (integral control). Resuming goes on with the sum of the checkpoint.

    Attributes:
        lowered: scalar, by how much the targets are lowered now; the same on all processes.
    """

    def __init__(self) -> None:
        self.lowered = torch.zeros(())

    def state(self) -> dict[str, dict[str, float]]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"lowered": self.lowered.item()}}

    def begin(self) -> None:
        """Forget an earlier training."""
        self.lowered = torch.zeros(())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Go on with what the checkpoint had, if there is one."""
        kept = cast("dict[str, dict[str, dict[str, float]]]", state.stateful_callbacks)  # the Trainer's own form
        self.lowered = torch.tensor(kept[type(self).__name__]["attributes"]["lowered"], device=args.device)

    def see(self, excess: Tensor, state: TrainerState, micro_batches: int) -> None:
        """Add the part of one batch.

        Args:
            excess: scalar, a rank's share of the mean of alignments minus lowered targets.
            state: of the training.
            micro_batches: that one update has.
        """
        if 2 * state.global_step > state.max_steps:
            mean = all_reduce_sum(excess) / world_size() if world_size() > 1 else excess
            self.lowered = self.lowered + (mean - self.lowered) * (GAIN / (state.max_steps * micro_batches))
