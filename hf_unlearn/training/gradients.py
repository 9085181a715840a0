"""Gradients of whole splits at the weights as they are, for methods that choose which weights to change."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.distributed import all_reduce_sum, rank, world_size
from hf_unlearn.losses import info_nce
from hf_unlearn.models.contrastive import ModelInputs, contrastive_terms, evaluation_mode

if TYPE_CHECKING:
    from hf_unlearn.training.trainer import UnlearningTrainer

# From a model, a batch and the size of its chunks to a scalar: `world_size` times this process's share of it.
Objective = Callable[[nn.Module, ModelInputs, int | None], Tensor]


def info_nce_of_all(model: nn.Module, batch: ModelInputs, chunk_size: int | None) -> Tensor:
    """Eq. 1 over all samples of a batch."""
    terms = contrastive_terms(model, batch, chunk_size)
    return info_nce(terms, torch.ones(len(terms.x), device=terms.x.device))


def split_batches(trainer: "UnlearningTrainer", split: EncodedSplit) -> Iterator[ModelInputs]:
    """One pass over a split in its order, as model inputs: this process's part of every batch.

    Views depend on the seed and the place alone. The last batch is filled up from the start, so that all processes have
    equally many rows.
    """
    each = min(trainer.args.per_device_train_batch_size, -(-len(split) // world_size()))
    for start in range(0, len(split), each * world_size()):
        first = start + rank() * each
        rows = trainer._prepare_inputs(split.rows([row % len(split) for row in range(first, first + each)]))
        yield trainer.model_inputs.batch(rows, trainer.place_seed(first))


def batch_gradients(trainer: "UnlearningTrainer", split: EncodedSplit, objective: Objective) -> Iterator[list[Tensor]]:
    """The gradient of an objective on each batch of a split, in evaluation mode; the same on all processes.

    Args:
        trainer: whose model, inputs and settings are meant; neither the model's state nor its gradients change.
        split: the rows.
        objective: what to differentiate.

    Yields:
        One tensor per trainable parameter, in their order.
    """
    model = trainer.model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluation_mode(model):
        for batch in split_batches(trainer, split):
            value = objective(model, batch, trainer.args.forward_chunk_size)
            gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
            yield [all_reduce_sum(gradient) / world_size() for gradient in gradients]


def mean_gradient(
    trainer: "UnlearningTrainer",
    split: EncodedSplit,
    objective: Objective,
    size: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> list[Tensor]:
    """The mean over batches of `batch_gradients`, or of what `size` makes of each."""
    total: list[Tensor] = []
    batches = 0
    for gradients in batch_gradients(trainer, split, objective):
        sizes = map(size, gradients)
        total = [a + b for a, b in zip(total, sizes, strict=True)] if total else list(sizes)
        batches += 1
    return [value / batches for value in total]
