"""SigLIP's pairwise sigmoid loss, written so that it is a log-partition minus an alignment as every other loss is.

A pair's logit is `l_ij = s(x_i, y_j) + b`, with a bias b. SigLIP's loss of sample i, averaged over both directions, is

    L_i = - log sigmoid(l_ii) - 1/2 sum_{j != i} (log sigmoid(-l_ij) + log sigmoid(-l_ji)).

With `softplus(l) = log(1 + e^l)` and `softplus(-l) = softplus(l) - l` this is `P_i - s(x_i, y_i)`, where

    P_i = 1/2 sum_j (softplus(l_ij) + softplus(l_ji)) - b

takes the log-partition's place: what a method does with the three quantities, it does with these.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_unlearn.distributed import Context, all_gather, world_size
from hf_unlearn.losses.partition import ACCELERATOR_BLOCK_ELEMENTS, CPU_BLOCK_ELEMENTS, blocks
from hf_unlearn.losses.terms import ContrastiveTerms, Quantity


class _SoftplusSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context, anchors: Tensor, candidates: Tensor, scale: Tensor, bias: Tensor, both: bool, block_elements: int
    ) -> tuple[Tensor, Tensor]:
        rows = anchors.new_empty(len(anchors))
        columns = anchors.new_zeros(len(candidates) if both else 0)
        for block in blocks(len(anchors), len(candidates), block_elements):
            softened = F.softplus((anchors[block] @ candidates.T).mul_(scale).add_(bias))
            rows[block] = softened.sum(1)
            if both:
                columns += softened.sum(0)
        ctx.save_for_backward(anchors, candidates, scale, bias)
        ctx.both, ctx.block_elements = both, block_elements
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        anchors, candidates, scale, bias = ctx.saved_tensors
        grad_rows, grad_columns = grads
        grad_anchors, grad_candidates = torch.empty_like(anchors), torch.zeros_like(candidates)
        grad_scale, grad_bias = torch.zeros_like(scale), torch.zeros_like(bias)
        for block in blocks(len(anchors), len(candidates), ctx.block_elements):
            weights = torch.sigmoid_((anchors[block] @ candidates.T).mul_(scale).add_(bias))
            weights.mul_(grad_rows[block, None] + grad_columns if ctx.both else grad_rows[block, None])
            torch.mm(weights, candidates, out=grad_anchors[block])
            grad_scale += (grad_anchors[block] * anchors[block]).sum()
            grad_bias += weights.sum()
            grad_candidates.addmm_(weights.T, anchors[block])
        return grad_anchors.mul_(scale), grad_candidates.mul_(scale), grad_scale, grad_bias, None, None


def softplus_sums(
    anchors: Tensor,
    candidates: Tensor,
    scale: Tensor,
    bias: Tensor,
    both: bool = False,
    block_elements: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`rows[i] = sum_j softplus(scale <anchors_i, candidates_j> + bias)`, and if asked `columns[j]`, the sum over i.

    The matrix is visited in blocks of rows, and computed again for the gradient, so memory is linear in the batch.

    Args:
        anchors: `[n, d]`, unit-norm float32.
        candidates: `[N, d]`, unit-norm float32.
        scale: scalar tensor, the inverse temperature.
        bias: scalar tensor.
        both: also the column sums, from the same pass over the matrix.
        block_elements: elements of the matrix held at once; default: what suits the device.

    Returns:
        `rows [n]` and `columns [N]` (`[0]` unless `both`).
    """
    if block_elements is None:
        block_elements = CPU_BLOCK_ELEMENTS if anchors.device.type == "cpu" else ACCELERATOR_BLOCK_ELEMENTS
    with torch.autocast(anchors.device.type, enabled=False):
        return _SoftplusSums.apply(anchors, candidates, scale, bias, both, block_elements)


@dataclass(frozen=True)
class SigmoidTerms(ContrastiveTerms):
    """SigLIP: each pair of an image and a text is judged by itself, the batch's own pairs as true, all others as false.

    Args:
        bias: scalar, added to every logit.

    Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343, Eq. 1.
    """

    bias: Tensor

    @Quantity
    def log_partition(self) -> Tensor:
        """`[n]` what the loss of a sample adds to its negative alignment: the module's `P_i`."""
        bias = self.bias.float()
        if world_size() == 1:
            of_images, of_texts = softplus_sums(self.x, self.y, self.scale, bias, both=True)
        else:
            of_images, _ = softplus_sums(self.x, all_gather(self.y), self.scale, bias)
            of_texts, _ = softplus_sums(self.y, all_gather(self.x), self.scale, bias)
        return (of_images + of_texts) / 2 - bias
