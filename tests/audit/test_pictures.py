import hashlib
import os

import numpy as np
import pytest
from PIL import Image

from hf_unlearn.audit.pictures import list_pictures
from hf_unlearn.errors import UserError


def test_pictures_are_found_in_order_with_the_hash_sha256sum_prints(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.jpg", "sub/c.webp"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "captions.csv").write_text("image,caption\n")
    found = list_pictures(tmp_path)
    assert [picture.name for picture in found] == ["a.jpg", "b.png", "sub/c.webp"]
    assert found[1].sha256 == hashlib.sha256((tmp_path / "b.png").read_bytes()).hexdigest()


def test_names_that_are_one_name_once_readable_are_refused(tmp_path):
    """The first would take the other's place, in whatever order the disk lists them."""
    for raw, colour in ((b"\xe9.png", "red"), ("é.png".encode(), "blue")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / "x.png")
        (tmp_path / "x.png").rename(tmp_path / os.fsdecode(raw))
    with pytest.raises(UserError, match=r"two files that are read as 'é\.png'; rename one"):
        list_pictures(tmp_path)


def test_every_unreadable_picture_is_named(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    (tmp_path / "notes.heic").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"'cut\.png' cannot be used.*'notes\.heic' cannot be used.*replace or remove"):
        list_pictures(tmp_path)


def test_a_decompression_bomb_is_caught_before_it_is_decoded(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"'bomb\.png'.*pixels"):
        list_pictures(tmp_path)


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [("L", 128, 128), ("I;16", 128 * 257, 128), ("RGBA", (0, 0, 0, 0), 255), ("P", 0, 0), ("1", 1, 255)],
)
def test_every_mode_is_opened_as_rgb(tmp_path, mode, colour, seen):
    Image.new(mode, (3, 3), colour).save(tmp_path / "x.png")
    image = list_pictures(tmp_path)[0].open()
    assert image.mode == "RGB" and np.unique(np.asarray(image)).tolist() == [seen]


def test_pictures_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "x.jpg", exif=exif)
    assert list_pictures(tmp_path)[0].open().size == (4, 8)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_a_missing_or_empty_folder_is_named(tmp_path, make):
    folder = tmp_path / "mine"
    make(folder)
    with pytest.raises(UserError, match=r"mine' (does not exist|holds no picture)"):
        list_pictures(folder)
