"""What a model's image processor does to a picture, in two parts: it resizes, then scales and shifts each channel.

The first part is done once per picture, by the processor itself. The second is done at every step for a whole batch on
its device; which numbers it takes is measured on plain pictures, for processors name and combine them in many ways.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import torch
from PIL import Image as PILImage
from torch import Tensor

from hf_unlearn.data.device import per_channel
from hf_unlearn.errors import UserError

# Grey levels of the plain pictures, and sides that differ, as those of a dataset's pictures do.
_LEVELS, _SIDES = (0, 85, 170, 255), (48, 56, 64, 72)
_TOLERANCE = 1e-4  # of the range of values; one grey level is 4e-3 of it
# Of transformers: a processor of images and texts, or of images alone. Its parts are attributes that have no types.
Processor: TypeAlias = Any


@dataclass(frozen=True)
class Preparation:
    """An image processor's output: pictures of one size whose pixels are `(pixels / 255 - mean) / std`.

    Args:
        height: of a prepared picture, in pixels.
        width: likewise.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, image_processor: Processor) -> Self:
        """Measure what an image processor does to plain square pictures.

        Its own `image_mean` and `image_std` are taken to the last digit where they explain its output; where they do
        not (they are not used, or an offset or a second division follows), mean and std are those that do.

        Raises:
            UserError: it does not give RGB pictures of one size, or does more to their pixels than to scale and shift.
        """
        name = type(image_processor).__name__
        pictures = [
            PILImage.new("RGB", (side, side), (level,) * 3) for level, side in zip(_LEVELS, _SIDES, strict=True)
        ]
        resized = resize(image_processor, pictures)
        prepared = [torch.as_tensor(picture) for picture in image_processor(pictures)["pixel_values"]]
        shape = resized[0].shape
        if len(shape) != 3 or shape[0] != 3 or any(picture.shape != shape for picture in (*resized, *prepared)):
            raise UserError(
                f"{name} does not give pictures [3, height, width] of one fixed size, which batches are made of; turn "
                "its resizing on, or take a model whose processor gives them (no patches, tiles or sizes that vary)"
            )
        _, height, width = shape
        pixels, wanted = torch.stack(resized) / 255, torch.stack(prepared).float()
        black, white = wanted[0, :, height // 2, width // 2].double(), wanted[-1, :, height // 2, width // 2].double()
        std = 1 / (white - black)
        stated = [getattr(image_processor, statistic, None) for statistic in ("image_mean", "image_std")]
        named = [values for values in stated if isinstance(values, list | tuple)]
        measured = [(-black * std).tolist(), std.tolist()]
        for mean, deviation in (named, measured) if len(named) == 2 else (measured,):
            found = cls(height, width, tuple(mean), tuple(deviation))
            if (found.normalise(pixels) - wanted).abs().max() <= _TOLERANCE * (wanted.max() - wanted.min()):
                return found
        raise UserError(
            f"{name} does more to pixels than to scale and shift each channel, which batches cannot repeat; take a "
            "model whose processor only resizes, crops, rescales and normalises"
        )

    def normalise(self, values: Tensor) -> Tensor:
        """`(values - mean) / std` of `[n, 3, H, W]` float values in [0, 1], on their device."""
        mean, std = (per_channel(statistic, values.device) for statistic in (self.mean, self.std))
        return (values - mean).div_(std)


def resize(image_processor: Processor, pictures: Sequence[PILImage.Image]) -> list[Tensor]:
    """`[3, H, W]` pixels in [0, 255] of every picture, resized and cropped by the processor and no more."""
    off = {"do_rescale": False, "do_normalize": False}
    if hasattr(image_processor, "include_top"):  # EfficientNet's: a second division by the standard deviation
        off["include_top"] = False
    return [torch.as_tensor(picture) for picture in image_processor(pictures, **off)["pixel_values"]]


def check_parts(processor: Processor) -> None:
    """Refuse what is no processor of pictures and texts.

    Raises:
        UserError: It lacks a part.
    """
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise UserError(
            f"{type(processor).__name__} cannot prepare image-text pairs; pass the processor saved with the model "
            "(AutoProcessor.from_pretrained), which holds an image_processor and a tokenizer"
        )
