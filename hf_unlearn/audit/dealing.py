"""Work in parts, dealt out over the processes of a launch."""

from collections.abc import Callable
from typing import TypeVar

from hf_unlearn.errors import UserError
from hf_unlearn.losses.distributed import rank, world_size

T = TypeVar("T")


def deal(parts: int, work: Callable[[int], T]) -> list[T]:
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
        import torch.distributed as dist

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
