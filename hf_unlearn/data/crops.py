"""Random resized crops of a whole batch: which boxes torchvision draws, and how often, worked out once.

`RandomResizedCrop` draws an area and an aspect ratio until the rounded box fits the picture. For a uniform area and a
log-uniform ratio, width and height before rounding are uniform over the region that the two ranges allow, since
`dA dlog(r) = 2 dw dh`. So a rounded box's probability is the share of that region that rounds to it. A draw is then one
look-up in the cumulated probabilities, without a loop of tries and without a value read on the host.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_unlearn.data.device import kept

RATIO = (3 / 4, 4 / 3)  # of width to height
TRIES = 10  # of torchvision, before it takes the whole picture
_POINTS = 64  # of the midpoint rule within a pixel of width
_BELOW_ONE = 1 - 2**-20  # keeps a rounded product below the number of places


@dataclass(frozen=True)
class BoxTable:
    """Every box and mirroring that can be drawn from pictures of one size.

    Args:
        cumulated: `[m]` probability of the entries up to and including each.
        geometry: `[m, 5, 2]`, x and y of, in half pictures unless said: half the box's sides, x's negative where
            mirrored; share of the draws that each place (pixel) has; centre of the box at the first place; least and
            largest coordinate within the box, in half boxes, beyond which torchvision repeats the box's rim.
        step: `[2]` one pixel in half pictures.
        places: `[2, size, size]` where the output's pixels lie in the box along x and y, in half boxes.
    """

    cumulated: Tensor
    geometry: Tensor
    step: Tensor
    places: Tensor


def box_probabilities(height: int, width: int, scale: tuple[float, float]) -> np.ndarray:
    """Probability of every box that torchvision's `RandomResizedCrop.get_params` draws.

    Args:
        height: of the picture, in pixels.
        width: likewise.
        scale: range of the box's share of the area, before rounding.

    Returns:
        `[height, width]` probability of a box of (row + 1) x (column + 1) pixels.
    """
    area = height * width
    # The area lies within the scale's range and the ratio within RATIO, so that these hold for the unrounded width:
    reach = math.sqrt(scale[1] * area * RATIO[1])
    columns = math.floor(reach + 0.5) + 1
    w = (np.arange(columns * _POINTS) + 0.5) / _POINTS - 0.5  # midpoints within pixels 0, 1, 2, ...
    w = np.where(w > 0, w, np.nan)
    low = np.maximum(scale[0] * area / w, w / RATIO[1])
    high = np.minimum(scale[1] * area / w, w / RATIO[0])
    allowed = float(np.nansum(np.clip(high - low, 0, None)))
    rows = np.arange(1, height + 1)[:, None]
    if scale[0] == scale[1]:  # one area: the region is a curve, along which the logarithm of the width is uniform
        h = scale[0] * area / w
        inside = (w / h >= RATIO[0] * (1 - 1e-9)) & (w / h <= RATIO[1] * (1 + 1e-9))
        cells = np.where(inside & (np.abs(h - rows) <= 0.5), 1 / w, 0.0)
        allowed = float(np.nansum(np.where(inside, 1 / w, 0.0)))
    else:
        cells = np.clip(np.minimum(high, rows + 0.5) - np.maximum(low, rows - 0.5), 0, None)
    found = np.nan_to_num(cells).reshape(height, columns, _POINTS).sum(-1)
    fitting = np.zeros((height, width))
    shared = min(width + 1, columns)
    fitting[:, : shared - 1] = found[:, 1:shared]
    fitting /= allowed
    missed = max(0.0, 1 - fitting.sum())
    tries = sum(missed**place for place in range(TRIES))  # 1 / (1 - missed) for endless ones
    boxes = fitting * tries
    whole_height = min(height, round(width / RATIO[0]))
    boxes[whole_height - 1, min(width, round(height * RATIO[1])) - 1] += missed**TRIES
    return boxes / boxes.sum()


@lru_cache(maxsize=16)
def box_table(
    height: int, width: int, scale: tuple[float, float], flip: float, size: int, device: torch.device
) -> BoxTable:
    """The boxes of a size of pictures, with and without mirroring, on `device`; worked out once and then kept.

    Args:
        height: of the pictures, in pixels.
        width: likewise.
        scale: range of the box's share of the area.
        flip: probability of mirroring.
        size: side of the output.
        device: where to keep it.
    """
    probabilities = box_probabilities(height, width, scale)
    h, w = (place + 1 for place in np.nonzero(probabilities))
    extent = np.array([width, height], dtype=float)
    sides = np.stack([w, h], axis=1).astype(float)
    half, inner = sides / extent, 1 - 1 / sides
    geometry = np.stack([half, 1 / ((extent - sides + 1) * _BELOW_ONE), half - 1, -inner, inner], axis=1)
    mirrored = geometry.copy()
    mirrored[:, 0, 0] *= -1
    plain = probabilities[np.nonzero(probabilities)]
    cumulated = np.cumsum(np.concatenate([plain * (1 - flip), plain * flip]))
    cumulated[-1] = 2.0  # above every draw, whatever the sum's rounding
    places = (2 * np.arange(size) + 1) / size - 1
    tables = (cumulated, np.concatenate([geometry, mirrored]), 2 / extent, np.stack(np.meshgrid(places, places)))
    return BoxTable(*(kept(table, device) for table in tables))


def crop(pixels: Tensor, draws: Tensor, table: BoxTable) -> Tensor:
    """Cut a box out of every picture, mirror some, and resize bilinearly as torchvision does without antialiasing.

    Args:
        pixels: `[n, 3, H, W]` float.
        draws: `[3, n]` in [0, 1): of the box and its mirroring, and of its place along x and y.
        table: boxes of pictures of this size.

    Returns:
        `[n, 3, size, size]`.
    """
    entry = torch.searchsorted(table.cumulated, draws[0], right=True)
    half, share, first, least, largest = table.geometry[entry].unbind(1)
    centre = torch.addcmul(first, torch.div(draws[1:].T, share, rounding_mode="floor"), table.step)
    centre, half, least, largest = (each[..., None, None] for each in (centre, half, least, largest))
    grid = torch.addcmul(centre, half, table.places.clamp(least, largest)).permute(0, 2, 3, 1)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
