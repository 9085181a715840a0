"""SimCLR and MoCo steps, beside the published code's construction."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import transforms

from hf_unlearn.data.sampler import SplitSampler
from hf_unlearn.data.views import VIEW_PRESETS, ViewConfig
from hf_unlearn.models.image_processor import image_processor_of
from hf_unlearn.models.moco import MoCoConfig, MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel
from speed.rounds import Rounds, Row, Setting
from speed.steps import (
    AC,
    FINE_TUNE,
    REFERENCE,
    UNLEARN_SHARE,
    as_dataset,
    endless,
    optimizer_of,
    random_pictures,
    throughput,
    trainer_step,
)


class TorchvisionViews(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Views of every picture, drawn one picture at a time with torchvision."""

    def __init__(self, pixels: np.ndarray, config: ViewConfig, count: int) -> None:
        self.pixels = pixels
        self.count = count
        self.view = transforms.Compose(
            [
                transforms.RandomResizedCrop(config.size, scale=config.crop_scale),
                transforms.RandomHorizontalFlip(config.flip),
                transforms.RandomApply([transforms.ColorJitter(*config.jitter)], config.jitter_probability),
                transforms.RandomGrayscale(config.grayscale),
                transforms.ToTensor(),
                transforms.Normalize(config.mean, config.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.pixels[index])
        return torch.stack([self.view(picture) for _ in range(self.count)]), index


class ReferenceStep:
    """One step of Alignment Calibration as the published CIFAR code constructs it.

    A third view of every picture is drawn and embedded. Each unlearn sample's second view gives way to the third view
    of another unlearn sample, lightly's NT-Xent runs over the mixed batch, and the cosine of the true pairs, weighted
    by the unlearn share, is added. Single precision.
    """

    def __init__(self, setting: Setting, model: SimCLRModel, pixels: np.ndarray) -> None:
        from lightly.loss import NTXentLoss

        self.setting = setting
        self.model = model.to(setting.device).train()  # type: ignore[arg-type]
        self.optimizer = optimizer_of(model)
        self.nt_xent = NTXentLoss(temperature=model.config.temperature)
        retain = len(pixels) - round(UNLEARN_SHARE * len(pixels))
        self.retain = retain
        self.batches = endless(
            torch.utils.data.DataLoader(
                TorchvisionViews(pixels, VIEW_PRESETS["cifar"], 3),
                batch_size=setting.pictures,
                sampler=SplitSampler(retain, len(pixels) - retain, setting.pictures),
                num_workers=setting.workers,
                pin_memory=setting.cuda,
                persistent_workers=setting.workers > 0,
            )
        )

    def __call__(self) -> Tensor:
        """Take the step and return its loss."""
        views, index = next(self.batches)
        views = views.to(self.setting.device, non_blocking=True)
        first, second, third = (self.model.get_projected_features(view) for view in views.unbind(1))
        unlearn = (index >= self.retain).nonzero().flatten().to(self.setting.device)
        mixed = second.clone()
        mixed[unlearn] = third[unlearn.roll(1)]
        positive = F.cosine_similarity(first[unlearn], second[unlearn]).mean()
        loss = self.nt_xent(first, mixed) + UNLEARN_SHARE * positive
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def view_steps(setting: Setting, folder: str) -> Iterator[Row]:
    """SimCLR and MoCo, ResNet-18 with the CIFAR stem."""
    width = 8 if setting.small else 64
    pixels = random_pictures(2 * setting.pictures, 32)
    data, processor = as_dataset(pixels), image_processor_of(VIEW_PRESETS["cifar"])
    step = partial(trainer_step, setting, processor=processor, data=data, folder=folder)

    def simclr() -> SimCLRModel:
        torch.manual_seed(0)
        return SimCLRModel(SimCLRConfig(width=width))

    def moco() -> MoCoModel:
        torch.manual_seed(0)
        return MoCoModel(MoCoConfig(width=width, queue_size=4096))

    views = f"{2 * setting.pictures} views"
    rounds = Rounds(
        setting,
        {
            AC: step("alignment_calibration", simclr()),
            FINE_TUNE: step("fine_tune", simclr()),
            REFERENCE: ReferenceStep(setting, simclr(), pixels),
        },
    )
    yield rounds.compare(f"SimCLR step, {views}", AC, REFERENCE, throughput(setting, rounds, "images"))
    yield rounds.compare(f"SimCLR step, {views}", FINE_TUNE, AC)
    rounds = Rounds(setting, {AC: step("alignment_calibration", moco()), FINE_TUNE: step("fine_tune", moco())})
    yield rounds.compare(f"MoCo step, {views}", FINE_TUNE, AC, throughput(setting, rounds, "images"))
