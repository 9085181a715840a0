"""The log-partition over many candidates in memory linear in the batch.

The similarity matrix is visited in blocks of rows: forward keeps one log-sum-exp a row (and a column), backward
computes each block again. Exact, like the dense form; the idea follows Inf-CL (arXiv 2410.17243).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of one block of the similarity matrix, of which a few copies live at a time: on a CPU a block should stay in
# the caches (2^20 floats are 4 MiB), on an accelerator it should outlast the launch of its kernels (64 MiB).
CPU_BLOCK_ELEMENTS = 2**20
ACCELERATOR_BLOCK_ELEMENTS = 2**24


def blocks(rows: int, columns: int, block_elements: int) -> list[slice]:
    """Slices of rows, each of about so many elements of the matrix."""
    step = max(1, block_elements // max(1, columns))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _similarities(anchors: Tensor, candidates: Tensor, scale: Tensor, masked: Tensor | None, block: slice) -> Tensor:
    block_similarities = (anchors[block] @ candidates.T).mul_(scale)
    if masked is not None:
        block_similarities.scatter_(1, masked[block, None], float("-inf"))
    return block_similarities


class _LogPartition(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        masked: Tensor | None,
        both: bool,
        block_elements: int,
    ) -> tuple[Tensor, Tensor]:
        rows = anchors.new_empty(len(anchors))
        columns = anchors.new_full((len(candidates) if both else 0,), float("-inf"))
        for block in blocks(len(anchors), len(candidates), block_elements):
            similarities = _similarities(anchors, candidates, scale, masked, block)
            rows[block] = similarities.logsumexp(1)
            if both:
                columns = torch.logaddexp(columns, similarities.logsumexp(0))
        ctx.save_for_backward(anchors, candidates, scale, rows, columns)
        ctx.masked, ctx.both, ctx.block_elements = masked, both, block_elements
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        anchors, candidates, scale, rows, columns = ctx.saved_tensors
        grad_rows, grad_columns = grads
        # A row without any candidate has log-partition -inf: its weights are 0, not exp(-inf + inf).
        rows, columns = (value.masked_fill(value.isinf(), 0.0) for value in (rows, columns))
        grad_anchors = torch.empty_like(anchors)
        grad_candidates = torch.zeros_like(candidates) if ctx.needs_input_grad[1] else None
        grad_scale = torch.zeros_like(scale)
        for block in blocks(len(anchors), len(candidates), ctx.block_elements):
            similarities = _similarities(anchors, candidates, scale, ctx.masked, block)
            if ctx.both:
                weights = (similarities - columns).exp_().mul_(grad_columns)
                weights.addcmul_(similarities.sub_(rows[block, None]).exp_(), grad_rows[block, None])
            else:
                weights = similarities.sub_(rows[block, None]).exp_().mul_(grad_rows[block, None])
            torch.mm(weights, candidates, out=grad_anchors[block])
            grad_scale += (grad_anchors[block] * anchors[block]).sum()
            if grad_candidates is not None:
                grad_candidates.addmm_(weights.T, anchors[block])
        if grad_candidates is not None:
            grad_candidates.mul_(scale)
        return grad_anchors.mul_(scale), grad_candidates, grad_scale, None, None, None


def log_partition(
    anchors: Tensor,
    candidates: Tensor,
    scale: Tensor,
    masked: Tensor | None = None,
    both: bool = False,
    block_elements: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log of the summed exponentiated similarities of every anchor, and if asked of every candidate.

    `rows[i] = log sum_j exp(scale * <anchors_i, candidates_j>)` and `columns[j] = log sum_i exp(...)`.

    Args:
        anchors: `[n, d]`, unit-norm float32.
        candidates: `[N, d]`, unit-norm float32.
        scale: scalar tensor, the inverse temperature.
        masked: `[n]` int64, one candidate each row leaves out (SimCLR: the anchor itself); None for none.
        both: also the column sums, from the same pass over the matrix (CLIP: text to image).
        block_elements: elements of the similarity matrix held at once; default: what suits the device.

    Returns:
        `rows [n]` and `columns [N]` (`[0]` unless `both`); -inf where nothing is left to sum.
    """
    if block_elements is None:
        block_elements = CPU_BLOCK_ELEMENTS if anchors.device.type == "cpu" else ACCELERATOR_BLOCK_ELEMENTS
    with torch.autocast(anchors.device.type, enabled=False):  # losses stay in float32 whatever the model runs in
        return _LogPartition.apply(anchors, candidates, scale, masked, both, block_elements)
