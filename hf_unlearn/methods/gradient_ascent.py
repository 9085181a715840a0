"""Gradient Ascent: climb the loss of the unlearn samples."""

from dataclasses import dataclass

from torch import Tensor

from hf_unlearn.losses import ContrastiveTerms, info_nce
from hf_unlearn.records.method_description import INFO_NCE, PAPER_CITATION, UNLEARN, MethodDescription
from hf_unlearn.training.config import ClimbingConfig, setting
from hf_unlearn.training.loss import BatchLoss
from hf_unlearn.training.search_space import Log, SearchSpace
from hf_unlearn.training.trainer import UnlearningTrainer


@dataclass
class GradientAscentConfig(ClimbingConfig):
    """Gradient Ascent; defaults: the paper's CLIP setting (4 epochs, learning rate searched in [5e-6, 5e-4])."""

    method = "gradient_ascent"
    description = MethodDescription(
        title="Gradient Ascent",
        summary="It raises the contrastive loss on the unlearn split, for a few steps only.",
        equations=("-" + UNLEARN, INFO_NCE),
        citation=PAPER_CITATION,
    )
    paper_row = 3
    search_space = SearchSpace(image_text={"learning_rate": Log(5e-6, 5e-4)}, views={"learning_rate": Log(1e-6, 1e-4)})

    num_train_epochs: float = setting(4, "Epochs over unlearn; it diverges if left alone.")
    learning_rate: float = setting(5e-5, "Learning rate.")


class GradientAscentTrainer(UnlearningTrainer):
    """Maximises InfoNCE (Eq. 1) on unlearn: the loss is `- mean_U [log_partition - positive_alignment]`.

    Golatkar et al. 2020 (arXiv 1911.04933) and Thudi et al. 2022 (arXiv 2109.13398), adapted in section 3.2 of
    arXiv 2406.03603.
    """

    uses = ("unlearn",)
    config_class = GradientAscentConfig
    args: GradientAscentConfig

    def batch_loss(self, terms: ContrastiveTerms, is_unlearn: Tensor, *beside: object) -> BatchLoss:
        """Minus Eq. 1 on the unlearn samples of a batch."""
        return -info_nce(terms, is_unlearn), {}
