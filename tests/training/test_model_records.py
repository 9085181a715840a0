"""A Trainer looks for the records of its model wherever it came from, and trains on no row that they keep out."""

import shutil
from copy import deepcopy
from dataclasses import replace

import pytest
from datasets import DatasetDict
from folders import files_as_they_stand

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.splits import make_splits
from hf_unlearn.errors import UserError
from hf_unlearn.hub.past_requests import PastRequests, past_rows
from hf_unlearn.hub.recorded_rows import RecordedRows
from hf_unlearn.methods.fine_tune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.methods.targeted_calibration import TargetedCalibrationConfig, TargetedCalibrationTrainer
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.records.schemas import UnlearningManifest
from hf_unlearn.training.rows import make_preprocessor

WEEKS = {1: range(0, 6), 2: range(20, 24), 3: range(30, 33)}


@pytest.fixture(scope="module")
def asked(shapes):
    return {week: list(shapes.select(rows)["id"]) for week, rows in WEEKS.items()}


@pytest.fixture(scope="module")
def trainer_of(tmp_path_factory):
    """A function from a model and splits to the Trainer that would train one step."""

    def build(loaded, splits):
        model, processor = loaded
        options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 16}
        config = FineTuneConfig(str(tmp_path_factory.mktemp("out")), max_steps=1, **options)
        return FineTuneTrainer(model, config, splits, processing_class=processor)

    return build


@pytest.fixture(scope="module")
def first(trainer_of, tiny_clip, shapes, asked, tmp_path_factory):
    """What a first request left: the folder, and the splits of its run."""
    splits, _ = make_splits(shapes, unlearn_request=asked[1])
    folder = tmp_path_factory.mktemp("models") / "first"
    trainer_of(load_encoder(str(tiny_clip)), splits).save_model(str(folder))
    return folder, splits


def without(shapes, ids):
    return shapes.select([row for row, name in enumerate(shapes["id"]) if name not in ids])


def test_rows_that_the_first_run_held_out_are_not_retained(trainer_of, first, shapes, asked):
    folder, splits = first
    drawn_anew, _ = make_splits(without(shapes, asked[1]), unlearn_request=asked[2], split_seed=7)
    held_out = {*splits["validation"]["id"], *splits["test"]["id"]} & set(drawn_anew["retain"]["id"])
    assert held_out  # else nothing is shown
    with pytest.raises(UserError, match=rf"^{len(held_out)} rows of retain were held out by the first run .* past="):
        trainer_of(load_encoder(str(folder)), drawn_anew)
    kept, _ = make_splits(shapes, unlearn_request=asked[2], past=past_rows(folder, shapes))
    assert trainer_of(load_encoder(str(folder)), kept).earlier.rows.num_rows == 6


@pytest.mark.parametrize("form", [dict, DatasetDict])
def test_splits_by_name_are_looked_at_whatever_holds_them(trainer_of, first, shapes, asked, form):
    careless, _ = make_splits(shapes, unlearn_request=asked[2])
    with pytest.raises(UserError, match="6 rows of the splits were unlearned from this model before"):
        trainer_of(load_encoder(str(first[0])), form(careless))


@pytest.mark.parametrize("form", [dict, DatasetDict])
def test_splits_by_name_are_recorded_whatever_holds_them(trainer_of, first, shapes, asked, form, tmp_path):
    folder, _ = first
    kept, _ = make_splits(shapes, unlearn_request=asked[2], past=past_rows(folder, shapes))
    unset = {} if form is DatasetDict else {"test": None}
    trainer_of(load_encoder(str(folder)), form({**kept, **unset})).save_model(str(tmp_path / "second"))
    assert sorted(past_rows(tmp_path / "second", shapes).requested["train"].values()) == [1] * 6 + [2] * 4


def test_a_copy_learns_retain_whatever_the_model_has_been_through(first, shapes, asked, tmp_path):
    folder, _ = first
    kept, _ = make_splits(shapes, unlearn_request=asked[2], past=past_rows(folder, shapes))
    model, processor = load_encoder(str(folder))
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "target_epochs": 1, "max_steps": 1}
    trainer = TargetedCalibrationTrainer(
        model,
        TargetedCalibrationConfig(str(tmp_path / "out"), **options),
        kept,
        processing_class=processor,
        initial_model=type(model)(model.config),
    )
    trainer.train()
    assert trainer.earlier.rows.num_rows == 6 and trainer.state.global_step == 1


