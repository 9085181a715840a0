"""Gradients of whole splits at the weights as they are, for methods that choose which weights to change."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from hf_unlearn.distributed import all_reduce_sum, world_size
from hf_unlearn.losses import info_nce
from hf_unlearn.models.contrastive import ModelInputs, contrastive_terms, evaluation_mode

# From a model, a batch and the size of its chunks to a scalar: `world_size` times this process's share of it.
Objective = Callable[[nn.Module, ModelInputs, int | None], Tensor]


def info_nce_of_all(model: nn.Module, batch: ModelInputs, chunk_size: int | None) -> Tensor:
    """Eq. 1 over all samples of a batch."""
    return info_nce(contrastive_terms(model, batch, chunk_size))


def mean_gradient(
    model: nn.Module,
    batches: Iterable[ModelInputs],
    objective: Objective,
    chunk_size: int | None = None,
    size: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> list[Tensor]:
    """The mean over batches of an objective's gradient in evaluation mode, the same on all processes.

    Args:
        model: neither its state nor its gradients change.
        batches: this process's part of each.
        objective: what to differentiate.
        chunk_size: samples to embed at a time.
        size: what to average in the place of each batch's gradient, such as its absolute value.

    Returns:
        One tensor per trainable parameter, in their order.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total: list[Tensor] = []
    count = 0
    with evaluation_mode(model):
        for batch in batches:
            value = objective(model, batch, chunk_size)
            gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
            sizes = [size(all_reduce_sum(gradient) / world_size()) for gradient in gradients]
            total = [a + b for a, b in zip(total, sizes, strict=True)] if total else sizes
            count += 1
    return [value / count for value in total]
