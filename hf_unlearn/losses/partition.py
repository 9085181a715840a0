"""The log-partition over many candidates in memory linear in the batch.

Where the similarity matrix is small against the memory that is free, its log-softmax is kept for the backward pass.
Where it is not, it is visited in blocks of rows: forward keeps one log-sum-exp a row (and a column), backward computes
each block again. Both are exact; the idea of the second follows Inf-CL (arXiv 2410.17243).
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_unlearn.distributed import Context

# Elements of one block of the similarity matrix, of which a few copies live at a time: on a CPU a block should stay in
# the caches (2^20 floats are 4 MiB), on an accelerator it should outlast the launch of its kernels (64 MiB).
CPU_BLOCK_ELEMENTS = 2**20
ACCELERATOR_BLOCK_ELEMENTS = 2**24
# Bytes of a matrix that an accelerator keeps whole: always up to the first number, and up to the second where this
# many copies fit into what is free. Beyond it, from 16,384 x 16,384 on, memory is linear in the batch.
ALWAYS_WHOLE_BYTES = 2**26
LARGEST_WHOLE_BYTES = 2**29
_COPIES = 8


def elements_at_once(anchors: Tensor, candidates: Tensor) -> int:
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


class _Whole(torch.autograd.Function):
    """The whole matrix at once, of which every row, and column if asked for, has a candidate; and each row's positive.

    A fused log-softmax reads and writes the matrix once where a log-sum-exp and its backward pass do so many times, and
    the log-sum-exp is any entry less its logarithm. A positive is an entry of the matrix, so its gradient takes part in
    the products that are made anyway.
    """

    @staticmethod
    def forward(
        ctx: Context,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        own: Tensor | None,
        masked: Tensor | None,
        both: bool,
        first: int,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        scaled = anchors * scale
        similarities = _similarities(scaled, candidates, masked, slice(None))
        # Turned round first: on an accelerator a softmax over the outer dimension takes many times as long.
        by_column = similarities.T.contiguous().log_softmax(1) if both else None
        columns = None if by_column is None else similarities[0] - by_column[:, 0]
        if own is not None:  # as one more candidate, which no row leaves out
            alignment = (scaled * own).sum(1)
            similarities = torch.cat([alignment[:, None], similarities], dim=1)
        else:
            alignment = similarities.diagonal(first).clone()  # a view would keep the matrix
        by_row = similarities.log_softmax(1)
        if masked is None or own is not None:
            rows = similarities[:, 0] - by_row[:, 0]
        else:
            kept = ((masked + 1) % len(candidates))[:, None]
            rows = (similarities.gather(1, kept) - by_row.gather(1, kept))[:, 0]
        ctx.first = first
        ctx.save_for_backward(anchors, candidates, scale, own, scaled, by_row, by_column)
        return rows, columns, alignment

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        anchors, candidates, scale, own, scaled, by_row, by_column = ctx.saved_tensors
        grad_rows, grad_columns, grad_alignment = grads
        of_anchors, of_candidates, of_scale, of_own = ctx.needs_input_grad[:4]
        every = by_row.exp().mul_(grad_rows[:, None])
        weights, weight = (every, None) if own is None else (every[:, 1:], every[:, :1])
        (weights.diagonal(ctx.first) if weight is None else weight[:, 0]).add_(grad_alignment)
        if by_column is not None:
            weights.addcmul_(by_column.exp().T, grad_columns)
        grad_scaled = weights @ candidates if of_anchors or of_scale else None
        if weight is not None and grad_scaled is not None:
            grad_scaled.addcmul_(weight, own)
        grad_scale = (grad_scaled * anchors).sum() if of_scale else None
        grad_anchors = grad_scaled * scale if of_anchors else None
        grad_candidates = weights.T @ scaled if of_candidates else None
        return grad_anchors, grad_candidates, grad_scale, weight * scaled if of_own else None, None, None, None


class _LogPartition(torch.autograd.Function):
    """The matrix in blocks, computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Context,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        own: Tensor | None,
        masked: Tensor | None,
        both: bool,
        block_elements: int,
    ) -> tuple[Tensor, Tensor | None]:
        visited = blocks(len(anchors), len(candidates), block_elements)
        scaled = anchors * scale
        rows = anchors.new_empty(len(anchors))
        columns = anchors.new_full((len(candidates),), float("-inf")) if both else None
        for block in visited:
            similarities = _similarities(scaled, candidates, masked, block)
            rows[block] = similarities.logsumexp(1)
            if columns is not None:
                columns = torch.logaddexp(columns, similarities.logsumexp(0))
        if own is not None:
            rows = torch.logaddexp(rows, own)
        ctx.save_for_backward(anchors, candidates, scale, own, rows, columns, scaled, masked)
        ctx.blocks = visited
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        anchors, candidates, scale, own, rows, columns, scaled, masked = ctx.saved_tensors
        grad_rows, grad_columns = grads
        if masked is not None and (columns is not None or len(candidates) < 2):
            # A row or column without any candidate has log-partition -inf: its weights are 0, not exp(-inf + inf).
            rows = rows.masked_fill(rows.isinf(), 0.0)
            columns = None if columns is None else columns.masked_fill(columns.isinf(), 0.0)
        grad_own = None if own is None else (own - rows).exp_().mul_(grad_rows)
        of_anchors, of_candidates, of_scale = ctx.needs_input_grad[:3]
        parts: list[Tensor] = []
        grad_candidates: Tensor | None = None
        for block in ctx.blocks:
            similarities = _similarities(scaled, candidates, masked, block)
            weights = (similarities - rows[block, None]).exp_().mul_(grad_rows[block, None])
            if columns is not None:
                weights.addcmul_((similarities - columns).exp_(), grad_columns)
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


