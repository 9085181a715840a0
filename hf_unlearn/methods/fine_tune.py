"""Fine-Tune: keep training on retain alone and let the rest fade."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hf_unlearn.losses import ContrastiveTerms, retain_info_nce
from hf_unlearn.records.method_description import INFO_NCE, PAPER_CITATION, RETAIN, MethodDescription
from hf_unlearn.training.config import UnlearningConfig, setting
from hf_unlearn.training.loss import BatchLoss
from hf_unlearn.training.search_space import Log, SearchSpace
from hf_unlearn.training.trainer import UnlearningTrainer


@dataclass
class FineTuneConfig(UnlearningConfig):
    """Fine-Tune; defaults: the paper's CLIP setting (8 epochs, learning rate searched in [5e-5, 5e-4])."""

    method = "fine_tune"
    description = MethodDescription(
        title="Fine-Tune",
        summary="It trains the base model further, on the retain split alone.",
        equations=(RETAIN, INFO_NCE),
        citation=PAPER_CITATION,
    )
    paper_row = 2
    search_space = SearchSpace(image_text={"learning_rate": Log(5e-5, 5e-4)}, views={"learning_rate": Log(3e-3, 3e-2)})

    num_train_epochs: float = setting(8, "Epochs over retain.")
    learning_rate: float = setting(5e-4, "Learning rate.")


class FineTuneTrainer(UnlearningTrainer):
    """Minimises InfoNCE (Eq. 1) on retain from the pre-trained weights: `mean_R [log_partition - positive_alignment]`.

    Golatkar et al. 2020 (arXiv 1911.04933), adapted in section 3.2 of arXiv 2406.03603.
    """

    uses = ("retain",)
    config_class: ClassVar[type[UnlearningConfig]] = FineTuneConfig

    def batch_loss(self, terms: ContrastiveTerms, is_unlearn: Tensor, *beside: object) -> BatchLoss:
        """Eq. 1 on the retain samples of a batch."""
        return retain_info_nce(terms, is_unlearn), {}
