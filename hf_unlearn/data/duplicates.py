"""Copies of unlearn images in other splits: what they show would stay learned, or leak into the evaluation."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from datasets import DatasetDict, concatenate_datasets
from numpy.typing import NDArray
from PIL import Image as PILImage

from hf_unlearn.data.images import drop_bad_images, map_images
from hf_unlearn.errors import UserError, listed

logger = logging.getLogger(__name__)

NEAR_BITS = 2
_PAIRS_AT_ONCE = 2**22
_MEMBERS = "the model was trained on them, and what is measured on them, or learned from them, is wrong"
# Held-out splits, what they may share no image with, and what follows where they do.
_NEVER_ALIKE = (
    ("validation", "retain", _MEMBERS),
    ("test", "retain", _MEMBERS),
    ("test", "validation", "so the test holds rows that settings and targets come from"),
)
_MOST_PAIRS = 2**34  # half a minute; beyond, near-duplicates are not searched and that is said


@dataclass(frozen=True, slots=True)
class ImageHash:
    """What is kept of an image: a digest of its exact pixels and 64 bits of what it looks like."""

    pixels: bytes
    difference: int


def hash_image(image: PILImage.Image) -> ImageHash:
    """Hash an RGB image: SHA-256 of its size and pixels, and its difference hash."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return ImageHash(digest.digest(), difference_hash(image))


def difference_hash(image: PILImage.Image) -> int:
    """Return 64 bits that hardly change with size, compression or brightness.

        bit (r, c) = [g(r, c) < g(r, c + 1)],  g = the image in grey, 8 rows of 9 pixels

    Args:
        image: Any image that Pillow can turn to grey.

    Returns:
        The hash; the number of bits in which two hashes differ says how unlike the images are.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), PILImage.Resampling.BOX))
    return int.from_bytes(np.packbits(grey[:, :-1] < grey[:, 1:]).tobytes(), "big")


def exact_duplicates(hashes: Mapping[str, list[ImageHash]]) -> dict[str, dict[int, int]]:
    """Find the images of other splits that equal an unlearn image pixel by pixel.

    Args:
        hashes: The hashes of every split's images, `unlearn` among them.

    Returns:
        For every other split, the rows that are copies, each with the row of `unlearn` it copies.
    """
    unlearn = {image.pixels: row for row, image in enumerate(hashes["unlearn"])}
    return {
        split: {row: unlearn[image.pixels] for row, image in enumerate(images) if image.pixels in unlearn}
        for split, images in hashes.items()
        if split != "unlearn"
    }


def near_duplicates(
    hashes: NDArray[np.uint64], unlearn: NDArray[np.uint64], bits: int = NEAR_BITS
) -> NDArray[np.bool_]:
    """Mark the difference hashes that are within `bits` bits of one of an unlearn image.

    Args:
        hashes: Difference hashes `[n]`.
        unlearn: Difference hashes of the unlearn images `[m]`.
        bits: Largest Hamming distance that counts as near.

    Returns:
        A mark for each of the n hashes; n x m comparisons in constant memory.
    """
    near = np.zeros(len(hashes), dtype=bool)
    step = max(1, _PAIRS_AT_ONCE // max(1, len(unlearn)))
    for start in range(0, len(hashes) if len(unlearn) else 0, step):
        distances = np.bitwise_count(hashes[start : start + step, None] ^ unlearn[None, :])
        near[start : start + step] = distances.min(axis=1) <= bits
    return near


def resolve_duplicates(
    splits: DatasetDict, *, action: Literal["refuse", "move"] = "refuse", skip_bad_images: bool = False
) -> tuple[DatasetDict, tuple[str, ...]]:
    """Decode every image once, refuse bad ones, and refuse or move exact copies of unlearn images; warn of others.

    Warned of are images that nearly equal an unlearn image, and held-out images that are in retain, too.

    Args:
        splits: `unlearn` and the other splits, with the columns `id` and `image`.
        action: `refuse` raises for exact copies, `move` moves them to the end of `unlearn`.
        skip_bad_images: Leave out bad images of the other splits instead of refusing them.

    Returns:
        The splits without copies of unlearn images outside `unlearn`, and what was warned of.

    Raises:
        UserError: An image cannot be used, or there are exact copies and they are refused; the ids are listed.
    """
    found = {name: map_images(split, hash_image, f"Looking for copies in {name}") for name, split in splits.items()}
    splits = drop_bad_images(splits, found, skip_bad=skip_bad_images)
    hashes = {name: [result for result in results if isinstance(result, ImageHash)] for name, results in found.items()}
    copies = exact_duplicates(hashes)
    notes = (*_near_duplicate_notes(hashes, copies), *_held_out_notes(hashes, copies))
    for note in notes:
        logger.warning("%s", note)
    total = sum(map(len, copies.values()))
    if not total:
        return splits, notes
    ids = {name: split.select_columns("id") for name, split in splits.items()}
    described = listed(
        f"{ids[name][row]['id']} in {name} = {ids['unlearn'][original]['id']}"
        for name, rows in copies.items()
        for row, original in rows.items()
    )
    if action == "refuse":
        raise UserError(
            f"{total} images of other splits are exact copies of images to be unlearned "
            f"(--duplicates move to unlearn them along, keep to leave them): {described}."
        )
    logger.info("%d exact copies of unlearn images are unlearned along: %s.", total, described)
    moved = [splits[name].select(list(rows)) for name, rows in copies.items() if rows]
    kept = {
        name: splits[name].select([row for row in range(len(splits[name])) if row not in rows])
        for name, rows in copies.items()
    }
    return DatasetDict({**splits, **kept, "unlearn": concatenate_datasets([splits["unlearn"], *moved])}), notes


def _held_out_notes(hashes: Mapping[str, list[ImageHash]], copies: Mapping[str, Mapping[int, int]]) -> tuple[str, ...]:
    """What is to be said of held-out images that equal one in retain, or in the other held-out split."""
    looks = {
        name: [image.pixels for row, image in enumerate(images) if row not in copies.get(name, ())]
        for name, images in hashes.items()
    }
    notes = []
    for name, other, so in _NEVER_ALIKE:
        known = set(looks.get(other, ()))
        if shared := sum(pixels in known for pixels in looks.get(name, ())):
            images = f"{shared} of the {len(looks[name])} images in {name} are exact copies of images in {other}"
            notes.append(f"{images}: {so}; leave them out of one of the two.")
    return tuple(notes)


def _near_duplicate_notes(
    hashes: Mapping[str, list[ImageHash]], copies: Mapping[str, Mapping[int, int]]
) -> tuple[str, ...]:
    pairs = len(hashes["unlearn"]) * sum(len(hashes[name]) for name in copies)
    if pairs > _MOST_PAIRS:
        return (f"Near-duplicates are not searched: {pairs:.1e} pairs of images are too many.",)
    looks = {name: np.array([image.difference for image in images], np.uint64) for name, images in hashes.items()}
    near = {name: near_duplicates(looks[name], looks["unlearn"]).sum() - len(rows) for name, rows in copies.items()}
    if not any(near.values()):
        return ()
    counts = ", ".join(f"{count} in {name}" for name, count in near.items() if count)
    return (
        "Images that nearly equal an unlearn image and stay where they are (difference hashes within "
        f"{NEAR_BITS} bits): {counts}.",
    )
