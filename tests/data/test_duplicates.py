"""Duplicates: exact copies of unlearn images elsewhere are found whatever their encoding, near ones are counted."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image as PILImage

from hf_unlearn.data import duplicates as module
from hf_unlearn.data.duplicates import difference_hash, hash_image, near_duplicates, resolve_duplicates
from hf_unlearn.data.splits import make_splits
from hf_unlearn.errors import UserError

Encode = Callable[..., bytes]
Noise = Callable[..., PILImage.Image]
Rows = Callable[..., Dataset]


@pytest.fixture
def with_copies(encode: Encode, noise: Noise, rows: Rows) -> DatasetDict:
    """Splits with copies of the unlearn image u0 in retain and test, in other formats."""
    picture = noise(0)
    with_alpha = picture.copy()
    with_alpha.putalpha(255)
    return DatasetDict(
        retain=rows([encode(noise(1)), encode(picture, format="BMP"), encode(noise(2))], ["r0", "r1", "r2"]),
        unlearn=rows([encode(picture), encode(noise(3))], ["u0", "u1"]),
        validation=rows([encode(noise(4))], ["v0"]),
        test=rows([encode(noise(5)), encode(with_alpha)], ["t0", "t1"]),
    )


def ids_of(splits: DatasetDict) -> dict[str, list[str]]:
    return {name: list(split["id"]) for name, split in splits.items()}


def test_copies_are_refused_with_their_ids(with_copies: DatasetDict) -> None:
    with pytest.raises(
        UserError, match=r"^2 images .*--duplicates move.*keep.*: r1 in retain = u0, t1 in test = u0\.$"
    ):
        make_splits(with_copies)


def test_held_out_copies_of_retain_are_told_of(encode: Encode, noise: Noise, rows: Rows) -> None:
    """They are stored in another format, and those that equal an unlearn image are moved and not counted."""
    splits = DatasetDict(
        retain=rows([encode(noise(0)), encode(noise(1)), encode(noise(9))], ["r0", "r1", "r2"]),
        unlearn=rows([encode(noise(2))], ["u0"]),
        validation=rows([encode(noise(1), format="BMP"), encode(noise(3)), encode(noise(2))], ["v0", "v1", "v2"]),
        test=rows([encode(noise(4)), encode(noise(3))], ["t0", "t1"]),
    )
    _, request = make_splits(splits, duplicates="move")
    (of_retain,) = (note for note in request.notes if "retain:" in note)
    (of_validation,) = (note for note in request.notes if "validation:" in note)
    assert of_retain.startswith("1 of the 2 images in validation are exact copies of images in retain: the model was")
    assert of_validation.startswith("1 of the 2 images in test are exact copies of images in validation")


def test_copies_are_moved(with_copies: DatasetDict, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        splits, request = make_splits(with_copies, duplicates="move")
    assert ids_of(splits) == {
        "retain": ["r0", "r2"],
        "unlearn": ["u0", "u1", "r1", "t1"],
        "validation": ["v0"],
        "test": ["t0"],
    }
    assert request.ids == ("u0", "u1")  # what was asked for
    assert "r1 in retain = u0" in caplog.text
    assert ids_of(make_splits(splits)[0]) == ids_of(splits)  # no copies are left


@pytest.mark.parametrize("first", ["retain", "train"])
def test_a_column_of_another_type_is_told_before_a_picture_is_read(
    with_copies: DatasetDict, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Only where rows are put together; a column that is empty in one split goes with any other."""
    options = {}
    if first == "train":
        with_copies = DatasetDict({"train": with_copies.pop("retain"), **with_copies})
        del with_copies["unlearn"]
        options = {"unlearn_request": ["r1"]}
    for column, values in {"owner": "a", "empty": None}.items():
        with_copies = DatasetDict(
            {n: split.add_column(column, [values] * len(split)) for n, split in with_copies.items()}
        )
    with_copies["test"] = with_copies["test"].remove_columns("owner").add_column("owner", [1, 2])
    with_copies["test"] = with_copies["test"].remove_columns("empty").add_column("empty", ["x", "y"])
    with pytest.raises(UserError, match="exact copies"):
        make_splits(with_copies, **options)
    with_copies["test"] = with_copies["test"].remove_columns("owner")
    moved, _ = make_splits(with_copies, duplicates="move", **options)
    assert moved["unlearn"]["empty"][-1] == "y"
    with_copies["test"] = with_copies["test"].add_column("owner", [1, 2])
    monkeypatch.setattr(module, "map_images", lambda *_: pytest.fail("pictures were read"))
    words = rf"'owner' holds Value\('string'\) in {first} and Value\('int64'\) in test, .* leave it out"
    with pytest.raises(UserError, match=words):
        make_splits(with_copies, duplicates="move", **options)


def test_ready_splits_of_other_types_are_told_whatever_is_done_with_copies(with_copies: DatasetDict) -> None:
    with_copies["retain"] = with_copies["retain"].add_column("year", [1, 2, 3])
    with_copies["unlearn"] = with_copies["unlearn"].add_column("year", ["a", "b"])
    with pytest.raises(UserError, match=r"'year' holds Value\('int64'\) in retain and Value\('string'\) in unlearn"):
        make_splits(with_copies, duplicates="keep")


