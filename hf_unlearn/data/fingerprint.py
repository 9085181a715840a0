"""What a dataset was, in one hash: of stored image bytes and captions, whatever the order of rows, split or cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hf_unlearn.data.images import encoded_image, stored_rows
from hf_unlearn.errors import UserError
from hf_unlearn.parsing import read_bytes

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


class PartHashes(NamedTuple):
    """`sample_hash` of one row, of its picture alone, and of its captions alone; None for a row without captions."""

    row: str
    picture: str
    captions: str | None


def check_salt(salt: str | None, option: str = "--request_salt") -> None:
    """Refuse an empty salt, as an unset variable of a shell gives: hashes with it are those that anybody can make.

    Raises:
        UserError: naming the option.
    """
    if salt is not None and not salt.strip():
        raise UserError(
            f"{option} is empty, so anybody could make the same hashes; give a long secret, or leave it out"
        )


def sample_hash(image: bytes | Path, captions: Iterable[str] = (), salt: str | None = None) -> str:
    """Hash one sample, as its owner can do from the image file and the captions alone.

        SHA-256(len salt | salt | len image | image | len caption | caption | ...), captions sorted

    Lengths are 8 bytes, big-endian, of the UTF-8 text. With a secret salt a published hash cannot be found by guessing.

    Args:
        image: The encoded file as the dataset holds it, or its path.
        captions: The captions of the image, in any order.
        salt: Text that whoever compares hashes must know.

    Returns:
        64 hexadecimal digits.
    """
    encoded = read_bytes(image) if isinstance(image, Path) else image
    return _extended(hashlib.sha256(), _text(salt or ""), encoded, *map(_text, sorted(captions))).hexdigest()


def _extended(digest: hashlib._Hash, *parts: bytes) -> hashlib._Hash:
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest


def _text(text: str) -> bytes:
    return text.encode(errors="surrogateescape")  # as it was typed


def row_hashes(dataset: Dataset, salt: str | None = None) -> list[str]:
    """Hash every row's stored image bytes and captions; no image is decoded.

    Args:
        dataset: Rows in the library's schema.
        salt: See `sample_hash`.

    Returns:
        One `sample_hash` a row, in the order of the rows.

    Raises:
        UserError: A row has no image, or its file cannot be read.
    """
    return [sample_hash(image, captions, salt) for image, captions in _stored_samples(dataset)]


def part_hashes(dataset: Dataset, salt: str | None = None) -> list[PartHashes]:
    """As `row_hashes`, with those of each row's parts, by which it is known when the other part is edited."""
    hashes = []
    for image, captions in _stored_samples(dataset):
        texts = [_text(caption) for caption in sorted(captions)]
        picture = _extended(hashlib.sha256(), _text(salt or ""), image)  # the long part, hashed once
        row = _extended(picture.copy(), *texts)
        alone = sample_hash(b"", captions, salt) if captions else None
        hashes.append(PartHashes(row.hexdigest(), picture.hexdigest(), alone))
    return hashes


def _stored_samples(dataset: Dataset) -> Iterator[tuple[bytes, list[str]]]:
    columns = [column for column in ("captions", "id") if column in dataset.column_names]
    for number, row in enumerate(stored_rows(dataset, *columns)):
        try:
            yield encoded_image(row["image"]), row.get("captions", [])
        except UserError as error:
            raise UserError(f"The image of row {row.get('id', number)} cannot be hashed: {error}.") from error


def combine_hashes(hashes: Iterable[str]) -> str:
    """Return the SHA-256 of the sorted hashes, or ids, one a line in UTF-8: `LC_ALL=C sort FILE | sha256sum`.

    Example:
        >>> combine_hashes(["b", "a"]) == hashlib.sha256(b"a\\nb\\n").hexdigest()
        True
    """
    digest = hashlib.sha256()
    for line in sorted(hashes):  # Python's order of code points is the order of UTF-8 bytes
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def dataset_sha256(dataset: Dataset | DatasetDict, salt: str | None = None) -> str:
    """Hash a dataset, or all splits of a dictionary together, independent of the order of rows and of the splits.

    Args:
        dataset: Rows in the library's schema.
        salt: See `sample_hash`.

    Returns:
        `combine_hashes` of all `row_hashes`: 64 hexadecimal digits.
    """
    splits = dataset.values() if isinstance(dataset, dict) else [dataset]
    return combine_hashes(row for split in splits for row in row_hashes(split, salt))
