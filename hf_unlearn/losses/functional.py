"""The loss terms of the paper as pure functions of `ContrastiveTerms` (arXiv 2406.03603, Eqs. 1-5)."""

from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial

from hf_unlearn.distributed import all_gather, all_reduce_sum, world_size
from hf_unlearn.losses.terms import ContrastiveTerms


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of `values [n]` over the samples in `mask [n]` of all ranks; zero with zero gradient when there is none.

    Without a mask it is over all samples. On each rank the result is `world_size` times its share, so that the mean
    over ranks is the global mean.
    """
    mask = torch.ones_like(values) if mask is None else mask
    count = all_reduce_sum(mask.sum(dtype=values.dtype)).clamp(min=1)
    mean = torch.dot(values, mask / count)
    return mean if world_size() == 1 else mean * world_size()


def info_nce(terms: ContrastiveTerms, mask: Tensor | None = None) -> Tensor:
    """InfoNCE, Eq. 1, of the samples in `mask [n]`, or of all: mean of log-partition minus positive alignment.

    Candidates are the whole batch, masked or not: with unlearn samples in the batch this is Eq. 3, whose negatives
    come from all of train. The partition sums over candidates where the equation averages; they differ by a constant.
    """
    return masked_mean(terms.log_partition - terms.positive_alignment, mask)


def retain_info_nce(terms: ContrastiveTerms, is_unlearn: Tensor) -> Tensor:
    """`info_nce` of the samples that are not in `is_unlearn [n]`, by their kept `shares`."""
    mean = torch.dot(terms.log_partition - terms.positive_alignment, shares(is_unlearn)[0])
    return mean if world_size() == 1 else mean * world_size()


def shares(is_unlearn: Tensor) -> Tensor:
    """What a sample counts in means over all ranks: `[3, n]`, 0 where there is nothing to average.

    Rows: in the mean over retain samples, in that over unlearn samples, and in that over the partners of an unlearn
    sample, the other unlearn samples. They are kept for a mask that comes again, as that of `EncodedSplits` does, and
    neither they nor the mask may be changed in place.

    Args:
        is_unlearn: `[n]` bool.
    """
    if world_size() > 1 or torch.compiler.is_compiling():
        return _shares(is_unlearn)
    return _kept_shares(is_unlearn)


def _shares(is_unlearn: Tensor) -> Tensor:
    masks = torch.stack((~is_unlearn, is_unlearn, is_unlearn))
    retain, unlearn = all_reduce_sum(masks[:2].sum(1, dtype=torch.float32)).unbind()
    counts = torch.stack((retain, unlearn, unlearn - 1))
    return (masks / counts[:, None]).nan_to_num(nan=0.0, posinf=0.0)  # a lone sample has no partner


@lru_cache(maxsize=8)
def _kept_shares(is_unlearn: Tensor) -> Tensor:
    with torch.inference_mode(False):
        return _shares(is_unlearn)


def alignment_to_all(terms: ContrastiveTerms, share: Tensor) -> Tensor:
    """`[n]` `sum_j share_j s(x_i, y_j)` over the samples of all ranks, itself included, without a matrix."""
    with torch.autocast(terms.x.device.type, enabled=False):
        return terms.x @ (terms.scale * all_reduce_sum(share @ terms.y))


def negative_alignment(terms: ContrastiveTerms, mask: Tensor) -> Tensor:
    """Mean of `s(x_i, y_j)` over all ordered pairs i != j of samples in `mask [n]` of all ranks, Eq. 5's first term.

    No matrix is built and the cost is linear: of each sample's mean alignment to all it takes off the sample itself.
    Fewer than two samples have no negative pair: zero with zero gradient.
    """
    _, share, of_partners = _shares(mask)
    others = alignment_to_all(terms, share) - share * terms.positive_alignment
    return torch.dot(of_partners, others) * world_size()


def similarity_drift(terms: ContrastiveTerms, x_0: Tensor, y_0: Tensor, mask: Tensor) -> Tensor:
    """Mean of `(cos(x_i, y_j) - cos(x0_i, y0_j))^2` over ordered pairs i != j of samples in `mask [n]` of all ranks.

    `sum_ij (<x_i, y_j> - <x0_i, y0_j>)^2 = <X'X, Y'Y> - 2 <X0'X, Y0'Y> + <X0'X0, Y0'Y0>`, where `<A, B>` sums products
    of entries, so no `[n, n]` matrix is built: time and memory are linear in n. Fewer than two samples have no pair:
    zero with zero gradient.

    Source: similarity-preserving distillation, arXiv 1907.09682, of similarities between two kinds of elements.

    Args:
        terms: of the model that is trained.
        x_0: `[n, d]` unit-norm first elements of the same samples, from the model whose similarities are kept.
        y_0: `[n, d]` its second elements.
        mask: `[n]` samples that count.
    """
    weight = mask.to(terms.x.dtype)
    count = all_reduce_sum(weight.sum())
    x, y, x_0, y_0 = (half.float() * weight[:, None] for half in (terms.x, terms.y, x_0, y_0))
    with torch.autocast(x.device.type, enabled=False):
        own, crossed, kept = (
            all_reduce_sum(torch.stack([a.T @ b for a, b in pairs])).prod(0).sum()
            for pairs in (((x, x), (y, y)), ((x_0, x), (y_0, y)), ((x_0, x_0), (y_0, y_0)))
        )
    matched = all_reduce_sum(((x * y).sum(-1) - (x_0 * y_0).sum(-1)).square().sum())
    return (own - 2 * crossed + kept - matched) / (count * (count - 1)).clamp(min=1)


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


def negative_preference(terms: ContrastiveTerms, reference: ContrastiveTerms, beta: float) -> Tensor:
    """`[n]` `(2 / beta) log(1 + (p / p_0)^beta)`, where `- log p` is each sample's InfoNCE and `p_0` the reference's.

    That is `-(2 / beta) log sigmoid(-beta log(p / p_0))`, the bounded loss of arXiv 2404.05868, Eq. 3.

    Args:
        terms: of the model that unlearns.
        reference: of the same samples, from the base model; without gradient.
        beta: more than 0; towards 0 the gradient becomes that of `log p`, which is gradient ascent on InfoNCE.
    """
    log_p, log_p_0 = (each.positive_alignment - each.log_partition for each in (terms, reference))
    return 2 / beta * F.softplus(beta * (log_p - log_p_0))


def teacher_divergence(terms: ContrastiveTerms, reference: ContrastiveTerms) -> Tensor:
    """`[n]` KL divergence from a reference's to a model's choice among the other elements of a batch.

    `sum_j q_ij log(q_ij / p_ij)` with `p_ij = softmax_j s(x_i, y_j)`, q that of the reference, averaged over x choosing
    among all y and y choosing among all x. The candidates are the same samples for both and for every family; only
    they can be compared where the two have different queues. Needs `[n, N]` matrices, which are kept for the backward
    pass: 4 n N floats.

    Args:
        terms: of the model that is taught.
        reference: of the same samples, from its teacher; without gradient.
    """
    with torch.autocast(terms.x.device.type, enabled=False):
        p, q = ([_log_choice(t.x, t.y, t.scale), _log_choice(t.y, t.x, t.scale)] for t in (terms, reference))
    return torch.stack(
        [F.kl_div(one, other, reduction="none", log_target=True).sum(1) for one, other in zip(p, q, strict=True)]
    ).mean(0)


def _log_choice(anchors: Tensor, candidates: Tensor, scale: Tensor) -> Tensor:
    return F.log_softmax(scale * anchors @ all_gather(candidates).T, dim=1)
