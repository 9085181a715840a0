"""Sources: every form of data into one schema, and what is wrong with it named."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, load_from_disk
from PIL import Image as PILImage

from hf_unlearn.data.columns import arrow_column
from hf_unlearn.data.labels import align_classes
from hf_unlearn.data.sources import load_source, read_source, to_schema, with_ids
from hf_unlearn.errors import UserError

Rows = Callable[..., Dataset]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path, noise: Callable[..., PILImage.Image]) -> Path:
    """An imagefolder with a metadata.csv."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "number", "owner"])
        for seed in range(3):
            noise(seed).save(folder / f"{seed}.png")
            writer.writerow([f"{seed}.png", f"caption {seed}", seed * 10, "alice" if seed else "bob"])
    return folder


def test_imagefolder_with_captions(folder: Path, noise: Callable[..., PILImage.Image]) -> None:
    dataset = load_source(folder, caption_column="text", id_column="number", label_column="owner")
    assert dataset.features == {
        "image": Image(),
        "captions": List(Value("string")),
        "id": Value("string"),
        "label": ClassLabel(names=["alice", "bob"]),
    }
    assert dataset["id"][:] == ["0", "10", "20"]
    assert dataset["captions"][:] == [["caption 0"], ["caption 1"], ["caption 2"]]
    assert dataset["label"][:] == [1, 0, 0]
    np.testing.assert_array_equal(np.asarray(dataset[2]["image"]), np.asarray(noise(2)))


def test_other_columns_are_kept_and_rows_named_by_their_files(folder: Path) -> None:
    dataset = load_source(folder, caption_column="text")
    assert dataset["id"][:] == ["0.png", "1.png", "2.png"]
    assert dataset["owner"][:] == ["bob", "alice", "alice"]
    assert dataset["number"][:] == ["0", "10", "20"]  # what is written in a csv file is text


def test_imagefolder_with_classes_for_folders(tmp_path: Path, noise: Callable[..., PILImage.Image]) -> None:
    for seed, place in enumerate(["train/cat", "train/dog", "test/cat"]):
        (tmp_path / "data" / place).mkdir(parents=True)
        noise(seed).save(tmp_path / "data" / place / "a.png")
    splits = load_source(tmp_path / "data")
    assert isinstance(splits, DatasetDict)
    assert splits["train"].features["label"].names == ["cat", "dog"]
    assert splits["train"]["id"][:] == ["cat/a.png", "dog/a.png"]
    assert splits["test"]["id"][:] == ["test/cat/a.png"]
    assert "captions" not in splits["train"].column_names


def test_parquet_file_and_folder(tmp_path: Path, rows: Rows) -> None:
    (tmp_path / "data").mkdir()
    rows(4).to_parquet(tmp_path / "data" / "train.parquet")
    for name in ("data", "data/train.parquet"):
        dataset = load_source(tmp_path / name)
        assert isinstance(dataset, Dataset)
        assert dataset.features == rows(4).features
        assert dataset["captions"][:] == rows(4)["captions"][:]


def test_saved_datasets(tmp_path: Path, rows: Rows) -> None:
    rows(3).save_to_disk(tmp_path / "one")
    assert load_source(str(tmp_path / "one"))["id"][:] == ["0", "1", "2"]
    DatasetDict(retain=rows(2), unlearn=rows(1, ["x"])).save_to_disk(tmp_path / "two")
    splits = load_source(tmp_path / "two")
    assert list(splits) == ["retain", "unlearn"]
    assert load_source(tmp_path / "two", split="unlearn")["id"][:] == ["x"]
    assert load_from_disk(tmp_path / "two")["retain"]["id"][:] == splits["retain"]["id"][:]


def test_a_hub_dataset_is_not_fetched_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="somebody/something cannot be loaded"):
        load_source("somebody/something")


