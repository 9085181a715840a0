"""Folders of pictures: classes from folders, captions from metadata, and text that stays text."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage

from hf_unlearn.data.sources import load_source, to_schema
from hf_unlearn.data.splits import make_splits
from hf_unlearn.errors import UserError
from hf_unlearn.runs.class_labels import class_labels


@pytest.fixture
def pictures(tmp_path: Path, noise: Callable[..., PILImage.Image]) -> Callable[..., Path]:
    """Pictures of these names, in a folder."""

    def build(*names: str) -> Path:
        for seed, name in enumerate(names):
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            noise(seed).save(tmp_path / "data" / name)
        return tmp_path / "data"

    return build


def csv(folder: Path, *lines: str) -> Path:
    text = "\n".join(lines) + "\n"
    (folder / "metadata.csv").write_text(text, encoding="utf-8", errors="surrogateescape")
    return folder


def test_text_in_a_csv_stays_text(pictures: Callable[..., Path]) -> None:
    lines = ["0.png,007,7,None", "1.png,07,07,null", "2.png,7,7.0,NA", "3.png,1e3,true,12", "4.png,08,nan,N/A"]
    folder = csv(pictures(*(f"{n}.png" for n in range(5))), "file_name,key,owner,text", *lines)
    rows = load_source(folder, caption_column="text", id_column="key")
    assert rows["id"][:] == ["007", "07", "7", "1e3", "08"]
    assert rows["owner"][:] == ["7", "07", "7.0", "true", "nan"]
    assert rows["captions"][:] == [["None"], ["null"], ["NA"], ["12"], ["N/A"]]
    splits, request = make_splits(rows, unlearn_where="owner=7", validation_fraction=0.3, test_fraction=0.3)
    assert request.ids == ("007",) and splits["unlearn"]["owner"][:] == ["7"]


def test_labels_in_a_csv_are_numbered_by_value(pictures: Callable[..., Path]) -> None:
    folder = csv(pictures("0.png", "1.png", "2.png"), "file_name,label", "0.png,10", "1.png,9", "2.png,010")
    assert load_source(folder).features["label"].names == ["9", "010", "10"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_several_rows_for_a_picture_are_its_captions(pictures: Callable[..., Path], kind: str) -> None:
    folder = pictures("a.png", "b.png", "c.png")
    rows = [
        ("a.png", "one", "x", "11"),
        ("b.png", "uno", "y", "12"),
        ("a.png", "two", "x", "13"),
        ("c.png", "un", "x", "14"),
        ("a.png", "one", "x", "15"),
    ]
    columns = ("file_name", "text", "owner", "sentence")
    if kind == "csv":
        csv(folder, ",".join(columns), *map(",".join, rows))
    elif kind == "jsonl":
        lines = (json.dumps(dict(zip(columns, row, strict=True))) for row in rows)
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    else:
        table = pa.table({name: list(values) for name, values in zip(columns, zip(*rows, strict=True), strict=True)})
        pq.write_table(table, folder / "metadata.parquet")
    loaded = load_source(folder, caption_column="text")
    assert loaded["id"][:] == ["a.png", "b.png", "c.png"]
    assert loaded["captions"][:] == [["one", "two"], ["uno"], ["un"]]
    assert loaded["owner"][:] == ["x", "y", "x"], "what is the same in all rows of a picture stays as it is"
    assert loaded["sentence"][:] == [["11", "13", "15"], ["12"], ["14"]]


def test_ids_of_captions_do_not_call_pictures(pictures: Callable[..., Path]) -> None:
    folder = csv(pictures("a.png", "b.png"), "file_name,text,id", "a.png,one,1", "a.png,two,2", "b.png,un,3")
    rows = load_source(folder, caption_column="text")
    assert rows["id"][:] == ["a.png", "b.png"] and rows["source_id"][:] == [["1", "2"], ["3"]]
    with pytest.raises(UserError, match=r"id column 'id' .* holds list<.*string>"):
        load_source(folder, caption_column="text", id_column="id")


def test_metadata_in_folders_of_splits(pictures: Callable[..., Path]) -> None:
    folder = pictures("train/a.png", "train/sub/b.png", "test/a.png")
    csv(folder / "train", "file_name,text", "a.png,one", "sub/b.png,two")
    csv(folder / "test", "file_name,text", "a.png,three")
    splits = load_source(folder, caption_column="text")
    assert {name: rows["captions"][:] for name, rows in splits.items()} == {
        "train": [["one"], ["two"]], "test": [["three"]],
    }  # fmt: skip
    assert splits["train"]["id"][:] == ["a.png", "sub/b.png"] and splits["test"]["id"][:] == ["test/a.png"]


def test_ids_do_not_depend_on_how_train_is_spelt(pictures: Callable[..., Path]) -> None:
    splits = load_source(pictures("Training/cat/a.png", "Training/dog/b.png", "VAL/cat/c.png"))
    assert splits["train"]["id"][:] == ["cat/a.png", "dog/b.png"] and splits["validation"]["id"][:] == ["VAL/cat/c.png"]


@pytest.mark.parametrize(("name", "shown"), [(b"a\nb.png", r"a\\nb"), (b"caf\xe9.png", r"caf\\udce9")])
def test_names_that_are_no_ids_are_told(pictures: Callable[..., Path], name: bytes, shown: str) -> None:
    folder = pictures("a.png", "b.png")
    (folder / "b.png").rename(folder / os.fsdecode(name))
    with pytest.raises(UserError, match=rf"1 pictures .* line breaks, or that are not UTF-8: '{shown}.png'; rename"):
        load_source(folder)


def test_a_missing_column_of_pictures_comes_with_what_was_found(pictures: Callable[..., Path]) -> None:
    folder = pictures("a.png", "b.png")
    (folder / "Metadata.tsv").write_text("file_name\ttext\na.png\tone\nb.png\ttwo\n")
    with pytest.raises(UserError, match=r"no column 'text' .*: image, id\. .*files left aside: 1 \.tsv\."):
        load_source(folder, caption_column="text")


BAD = {
    "another encoding": (["file_name,text", "0.png,a", "1.png,\udce9"], "cannot be read: it is not UTF-8; save it so"),
    "a picture without a row": (["file_name,text", "0.png,a"], "1 of 2 pictures .* have no row .*: 1.png"),
    "a row without a picture": (
        ["file_name,text", "0.png,a", "1.png,b", "9.png,c"], "names 1 pictures that are not there: 9.png",
    ),
    "an unquoted comma": (["file_name,text", "0.png,a dog, running", "1.png,b"], "line 2 has 3 cells instead of 2"),
    "no file_name": (["picture,text", "0.png,a", "1.png,b"], "no text in the column 'file_name'.* picture, text"),
    "a repeated column": (["file_name,text,text", "0.png,a,b", "1.png,b,c"], "header repeats a column"),
    "an open quote": (["file_name,text", '0.png,"a', "1.png,b"], "cannot be read"),
    "another folder's picture": (["file_name,text", "0.png,a", "1.png,b", "../../x.png,c"], "not there: .*x.png"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_metadata_that_does_not_fit_is_refused(pictures: Callable[..., Path], case: str) -> None:
    lines, told = BAD[case]
    with pytest.raises(UserError, match=told):
        load_source(csv(pictures("0.png", "1.png"), *lines), caption_column="text")


HOSTILE = [
    ("metadata.jsonl", b"[" * 100_000),
    ("metadata.jsonl", b"[1]"),
    ("metadata.jsonl", b'{"file_name": 7}'),
    ("metadata.jsonl", b'{"file_name": "0.png", "n": 99999999999999999999999}'),
    ("metadata.jsonl", b'{"file_name": "0.png", "n": {"a": []}}\n{"file_name": "1.png", "n": "x"}'),
    ("metadata.jsonl", b'{"file_name": "0.png\\u0000"}'),
    ("metadata.jsonl", b"\xff\xfe"),
    ("metadata.csv", b"file_name,text\n0.png,\x00\n"),
    ("metadata.csv", b"\xff\xfe\x00"),
    ("metadata.csv", b""),
    ("metadata.parquet", b"PAR1nonsensePAR1"),
    ("metadata.parquet", b""),
]


@pytest.mark.parametrize(("name", "content"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_metadata_is_one_sentence(pictures: Callable[..., Path], name: str, content: bytes) -> None:
    folder = pictures("0.png", "1.png")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_source(folder, caption_column="text")
    assert "\n" not in str(caught.value)


def test_a_split_without_folders_has_no_classes(pictures: Callable[..., Path]) -> None:
    folder = pictures("train/cat/a.png", "train/cat/d.png", "train/dog/b.png", "test/c.png")
    splits = load_source(folder)
    assert splits["train"]["label"][:] == [0, 0, 1] and splits["test"]["label"][:] == [-1]
    assert splits["train"].features == splits["test"].features
    drawn, _ = make_splits(splits, unlearn_fraction=0.3)
    assert class_labels(drawn).reason == "The column 'label' has rows without a class (1 of 1 in test)."


def test_folders_that_say_nothing_are_no_classes(pictures: Callable[..., Path]) -> None:
    assert "label" not in load_source(pictures("all/a.png", "all/b.png")).column_names
    assert "label" not in load_source(pictures("all/a.png", "all/b.png", "cat/deep/c.png")).column_names


def test_captions_that_are_numbers_are_texts(tmp_path: Path, rows: Callable[..., Dataset]) -> None:
    data = rows(3).remove_columns("captions")
    single = to_schema(data.add_column("n", [7, 8, 9]), {"image": None, "captions": "n"})
    several = to_schema(data.add_column("n", [[7, 8], [9], [1]]), {"image": None, "captions": "n"})
    assert single["captions"][:] == [["7"], ["8"], ["9"]] and several["captions"][:] == [["7", "8"], ["9"], ["1"]]
    assert single.features["captions"] == List(Value("string"))


def labelled(rows: Callable[..., Dataset], **columns: Sequence) -> DatasetDict:
    return DatasetDict({name: rows(len(values)).add_column("label", values) for name, values in columns.items()})


@pytest.mark.parametrize(
    ("train", "test", "names", "numbers"),
    [
        ([3, 5], [-1, -1], ["3", "5"], [-1, -1]),
        (["cat", "dog"], [None, None], ["cat", "dog"], [-1, -1]),
        (["cat", "dog"], ["", " "], ["cat", "dog"], [-1, -1]),
    ],
)
def test_an_unlabelled_test_split_has_no_class(
    tmp_path: Path, rows: Callable[..., Dataset], train: list, test: list, names: list, numbers: list
) -> None:
    labelled(rows, train=train, test=test).save_to_disk(tmp_path / "data")
    splits = load_source(tmp_path / "data")
    assert splits["test"]["label"][:] == numbers and splits["train"]["label"][:] == [0, 1]
    assert splits["train"].features["label"].names == splits["test"].features["label"].names == names


def test_pictures_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    rows = load_source(tmp_path)
    assert rows.features == Features({"image": Image(), "id": Value("string")})
