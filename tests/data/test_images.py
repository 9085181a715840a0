"""Images: every mode to RGB, every kind of damage caught and its row named."""

from __future__ import annotations

import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image as PILImage

from hf_unlearn.data import images as module
from hf_unlearn.data.images import MAX_PIXELS, check_images, read_image, stored_rows, to_rgb
from hf_unlearn.errors import UserError

Encode = Callable[..., bytes]
Rows = Callable[..., Dataset]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def raw_png(width: int, height: int, depth: int, colour: int, pixels: bytes = b"") -> bytes:
    """Write a PNG by hand: Pillow can neither write 16-bit RGB nor claim a size it has not."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(pixels))
        + png_chunk(b"IEND", b"")
    )


def decode(encoded: bytes) -> np.ndarray:
    image = read_image({"bytes": encoded, "path": None})
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_is_passed_through(noise: Callable[..., PILImage.Image]) -> None:
    image = noise(0)
    assert to_rgb(image) is image


def test_transparent_pixels_are_laid_on_white(encode: Encode) -> None:
    values = np.array([[[255, 0, 0, 0], [255, 0, 0, 255], [0, 0, 0, 128]]], np.uint8)
    expected = [[[255, 255, 255], [255, 0, 0], [127, 127, 127]]]
    np.testing.assert_array_equal(decode(encode(PILImage.fromarray(values))), expected)
    grey = PILImage.fromarray(values[..., 2:])  # LA
    np.testing.assert_array_equal(decode(encode(grey))[..., 0], [[255, 0, 127]])


def test_palette_with_and_without_a_transparent_colour(encode: Encode) -> None:
    image = PILImage.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putdata([0, 1])
    np.testing.assert_array_equal(decode(encode(image)), [[[10, 20, 30], [200, 100, 0]]])
    np.testing.assert_array_equal(decode(encode(image, transparency=1)), [[[10, 20, 30], [255, 255, 255]]])


def test_rgb_with_a_transparent_colour(encode: Encode) -> None:
    image = PILImage.new("RGB", (1, 1), (1, 2, 3))
    np.testing.assert_array_equal(decode(encode(image, transparency=(1, 2, 3))), [[[255, 255, 255]]])


def test_grey_and_bilevel(encode: Encode) -> None:
    np.testing.assert_array_equal(decode(encode(PILImage.new("L", (1, 1), 77))), [[[77, 77, 77]]])
    np.testing.assert_array_equal(decode(encode(PILImage.new("1", (1, 1), 1))), [[[255, 255, 255]]])


def test_16_bit_grey_is_scaled_not_clipped(encode: Encode) -> None:
    values = np.array([[0, 128, 129, 1000, 32768, 65535]], np.uint16)
    expected = np.rint(values / 65535 * 255)
    np.testing.assert_array_equal(decode(encode(PILImage.fromarray(values)))[..., 0], expected)
    tiff = encode(PILImage.fromarray(values.astype(">u2")), format="TIFF")
    np.testing.assert_array_equal(decode(tiff)[..., 2], expected)


def test_16_bit_rgb_is_scaled() -> None:
    pixels = b"\0" + struct.pack(">3H", 65535, 32896, 0)
    np.testing.assert_allclose(decode(raw_png(1, 1, 16, 2, pixels)), [[[255, 128, 0]]], atol=1)


def test_cmyk_jpeg(encode: Encode) -> None:
    decoded = decode(encode(PILImage.new("CMYK", (8, 8), (0, 255, 255, 0)), format="JPEG"))
    np.testing.assert_allclose(decoded, np.broadcast_to([255, 0, 0], (8, 8, 3)), atol=8)


@pytest.mark.parametrize("image", [PILImage.new("F", (1, 1)), PILImage.new("I", (1, 1), 70_000)])
def test_modes_without_a_range_are_refused(image: PILImage.Image) -> None:
    with pytest.raises(ValueError, match="save the image with 8 or 16 bits"):
        to_rgb(image)


def test_exif_orientation_is_applied(encode: Encode) -> None:
    image = PILImage.new("RGB", (8, 4), "white")
    exif = PILImage.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert decode(encode(image, format="JPEG", exif=exif)).shape == (8, 4, 3)


def with_exif(encode: Encode, exif: bytes) -> bytes:
    return encode(PILImage.new("RGB", (8, 4), "white"), format="JPEG", exif=b"Exif\0\0" + exif)


def test_a_bomb_is_refused_by_its_header(encode: Encode) -> None:
    side = 1 + int(MAX_PIXELS**0.5)
    for width, height in [(side, side), (30_000, 30_000)]:  # above our limit; above Pillow's hard one
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PILImage.DecompressionBombWarning)
            with pytest.raises(UserError, match="89,478,485"):
                decode(raw_png(width, height, 8, 2))


def damaged(encode: Encode, noise: Callable[..., PILImage.Image]) -> dict[str, bytes | None]:
    good = encode(noise(0, 64))
    return {
        "truncated PNG": good[: len(good) // 2],
        "truncated JPEG": encode(noise(0, 64), format="JPEG")[:600],
        "header alone": good[:20],
        "flipped": good[:60] + b"\xff\x00\xff" + good[63:],
        "text": b"not an image",
        "nothing": b"",
        "missing": None,
        "bomb": raw_png(30_000, 30_000, 8, 2),
        "EXIF of no form": with_exif(encode, b"XX\0\x2a\0\0\0\x08"),
        "EXIF cut off": with_exif(encode, b"MM\0\x2a\0\0\0\x08\0\x05\x01\x12\0\x03"),
        "float": encode(PILImage.new("F", (1, 1)), format="TIFF"),
    }


def test_every_bad_row_is_named(encode: Encode, noise: Callable[..., PILImage.Image], rows: Rows) -> None:
    bad = damaged(encode, noise)
    dataset = rows([*bad.values(), encode(noise(1))], [*bad, "good"])
    with pytest.raises(UserError, match="--skip_bad_images") as caught:
        check_images(dataset)
    for name in bad:
        assert f"{name}: " in str(caught.value)
    assert "good" not in str(caught.value)


def test_skipping_takes_the_flag_and_is_said(
    encode: Encode, noise: Callable[..., PILImage.Image], rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    good = encode(noise(0))
    dataset = rows([good, b"bad", good, None], ["a", "b", "c", "d"])
    with caplog.at_level(logging.WARNING):
        kept = check_images(dataset, skip_bad=True)
    assert kept["id"][:] == ["a", "c"]
    assert "(2)" in caplog.text and "b: it cannot be read" in caplog.text and "d: there is no image" in caplog.text


def test_an_unlearn_image_is_never_skipped(rows: Rows, encode: Encode, noise: Callable[..., PILImage.Image]) -> None:
    good = encode(noise(0))
    splits = DatasetDict(retain=rows([good, b"bad"], ["a", "b"]), unlearn=rows([b"bad", good], ["c", "d"]))
    with pytest.raises(UserError, match=r"\(1; an image to be unlearned is never skipped: fetch it anew, .*\): c: "):
        check_images(splits, skip_bad=True)
    splits["unlearn"] = splits["unlearn"].select([1])
    kept = check_images(splits, skip_bad=True)
    assert {name: split["id"][:] for name, split in kept.items()} == {"retain": ["a"], "unlearn": ["d"]}


def test_long_lists_are_cut(rows: Rows) -> None:
    with pytest.raises(UserError, match=r"cannot be used \(30; .* and 10 more\.$"):
        check_images(rows([b"bad"] * 30))


def test_good_data_is_returned_as_it_is(rows: Rows) -> None:
    dataset = rows(3)
    assert check_images(dataset) is dataset


def test_every_image_is_decoded_once_in_order(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = rows(3)
    repeated = dataset.select([i % 3 for i in range(600)])  # more than two chunks
    pixels = [np.asarray(image).tobytes() for image in dataset["image"]]
    calls = []
    monkeypatch.setattr(module, "read_image", lambda stored: calls.append(1) or read_image(stored))
    assert module.map_images(repeated, lambda image: image.tobytes(), "test") == pixels * 200
    assert len(calls) == 600


def test_stored_rows_are_not_decoded(rows: Rows, encode: Encode) -> None:
    (row,) = stored_rows(rows([b"bad"]), "id", "captions")
    assert row == {"image": {"bytes": b"bad", "path": None}, "id": "0", "captions": ["picture 0"]}


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 301)])
def test_a_thin_picture_is_refused_by_its_header(size: tuple[int, int], encode: Callable[..., bytes]) -> None:
    stored = encode(PILImage.new("L", size))
    cut = stored[:60] if size[0] > 3 else stored  # no pixel is needed to know
    with pytest.raises(UserError, match=f"{size[0]} x {size[1]} pixels, and one side must not be more than 100 times"):
        read_image({"bytes": cut, "path": None})
    assert read_image({"bytes": encode(PILImage.new("L", (2, 200))), "path": None}).size == (2, 200)


def test_a_jpeg_of_endless_scans_is_refused_before_they_are_decoded() -> None:
    """Each takes as long as the picture has pixels, and may have some forty bytes."""
    file = io.BytesIO()
    PILImage.new("RGB", (64, 64)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert read_image({"bytes": data[:-2] + 10 * scan + data[-2:], "path": None}).size == (64, 64)
    with pytest.raises(UserError, match=r"a JPEG of .* scans, more than the 100 allowed"):
        read_image({"bytes": data[:-2] + 100 * scan + data[-2:], "path": None})


PARTS = {
    "segments of a JPEG": ("JPEG", 20, b"\xff\xe1\x00\x02"),
    "bytes between segments": ("JPEG", 20, b"\x00"),
    "bytes that fill up": ("JPEG", 20, b"\xff"),
    "escaped bytes": ("JPEG", 20, b"\xff\x00"),
    "chunks of a PNG": ("PNG", 33, b"\x00\x00\x00\x00prVt" + zlib.crc32(b"prVt").to_bytes(4)),
    "chunks of pixels": ("PNG", 33, b"\x00\x00\x00\x00IDAT" + zlib.crc32(b"IDAT").to_bytes(4)),
    "comments of a GIF": ("GIF", -1, b"\x21\xfe\x01-\x00"),
    "bytes of a comment": ("PPM", 3, b"#"),
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_picture_of_endless_parts_is_refused_before_they_are_all_read(kind: str, encode: Encode) -> None:
    """Pillow walks through them in Python: twenty megabytes of such parts keep it for minutes."""
    format, place, part = PARTS[kind]
    data = encode(PILImage.new("RGB", (5, 4)), format)
    if kind == "comments of a GIF":
        place = data.index(b"\x2c", 13)  # before the picture itself
    few, many = (data[:place] + number * part + data[place:] for number in (20, 60_000))
    if kind != "bytes of a comment":
        assert read_image({"bytes": few, "path": None}).size == (5, 4)
    with pytest.raises(UserError, match="its file consists of too many parts: save it again"):
        read_image({"bytes": many, "path": None})


def test_an_eps_by_any_name_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("a program was run"))
    file = tmp_path / "photo.png"
    PILImage.new("RGB", (4, 4)).save(file, format="EPS")
    with pytest.raises(UserError, match="no image of a known format: JPEG, PNG"):
        read_image({"bytes": None, "path": str(file)})


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats_of_data_sets_are_opened(format: str, encode: Callable[..., bytes]) -> None:
    assert read_image({"bytes": encode(PILImage.new("RGB", (5, 4)), format), "path": None}).size == (5, 4)


def test_every_opening_of_a_picture_names_its_formats() -> None:
    sources = Path(module.__file__).parents[1].rglob("*.py")
    opened = [line for file in sources for line in file.read_text().splitlines() if re.search(r"Image\.open\(", line)]
    assert len(opened) >= 4 and all("formats=" in line for line in opened)


def test_what_is_no_file_is_not_read() -> None:
    with pytest.raises(UserError, match="/dev/zero is no regular file"):
        read_image({"bytes": None, "path": "/dev/zero"})
    with pytest.raises(UserError, match="cannot be read"):
        read_image({"bytes": None, "path": "a\0b"})
