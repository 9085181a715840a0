"""Splits: every row in its place, held-out rows first, every bad request refused before an image is read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from hf_unlearn.data import images
from hf_unlearn.data.splits import make_splits
from hf_unlearn.errors import UserError

Rows = Callable[..., Dataset]
NAMES = ["retain", "unlearn", "validation", "test"]


def ids_only(n: int, prefix: str = "") -> Dataset:
    """Rows without images: planning must not need them."""
    return Dataset.from_dict({"id": [f"{prefix}{i}" for i in range(n)]})


def plan(data: Dataset | DatasetDict, **options: object) -> tuple[dict[str, list[str]], object]:
    made, request = make_splits(data, duplicates="keep", **options)
    return {name: split["id"][:] for name, split in made.items()}, request


def assert_partition(ids: dict[str, list[str]], expected: list[str]) -> None:
    assert sorted(row for part in ids.values() for row in part) == sorted(expected)
    assert all(ids.values())


@given(
    st.integers(20, 300), st.floats(0.05, 0.5), st.floats(0.05, 0.3), st.floats(0.05, 0.3), st.integers(0, 2**32 - 1)
)
@settings(max_examples=12, deadline=None)
def test_a_fraction_parts_all_rows(n: int, unlearn: float, validation: float, test: float, seed: int) -> None:
    options = {"validation_fraction": validation, "test_fraction": test, "split_seed": seed}
    ids, request = plan(ids_only(n), unlearn_fraction=unlearn, **options)
    assert list(ids) == NAMES
    assert_partition(ids, [str(i) for i in range(n)])
    held_out = len(ids["validation"]) + len(ids["test"])
    assert abs(len(ids["unlearn"]) - unlearn * (n - held_out)) <= 0.5
    assert abs(len(ids["test"]) - test * n) <= 0.5
    assert request.kind == "fraction" and request.fraction == unlearn
    assert list(request.ids) == sorted(ids["unlearn"])
    # Held-out rows depend on the seed alone, and a larger request contains a smaller one.
    larger, _ = plan(ids_only(n), unlearn_fraction=0.6, **options)
    assert larger["validation"] == ids["validation"] and larger["test"] == ids["test"]
    assert set(ids["unlearn"]) <= set(larger["unlearn"])


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_requested_rows_are_always_unlearned(data: st.DataObject) -> None:
    n = data.draw(st.integers(20, 100))
    wanted = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n - 10, unique=True))
    ids, request = plan(ids_only(n), unlearn_request=[str(i) for i in wanted], split_seed=data.draw(st.integers(0, 9)))
    assert set(ids["unlearn"]) == {str(i) for i in wanted}
    assert_partition(ids, [str(i) for i in range(n)])
    assert request.kind == "file" and request.count == len(wanted)


@pytest.mark.parametrize("pairs", ["as lists of captions", "one a row"])
def test_removing_an_image_removes_all_its_pairs(pairs: str, rows: Rows) -> None:
    """However the pairs are stored; rows of one image are copies, which stay nowhere else unless that is asked for."""
    captions = {f"{image}": [f"{image} as {word}" for word in ("a", "b", "c")] for image in range(20)}
    data = rows(20).remove_columns("captions").add_column("captions", list(captions.values()))
    if pairs == "one a row":
        repeated = [(image, text) for image, texts in enumerate(captions.values()) for text in texts]
        data = data.select([image for image, _ in repeated]).remove_columns(["id", "captions"])
        data = data.add_column("captions", [[text] for _, text in repeated])
        data = data.add_column("id", [f"{image}-{text[-1]}" for image, text in repeated])
        with pytest.raises(UserError, match="exact copies"):
            make_splits(data, unlearn_request=["7-b"])
    asked = "7-b" if pairs == "one a row" else "7"
    made, _ = make_splits(data, unlearn_request=[asked], duplicates="move")
    assert sorted(text for texts in made["unlearn"]["captions"] for text in texts) == captions["7"]
    left = [text for name in NAMES if name != "unlearn" for texts in made[name]["captions"] for text in texts]
    assert sorted(left) == sorted(text for image, texts in captions.items() if image != "7" for text in texts)


def test_same_seed_same_split_other_seed_another() -> None:
    first, again, other = (plan(ids_only(50), unlearn_fraction=0.1, split_seed=seed) for seed in (3, 3, 4))
    assert first == again and first[0] != other[0]


def test_a_request_for_rows_that_would_be_held_out_is_honoured() -> None:
    held_out = plan(ids_only(50), unlearn_fraction=0.1)[0]["test"]
    ids, _ = plan(ids_only(50), unlearn_request=held_out)
    assert set(ids["unlearn"]) == set(held_out)
    assert ids["test"] and not set(ids["test"]) & set(held_out)


@pytest.mark.parametrize(("fraction", "unlearn"), [(0.1, 4_500), (0.5, 22_500)])
def test_a_dataset_with_a_test_split_gets_the_published_split(fraction: float, unlearn: int) -> None:
    data = DatasetDict(train=ids_only(50_000), test=ids_only(40, "t"))
    ids, _ = plan(data, unlearn_fraction=fraction, split_seed=7)
    rows = np.split(np.random.RandomState(7).permutation(50_000), [5_000, 5_000 + unlearn])
    parts = dict(zip(["validation", "unlearn", "retain"], rows, strict=True))
    assert ids == {**{name: [str(i) for i in part] for name, part in parts.items()}, "test": list(data["test"]["id"])}


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_held_out_splits_of_the_dataset_are_used(name: str) -> None:
    data = DatasetDict({"train": ids_only(100), name: ids_only(5, "v"), "test": ids_only(7, "t"), "extra": ids_only(1)})
    ids, _ = plan(data, unlearn_fraction=0.1)
    assert ids["validation"] == list(data[name]["id"]) and ids["test"] == list(data["test"]["id"])
    assert len(ids["unlearn"]) == 10 and len(ids["retain"]) == 90


def test_ids_are_row_numbers_where_there_are_none() -> None:
    data = DatasetDict(train=Dataset.from_dict({"x": range(20)}), test=Dataset.from_dict({"x": range(2)}))
    ids, _ = plan(data, unlearn_request=["3", "5"])
    assert sorted(ids["unlearn"]) == ["3", "5"] and ids["test"] == ["test/0", "test/1"]


def test_ready_splits_are_used_as_they_are() -> None:
    ready = DatasetDict(
        retain=ids_only(20), unlearn=ids_only(3, "u"), validation=ids_only(2, "v"), test=ids_only(2, "t")
    )
    ids, request = plan(ready)
    assert ids == {name: list(ready[name]["id"]) for name in NAMES}
    assert request.kind == "split" and request.ids == ("u0", "u1", "u2") and request.fraction is None
    del ready["test"]
    ids, _ = plan(ready)
    assert len(ids["test"]) == 2 and ids["retain"] == [row for row in ready["retain"]["id"] if row not in ids["test"]]
    assert ids["unlearn"] == ["u0", "u1", "u2"]


def test_made_splits_make_the_same_splits_again(rows: Rows) -> None:
    made, request = make_splits(rows(30), unlearn_fraction=0.1)
    again, same = make_splits(made)
    assert {name: list(split["id"]) for name, split in again.items()} == {n: list(s["id"]) for n, s in made.items()}
    assert same.sha256 == request.sha256


def where_data() -> Dataset:
    columns = {
        "id": [str(i) for i in range(40)],
        "owner": ["alice", "bob", None, "carol"] * 10,
        "year": [1999, 2000] * 20,
        "is_public": [True, False] * 20,
        "score": [0.5] * 40,
        "kind": [0, 1, -1, 1] * 10,
    }
    dataset = Dataset.from_dict(columns)
    return dataset.cast(
        Features({**dataset.features, "kind": ClassLabel(names=["cat", "dog"]), "owner": Value("string")})
    )


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("owner=alice", range(0, 40, 4)),
        ("owner=alice,carol", [i for i in range(40) if i % 4 in (0, 3)]),
        ("year=1999", range(0, 40, 2)),
        ("is_public=false", range(1, 40, 2)),
        ("kind=cat", range(0, 40, 4)),
        ("id=7", [7]),
    ],
)
def test_where(condition: str, expected: list[int]) -> None:
    ids, request = plan(where_data(), unlearn_where=condition)
    assert sorted(ids["unlearn"], key=int) == [str(i) for i in expected]
    assert_partition(ids, [str(i) for i in range(40)])
    assert request.kind == "where" and request.where == condition and request.count == len(expected)


def test_a_request_file(tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_text("id\n3\n17\n")
    ids, request = plan(ids_only(30), unlearn_request=tmp_path / "ids.csv")
    assert sorted(ids["unlearn"]) == ["17", "3"] and request.kind == "file"


READY = DatasetDict(retain=ids_only(20), unlearn=ids_only(3, "u"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unlearn_fraction": 0}, r"--unlearn_fraction must be above 0 and below 1, not 0\."),
        ({"unlearn_fraction": -0.1}, "--unlearn_fraction must be above 0"),
        ({"unlearn_fraction": 1}, r"below 1, not 1\."),
        ({"unlearn_fraction": 1.5}, r"below 1, not 1\.5"),
        ({"unlearn_fraction": float("nan")}, "not nan"),
        ({"unlearn_fraction": 0.001}, "No row is left for unlearn"),
        ({"unlearn_fraction": 0.999}, r"No row is left for retain \(retain 0, unlearn 32"),
        ({}, r"Nothing says what is to be unlearned: give --unlearn_request FILE, .* or data with splits"),
        ({"unlearn_fraction": 0.1, "validation_fraction": 0}, "--validation_fraction must be above 0"),
        ({"unlearn_fraction": 0.1, "test_fraction": 1}, "--test_fraction must be above 0 and below 1"),
        ({"unlearn_fraction": 0.1, "validation_fraction": 0.6, "test_fraction": 0.6}, "No row is left for"),
        ({"unlearn_request": []}, "no id in it"),
        ({"unlearn_request": [str(i) for i in range(40)]}, "No row is left for retain, validation, test"),
        (
            {"unlearn_request": ["3", "nope", "3", 1.5, "gone"]},
            r"no id \(1\): 1\.5 .*repeated ids \(1\): 3; .*\(2\): nope, gone \(there are ids such as .*\)\.",
        ),
        ({"unlearn_request": "ids.xlsx"}, "must be a .txt, .csv or .json file"),
        ({"unlearn_where": "owner"}, "not of the form column=value"),
        ({"unlearn_where": "author=alice"}, "there is no column 'author'; there are id, owner"),
        ({"unlearn_where": "owner=eve,alice"}, "no training row has eve; there are alice, bob, carol"),
        ({"unlearn_where": "kind=eel"}, "no training row has eel; there are cat, dog"),
        ({"unlearn_where": "score=0.5"}, "'score' holds double"),
        (
            {"unlearn_where": "owner=alice", "unlearn_request": ["1"]},
            "request and --unlearn_where exclude each",
        ),
        ({"unlearn_fraction": 0.1, "unlearn_where": "owner=alice"}, "--unlearn_fraction and --unlearn_where exclude"),
        ({"split_seed": -1}, "--split_seed must be an integer"),
        ({"split_seed": 1.5}, "--split_seed must be an integer"),
        ({"duplicates": "ignore"}, "--duplicates must be refuse, move or keep"),
    ],
)
def test_bad_requests(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_splits(where_data(), **options)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (READY, {"unlearn_request": ["1"]}, "has splits retain and unlearn: leave out"),
        (READY, {"unlearn_fraction": 0.1}, "leave out --unlearn_fraction"),
        (READY, {"unlearn_where": "id=1"}, "has splits retain and unlearn: leave out"),
        (DatasetDict(retain=ids_only(5), unlearn=ids_only(3)), {}, r"^3 ids are in both splits.*: 0, 1, 2\.$"),
        (DatasetDict(retain=ids_only(5), unlearn=ids_only(0, "u")), {}, "No row is left for unlearn"),
        (DatasetDict(retain=ids_only(1), unlearn=ids_only(3, "u")), {}, "No row is left for retain"),
        (
            DatasetDict(train=ids_only(9), unlearn=ids_only(3, "u")),
            {},
            "needs a split train, or both retain and unlearn",
        ),
        (DatasetDict(test=ids_only(9)), {}, "it has test"),
        (
            DatasetDict(train=ids_only(50), test=ids_only(9, "t")),
            {"unlearn_request": ["t1"]},
            r"no training row has \(1\): t1",
        ),
        (
            Dataset.from_dict({"id": ["a", "a"]}),
            {"unlearn_fraction": 0.5},
            "several rows have the same id: a; give each",
        ),
    ],
)
def test_bad_splits(data: Dataset | DatasetDict, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_splits(data, **options)


def test_errors_come_before_images_and_keep_reads_none(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "read_image", lambda stored: pytest.fail("an image was read"))
    with pytest.raises(UserError, match="no training row"):
        make_splits(rows(30), unlearn_request=["nope"])
    made, _ = make_splits(rows(30), unlearn_fraction=0.1, duplicates="keep")
    assert sum(map(len, made.values())) == 30


def test_each_image_is_read_once(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    decode = images.read_image
    monkeypatch.setattr(images, "read_image", lambda stored: read.append(1) or decode(stored))
    make_splits(rows(30), unlearn_fraction=0.1)
    assert len(read) == 30


def test_bad_images_block_or_are_skipped(
    encode: Callable[..., bytes], noise: Callable[..., PILImage.Image], rows: Rows
) -> None:
    dataset = rows([b"bad", *(encode(noise(seed)) for seed in range(29))])
    with pytest.raises(UserError, match="0: it cannot be read"):
        make_splits(dataset, unlearn_request=["5"])
    made, _ = make_splits(dataset, unlearn_request=["5"], skip_bad_images=True)
    assert "0" not in {row for split in made.values() for row in split["id"]}
    assert sum(map(len, made.values())) == 29
    with pytest.raises(UserError, match=r"never skipped.*0: it cannot be read"):
        make_splits(dataset, unlearn_request=["0", "5"], skip_bad_images=True)

    made, _ = make_splits(dataset, unlearn_request=["5"], skip_bad_images=True, duplicates="keep")
    assert sum(map(len, made.values())) == 29


def test_a_split_beside_ready_ones_is_said_to_be_unused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make_splits(DatasetDict({**READY, "train": ids_only(4, "t")}), duplicates="keep")
    assert "Splits of the dataset that are not used: train." in caplog.text


@pytest.mark.parametrize("seed", [True, 1.0, -1, 2**32, "0"])
def test_seeds_are_whole_numbers_that_numpy_takes(seed: object) -> None:
    with pytest.raises(UserError, match=r"--split_seed must be an integer from 0 to 2\*\*32 - 1"):
        make_splits(ids_only(20), unlearn_fraction=0.1, split_seed=seed, duplicates="keep")  # type: ignore[arg-type]
    make_splits(ids_only(20), unlearn_fraction=0.1, split_seed=2**32 - 1, duplicates="keep")


@pytest.mark.parametrize("seed", range(5))
def test_the_embedded_data_splits_as_it_is(seed: int, openmoji: Dataset) -> None:
    made, request = make_splits(openmoji, unlearn_fraction=0.1, split_seed=seed)
    sizes = {name: len(split) for name, split in made.items()}
    n = len(openmoji)
    assert sizes["validation"] == sizes["test"] == round(0.1 * n)
    assert sizes["unlearn"] == request.count == round(0.1 * (n - sizes["validation"] - sizes["test"]))
    assert sum(sizes.values()) == n
