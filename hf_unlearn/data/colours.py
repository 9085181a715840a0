"""Colour jitter and greyscale of a whole batch in one pass: an order and strengths of its own for every view.

torchvision's jitter takes brightness, contrast, saturation and hue in a random order. Each of the first three blends a
picture with something grey, `x <- clamp(f x + (1 - f) g)`, where g is 0, the mean luminance or the pixel's own. So they
are matrices over a pixel's channels and the picture's means, which a table gives for every order. A hue shift turns the
hue and keeps the largest and the smallest channel, so it changes places with such a blend, but for the luminance that
the blend sees. It is therefore made first, once, and the pixel's former colour is kept beside for the blends that
came before it. The result is torchvision's to rounding unless a clamp cuts a pixel before the hue shift.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hf_unlearn.data.device import kept

LUMINANCE = (0.2989, 0.587, 0.114)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_BLENDS = 3
_SHAPES = ((4, 4), (3, 2, 4, 6), (3, 4))
_SIZES = [math.prod(shape) for shape in _SHAPES]


@dataclass(frozen=True)
class ColourTable:
    """What each way to colour a view does, by the cumulated probability of the ways.

    A pixel's state has four channels: its colour, and the luminance it had before the hue shift minus that after it.
    The first blend takes six instead, the colours after and before the shift; the others leave the last two out.

    Args:
        cumulated: `[m]` probability of the ways up to and including each.
        rows: `[m, 172]` of each way, one after the other: `[4, 4]` from the strengths drawn to those of the three
            blends in their order, and the hue's; `[3, 2, 4, 6]` these blends at strength 0, each on the state and on
            its means; `[3, 4]` from the state to greyscale or not, and the normalisation's factor.
        unchanged: `[3, 2, 4, 6]` the blends at strength 1, which change nothing.
        offset: `[3, 1]` the normalisation's offset.
        low: `[4]` least strength of each step.
        high: `[4]` largest strength of each step.
        hues: `[3, 1]` where red, green and blue lie on the circle of hues, in sixths.
        differences: `[3, 3]` from a colour to the differences that its hue is read from.
    """

    cumulated: Tensor
    rows: Tensor
    unchanged: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor
    hues: Tensor
    differences: Tensor

    def ways(self, draws: Tensor) -> list[Tensor]:
        """The three parts of `rows` for every draw `[n]` in [0, 1)."""
        rows = self.rows[torch.searchsorted(self.cumulated, draws, right=True)]
        return [part.unflatten(1, shape) for part, shape in zip(rows.split(_SIZES, dim=1), _SHAPES, strict=True)]


@lru_cache(maxsize=16)
def colour_table(
    jitter: tuple[float, float, float, float],
    jitter_probability: float,
    grayscale: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
) -> ColourTable:
    """The ways to colour a view, on `device`; worked out once and then kept.

    Args:
        jitter: strengths of brightness, contrast, saturation and hue.
        jitter_probability: of the four together.
        grayscale: probability of losing the colour.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        device: where to keep it.
    """
    grey = np.tile(LUMINANCE, (3, 1))
    after = np.zeros((4, 6))  # from the colours after and before the hue shift to the state
    after[:3, :3], after[3, :3], after[3, 3:] = np.eye(3), -np.array(LUMINANCE), LUMINANCE
    still = np.stack([np.eye(4), np.zeros((4, 4))])
    rows: list[tuple[float, np.ndarray, np.ndarray, np.ndarray]] = []
    for order in permutations(range(4)):
        blends = [_blend(step, order.index(step) < order.index(HUE)) for step in order if step != HUE]
        chosen = np.eye(4)[[*(step for step in order if step != HUE), HUE]]
        for probability, matrix in ((1 - grayscale, np.eye(3)), (grayscale, grey)):
            rows.append((jitter_probability / 24 * probability, chosen, np.stack(blends), matrix))
    for probability, matrix in ((1 - grayscale, np.eye(3)), (grayscale, grey)):
        rows.append(((1 - jitter_probability) * probability, np.zeros((4, 4)), np.stack([still] * _BLENDS), matrix))
    rows = [row for row in rows if row[0] > 0]
    probabilities, strengths, blends, matrices = zip(*rows, strict=True)
    cumulated = np.cumsum(probabilities)
    cumulated[-1] = 2.0  # above every draw, whatever the sum's rounding
    steps = np.stack(blends)
    shift = -np.array(mean) / np.array(std)
    last = np.concatenate([np.stack(matrices) / np.array(std)[:, None], np.zeros((len(rows), 3, 1))], axis=2)
    low = [*(max(0.0, 1 - strength) for strength in jitter[:3]), -jitter[HUE]]
    high = [*(1 + strength for strength in jitter[:3]), jitter[HUE]]
    parts = (np.stack(strengths), _on_six_channels(steps, after), last)
    tables: tuple[npt.ArrayLike, ...] = (
        cumulated,
        np.concatenate([part.reshape(len(rows), -1) for part in parts], axis=1),
        _on_six_channels(np.stack([still] * _BLENDS), after),
        shift[:, None],
        low,
        high,
        [[6.0], [4.0], [2.0]],
        [[0, 1, -1], [-1, 0, 1], [1, -1, 0]],
    )
    return ColourTable(*(kept(table, device) for table in tables))


def _blend(step: int, before_hue: bool) -> np.ndarray:
    """`[2, 4, 4]` what a step blends with, from the state and from its means."""
    own, means = np.zeros((4, 4)), np.zeros((4, 4))
    if step != BRIGHTNESS:
        part = own if step == SATURATION else means
        part[:3, :3], part[:3, 3] = LUMINANCE, float(before_hue)
    return np.stack([own, means])


def _on_six_channels(blends: np.ndarray, after: np.ndarray) -> np.ndarray:
    """`[..., 3, 2, 4, 6]` of blends of the state `[..., 3, 2, 4, 4]`: the first one takes what the state is made of."""
    wide = np.concatenate([blends, np.zeros_like(blends[..., :2])], axis=-1)
    wide[..., 0, :, :, :] = blends[..., 0, :, :, :] @ after
    return wide


def colour(pixels: Tensor, draws: Tensor, table: ColourTable) -> Tensor:
    """Jitter, greyscale and normalisation of every picture, each as its draws say.

    Args:
        pixels: `[n, 3, H, W]` in [0, 1].
        draws: `[5, n]` in [0, 1): of the order and the greyscale, and of the four strengths.
        table: what can be drawn.

    Returns:
        `[n, 3, H, W]`, normalised.
    """
    chosen, blends, last = table.ways(draws[0])
    drawn = torch.lerp(table.low, table.high, draws[1:].T)
    strengths = (chosen @ drawn[..., None])[..., None]  # [n, 4, 1, 1]
    flat = pixels.flatten(2)
    state = torch.cat([shift_hue(flat, strengths[:, 3, 0], table), flat], dim=1)
    blends = torch.lerp(blends, table.unchanged, strengths[:, :_BLENDS, None])
    for blend in blends.unbind(1):
        own, means = blend[..., : state.shape[1]].unbind(1)
        state = torch.baddbmm(means @ state.mean(2, keepdim=True), own, state)
        state[:, :3].clamp_(0, 1)
    return torch.baddbmm(table.offset, last, state).view_as(pixels)


def shift_hue(pixels: Tensor, shift: Tensor, table: ColourTable) -> Tensor:
    """Turn the hue of HSV, as torchvision's `adjust_hue` does.

    With V the largest channel, C its distance to the smallest and h the hue in sixths of the circle, a channel is
    `V - C clamp(2 - |t - 2|, 0, 1)`, `t = (h + k) mod 6`, k = 5, 3, 1 for red, green and blue.

    Args:
        pixels: `[n, 3, m]` in [0, 1].
        shift: `[n, 1]` in turns of the circle.
        table: constants.

    Returns:
        `[n, 3, m]`.
    """
    largest, index = pixels.max(1, keepdim=True)
    chroma = largest - pixels.amin(1, keepdim=True)
    ascent = (table.differences @ pixels).gather(1, index).div_(chroma.clamp(min=1e-12))
    hue = torch.add(ascent, index, alpha=2)
    place = hue + torch.add(table.hues, shift[..., None], alpha=6)  # t + 1, so that the distance is to 3
    weight = place.remainder_(6).sub_(3).abs_().clamp_(1, 2)
    return torch.addcmul(torch.sub(largest, chroma, alpha=2), chroma, weight)


def normalise_grey(pixels: Tensor, draws: Tensor, table: ColourTable) -> Tensor:
    """Greyscale and normalisation alone, where no jitter is asked for; as `colour`, with `draws [1, n]`."""
    last = table.ways(draws[0])[-1]
    return torch.baddbmm(table.offset, last[..., :3], pixels.flatten(2)).view_as(pixels)
