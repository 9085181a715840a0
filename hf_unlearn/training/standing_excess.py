"""How far alignments stand above their targets on average, taken off the targets."""

from typing import cast

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_unlearn.distributed import all_reduce_sum, world_size

GAIN = 8.0  # over a whole training; half of it is used, which leaves e^-4 of what stood above
AT_REST = 0.2  # mean cosine; what is further off is still on its way, and its sum would lead past the targets


class StandingExcess(TrainerCallback, ExportableState):
    """Adds up, from half of the training on, the mean excess of alignments over their targets.

    What teaches retain lifts every alignment, so that samples which have targets come to rest above them: unlearn pairs
    by 1.8 points on the embedded CLIP task, and by 1 with four times their weight. Targets that are lower by this sum
    bring the mean to where it was meant to be (integral control). What is far off is not added: it is still on its
    way. Resuming goes on with the sums of the checkpoint.

    Attributes:
        lowered: scalars, by how much targets are lowered now, the same on all processes: those of `unlearn` samples,
            and those of rows that are `held`.
    """

    def __init__(self) -> None:
        self.begin()

    def state(self) -> dict[str, dict[str, float]]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {name: value.item() for name, value in self.lowered.items()}}

    def begin(self) -> None:
        """Forget an earlier training."""
        self.lowered = {name: torch.zeros(()) for name in ("unlearn", "held")}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Go on with what the checkpoint had, if there is one; those of earlier versions have nothing."""
        kept = cast("dict[str, dict[str, dict[str, float]]]", state.stateful_callbacks)  # the Trainer's own form
        sums = kept.get(type(self).__name__, self.state())["attributes"]
        self.lowered = {name: torch.tensor(value, device=args.device) for name, value in sums.items()}

    def see(self, name: str, excess: Tensor, state: TrainerState, micro_batches: int, at_rest: float = AT_REST) -> None:
        """Add the part of one batch.

        Args:
            name: whose targets.
            excess: scalar, a rank's share of the mean of alignments minus lowered targets.
            state: of the training.
            micro_batches: that one update has.
            at_rest: how far off targets a mean may stand that is added.
        """
        if 2 * state.global_step > state.max_steps:
            mean = all_reduce_sum(excess) / world_size() if world_size() > 1 else excess
            above = mean - self.lowered[name]  # the targets as they were
            above = above * (above.abs() < at_rest)
            self.lowered[name] = self.lowered[name] + above * (GAIN / (state.max_steps * micro_batches))
