import numpy as np
import pytest
import torch
from datasets import DatasetDict
from PIL import Image

from hf_unlearn.data.duplicates import difference_hash, near_duplicates
from hf_unlearn.data.encoded import EncodedSplit, EncodedSplits
from hf_unlearn.data.images import to_rgb
from hf_unlearn.data.preprocessing import ImageViewPreprocessor
from hf_unlearn.data.transformed_copies import TRANSFORMS, DerivedSplit, near_copy, plant_near_copies
from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.errors import UserError
from hf_unlearn.models.image_processor import image_processor_of


@pytest.fixture
def pixels(shapes) -> torch.Tensor:
    pictures = [np.array(to_rgb(image)) for image in shapes[:12]["image"]]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_change_pictures_the_same_way_every_time(name, pixels):
    changed = TRANSFORMS[name](pixels)
    assert changed.shape == pixels.shape and changed.dtype == torch.uint8
    assert torch.equal(changed, TRANSFORMS[name](pixels))
    # A batch is changed picture by picture: who else is in it does not matter.
    assert torch.equal(changed[3:4], TRANSFORMS[name](pixels[3:4]))
    if name != "flip":  # the shapes are symmetric
        assert (changed != pixels).flatten(1).any(1).all()


def test_flip_and_crop_equal_numpy(pixels):
    assert np.array_equal(TRANSFORMS["flip"](pixels).numpy(), pixels.numpy()[..., ::-1])
    flat = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    flat[..., :2, :] = 0  # a border that the crop leaves out
    assert (TRANSFORMS["crop"](flat) == 255).all()


def test_near_copies_are_near_by_the_library_s_own_measure(shapes, pixels):
    original = np.array([difference_hash(to_rgb(image)) for image in shapes[:12]["image"]], np.uint64)
    seen = [pixels]
    for number in range(5):
        copy = near_copy(pixels, number)
        assert (copy.int() - pixels.int()).abs().float().mean() < 40
        assert all((copy != other).any() for other in seen)
        seen.append(copy)
        hashes = [difference_hash(Image.fromarray(c.permute(1, 2, 0).numpy())) for c in copy]
        distances = np.bitwise_count(np.array(hashes, np.uint64) ^ original)
        assert np.median(distances) <= 2
    assert near_duplicates(original, original).all()


def test_derived_rows_equal_encoding_them(shapes):
    preprocessor = ImageViewPreprocessor(image_processor_of(VIEW_PRESETS["light"]), VIEW_PRESETS["light"])
    whole = EncodedSplit(shapes, preprocessor)
    some = DerivedSplit(whole, [5, 1, 7])
    fresh = EncodedSplit(shapes.select([5, 1, 7]), preprocessor)
    assert len(some) == 3
    assert torch.equal(some.rows([2, 0])["pixels"], fresh.rows([2, 0])["pixels"])
    flipped = DerivedSplit(some, change=TRANSFORMS["flip"])
    assert torch.equal(flipped.rows([1])["pixels"], fresh.rows([1])["pixels"].flip(-1))
    batch = EncodedSplits(some, flipped).__getitems__([0, 4])
    assert batch["is_unlearn"].tolist() == [False, True]


def test_planted_copies_join_retain_with_ids_and_captions_of_their_own(shapes):
    splits = DatasetDict(
        retain=shapes.select(range(40)), unlearn=shapes.select(range(40, 50)), test=shapes.select([60])
    )
    planted = plant_near_copies(splits, samples=2, copies=3)
    assert {name: len(split) for name, split in planted.items()} == {"retain": 46, "unlearn": 10, "test": 1}
    copies = planted["retain"].select(range(40, 46))
    first, second = splits["unlearn"][0], splits["unlearn"][1]
    assert copies["id"] == [f"{row['id']}~copy-{n}" for row in (first, second) for n in range(3)]
    assert copies[0]["captions"] == first["captions"] and copies[5]["label"] == second["label"]
    pictures = [np.array(to_rgb(image)).tobytes() for image in copies["image"]]
    assert len({*pictures, np.array(to_rgb(first["image"])).tobytes()}) == 7
    assert planted["retain"].features == splits["retain"].features


@pytest.mark.parametrize(("samples", "copies"), [(0, 1), (11, 1), (1, 0)])
def test_what_cannot_be_planted_is_refused(shapes, samples, copies):
    splits = DatasetDict(retain=shapes.select(range(40)), unlearn=shapes.select(range(40, 50)))
    with pytest.raises(UserError, match="cannot be planted"):
        plant_near_copies(splits, samples, copies)
