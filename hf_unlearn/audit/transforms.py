"""Views of the owner's pictures, drawn once and shown to both encoders: the audit's own and a held-back family.

A view is an ordinary uint8 picture, so an encoder behind an API sees exactly what local weights see. Its draw depends
on the audit's secret seed and on the picture's bytes alone: nobody who knows the pictures can tell the views in
advance, adding a picture changes no other picture's views, and drawing more views changes none of those already drawn.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from hf_unlearn.audit.pictures import Picture
from hf_unlearn.errors import UserError

if TYPE_CHECKING:
    from hf_unlearn.data.views import ViewConfig

Views = NDArray[np.uint8]

BLOCK = 10  # views drawn from one seed; more of them continue with the next block's
NUDGED = 0.05  # share of a picture's numbers that its first nudge moves by one of 255
NUDGES = ((0.0, 0.0), (0.015, 0.02), (0.05, 0.06))
"""Sizes of the nudges: shift and crop as a share of the side, and contrast and brightness as a share of their range."""


def training_views() -> "dict[str, ViewConfig]":
    """The kinds of training views by name: the presets, and `caption` with crops and flips alone as CLIP's training."""
    from hf_unlearn.data.views import VIEW_PRESETS, ViewConfig  # with torchvision, so only once inputs are checked

    return {"caption": ViewConfig(crop_scale=(0.8, 1.0), jitter_probability=0.0, grayscale=0.0), **VIEW_PRESETS}


