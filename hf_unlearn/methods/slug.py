"""SLUG: one step on the one layer that matters to unlearn and not to retain."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.errors import UserError
from hf_unlearn.losses import masked_mean
from hf_unlearn.models.contrastive import ModelInputs, contrastive_terms, evaluation_mode
from hf_unlearn.records.method_description import MethodDescription, bibtex
from hf_unlearn.training.config import StartingPoint, setting
from hf_unlearn.training.gradients import info_nce_of_all
from hf_unlearn.training.one_shot import OneShotConfig, OneShotTrainer
from hf_unlearn.training.search_space import Choice, everywhere

logger = logging.getLogger(__name__)


@dataclass
class SLUGConfig(OneShotConfig):
    """Single Layer Unlearning Gradient; there is nothing to choose where held-out rows set the target."""

    method = "slug"
    description = MethodDescription(
        title="SLUG",
        summary=(
            "It makes one step on one layer, chosen to matter to the unlearn split and not to the retain split, just "
            "long enough to bring unlearn pairs to the alignment of held-out ones (Single Layer Unlearning Gradient)."
        ),
        equations=(
            r"\theta_l = \theta_{0,l} - t\, \nabla_{\theta_l}\, \mathbb{E}_\text{unlearn} \cos(x, y),"
            r" \qquad t : \mathbb{E}_\text{unlearn} \cos(x, y) = \mathbb{E}_\text{held-out} \cos_0(x, y)",
        ),
        citation=bibtex(
            "cai2024targeted",
            "Targeted Unlearning with Single Layer Unlearning Gradient",
            "Cai, Zikui and Tan, Yaoteng and Asif, M. Salman",
            "2407.11867",
            2024,
        ),
    )
    search_space = everywhere(candidates=Choice((1, 3, 5)))

    target_cosine: float | None = setting(
        None, "Mean cosine of unlearn pairs to arrive at; default: that of the validation split."
    )
    candidates: int = setting(5, "Layers of the Pareto front that are tried, those of the largest importance.")
    bisections: int = setting(12, "Halvings of the interval in which the step's size is.")

    def __post_init__(self) -> None:
        super().__post_init__()
        target = self.target_cosine
        self.check("target_cosine", target is None or -1 <= target <= 1, "must be a cosine, from -1 to 1, or unset")
        self.check("candidates", self.candidates >= 1, "must be at least 1")
        self.check("bisections", self.bisections >= 1, "must be at least 1")

    def check_for(self, splits: Mapping[str, Any], start: StartingPoint) -> None:
        """As every config does; held-out rows say where to stop."""
        super().check_for(splits, start)
        if self.target_cosine is None and not splits.get("validation"):
            raise UserError("SLUG aims at the cosine of held-out pairs; pass a validation split, or set target_cosine")


class SLUGTrainer(OneShotTrainer):
    """`theta_l = theta_l - t * g_l` for one layer l, with g the gradient of the mean cosine of unlearn pairs.

    Layers are weight matrices, but for those that are all zeros. Of each, the importance `||g_l|| / ||theta_l||` should
    be large and its alignment `|cos(g_l, grad_l InfoNCE(R))|` small; the layers that no other beats in both are tried,
    with the step t, found by bisection, at which the mean cosine of unlearn pairs is the target: that of held-out pairs
    under the base model, which is where exact retraining would bring them. The layer that then keeps the most of
    retain's cosine is taken.

    Source: Cai et al., "Targeted Unlearning with Single Layer Unlearning Gradient", arXiv 2407.11867, Eqs. 5-9.
    Deviations: the step's size is set by held-out alignment where the paper searches by a zero-shot accuracy; the
    choice on the front is by retain's cosine; only the largest importances of the front are tried.

    Raises:
        UserError: as its base class does, and without a validation split or a `target_cosine`.
    """

    config_class = SLUGConfig
    args: SLUGConfig

    def __init__(
        self, model: PreTrainedModel, args: SLUGConfig, train_dataset: Any, *positional: Any, **kwargs: Any
    ) -> None:
        super().__init__(model, args, train_dataset, *positional, **kwargs)
        self._held_out = None if args.target_cosine is not None else self.rows.encoded(train_dataset["validation"])
        self._stopped_early: str | None = None

    @property
    def notes(self) -> list[str]:
        """What a reader of the model's card must know."""
        return [*super().notes, *([self._stopped_early] if self._stopped_early else [])]

    @torch.no_grad()
    def edit(self) -> dict[str, float]:
        """Choose the layer and the step, and make it."""
        self._stopped_early = None
        start = self._cosine(self._unlearn)
        target = self.args.target_cosine
        if target is None:
            assert self._held_out is not None
            target = self._cosine(self._held_out) - self.unseen_risen
        found = {"cosine_target": target, "cosine_unlearn_before": start}
        if start <= target:
            self._stopped_early = (
                f"Nothing was changed: unlearn pairs have a mean cosine of {start:.3f}, and the target is {target:.3f}."
            )
            logger.warning("SLUG: %s", self._stopped_early)
            return found
        best: tuple[float, float, nn.Parameter, Tensor] | None = None
        for layer, gradient in self._front():
            before = layer.clone()
            if self._step_size(layer, gradient, target) is not None:
                kept = self._cosine(self._retain)
                if best is None or kept > best[0]:
                    best = (kept, self._cosine(self._unlearn), layer, layer.clone())
            layer.copy_(before)
        if best is None:
            raise UserError(
                f"SLUG found no single layer whose gradient brings the cosine of unlearn pairs to {target:.3f}; raise "
                "target_cosine or candidates, or choose another method"
            )
        kept, reached, layer, weights = best
        layer.copy_(weights)
        self._layer = next(name for name, parameter in self.model.named_parameters() if parameter is layer)
        logger.info("SLUG changed %s.", self._layer)
        return {**found, "cosine_unlearn": reached, "cosine_retain": kept}

    @torch.enable_grad()
    def _front(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Layers on the Pareto front of importance and alignment, and the direction of each; most important first."""
        weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        unlearn = self.mean_gradient(self._unlearn, mean_cosine)
        retain = self.mean_gradient(self._retain, info_nce_of_all)
        layers = []
        for weight, own, others in zip(weights, unlearn, retain, strict=True):
            if weight.ndim >= 2 and weight.any():  # one of zeros has no norm that a step could be measured by
                alignment = nn.functional.cosine_similarity(own.flatten(), others.flatten(), dim=0).abs()
                layers.append((torch.stack([own.norm() / weight.norm(), -alignment]), weight, own))
        scores = torch.stack([score for score, _, _ in layers]).detach().cpu()
        beaten = ((scores[None] >= scores[:, None]).all(-1) & (scores[None] > scores[:, None]).any(-1)).any(1)
        order = [i for i in scores[:, 0].argsort(descending=True).tolist() if not beaten[i] and scores[i, 0] > 0]
        return [layers[i][1:] for i in order[: self.args.candidates]]

    def _step_size(self, layer: nn.Parameter, gradient: Tensor, target: float) -> float | None:
        """Bring the unlearn cosine to the target, at most; None if no step up to the layer's own norm does.

        Doubling finds a step that is long enough, and bisection the shortest of them.
        """
        before, unit = layer.clone(), (layer.norm() / gradient.norm()).item()

        def cosine(step: float) -> float:
            layer.copy_(before - step * gradient)
            return self._cosine(self._unlearn)

        low, high = 0.0, unit / 2**10
        while cosine(high) > target:
            low, high = high, 2 * high
            if high > unit:
                return None
        for _ in range(self.args.bisections):
            middle = (low + high) / 2
            low, high = (low, middle) if cosine(middle) <= target else (middle, high)
        cosine(high)
        return high

    @torch.no_grad()
    def _cosine(self, split: EncodedSplit) -> float:
        """Mean cosine of the pairs of a split, in evaluation mode, over all processes."""
        chunk = self.args.forward_chunk_size
        with evaluation_mode(self.model):
            means = [mean_cosine(self.model, batch, chunk) for batch in self.split_batches(split)]
        return self.accelerator.reduce(torch.stack(means).mean(), "mean").item()


def mean_cosine(model: nn.Module, batch: ModelInputs, chunk_size: int | None) -> Tensor:
    """Mean cosine of the pairs of a batch."""
    return masked_mean(contrastive_terms(model, batch, chunk_size).cosine)
