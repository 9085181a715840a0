"""Pictures of alignment matrices: AM before, AM after and AGM as heatmaps, and the bars of Fig. 2.

Every panel of a picture shares one colour scale, symmetric about zero, so a colour means the same value everywhere.
Figures are built without pyplot: no global state, no display needed.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageOps

from hf_unlearn.data.images import to_rgb
from hf_unlearn.errors import UserError
from hf_unlearn.metrics.alignment_matrices import Matrix, alignment_gap_matrix, diagonal_statistics, square

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MINUS = "\N{MINUS SIGN}"
COLOUR_MAP = "RdBu_r"
INK, MUTED = "#1f2328", "#59636e"
DPI = 160
PANEL = 2.62  # inches, the heatmap's side
MAX_VALUES = 8  # samples up to which each cell prints its value
MAX_LABELS = 16  # samples up to which the axes carry thumbnails, captions or numbers
STRIP = 0.5  # inches, a thumbnail's largest side
CAPTION_WIDTH = 18  # characters a line; two lines for few samples, one for more
CHARACTER = 0.064  # inches, a generous width of one character of a caption
MARK = "Samples"  # text field of every PNG: whether it shows samples, which only who draws it knows for sure
SHOWN, NOT_SHOWN = "shown", "not shown"


SecondHalves = Literal["captions", "views"]


def plot_alignment_matrices(
    am_before: ArrayLike,
    am_after: ArrayLike,
    path: str | Path,
    *,
    images: Sequence[Image.Image] | None = None,
    captions: Sequence[str] | None = None,
    second_halves: SecondHalves | None = None,
    title: str | None = None,
) -> Path:
    """Draw AM before, AM after and AGM side by side on one symmetric colour scale.

    Args:
        am_before: Alignment matrix `[n, n]` before unlearning.
        am_after: Alignment matrix `[n, n]` after unlearning, on the same samples.
        path: Where to write the PNG.
        images: The samples' `n` pictures, shown on the axes up to 16 samples.
        captions: The samples' `n` captions, written below the columns; without them, numbers.
        second_halves: What the columns are, by default captions if there are any, else second views.
        title: A heading for the whole picture.

    Returns:
        The path written.

    Raises:
        UserError: When the matrices, pictures and captions do not agree in number.

    Source: Alignment Calibration (arXiv 2406.03603), section 4.2, Figs. 3, 5 and 6.
    """
    panels = {
        "AM before": square(am_before),
        "AM after": square(am_after),
        f"AGM = before {MINUS} after": alignment_gap_matrix(am_before, am_after),
    }
    return save(
        _draw_panels(panels, images, captions, second_halves, title), path, shown=_shown(am_before, images, captions)
    )


def plot_agm_grid(
    gaps: Mapping[str, ArrayLike],
    path: str | Path,
    *,
    images: Sequence[Image.Image] | None = None,
    captions: Sequence[str] | None = None,
    second_halves: SecondHalves | None = None,
    title: str | None = None,
) -> Path:
    """Draw the alignment gap matrices of several methods on one symmetric colour scale.

    Args:
        gaps: Heading of a panel to its AGM `[n, n]`, all on the same samples.
        path: Where to write the PNG.
        images: The samples' `n` pictures, shown on the axes up to 16 samples.
        captions: The samples' `n` captions, written below the columns; without them, numbers.
        second_halves: What the columns are, by default captions if there are any, else second views.
        title: A heading for the whole picture.

    Returns:
        The path written.

    Raises:
        UserError: When no matrix is given, or matrices, pictures and captions do not agree in number.

    Source: Alignment Calibration (arXiv 2406.03603), Figs. 5 and 6.
    """
    if not gaps:
        raise UserError("A grid of alignment gap matrices needs at least one method; got none.")
    panels = {name: square(gap) for name, gap in gaps.items()}
    shown = _shown(next(iter(panels.values())), images, captions)
    return save(_draw_panels(panels, images, captions, second_halves, title), path, shown=shown)


def plot_bars(
    values: Mapping[str, tuple[float, float]],
    path: str | Path,
    *,
    ylabel: str = "negative alignment gap",
    title: str | None = None,
) -> Path:
    """Draw one bar a method with its error bar, such as the off-diagonal of the gap matrix (Fig. 2).

    Args:
        values: Method to (mean, standard deviation).
        path: Where to write the PNG.
        ylabel: What the bars measure.
        title: A heading for the picture.

    Returns:
        The path written.

    Raises:
        UserError: When there is nothing to draw.

    Source: Alignment Calibration (arXiv 2406.03603), Fig. 2.
    """
    if not values:
        raise UserError("A bar chart needs at least one method; got none.")
    figure = new_figure(max(4.5, 1.15 * len(values) + 1.2), 3.4)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    names = [textwrap.fill(name, 13, break_long_words=False) for name in values]
    means, deviations = np.array(list(values.values()), dtype=np.float64).T
    bars = axes.bar(names, means, yerr=deviations, width=0.62, color="#4c78a8", capsize=4, ecolor=INK, zorder=2)
    for bar, mean, deviation in zip(bars, means, deviations, strict=True):
        up = mean >= 0
        axes.annotate(
            f"{mean:.3f}".replace("-", MINUS),
            (bar.get_x() + bar.get_width() / 2, mean + (deviation if up else -deviation)),
            xytext=(0, 4 if up else -4),
            textcoords="offset points",
            ha="center",
            va="bottom" if up else "top",
            fontsize=8.5,
            color=INK,
        )
    axes.margins(y=0.16)
    axes.axhline(0, color=INK, linewidth=0.8, zorder=3)
    axes.grid(axis="y", color="#d8dee4", linewidth=0.6, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    axes.set_ylabel(ylabel, fontsize=9.5)
    if title:
        axes.set_title(title, fontsize=11, color=INK)
    return save(figure, path)


def symmetric_limit(matrices: Sequence[Matrix]) -> float:
    """Return the colour scale's end: the largest finite magnitude, rounded up to a tenth.

    Args:
        matrices: Everything that shares the scale.

    Returns:
        A limit `v` in tenths, at least 0.1; the scale runs from `-v` to `v`.

    >>> symmetric_limit([np.array([[0.31, -0.52]])])
    0.6
    """
    largest = max((float(np.abs(m[np.isfinite(m)]).max(initial=0.0)) for m in matrices), default=0.0)
    # The tolerance keeps a cosine of 1 + 1e-16 from stretching the scale to 1.1.
    return max(1, int(np.ceil(largest * 10 - 1e-6))) / 10


def thumbnail(image: Image.Image, side: int = 96) -> Image.Image:
    """Crop the middle square of a picture, on white where it is transparent, and scale it to `side` pixels.

    Args:
        image: A picture of any size and mode.
        side: Edge length in pixels.

    Returns:
        An RGB picture `side` x `side`.
    """
    return ImageOps.fit(to_rgb(image), (side, side), Image.Resampling.LANCZOS)


def short_caption(caption: str, lines: int = 2) -> str:
    """Wrap a caption to a few short lines, with an ellipsis where it was cut.

    Args:
        caption: Any text.
        lines: How many lines of at most 18 characters there is room for.

    Returns:
        The wrapped text; an empty caption becomes the empty-set sign.

    >>> short_caption("a dog on a long leash", lines=1)
    'a dog on a long…'
    """
    return "\n".join(textwrap.wrap(caption, CAPTION_WIDTH, max_lines=lines, placeholder="…")) or "∅"


def _draw_panels(
    panels: Mapping[str, Matrix],
    images: Sequence[Image.Image] | None,
    captions: Sequence[str] | None,
    second_halves: SecondHalves | None,
    title: str | None,
) -> "Figure":
    """Lay the heatmaps out in rows of three, each with its labels, and one colour bar for all of them."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    n = len(next(iter(panels.values())))
    for name, matrix in panels.items():
        if len(matrix) != n:
            raise UserError(
                f"The panel '{name}' has {len(matrix)} samples but the others have {n}; use the same samples."
            )
    for what, items in (("pictures", images), ("captions", captions)):
        if items is not None and len(items) != n:
            raise UserError(f"The matrices have {n} samples but {len(items)} {what} were given; pass one for each.")

    labelled = n <= MAX_LABELS
    strip = min(PANEL / n, STRIP)
    left = strip + 0.36 if labelled else 0.36
    below = (_caption_strip(captions) if captions else strip) if labelled else 0.04
    bottom = below + 0.34
    top, gap, bar = 0.52, 0.16, 1.05
    heading = 0.36 if title else 0.0
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    width = columns * (left + PANEL) + (columns - 1) * gap + 0.1 + bar
    height = heading + rows * (top + PANEL + bottom) + 0.06

    limit = symmetric_limit(list(panels.values()))
    scale = Normalize(-limit, limit)
    figure = new_figure(width, height)
    if title:
        figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", fontsize=12.5, fontweight="bold", color=INK)
    thumbnails = [thumbnail(image) for image in images] if images and labelled else None
    for index, (name, matrix) in enumerate(panels.items()):
        row, column = divmod(index, columns)
        x = left + column * (left + PANEL + gap)
        y = height - heading - row * (top + PANEL + bottom) - top - PANEL
        axes = figure.add_axes((x / width, y / height, PANEL / width, PANEL / height))
        _draw_heatmap(axes, name, matrix, scale)
        _label_axes(axes, thumbnails, captions, second_halves or ("captions" if captions else "views"), n, below)

    colour_axes = figure.add_axes(
        (
            (width - bar + 0.12) / width,
            (bottom + 0.03) / height,
            0.15 / width,
            (height - heading - bottom - top) / height,
        )
    )
    colour_bar = figure.colorbar(ScalarMappable(scale, COLOUR_MAP), cax=colour_axes)
    ticks = np.linspace(-limit, limit, 5).tolist()
    colour_bar.set_ticks(ticks, labels=[f"{tick:g}".replace("-", MINUS) for tick in ticks])
    colour_bar.ax.tick_params(labelsize=8.5, length=2)
    colour_bar.outline.set_visible(False)
    colour_bar.set_label("cosine, or difference of cosines", fontsize=8.5, color=MUTED)
    return figure