@pytest.mark.parametrize("name", ["/no/such/folder", "../elsewhere", "./nothing", "no such thing", "a/b/c"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match="neither a path on this machine nor a Hub id"):
        load_source(name)


def test_a_file_of_another_kind_and_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes\.txt is neither a folder nor a \.parquet file"):
        load_source(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty cannot be loaded"):
        load_source(tmp_path / "empty")


def test_damaged_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match=r"a\.parquet cannot be loaded"):
        load_source(tmp_path / "a.parquet")


def test_a_missing_split(tmp_path: Path, rows: Rows) -> None:
    rows(1).save_to_disk(tmp_path / "data")
    with pytest.raises(UserError, match=r"no split 'dev'; it has train"):
        load_source(tmp_path / "data", split="dev")


@pytest.mark.parametrize("flag", ["image_column", "caption_column", "label_column", "id_column"])
def test_a_missing_column_names_it_the_flag_and_those_there_are(flag: str, tmp_path: Path, rows: Rows) -> None:
    rows(1).save_to_disk(tmp_path / "data")
    with pytest.raises(UserError, match=rf"no column 'photo' \(--{flag}\); its columns: image, captions, id"):
        load_source(tmp_path / "data", **{flag: "photo"})


def test_no_image_column(rows: Rows) -> None:
    with pytest.raises(UserError, match=r"no column 'image' \(--image_column\); its columns: id"):
        to_schema(rows(1).select_columns("id"), {"image": None})


def test_one_column_cannot_be_two_things(rows: Rows) -> None:
    with pytest.raises(UserError, match=r"'id' .* two things at once \(--caption_column, --id_column\)"):
        to_schema(rows(1), {"image": "image", "captions": "id", "id": "id"})


def test_columns_in_the_way_are_renamed(rows: Rows) -> None:
    dataset = rows(2).add_column("text", ["a", "b"]).add_column("key", ["k", "l"])
    dataset = to_schema(dataset, {"image": None, "captions": "text", "label": None, "id": "key"})
    assert dataset["captions"][:] == [["a"], ["b"]] and dataset["id"][:] == ["k", "l"]
    assert dataset["source_captions"][:] == [["picture 0"], ["picture 1"]] and dataset["source_id"][:] == ["0", "1"]


@pytest.mark.parametrize("kind", ["bytes", "path", "struct"])
def test_images_as_bytes_or_paths(
    kind: str, tmp_path: Path, encode: Callable[..., bytes], noise: Callable[..., PILImage.Image]
) -> None:
    encoded = encode(noise(0))
    (tmp_path / "a.png").write_bytes(encoded)
    value = {"bytes": encoded, "path": str(tmp_path / "a.png"), "struct": {"bytes": encoded, "path": None}}[kind]
    dataset = to_schema(Dataset.from_dict({"photo": [value]}), {"image": "photo"})
    assert dataset.features["image"] == Image()
    np.testing.assert_array_equal(np.asarray(dataset[0]["image"]), np.asarray(noise(0)))


def test_images_as_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="holds int64, neither images nor encoded bytes nor paths"):
        to_schema(Dataset.from_dict({"image": [1]}), {"image": "image"})


TEXT_TYPES = [pa.string(), pa.large_string()]


@pytest.mark.parametrize("text", TEXT_TYPES)
@pytest.mark.parametrize("container", [None, pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)])
def test_captions_of_every_type(text: pa.DataType, container: Callable | None, rows: Rows) -> None:
    values = ["one", "two"] if container is None else [["one", "uno"], ["two", "due"]]
    column = pa.chunked_array(
        [pa.array(values[:1], kind := container(text) if container else text), pa.array(values[1:], kind)]
    )
    dataset = rows(2).remove_columns("captions")
    dataset = Dataset(pa.table({"image": arrow_column(dataset, "image"), "text": column}))
    dataset = to_schema(dataset, {"image": "image", "captions": "text"})
    assert dataset.features["captions"] == List(Value("string"))
    assert dataset["captions"][:] == ([["one"], ["two"]] if container is None else values)


def test_selected_rows_keep_their_captions(rows: Rows) -> None:
    dataset = rows(4).remove_columns("captions").add_column("text", list("abcd")).select([3, 1])
    dataset = to_schema(dataset, {"image": "image", "captions": "text"})
    assert dataset["captions"][:] == [["d"], ["b"]] and dataset["id"][:] == ["3", "1"]


