"""The loss terms of the paper as pure functions of `ContrastiveTerms` (arXiv 2406.03603, Eqs. 1-5)."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial

from hf_unlearn.losses.distributed import all_reduce_sum, world_size
from hf_unlearn.losses.terms import ContrastiveTerms


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values [n]` over the samples in `mask [n]` of all ranks; zero with zero gradient when there is none.

    On each rank the result is `world_size` times its share, so that the mean over ranks is the global mean.
    """
    weight = mask.to(values.dtype)
    count = all_reduce_sum(weight.sum())
    return (values * weight).sum() * world_size() / count.clamp(min=1)


def info_nce(terms: ContrastiveTerms, mask: Tensor) -> Tensor:
    """InfoNCE, Eq. 1, of the samples in `mask [n]`: mean of log-partition minus positive alignment.

    Candidates are the whole batch, masked or not: with unlearn samples in the batch this is Eq. 3, whose negatives
    come from all of train. The partition sums over candidates where the equation averages; they differ by a constant.
    """
    return masked_mean(terms.log_partition - terms.positive_alignment, mask)


def negative_alignment(terms: ContrastiveTerms, mask: Tensor) -> Tensor:
    """Mean of `s(x_i, y_j)` over all ordered pairs i != j of samples in `mask [n]` of all ranks, Eq. 5's first term.

    `sum_{i != j} <x_i, y_j> = <sum_i x_i, sum_j y_j> - sum_i <x_i, y_i>`, so no matrix is built and the cost is linear.
    Fewer than two samples have no negative pair: zero with zero gradient.
    """
    weight = mask.to(terms.x.dtype)
    count = all_reduce_sum(weight.sum())
    x, y = terms.x * weight[:, None], terms.y * weight[:, None]
    total = (x * all_reduce_sum(y.sum(0))).sum() - (x * y).sum()
    return terms.scale * total * world_size() / (count * (count - 1)).clamp(min=1)


def l1_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Sum of absolute values over parameters, the same on all ranks; those that FSDP has sharded count in full.

    A gradient that reaches a shard directly is added to the mean over ranks as it is. So a shard's gradient here is the
    sign of its own entries, not `world_size` times that.
    """
    sums, shards = [], defaultdict(list)
    for parameter in parameters:
        if isinstance(parameter, DTensor):
            shards[parameter.device_mesh, parameter.placements].append(parameter.to_local().abs().sum())
        else:
            sums.append(parameter.abs().sum())
    for (mesh, placements), parts in shards.items():  # one collective for all parameters that are sharded alike
        partial = [placement if placement.is_replicate() else Partial() for placement in placements]
        sums.append(DTensor.from_local(torch.stack(parts).sum(), mesh, partial).full_tensor())
    return torch.stack(sums).sum()


def weighted_info_nce(terms: ContrastiveTerms, weight: Tensor) -> Tensor:
    """InfoNCE averaged with `weight [n]` over the samples of all ranks: `sum w_i L_i / sum w_i`; zero if all are 0."""
    losses = terms.log_partition - terms.positive_alignment
    total = all_reduce_sum(weight.sum()).clamp(min=torch.finfo(weight.dtype).tiny)
    return (losses * weight).sum() * world_size() / total


def derangement(mask: Tensor) -> Tensor:
    """A random cyclic order of the samples in `mask [n]`: `[n]` int64, each one's successor, the others in place.

    Gives every unlearn sample one random other unlearn sample, without leaving the device; a lone one keeps itself.
    """
    n = len(mask)
    order = (torch.rand(n, device=mask.device) + 2 * (~mask)).argsort()  # members first, in random order
    place = torch.arange(n, device=mask.device)
    count = mask.sum()
    successor = torch.where(place < count, (place + 1) % count.clamp(min=1), place)
    return torch.empty_like(order).scatter_(0, order, order[successor])
