"""Few-shot relearning: show a model half of what it forgot and watch the other half."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.resizing import Processor
from hf_unlearn.errors import UserError
from hf_unlearn.methods.fine_tune import FineTuneConfig, FineTuneTrainer

Measured: TypeAlias = float | tuple[float, ...]


class _Curve(TrainerCallback):
    """Measures the model at first and after every so many updates."""

    def __init__(self, measure: Callable[[PreTrainedModel], Measured], every: int) -> None:
        self.measure, self.every = measure, every
        self.points: list[Measured] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.points = [self.measure(kwargs["model"])]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.points.append(self.measure(kwargs["model"]))


def relearn(
    model: PreTrainedModel,
    config: FineTuneConfig,
    shown: EncodedSplit,
    processor: Processor,
    measure: Callable[[PreTrainedModel], Measured],
    steps: int = 20,
    every: int = 1,
) -> npt.NDArray[np.float64]:
    """Fine-tune a copy of a model on some samples and measure it on the way.

    Whatever the model, the same samples come in the same batches: curves of two models differ by what they know. With
    Retrain's curve, `hf_unlearn.metrics.relearning` says which comes back faster.

    Args:
        model: An unlearned model, or Retrain; it is not changed.
        config: How Fine-Tune trains; its number of epochs is not used.
        shown: Encoded samples to learn from, usually half of unlearn; two or more.
        processor: The model's processor.
        measure: What is measured, usually the mean alignment of the other half; a number or several.
        steps: Updates.
        every: Updates between measurements.

    Returns:
        `[steps // every + 1]` measurements, or `[steps // every + 1, k]` of several numbers, the first one before any
        update.

    Raises:
        UserError: There are no two samples to show, no steps, or the training diverges at once.

    Source: "relearn time", Golatkar et al., arXiv 1911.04933; here with other samples measured than shown.
    """
    if steps < 1:
        raise UserError(f"relearning needs at least one update, got {steps}")
    config = deepcopy(config)
    config.max_steps, config.save_strategy, config.checkpoint_minutes = steps, "no", None
    config.logging_strategy = "no"
    curve = _Curve(measure, every)
    trainer = FineTuneTrainer(deepcopy(model), config, {"retain": shown}, processing_class=processor, callbacks=[curve])
    trainer.train()
    return np.array(curve.points)
