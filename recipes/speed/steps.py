"""Training steps of the library's own Trainer, and what they are given."""

import io
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPModel

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.methods import METHODS
from hf_unlearn.training.rows import make_preprocessor
from hf_unlearn.training.trainer import UnlearningTrainer
from speed.rounds import Rounds, Row, Setting, matrix_rate

UNLEARN_SHARE = 0.1  # the paper's 10% task


AC, FINE_TUNE, TARGETED = "AC", "Fine-Tune", "Targeted Calibration"
OURS = {AC: "alignment_calibration", FINE_TUNE: "fine_tune", TARGETED: "targeted_calibration"}


class TrainerStep:
    """The next training step of the library's own Trainer at each call: batch, views, both passes, update."""

    def __init__(self, trainer: UnlearningTrainer) -> None:
        self.trainer = trainer
        self.model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        trainer.create_scheduler(num_training_steps=10_000)  # where the Trainer unwraps the optimiser
        self.optimizer = trainer.optimizer
        trainer.current_gradient_accumulation_steps = 1
        self.batches = endless(trainer.get_train_dataloader())

    def __call__(self) -> Tensor:
        """Take the step and return its loss."""
        loss = self.trainer.training_step(self.model, next(self.batches))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


def endless(loader: Any) -> Iterator[Any]:
    """Batches of a loader, over and over."""
    while True:
        yield from loader


def encoded_splits(model: nn.Module, processor: Any, data: Dataset) -> dict[str, EncodedSplit]:
    """Splits for `trainer_step`, encoded once for every method; validation is a copy of the unlearn rows."""
    unlearn = round(UNLEARN_SHARE * len(data))
    preprocessor = make_preprocessor(model, processor, DataConfig())  # type: ignore[arg-type]
    rows = {"retain": range(unlearn, len(data)), "unlearn": range(unlearn), "validation": range(unlearn)}
    return {name: EncodedSplit(data.select(places), preprocessor) for name, places in rows.items()}


def trainer_step(
    setting: Setting, method: str, model: nn.Module, processor: Any, splits: dict[str, EncodedSplit], folder: str
) -> TrainerStep:
    """The step of a method on a model, with the paper's optimiser for views and AdamW for CLIP."""
    config = METHODS[method].config_class(
        output_dir=folder,
        use_cpu=not setting.cuda,
        bf16=setting.cuda,
        channels_last=True,  # on a CPU an option, which is faster there, too
        torch_compile=setting.compiled,
        per_device_train_batch_size=setting.pictures,
        report_to="none",
    )
    trainer = METHODS[method](
        model,  # type: ignore[arg-type]
        config,
        splits,
        processing_class=processor,
        optimizers=(optimizer_of(model.to(setting.device)), None),
    )
    return TrainerStep(trainer)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """SGD for view encoders, as in the paper; AdamW for CLIP."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if isinstance(model, CLIPModel):
        return torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    return torch.optim.SGD(parameters, lr=0.006, momentum=0.9, weight_decay=5e-4, fused=True)


def random_pictures(count: int, side: int) -> np.ndarray:
    """`[count, side, side, 3]` uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def as_dataset(pixels: np.ndarray, **columns: list[Any]) -> Dataset:
    """Pictures in the library's schema, stored without compression."""
    stored = []
    for picture in pixels:
        Image.fromarray(picture).save(file := io.BytesIO(), "BMP")
        stored.append({"bytes": file.getvalue(), "path": None})
    return Dataset.from_dict({"image": stored, **columns}).cast_column("image", datasets.Image())


def throughput(setting: Setting, rounds: Rounds, items: str) -> str:
    """How many items AC sees a second, and which share of the hardware's matrix rate that is, end to end."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:  # compiled, it sees none
        rounds.contenders[AC]()
    dtype, size = (torch.bfloat16, 8192) if setting.cuda else (torch.float32, 512 if setting.small else 2048)
    rate = matrix_rate(setting, dtype, size)
    share = 100 * counter.get_total_flops() / rounds.seconds(AC) / rate
    kind = str(dtype).removeprefix("torch.")
    speed = setting.pictures / rounds.seconds(AC)
    return (
        f"AC {speed:.0f} {items}/s, {share:.0f}% of the measured {rate / 1e9:.0f} GFLOP/s of {kind} matrix products; "
        f"its first {setting.first_calls} steps {rounds.begun[AC]:.1f} s"
    )


def compared(rounds: Rounds, work: str, note: str) -> Iterator[Row]:
    """Alignment Calibration against what is not ours, and our other methods against Fine-Tune; the note comes once."""
    pairs = [(AC, other) for other in rounds.contenders if other not in OURS]
    pairs += [(FINE_TUNE, method) for method in (AC, TARGETED) if {method, FINE_TUNE} <= rounds.contenders.keys()]
    for first, second in pairs:
        wanted = " (wanted: at most 1.05)" if first == FINE_TUNE else ""
        yield rounds.compare(work + wanted, first, second, note)
        note = ""