def _written_out(
    anchors: Tensor, candidates: Tensor, scale: Tensor, own: Tensor | None, masked: Tensor | None, both: bool
) -> tuple[Tensor, Tensor | None]:
    similarities = (anchors * scale) @ candidates.T
    if masked is not None:
        similarities = similarities.scatter(1, masked[:, None], float("-inf"))
    rows = similarities.logsumexp(1)
    return rows if own is None else torch.logaddexp(rows, own), similarities.logsumexp(0) if both else None


def log_partition(
    anchors: Tensor,
    candidates: Tensor,
    scale: Tensor,
    masked: Tensor | None = None,
    both: bool = False,
    block_elements: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`partition_and_alignment` without the alignment."""
    return partition_and_alignment(anchors, candidates, scale, masked, both, block_elements)[:2]


def partition_and_alignment(
    anchors: Tensor,
    candidates: Tensor,
    scale: Tensor,
    masked: Tensor | None = None,
    both: bool = False,
    block_elements: int | None = None,
    own: Tensor | None = None,
    first: int = 0,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Log of the summed exponentiated similarities of every anchor, if asked of every candidate; and the positives.

    `rows[i] = log sum_j exp(scale * <anchors_i, candidates_j>)` and `columns[j] = log sum_i exp(...)`.

    Args:
        anchors: `[n, d]`, unit-norm float32.
        candidates: `[N, d]`, unit-norm float32.
        scale: scalar tensor, the inverse temperature.
        masked: `[n]` int64, one candidate each row leaves out (SimCLR: the anchor itself); None for none.
        both: also the column sums, from the same pass over the matrix (CLIP: text to image).
        block_elements: elements of the similarity matrix held at once; default: what suits the device and its memory.
        own: `[n, d]` one further candidate of each row, which is its positive (MoCo: its own key).
        first: without `own`, the first row's positive; a row's is one further than that of the row before.

    Returns:
        `rows [n]` and `columns [N]` (None unless `both`), -inf where nothing is left to sum; and the similarities of
        rows to their positives, as many as have one.
    """
    if block_elements is None:
        block_elements = elements_at_once(anchors, candidates)
    elements, left = len(anchors) * len(candidates), len(candidates) - (masked is not None)
    fits = elements <= block_elements and elements and left and not (both and masked is not None)
    with torch.autocast(anchors.device.type, enabled=False):  # losses stay in float32 whatever the model runs in
        if fits and not torch.compiler.is_compiling():
            return _Whole.apply(anchors, candidates, scale, own, masked, both, first)
        positives = candidates[first : first + len(anchors)] if own is None else own
        alignment = scale * (anchors[: len(positives)] * positives).sum(1)
        given = anchors, candidates, scale, None if own is None else alignment, masked, both
        if torch.compiler.is_compiling():  # what is written out is fused, forward and backward, without our help
            return *_written_out(*given), alignment
        return *_LogPartition.apply(*given, block_elements), alignment
