"""What a run says of its rows before any model is loaded."""

import logging

import pytest
from datasets import DatasetDict
from folders import folder_hash

from hf_unlearn.errors import UserError
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.run_data import prepare_task

OWN = ("--model_name_or_path", "MODEL")  # whose record of earlier requests is looked for
DRAWN = {
    "nothing held out": (("train",), OWN, "no split validation and no split test"),
    "a test alone": (("train", "test"), OWN, "no split validation,"),
    "ready splits": (("retain", "unlearn", "validation"), OWN, "no split test,"),
    "both": (("train", "val", "test"), OWN, None),
    "a model trained here, without held-out rows": (("train",), (), None),
}


@pytest.mark.parametrize("case", DRAWN)
def test_held_out_rows_that_the_users_model_was_trained_on_are_told(case, shapes, tiny_clip, tmp_path, caplog):
    names, argv, told = DRAWN[case]
    parts = {name: shapes.select(range(18 * i, 18 * i + 18)) for i, name in enumerate(names)}
    DatasetDict(parts).save_to_disk(tmp_path / "data")
    words = ["--dataset_name", str(tmp_path / "data"), "--duplicates", "keep"]
    words += [str(tiny_clip) if word == "MODEL" else word for word in argv]
    words += [] if "unlearn" in names else ["--unlearn_fraction", "0.1"]
    with caplog.at_level(logging.WARNING):
        task = prepare_task(parse_run(words).arguments)
    if told is None:
        assert task.notes == () and "never saw" not in caplog.text
    else:
        (note,) = task.notes
        assert told in note and "Bring splits validation and test that the model never saw" in note
        assert caplog.text.count(note) == 1


def test_pictures_like_those_to_be_unlearned_are_told_on_the_card_and_once_on_the_terminal(shapes, tmp_path, caplog):
    words = [*saved(shapes, tmp_path / "data", train=72)[:2], "--unlearn_fraction", "0.1"]
    with caplog.at_level(logging.WARNING):
        (note,) = prepare_task(parse_run(words).arguments).notes
    assert "Images that nearly equal an unlearn image and stay where they are" in note and caplog.text.count(note) == 1


def test_drawing_some_rows_leaves_no_file_beside_the_data(shapes, tmp_path):
    shapes.save_to_disk(tmp_path / "data")
    before = folder_hash(tmp_path / "data")
    words = ["--dataset_name", str(tmp_path / "data"), "--num_samples", "40", "--unlearn_fraction", "0.1"]
    task = prepare_task(parse_run(words).arguments)
    assert sum(task.sizes.values()) == 40
    assert folder_hash(tmp_path / "data") == before


def saved(shapes, folder, **sizes):
    """The first rows of the pictures, as splits of these sizes, saved to disk."""
    first, parts = 0, {}
    for name, size in sizes.items():
        parts[name] = shapes.select(range(first, first + size))
        first += size
    DatasetDict(parts).save_to_disk(folder)
    return ["--dataset_name", str(folder), "--duplicates", "keep"]


def task(*words):
    return prepare_task(parse_run([*words]).arguments)


def test_some_rows_are_drawn_from_every_split_in_proportion(shapes, tmp_path):
    words = saved(shapes, tmp_path / "data", train=40, validation=8, test=16, extra=8)
    found = task(*words, "--num_samples", "32", "--unlearn_fraction", "0.25")
    assert found.sizes == {"retain": 15, "unlearn": 5, "validation": 4, "test": 8}
    assert set(found.splits["test"]["id"]) < set(shapes["id"][48:64])
    assert found.splits["test"]["id"][:] != shapes["id"][48:56], "a draw, not the first rows"
    assert "Splits that are not used: extra 8." in found.dataset.rows
    assert found.dataset.rows.endswith("Drawn of them by --num_samples: train 20, validation 4, test 8.")
    again = task(*words, "--num_samples", "32", "--unlearn_fraction", "0.25")
    assert again.dataset == found.dataset


def test_what_is_to_be_unlearned_is_drawn_whole(shapes, tmp_path):
    words = saved(shapes, tmp_path / "data", retain=40, unlearn=6, validation=10, test=10)
    found = task(*words, "--num_samples", "36")
    assert found.sizes == {"retain": 20, "unlearn": 6, "validation": 5, "test": 5}
    with pytest.raises(UserError, match=r"--num_samples 8 leaves no row .* give at least 9"):
        task(*words, "--num_samples", "8")


def test_more_samples_than_there_are_is_all_of_them(shapes, tmp_path):
    words = saved(shapes, tmp_path / "data", train=40, validation=8, test=16)
    assert sum(task(*words, "--num_samples", "900", "--unlearn_fraction", "0.25").sizes.values()) == 64


WITHOUT_EFFECT = {
    "a fraction of a split that is there": (["--test_fraction", "0.3"], "--test_fraction has no effect here"),
    "a configuration of local data": (["--dataset_config", "x"], "--dataset_config has no effect"),
    "a column of the embedded data": (
        ["--dataset_name", "openmoji", "--label_column", "x"], "--label_column has no effect",
    ),
    "a revision of the embedded data": (
        ["--dataset_name", "openmoji", "--dataset_revision", "v1"], "--dataset_revision has no effect",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WITHOUT_EFFECT)
def test_options_without_effect_are_refused(case, shapes, tmp_path):
    words, told = WITHOUT_EFFECT[case]
    given = saved(shapes, tmp_path / "data", train=40, validation=8, test=16)
    with pytest.raises(UserError, match=told):
        task(*given, "--unlearn_fraction", "0.25", *words)


@pytest.mark.parametrize("duplicates", ["refuse", "keep"])
def test_rows_left_out_are_counted_in_the_record(duplicates, shapes, tmp_path, caplog):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(shapes["image"][:30]):
        picture.save(folder / f"{number:02}.png")
    (folder / "05.png").write_bytes(b"damaged")
    (folder / "06.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "ids.txt").write_text("00.png\n01.png\n")
    words = ["--dataset_name", str(folder), "--unlearn_request", str(tmp_path / "ids.txt")]
    with caplog.at_level(logging.INFO):
        found = task(*words, "--skip_bad_images", "true", "--duplicates", duplicates)
    assert sum(found.sizes.values()) == 28
    assert found.dataset.rows == (
        "Pictures found: train 30 (one split, train); files left aside: 1 .txt. Rows read: train 30. "
        "Left out: 2 of 30 rows, whose pictures cannot be used."
    )
    assert "Pictures found: train 30" in caplog.text and str(folder) not in found.dataset.rows
