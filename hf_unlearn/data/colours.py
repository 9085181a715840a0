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
_SHAPES = ((_BLENDS + 3, 5), (_BLENDS, 2, 4, 8), (3, 4))
_SIZES = [math.prod(shape) for shape in _SHAPES]


@dataclass(frozen=True)
class ColourTable:
    """What each way to colour a view does, by the cumulated probability of the ways.

    A pixel's state has four channels: its colour, and the luminance it had before the hue shift minus that after it.
    The first blend takes the eight channels of `shift_hue` instead; the others leave the last four out.

    Args:
        cumulated: `[m]` probability of the ways up to and including each.
        rows: `[m, 234]` of each way, one after the other: `[6, 5]` from four draws, and 1, to the strengths of three
            blends in their order and to where the circle of hues begins for red, green and blue, in sixths;
            `[3, 2, 4, 8]` these blends at strength 0, each on the state and on its means; `[3, 4]` from the state to
            greyscale or not, and the normalisation's factor.
        unchanged: `[3, 2, 4, 8]` the blends at strength 1, which change nothing.
        offset: `[3, 1]` the normalisation's offset.
        differences: `[3, 3]` from a colour to the differences that its hue is read from.
    """

    cumulated: Tensor
    rows: Tensor
    unchanged: Tensor
    offset: Tensor
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
    low = np.array([*(max(0.0, 1 - strength) for strength in jitter[:3]), -jitter[HUE]])
    high = np.array([*(1 + strength for strength in jitter[:3]), jitter[HUE]])
    drawn = np.concatenate([np.diag(high - low), low[:, None]], axis=1)  # `[4, 5]` from draws, and 1, to strengths
    unturned = np.zeros((_BLENDS + 3, 5))
    unturned[_BLENDS:, 4] = 6, 4, 2
    still = np.stack([np.eye(4), np.zeros((4, 4))])
    rows: list[tuple[float, np.ndarray, np.ndarray, np.ndarray]] = []
    for order in permutations(range(4)):
        blends = [_blend(step, order.index(step) < order.index(HUE)) for step in order if step != HUE]
        chosen = unturned + np.stack([*(drawn[step] for step in order if step != HUE), *[6 * drawn[HUE]] * 3])
        for probability, matrix in ((1 - grayscale, np.eye(3)), (grayscale, grey)):
            rows.append((jitter_probability / 24 * probability, chosen, np.stack(blends), matrix))
    for probability, matrix in ((1 - grayscale, np.eye(3)), (grayscale, grey)):
        rows.append(((1 - jitter_probability) * probability, unturned, np.stack([still] * _BLENDS), matrix))
    rows = [row for row in rows if row[0] > 0]
    probabilities, strengths, blends, matrices = zip(*rows, strict=True)
    cumulated = np.cumsum(probabilities)
    cumulated[-1] = 2.0  # above every draw, whatever the sum's rounding
    shift = -np.array(mean) / np.array(std)
    last = np.concatenate([np.stack(matrices) / np.array(std)[:, None], np.zeros((len(rows), 3, 1))], axis=2)
    parts = (np.stack(strengths), _on_eight_channels(np.stack(blends)), last)
    tables: tuple[npt.ArrayLike, ...] = (
        cumulated,
        np.concatenate([part.reshape(len(rows), -1) for part in parts], axis=1),
        _on_eight_channels(np.stack([still] * _BLENDS)),
        shift[:, None],
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


def _on_eight_channels(blends: np.ndarray) -> np.ndarray:
    """`[..., 3, 2, 4, 8]` of blends of the state `[..., 3, 2, 4, 4]`: the first takes what `shift_hue` gives."""
    former = np.eye(3, 8, 5)
    shifted = np.eye(3, 8, 2)  # V - 2 C + C w
    shifted[:, :2] = 1, -2
    state = np.concatenate([shifted, np.array(LUMINANCE)[None] @ (former - shifted)])
    wide = np.concatenate([blends, np.zeros_like(blends)], axis=-1)
    wide[..., 0, :, :, :] = blends[..., 0, :, :, :] @ state
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
    strengths = torch.baddbmm(chosen[..., 4:], chosen[..., :4], draws[1:].T[..., None])  # [n, 6, 1]
    flat = pixels.flatten(2)
    state = torch.cat([*shift_hue(flat, strengths[:, _BLENDS:], table), flat], dim=1)
    blends = torch.lerp(blends, table.unchanged, strengths[:, :_BLENDS, :, None, None])
    for blend in blends.unbind(1):
        own, means = blend[..., : state.shape[1]].unbind(1)
        state = torch.baddbmm(means @ state.mean(2, keepdim=True), own, state)
        state[:, :3].clamp_(0, 1)
    return torch.baddbmm(table.offset, last, state).view_as(pixels)


def shift_hue(pixels: Tensor, begin: Tensor, table: ColourTable) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the hue of HSV, as torchvision's `adjust_hue` does.

    With V the largest channel, C its distance to the smallest and h the hue in sixths of the circle, a channel is
    `V - C (2 - w)`, `w = clamp(|t - 2|, 1, 2)` and `t = (h + k) mod 6`, k = 5, 3, 1 for red, green and blue.

    Args:
        pixels: `[n, 3, m]` in [0, 1].
        begin: `[n, 3, 1]` `k + 1`, and the shift, in sixths of the circle.
        table: constants.

    Returns:
        V `[n, 1, m]`, C `[n, 1, m]` and C w `[n, 3, m]`; what follows is linear in them.
    """
    largest, index = pixels.max(1, keepdim=True)
    chroma = largest - pixels.amin(1, keepdim=True)
    half_hue = torch.addcdiv(index, (table.differences @ pixels).gather(1, index), chroma.clamp(min=1e-12), value=0.5)
    place = torch.add(begin, half_hue, alpha=2)  # t + 1, so that the distance is to 3
    return largest, chroma, place.remainder_(6).sub_(3).abs_().clamp_(1, 2).mul_(chroma)


def normalise_grey(pixels: Tensor, draws: Tensor, table: ColourTable) -> Tensor:
    """Greyscale and normalisation alone, where no jitter is asked for; as `colour`, with `draws [1, n]`."""
    last = table.ways(draws[0])[-1]
    return torch.baddbmm(table.offset, last[..., :3], pixels.flatten(2)).view_as(pixels)
