import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import BboxImage
from PIL import Image

from hf_unlearn.errors import UserError
from hf_unlearn.figures import heatmaps
from hf_unlearn.figures.axis_labels import thumbnail
from hf_unlearn.figures.bars import plot_bars
from hf_unlearn.figures.drawing import shows_samples
from hf_unlearn.figures.heatmaps import plot_agm_grid, plot_alignment_matrices, symmetric_limit
from hf_unlearn.figures.layout import short_caption

CAPTIONS = ["dog", "face with tears of joy", "a very long caption that goes on and on and never ends", "", "x" * 60]


@pytest.fixture
def figures(monkeypatch):
    """The Figure objects that a call saved, to inspect what was drawn."""
    saved = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), original(self, *a, **k))[1])
    return saved


def matrices(n, seed=0):
    before, after = np.random.default_rng(seed).uniform(-1, 1, size=(2, n, n))
    return before, after


def pictures(n):
    return [Image.new("RGB", (40, 30), (25 * i % 256, 90, 160)) for i in range(n)]


def texts(figure):
    inside = [t for axes in figure.axes for t in [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]]
    return [t for t in [*figure.texts, *inside] if t.get_text()]


def extent(text, renderer):
    return text.get_window_extent(renderer)


def test_every_picture_says_whether_it_shows_samples(tmp_path):
    path = tmp_path / "am.png"

    def drawn(n=2, **axes):
        return shows_samples(plot_alignment_matrices(*matrices(n), path, **axes))

    assert drawn() is False
    assert drawn(column_kind="captions") is False  # numbers, under their name
    assert drawn(images=pictures(2)) is True and drawn(captions=CAPTIONS[:2]) is True
    assert drawn(17, images=pictures(17)) is False  # so many get no labels
    assert shows_samples(plot_agm_grid({"a": np.eye(2)}, path, images=pictures(2))) is True
    assert shows_samples(plot_bars({"a": (0.1, 0.1)}, path)) is False
    pictures(1)[0].save(path)
    assert shows_samples(path) is None
    path.write_bytes(b"no picture")
    assert shows_samples(path) is None


@pytest.mark.parametrize(
    ("n", "captioned"), [(1, False), (2, True), (6, True), (8, False), (8, True), (13, True), (200, False)]
)
def test_no_text_is_clipped_or_overlaps_another(tmp_path, figures, n, captioned):
    captions = [CAPTIONS[i % len(CAPTIONS)] for i in range(n)] if captioned else None
    path = plot_alignment_matrices(
        *matrices(n), tmp_path / "a" / "am.png", images=pictures(n), captions=captions, title="MoCo, before and after"
    )
    (figure,) = figures
    renderer = FigureCanvasAgg(figure).get_renderer()
    page = figure.bbox
    boxes = [(t.get_text(), extent(t, renderer)) for t in texts(figure)]
    for text, box in boxes:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, f"clipped: {text}"
    for i, (text, box) in enumerate(boxes):
        for other, second in boxes[i + 1 :]:
            assert not box.padded(-1).overlaps(second.padded(-1)), f"{text!r} over {other!r}"
    thumbnails = [artist for axes in figure.axes for artist in axes.get_children() if isinstance(artist, BboxImage)]
    assert len(thumbnails) == (0 if n > 16 else 3 * n * (1 if captioned else 2))
    for picture in thumbnails:
        box = picture.get_window_extent(renderer)
        assert page.x0 <= box.x0 and page.y0 <= box.y0
        assert not any(box.padded(-1).overlaps(t.padded(-1)) for _, t in boxes)
    with Image.open(path) as image:
        assert image.format == "PNG" and 1400 < image.width < 2000


def test_every_panel_shares_one_scale_symmetric_about_zero(tmp_path, figures):
    before, after = matrices(6)
    plot_alignment_matrices(before, after, tmp_path / "am.png")
    drawn = [a.images[0] for a in figures[0].axes if a.images]
    assert len(drawn) == 3
    limits = {(image.norm.vmin, image.norm.vmax) for image in drawn}
    ((low, high),) = limits
    assert low == -high and high >= np.abs(before - after).max()
    same_value = {tuple(image.cmap(image.norm(0.37))) for image in drawn}
    assert len(same_value) == 1
    np.testing.assert_array_equal(drawn[2].get_array(), before - after)