def test_the_folder_that_the_model_came_from_is_not_written_to(trainer_of, first, shapes, asked, tmp_path):
    folder = shutil.copytree(first[0], tmp_path / "own")
    before = files_as_they_stand(folder)
    kept, _ = make_splits(shapes, unlearn_request=asked[2], past=past_rows(folder, shapes))
    trainer = trainer_of(load_encoder(str(folder)), kept)
    initial, _ = load_encoder(str(shutil.copytree(first[0], tmp_path / "public")))
    trainer.initial_model = initial
    with pytest.raises(UserError, match=r"save_model to .*public would write into the folder that"):
        trainer.save_model(str(tmp_path / "public"))
    for inside in (folder, folder / "again"):
        with pytest.raises(
            UserError, match=r"save_model to .* the folder that the model was loaded from, .* another one"
        ):
            trainer.save_model(str(inside))
        with pytest.raises(UserError, match=r"output_dir .* which is only read; name another one"):
            FineTuneTrainer(
                trainer.model,
                replace(trainer.args, output_dir=str(inside)),
                kept,
                processing_class=trainer.processing_class,
            ).train()
    assert files_as_they_stand(folder) == before


@pytest.mark.parametrize(
    ("family", "settings", "others"),
    [
        ("simclr", {"views": "light"}, {"views": "cifar"}),
        ("clip", {"max_length": 9}, {"max_length": 16}),
        ("clip", {}, {"max_length": 9}),
    ],
)
def test_rows_are_read_as_the_models_own_run_read_them(make_trainer, tmp_path, family, settings, others):
    """Where samples stand is told in the views and captions of the first run; others would be other figures."""
    trainer = make_trainer("fine_tune", family, max_steps=1, **settings)
    trainer.save_model(str(tmp_path / "first"))
    model, processor = load_encoder(str(tmp_path / "first"))
    make_preprocessor(model, processor, DataConfig(**settings))
    (name, now), length = *others.items(), getattr(trainer.preprocessor, "max_length", None)
    was = length if family == "clip" else settings[name]
    told = rf"first was unlearned with {name}={was}, .* with {name}={now} .* give --{name} {was} \(DataConfig\({name}="
    with pytest.raises(UserError, match=told):
        make_preprocessor(model, processor, DataConfig(**others))


def test_rows_found_for_an_older_model_are_not_enough(trainer_of, first, shapes, asked, tmp_path):
    folder, _ = first
    kept, _ = make_splits(shapes, unlearn_request=asked[2], past=past_rows(folder, shapes))
    trainer_of(load_encoder(str(folder)), kept).save_model(str(tmp_path / "second"))
    stale, _ = make_splits(shapes, unlearn_request=asked[3], past=past_rows(folder, shapes))
    with pytest.raises(UserError, match="4 rows of the splits were unlearned from this model before"):
        trainer_of(load_encoder(str(tmp_path / "second")), stale)


def test_a_model_goes_on_from_where_its_records_are(trainer_of, first, shapes, asked, tmp_path):
    folder, _ = first
    loaded = load_encoder(str(folder))
    kept, _ = make_splits(shapes, unlearn_request=asked[2], past=past_rows(folder, shapes))
    trainer = trainer_of(loaded, kept)
    trainer.train()
    trainer.save_model(str(tmp_path / "second"))
    third, _ = make_splits(shapes, unlearn_request=asked[3], past=past_rows(tmp_path / "second", shapes))
    for goes_on in (trainer.model, deepcopy(trainer.model)):
        with pytest.raises(UserError, match=r"Fine-Tune has unlearned rows from this model already.*load_encoder"):
            trainer_of((goes_on, loaded[1]), third)
    trainer_of(load_encoder(str(tmp_path / "second")), third).save_model(str(tmp_path / "third"))
    assert [run.request.count for run in PastRequests.read(tmp_path / "third").runs] == [6, 4, 3]


def test_a_folder_is_found_from_elsewhere_and_its_loss_is_said(
    trainer_of, first, shapes, asked, tmp_path, monkeypatch, caplog
):
    shutil.copytree(first[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    loaded = load_encoder("copy")
    careless, _ = make_splits(shapes, unlearn_request=asked[2])
    monkeypatch.chdir("/")
    with pytest.raises(UserError, match="were unlearned from this model before"):
        trainer_of(loaded, careless)
    shutil.rmtree(tmp_path / "copy")
    trainer_of(loaded, careless)
    assert "is not there any more: whether it has been through earlier requests" in caplog.text


def test_what_was_recorded_with_a_salt_goes_on(trainer_of, first, shapes, asked, tmp_path):
    folder, splits = first
    shutil.copytree(folder, tmp_path / "salted")
    rows = RecordedRows.of(UnlearningManifest.load(folder).request, splits, "secret")
    salted = {"held_out": rows.held_out, "parts": rows.parts}
    replace(UnlearningManifest.load(folder), **salted).save(tmp_path / "salted")
    kept, _ = make_splits(shapes, unlearn_request=asked[2], past=past_rows(folder, shapes))
    trainer_of(load_encoder(str(tmp_path / "salted")), kept).save_model(str(tmp_path / "second"))
    after = PastRequests.read(tmp_path / "second").salted
    assert (after.held_out, after.parts) == (rows.held_out, rows.parts)
