"""A frozen copy of the base model, for methods that compare with where they started."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from hf_unlearn.models.contrastive import contrastive_terms
from hf_unlearn.training.batch import TrainingBatch
from hf_unlearn.training.trainer import UnlearningTrainer


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of a model as it is now, in evaluation mode and without gradients."""
    return deepcopy(model).eval().requires_grad_(False)


class TeacherTrainer(UnlearningTrainer):
    """An `UnlearningTrainer` with the base model as its teacher.

    The teacher is copied when the Trainer is built, so a resumed training has the same one: checkpoints are loaded
    later, and do not hold it. It sees the very inputs that the model sees, in evaluation mode: batch norms use their
    running statistics, and neither a momentum encoder nor a queue moves. It costs its weights in memory and one forward
    pass a step.
    """

    def __init__(self, *positional: Any, **kwargs: Any) -> None:
        super().__init__(*positional, **kwargs)
        self.teacher = frozen_copy(self.model)

    def beside(self, model: nn.Module, batch: TrainingBatch) -> tuple[object, ...]:
        """The teacher's terms on the inputs that the model sees."""
        with torch.no_grad(), self.accelerator.autocast():
            return (contrastive_terms(self.teacher, batch.inputs, self.args.forward_chunk_size),)
