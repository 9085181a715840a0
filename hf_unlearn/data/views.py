"""Random views of image batches: one draw for the whole batch, then a handful of operations on its device."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from hf_unlearn.data.colours import ColourTable, colour, colour_table, normalise_grey
from hf_unlearn.data.crops import BoxTable, box_table, crop
from hf_unlearn.data.device import per_channel
from hf_unlearn.data.resizing import Preparation
from hf_unlearn.errors import UserError

Compiler = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]


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

    def matching(self, image_processor: object) -> Self:
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


SIGMA = (0.1, 2.0)  # of the blur, in pixels
_SHARP = 1e-3  # a sigma that blurs nothing
# Rows of a draw: box and mirroring, its place, order of the colours, their strengths, blur.
_BOX, _COLOUR, _BLUR = slice(0, 3), slice(3, 8), slice(8, 10)


class BatchedViews:
    """Draw random views of a whole batch at once, on the batch's device.

    The draws follow torchvision's `RandomResizedCrop`, `RandomHorizontalFlip`, `ColorJitter`, `RandomGrayscale` and
    `GaussianBlur`, each view with its own order of the jitter. One deviation: a crop is resized without antialiasing
    (crops of small pictures are enlarged, where it is void). A seed's views are the same on every device of one kind;
    a CPU and a GPU draw others.

    Args:
        config: what a view is.
    """

    def __init__(self, config: ViewConfig) -> None:
        self.config = config
        self._views_of: Callable[..., Tensor] = _views_of

    def compiled(self, compiler: Compiler) -> Self:
        """The same views by a compiled function, for batches that all have one shape."""
        views = copy(self)
        views._views_of = compiler(_views_of)
        return views

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
        _check(images)
        if not len(images):
            return self.plain(images).unsqueeze(1).expand(-1, count, -1, -1, -1)
        return self.transform(images, self.draw(len(images) * count, images.device, seed))

    def draw(self, views: int, device: torch.device, seed: int) -> Tensor:
        """`[10, views]` uniform draws in [0, 1), all that a batch's views need, from a generator on `device`."""
        generator = torch.Generator(device).manual_seed(seed)
        return torch.rand(_BLUR.stop, views, generator=generator, device=device)

    @torch.no_grad()
    def transform(self, images: Tensor, draws: Tensor) -> Tensor:
        """Views of `images [n, 3, H, W]` that `draws [10, n k]` decide, `[n, k, 3, size, size]`; as calling."""
        config, device = self.config, images.device
        count = draws.shape[1] // len(images)
        height, width = images.shape[-2:]
        boxes = box_table(height, width, config.crop_scale, config.flip, config.size, device)
        table = colour_table(
            config.jitter, config.jitter_probability, config.grayscale, config.mean, config.std, device
        )
        jitters = bool(config.jitter_probability) and any(config.jitter)
        with torch.autocast(device.type, enabled=False):  # colours need more than half precision's 8 bits
            views = self._views_of(images, draws, boxes, table, jitters, config.blur)
        return views.unflatten(0, (len(images), count))

    def plain(self, images: Tensor) -> Tensor:
        """Resize and normalise without augmentation, as the image processor saved beside the model does.

        Args:
            images: `[n, 3, H, W]`, uint8, on any device.

        Returns:
            `[n, 3, size, size]`, float32, normalised.

        Raises:
            UserError: if `images` is not a uint8 batch of RGB pictures.
        """
        _check(images)
        side = self.config.size
        resized = images if images.shape[-2:] == (side, side) else transforms.resize(images, [side, side])
        mean, std = (per_channel(tuple(values), images.device) for values in (self.config.mean, self.config.std))
        return (resized * (1 / 255) - mean) / std


def _views_of(
    images: Tensor, draws: Tensor, boxes: BoxTable, colours: ColourTable, jitters: bool, blur: float
) -> Tensor:
    """`[n k, 3, size, size]`, a function of tensors alone."""
    repeated = images.unsqueeze(1).expand(-1, draws.shape[1] // len(images), -1, -1, -1) * (1 / 255)
    views = crop(repeated.flatten(0, 1), draws[_BOX], boxes)
    views = (colour if jitters else normalise_grey)(views, draws[_COLOUR], colours)
    return _blur(views, draws[_BLUR], blur, views.shape[-1] // 10 | 1) if blur else views


def _blur(views: Tensor, draws: Tensor, probability: float, taps: int) -> Tensor:
    """Gaussian blur of some views, each with its own sigma, as torchvision's; the others are left as they are.

    A blur averages within a channel, so it changes places with greyscale and normalisation, which come before it here.

    Args:
        views: `[n, 3, size, size]`.
        draws: `[2, n]` in [0, 1): whether, and sigma.
        probability: of the blur.
        taps: of the kernel, an odd number.
    """
    sigma = torch.where(draws[0] < probability, SIGMA[0] + (SIGMA[1] - SIGMA[0]) * draws[1], _SHARP)
    distance = torch.arange(taps, device=views.device) - taps // 2
    kernel = (distance / sigma[:, None]).square_().mul_(-0.5).softmax(1).repeat_interleave(3, dim=0)  # [3 n, taps]
    n, _, height, width = views.shape
    groups = len(kernel)
    padded = F.pad(views, (taps // 2,) * 4, mode="reflect").view(1, groups, height + taps - 1, width + taps - 1)
    rows = F.conv2d(padded, kernel.view(groups, 1, taps, 1), groups=groups)
    return F.conv2d(rows, kernel.view(groups, 1, 1, taps), groups=groups).view(n, 3, height, width)


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise UserError(
            f"Views are drawn from uint8 RGB batches [n, 3, H, W], not from {images.dtype} {tuple(images.shape)}: "
            "convert the pictures to RGB and stack them at one size first."
        )
