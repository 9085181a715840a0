"""What a run says of its rows before any model is loaded."""

import logging

import pytest
from datasets import DatasetDict
from folders import folder_hash

from hf_unlearn.runs.arguments import parse_run
from hf_unlearn.runs.run_data import prepare_task

OWN = ("--model_name_or_path", "somebody/a-model")
DRAWN = {
    "nothing held out": (("train",), OWN, "no split validation and no split test"),
    "a test alone": (("train", "test"), OWN, "no split validation,"),
    "ready splits": (("retain", "unlearn", "validation"), OWN, "no split test,"),
    "both": (("train", "val", "test"), OWN, None),
    "a model trained here, without held-out rows": (("train",), (), None),
}


@pytest.mark.parametrize("case", DRAWN)
def test_held_out_rows_that_the_users_model_was_trained_on_are_told(case, shapes, tmp_path, caplog):
    names, argv, told = DRAWN[case]
    parts = {name: shapes.select(range(18 * i, 18 * i + 18)) for i, name in enumerate(names)}
    DatasetDict(parts).save_to_disk(tmp_path / "data")
    words = ["--dataset_name", str(tmp_path / "data"), "--duplicates", "keep", *argv]
    words += [] if "unlearn" in names else ["--unlearn_fraction", "0.1"]
    with caplog.at_level(logging.WARNING):
        task = prepare_task(parse_run(words).arguments)
    if told is None:
        assert task.notes == () and "never saw" not in caplog.text
    else:
        (note,) = task.notes
        assert told in note and "Bring splits validation and test that the model never saw" in note
        assert caplog.text.count(note) == 1


def test_drawing_some_rows_leaves_no_file_beside_the_data(shapes, tmp_path):
    shapes.save_to_disk(tmp_path / "data")
    before = folder_hash(tmp_path / "data")
    words = ["--dataset_name", str(tmp_path / "data"), "--num_samples", "40", "--unlearn_fraction", "0.1"]
    task = prepare_task(parse_run(words).arguments)
    assert sum(task.sizes.values()) == 40
    assert folder_hash(tmp_path / "data") == before
