"""SCRUB: a student that obeys its teacher on retain and disobeys it on unlearn."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hf_unlearn.losses import ContrastiveTerms, masked_mean, retain_info_nce
from hf_unlearn.losses.functional import teacher_divergence
from hf_unlearn.losses.terms import constant
from hf_unlearn.records.method_description import INFO_NCE, RETAIN, MethodDescription, bibtex
from hf_unlearn.training.batch import TrainingBatch
from hf_unlearn.training.config import ClimbingConfig, setting
from hf_unlearn.training.loss import BatchLoss
from hf_unlearn.training.search_space import Around, Log, Uniform, everywhere
from hf_unlearn.training.teacher import TeacherTrainer


@dataclass
class SCRUBConfig(ClimbingConfig):
    """SCRUB; defaults: the epochs of the paper's CLIP setting, unlearning in their first half."""

    method = "scrub"
    description = MethodDescription(
        title="SCRUB",
        summary=(
            "It keeps the model's choices among candidates those of the base model on the retain split, and drives "
            "them away from it on the unlearn split in the first part of the training."
        ),
        equations=(
            r"\alpha\, \mathbb{E}_\text{retain}\, \mathrm{KL}(p_{\theta_0} \,\|\, p_\theta)"
            rf" + \gamma\, {RETAIN}"
            r" - \mathbb{E}_\text{unlearn}\, \mathrm{KL}(p_{\theta_0} \,\|\, p_\theta),"
            r" \qquad p(y \mid x) \propto \exp s(x, y)",
            INFO_NCE,
        ),
        citation=bibtex(
            "kurmanji2023towards",
            "Towards Unbounded Machine Unlearning",
            "Kurmanji, Meghdad and Triantafillou, Peter and Hayes, Jamie and Triantafillou, Eleni",
            "2302.09880",
            2023,
        ),
    )
    search_space = everywhere(
        learning_rate=Around(10), alpha=Log(0.1, 10), gamma=Log(0.1, 10), ascent_share=Uniform(0.1, 1)
    )

    num_train_epochs: float = setting(8, "Epochs over retain.")
    learning_rate: float = setting(2e-4, "Learning rate.")
    alpha: float = setting(1.0, "Weight of the divergence from the teacher on retain.")
    gamma: float = setting(1.0, "Weight of InfoNCE on retain.")
    ascent_share: float = setting(0.5, "Share of the steps, the first ones, that raise the divergence on unlearn.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("ascent_share", 0 < self.ascent_share <= 1, "must be more than 0 and at most 1")
        self.check("alpha", self.alpha >= 0, "must not be negative")
        self.check("gamma", self.gamma >= 0, "must not be negative")


class SCRUBTrainer(TeacherTrainer):
    """Minimises `alpha mean_R KL(q || p) + gamma InfoNCE_R - mean_U KL(q || p)`, the last term in the first steps only.

    `p_ij = softmax_j s(x_i, y_j)` is the model's choice among the other elements of the batch, which takes the place of
    a classifier's posterior, and q the base model's. A distance of embeddings would also bind what no contrastive loss
    sees, such as a common rotation, and has no scale of its own to weigh against InfoNCE.

    Source: Kurmanji et al., "Towards Unbounded Machine Unlearning", arXiv 2302.09880, Eq. 2. Deviations: where the
    paper alternates epochs over unlearn (raising) and over retain (lowering), and ends with some of the latter, every
    batch here holds both splits, so both terms share a step, and raising ends after `ascent_share` of the steps; no
    temperature softens the posteriors; the variant that rewinds to a chosen error on unlearn is left out.
    """

    config_class = SCRUBConfig
    args: SCRUBConfig

    def beside(self, model: nn.Module, batch: TrainingBatch) -> tuple[object, ...]:
        """The teacher's terms, and 1 in the steps that raise the divergence of unlearn samples, 0 after them."""
        raising = self.state.global_step < self.args.ascent_share * self.state.max_steps
        return *super().beside(model, batch), constant(float(raising), batch.is_unlearn.device)

    def batch_loss(self, terms: ContrastiveTerms, is_unlearn: Tensor, *beside: Any) -> BatchLoss:
        """Teaching on the retain samples of a batch, plus Eq. 1, minus teaching on its unlearn samples."""
        reference, raising = beside
        divergence = teacher_divergence(terms, reference)
        obedience, disobedience = masked_mean(divergence, ~is_unlearn), masked_mean(divergence, is_unlearn)
        retain = retain_info_nce(terms, is_unlearn)
        loss = self.args.alpha * obedience + self.args.gamma * retain
        loss = loss - raising * disobedience
        parts = {"loss_retain": retain, "divergence_retain": obedience, "divergence_unlearn": disobedience}
        return loss, parts
