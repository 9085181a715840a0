"""What a run says and refuses before it trains anything."""

import logging

import pytest
from datasets import ClassLabel, DatasetDict

from hf_unlearn.errors import UserError
from hf_unlearn.runs import unlearn
from hf_unlearn.runs.builders import BUILDERS
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.run_data import prepare_task


class TrainingBeganError(Exception):
    """The base model is pre-trained."""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A function from rows to a run of SimCLR, up to where its base model would be trained."""

    def pretrain(*_):
        raise TrainingBeganError

    def run(rows):
        rows.save_to_disk(tmp_path / "data")
        words = ["--dataset_name", str(tmp_path / "data"), "--duplicates", "keep", "--views", "light"]
        run = parse_run([*words, "--unlearn_fraction", "0.1", "--output_dir", str(tmp_path / "out")])
        unlearn.base_model(run, prepare_task(run.arguments), BUILDERS["simclr"])

    monkeypatch.setattr(unlearn, "pretrain", pretrain)
    return run


def test_a_probe_that_is_left_out_is_said_before_the_base_model_is_trained(start, shapes, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(TrainingBeganError):
        start(shapes.remove_columns("label"))
    assert "The linear probe's metrics (RA, TA, UA, CMIA) are left out. No label column" in caplog.text


def test_classes_that_do_not_fit_are_refused_before_the_base_model_is_trained(start, shapes):
    """Of the column `category`, which the library's schema does not know."""
    rows = shapes.rename_column("label", "category")
    other = rows.select(range(54, 72)).cast_column("category", ClassLabel(names=["one", "two", "three"]))
    with pytest.raises(UserError, match=r"'category' .* none of them the same"):
        start(DatasetDict(train=rows.select(range(54)), test=other))
