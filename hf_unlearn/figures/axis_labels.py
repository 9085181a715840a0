"""What stands along the axes of a heatmap: thumbnails, captions or numbers."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps

from hf_unlearn.data.images import to_rgb
from hf_unlearn.figures.drawing import INK, MUTED
from hf_unlearn.figures.layout import MAX_LABELS, MAX_VALUES, PANEL, STRIP, caption_lines, short_caption

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ColumnKind = Literal["captions", "views"]


def thumbnail(image: Image.Image, side: int = 96) -> Image.Image:
    """Crop the middle square of a picture of any size and mode, on white where it is transparent.

    Returns:
        An RGB picture of `side` x `side` pixels.
    """
    return ImageOps.fit(to_rgb(image), (side, side), Image.Resampling.LANCZOS)


def label_axes(
    axes: "Axes",
    thumbnails: Sequence[Image.Image] | None,
    captions: Sequence[str] | None,
    column_kind: ColumnKind,
    n: int,
    below: float,
) -> None:
    """Put thumbnails, captions or numbers along the axes, and name the axes; many samples get the names alone."""
    rows, columns = {"captions": ("image", "caption"), "views": ("view 1", "view 2")}[column_kind]
    strip = min(PANEL / n, STRIP)
    beside = strip if n <= MAX_LABELS else 0.0
    write_name = partial(axes.text, transform=axes.transAxes, fontsize=9, color=MUTED)
    many = "" if n <= MAX_LABELS else f" ({n} samples)"
    write_name(0.5, -(below + 0.1) / PANEL, columns + many, ha="center", va="top")
    write_name(-(beside + 0.1) / PANEL, 0.5, rows, ha="right", va="center", rotation=90)
    if n > MAX_LABELS:
        return
    write = partial(axes.text, transform=axes.transAxes, color=INK, linespacing=0.95)
    edge = 0.05 / PANEL
    for index in range(n):
        middle = (index + 0.5) / n  # from the left; rows count from the top
        if thumbnails:
            _inset(axes, thumbnails[index], right=-edge, middle=1 - middle, side=strip * 0.88 / PANEL)
        else:
            write(-edge, 1 - middle, str(index + 1), ha="right", va="center", fontsize=9)
        if captions:
            text, size = short_caption(captions[index], caption_lines(n)), 8.5 if n <= MAX_VALUES else 7.5
            write(middle, -edge, text, fontsize=size, rotation=90, ha="center", va="top", multialignment="right")
        elif thumbnails:
            _inset(axes, thumbnails[index], top=-edge, middle=middle, side=strip * 0.88 / PANEL)
        else:
            write(middle, -edge, str(index + 1), ha="center", va="top", fontsize=9)


def _inset(
    axes: "Axes",
    image: Image.Image,
    *,
    middle: float,
    side: float,
    right: float | None = None,
    top: float | None = None,
) -> None:
    """Place a square picture beside (`right`) or below (`top`) the heatmap, in fractions of its side."""
    from matplotlib.image import BboxImage
    from matplotlib.transforms import Bbox, TransformedBbox

    x = middle - side / 2 if right is None else right - side
    y = middle - side / 2 if top is None else top - side
    # An image with a box of its own costs a tenth of a set of axes, and there may be ninety.
    box = TransformedBbox(Bbox.from_bounds(x, y, side, side), axes.transAxes)
    axes.add_artist(BboxImage(box, data=np.asarray(image), clip_on=False))