def _draw_heatmap(axes: "Axes", name: str, matrix: Matrix, scale: Any) -> None:
    """Draw one matrix; cells without a value (a zero or broken embedding) are grey."""
    from matplotlib import colormaps

    n = len(matrix)
    colours = colormaps[COLOUR_MAP].with_extremes(bad="#b8b8b8")
    axes.imshow(matrix, cmap=colours, norm=scale, interpolation="nearest" if n <= MAX_LABELS else "auto")
    statistics = diagonal_statistics(matrix)
    axes.text(0.5, 1.105, name, transform=axes.transAxes, ha="center", va="bottom", fontsize=11, color=INK)
    summary = f"diagonal {_number(statistics.diagonal_mean)}"
    if n > 1:
        summary += f" · off-diagonal {_number(statistics.off_diagonal_mean)}"
    axes.text(0.5, 1.03, summary, transform=axes.transAxes, ha="center", va="bottom", fontsize=8.5, color=MUTED)
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    if 1 < n <= MAX_LABELS:  # thin lines between few cells; at many they would eat the data
        between, ends = np.arange(0.5, n - 1), (-0.5, n - 0.5)
        axes.vlines(between, *ends, color="white", linewidth=0.8)
        axes.hlines(between, *ends, color="white", linewidth=0.8)
        axes.set(xlim=ends, ylim=ends[::-1])
    if n <= MAX_VALUES:
        size = min(11.0, 26.5 * PANEL / n)
        for (row, column), value in np.ndenumerate(matrix):
            dark = np.isfinite(value) and abs(value) > 0.62 * scale.vmax
            axes.text(
                column, row, _number(value), ha="center", va="center", fontsize=size, color="white" if dark else INK
            )


