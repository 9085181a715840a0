"""Gradients of whole splits at the weights as they are, by which it is chosen which weights to change.

A method may choose by them itself; saliency masking (SalUn) chooses for any method.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from hf_unlearn.data.encoded import EncodedSplit
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


class SaliencyMask(TrainerCallback):
    """Lets a training change only the weights with the largest absolute gradient of InfoNCE on unlearn.

    `m = 1[|grad_theta InfoNCE(U)| >= t]` at the base model, with t such that a share of all weights passes; after every
    step `theta = m * theta_trained + (1 - m) * theta_0`. Weights of equal gradient pass together, those without any
    only if all do. Masked-out gradients are zeroed before they are clipped, and masked-out weights are put back after
    the update, so that neither clipping nor weight decay nor an optimiser's momentum sees or moves them; shrink and
    perturb leaves them, too. Buffers, and MoCo's momentum encoder, follow the model as ever. It costs one pass over
    unlearn, and a copy of the weights and a mask in memory.

    Source: Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
    Classification and Generation", arXiv 2310.12508, Eqs. 3-4. Deviations: the saliency loss is InfoNCE, its gradient
    is taken in evaluation mode, and the mask serves every method; SalUn's own random labels have no counterpart here.

    Args:
        model: whose updates are masked.
        gradient: the mean gradient of an objective over a split, one tensor per trainable parameter.
        unlearn: rows of the unlearn split.
        share: of the trainable weights, that may change; more than 0 and at most 1.
    """

    def __init__(
        self,
        model: nn.Module,
        gradient: Callable[[EncodedSplit, Objective], list[Tensor]],
        unlearn: EncodedSplit,
        share: float,
    ) -> None:
        self._model, self._gradient, self._unlearn, self.share = model, gradient, unlearn, share
        self._masked: list[tuple[nn.Parameter, Tensor, Tensor]] = []  # parameter, mask, base weights

    def begin(self) -> None:
        """Choose the weights, once, before a checkpoint is loaded: they depend on the base model."""
        if self._masked or self.share == 1:
            return
        weights = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        sizes = [gradient.abs() for gradient in self._gradient(self._unlearn, info_nce_of_all)]
        every = torch.cat([size.flatten() for size in sizes])
        threshold = every.topk(max(1, round(self.share * len(every)))).values[-1]
        copies = [weight.detach().clone() for weight in weights]
        self._masked = list(zip(weights, [(size >= threshold) & (size > 0) for size in sizes], copies, strict=True))

    def mask_gradients(self) -> None:
        """Zero the gradients of masked-out weights."""
        for weight, mask, _ in self._masked:
            if weight.grad is not None:
                weight.grad.mul_(mask)

    @torch.no_grad()
    def restore(self) -> None:
        """Put masked-out weights back to the base model's."""
        for weight, mask, base in self._masked:
            weight.copy_(torch.where(mask, weight, base))

    def on_optimizer_step(self, *_: object, **kwargs: object) -> None:
        """Put masked-out weights back, which weight decay moves although they have no gradient."""
        self.restore()
