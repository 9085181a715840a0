"""Retrain: exact unlearning, and the answer every other method is compared with."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, set_seed

from hf_unlearn.errors import UserError
from hf_unlearn.methods.fine_tune import FineTuneTrainer
from hf_unlearn.records.method_description import INFO_NCE, PAPER_CITATION, RETAIN, MethodDescription
from hf_unlearn.training.config import StartingPoint, UnlearningConfig, setting
from hf_unlearn.training.shrink_perturb import refuse_other_start


@dataclass
class RetrainConfig(UnlearningConfig):
    """Retrain from scratch on retain; defaults: the paper's CLIP setting (35 epochs, warm-up cosine from 5e-4)."""

    method = "retrain"
    description = MethodDescription(
        title="Retrain",
        summary=(
            "It trains from scratch on the retain split alone: the exact answer that other methods are compared with."
        ),
        equations=(RETAIN, INFO_NCE),
        citation=PAPER_CITATION,
    )
    paper_row = 1

    num_train_epochs: float = setting(35, "Epochs over retain.")
    learning_rate: float = setting(5e-4, "Peak learning rate.")
    lr_scheduler_type: str = setting("cosine", "Learning-rate schedule.")  # type: ignore[assignment]
    warmup_steps: float = setting(0.05, "Warm-up steps; below 1, a share of all steps.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.saliency_share is not None:
            raise UserError(
                "Retrain never sees the unlearn split, by which saliency_share ranks weights; set it for others "
                "alone, as in --neg_grad.saliency_share"
            )
        if self.shrink_perturb:
            raise UserError(
                "Retrain draws every weight anew, so shrink_perturb would have no effect; set it for others alone, as "
                "in --neg_grad.shrink_perturb"
            )

    def check_for(self, splits: Mapping[str, Any], start: StartingPoint) -> None:
        """As every config does; what is frozen must have been trained before."""
        super().check_for(splits, start)
        if self.freeze is not None and not start.has_initial:
            raise UserError(
                "Retrain draws every weight anew, and a frozen encoder would stay random; name --initial_model, or set "
                "freeze for others alone, as in --neg_grad.freeze"
            )


class RetrainTrainer(FineTuneTrainer):
    """Minimises InfoNCE (Eq. 1) on retain, as Fine-Tune does, but from new weights.

    The model passed in gives the architecture only; its weights are drawn anew from `args.seed`, or are those of the
    initial model, where one is given: of a fine-tuned model, exact unlearning is fine-tuning again.

    Raises:
        UserError: as its base class does, and with a `peft_config` but no initial model.
    """

    config_class = RetrainConfig

    def __init__(
        self,
        model: PreTrainedModel,
        args: RetrainConfig,
        *positional: Any,
        initial_model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("peft_config") is not None and initial_model is None:
            raise UserError(
                "Retrain draws every weight anew, which no adapter can hold; leave peft_config unset, or give "
                "initial_model"
            )
        if initial_model is not None:  # the base class sees the copy alone
            refuse_other_start(initial_model, model, getattr(kwargs.get("processing_class"), "tokenizer", None))
        set_seed(args.seed)
        start = type(model)(deepcopy(model.config)) if initial_model is None else deepcopy(initial_model)
        super().__init__(start, args, *positional, **{**kwargs, "initial_model": initial_model})
