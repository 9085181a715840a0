"""Files of a folder and their splits: whole names decide, nothing is lost without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from hf_unlearn.data.folders import list_folder
from hf_unlearn.data.sources import load_source, read_source
from hf_unlearn.errors import UserError

Rows = Callable[..., Dataset]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def files(root: Path, *names: str) -> Path:
    """Empty files of these names, in a folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def counts(root: Path, config: str | None = None) -> dict[str, int]:
    return {split: len(found) for split, found in list_folder(root, config).splits.items()}


def test_a_class_called_like_a_split_is_a_class(data: Path) -> None:
    root = files(data, *(f"{kind}/{n}.png" for kind in ("airplane", "bus", "train", "zebra") for n in range(20)))
    rows, told = read_source(root, {"image": "image", "captions": None, "label": None, "id": None})
    assert isinstance(rows, Dataset) and len(rows) == 80
    assert rows.features["label"].names == ["airplane", "bus", "train", "zebra"]
    assert sorted(set(rows["label"])) == [0, 1, 2, 3] and "train/0.png" in rows["id"]
    assert told == ("Pictures found: train 80 (one split, train, with a folder for each class). Rows read: train 80.")


def test_words_in_names_of_files_decide_nothing(data: Path) -> None:
    root = files(data, *(f"{n}.jpg" for n in range(1098)), "old-train-station.jpg", "test drive.jpg")
    assert counts(root) == {"train": 1100}
    other = files(data / "sub", *(f"my test pictures/{kind}/a.jpg" for kind in ("training set", "dev board")))
    assert counts(other) == {"train": 2}


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "test"), {"train": 2, "test": 2}),
        (("train", "valid", "test"), {"train": 2, "validation": 2, "test": 2}),
        (("Train", "VAL"), {"train": 2, "validation": 2}),
        (
            ("train", "test", "holdout_friends", "Holdout_2"),
            {"train": 2, "test": 2, "holdout_2": 2, "holdout_friends": 2},
        ),
        (("retain", "unlearn", "dev"), {"retain": 2, "unlearn": 2, "validation": 2}),
        (("photos/train", "photos/test"), {"train": 2, "test": 2}),
        (("photos/cat", "photos/dog"), {"train": 4}),
        (("test",), {"test": 2}),
    ],
)
def test_top_level_folders_called_like_splits_are_splits(data: Path, folders: tuple, splits: dict) -> None:
    root = files(data, *(f"{folder}/{name}.png" for folder in folders for name in "ab"))
    assert counts(root) == splits


MIXED = {
    "two splits among classes": (
        ("train/a.png", "test/a.png", "zebra/a.png"),
        r"1 of 3 pictures lie elsewhere \(zebra\)",
    ),
    "a split with classes beside another folder": (("train/cat/a.png", "extra/b.png"), r"1 of 2 .* \(extra\)"),
    "loose pictures beside a split": (("train/a.png", "b.png", "c.png"), r"2 of 3 .* \(no folder\)"),
    "pictures and parquet": (
        ("a.png", "train.parquet"),
        r"1 pictures and 1 \.parquet files; which of them are the rows",
    ),
    "parquet in no split": (
        ("train-0.parquet", "extra.parquet"),
        r"1 of 2 files .* belong to no split.*: extra\.parquet",
    ),
    "pictures and archives": (("a.png", "b.zip"), "1 pictures and 1 archives"),
}


@pytest.mark.parametrize("case", MIXED)
def test_what_would_leave_rows_out_is_refused_with_their_number(data: Path, case: str) -> None:
    names, told = MIXED[case]
    with pytest.raises(UserError, match=told):
        list_folder(files(data, *names))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train.parquet", "test.parquet"), {"train": 1, "test": 1}),
        (("data/train-00000-of-00002-ab12.parquet", "data/train-00001-of-00002-cd34.parquet"), {"train": 2}),
        (("train/0000.parquet", "validation/0000.parquet"), {"train": 1, "validation": 1}),
        (
            ("train.parquet", "holdout_b-00000-of-00001.parquet", "holdout_a_2.parquet"),
            {"train": 1, "holdout_a": 1, "holdout_b": 1},
        ),
        (("trainees.parquet", "contest.parquet"), {"train": 2}),
        (("a.parquet", "ids.txt", "notes.csv"), {"train": 1}),
        (("metadata.parquet",), {"train": 1}),
    ],
)
def test_parquet_files_by_name_or_folder(data: Path, names: tuple, splits: dict) -> None:
    assert counts(files(data, *names)) == splits


