"""Attacks that look into a model's weights: what outputs no longer show may still be there."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.preprocessing import ContrastivePreprocessor
from hf_unlearn.losses import info_nce
from hf_unlearn.models.contrastive import contrastive_terms, evaluation_mode

SEED = 2406  # of views, the same for every model

Array = npt.NDArray[np.floating]


@torch.no_grad()
def quantised(model: PreTrainedModel, bits: int) -> PreTrainedModel:
    """A copy with every matrix rounded to nearest: `s round(w / s)`, `s = max |w| / (2^(bits-1) - 1)` a row.

    Rounding moves all weights a little, and those that unlearning moved little may fall back to where they were (arXiv
    2605.02196).

    Args:
        model: stays as it is.
        bits: of each weight, 2 or more.
    """
    rounded = deepcopy(model)
    for weight in rounded.parameters():
        if weight.ndim >= 2:
            rows = weight.flatten(1)
            step = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / (2 ** (bits - 1) - 1)
            weight.copy_(((rows / step).round() * step).view_as(weight))
    return rounded


@torch.no_grad()
def on_the_line(base: PreTrainedModel, model: PreTrainedModel, share: float) -> PreTrainedModel:
    """A copy of `base` with `(1 - share) base + share model` in every weight and running statistic."""
    between = deepcopy(base)
    theirs = model.state_dict()
    for name, value in between.state_dict().items():
        if value.is_floating_point():
            value.lerp_(theirs[name].to(value), share)
    return between


def barrier(curve: Sequence[float]) -> float:
    """How far a curve over equal steps falls below the straight line between its ends, at most; 0 if it never does.

    Two models in one basin have none: their weights can be averaged. A model trained anew lies behind a barrier (linear
    mode connectivity, arXiv 1912.05671; for unlearning arXiv 2505.22310).

    Example:
        >>> round(barrier([0.8, 0.1, 0.6]), 6)
        0.6
    """
    points = np.asarray(curve, dtype=np.float64)
    return float(max(0.0, (np.linspace(points[0], points[-1], len(points)) - points).max()))


@torch.no_grad()
def weight_distance(base: nn.Module, model: nn.Module) -> float:
    """`||theta - theta_0|| / ||theta_0||` over all trainable weights (arXiv 2505.22310)."""
    moved = total = 0.0
    for start, end in zip(base.parameters(), model.parameters(), strict=True):
        if start.requires_grad:
            moved += (end.double() - start.to(end.device).double()).square().sum().item()
            total += start.double().square().sum().item()
    return float(np.sqrt(moved / total))


def gradient_norms(
    model: PreTrainedModel,
    preprocessor: ContrastivePreprocessor,
    split: EncodedSplit,
    rows: Sequence[int],
    anchors: EncodedSplit,
) -> Array:
    """`[n]` norm of each sample's own InfoNCE gradient in all trainable weights, in evaluation mode.

    The white-box membership attack: a sample that was trained on has a small gradient (after arXiv 1812.00910). The
    anchors are the sample's negatives; their embeddings are constants.

    Args:
        model: the encoder.
        preprocessor: how rows are encoded.
        split: where the samples are.
        rows: which of them.
        anchors: retain samples, the same for every model.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def terms_of(rows: EncodedSplit, places: Sequence[int]):  # type: ignore[no-untyped-def]
        encoded = {name: value.to(model.device) for name, value in rows.rows(places).items()}
        return contrastive_terms(model, preprocessor.batch(encoded, SEED))

    norms = []
    with evaluation_mode(model):
        with torch.no_grad():
            fixed = terms_of(anchors, range(len(anchors)))
        for row in rows:
            own = terms_of(split, [row])
            joined = replace(own, x=torch.cat([own.x, fixed.x]), y=torch.cat([own.y, fixed.y]))
            loss = info_nce(joined, torch.arange(len(joined.x), device=joined.x.device) == 0)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
            norms.append(float(torch.stack(squares).sum().sqrt()))
    return np.array(norms)
