"""Selective Synaptic Dampening (SSD): shrink the weights that matter to unlearn more than to everything else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.errors import UserError
from hf_unlearn.models.contrastive import ModelInputs, as_weights, embed_images, embed_texts, is_dual_encoder
from hf_unlearn.records.method_description import MethodDescription, bibtex
from hf_unlearn.training.config import StartingPoint, setting
from hf_unlearn.training.gradients import Objective, info_nce_of_all
from hf_unlearn.training.one_shot import OneShotConfig, OneShotTrainer
from hf_unlearn.training.search_space import Log, everywhere


def output_norm(model: nn.Module, batch: ModelInputs, chunk_size: int | None) -> Tensor:
    """Mean over a batch of the squared norm of what a model projects to, before it is normalised."""
    if is_dual_encoder(model):
        texts = {name: value for name, value in batch.items() if name != "pixel_values"}
        outputs = [embed_images(model, batch["pixel_values"]), embed_texts(model, **texts)]  # type: ignore[arg-type]
    else:
        views = as_weights(model, batch["pixel_values"]).flatten(0, 1)
        outputs = [model.get_projected_features(views)]  # type: ignore[operator]
    return torch.stack([output.float().square().sum(-1).mean() for output in outputs]).sum()


# What a weight's importance is the mean size of, over batches: the gradient of an objective, and how it is measured.
IMPORTANCES: dict[str, tuple[Objective, Callable[[Tensor], Tensor]]] = {
    "output_norm": (output_norm, torch.abs),
    "info_nce": (info_nce_of_all, torch.square),
}


@dataclass
class SSDConfig(OneShotConfig):
    """Selective Synaptic Dampening, label-free; defaults: the papers' alpha and lambda for a random request."""

    method = "selective_synaptic_dampening"
    description = MethodDescription(
        title="SSD",
        summary=(
            "It shrinks, once and without training, the weights that matter far more to the unlearn split than to all "
            "training samples (Selective Synaptic Dampening, in its label-free form)."
        ),
        equations=(
            r"\theta_i = \min\left(\lambda\, \frac{I_i(\mathcal{D})}{I_i(\mathcal{D}_\text{unlearn})},\, 1\right)"
            r" \theta_{0,i} \quad \text{where} \quad"
            r" I_i(\mathcal{D}_\text{unlearn}) > \alpha\, I_i(\mathcal{D})",
            r"I_i(\mathcal{D}) = \mathbb{E}_{x \sim \mathcal{D}}"
            r" \left| \partial \lVert f_\theta(x) \rVert_2^2 / \partial \theta_i \right|",
        ),
        citation=bibtex(
            "foster2023fast",
            "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
            "Foster, Jack and Schoepf, Stefan and Brintrup, Alexandra",
            "2308.07707",
            2023,
        )
        + "\n"
        + bibtex(
            "foster2024loss",
            "Loss-Free Machine Unlearning",
            "Foster, Jack and Schoepf, Stefan and Brintrup, Alexandra",
            "2402.19308",
            2024,
        ),
    )
    search_space = everywhere(alpha=Log(1, 100), dampening=Log(0.1, 10))

    per_device_train_batch_size: int = setting(16, "Samples whose gradients are averaged before their size is taken.")
    alpha: float = setting(10.0, "Weights this many times as important to unlearn as to all are dampened.")
    dampening: float = setting(1.0, "Lambda: what is kept of them is this over that ratio.")
    importance: str = setting(
        "output_norm", "output_norm: gradient of the squared norm of the outputs; info_nce: of the loss, squared."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("alpha", self.alpha > 0, "must be more than 0")
        self.check("dampening", self.dampening > 0, "must be more than 0")
        self.check_choice("importance", IMPORTANCES)

    def check_for(self, splits: Mapping[str, Any], start: StartingPoint) -> None:
        """As every config does; some weight must be able to matter alpha times as much to unlearn as to all."""
        super().check_for(splits, start)
        unlearn, retain = (len(splits.get(name) or ()) for name in ("unlearn", "retain"))
        share = unlearn / max(1, unlearn + retain)
        if retain and self.alpha * share >= 1:  # all of train holds unlearn: I_D >= share I_U
            raise UserError(
                f"SSD could select no weight: alpha * |unlearn| / |train| = {self.alpha:g} * {share:.3g} is at least "
                f"1, and no weight is {self.alpha:g} times as important to unlearn as to all of train, which holds "
                f"it; set alpha below {1 / share:.3g}"
            )


class SSDTrainer(OneShotTrainer):
    """Where `I_U > alpha I_D`: `theta = min(lambda I_D / I_U, 1) theta_0`; all other weights stay.

    `I_U` and `I_D` are the importances of a weight to unlearn and to all of train, means over batches of
    `|grad ||f(x)||^2|` (`output_norm`) or of `(grad InfoNCE)^2` (`info_nce`), at the base model in evaluation mode.
    `f` is the output before it is brought to unit norm, for an image-text model of both its halves.

    Source: Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", arXiv
    2308.07707, Eqs. 4-5, and for `output_norm` Foster et al., "Loss-Free Machine Unlearning", arXiv 2402.19308.
    Deviations: InfoNCE takes the place of a loss with labels; a batch's mean gradient is taken, as in the published
    code, where the equations have that of a sample. Weights without a gradient, such as a momentum encoder, stay.

    Raises:
        UserError: as its base class does, and when `alpha |U| / (|U| + |R|) >= 1`, which no weight can exceed.
    """

    config_class = SSDConfig
    args: SSDConfig

    @torch.no_grad()
    def edit(self) -> dict[str, float]:
        """Dampen, and log the share of weights that were."""
        unlearn, retain = self._importances(self._unlearn), self._importances(self._retain)
        share = len(self._unlearn) / (len(self._unlearn) + len(self._retain))
        weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        chosen = []
        for weight, own, others in zip(weights, unlearn, retain, strict=True):
            every = share * own + (1 - share) * others
            selected = own > self.args.alpha * every
            kept = (self.args.dampening * every / own).clamp(max=1)
            weight.copy_(torch.where(selected, weight * kept, weight))
            chosen.append(selected.sum())
        return {"dampened_share": (torch.stack(chosen).sum() / sum(weight.numel() for weight in weights)).item()}

    @torch.enable_grad()
    def _importances(self, split: EncodedSplit) -> list[Tensor]:
        """The mean size of each weight's gradient over the batches of a split."""
        return self.mean_gradient(split, *IMPORTANCES[self.args.importance])
