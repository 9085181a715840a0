"""Processes of one launch: collectives that carry gradients, and work that is shared out.

The number of processes changes neither a loss nor its gradient.

Every loss follows one rule: each rank returns `world_size` times its own share of the global loss. The mean over
ranks, which data-parallel training takes of losses and gradients alike, is then the loss of the whole batch.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hf_unlearn.errors import UserError
from hf_unlearn.files import owned

T = TypeVar("T")
Context: TypeAlias = Any  # of an autograd function, which carries whatever is put there; torch has no such type


def world_size() -> int:
    """Number of processes that share a batch; 1 when no process group exists."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's place in the gathered batch; 0 when no process group exists."""
    return dist.get_rank() if world_size() > 1 else 0


class _AllGather(torch.autograd.Function):
    """Forward: concatenate over ranks. Backward: sum over ranks, keep this rank's rows."""

    @staticmethod
    def forward(ctx: Context, tensor: Tensor) -> Tensor:
        ctx.rows = tensor.shape[0]
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


class _AllReduceSum(torch.autograd.Function):
    """Forward and backward: sum over ranks."""

    @staticmethod
    def forward(ctx: Context, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> Tensor:
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad


def all_gather(tensor: Tensor) -> Tensor:
    """Concatenate `[n, ...]` tensors of equal shape over ranks to `[world * n, ...]`, with gradient."""
    return _AllGather.apply(tensor) if world_size() > 1 else tensor


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over ranks, with gradient."""
    return _AllReduceSum.apply(tensor) if world_size() > 1 else tensor


def map_across_processes(parts: int, work: Callable[[int], T]) -> list[T]:
    """Do numbered parts of a work, each on one process, and give every process all results in their order.

    Args:
        parts: How many; process r of R does parts r, r + R, r + 2 R, ...
        work: From a part's number to its result, which is pickled.

    Returns:
        The results of parts 0, 1, 2, ...

    Raises:
        UserError: On every process, that of the first part that failed on any.
    """
    own: dict[int, T | UserError] = {}
    for number in range(rank(), parts, world_size()):
        try:
            own[number] = work(number)
        except UserError as error:  # the others must hear of it; they would wait for this process for ever
            own[number] = error
            break
    shares: list[dict[int, T | UserError]] = [own]
    if world_size() > 1:
        shares = [{} for _ in range(world_size())]
        dist.all_gather_object(shares, own)
    done = {number: result for share in shares for number, result in share.items()}
    results: list[T] = []
    for number in sorted(done):
        result = done[number]
        if isinstance(result, UserError):
            raise result
        results.append(result)
    return results


@contextmanager
def owned_together(folder: str | Path, what: str, option: str = "--output_dir", wait: bool = False) -> Iterator[None]:
    """`owned` for all processes of a launch: the first one locks the folder, and all of them hear if it cannot.

    Raises:
        UserError: On every process, as `owned` does.
    """
    with ExitStack() as stack:
        map_across_processes(1, lambda _: str(stack.enter_context(owned(folder, what, option, wait))))
        yield
