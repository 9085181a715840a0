"""Training steps of the library's own Trainer, and what they are given."""

from collections.abc import Iterator
from typing import Any

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
from hf_unlearn.training.preprocessor import make_preprocessor
from hf_unlearn.training.trainer import UnlearningTrainer
from speed.rounds import Rounds, Setting, Work, matrix_rate

UNLEARN_SHARE = 0.1  # the paper's 10% task


AC, FINE_TUNE, REFERENCE = "AC", "Fine-Tune", "the reference's construction"


class TrainerStep:
    """The next training step of the library's own Trainer at each call: batch, views, both passes, update."""

    def __init__(self, trainer: UnlearningTrainer) -> None:
        self.trainer = trainer
        self.model, self.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
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


def trainer_step(setting: Setting, method: str, model: nn.Module, processor: Any, data: Dataset, folder: str) -> Work:
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
    unlearn = round(UNLEARN_SHARE * len(data))
    splits = {"retain": data.select(range(unlearn, len(data))), "unlearn": data.select(range(unlearn))}
    preprocessor = make_preprocessor(model, processor, DataConfig())  # type: ignore[arg-type]
    encoded = {name: EncodedSplit(part, preprocessor) for name, part in splits.items()}
    trainer = METHODS[method](
        model,  # type: ignore[arg-type]
        config,
        encoded,
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
    """Pictures in the library's schema."""
    return Dataset.from_dict({"image": [Image.fromarray(picture) for picture in pixels], **columns})


def throughput(setting: Setting, rounds: Rounds, items: str) -> str:
    """How many items AC sees a second, and which share of the hardware's matrix rate that is, end to end."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:  # compiled, it sees none
        rounds.contenders[AC]()
    dtype, size = (torch.bfloat16, 8192) if setting.cuda else (torch.float32, 512 if setting.small else 2048)
    rate = matrix_rate(setting, dtype, size)
    share = 100 * counter.get_total_flops() / rounds.seconds(AC) / rate
    kind = str(dtype).removeprefix("torch.")
    speed = setting.pictures / rounds.seconds(AC)
    return f"AC {speed:.0f} {items}/s, {share:.0f}% of the measured {rate / 1e9:.0f} GFLOP/s of {kind} matrix products"
