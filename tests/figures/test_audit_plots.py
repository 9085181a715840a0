import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from hf_unlearn.audit.verdict import run_tests
from hf_unlearn.figures.audit_plots import plot_levels, plot_paired_dots, plot_permutations, plot_power
from hf_unlearn.records.audit_result import Arm, ImageRow

ALL = (plot_paired_dots, plot_permutations, plot_levels, plot_power)


@pytest.fixture
def figures(monkeypatch):
    saved = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), original(self, *a, **k))[1])
    return saved


def result(sizes, seed=0, constant=False):
    """Arms of the given sizes: members lose alignment, the requested ones most of it."""
    rng = np.random.default_rng(seed)
    rows = []
    for arm, size, level, loss in zip(Arm, sizes, (0.9, 0.9, 0.7), (0.2, 0.05, 0.05), strict=True):
        for i in range(size):
            before = level if constant else level + 0.05 * rng.normal()
            after = before - loss + (0 if constant else 0.03 * rng.normal())
            rows.append(ImageRow(f"{arm}-{i}", f"{arm}-{i}", arm, before, after, before, after, 0.1, 0.0))
    return run_tests(rows, permutations=499)


def visible_texts(axes):
    """Texts and labels; ticks beyond the limits have labels that are never drawn."""
    ticks = [
        label
        for axis, place in ((axes.xaxis, 0), (axes.yaxis, 1))
        for label in axis.get_ticklabels()
        if min(axis.get_view_interval()) <= label.get_position()[place] <= max(axis.get_view_interval())
    ]
    return [*axes.texts, axes.xaxis.label, axes.yaxis.label, *ticks]


CASES = {
    "eight": (8, 8, 8),
    "powered": (60, 40, 30),
    "no controls": (8, 0, 0),
    "kept only": (6, 5, 0),
    "one": (1, 0, 0),
    "tiny": (2, 2, 2),
    "never only": (8, 0, 8),
}


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
def test_no_text_is_clipped_or_overlaps_another(tmp_path, figures, sizes):
    audit = result(sizes)
    for plot in ALL:
        path = plot(audit, tmp_path / f"{plot.__name__}.png")
        assert (path is None) == (not (tmp_path / f"{plot.__name__}.png").exists())
    for figure in figures:
        renderer = FigureCanvasAgg(figure).get_renderer()
        axes = figure.axes[0]
        boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in visible_texts(axes) if t.get_text()]
        for text, box in boxes:
            assert figure.bbox.padded(1).contains(box.x0, box.y0), f"clipped: {text}"
            assert figure.bbox.padded(1).contains(box.x1, box.y1), f"clipped: {text}"
        for i, (text, box) in enumerate(boxes):
            for other, second in boxes[i + 1 :]:
                assert not box.padded(-1).overlaps(second.padded(-1)), f"{text!r} over {other!r}"


def test_what_cannot_be_drawn_is_not(tmp_path):
    lone = result((8, 0, 0))
    assert plot_permutations(lone, tmp_path / "x.png") is None and plot_levels(lone, tmp_path / "x.png") is None
    assert plot_power(result((1, 0, 0)), tmp_path / "x.png") is None
    assert not (tmp_path / "x.png").exists()


def test_every_image_is_a_line_and_every_arm_has_its_mean(tmp_path, figures):
    audit = result((5, 4, 3))
    plot_paired_dots(audit, tmp_path / "x.png")
    axes = figures[0].axes[0]
    lines = [line.get_ydata() for line in axes.lines]
    assert len(lines) == 5 + 4 + 3 + 3
    drawn = {tuple(np.round(line, 9)) for line in lines}
    assert {(round(row.before, 9), round(row.after, 9)) for row in audit.images} <= drawn
    for arm in Arm:
        rows = [row for row in audit.images if row.arm is arm]
        mean = (np.mean([row.before for row in rows]), np.mean([row.after for row in rows]))
        assert tuple(np.round(mean, 9)) in drawn
    names = {"requested", "still in training", "never in training"}
    assert {name for name in names if any(name in t.get_text() for t in axes.texts)} == names


def test_broken_images_are_left_out_of_the_lines(tmp_path, figures):
    rows = [ImageRow(f"{i}", f"{i}", Arm.REQUESTED, 0.9, float("nan") if i == 1 else 0.8) for i in range(3)]
    plot_paired_dots(run_tests(rows), tmp_path / "x.png")
    assert len(figures[0].axes[0].lines) == 2 + 1


def test_the_histogram_holds_every_permutation_and_the_observed_line(tmp_path, figures):
    audit = result((6, 6, 0))
    plot_permutations(audit, tmp_path / "x.png")
    axes = figures[0].axes[0]
    assert sum(bar.get_height() for bar in axes.patches if bar.get_height() <= 1) == pytest.approx(1)
    assert axes.lines[0].get_xdata()[0] == audit.tests["T2"].statistic
    assert "all 924 re-assignments" in axes.texts[0].get_text()


def test_levels_are_drawn_with_the_margin(tmp_path, figures):
    audit = result((8, 8, 8))
    plot_levels(audit, tmp_path / "x.png")
    axes = figures[0].axes[0]
    band = next(patch for patch in axes.patches if patch.get_width() == pytest.approx(2 * audit.margin))
    assert band.get_x() == pytest.approx(-audit.margin)
    low, high = axes.get_xlim()
    assert low == -high
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["after, held-back", "before, held-back", "after", "before"]


def test_unbounded_intervals_end_in_arrows(tmp_path):
    audit = result((2, 0, 2))
    assert not np.isfinite(audit.effects["gap_after"].interval.high)
    with Image.open(plot_levels(audit, tmp_path / "x.png")) as image:
        assert image.width > 900


def test_power_curves_pass_through_the_minimum_detectable_effect(tmp_path, figures):
    audit = result((8, 8, 8))
    plot_power(audit, tmp_path / "x.png")
    curves = [line for line in figures[0].axes[0].lines if len(line.get_xdata()) > 2]
    for effect, line in zip(audit.minimum_detectable_effects, curves, strict=True):
        assert np.interp(effect.cosine, *line.get_data()) == pytest.approx(effect.power, abs=0.02)


def test_constant_arms_can_be_drawn(tmp_path):
    audit = result((3, 3, 3), constant=True)
    for plot in ALL:
        if plot(audit, tmp_path / f"{plot.__name__}.png") is None:
            assert plot is plot_power, "without any spread no size of an effect in cosine"
            continue
        colours = Image.open(tmp_path / f"{plot.__name__}.png").convert("RGB").getcolors(2**24)
        coloured = sum(count for count, colour in colours if max(colour) - min(colour) > 10)
        assert coloured > 50, "marks, not axes alone, which are grey"
