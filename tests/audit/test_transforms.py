import numpy as np
import pytest
import torch
from audit.conftest import draw, folder_of

from hf_unlearn.audit.pictures import list_pictures
from hf_unlearn.audit.transforms import (
    NUDGES,
    HeldBackViews,
    TrainingViews,
    draw_nudges,
    draw_views,
    fit,
    picture_seed,
    training_views,
)
from hf_unlearn.errors import UserError

FAMILIES = [TrainingViews("cifar", 24), TrainingViews("caption", 24), HeldBackViews(24)]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.describe()["family"])
def test_views_are_pictures_that_depend_on_seed_and_bytes_alone(tmp_path, family):
    pictures = list_pictures(folder_of(tmp_path, 3))
    together = draw_views(pictures, family, seed=5, count=4)
    alone = draw_views(pictures[2:], family, seed=5, count=4)
    assert together.shape == (3, 4, 24, 24, 3) and together.dtype == np.uint8
    np.testing.assert_array_equal(together[2:], alone)
    assert (draw_views(pictures, family, seed=6, count=4) != together).any()
    distinct = {view.tobytes() for view in together.reshape(12, -1)}
    assert len(distinct) > 8  # two flips of one crop may coincide, hardly more


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for family in FAMILIES:
        family.draw(draw(0), 1, 2)
    torch.testing.assert_close(torch.rand(3), expected)


def test_every_preset_of_the_training_is_offered():
    assert {"caption", "cifar", "imagenet", "light"} <= set(training_views())
    with pytest.raises(UserError, match="caption, cifar"):
        TrainingViews("typo", 24)


def test_caption_views_keep_the_colours():
    """CLIP's training crops and flips but does not recolour: a picture of one colour stays as it is."""
    plain = fit(draw(0), 24).resize((1, 1)).resize((24, 24))
    views = TrainingViews("caption", 24).draw(plain, 3, 5)
    assert np.abs(views.astype(int) - np.asarray(plain)).max() <= 1


def test_held_back_geometry_moves_the_picture_as_told(monkeypatch):
    """With noise and blur off, a quarter turn-free zoom about the centre equals PIL's own resize of the middle."""
    family = HeldBackViews(33)
    for name, value in {"rotation": 0.0, "shift": 0.0, "scale": (1.0, 1.0), "blur": (0, 0), "noise": (0, 0)}.items():
        monkeypatch.setattr(HeldBackViews, name, value)
    np.testing.assert_array_equal(family.draw(draw(1), 0, 1)[0], np.asarray(fit(draw(1), 33)))
    monkeypatch.setattr(HeldBackViews, "scale", (2.0, 2.0))
    pixel = np.zeros((33, 33, 3), np.uint8)
    pixel[16, 20] = 255  # four pixels right of the centre: eight after doubling
    from PIL import Image

    seen = family.draw(Image.fromarray(pixel), 0, 1)[0][..., 0]
    assert np.unravel_index(seen.argmax(), seen.shape) == (16, 24)


def test_descriptions_name_every_range():
    told = TrainingViews("light", 24).describe()
    assert told["family"] == "light" and told["crop_scale"] == (0.5, 1.0) and told["size"] == 24
    assert HeldBackViews(24).describe()["rotation_degrees"] == 15.0


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.describe()["family"])
def test_pictures_of_the_same_pixels_in_other_bytes_have_views_of_their_own(tmp_path, family):
    """Else all pictures of an audit would share their crops, and their errors."""
    for name, level in (("a.png", 1), ("b.png", 9)):
        draw(0).save(tmp_path / name, compress_level=level)
    first, second = list_pictures(tmp_path)
    assert picture_seed(5, first) != picture_seed(5, second) and picture_seed(5, first) != picture_seed(6, first)
    views = draw_views([first, second], family, seed=5, count=4)
    assert (views[0] != views[1]).any()


def test_nudges_grow_and_depend_on_seed_and_bytes_alone(tmp_path):
    pictures = list_pictures(folder_of(tmp_path, 6))
    nudges = draw_nudges(pictures, 32, seed=5)
    assert nudges.shape == (6, len(NUDGES), 32, 32, 3) and nudges.dtype == np.uint8
    np.testing.assert_array_equal(nudges[2:3], draw_nudges(pictures[2:3], 32, seed=5))
    assert (nudges != draw_nudges(pictures, 32, seed=6)).any()
    asked = np.stack([np.asarray(fit(picture.open(), 32)) for picture in pictures])
    moved = np.abs(nudges.astype(float) - asked[:, None])
    assert moved[:, 0].max() == 1 and 0 < moved[:, 0].mean() < 0.1
    sizes = moved.mean((2, 3, 4))
    assert (sizes[:, 0] < sizes[:, 1]).all() and sizes[:, 1].mean() < sizes[:, 2].mean() < 30
