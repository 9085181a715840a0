"""SimCLR and MoCo steps, beside the published code's construction."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from hf_unlearn.data.sampler import SplitSampler
from hf_unlearn.data.views import VIEW_PRESETS, ViewConfig
from hf_unlearn.models.image_processor import image_processor_of
from hf_unlearn.models.moco import MoCoConfig, MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel
from speed.loss import dense_two_view
from speed.rounds import Rounds, Row, Setting, Work
from speed.steps import (
    AC,
    FINE_TUNE,
    OURS,
    TARGETED,
    UNLEARN_SHARE,
    as_dataset,
    compared,
    encoded_splits,
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
    of another unlearn sample, NT-Xent runs over the mixed batch, and the cosine of the true pairs, weighted by the
    unlearn share, is added. Single precision.

    Args:
        setting: where.
        model: what to train.
        batches: three views `[n, 3, 3, H, W]` of each picture, and the picture's place `[n]`.
        retain: places from here on are of unlearn samples.
    """

    def __init__(
        self, setting: Setting, model: SimCLRModel, batches: Iterator[tuple[Tensor, Tensor]], retain: int
    ) -> None:
        self.setting, self.batches, self.retain = setting, batches, retain
        self.model = model.to(setting.device).train()  # type: ignore[arg-type]
        self.optimizer = optimizer_of(model)
        self.scale = torch.tensor(1 / model.config.temperature, device=setting.device)

    def __call__(self) -> Tensor:
        """Take the step and return its loss."""
        views, index = next(self.batches)
        views = views.to(self.setting.device, non_blocking=True)
        first, second, third = (self.model.get_projected_features(view) for view in views.unbind(1))
        unlearn = (index >= self.retain).nonzero().flatten().to(self.setting.device)
        mixed = second.clone()
        mixed[unlearn] = third[unlearn.roll(1)]
        positive = F.cosine_similarity(first[unlearn], second[unlearn]).mean()
        loss = dense_two_view(first, mixed, self.scale) + UNLEARN_SHARE * positive
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def view_steps(setting: Setting, folder: str) -> Iterator[Row]:
    """SimCLR and MoCo, ResNet-18 with the CIFAR stem."""
    width = 8 if setting.small else 64
    pixels = random_pictures((60 if setting.cuda and not setting.small else 2) * setting.pictures, 32)
    retain = len(pixels) - round(UNLEARN_SHARE * len(pixels))
    data, processor = as_dataset(pixels), image_processor_of(VIEW_PRESETS["cifar"])
    loader: DataLoader[Any] = DataLoader(
        TorchvisionViews(pixels, VIEW_PRESETS["cifar"], 3),
        batch_size=setting.pictures,
        sampler=SplitSampler(retain, len(pixels) - retain, setting.pictures),
        num_workers=setting.workers,
        pin_memory=setting.cuda,
        persistent_workers=setting.workers > 0,
    )

    def simclr() -> SimCLRModel:
        torch.manual_seed(0)
        return SimCLRModel(SimCLRConfig(width=width))

    def moco() -> MoCoModel:
        torch.manual_seed(0)
        return MoCoModel(MoCoConfig(width=width, queue_size=4096))

    splits = encoded_splits(simclr(), processor, data)
    step = partial(trainer_step, setting, processor=processor, splits=splits, folder=folder)
    batches, references = endless(loader), {}
    if setting.cuda:
        ready = [(views.to(setting.device), index) for views, index in islice(batches, 2)]
        references["the published construction, views ready"] = endless(ready)
    if not setting.compiled:  # compilation is nothing to a loader
        references["the published construction" + f", {setting.workers} loader workers" * setting.cuda] = batches
    contenders: dict[str, Work] = {AC: step(OURS[AC], simclr())}
    contenders |= {name: ReferenceStep(setting, simclr(), given, retain) for name, given in references.items()}
    methods = (FINE_TUNE,) if setting.compiled else (FINE_TUNE, TARGETED)
    contenders |= {name: step(OURS[name], simclr()) for name in methods}
    # A round of the loader's begins when nothing is left of what its workers prepared while others ran.
    unclocked = {name: 2 * setting.workers for name, given in references.items() if given is batches}
    views = f"{2 * setting.pictures} views{', compiled' * setting.compiled}"
    rounds = Rounds(setting, contenders, unclocked)
    wanted = "; wanted on a GPU: 25,000 images/s and a ratio of 3"
    yield from compared(rounds, f"SimCLR step, {views}", throughput(setting, rounds, "images") + wanted)
    if setting.seconds_left < 0:
        return
    rounds = Rounds(setting, {name: step(OURS[name], moco()) for name in (AC, *methods)})
    yield from compared(rounds, f"MoCo step, {views}", throughput(setting, rounds, "images"))
