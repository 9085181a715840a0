"""A picture is told from that of other matrices by the colours of its cells."""

import numpy as np
import pytest
from PIL import Image

from hf_unlearn.figures.heatmaps import plot_alignment_matrices
from hf_unlearn.figures.reading import agreeing_cells


def panels(before, after):
    return {"before": before, "after": after, "gap": before - after}


@pytest.mark.parametrize(
    ("n", "title", "captioned"),
    [
        (1, None, False),
        (2, "Alignment Calibration", True),
        (6, None, True),
        (6, "Alignment Calibration", False),
        (8, None, False),
        (9, "Alignment Calibration", True),
        (16, None, True),
        (17, "Alignment Calibration", False),
        (60, "Alignment Calibration", True),
    ],
)
def test_a_picture_agrees_with_its_own_matrices_alone(tmp_path, n, title, captioned):
    before, after = np.random.default_rng(n).uniform(-1, 1, size=(2, n, n))
    captions = [f"sample {'x' * (i % 9)}" for i in range(n)] if captioned else None
    images = [Image.new("RGB", (20, 20), "red")] * n if captioned else None
    path = plot_alignment_matrices(before, after, tmp_path / "am.png", title=title, captions=captions, images=images)
    assert agreeing_cells(path, panels(before, after), captions) == 1
    other = agreeing_cells(path, panels(after, before), captions)
    assert other is None or other < 0.9
    if n > 1:
        changed = after.copy()
        changed[0, 1] += 0.5 if changed[0, 1] < 0 else -0.5
        assert agreeing_cells(path, panels(before, changed), captions) < 1


def test_a_broken_cell_is_grey(tmp_path):
    before, after = np.random.default_rng(0).uniform(-1, 1, size=(2, 4, 4))
    after[1, 2] = np.nan
    path = plot_alignment_matrices(before, after, tmp_path / "am.png")
    assert agreeing_cells(path, panels(before, after)) == 1
    assert agreeing_cells(path, panels(before, np.nan_to_num(after))) < 1


def test_another_picture_of_the_same_size_disagrees(tmp_path):
    before, after = np.random.default_rng(0).uniform(-1, 1, size=(2, 6, 6))
    path = plot_alignment_matrices(before, after, tmp_path / "am.png")
    size = Image.open(path).size
    noise = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    assert agreeing_cells(path, panels(before, after)) < 0.2
    Image.new("RGB", (10, 10)).save(path)
    assert agreeing_cells(path, panels(before, after)) is None