class TrainingViews:
    """Views as contrastive training draws them: random crop, flip, colour jitter, grayscale, blur.

    Args:
        preset: A name in `training_views()`.
        side: Side of a view in pixels.

    Raises:
        UserError: When the preset is unknown.
    """

    def __init__(self, preset: str, side: int) -> None:
        from hf_unlearn.data.views import BatchedViews

        known = training_views()
        if preset not in known:
            raise UserError(f"There are no views called '{preset}'; choose among {', '.join(known)}.")
        self.preset, self.side = preset, side
        # Not normalised: that is the business of each encoder's own processor.
        self.config = replace(known[preset], size=side, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self._views = BatchedViews(self.config)

    def draw(self, image: Image.Image, seed: int, count: int) -> Views:
        """Draw `count` views `[count, side, side, 3]` of an RGB picture, first scaled to `side` as for training."""
        import torch

        pixels = torch.from_numpy(np.array(fit(image, self.side))).permute(2, 0, 1)[None]
        drawn = self._views(pixels, seed=seed, count=count)[0]
        return (drawn.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()

    def describe(self) -> dict[str, object]:
        """Preset and every probability and range."""
        described = asdict(self.config)
        return {"family": self.preset, **{name: described[name] for name in described if name not in ("mean", "std")}}


class HeldBackViews:
    """Views of another kind than any training draws here: mirror, rotation, shift and scale, blur and noise (T4).

    A model tuned to look right on crops and colour jitter has no such help on these.

    Args:
        side: Side of a view in pixels.
    """

    rotation, shift, scale, blur, noise = 15.0, 0.1, (0.8, 1.1), (0.0, 0.03), (0.0, 12.0)

    def __init__(self, side: int) -> None:
        self.side = side

    def draw(self, image: Image.Image, seed: int, count: int) -> Views:
        """Draw `count` views `[count, side, side, 3]` of an RGB picture."""
        generator = np.random.default_rng(seed)
        square = fit(image, self.side)
        return np.stack([self._draw_one(square, generator) for _ in range(count)])

    def _draw_one(self, square: Image.Image, generator: np.random.Generator) -> Views:
        if generator.random() < 0.5:
            square = ImageOps.mirror(square)
        angle = np.deg2rad(generator.uniform(-self.rotation, self.rotation))
        zoom = generator.uniform(*self.scale)
        shift = generator.uniform(-self.shift, self.shift, size=2) * self.side
        # The inverse map of a rotation and scaling about the centre, then a shift.
        a, b = np.cos(angle) / zoom, np.sin(angle) / zoom
        centre = (self.side - 1) / 2
        x = centre - a * (centre + shift[0]) - b * (centre + shift[1])
        y = centre + b * (centre + shift[0]) - a * (centre + shift[1])
        corner = square.getpixel((0, 0))
        turned = square.transform(
            square.size, Image.Transform.AFFINE, (a, b, x, -b, a, y), Image.Resampling.BILINEAR, fillcolor=corner
        )
        blurred = turned.filter(ImageFilter.GaussianBlur(generator.uniform(*self.blur) * self.side))
        noise = generator.normal(0.0, generator.uniform(*self.noise), size=(self.side, self.side, 3))
        return np.clip(np.asarray(blurred) + noise, 0, 255).round().astype(np.uint8)

    def describe(self) -> dict[str, object]:
        """Every range: degrees, shares of the side, and noise on the 0-255 scale."""
        return {
            "family": "held-back",
            "mirror": 0.5,
            "rotation_degrees": self.rotation,
            "shift": self.shift,
            "scale": self.scale,
            "blur_sigma": self.blur,
            "noise_sigma": self.noise,
        }


ViewFamily = TrainingViews | HeldBackViews


def draw_views(
    pictures: Sequence[Picture], family: ViewFamily, *, seed: int, count: int, skip: int = 0, original_side: int = 0
) -> Views:
    """Draw the views of every picture.

    Args:
        pictures: The pictures, n.
        family: The family of views.
        seed: The audit's seed; each picture's own seeds are derived from it and the picture's bytes.
        count: Views a picture, k, counted from the first.
        skip: How many of them, from the first, are not needed since they were drawn before.
        original_side: When above 0, the first view is the picture as it is, scaled to this side.

    Returns:
        `[n, k - skip, side, side, 3]`, uint8.

    Raises:
        UserError: When a picture can no longer be read.
    """
    return np.stack([_views_of(picture, family, seed, count, original_side)[skip:] for picture in pictures])


def _views_of(picture: Picture, family: ViewFamily, seed: int, count: int, original_side: int) -> Views:
    image = picture.open()
    blocks = -(-count // BLOCK)
    drawn = np.concatenate([family.draw(image, picture_seed(seed, picture, block), BLOCK) for block in range(blocks)])
    if original_side:
        drawn = np.concatenate([np.asarray(fit(image, original_side))[None], drawn])
    return drawn[:count]


def picture_seed(seed: int, picture: Picture, block: int = 0) -> int:
    """A picture's seed for a block of ten views: 48 bits of SHA-256 over the audit's seed and the hash of its bytes."""
    words = f"{seed} {picture.sha256}" + (f" {block}" if block else "")
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:6])


def draw_nudges(pictures: Sequence[Picture], side: int, *, seed: int) -> Views:
    """Draw each picture again after changes of growing size: imperceptible, hardly seen, and small.

    The answers of a network move with the size of the change. Noise laid over answers jumps at a change that hardly
    anybody sees, however it is keyed.

    Args:
        pictures: The pictures, n.
        side: Side of a view in pixels.
        seed: The audit's seed; each picture's own seed is derived from it and the picture's bytes.

    Returns:
        `[n, s, side, side, 3]`, uint8, for the s sizes in `NUDGES`.
    """
    return np.stack([_nudges_of(fit(picture.open(), side), picture_seed(seed, picture)) for picture in pictures])


def _nudges_of(square: Image.Image, seed: int) -> Views:
    generator = np.random.default_rng(seed)
    pixels = np.asarray(square)
    sign = np.where(pixels > 127, -1, 1)
    moved = [(pixels + (generator.random(pixels.shape) < NUDGED) * sign).astype(np.uint8)]
    side = square.width
    for shift, tone in NUDGES[1:]:
        signs = generator.choice([-1.0, 1.0], size=4)
        zoom = 1 - shift
        x, y = (side * (1 - zoom) / 2 * (1 + sign) for sign in signs[:2])
        cropped = square.transform(
            square.size, Image.Transform.AFFINE, (zoom, 0, x, 0, zoom, y), Image.Resampling.BILINEAR
        )
        values = np.asarray(cropped) * (1 + signs[2] * tone) + 255 * signs[3] * tone / 2
        moved.append(np.clip(values, 0, 255).round().astype(np.uint8))
    return np.stack(moved)


def fit(image: Image.Image, side: int) -> Image.Image:
    """Scale an RGB picture's shorter side to `side` pixels and crop the middle, as processors do before training."""
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