def test_copies_are_kept(with_copies: DatasetDict) -> None:
    assert ids_of(make_splits(with_copies, duplicates="keep")[0]) == ids_of(with_copies)


def test_a_split_of_nothing_but_copies_is_refused(encode: Encode, noise: Noise, rows: Rows) -> None:
    splits = DatasetDict(retain=rows(9), unlearn=rows([encode(noise(8))], ["u"]), test=rows([encode(noise(8))], ["t"]))
    splits["retain"] = splits["retain"].select(range(8))
    with pytest.raises(UserError, match="No row is left for test"):
        make_splits(splits, duplicates="move")


def test_copies_within_a_split_are_nobodys_business(encode: Encode, noise: Noise, rows: Rows) -> None:
    twice = [encode(noise(0)), encode(noise(0))]
    splits = DatasetDict(retain=rows(twice, ["a", "b"]), unlearn=rows([encode(noise(1))] * 2, ["c", "d"]))
    assert ids_of(resolve_duplicates(splits)[0]) == ids_of(splits)


def test_copies_are_found_after_bad_rows_are_skipped(encode: Encode, noise: Noise, rows: Rows) -> None:
    splits = DatasetDict(
        retain=rows([b"bad", encode(noise(1)), encode(noise(0))], ["r0", "r1", "r2"]),
        unlearn=rows([encode(noise(0))], ["u0"]),
    )
    moved, _ = resolve_duplicates(splits, action="move", skip_bad_images=True)
    assert ids_of(moved) == {"retain": ["r1"], "unlearn": ["u0", "r2"]}


def test_the_exact_hash_knows_size_and_every_pixel(noise: Noise) -> None:
    image = noise(0)
    changed = image.copy()
    changed.putpixel((7, 7), tuple(255 - value for value in image.getpixel((7, 7))))
    assert hash_image(image) == hash_image(image.copy())
    assert hash_image(image).pixels != hash_image(changed).pixels
    white = [PILImage.new("RGB", size, "white") for size in ((2, 8), (8, 2), (4, 4))]
    assert len({hash_image(image).pixels for image in white}) == 3


def test_the_difference_hash_is_its_definition() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (8, 9), dtype=np.uint8)
    expected = 0
    for row in range(8):
        for column in range(8):
            expected = 2 * expected + int(grey[row, column] < grey[row, column + 1])
    assert difference_hash(PILImage.fromarray(grey)) == expected


def test_the_difference_hash_bears_small_changes(encode: Encode, openmoji: Dataset) -> None:
    image = openmoji[100]["image"]
    smaller = image.resize((24, 24))
    unlike = openmoji[1000]["image"]
    distance = [(difference_hash(image) ^ difference_hash(other)).bit_count() for other in (smaller, unlike)]
    assert distance[0] < 8 < distance[1]


@given(arrays.arrays(np.uint64, st.integers(0, 20)), arrays.arrays(np.uint64, st.integers(0, 10)), st.integers(0, 64))
@settings(deadline=None)
def test_near_duplicates_equal_brute_force(hashes: np.ndarray, unlearn: np.ndarray, bits: int) -> None:
    expected = [any((int(a) ^ int(b)).bit_count() <= bits for b in unlearn) for a in hashes]
    assert near_duplicates(hashes, unlearn, bits).tolist() == expected


def test_near_duplicates_go_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, 50, dtype=np.uint64)
    whole = near_duplicates(hashes, hashes[:7], 20)
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 16)
    np.testing.assert_array_equal(near_duplicates(hashes, hashes[:7], 20), whole)
    assert whole.sum() >= 7


def test_near_duplicates_are_counted_in_a_warning(
    encode: Encode, noise: Noise, rows: Rows, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = noise(0, 64)
    near = picture.copy()
    near.putpixel((0, 0), (0, 0, 0))
    splits = DatasetDict(
        retain=rows([encode(near), encode(noise(1, 64))], ["r0", "r1"]),
        unlearn=rows([encode(picture)], ["u0"]),
        test=rows([encode(noise(2, 64))], ["t0"]),
    )
    same, (note,) = resolve_duplicates(splits)
    assert ids_of(same) == ids_of(splits)
    assert "within 2 bits): 1 in retain." in note and caplog.text.count(note) == 1
    monkeypatch.setattr(module, "_MOST_PAIRS", 2)
    (note,) = resolve_duplicates(splits)[1]
    assert "Near-duplicates are not searched" in note and caplog.text.count(note) == 1


def test_openmoji_has_no_exact_duplicates_and_its_lookalikes_are_said(
    openmoji: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    splits, _ = make_splits(openmoji, unlearn_request=["1F550"])  # a clock face, one of 24
    assert list(splits["unlearn"]["id"]) == ["1F550"]
    assert "nearly equal an unlearn image" in caplog.text
