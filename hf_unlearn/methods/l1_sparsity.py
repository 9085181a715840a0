"""l1-Sparsity: Fine-Tune under a pull towards sparse weights."""

from dataclasses import dataclass
from math import inf
from typing import Any

from torch import Tensor, nn

from hf_unlearn.losses import ContrastiveTerms, l1_norm, retain_info_nce
from hf_unlearn.records.method_description import INFO_NCE, PAPER_CITATION, RETAIN, MethodDescription
from hf_unlearn.training.batch import TrainingBatch
from hf_unlearn.training.config import UnlearningConfig, setting
from hf_unlearn.training.loss import BatchLoss
from hf_unlearn.training.search_space import Log, SearchSpace
from hf_unlearn.training.trainer import UnlearningTrainer


@dataclass
class L1SparsityConfig(UnlearningConfig):
    """l1-Sparsity; defaults: the paper's CLIP setting (8 epochs, 5e-4, coefficient searched in [1e-9, 1e-4])."""

    method = "l1_sparsity"
    description = MethodDescription(
        title="ℓ1-Sparsity",
        summary="It trains the base model further on the retain split, with an ℓ1 penalty on the weights.",
        equations=(RETAIN + r" + \lambda \lVert \theta \rVert_1", INFO_NCE),
        citation=PAPER_CITATION,
    )
    paper_row = 5
    search_space = SearchSpace(image_text={"l1_lambda": Log(1e-9, 1e-4)}, views={"l1_lambda": Log(1e-6, 1e-3)})

    num_train_epochs: float = setting(8, "Epochs over retain.")
    learning_rate: float = setting(5e-4, "Learning rate.")
    l1_lambda: float = setting(1e-5, "Coefficient of the l1 norm of all trainable weights.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("l1_lambda", 0 <= self.l1_lambda < inf, "must be a number of at least 0")


class L1SparsityTrainer(UnlearningTrainer):
    """Minimises Eq. 1 on retain plus `lambda * ||w||_1` over every trainable parameter.

    Jia et al. 2023 (arXiv 2304.04934), adapted in section 3.2 of arXiv 2406.03603; the coefficient is constant.
    """

    uses = ("retain",)
    config_class = L1SparsityConfig
    args: L1SparsityConfig

    def beside(self, model: nn.Module, batch: TrainingBatch) -> tuple[list[nn.Parameter]]:
        """The weights whose norm is taken."""
        return ([parameter for parameter in model.parameters() if parameter.requires_grad],)

    def batch_loss(self, terms: ContrastiveTerms, is_unlearn: Tensor, *beside: Any) -> BatchLoss:
        """Eq. 1 on the retain samples of a batch, plus the l1 norm."""
        retain = retain_info_nce(terms, is_unlearn)
        norm = l1_norm(*beside)
        loss = retain + self.args.l1_lambda * norm
        return loss, {"loss_retain": retain, "l1_norm": norm}