def test_empty_captions_are_all_listed(rows: Rows) -> None:
    dataset = rows(6, list("abcdef")).remove_columns("captions")
    texts = dataset.add_column("text", ["fine", "", " \t\n", None, "fine", "fine"])
    with pytest.raises(
        UserError, match=r"'text' .* empty in the rows with these ids: b, c, d; give .*--caption_column"
    ):
        to_schema(texts, {"image": "image", "captions": "text"})
    lists = dataset.add_column("text", [["fine"], [], ["fine", " "], None, ["fine", None], ["fine", "fine"]])
    with pytest.raises(UserError, match="with these ids: b, c, d, e; give"):
        to_schema(lists, {"image": "image", "captions": "text"})
    many = rows(30).remove_columns("captions").add_column("text", [""] * 30)
    with pytest.raises(UserError, match="18, 19 and 10 more; give them"):
        to_schema(many, {"image": "image", "captions": "text"})


def test_captions_of_another_type(rows: Rows) -> None:
    dataset = rows(1).add_column("score", [1.5])
    with pytest.raises(UserError, match=r"'score' .* holds double"):
        to_schema(dataset, {"image": "image", "captions": "score"})


def test_ids_of_other_types_missing_or_repeated(rows: Rows) -> None:
    dataset = rows(4).remove_columns("id")
    assert to_schema(dataset.add_column("n", [3, 1, 2, 0]), {"image": None, "id": "n"})["id"][:] == ["3", "1", "2", "0"]
    with pytest.raises(UserError, match=r"'n' .* holds double, neither strings nor integers"):
        to_schema(dataset.add_column("n", [3.0, 1.0, 2.0, 0.0]), {"image": None, "id": "n"})
    with pytest.raises(UserError, match=r"'n' .* in these rows, counted from 0: 1, 2, 3; mend .*--id_column"):
        to_schema(dataset.add_column("n", ["a", None, " ", "b\nc"]), {"image": None, "id": "n"})
    with pytest.raises(UserError, match=r"^In the column 'n' of .* several .* the same id: [ab], [ab]; give .*id_col"):
        to_schema(dataset.add_column("n", ["a", "b", "a", "b"]), {"image": None, "id": "n"})


def test_rows_that_repeat_a_picture_are_its_captions(tmp_path: Path, rows: Rows) -> None:
    """As data sets of captions are published: a row a caption, with the picture and its id in each."""
    pictures = rows(3).remove_columns([name for name in rows(3).column_names if name != "image"])
    repeated = pictures.select([0, 1, 0, 2, 0]).add_column("image_id", [7, 8, 7, 9, 7])
    repeated = repeated.add_column("text", ["one", "uno", "two", "un", "one"])
    repeated = repeated.add_column("sentence", [1, 2, 3, 4, 5]).add_column("owner", ["x", "y", "x", "x", "x"])
    repeated.to_parquet(tmp_path / "data.parquet")
    loaded, told = read_source(
        tmp_path / "data.parquet", {"image": "image", "captions": "text", "id": "image_id", "label": None}
    )
    assert loaded["id"][:] == ["7", "8", "9"] and loaded["owner"][:] == ["x", "y", "x"]
    assert loaded["captions"][:] == [["one", "two"], ["uno"], ["un"]]
    assert loaded["sentence"][:] == [[1, 3, 5], [2], [4]]
    assert [image.getpixel((0, 0)) for image in loaded["image"]] == [i.getpixel((0, 0)) for i in pictures["image"]]
    assert told == "Rows read: train 5. Rows that repeat a picture are its captions: train 3 pictures."
    two = pictures.select([0, 1]).add_column("id", ["a", "a"]).add_column("captions", ["one", "two"])
    with pytest.raises(UserError, match="several rows have the same id: a; give each"):
        to_schema(two, {"image": None, "captions": None, "id": None})


def test_archives_are_to_be_unpacked(tmp_path: Path) -> None:
    """`datasets` would lose their classes, or fail without a reason."""
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("cat/0.png", b"")
    with pytest.raises(UserError, match=r"holds 1 archives \(pictures.zip\); unpack them"):
        load_source(tmp_path)


