"""What a run shows and keeps of a training: a progress bar, and the losses in a file and at the trackers."""

import json
import logging
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import TrainOutput

from hf_unlearn.training.checkpoints import newest_checkpoint

logger = logging.getLogger(__name__)

LOG_NAME = "log.jsonl"
TRACKED = "logs"  # folder of what a tracker writes to disk


class TrainingLog(TrainerCallback):
    """A progress bar on the terminal, and each logged loss as a line of JSON in the run's log file.

    Args:
        training: the method's id, or what else the training is called.
        folder: of the run; without one, nothing is written.
    """

    def __init__(self, training: str, folder: Path | None) -> None:
        self.training, self.folder = training, folder
        self._bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: object, **kwargs: object) -> None:
        """Open the bar, where the training goes on."""
        if state.is_world_process_zero:
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.training,
                disable=args.disable_tqdm,
                leave=False,
                dynamic_ncols=True,
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: object, **kwargs: object) -> None:
        """Move the bar on."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: object, **kwargs: Any) -> None:
        """Write the losses down."""
        logs = kwargs.get("logs")
        if self.folder is None or not state.is_world_process_zero or not logs:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        row = {"training": self.training, "step": state.global_step, **logs}
        with (self.folder / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, default=float) + "\n")

    def on_train_end(self, *_: object, **kwargs: object) -> None:
        """Close the bar at the last step, which it leaves out within a tenth of a second of the one before."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()


def attach_log(trainer: Trainer, training: str, folder: Path | None) -> None:
    """Show a training by one bar instead of a dictionary a loss, and keep its losses in the run's folder.

    Args:
        trainer: before it trains.
        training: the method's id, or what else the training is called.
        folder: of the run; without one, nothing is kept there.
    """
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TrainingLog(training, folder))
    trainer.args.run_name = trainer.args.run_name or training
    for callback in trainer.callback_handler.callbacks:
        # Its own default lies among the checkpoints, which go when the method is finished.
        if folder is not None and isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder / TRACKED / training)


def train_on(trainer: Trainer, called: str, checkpoints: Path | None) -> TrainOutput:
    """Train from the newest checkpoint in a folder on, which is said, or from the start where it has none."""
    checkpoint = newest_checkpoint(checkpoints) if checkpoints is not None else None
    if checkpoint is not None:
        logger.info("%s goes on from %s.", called, checkpoint.name)
    return trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
