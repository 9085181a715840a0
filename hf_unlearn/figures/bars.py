"""Bars with error bars, such as those of Fig. 2."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hf_unlearn.errors import UserError
from hf_unlearn.figures.drawing import INK, MINUS, new_figure, save


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
