"""Random views of image batches: one kornia call per batch, an independent draw per image and view."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from hf_unlearn.data.device import per_channel, to_device
from hf_unlearn.data.resizing import Preparation
from hf_unlearn.errors import UserError


@dataclass(frozen=True)
class ViewConfig:
    """How a view is drawn: random resized crop, flip, colour jitter, grayscale, blur, normalisation (in this order).

    Args:
        size: side of a view in pixels.
        crop_scale: range of the cropped area as a share of the image; the aspect ratio is within 3/4 and 4/3.
        flip: probability of a horizontal flip.
        jitter: strength of the jitter in brightness, contrast, saturation and hue.
        jitter_probability: probability of the colour jitter.
        grayscale: probability of losing the colour.
        blur: probability of a Gaussian blur (sigma .1 to 2 pixels, kernel a tenth of the side).
        mean: per-channel mean subtracted from pixel values in [0, 1].
        std: per-channel standard deviation they are then divided by.

    Source: the defaults are the paper's views for CIFAR, SimCLR's (arXiv 2002.05709, App. A) at half strength.
    """

    size: int = 32
    crop_scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.8
    grayscale: float = 0.2
    blur: float = 0.0
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2023, 0.1994, 0.2010)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"A view needs a side of at least one pixel, not {self.size}: set ViewConfig.size.")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError(
                f"crop_scale {self.crop_scale} must be two rising shares of the image's area within (0, 1]."
            )
        for name in ("flip", "jitter_probability", "grayscale", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a probability, so {getattr(self, name)} must be within [0, 1].")

    def matching(self, image_processor: Any) -> ViewConfig:
        """The same views with the size and normalisation of a Hugging Face image processor.

        Args:
            image_processor: processor saved beside a model.

        Returns:
            A copy whose `size`, `mean` and `std` are those of the pictures that the processor prepares.

        Raises:
            UserError: these are not square, not of one size, or not normalised per channel.
        """
        found = Preparation.of(image_processor)
        if found.height != found.width:
            raise UserError(
                f"Views are square, but {type(image_processor).__name__} makes pictures of {found.height} x "
                f"{found.width} pixels; give its size, or crop_size, the same height and width"
            )
        return replace(self, size=found.height, mean=found.mean, std=found.std)


VIEW_PRESETS = {
    "cifar": ViewConfig(),
    "imagenet": ViewConfig(size=224, blur=0.5, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "light": ViewConfig(crop_scale=(0.5, 1.0), jitter=(0.2, 0.2, 0.2, 0.05), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "openmoji": ViewConfig(
        crop_scale=(0.8, 1.0), jitter=(0.1, 0.1, 0.1, 0.02), grayscale=0.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    ),
}
"""Views by name: the paper's for CIFAR, SimCLR's for 224 pixels, gentler ones for small data, and those of the embedded
pictures, gentle enough that a few hundred of them are remembered within two minutes on one core."""


class BatchedViews:
    """Draw random views of a whole batch at once, on the batch's device.

    The draws follow torchvision's `RandomResizedCrop`, `RandomHorizontalFlip`, `ColorJitter`, `RandomGrayscale` and
    `GaussianBlur`, with two deviations: the four jitter steps share one random order per call (their strengths differ
    per view), and a crop is resized without antialiasing (crops of small pictures are enlarged, where it is void).

    Args:
        config: what a view is.
    """

    def __init__(self, config: ViewConfig) -> None:
        from kornia import augmentation  # half a second, paid only by those who draw views

        self.config = config
        size = (config.size, config.size)
        self._crop = augmentation.RandomResizedCrop(size, scale=config.crop_scale)
        steps = (
            (config.flip, augmentation.RandomHorizontalFlip(p=config.flip)),
            (config.jitter_probability, augmentation.ColorJitter(*config.jitter, p=config.jitter_probability)),
            (config.grayscale, augmentation.RandomGrayscale(p=config.grayscale)),
            (
                config.blur,
                augmentation.RandomGaussianBlur((config.size // 10 | 1,) * 2, sigma=(0.1, 2.0), p=config.blur),
            ),
        )
        self._augment = nn.Sequential(*(step for probability, step in steps if probability > 0))

    def __call__(self, images: Tensor, *, seed: int, count: int = 2) -> Tensor:
        """Draw `count` independent views of every image.

        Args:
            images: `[n, 3, H, W]`, uint8, on any device.
            seed: decides every draw; the global random state is neither read nor changed.
            count: number of views per image, k.

        Returns:
            `[n, k, 3, size, size]`, float32, normalised, on the device of `images`.

        Raises:
            UserError: if `images` is not a uint8 batch of RGB pictures.
        """
        if not len(images):
            return self.plain(images).unsqueeze(1).expand(-1, count, -1, -1, -1)
        flat = _unit_range(images).repeat_interleave(count, dim=0)
        # The parameters are drawn on the CPU whatever the device, so the accelerators' states need no saving.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            boxes = self._crop.forward_parameters(flat.shape)["src"]
            flat = self._augment(_resize_boxes(flat, boxes, self.config.size))
        return self._normalise(flat).unflatten(0, (len(images), count))

    def plain(self, images: Tensor) -> Tensor:
        """Resize and normalise without augmentation, as the image processor saved beside the model does.

        Args:
            images: `[n, 3, H, W]`, uint8, on any device.

        Returns:
            `[n, 3, size, size]`, float32, normalised.

        Raises:
            UserError: if `images` is not a uint8 batch of RGB pictures.
        """
        side = self.config.size
        resized = images if images.shape[-2:] == (side, side) else transforms.resize(images, [side, side])
        return self._normalise(_unit_range(resized))

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean, std = (per_channel(tuple(values), pixels.device) for values in (self.config.mean, self.config.std))
        return (pixels - mean) / std


def _resize_boxes(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box out of every image and resize it bilinearly, all at once where kornia would loop over images.

    Args:
        images: `[n, 3, H, W]`.
        boxes: `[n, 4, 2]` on the CPU, the x and y of the corner pixels from the top left on, clockwise.
        size: side of the output.

    Returns:
        `[n, 3, size, size]`.
    """
    extent = torch.tensor([images.shape[-1], images.shape[-2]])
    scale = (boxes[:, 2] - boxes[:, 0] + 1) / extent
    shift = (boxes[:, 2] + boxes[:, 0] + 1) / extent - 1  # of the box's centre from the image's, in half images
    transform = torch.cat([torch.diag_embed(scale), shift.unsqueeze(-1)], dim=-1)
    grid = F.affine_grid(to_device(transform, images.device), [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _unit_range(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise UserError(
            f"Views are drawn from uint8 RGB batches [n, 3, H, W], not from {images.dtype} {tuple(images.shape)}: "
            "convert the pictures to RGB and stack them at one size first."
        )
    return images.float() / 255
