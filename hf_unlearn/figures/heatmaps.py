"""Pictures of alignment matrices: AM before, AM after and AGM as heatmaps.

Every panel of a picture shares one colour scale, symmetric about zero, so a colour means the same value everywhere.
Figures are built without pyplot: no global state, no display needed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from hf_unlearn.errors import UserError
from hf_unlearn.figures.axis_labels import ColumnKind, label_axes, thumbnail
from hf_unlearn.figures.drawing import INK, MINUS, MUTED, new_figure, save
from hf_unlearn.figures.layout import BAR, MAX_LABELS, MAX_VALUES, PANEL, PanelLayout
from hf_unlearn.metrics.alignment_matrices import Matrix, alignment_gap_matrix, diagonal_statistics, square

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR_MAP = "RdBu_r"
NO_VALUE = "#b8b8b8"  # of cells without a value, for a zero or broken embedding


def plot_alignment_matrices(
    am_before: ArrayLike,
    am_after: ArrayLike,
    path: str | Path,
    *,
    images: Sequence[Image.Image] | None = None,
    captions: Sequence[str] | None = None,
    column_kind: ColumnKind | None = None,
    title: str | None = None,
) -> Path:
    """Draw AM before, AM after and AGM side by side on one symmetric colour scale.

    Args:
        am_before: Alignment matrix `[n, n]` before unlearning.
        am_after: Alignment matrix `[n, n]` after unlearning, on the same samples.
        path: Where to write the PNG.
        images: The samples' `n` pictures, shown on the axes up to 16 samples.
        captions: The samples' `n` captions, written below the columns; without them, numbers.
        column_kind: What the columns are, by default captions if there are any, else second views.
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
        _draw_panels(panels, images, captions, column_kind, title), path, shown=_shown(am_before, images, captions)
    )


def plot_agm_grid(
    gaps: Mapping[str, ArrayLike],
    path: str | Path,
    *,
    images: Sequence[Image.Image] | None = None,
    captions: Sequence[str] | None = None,
    column_kind: ColumnKind | None = None,
    title: str | None = None,
) -> Path:
    """Draw the alignment gap matrices of several methods on one symmetric colour scale.

    Args:
        gaps: Heading of a panel to its AGM `[n, n]`, all on the same samples.
        path: Where to write the PNG.
        images: As for `plot_alignment_matrices`, as are the others.
        captions: The samples' `n` captions.
        column_kind: What the columns are.
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
    return save(_draw_panels(panels, images, captions, column_kind, title), path, shown=shown)


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


def _draw_panels(
    panels: Mapping[str, Matrix],
    images: Sequence[Image.Image] | None,
    captions: Sequence[str] | None,
    column_kind: ColumnKind | None,
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

    layout = PanelLayout(n, len(panels), tuple(captions) if captions else None, titled=bool(title))
    width, height = layout.width, layout.height
    limit = symmetric_limit(list(panels.values()))
    figure = new_figure(width, height)
    if title:
        figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", fontsize=12.5, fontweight="bold", color=INK)
    thumbnails = [thumbnail(image) for image in images] if images and n <= MAX_LABELS else None
    for index, (name, matrix) in enumerate(panels.items()):
        x, y = layout.corner(index)
        axes = figure.add_axes((x / width, y / height, PANEL / width, PANEL / height))
        _draw_heatmap(axes, name, matrix, limit)
        label_axes(axes, thumbnails, captions, column_kind or ("captions" if captions else "views"), n, layout.below)

    colour_axes = figure.add_axes(
        ((width - BAR + 0.12) / width, (layout.bottom + 0.03) / height, 0.15 / width, layout.bar_height / height)
    )
    colour_bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), COLOUR_MAP), cax=colour_axes)
    ticks = np.linspace(-limit, limit, 5).tolist()
    colour_bar.set_ticks(ticks, labels=[f"{tick:g}".replace("-", MINUS) for tick in ticks])
    colour_bar.ax.tick_params(labelsize=8.5, length=2)
    colour_bar.outline.set_visible(False)
    colour_bar.set_label("cosine, or difference of cosines", fontsize=8.5, color=MUTED)
    return figure


def _draw_heatmap(axes: "Axes", name: str, matrix: Matrix, limit: float) -> None:
    """Draw one matrix, from `-limit` to `limit`; cells without a value (a zero or broken embedding) are grey."""
    from matplotlib import colormaps

    n = len(matrix)
    colours = colormaps[COLOUR_MAP].with_extremes(bad=NO_VALUE)
    smoothing = "nearest" if n <= MAX_LABELS else "auto"
    axes.imshow(matrix, cmap=colours, vmin=-limit, vmax=limit, interpolation=smoothing)
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
            dark = np.isfinite(value) and abs(value) > 0.62 * limit
            axes.text(
                column, row, _number(value), ha="center", va="center", fontsize=size, color="white" if dark else INK
            )


def _number(value: float) -> str:
    """Format a cosine in four characters, all a cell of eight has room for: `.87`, `1.00`, and below -1 `-1.3`."""
    if not np.isfinite(value):
        return "n/a"
    text = f"{abs(value):.2f}"
    if float(text) == 0:
        return ".00"
    digits = text[1:] if text.startswith("0") else text
    return digits if value > 0 else MINUS + digits[:3] if value > -1 else MINUS + f"{-value:.1f}"


def _shown(matrix: ArrayLike, images: Sequence[Image.Image] | None, captions: Sequence[str] | None) -> bool:
    """Whether the axes are labelled with samples: many samples get no labels."""
    return bool(images or captions) and len(square(matrix)) <= MAX_LABELS
