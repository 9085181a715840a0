"""What a run says and refuses before it trains anything."""

import logging

import pytest
from datasets import ClassLabel, DatasetDict

from hf_unlearn.errors import UserError
from hf_unlearn.records.schemas import UnlearningManifest
from hf_unlearn.runs import unlearn
from hf_unlearn.runs.builders import BUILDERS
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.run_data import prepare_task


class TrainingBeganError(Exception):
    """The base model is pre-trained."""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A function from rows and options to a run, up to where its base model would be trained."""

    def pretrain(*_):
        raise TrainingBeganError

    def run(rows, *argv, family="simclr"):
        rows.save_to_disk(tmp_path / "data")
        words = ["--dataset_name", str(tmp_path / "data"), "--duplicates", "keep"]
        words += [] if family == "clip" else ["--views", "light"]
        words += ["--unlearn_fraction", "0.1", "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]
        run = parse_run([*words, *argv])
        unlearn.base_model(run, prepare_task(run.arguments), BUILDERS[family])

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


@pytest.mark.parametrize(
    ("family", "argv", "words"),
    [
        (
            "simclr",
            "--methods fine_tune targeted_calibration --targeted_calibration.retain_weight 5",
            "retain_weight=5.0 would have no effect on a model that embeds views",
        ),
        (
            "simclr",
            "--methods fine_tune gradient_ascent --unlearn_fraction 0.0125",
            "Gradient Ascent has a single sample to learn from",
        ),
        (
            "simclr",
            "--methods fine_tune task_vector --task_vector.vectors 50 --num_train_epochs 2",
            "2 steps are too few for 50 task vectors",
        ),
        ("simclr", "--methods npo fine_tune --fine_tune.freeze vision", "a SimCLRModel has none"),
        (
            "clip",
            "--methods fine_tune targeted_calibration --targeted_calibration.target_features /nowhere",
            "/nowhere.* is neither a folder nor a Hub id",
        ),
        (
            "clip",
            "--methods fine_tune targeted_calibration --targeted_calibration.target_features {views}",
            "which embeds no texts",
        ),
        (
            "clip",
            "--use_peft true --methods targeted_calibration fine_tune --fine_tune.saliency_share 0.5",
            "saliency_share chooses among whole weights",
        ),
        (
            "clip",
            "--use_peft true --lora_target_modules visual_projection --methods npo fine_tune --fine_tune.freeze vision",
            "freeze=vision keeps that encoder as it is, and the adapter",
        ),
        ("moco", "--use_peft true --methods fine_tune", "MoCo cannot be trained through an adapter"),
        ("clip", "--freeze vision --methods fine_tune retrain", "a frozen encoder would stay random"),
        ("moco", "--methods fine_tune npo --npo.forward_chunk_size 4", "forward_chunk_size cannot be exact for MoCoM"),
        ("simclr", "--methods npo --pretrain.forward_chunk_size 4", "forward_chunk_size cannot be exact for SimCLRM"),
        (
            "simclr",
            "--methods fine_tune retrain --num_train_epochs 1 --per_device_train_batch_size 128",
            "Retrain: the learning rate is 0 at each of its updates",
        ),
        ("simclr", "--methods fine_tune --pretrain.num_train_epochs 1", "Retrain: the learning rate is 0 at each of"),
        (
            "simclr",
            "--methods fine_tune --initial_where label=circle --initial.max_steps 1",
            "Retrain: the learning rate is 0 at each of",
        ),
    ],
)
def test_what_a_method_cannot_do_is_refused_before_the_base_model_is_trained(
    family, argv, words, start, shapes, encoder, tmp_path
):
    if "{views}" in argv:
        for part in encoder("simclr"):
            part.save_pretrained(tmp_path / "views")
    with pytest.raises(UserError, match=words):
        start(shapes, *argv.format(views=tmp_path / "views").split(), family=family)


@pytest.mark.parametrize(
    ("family", "argv", "words"),
    [
        ("simclr", "--model.widht 4", "model.widht: a SimCLR has no such setting; choose from backbone,.* width"),
        ("simclr", "--model.queue_size 4", "model.queue_size: a SimCLR has no such setting"),
        ("moco", "--model.backbon resnet50", "model.backbon: a MoCo has no such setting; .* queue_size"),
        ("clip", "--model.width 4", "model.width: a small CLIP has no such setting; choose from image_size$"),
        ("simclr", "--config {config}", "model.widht: a SimCLR has no such setting"),
    ],
)
def test_settings_that_an_architecture_has_not_are_refused(family, argv, words, start, shapes, tmp_path):
    (tmp_path / "own.yaml").write_text("model: {widht: 4}\n")
    with pytest.raises(UserError, match=words):
        start(shapes, "--methods", "npo", *argv.format(config=tmp_path / "own.yaml").split(), family=family)


def test_what_views_are_measured_on_is_said_once_before_their_base_model_is_trained_or_after(
    tmp_path, monkeypatch, shapes, caplog
):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    shapes.remove_columns("label").save_to_disk(tmp_path / "data")
    words = f"--dataset_name {tmp_path / 'data'} --duplicates keep --views light --unlearn_fraction 0.02 --use_cpu true"
    words += f" --output_dir {tmp_path / 'out'} --methods fine_tune --max_steps 1 --pretrain.max_steps 2"
    words += " --model.width 4 --per_device_train_batch_size 8 --pretrain.per_device_train_batch_size 8"
    with caplog.at_level(logging.WARNING):
        unlearn.unlearn_and_compare(parse_run(words.split()), BUILDERS["simclr"])
    notes = UnlearningManifest.load(tmp_path / "out" / "fine_tune").notes
    for told in ("The linear probe's metrics (RA, TA, UA, CMIA) are left out", "is read off few samples (unlearn 1"):
        assert sum(told in note for note in notes) == caplog.text.count(told) == 1, told
