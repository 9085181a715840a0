"""Plots of one owner's audit: paired dots, permutation histogram, levels with the margin, power.

Like the heatmaps they are built without pyplot. Each function takes the audit of one owner and where to write the PNG,
and returns that path; or it writes nothing where the audit has no such result (no control arm, no finite interval), and
says so by returning None.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hf_unlearn.figures.drawing import INK, MINUS, MUTED, new_figure, save
from hf_unlearn.records.audit_result import Arm, AuditResult, Effect, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

ARM_COLOURS = {Arm.REQUESTED: "#b2182b", Arm.STILL_TRAINED: "#2166ac", Arm.NEVER_TRAINED: "#6e7781"}
BAND, GRID = "#dbeadf", "#d8dee4"
MANY = 60  # images of an arm beyond which bands are drawn instead of lines


def plot_paired_dots(result: AuditResult, path: str | Path) -> Path:
    """Draw every image's alignment before and after, joined by a line, arm by arm, with each arm's mean."""
    figure, axes = _axes(6.4, 3.6)
    ticks, labels = [], []
    for place, summary in enumerate(result.arms):
        rows = [row for row in result.images if row.arm is summary.arm]
        pairs = np.array([(row.before, row.after) for row in rows], dtype=np.float64)
        pairs = pairs[np.isfinite(pairs).all(1)]
        x = np.array([4 * place, 4 * place + 1.8])
        colour = ARM_COLOURS[summary.arm]
        if len(pairs) > MANY:
            _bands(axes, x, pairs, colour)
        else:
            axes.plot(x, pairs.T, color=colour, alpha=0.45, linewidth=0.9, zorder=2)
            tiled = np.tile(x, (len(pairs), 1))
            axes.scatter(tiled, pairs, color=colour, alpha=0.6, s=14, linewidth=0, zorder=3)
        if len(pairs):
            mean = pairs.mean(0)
            axes.plot(x, mean, color=INK, linewidth=2.2, marker="D", markersize=6, zorder=4)
            for position, value, side in zip(x, mean, ("right", "left"), strict=True):
                offset = (-8 if side == "right" else 8, 0)
                axes.annotate(
                    _signed(value), (position, value), offset, textcoords="offset points", ha=side, va="center",
                    fontsize=8.5, color=INK,
                )  # fmt: skip
        ticks += x.tolist()
        labels += ["before", "after"]
        axes.text(
            float(x.mean()),
            1.03,
            f"{summary.arm.words}\nn = {summary.size}",
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=9.5,
            color=colour,
            fontweight="bold",
        )
    axes.set_xticks(ticks, labels)
    axes.set_xlim(-1.1, ticks[-1] + 1.1)
    axes.set_ylabel("alignment of an image (cosine)", fontsize=9)
    return save(figure, path)


def _bands(axes: "Axes", x: Floats, pairs: Floats, colour: str) -> None:
    """The middle half and nine tenths of many images, before and after."""
    for low, high, alpha in ((5, 95, 0.16), (25, 75, 0.3)):
        ends = np.percentile(pairs, [low, high], axis=0)
        axes.fill_between(x, ends[0], ends[1], color=colour, alpha=alpha, linewidth=0, zorder=2)


def plot_permutations(result: AuditResult, path: str | Path) -> Path | None:
    """Draw the main test: what the difference would be under chance re-assignment, and what it is.

    None without a comparison arm, or where nothing changed that chance could re-assign.
    """
    test = result.tests.get("T2")
    if test is None or test.null is None or result.verdict is Verdict.NO_MODEL_CHANGE:
        return None
    figure, axes = _axes(6.4, 3.2)
    edges, counts = np.array(test.null.edges), np.array(test.null.counts)
    share = counts / counts.sum()
    beyond = edges[:-1] >= test.statistic - 1e-12
    axes.bar(
        edges[:-1],
        share,
        width=np.diff(edges),
        align="edge",
        color=[ARM_COLOURS[Arm.REQUESTED] if far else "#b6c2cf" for far in beyond],
        linewidth=0,
        zorder=2,
    )
    axes.axvline(test.statistic, color=INK, linewidth=1.8, zorder=3)
    axes.margins(y=0.22)
    low, high = min(edges[0], test.statistic), max(edges[-1], test.statistic)
    axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    right = test.statistic > (low + high) / 2
    count = f"{test.permutations:,}"
    how = f"all {count} re-assignments" if test.exact else f"{count} random re-assignments"
    axes.annotate(
        f"observed {_signed(test.statistic)}\np = {test.p_value:.2g} ({how})",
        (test.statistic, 1),
        (-6 if right else 6, -4),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        fontsize=8.5,
        color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
    )
    axes.set_xlabel(f"forgetting score, requested {MINUS} {test.arms[1].words} (cosine)", fontsize=9)
    axes.set_ylabel("share of re-assignments", fontsize=9)
    return save(figure, path)


def plot_levels(result: AuditResult, path: str | Path) -> Path | None:
    """Draw how far the requested images stand above non-members, before and after, with the equivalence margin.

    None without images never in training.
    """
    judged = {"gap_after": "T3.equivalence", "held_back.gap_after": "T4.T3.equivalence"}
    rows = [
        (label, _as_judged(result, name, judged.get(name)), colour)
        for label, name, colour in (
            ("before", "gap_before", MUTED),
            ("after", "gap_after", ARM_COLOURS[Arm.REQUESTED]),
            ("before, held-back", "held_back.gap_before", MUTED),
            ("after, held-back", "held_back.gap_after", ARM_COLOURS[Arm.REQUESTED]),
        )
        if name in result.effects
    ]
    if not rows:
        return None
    figure, axes = _axes(6.4, 1.25 + 0.42 * len(rows), grid="x")
    if result.margin is not None and result.margin > 0:
        axes.axvspan(-result.margin, result.margin, color=BAND, zorder=0)
        axes.text(
            0, 1.02, f"non-member band ± {result.margin:.3f}", transform=axes.get_xaxis_transform(),
            ha="center", va="bottom", fontsize=8.5, color="#2f6b3f",
        )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=0.9, zorder=1)
    ends = [v for _, e, _ in rows if e.interval is not None for v in (e.interval.low, e.interval.high)]
    finite = [v for v in (*ends, *(e.estimate for _, e, _ in rows)) if np.isfinite(v)]
    reach = max(*(abs(v) for v in finite), result.margin or 0.0, 1e-3) * 1.12
    axes.set_xlim(-reach, reach)
    for place, (_, effect, colour) in enumerate(rows):
        _draw_interval(axes, effect, len(rows) - 1 - place, colour, reach)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.3)
    axes.set_xlabel(f"alignment, requested {MINUS} never in training (95% interval before, 90% after)", fontsize=9)
    return save(figure, path)


def plot_power(result: AuditResult, path: str | Path) -> Path | None:
    """Draw what the audit could see: chance of finding a true effect, by its size.

    None where no effect, however large, could be found.
    """
    curves = [effect for effect in result.minimum_detectable_effects if effect.curve]
    if not curves:
        return None
    names = {"T1": "T1: gap before", "T2": "T2: targeted change", "forgetting_score": "mean forgetting score"}
    colours = {"T1": "#6e7781", "T2": "#b2182b", "forgetting_score": "#b2182b"}
    figure, axes = _axes(6.4, 3.2)
    target = curves[0].power
    axes.axhline(target, color=MUTED, linewidth=0.9, linestyle="--", zorder=1)
    for effect in curves:
        x, y = np.array(effect.curve).T
        sizes = " + ".join(map(str, effect.sizes))
        axes.plot(x, y, color=colours[effect.test], linewidth=2, label=f"{names[effect.test]}, n = {sizes}", zorder=2)
        if effect.cosine is not None:
            axes.scatter([effect.cosine], [effect.power], color=colours[effect.test], s=40, zorder=3)
            axes.annotate(
                f"{effect.cosine:.3f}", (effect.cosine, effect.power), (-6, 5) if effect.test == "T1" else (7, -11),
                textcoords="offset points", ha="right" if effect.test == "T1" else "left", fontsize=8.5,
                color=colours[effect.test],
            )  # fmt: skip
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0], ["0%", "20%", "40%", "60%", "80%", "100%"])
    axes.set_xlabel("true effect (cosine)", fontsize=9)
    axes.set_ylabel("chance of finding it", fontsize=9)
    axes.legend(fontsize=8.5, frameon=False, loc="lower right")
    return save(figure, path)


def _as_judged(result: AuditResult, name: str, test: str | None) -> Effect:
    """An effect with the interval that the band is judged by: the 90% one of the test of equivalence, after."""
    effect = result.effects[name]
    if test is None or test not in result.tests or effect.interval is None:
        return effect
    return replace(effect, interval=result.tests[test].interval)


def _draw_interval(axes: "Axes", effect: Effect, height: float, colour: str, reach: float) -> None:
    """A dot with its interval; an end that the data cannot bound runs to the edge as an arrow."""
    interval = effect.interval
    ends = () if interval is None else ((interval.low, -reach), (interval.high, reach))
    for end, edge in ends:
        bounded = np.isfinite(end)
        axes.annotate(
            "",
            (end if bounded else edge, height),
            (effect.estimate, height),
            arrowprops={
                "arrowstyle": "-" if bounded else "->",
                "color": colour,
                "linewidth": 2,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )
        if bounded:
            axes.plot([end, end], [height - 0.12, height + 0.12], color=colour, linewidth=2)
    axes.plot(effect.estimate, height, "o", color=colour, markersize=7, zorder=4)
    axes.annotate(
        _signed(effect.estimate), (effect.estimate, height), (0, 6), textcoords="offset points",
        ha="center", va="bottom", fontsize=8.5, color=INK,
    )  # fmt: skip


def _axes(width: float, height: float, grid: str = "y") -> "tuple[Figure, Axes]":
    """One set of axes in the house style."""
    figure = new_figure(width, height)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa4ae")
    axes.grid(axis=grid, color=GRID, linewidth=0.6, zorder=0)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, pad=5)
    return figure, axes


def _signed(value: float) -> str:
    """Three decimals with a true minus sign."""
    return f"{value:z.3f}".replace("-", MINUS)
