"""Pictures: stored bytes to RGB pixels, with every way in which a picture can be bad caught and its row named.

Images are decoded lazily. `load_source` decodes none. `check_images` and the search for duplicates decode each image
once and keep only what they need of it (nothing, or hashes); `make_splits` does both in a single pass. Training decodes
again, once, when it encodes the rows.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from hf_unlearn.errors import UserError, listed
from hf_unlearn.parsing import PICTURE_DAMAGE, Fields

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_PIXELS = 1024**3 // 4 // 3  # 89 million; Pillow warns there, too, and raises only at twice as many
# A processor that makes the shorter side of 1 x 20,000 pixels 224 long makes the longer one 4 million.
MAX_SIDE_RATIO = 100
# Of a progressive JPEG, which has about ten: each is decoded over all pixels, and may have a few bytes.
MOST_SCANS = 100
# Pieces in which Pillow may read a file, and one more for each thousand bytes: it walks through the parts of a file in
# Python, and twenty megabytes of empty ones keep it for minutes.
MOST_PIECES = 10_000
# The formats that data sets of pictures have, as Pillow calls its plugins; they read pixels and nothing else, where EPS
# is a program that is handed to Ghostscript. MPO, of cameras with two lenses, is opened as JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
_CHUNK = 256


def to_rgb(image: PILImage.Image) -> PILImage.Image:
    """Convert a picture of any mode to RGB without losing what it shows.

    Transparent pixels (RGBA, LA, a palette with a transparent colour) are laid on white, 16-bit grey values are scaled
    to 8 bits where Pillow's own conversion would clip them, and everything else is converted as Pillow does.

    Args:
        image: Any Pillow image.

    Returns:
        The image in mode "RGB"; the very same object where it already is RGB and opaque.

    Raises:
        ValueError: The mode has no defined range (32-bit integers beyond 16 bits, floats).

    Example:
        >>> to_rgb(PILImage.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
        (255, 255, 255)
        >>> to_rgb(PILImage.new("I;16", (1, 1), 32896)).getpixel((0, 0))
        (128, 128, 128)
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels (mode F) have no defined range: save the image with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _scale_16_bits(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return PILImage.alpha_composite(PILImage.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scale_16_bits(image: PILImage.Image) -> PILImage.Image:
    values = np.asarray(image).astype(np.int64)
    if values.size and not (values.min() >= 0 and values.max() <= 65535):
        raise ValueError("32-bit integer pixels (mode I) exceed 16 bits: save the image with 8 or 16 bits")
    if isinstance(transparent := image.info.get("transparency"), int):
        values[values == transparent] = 65535
    return PILImage.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")  # 65535 = 255 * 257


def read_image(stored: Mapping[str, object]) -> PILImage.Image:
    """Decode one stored image to upright RGB.

    Args:
        stored: `{"bytes": ..., "path": ...}`, as `datasets.Image(decode=False)` gives it; bytes win over the path.

    Returns:
        The RGB image, fully loaded, turned as its EXIF orientation says.

    Raises:
        UserError: The image is missing, unreadable, truncated, none of `FORMATS`, larger than `MAX_PIXELS`, longer than
            `MAX_SIDE_RATIO` times its width or the other way round, a JPEG of over `MOST_SCANS`, in more pieces than
            `MOST_PIECES` says, or its EXIF block is broken.
    """
    try:
        data = encoded_image(stored)
        with PILImage.open(file := InFewPieces(data), formats=opened_formats()) as image:
            check_size(*image.size)
            if image.format in ("BMP", "DIB"):  # whose runs of pixels are read one by one, as many as there are pixels
                file.left = len(data)
            if image.format in ("JPEG", "MPO") and (scans := data.count(b"\xff\xda")) > MOST_SCANS:
                raise UserError(f"it is a JPEG of {scans:,} scans, more than the {MOST_SCANS} allowed: save it again")
            image.load()
            if exif := image.info.get("exif"):  # opening a JPEG has swallowed the error that an unreadable block raises
                PILImage.Exif().load(exif)
            return to_rgb(ImageOps.exif_transpose(image))
    except UserError:
        raise
    except (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning) as error:
        raise UserError(f"it has more than the {MAX_PIXELS:,} pixels allowed") from error
    except UnidentifiedImageError as error:  # whose words name an object in memory
        raise UserError(f"it cannot be read (no image of a known format: {', '.join(FORMATS)})") from error
    except (*PICTURE_DAMAGE, UserWarning) as error:  # a warning only where a filter makes it one, as `map_images` does
        raise UserError(f"it cannot be read ({error})") from error


class InFewPieces(io.BytesIO):
    """The bytes of a picture, for Pillow; a `UserError` once it has read them in too many pieces (`MOST_PIECES`)."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = MOST_PIECES + len(data) // 1000

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file."""
        self.left -= 1
        if self.left < 0:
            raise UserError("its file consists of too many parts: save it again")
        return super().read(size)


@cache
def opened_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow has."""
    PILImage.init()
    return tuple(name for name in FORMATS if name in PILImage.OPEN)


def check_size(width: int, height: int) -> None:
    """Refuse a picture by its size, which its header tells, before its pixels are decoded or resized.

    Raises:
        UserError: It has more than `MAX_PIXELS`, or one side is more than `MAX_SIDE_RATIO` times the other.
    """
    if width * height > MAX_PIXELS:
        raise UserError(f"it has {width} x {height} pixels, more than the {MAX_PIXELS:,} allowed")
    if max(width, height) > MAX_SIDE_RATIO * min(width, height):
        raise UserError(
            f"it has {width} x {height} pixels, and one side must not be more than {MAX_SIDE_RATIO} times the other: "
            "crop it"
        )


def encoded_image(stored: Fields) -> bytes:
    """Return the encoded file of a stored image.

    Raises:
        UserError: There is no image, or its file cannot be read.
    """
    if stored["bytes"] is not None:
        return stored["bytes"]
    if stored["path"] is None:
        raise UserError("there is no image")
    file = Path(stored["path"])
    try:
        if file.exists() and not file.is_file():
            raise UserError(f"its file {file} is no regular file")  # a device or a pipe would never end
        return file.read_bytes()
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise UserError(f"its file {file} cannot be read ({getattr(error, 'strerror', error)})") from error


def stored_rows(dataset: Dataset, *columns: str) -> Iterator[Fields]:
    """Yield every row's `image` as stored, undecoded, with the other columns asked for."""
    from datasets import Image

    rows = dataset.select_columns(["image", *columns]).cast_column("image", Image(decode=False)).with_format(None)
    for batch in rows.iter(batch_size=_CHUNK):
        images = [stored or {"bytes": None, "path": None} for stored in batch["image"]]
        for image, *values in zip(images, *(batch[column] for column in columns), strict=True):
            yield {"image": image, **dict(zip(columns, values, strict=True))}


def map_images(dataset: Dataset, function: Callable[[PILImage.Image], T], description: str) -> list[T | UserError]:
    """Decode every image once, on several threads, for the function's results, with the fault where one is bad."""
    from datasets.utils import tqdm

    def apply(row: Fields) -> T | UserError:
        try:
            return function(read_image(row["image"]))
        except UserError as error:
            return error

    results: list[T | UserError] = []
    rows = stored_rows(dataset)
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(dataset), desc=description, unit=" images", delay=2) as bar,
    ):
        # Pillow only warns of a cut EXIF block and shows the picture as if it had no orientation.
        warnings.filterwarnings("error", "Corrupt EXIF data", UserWarning)
        while chunk := list(islice(rows, _CHUNK)):  # a pool reads its whole input ahead
            results += pool.map(apply, chunk)
            bar.update(len(chunk))
    return results


def check_images(dataset: Dataset | DatasetDict, *, skip_bad: bool = False) -> Dataset | DatasetDict:
    """Decode every image once and refuse, or on request leave out, those that cannot be used.

    Args:
        dataset: A dataset with the columns `id` and `image`, or a dictionary of such splits.
        skip_bad: Leave bad rows out, with a warning that lists them. A bad image in the split `unlearn` is an error all
            the same: what was asked to be removed cannot be skipped.

    Returns:
        The same dataset, or the one without its bad rows.

    Raises:
        UserError: An image is bad; every such row is listed with its fault (the first 20 and a count).
    """
    from datasets import Dataset, DatasetDict

    splits = DatasetDict({"": dataset}) if isinstance(dataset, Dataset) else dataset
    faults = {
        name: map_images(split, lambda _: None, f"Checking images {name}".rstrip()) for name, split in splits.items()
    }
    kept = drop_bad_images(splits, faults, skip_bad=skip_bad)
    return kept[""] if isinstance(dataset, Dataset) else kept


def drop_bad_images(splits: DatasetDict, faults: Mapping[str, Sequence[object]], *, skip_bad: bool) -> DatasetDict:
    """Refuse the rows at whose place in `faults` there is a `UserError`, or leave them out, as `check_images` says."""
    from datasets import DatasetDict

    bad = {
        name: {row: fault for row, fault in enumerate(found) if isinstance(fault, UserError)}
        for name, found in faults.items()
    }
    ids = {name: split.select_columns("id") for name, split in splits.items()}
    described = {name: [f"{ids[name][row]['id']}: {fault}" for row, fault in bad[name].items()] for name in bad}
    everything = list(chain.from_iterable(described.values()))
    blocking = described.get("unlearn", []) if skip_bad else everything
    if blocking:
        never = "an image to be unlearned is never skipped: fetch it anew, or take its id out of the request"
        remedy = never if skip_bad else "mend them or pass --skip_bad_images"
        raise UserError(f"Images that cannot be used ({len(blocking)}; {remedy}): {listed(blocking)}.")
    if everything:
        logger.warning("Rows left out for images that cannot be used (%d): %s.", len(everything), listed(everything))
    kept = {
        name: splits[name].select([row for row in range(len(splits[name])) if row not in rows])
        for name, rows in bad.items()
        if rows
    }
    return DatasetDict({**splits, **kept})
