"""Fingerprints: of stored bytes and captions, whatever the order, and salted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, load_dataset
from PIL import Image as PILImage

from hf_unlearn.data import images
from hf_unlearn.data.fingerprint import combine_hashes, dataset_sha256, row_hashes, sample_hash
from hf_unlearn.errors import UserError

Rows = Callable[..., Dataset]


def by_hand(salt: str, image: bytes, *captions: str) -> str:
    parts = [salt.encode(), image, *(caption.encode() for caption in captions)]
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()


def test_a_sample_hash_is_its_definition(tmp_path: Path) -> None:
    assert sample_hash(b"image") == by_hand("", b"image")
    assert sample_hash(b"image", ["b", "ä"], "salt") == by_hand("salt", b"image", "b", "ä")
    assert sample_hash(b"image", ["ä", "b"], "salt") == by_hand("salt", b"image", "b", "ä")
    (tmp_path / "a.png").write_bytes(b"image")
    assert sample_hash(tmp_path / "a.png", ["b"]) == sample_hash(b"image", ["b"])


def test_parts_cannot_be_shifted() -> None:
    hashes = {
        sample_hash(b"image", ["ab", "c"]),
        sample_hash(b"image", ["a", "bc"]),
        sample_hash(b"image", ["abc"]),
        sample_hash(b"imagea", ["bc"]),
        sample_hash(b"mage", ["abc"], "i"),
        sample_hash(b"image"),
    }
    assert len(hashes) == 6


def test_row_hashes_are_those_an_owner_computes(
    encode: Callable[..., bytes], noise: Callable[..., PILImage.Image], rows: Rows
) -> None:
    pictures = [encode(noise(seed)) for seed in range(300)]
    dataset = rows(pictures)
    assert row_hashes(dataset, "s") == [sample_hash(image, [f"picture {i}"], "s") for i, image in enumerate(pictures)]
    assert row_hashes(dataset.remove_columns("captions")) == [sample_hash(image) for image in pictures]
    assert row_hashes(dataset.select([7, 3])) == [row_hashes(dataset)[7], row_hashes(dataset)[3]]


def test_the_dataset_hash_ignores_order_splits_and_other_columns(rows: Rows) -> None:
    dataset = rows(20)
    expected = dataset_sha256(dataset)
    assert expected == combine_hashes(row_hashes(dataset))
    assert dataset_sha256(dataset.shuffle(seed=1)) == expected
    assert dataset_sha256(dataset.remove_columns("id").add_column("owner", ["alice"] * 20)) == expected
    assert dataset_sha256(DatasetDict(a=dataset.select(range(5)), b=dataset.select(range(5, 20)))) == expected
    assert dataset_sha256(dataset, "salt") != expected


def test_the_dataset_hash_sees_every_change(rows: Rows) -> None:
    dataset = rows(5)
    changed = dataset.remove_columns("captions").add_column("captions", [["picture 0"]] * 5)
    repeated = dataset.select([0, 1, 2, 3, 4, 4])
    assert len({dataset_sha256(data) for data in (dataset, changed, repeated, dataset.select(range(4)))}) == 4


def test_files_and_stored_bytes_hash_alike(tmp_path: Path, noise: Callable[..., PILImage.Image]) -> None:
    noise(0).save(tmp_path / "a.png")
    dataset = load_dataset("imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"), split="train")
    assert row_hashes(dataset) == [sample_hash(tmp_path / "a.png")]


def test_nothing_is_decoded(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "read_image", lambda stored: pytest.fail("an image was read"))
    assert row_hashes(rows([b"no image"]).remove_columns("captions")) == [by_hand("", b"no image")]


def test_a_missing_image_is_named(rows: Rows) -> None:
    with pytest.raises(UserError, match=r"image of row x cannot be hashed: there is no image"):
        row_hashes(rows([None], ["x"]))


def test_what_a_terminal_gives_in_another_encoding_is_hashed_as_it_was_typed() -> None:
    assert sample_hash(b"image", ["\udce9"], salt="\udcff") == sample_hash(b"image", ["\udce9"], salt="\udcff")
    assert sample_hash(b"image", ["\udce9"]) != sample_hash(b"image", ["\udce8"])
