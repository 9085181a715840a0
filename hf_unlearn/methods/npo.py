"""NPO: an ascent on the unlearn samples that stops by itself."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hf_unlearn.losses import ContrastiveTerms, masked_mean, retain_info_nce
from hf_unlearn.losses.functional import negative_preference
from hf_unlearn.records.method_description import INFO_NCE, RETAIN, MethodDescription, bibtex
from hf_unlearn.training.config import ClimbingConfig, setting
from hf_unlearn.training.loss import BatchLoss
from hf_unlearn.training.search_space import Around, Log, everywhere
from hf_unlearn.training.teacher import TeacherTrainer


@dataclass
class NPOConfig(ClimbingConfig):
    """Negative Preference Optimization; defaults: the epochs of the paper's CLIP setting, the rest chosen on it."""

    method = "npo"
    description = MethodDescription(
        title="NPO",
        summary=(
            "It raises the contrastive loss of unlearn samples above the base model's, ever more gently the further it "
            "has risen, and keeps it low on the retain split (Negative Preference Optimization)."
        ),
        equations=(
            rf"w\, {RETAIN} - \frac{{2}}{{\beta}}\, \mathbb{{E}}_\text{{unlearn}}"
            r" \log \sigma\left(-\beta \log \frac{p_\theta}{p_{\theta_0}}\right),"
            r" \qquad p(x, y) = \frac{\exp s(x, y)}{\sum_{y'} \exp s(x, y')}",
            INFO_NCE,
        ),
        citation=bibtex(
            "zhang2024negative",
            "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
            "Zhang, Ruiqi and Lin, Licong and Bai, Yu and Mei, Song",
            "2404.05868",
            2024,
        ),
    )
    search_space = everywhere(learning_rate=Around(10), beta=Log(0.1, 10), retain_weight=Log(0.3, 10))

    num_train_epochs: float = setting(8, "Epochs over retain.")
    learning_rate: float = setting(2e-4, "Learning rate.")
    beta: float = setting(1.0, "Strength of the bound, per nat of InfoNCE; towards 0 it is gradient ascent.")
    retain_weight: float = setting(1.0, "Weight of InfoNCE on retain.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("beta", self.beta > 0, "must be more than 0; for an ascent without bound use neg_grad")
        self.check("retain_weight", self.retain_weight >= 0, "must not be negative")


class NPOTrainer(TeacherTrainer):
    """Minimises `w InfoNCE_R - (2 / beta) mean_U log sigmoid(-beta (log p - log p_0))`, where `log p = - InfoNCE`.

    `p_i = exp s(x_i, y_i) / sum_y exp s(x_i, y)` is the chance that a sample's other half is told from the candidates,
    and `p_0` the base model's. A sample that has fallen far behind the base model stops being pushed: its gradient is
    that of gradient ascent times `2 p^beta / (p^beta + p_0^beta)`.

    Source: Zhang et al., "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning", arXiv
    2404.05868, Eq. 3 and its `NPO+RT`. Deviations: a sample's likelihood is its contrastive posterior, averaged in the
    logarithm over the directions a model contrasts in; MoCo's base model keeps the queue it came with.
    """

    config_class = NPOConfig
    args: NPOConfig

    def batch_loss(self, terms: ContrastiveTerms, is_unlearn: Tensor, *beside: Any) -> BatchLoss:
        """The bounded ascent on the unlearn samples of a batch, plus Eq. 1 on its retain samples."""
        (reference,) = beside
        retain = retain_info_nce(terms, is_unlearn)
        unlearn = masked_mean(negative_preference(terms, reference, self.args.beta), is_unlearn)
        loss = self.args.retain_weight * retain + unlearn
        return loss, {"loss_retain": retain, "preference": unlearn}
