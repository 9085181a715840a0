"""How far a batch of pairs is from where it was meant to be: the squared distances of Targeted Calibration.

Every one of them is a function of the cosines of all pairs of a batch. Where that matrix is small it is made once, and
its gradient, too, is written out: a step of a small model waits for the host, which launches each operation by itself.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_unlearn.distributed import Context, all_reduce_sum, world_size
from hf_unlearn.losses.functional import masked_mean, negative_alignment, shares, similarity_drift
from hf_unlearn.losses.partition import elements_at_once
from hf_unlearn.losses.terms import ContrastiveTerms

Elements = tuple[Tensor, Tensor]


def calibration_distances(
    terms: ContrastiveTerms, is_unlearn: Tensor, targets: Tensor, negative: Tensor, base: Elements | None = None
) -> tuple[Tensor, Tensor]:
    """What Targeted Calibration makes small, and how far unlearn pairs stand above their targets.

    Args:
        terms: of a batch of pairs.
        is_unlearn: `[n]` bool.
        targets: `[n]` cosine that each pair is meant to have.
        negative: scalar, the mean cosine that elements of different samples are meant to have.
        base: `[n, d]` unit-norm first and second elements of the model whose similarities are kept, if they are.

    Returns:
        `[4]`, or `[3]` without `base`: `mean_U (c_i - t_i)^2`, `mean_R max(0, t_i - c_i)^2`, `(n - n_0)^2` and
        `similarity_drift` among retain samples; and, without gradient, `mean_U (c_i - t_i)`. On each rank these are
        `world_size` times its share, so that the mean over ranks is the global one.
    """
    size = len(terms.x)
    alone = world_size() == 1 and not torch.compiler.is_compiling()  # compiled, what is written out is fused anyway
    if alone and size**2 <= elements_at_once(terms.x, terms.y):
        kept = _counts(is_unlearn)
        with torch.autocast(terms.x.device.type, enabled=False):
            return _Distances.apply(terms.x, terms.y, targets, negative, *kept, *(base or (None, None)))
    distance = terms.cosine - targets
    others = negative_alignment(terms, torch.ones_like(is_unlearn)) / terms.scale
    parts = [
        masked_mean(distance.square(), is_unlearn),
        masked_mean(distance.clamp(max=0).square(), ~is_unlearn),
        (all_reduce_sum(others) / world_size() - negative).square(),
        *([similarity_drift(terms, *base, ~is_unlearn)] if base is not None else ()),
    ]
    return torch.stack(parts), masked_mean(distance.detach(), is_unlearn)


@lru_cache(maxsize=8)
def _counts(is_unlearn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a batch's samples count, kept for a mask that comes again: none may be changed in place.

    Returns:
        `[2, n]` in the means over unlearn and over retain; `[n]` whose product is what a pair counts in the mean over
        ordered pairs of retain samples; `[n]` largest distance from its target that counts.
    """
    with torch.inference_mode(False):
        retain, unlearn, _ = shares(is_unlearn)
        count = (~is_unlearn).sum()
        of_pairs = ~is_unlearn / (count * (count - 1)).clamp(min=1).sqrt()
        bound = torch.where(is_unlearn, torch.inf, 0.0)
        return torch.stack([unlearn, retain]), of_pairs, bound


class _Distances(torch.autograd.Function):
    """`calibration_distances` of one process, from one matrix of cosines, whose gradient is one matrix, too."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        y: Tensor,
        targets: Tensor,
        negative: Tensor,
        share: Tensor,
        of_pairs: Tensor,
        bound: Tensor,
        x_0: Tensor | None,
        y_0: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        cosines, size = x @ y.T, len(x)
        own = cosines.diagonal()
        distance = own - targets
        counted = torch.minimum(distance, bound)
        ctx.pairs = max(1, size * (size - 1))
        drift = (cosines.sum() - own.sum()) / ctx.pairs - negative
        parts = [share @ counted.square(), drift.square()[None]]
        changed = None
        if x_0 is not None and y_0 is not None:
            change = torch.addmm(cosines, x_0.float(), y_0.float().T, alpha=-1)
            changed = (change * of_pairs).mul_(of_pairs[:, None]).fill_diagonal_(0)
            parts.append(torch.dot(changed.view(-1), change.view(-1))[None])
        excess = torch.dot(share[0], distance)
        ctx.save_for_backward(x, y, share, counted, drift, changed)
        ctx.mark_non_differentiable(excess)
        return torch.cat(parts), excess

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, share, counted, drift, changed = ctx.saved_tensors
        twice = 2 * grads[0]
        each = drift * twice[2] / ctx.pairs
        grad = each.repeat(len(x), len(x)) if changed is None else changed * twice[3] + each
        grad.diagonal().addcmul_(twice[:2] @ share, counted).sub_(each)
        return grad @ y, grad.T @ x, *(None,) * 7