@pytest.mark.parametrize(
    "names", [("train2017", "val2017"), ("Train_images", "test images"), ("training-set", "test0")]
)
def test_folders_that_almost_are_splits_are_neither_splits_nor_classes(data: Path, names: tuple) -> None:
    with pytest.raises(UserError, match=r"look like splits, but only those called train, .*; rename them"):
        list_folder(files(data, *(f"{name}/{number}.png" for name in names for number in range(2))))
    assert counts(files(data / "classes", f"{names[0]}/a.png", "cat/b.png")) == {"train": 2}


def test_files_left_aside_are_counted(data: Path) -> None:
    root = files(data, "a.png", "b.JPG", "ids.txt", "notes.txt", "video.mp4", "LICENSE", ".hidden.png", "README.md")
    assert list_folder(root).summary == (
        "Pictures found: train 2 (one split, train); files left aside: 1 without suffix, 1 .mp4, 2 .txt."
    )


def test_pictures_that_are_not_opened_are_rows_all_the_same(data: Path) -> None:
    assert counts(files(data, "a.png", "b.heic", "c.eps", "d.svg")) == {"train": 4}


def test_links_are_followed_and_never_round_in_circles(data: Path, tmp_path: Path) -> None:
    files(tmp_path / "elsewhere", "a.png")
    files(data, "cat/b.png")
    (data / "dog").symlink_to(tmp_path / "elsewhere")
    (data / "cat" / "back").symlink_to(data)
    assert counts(data) == {"train": 2}


def test_brackets_and_stars_in_a_path_are_no_patterns(tmp_path: Path, rows: Rows) -> None:
    root = tmp_path / "da[ta] *?" / "x"
    root.mkdir(parents=True)
    rows(3).to_parquet(root / "train[1].parquet")
    assert len(load_source(root)) == 3 and len(load_source(root / "train[1].parquet")) == 3


def test_ids_beside_shards_and_ready_splits(data: Path, rows: Rows) -> None:
    for name, start in (("retain", 0), ("unlearn", 3)):
        (data / name).mkdir(parents=True)
        rows(3, [str(start + n) for n in range(3)]).to_parquet(data / name / "0000.parquet")
    (data / "ids.txt").write_text("3\n")
    splits = load_source(data)
    assert {name: split["id"][:] for name, split in splits.items()} == {
        "retain": ["0", "1", "2"], "unlearn": ["3", "4", "5"],
    }  # fmt: skip


# A clone of a data set on the Hub.

CONFIGS = """\
configs:
- config_name: small
  default: true
  data_files:
  - split: train
    path: small/part-*.parquet
  - split: test
    path: [small/held.parquet]
- config_name: large
  data_files: "large/**/*.parquet"
"""


@pytest.fixture
def clone(data: Path, rows: Rows) -> Path:
    (data / "small").mkdir(parents=True)
    (data / "large" / "deep").mkdir(parents=True)
    rows(2, ["a", "b"]).to_parquet(data / "small" / "part-0.parquet")
    rows(1, ["c"]).to_parquet(data / "small" / "held.parquet")
    rows(3, ["d", "e", "f"]).to_parquet(data / "large" / "deep" / "0.parquet")
    (data / "README.md").write_text(f"---\nlicense: mit\n{CONFIGS}---\n# Ours\n\n---\n")
    return data