def test_values_are_printed_up_to_eight_samples_only(tmp_path, figures):
    plot_alignment_matrices(np.full((8, 8), -0.256), np.zeros((8, 8)), tmp_path / "8.png")
    plot_alignment_matrices(np.full((9, 9), -0.256), np.zeros((9, 9)), tmp_path / "9.png")
    count = [sum(t.get_text() == f"{heatmaps.MINUS}.26" for t in texts(f)) for f in figures]
    assert count == [128, 0]


def test_a_broken_cell_is_grey_and_said(tmp_path, figures):
    before, after = matrices(3)
    after[1] = np.nan
    plot_alignment_matrices(before, after, tmp_path / "am.png")
    assert sum(t.get_text() == "n/a" for t in texts(figures[0])) == 6
    assert figures[0].axes[1].images[0].cmap.get_bad()[0] == pytest.approx(0xB8 / 255, abs=0.01)


def test_200_samples_leave_no_gap_between_cells(tmp_path):
    path = plot_alignment_matrices(np.ones((200, 200)), np.ones((200, 200)), tmp_path / "am.png")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    red = (np.abs(pixels - pixels[pixels.shape[0] // 2, 200]) <= 3).all(-1)
    rows, columns = np.where(red[:, :480])
    block = red[rows.min() + 2 : rows.max() - 1, columns.min() + 2 : columns.max() - 1]
    assert block.shape[0] > 380 and block.all()


def test_agm_grid_of_six_methods_shares_one_scale(tmp_path, figures):
    gaps = {f"Method {i}": matrices(8, i)[0] * (i + 1) / 6 for i in range(6)}
    plot_agm_grid(gaps, tmp_path / "grid.png", images=pictures(8), captions=["word"] * 8)
    drawn = [a.images[0] for a in figures[0].axes if a.images]
    assert len(drawn) == 6 and len({i.norm.vmax for i in drawn}) == 1
    tops = {round(a.get_position().y0, 3) for a in figures[0].axes if a.images}
    assert len(tops) == 2


def test_bars_show_mean_and_deviation(tmp_path, figures):
    plot_bars({"Retrain": (0.0, 0.05), "Alignment Calibration": (0.19, 0.08)}, tmp_path / "bars.png", title="Fig. 2")
    axes = figures[0].axes[0]
    assert [p.get_height() for p in axes.patches] == [0.0, 0.19]
    assert {"0.000", "0.190"} <= {t.get_text() for t in axes.texts}


def test_scale_ends_at_the_largest_magnitude_rounded_up():
    assert symmetric_limit([np.array([[1.0 + 1e-12]])]) == 1.0
    assert symmetric_limit([np.array([[0.2, -0.41]]), np.array([[np.nan]])]) == 0.5
    assert symmetric_limit([np.zeros((2, 2))]) == 0.1


def test_thumbnail_shows_transparency_as_white():
    picture = Image.new("RGBA", (50, 20), (0, 0, 0, 0))
    assert thumbnail(picture, 10).getpixel((5, 5)) == (255, 255, 255)
    assert thumbnail(Image.new("I;16", (5, 9)), 10).size == (10, 10)


def test_captions_are_cut_short():
    assert all(len(line) <= 18 for line in short_caption(CAPTIONS[2]).splitlines())
    assert short_caption(CAPTIONS[2]).endswith("…") and len(short_caption(CAPTIONS[2]).splitlines()) == 2
    assert short_caption("") == "∅"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: plot_alignment_matrices(*matrices(3), p, images=pictures(2)), "3 samples but 2 pictures"),
        (lambda p: plot_alignment_matrices(*matrices(3), p, captions=["a"]), "3 samples but 1 captions"),
        (lambda p: plot_agm_grid({}, p), "at least one"),
        (lambda p: plot_agm_grid({"a": np.eye(2), "b": np.eye(3)}, p), "'b' has 3 samples"),
        (lambda p: plot_bars({}, p), "at least one"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, call, words):
    path = tmp_path / "x.png"
    with pytest.raises(UserError, match=words):
        call(path)
    assert not path.exists()
