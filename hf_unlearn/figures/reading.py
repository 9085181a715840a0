"""Read the heatmaps of a picture back: whether its cells have the colours of given matrices."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_unlearn.figures import drawing
from hf_unlearn.figures.heatmaps import COLOUR_MAP, NO_VALUE, symmetric_limit
from hf_unlearn.figures.layout import PANEL, PanelLayout
from hf_unlearn.metrics.alignment_matrices import Matrix

TOLERANCE = 16  # of 256 levels of a colour channel: two steps of the colour map


def agreeing_cells(
    path: str | Path, panels: Mapping[str, Matrix], captions: Sequence[str] | None = None
) -> float | None:
    """The share of a picture's cells that have the colour of their value.

    A cell is looked at in its four corners, where no figure is printed.

    Args:
        path: A PNG of `plot_alignment_matrices`, with a heading or without.
        panels: Heading to matrix `[n, n]`, in the order of the panels.
        captions: What the columns are labelled with, where they are.

    Returns:
        A share in [0, 1]; None for a picture of another size, which is none of these matrices.
    """
    matrices = list(panels.values())
    n = len(matrices[0])
    with Image.open(path, formats=["PNG"]) as picture:
        layouts = [
            PanelLayout(n, len(matrices), tuple(captions) if captions else None, titled) for titled in (False, True)
        ]
        sizes = [(int(one.width * drawing.DPI), int(one.height * drawing.DPI)) for one in layouts]
        layout = next((one for one, size in zip(layouts, sizes, strict=True) if size == picture.size), None)
        if layout is None:  # and nothing is decoded: a small file can hold a huge picture
            return None
        pixels = np.asarray(picture.convert("RGB"), dtype=np.int16)
    due = _colours(np.stack(matrices), symmetric_limit(matrices))
    agree = [
        (np.abs(_seen(pixels, layout, panel, n) - due[panel]).max(-1) <= TOLERANCE).mean(-1) >= 0.5
        for panel in range(len(matrices))
    ]
    return float(np.mean(agree))


def _seen(pixels: NDArray[np.int16], layout: PanelLayout, panel: int, n: int) -> NDArray[np.int16]:
    """The colours `[n, n, 4, 3]` in the four corners of each cell."""
    x, y = layout.corner(panel)
    left, top = x * drawing.DPI, (layout.height - y - PANEL) * drawing.DPI
    cell = PANEL * drawing.DPI / n
    near, far = [((np.arange(n) + part) * cell) for part in (0.2, 0.8)]
    down = np.rint(top + np.stack([near, near, far, far], -1)).astype(int)
    across = np.rint(left + np.stack([near, far, near, far], -1)).astype(int)
    return pixels[np.minimum(down, len(pixels) - 1)[:, None], np.minimum(across, pixels.shape[1] - 1)[None]]


def _colours(matrices: Matrix, limit: float) -> NDArray[np.int16]:
    """The colours `[panels, n, n, 1, 3]` that the matrices are drawn in."""
    from matplotlib import colormaps

    colours = colormaps[COLOUR_MAP].with_extremes(bad=NO_VALUE)
    scaled = np.ma.masked_invalid((matrices + limit) / (2 * limit))
    return colours(scaled, bytes=True)[..., None, :3].astype(np.int16)
