"""Alignment Calibration (AC), the paper's method."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_unlearn.distributed import all_reduce_sum, world_size
from hf_unlearn.errors import UserError
from hf_unlearn.losses import ContrastiveTerms, masked_mean
from hf_unlearn.losses.functional import alignment_to_all, derangement, shares, weighted_info_nce
from hf_unlearn.records.method_description import PAPER_CITATION, MethodDescription
from hf_unlearn.training.batch import TrainingBatch
from hf_unlearn.training.config import StartingPoint, UnlearningConfig, setting
from hf_unlearn.training.loss import BatchLoss
from hf_unlearn.training.search_space import Log, Ranges, Same, SearchSpace, Uniform
from hf_unlearn.training.targets import FEW, own_alignments, say_where_it_ended
from hf_unlearn.training.trainer import UnlearningTrainer

logger = logging.getLogger(__name__)

PRESETS = ("paper", "level", "reference")
# By how much the mean cosine of a batch's unlearn pairs must exceed the floor for the whole push of the preset `level`:
# it scatters, and a push that were on or off would drift below the floor.
WIDTH = 0.2


@dataclass
class AlignmentCalibrationConfig(UnlearningConfig):
    """Alignment Calibration; defaults: the paper's CLIP setting (8 epochs, 2e-4, alpha = gamma = 1, beta in [0, 1])."""

    method = "alignment_calibration"
    description = MethodDescription(
        title="Alignment Calibration",
        summary=(
            "It keeps the contrastive loss low on the retain split while it pushes unlearn pairs "
            "apart and pulls different unlearn samples together, so that the data owner can see the change."
        ),
        equations=(
            r"\mathcal{L} = \mathcal{L}_\text{retain} + \varepsilon\, \mathcal{L}_\text{unlearn},"
            r" \qquad \varepsilon = |\mathcal{D}_\text{unlearn}| \,/\, |\mathcal{D}_\text{retain}|",
            r"\mathcal{L}_\text{retain} = -\mathbb{E}_{p_r^+}\, s(x, y)"
            r" + \mathbb{E}_{x \sim p_r} \log \mathbb{E}_{y \sim p_d} \exp s(x, y)",
            r"\mathcal{L}_\text{unlearn} = -\alpha\, \mathbb{E}_{p_u^\times}\, s(x, y)"
            r" + \beta\, \mathbb{E}_{p_u^+}\, s(x, y)"
            r" + \gamma\, \mathbb{E}_{x \sim p_u} \log \mathbb{E}_{y \sim p_d} \exp s(x, y)",
        ),
        citation=PAPER_CITATION,
        caveat=(
            "The shift off the diagonal is made by the method's own α term. An exactly retrained model shows none, so "
            "it counts neither for nor against removal."
        ),
    )
    paper_row = 6
    search_space = SearchSpace(  # views: beta in the units of the preset `reference`
        image_text={"alpha": Uniform(0.5, 1), "gamma": Same("alpha"), "beta": Uniform(0, 1)},
        views={"learning_rate": Log(3e-3, 3e-2), "beta": Uniform(0, 20)},
    )

    num_train_epochs: float = setting(8, "Epochs over retain.")
    learning_rate: float = setting(2e-4, "Learning rate.")
    alpha: float | None = setting(
        None,
        "Pull of different unlearn samples together (visible in audits); default: 1, and beta + gamma with "
        "the preset level.",
    )
    beta: float = setting(1.0, "Push of the two elements of an unlearn pair apart.")
    gamma: float = setting(1.0, "Weight of the unlearn log-partition, which keeps performance.")
    preset: str = setting(
        "paper",
        "paper: Eq. 5; reference: the published code (one random negative, beta on raw cosines); level: "
        "Eq. 5 with alpha = beta + gamma, which keeps the level of cosines, and with a push that ends where "
        "held-out pairs stand.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("preset", PRESETS)
        for name in ("alpha", "beta", "gamma"):
            value = getattr(self, name)
            self.check(name, value is None or 0 <= value < math.inf, "must be a number of at least 0")
        level = self.beta + self.gamma
        if self.alpha is None:
            self.alpha = level if self.preset == "level" else 1.0
        if self.preset == "level" and not math.isclose(self.alpha, level):
            raise UserError(
                f"preset='level' ties alpha to beta + gamma = {level:g}, and alpha is {self.alpha:g}; leave it unset, "
                "or, where a config sets it, give that value"
            )
        if self.preset == "reference" and self.alpha != self.gamma:
            raise UserError("preset='reference' ties gamma to alpha; give both one value, or use preset='paper'")

    def check_for(self, splits: Mapping[str, Any], start: StartingPoint) -> None:
        """As every config does; under the preset `level` held-out rows say where to stop."""
        super().check_for(splits, start)
        if self.preset == "level" and not splits.get("validation"):
            raise UserError(
                "preset='level' pushes unlearn pairs down to where samples stand that the model never saw; pass "
                "them as split validation, or use preset='paper'"
            )

    def ranges(self, family: str) -> Ranges:
        """As every method's; under the preset `level`, where alpha follows, those of the other two."""
        level: Ranges = {"beta": Uniform(0.1, 1), "gamma": Uniform(0, 0.5)}
        return level if self.preset == "level" else super().ranges(family)


class AlignmentCalibrationTrainer(UnlearningTrainer):
    """Minimises `L_retain + eps * L_unlearn` (Eq. 5), `eps = |U| / |R|`, candidates from the whole mixed batch.

    `L_unlearn = -alpha * mean_{i != j} s(x_i, y_j) + beta * mean_i s(x_i, y_i) + gamma * mean_i log_partition_i`.
    No preset needs a further view: all negative pairs come from the batch's two views in closed form.

    A constant added to all cosines of unlearn samples adds `eps (beta + gamma - alpha) / temperature` times it to
    `L_unlearn`, and the InfoNCE of retain does not feel one at all. With alpha = gamma, as the paper searches, the loss
    falls as all cosines sink together, and they do. The preset `level` sets alpha = beta + gamma, so that only
    differences between positive and other pairs count. How far a constant beta pushes depends on the data and on the
    number of steps. So there it shrinks with the mean cosine that the unlearn pairs of a batch have above a floor, and
    below the floor it pulls: `beta min(1, max(-1, (mean_i c_i - floor) / 0.2))`. The floor is the mean cosine of
    held-out pairs before unlearning; what stands above it late in training lowers it (`StandingExcess`).

    The preset `reference` is the published CIFAR code: NT-Xent in which each unlearn sample's second element is that of
    one random other unlearn sample of the batch, weighted by alpha, plus `beta |U| / (|U| + |R|)` times the raw cosine
    (no temperature), so its beta = 12..16 at temperature .1 is 1.2..1.6 in the units of Eq. 5.
    """

    config_class = AlignmentCalibrationConfig
    args: AlignmentCalibrationConfig

    def __init__(
        self, model: PreTrainedModel, args: AlignmentCalibrationConfig, train_dataset: Any, *rest: Any, **kwargs: Any
    ):
        super().__init__(model, args, train_dataset, *rest, **kwargs)
        self.floor: Tensor | None = None
        self._doubts: list[str] = []
        if args.preset == "level":
            held_out = train_dataset["validation"]
            if len(held_out) < FEW:
                self._doubts = [f"The push ends where only {len(held_out)} held-out samples stand; hold out more."]
                logger.warning("%s", self._doubts[0])
            unseen = own_alignments(self.model, self.preprocessor, self.rows.encoded(held_out))
            self.floor = unseen.nanmean().to(args.device) - self.unseen_risen
            self._spread = unseen[~unseen.isnan()].std(correction=0).item()

    @property
    def notes(self) -> list[str]:
        """As the base class's; and how certain the floor is."""
        return [*super().notes, *self._doubts]

    def end(self) -> tuple[str, ...]:
        """Tell of unlearn samples that are far from the floor."""
        if self.floor is None:
            return ()
        own = own_alignments(self.whole_model(), self.preprocessor, self.rows.unlearn(self.train_dataset))
        return say_where_it_ended(own, self.floor.to(own.device), self._spread)

    def beside(self, model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, ...]:
        """The mean cosine at which the push of the preset `level` ends."""
        return () if self.floor is None else (self.floor - self.excess.lowered["unlearn"],)

    def batch_loss(self, terms: ContrastiveTerms, is_unlearn: Tensor, *beside: Any) -> BatchLoss:
        """Eq. 5, or the published code's construction."""
        args, eps = self.args, self.unlearn_to_retain
        if args.preset == "reference":
            weight = args.gamma * (is_unlearn.sum() > 1)  # a lone unlearn sample has no other to be paired with
            mixed = weighted_info_nce(terms.repair(derangement(is_unlearn)), ~is_unlearn + weight * is_unlearn)
            positive = masked_mean(terms.cosine, is_unlearn)
            loss = mixed + args.beta * eps / (1 + eps) * positive
            return loss, {"loss_mixed": mixed, "positive": positive}
        alpha, beta = (args.gamma, 0.0) if beside else (args.alpha, args.beta)  # with a floor, the push is added below
        assert alpha is not None  # the config filled it in
        weights = _weights if world_size() > 1 or torch.compiler.is_compiling() else _kept_weights
        share = weights(is_unlearn, eps * alpha, eps * beta, eps * args.gamma)
        to_unlearn = alignment_to_all(terms, shares(is_unlearn)[1])
        values = torch.cat([terms.log_partition, terms.positive_alignment, to_unlearn])
        counts, found = share[0], {}
        if beside:
            found["unlearn_excess"] = excess = masked_mean(terms.cosine.detach() - beside[0], is_unlearn)
            push = args.beta * (all_reduce_sum(excess) / (WIDTH * world_size())).clamp(-1, 1)
            counts = torch.addcmul(counts, eps * push, share[3] - share[2])
        with torch.autocast(values.device.type, enabled=False):
            loss, parts = torch.dot(counts, values), share[1:] @ values.detach()
        if world_size() > 1:
            loss, parts = loss * world_size(), parts * world_size()
        names = ("loss_retain", "negative", "positive", "partition")
        return loss, dict(zip(names, parts.unbind(), strict=True)) | found


def _weights(is_unlearn: Tensor, alpha: float, beta: float, gamma: float) -> Tensor:
    """`[5, 3 n]` what log-partitions, alignments and those to all unlearn samples count in Eq. 5, and in its parts."""
    retain, unlearn, partner = shares(is_unlearn)
    nothing = torch.zeros_like(retain)
    parts = (
        torch.cat([retain, -retain, nothing]),  # Eq. 1
        torch.cat([nothing, -partner * unlearn, partner]),  # to all, less to itself
        torch.cat([nothing, unlearn, nothing]),
        torch.cat([unlearn, nothing, nothing]),
    )
    return torch.stack([parts[0] - alpha * parts[1] + beta * parts[2] + gamma * parts[3], *parts])


@lru_cache(maxsize=8)
def _kept_weights(is_unlearn: Tensor, alpha: float, beta: float, gamma: float) -> Tensor:
    with torch.inference_mode(False):
        return _weights(is_unlearn, alpha, beta, gamma)
