"""Operations of a view encoder with a gradient of their own: unit norms, and gathering over processes.

The code of this folder travels to the Hub with a model, and may import its own files only.
"""

from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

Context: TypeAlias = Any  # of an autograd function, which carries whatever is put there; torch has no such type


class Unit(torch.autograd.Function):
    """Unit-norm vectors `[..., d]`, with the backward pass in four operations where PyTorch's own takes fifteen."""

    @staticmethod
    def forward(ctx: Context, vectors: Tensor) -> Tensor:
        """Divide by the norm."""
        norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_(min=1e-12)
        unit = vectors / norm
        ctx.save_for_backward(unit, norm)
        return unit

    @staticmethod
    def backward(ctx: Context, *gradients: Tensor) -> Tensor:
        """Of the gradient, keep what is at right angles to the vector."""
        return _across(ctx.saved_tensors, *gradients)


class UnitPair(torch.autograd.Function):
    """`Unit` of two tensors of one shape in one pass; only the first has a gradient."""

    @staticmethod
    def forward(ctx: Context, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Divide by the norms."""
        unit = torch.stack([first, second])
        norm = torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_(min=1e-12)
        first, second = unit.div_(norm).unbind()
        ctx.mark_non_differentiable(second)
        ctx.set_materialize_grads(False)  # the second's, zeros that nobody reads
        ctx.save_for_backward(first, norm[0])
        return first, second

    @staticmethod
    def backward(ctx: Context, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        """As that of `Unit`."""
        return None if gradients[0] is None else _across(ctx.saved_tensors, gradients[0]), None


def _across(saved: tuple[Tensor, Tensor], gradient: Tensor) -> Tensor:
    unit, norm = saved
    return gradient.addcmul(unit, (gradient * unit).sum(-1, keepdim=True), value=-1).div(norm)


class AllGather(torch.autograd.Function):
    """Stack a tensor over processes, `[...]` to `[R, ...]`; gradients flow back to the process a part came from."""

    @staticmethod
    def forward(ctx: Context, tensor: Tensor) -> Tensor:
        """Gather, with equal shapes on all processes."""
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Context, *gradients: Tensor) -> Tensor:
        """Sum the gradient over processes and keep this one's part."""
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def world_size() -> int:
    """Number of processes, 1 outside `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