def _label_axes(
    axes: "Axes",
    thumbnails: Sequence[Image.Image] | None,
    captions: Sequence[str] | None,
    second_halves: SecondHalves,
    n: int,
    below: float,
) -> None:
    """Put thumbnails, captions or numbers along the axes, and name the axes; many samples get the names alone."""
    rows, columns = {"captions": ("image", "caption"), "views": ("view 1", "view 2")}[second_halves]
    strip = min(PANEL / n, STRIP)
    beside = strip if n <= MAX_LABELS else 0.0
    name: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 9, "color": MUTED}
    many = "" if n <= MAX_LABELS else f" ({n} samples)"
    axes.text(0.5, -(below + 0.1) / PANEL, columns + many, ha="center", va="top", **name)
    axes.text(-(beside + 0.1) / PANEL, 0.5, rows, ha="right", va="center", rotation=90, **name)
    if n > MAX_LABELS:
        return
    label: dict[str, Any] = {"transform": axes.transAxes, "color": INK, "linespacing": 0.95}
    edge = 0.05 / PANEL
    for index in range(n):
        middle = (index + 0.5) / n  # from the left; rows count from the top
        if thumbnails:
            _inset(axes, thumbnails[index], right=-edge, middle=1 - middle, side=strip * 0.88 / PANEL)
        else:
            axes.text(-edge, 1 - middle, str(index + 1), ha="right", va="center", fontsize=9, **label)
        if captions:
            text, size = short_caption(captions[index], _caption_lines(n)), 8.5 if n <= MAX_VALUES else 7.5
            turned: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "top", "multialignment": "right"}
            axes.text(middle, -edge, text, fontsize=size, **turned, **label)
        elif thumbnails:
            _inset(axes, thumbnails[index], top=-edge, middle=middle, side=strip * 0.88 / PANEL)
        else:
            axes.text(middle, -edge, str(index + 1), ha="center", va="top", fontsize=9, **label)