def test_a_clone_is_read_as_its_readme_says(clone: Path) -> None:
    small = load_source(clone)
    assert isinstance(small, DatasetDict)
    assert {name: split["id"][:] for name, split in small.items()} == {"train": ["a", "b"], "test": ["c"]}
    assert load_source(clone, dataset_config="large")["id"][:] == ["d", "e", "f"]
    assert "configuration small of its README.md" in list_folder(clone).summary


@pytest.mark.parametrize(
    ("change", "config", "told"),
    [
        (None, "huge", r"no configuration 'huge' \(--dataset_config\); its README.md declares small, large"),
        (("default: true", "default: false"), None, "several configurations"),
        (("small/held.parquet", "small/gone.parquet"), None, "no file for its split test .*gone"),
        (("small/held.parquet", "../held.parquet"), None, "leads out of the folder"),
        (("small/held.parquet", "/etc/passwd"), None, "leads out of the folder"),
        (("small/held.parquet", "small/part-0.parquet"), None, "files in two splits"),
        (("path: [small/held.parquet]", "path: 7"), None, "no paths with splits"),
        (("- config_name: small", "- small"), None, "cannot be read|no list of mappings"),
        (("---\nlicense", "---\n\tlicense"), None, "front matter .* cannot be read"),
        (("large/**/*.parquet", "large/**/*.txt"), "large", "no file for its split train"),
    ],
)
def test_a_readme_that_does_not_fit_is_refused(
    clone: Path, change: tuple | None, config: str | None, told: str
) -> None:
    if change is not None:
        card = clone / "README.md"
        card.write_text(card.read_text().replace(*change))
    with pytest.raises(UserError, match=told):
        load_source(clone, dataset_config=config)


def test_configurations_of_a_clone_may_be_folders_of_pictures(data: Path) -> None:
    files(data, "summer/train/a.png", "summer/test/b.png", "winter/c.png")
    text = (
        "---\nconfigs:\n- config_name: summer\n  data_dir: summer\n- config_name: winter\n  data_files: winter/*\n---"
    )
    (data / "README.md").write_text(text)
    assert counts(data, "summer") == {"train": 1, "test": 1} and counts(data, "winter") == {"train": 1}


@pytest.mark.parametrize("kind", ["folder", "file", "saved"])
def test_options_of_the_hub_have_no_effect_on_local_data(data: Path, kind: str, rows: Rows) -> None:
    data.mkdir()
    if kind == "saved":
        rows(2).save_to_disk(data)
    else:
        rows(2).to_parquet(data / "train.parquet")
    path = data / "train.parquet" if kind == "file" else data
    with pytest.raises(UserError, match=r"--dataset_config.* has no effect"):
        load_source(path, dataset_config="small")
    with pytest.raises(UserError, match="--dataset_revision has no effect"):
        load_source(path, revision="main")


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json", "dataset_info.json"])
@pytest.mark.parametrize(
    "content", ["", "null", "[]", "{}", "7", '{"splits": 3}', '{"_data_files": [{}]}', "[" * 9999, "\0"]
)
def test_a_damaged_saved_dataset_is_one_sentence(data: Path, rows: Rows, name: str, content: str) -> None:
    if name == "dataset_dict.json":
        DatasetDict(train=rows(2)).save_to_disk(data)
    else:
        rows(2).save_to_disk(data)
    (data / name).write_text(content)
    try:
        load_source(data)
    except UserError as error:
        assert "\n" not in str(error) and "--dataset_name" in str(error)


@pytest.mark.parametrize("cut", [0, 3, 40, -8, -200])
def test_damaged_parquet_and_arrow_files_are_one_sentence(data: Path, rows: Rows, cut: int) -> None:
    data.mkdir()
    rows(20).to_parquet(data / "train.parquet")
    rows(20).save_to_disk(data / "saved")
    (arrow,) = (data / "saved").glob("*.arrow")
    for file, folder in ((data / "train.parquet", data / "train.parquet"), (arrow, data / "saved")):
        file.write_bytes(file.read_bytes()[:cut] + b"\xff" * 5)
        with pytest.raises(UserError, match=r"cannot be loaded \(--dataset_name\)|holds no"):
            load_source(folder)
