"""The log-partition over many candidates in memory linear in the batch.

Where the similarity matrix is small against the memory that is free, it is computed once and kept for the backward
pass. Where it is not, it is visited in blocks of rows: forward keeps one log-sum-exp a row (and a column), backward
computes each block again. Both are exact; the idea of the second follows Inf-CL (arXiv 2410.17243).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of one block of the similarity matrix, of which a few copies live at a time: on a CPU a block should stay in
# the caches (2^20 floats are 4 MiB), on an accelerator it should outlast the launch of its kernels (64 MiB).
CPU_BLOCK_ELEMENTS = 2**20
ACCELERATOR_BLOCK_ELEMENTS = 2**24
# Bytes of a matrix that an accelerator keeps whole: always up to the first number, and up to the second where this
# many copies fit into what is free. Beyond it, from 16,384 x 16,384 on, memory is linear in the batch.
ALWAYS_WHOLE_BYTES = 2**26
LARGEST_WHOLE_BYTES = 2**29
_COPIES = 8


def _elements_at_once(anchors: Tensor, candidates: Tensor) -> int:
    """How many similarities to hold, by the bytes of the whole matrix and those that are free."""
    if anchors.device.type == "cpu":
        return CPU_BLOCK_ELEMENTS
    elements = len(anchors) * len(candidates)
    size = elements * anchors.element_size()
    if size <= ALWAYS_WHOLE_BYTES:
        return elements
    if size <= LARGEST_WHOLE_BYTES and _COPIES * size <= torch.accelerator.get_memory_info(anchors.device)[0]:
        return elements
    return ACCELERATOR_BLOCK_ELEMENTS


def blocks(rows: int, columns: int, block_elements: int) -> list[slice]:
    """Slices of rows, each of about so many elements of the matrix."""
    step = max(1, block_elements // max(1, columns))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _similarities(scaled: Tensor, candidates: Tensor, masked: Tensor | None, block: slice) -> Tensor:
    similarities = scaled[block] @ candidates.T
    return similarities if masked is None else similarities.scatter_(1, masked[block, None], float("-inf"))


class _LogPartition(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        own: Tensor | None,
        masked: Tensor | None,
        both: bool,
        block_elements: int,
    ) -> tuple[Tensor, Tensor]:
        visited = blocks(len(anchors), len(candidates), block_elements)
        scaled = anchors * scale
        whole = _similarities(scaled, candidates, masked, visited[0]) if len(visited) == 1 else None
        if whole is not None:
            rows, columns = whole.logsumexp(1), whole.logsumexp(0) if both else whole.new_empty(0)
        else:
            rows = anchors.new_empty(len(anchors))
            columns = anchors.new_full((len(candidates) if both else 0,), float("-inf"))
            for block in visited:
                similarities = _similarities(scaled, candidates, masked, block)
                rows[block] = similarities.logsumexp(1)
                if both:
                    columns = torch.logaddexp(columns, similarities.logsumexp(0))
        if own is not None:
            rows = torch.logaddexp(rows, own)
        ctx.save_for_backward(anchors, candidates, scale, own, rows, columns, scaled, whole, masked)
        ctx.both, ctx.blocks = both, visited
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        anchors, candidates, scale, own, rows, columns, scaled, whole, masked = ctx.saved_tensors
        grad_rows, grad_columns = grads
        if masked is not None and (ctx.both or len(candidates) < 2):
            # A row or column without any candidate has log-partition -inf: its weights are 0, not exp(-inf + inf).
            rows, columns = (value.masked_fill(value.isinf(), 0.0) for value in (rows, columns))
        grad_own = None if own is None else (own - rows).exp_().mul_(grad_rows)
        of_anchors, of_candidates, of_scale = ctx.needs_input_grad[:3]
        parts: list[Tensor] = []
        grad_candidates: Tensor | None = None
        for block in ctx.blocks:
            similarities = whole if whole is not None else _similarities(scaled, candidates, masked, block)
            if ctx.both:
                weights = (similarities - columns).exp_().mul_(grad_columns)
                weights.addcmul_((similarities - rows[block, None]).exp_(), grad_rows[block, None])
            else:
                weights = (similarities - rows[block, None]).exp_().mul_(grad_rows[block, None])
            if of_anchors or of_scale:
                parts.append(weights @ candidates)
            if grad_candidates is not None:
                grad_candidates.addmm_(weights.T, scaled[block])
            elif of_candidates:
                grad_candidates = weights.T @ scaled[block]
        grad_scaled = None if not parts else parts[0] if len(parts) == 1 else torch.cat(parts)
        grad_scale = (grad_scaled * anchors).sum() if of_scale else None
        grad_anchors = grad_scaled * scale if of_anchors else None
        return grad_anchors, grad_candidates, grad_scale, grad_own, None, None, None


def log_partition(
    anchors: Tensor,
    candidates: Tensor,
    scale: Tensor,
    masked: Tensor | None = None,
    both: bool = False,
    block_elements: int | None = None,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log of the summed exponentiated similarities of every anchor, and if asked of every candidate.

    `rows[i] = log sum_j exp(scale * <anchors_i, candidates_j>)` and `columns[j] = log sum_i exp(...)`.

    Args:
        anchors: `[n, d]`, unit-norm float32.
        candidates: `[N, d]`, unit-norm float32.
        scale: scalar tensor, the inverse temperature.
        masked: `[n]` int64, one candidate each row leaves out (SimCLR: the anchor itself); None for none.
        both: also the column sums, from the same pass over the matrix (CLIP: text to image).
        block_elements: elements of the similarity matrix held at once; default: what suits the device and its memory.
        own: `[n]` one further similarity of each row, scale included (MoCo: to its own key).

    Returns:
        `rows [n]` and `columns [N]` (`[0]` unless `both`); -inf where nothing is left to sum.
    """
    if block_elements is None:
        block_elements = _elements_at_once(anchors, candidates)
    with torch.autocast(anchors.device.type, enabled=False):  # losses stay in float32 whatever the model runs in
        return _LogPartition.apply(anchors, candidates, scale, own, masked, both, block_elements)
