"""NegGrad: descend on retain while climbing on unlearn."""

from dataclasses import dataclass

from torch import Tensor

from hf_unlearn.losses import ContrastiveTerms, info_nce, retain_info_nce
from hf_unlearn.records.method_description import INFO_NCE, PAPER_CITATION, RETAIN, UNLEARN, MethodDescription
from hf_unlearn.training.config import ClimbingConfig, setting
from hf_unlearn.training.loss import BatchLoss
from hf_unlearn.training.search_space import Log, SearchSpace
from hf_unlearn.training.trainer import UnlearningTrainer


@dataclass
class NegGradConfig(ClimbingConfig):
    """NegGrad; defaults: the paper's CLIP setting (8 epochs, learning rate searched in [1e-5, 1e-4])."""

    method = "neg_grad"
    description = MethodDescription(
        title="NegGrad",
        summary="It lowers the contrastive loss on the retain split and raises it on the unlearn split.",
        equations=(f"{RETAIN} - {UNLEARN}", INFO_NCE),
        citation=PAPER_CITATION,
    )
    paper_row = 4
    search_space = SearchSpace(image_text={"learning_rate": Log(1e-5, 1e-4)}, views={"learning_rate": Log(3e-3, 3e-2)})

    num_train_epochs: float = setting(8, "Epochs over retain.")
    learning_rate: float = setting(1e-5, "Learning rate.")
    preset: str = setting(
        "paper", "paper: mean over retain minus mean over unlearn; reference: (sum R - sum U) / batch size."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("preset", ("paper", "reference"))


class NegGradTrainer(UnlearningTrainer):
    """Descends Eq. 1 on retain and climbs it on unlearn: `mean_R InfoNCE - mean_U InfoNCE`.

    Kurmanji et al. 2023 (arXiv 2302.09880), adapted in section 3.2 of arXiv 2406.03603. The preset `reference` is the
    published code's normalisation, `(sum_R - sum_U) / (|R| + |U|)`, which weighs unlearn by its share of the data.
    """

    config_class = NegGradConfig
    args: NegGradConfig

    def batch_loss(self, terms: ContrastiveTerms, is_unlearn: Tensor, *beside: object) -> BatchLoss:
        """Eq. 1 on retain minus Eq. 1 on unlearn."""
        retain, unlearn = retain_info_nce(terms, is_unlearn), info_nce(terms, is_unlearn)
        if self.args.preset == "reference":
            loss = (retain - self.unlearn_to_retain * unlearn) / (1 + self.rows.unlearn_to_retain)
        else:
            loss = retain - unlearn
        return loss, {"loss_retain": retain, "loss_unlearn": unlearn}