def test_what_datasets_could_not_read_is_said(tmp_path: Path, rows: Rows) -> None:
    rows(2).to_parquet(tmp_path / "train-0.parquet")
    rows(2).rename_column("captions", "other").to_parquet(tmp_path / "train-1.parquet")
    with pytest.raises(UserError, match=r"cannot be loaded \(--dataset_name\): (?!An error occurred)"):
        load_source(tmp_path)


def test_labels_are_encoded_alike_in_all_splits(tmp_path: Path, rows: Rows) -> None:
    splits = DatasetDict(train=rows(3), test=rows(2))
    named = DatasetDict(
        train=splits["train"].add_column("kind", ["dog", "cat", "dog"]),
        test=splits["test"].add_column("kind", ["eel", "dog"]),
    )
    named.save_to_disk(tmp_path / "named")
    loaded = load_source(tmp_path / "named", label_column="kind")
    assert (
        loaded["train"].features["label"] == loaded["test"].features["label"] == ClassLabel(names=["cat", "dog", "eel"])
    )
    assert loaded["train"]["label"][:] == [1, 0, 1] and loaded["test"]["label"][:] == [2, 1]
    numbers = splits["train"].add_column("label", [10, 9, 10])
    numbers.save_to_disk(tmp_path / "numbers")
    assert load_source(tmp_path / "numbers").features["label"].names == ["9", "10"]


@pytest.mark.parametrize("values", [[1.5, 2.5], ["a", None]])
def test_bad_labels(values: list, tmp_path: Path, rows: Rows) -> None:
    rows(2).add_column("kind", values).save_to_disk(tmp_path / "data")
    with pytest.raises(UserError, match="give strings or integers in all splits, none missing"):
        load_source(tmp_path / "data", label_column="kind")


def test_class_names_in_another_order_in_one_split_are_mapped_by_name(tmp_path: Path, rows: Rows) -> None:
    kinds = {"train": ["cat", "dog", "eel"], "test": ["eel", "cat", "dog"]}
    splits = {
        name: rows(3).add_column("label", [0, 1, 2]).cast_column("label", ClassLabel(names=names))
        for name, names in kinds.items()
    }
    DatasetDict(splits).save_to_disk(tmp_path / "data")
    loaded = load_source(tmp_path / "data")
    assert loaded["train"].features["label"] == loaded["test"].features["label"]
    for name, names in kinds.items():
        feature = loaded[name].features["label"]
        assert [feature.int2str(label) for label in loaded[name]["label"]] == names


def test_rows_without_a_class_stay_without_when_classes_are_mapped(rows: Rows) -> None:
    kinds = {"train": ["cat", "dog"], "test": ["dog", "cat"]}
    splits = {
        name: rows(3).add_column("label", [0, -1, 1]).cast_column("label", ClassLabel(names=names))
        for name, names in kinds.items()
    }
    aligned = align_classes(splits)
    assert aligned["train"]["label"][:] == [0, -1, 1] and aligned["test"]["label"][:] == [1, -1, 0]


def test_class_labels_stay_as_they_are(tmp_path: Path, openmoji: Dataset) -> None:
    openmoji.select(range(3)).save_to_disk(tmp_path / "data")
    dataset = load_source(tmp_path / "data", label_column="category")
    assert dataset.features["label"] == openmoji.features["category"]


def test_with_ids_leaves_good_ids_alone(rows: Rows) -> None:
    dataset = rows(2)
    assert with_ids(dataset) is dataset
    assert with_ids(dataset.remove_columns("id"), prefix="test/")["id"][:] == ["test/0", "test/1"]
    features = Features({"id": Value("large_string")})
    assert with_ids(Dataset.from_dict({"id": ["a"]}, features=features)).features["id"] == Value("string")


def test_no_image_is_decoded(tmp_path: Path, rows: Rows) -> None:
    rows([b"not an image"] * 3).save_to_disk(tmp_path / "data")
    assert len(load_source(tmp_path / "data", caption_column="captions", id_column="id")) == 3