def _caption_lines(n: int) -> int:
    """Lines of a caption that fit under one of n columns."""
    return 2 if n <= MAX_VALUES else 1


def _caption_strip(captions: Sequence[str]) -> float:
    """Inches that captions written upwards take."""
    lines = (line for text in captions for line in short_caption(text, _caption_lines(len(captions))).splitlines())
    return 0.16 + CHARACTER * max(map(len, lines))


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


def _number(value: float) -> str:
    """Format a cosine in four characters, all a cell of eight has room for: `.87`, `1.00`, and below -1 `-1.3`."""
    if not np.isfinite(value):
        return "n/a"
    text = f"{abs(value):.2f}"
    if float(text) == 0:
        return ".00"
    digits = text[1:] if text.startswith("0") else text
    return digits if value > 0 else MINUS + digits[:3] if value > -1 else MINUS + f"{-value:.1f}"


def new_figure(width: float, height: float) -> "Figure":
    """Make an empty white figure outside pyplot.

    Args:
        width: Inches.
        height: Inches.

    Returns:
        The figure, at the resolution of every picture here.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, facecolor="white")


def save(figure: "Figure", path: str | Path, *, shown: bool = False) -> Path:
    """Write a figure as a PNG, marked with whether it shows samples.

    Args:
        figure: What to write.
        path: Where; missing folders are made.
        shown: Whether samples can be recognised on it, by picture or caption.

    Returns:
        The path written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, format="png", metadata={MARK: SHOWN if shown else NOT_SHOWN})
    return target


def shows_samples(path: str | Path) -> bool | None:
    """Read from a PNG that was drawn here whether it shows samples; None for any other picture.

    Args:
        path: A PNG file.
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return {SHOWN: True, NOT_SHOWN: False}.get(picture.info.get(MARK, ""))
    except OSError:  # no picture at all
        return None


def _shown(matrix: ArrayLike, images: Sequence[Image.Image] | None, captions: Sequence[str] | None) -> bool:
    """Whether the axes are labelled with samples: many samples get no labels."""
    return bool(images or captions) and len(square(matrix)) <= MAX_LABELS
