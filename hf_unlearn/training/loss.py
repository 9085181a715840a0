"""From a batch to a method's loss: the terms of one forward pass, and what a method says over them."""

from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_unlearn.distributed import world_size
from hf_unlearn.losses import ContrastiveTerms
from hf_unlearn.losses.partition import LARGEST_WHOLE_BYTES
from hf_unlearn.models.contrastive import contrastive_terms
from hf_unlearn.training.batch import BatchTrainer, TrainingBatch

BatchLoss = tuple[Tensor, dict[str, Tensor]]
"""A loss to be lowered, and its parts by name, which go to the logs."""
ReportedLoss = Tensor | tuple[Tensor, ContrastiveTerms]
"""What a `Trainer` takes of `compute_loss`: the loss, with the terms it is of where outputs are asked for."""


class LossTrainer(BatchTrainer):
    """A `Trainer` whose loss is a function of a batch's `ContrastiveTerms`; a method overrides `batch_loss`.

    With `torch_compile`, views and `batch_loss` are compiled beside the model, each without a graph break: they are
    functions of tensors alone.
    """

    model: PreTrainedModel

    def __init__(self, *positional: Any, **kwargs: Any) -> None:
        self._parts: dict[str, list[Tensor]] = defaultdict(list)  # of the losses since the last log
        super().__init__(*positional, **kwargs)

    def batch_loss(self, terms: ContrastiveTerms, is_unlearn: Tensor, *beside: object) -> BatchLoss:
        """The loss of a batch.

        Args:
            terms: the model's, of all samples of the batch.
            is_unlearn: `[n]` bool.
            beside: what the method's `beside` gave.
        """
        raise NotImplementedError(f"{type(self).__name__} overrides neither batch_loss nor compute_loss")

    def beside(self, model: nn.Module, batch: TrainingBatch) -> tuple[object, ...]:
        """What `batch_loss` takes besides the terms and which samples are to be unlearned: nothing by default."""
        return ()

    def contrast(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[ContrastiveTerms, Tensor]:
        """One forward pass over a batch: its `ContrastiveTerms` and which samples are to be unlearned (`[n]` bool)."""
        batch = self.model_batch(model, inputs)
        return contrastive_terms(model, batch.inputs, self.args.forward_chunk_size), batch.is_unlearn

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: object = None,
    ) -> ReportedLoss:
        """The loss of a batch of the loader, and its parts for the logs."""
        batch = self.model_batch(model, inputs)
        beside = self.beside(model, batch)
        terms = contrastive_terms(model, batch.inputs, self.args.forward_chunk_size)
        loss, parts = self._batch_loss(terms, batch.is_unlearn, *beside)
        return self.report(loss, terms, return_outputs, **parts)

    @cached_property
    def _batch_loss(self) -> Callable[..., BatchLoss]:
        # Compiled, the similarity matrix is there as a whole; collectives of several processes stay out of the graph.
        matrix = 4 * (2 * self.args.per_device_train_batch_size) ** 2
        fits = matrix <= LARGEST_WHOLE_BYTES and world_size() == 1
        return self.compiled(self.batch_loss) if fits else self.batch_loss

    def report(self, loss: Tensor, terms: ContrastiveTerms, return_outputs: bool, **parts: Tensor) -> ReportedLoss:
        """What `compute_loss` returns: the loss, and the terms it is of if outputs are asked for.

        The named parts of the loss go to the logs; that costs no synchronisation.
        """
        for name, value in parts.items() if self.model.training else ():
            self._parts[name].append(self.kept(value))
        return (loss, terms) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each part of the loss since the last log, over all processes; not to an evaluation's."""
        if "loss" in logs or "train_runtime" in logs:
            for name, values in self._parts.items():
                logs[name] = self.accelerator.reduce(torch.stack(values).mean(), "mean").item()
            self._parts.clear()
        super().log(logs, start_time)
