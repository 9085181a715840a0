"""Draw the average gap to Retrain of every method on several benchmarks, from the tables they left.

    python recipes/plot_benchmarks.py recipes/benchmarks/*.csv --output recipes/figures/average_gaps.png

A column for each family, a row for each share of unlearned samples, as the names of the tables say
(`<family>_<data>[_<percent>pct].csv`).
"""

import argparse
import csv
from pathlib import Path

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hf_unlearn.cli.guard import guarded
from hf_unlearn.errors import UserError
from hf_unlearn.figures.drawing import INK, MUTED, new_figure, save
from hf_unlearn.methods import METHODS, PAPER_METHODS, description_of

FAMILIES = {"clip": "CLIP", "simclr": "SimCLR", "moco": "MoCo"}
COLOURS = {"Targeted Calibration": "#b3261e", "the paper's methods": "#1f5f99", "other methods": "#8a939c"}
ENDS = ("before", "retrain_again")  # an untouched model, and the floor: Retrain with another seed
Gaps = dict[str, tuple[float, float]]


def main() -> None:
    """Read the tables and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+", help="CSV files of recipes/benchmark.py")
    parser.add_argument("--output", type=Path, required=True, help="the picture to write")
    given = parser.parse_args()
    panels = {_panel(path): _gaps(path) for path in given.tables}
    shares = sorted({share for share, _ in panels})
    families = [family for family in FAMILIES if any(family == name for _, name in panels)]
    measured = {name for gaps in panels.values() for name in gaps}
    order = [name for name in (ENDS[0], *METHODS) if name in measured][::-1]
    figure = new_figure(0.4 + 3.2 * len(families), 0.8 + (0.5 + 0.2 * len(order)) * len(shares))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(len(shares), len(families), sharey=True, squeeze=False)
    for (share, family), gaps in panels.items():
        axes = grid[shares.index(share)][families.index(family)]
        floor = gaps[ENDS[1]][0]
        axes.axvline(floor, color=INK, linewidth=0.8, linestyle="--", zorder=0)
        for height, name in enumerate(order):
            if name in gaps:
                mean, std = gaps[name]
                axes.errorbar(mean, height, xerr=std, fmt="o", color=_colour(name), markersize=4.5, linewidth=1.2)
        axes.set_yticks(range(len(order)), [_title(name) for name in order], fontsize=8)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_title(f"{FAMILIES[family]}, {share}% unlearned", fontsize=9, color=INK)
        axes.tick_params(labelsize=8, length=0, colors=INK)
        axes.grid(axis="x", color="#e5e8eb", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("average gap to Retrain (points)", fontsize=8, color=MUTED)
    marks = [Line2D([], [], color=colour, marker="o", linestyle="none", markersize=4.5) for colour in COLOURS.values()]
    marks.append(Line2D([], [], color=INK, linewidth=0.8, linestyle="--"))
    names = [*COLOURS, "Retrain with another seed"]
    figure.legend(marks, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
    save(figure, given.output)


def _panel(path: Path) -> tuple[int, str]:
    family, *rest = path.stem.split("_")
    if family not in FAMILIES:
        raise UserError(f"{path} is not named after a family; call it <family>_<data>[_<percent>pct].csv")
    share = rest[-1].removesuffix("pct") if rest and rest[-1].endswith("pct") else "10"
    return int(share), family


def _gaps(path: Path) -> Gaps:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "avg_gap"]
    return {row["run"]: (float(row["mean"]), float(row["std"])) for row in rows}


def _colour(name: str) -> str:
    ours, papers, others = COLOURS.values()
    if name == "targeted_calibration":
        return ours
    return papers if name in PAPER_METHODS else others


def _title(name: str) -> str:
    return description_of(name).title if name in METHODS else "before unlearning"


if __name__ == "__main__":
    guarded(main)
