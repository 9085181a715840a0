"""What a trainer is given, and how it is evaluated: splits, views, settings and processors that can or cannot work."""

from dataclasses import replace

import loss_oracle
import pytest
import torch
from datasets import DatasetDict, concatenate_datasets

from hf_unlearn.data.config import DataConfig
from hf_unlearn.errors import UserError
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.fine_tune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.training.rows import make_preprocessor


def test_the_evaluation_loss_is_info_nce_of_held_out_rows(make_trainer, splits):
    trainer = make_trainer("gradient_ascent", eval_dataset=splits["validation"])
    metrics = trainer.evaluate()
    encoded = trainer.eval_dataset.__getitems__(list(range(22)))
    with torch.no_grad():
        outputs = trainer.model(**trainer.preprocessor.batch(encoded, None))
    elements = (loss_oracle.unit(element.double().numpy()) for element in (outputs.image_embeds, outputs.text_embeds))
    scale = trainer.model.logit_scale.exp().item()
    wanted = loss_oracle.info_nce("cross_modal", *elements, scale, [True] * 22)
    assert metrics["eval_loss"] == pytest.approx(wanted, rel=1e-5)
    assert not set(metrics) & {"eval_loss_retain", "eval_positive"}


@pytest.mark.parametrize("family", ["simclr", "moco"])
def test_the_evaluation_loss_of_view_encoders_compares_seeded_views(make_trainer, splits, family):
    trainer = make_trainer("fine_tune", family, eval_dataset=splits["validation"], per_device_eval_batch_size=22)
    found = trainer.evaluate()["eval_loss"]
    pixels = trainer.eval_dataset.__getitems__(list(range(22)))["pixels"]
    with torch.no_grad():
        outputs = trainer.model.eval()(trainer.preprocessor.views(pixels, seed=trainer.place_seed(0)))
    x, y = (loss_oracle.unit(element.double().numpy()) for element in (outputs.x_embeds, outputs.y_embeds))
    assert (abs(x - y).max(1) > 1e-3).all()  # no picture is compared with itself
    scale = 1 / trainer.model.config.temperature
    kind, queue = ("two_view", None) if family == "simclr" else ("queue", trainer.model.queue.double().numpy())
    wanted = loss_oracle.info_nce(kind, x, y, scale, [True] * 22, queue=queue)
    assert found == pytest.approx(wanted, rel=1e-5) == trainer.evaluate()["eval_loss"]
    trainer.args.seed = 1
    assert found != trainer.evaluate()["eval_loss"]


def test_batches_of_an_evaluation_have_views_of_their_own(make_trainer, splits):
    twice = concatenate_datasets([splits["validation"].select(range(4))] * 2)
    trainer = make_trainer("fine_tune", "simclr", eval_dataset=twice, per_device_eval_batch_size=4)
    first, second = (trainer.contrast(trainer.model.eval(), batch)[0] for batch in trainer.get_eval_dataloader())
    assert not torch.equal(first.x, second.x)


def test_any_split_of_rows_can_be_evaluated_on(make_trainer, splits):
    trainer = make_trainer("fine_tune", eval_dataset=splits["validation"])
    other = trainer.evaluate(splits["unlearn"])["eval_loss"]
    assert other == make_trainer("fine_tune", eval_dataset=splits["unlearn"]).evaluate()["eval_loss"]
    assert other == trainer.predict(splits["unlearn"]).metrics["test_loss"] != trainer.evaluate()["eval_loss"]
    named = trainer.evaluate({"held_out": splits["validation"], "asked": splits["unlearn"]})
    assert named["eval_asked_loss"] == other and named["eval_held_out_loss"] == trainer.evaluate()["eval_loss"]


def test_several_splits_are_evaluated_by_name_while_training(make_trainer, splits):
    held_out = DatasetDict({name: splits[name] for name in ("validation", "unlearn")})
    trainer = make_trainer("fine_tune", eval_dataset=held_out, eval_strategy="steps", eval_steps=1, max_steps=1)
    trainer.train()
    logged = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    assert logged["eval_validation_loss"] == trainer.evaluate("validation")["eval_loss"]
    assert logged["eval_unlearn_loss"] == trainer.evaluate(splits["unlearn"])["eval_loss"]


def test_what_is_no_split_is_refused(make_trainer, splits):
    with pytest.raises(UserError, match="train_dataset is a Dataset; pass its splits by name, as DatasetDict"):
        make_trainer("fine_tune", train_dataset=splits["retain"])
    with pytest.raises(UserError, match="kept encoded is a IterableDataset; pass its rows as a datasets"):
        make_trainer("fine_tune", eval_dataset=splits["validation"].to_iterable_dataset())


def test_unlearn_rows_are_not_needed_by_methods_that_use_retain_alone(make_trainer, splits):
    trainer = make_trainer("fine_tune", train_dataset=DatasetDict(retain=splits["retain"]))
    assert len(trainer.train_dataset) == 40


@pytest.mark.parametrize(
    ("method", "rows", "message"),
    [
        ("fine_tune", {"unlearn": 4}, "Fine-Tune learns from the retain split, which is empty or missing"),
        ("neg_grad", {"retain": 4}, "NegGrad learns from the unlearn split, which is empty or missing"),
        ("neg_grad", {"retain": 4, "unlearn": 0}, "NegGrad learns from the unlearn split, which is empty or missing"),
        ("gradient_ascent", {"retain": 4, "unlearn": 1}, "Gradient Ascent has a single sample to learn from"),
    ],
)
def test_splits_without_rows_are_refused(make_trainer, shapes, method, rows, message):
    first = {"retain": 0, "unlearn": 40}
    splits = DatasetDict({name: shapes.select(range(first[name], first[name] + n)) for name, n in rows.items()})
    with pytest.raises(UserError, match=message):
        make_trainer(method, train_dataset=splits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_device_train_batch_size": 1}, "leaves InfoNCE without negatives; use at least 2"),
        ({"forward_chunk_size": 0}, "forward_chunk_size=0 must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 would train nothing; use more than 0"),
        ({"push_to_hub": True}, r"optimiser pickles; leave it unset, and publish .* with trainer.push_to_hub"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        FineTuneConfig(output_dir=str(tmp_path), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": "wild"}, "views='wild' is unknown; choose one of cifar"),
        ({"max_length": 0}, "max_length=0 must be a number of at least 1"),
        ({"flip_probability": 1.5}, "flip_probability=1.5 must be from 0 to 1"),
        ({"retain_rows": 0}, "retain_rows=0 must be a number of at least 1"),
        ({"shuffle_buffer": float("nan")}, "shuffle_buffer=nan must be a number of at least 1"),
    ],
)
def test_settings_of_the_data_that_cannot_work_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**settings)


def test_a_processor_is_needed(encoder, splits, tmp_path):
    with pytest.raises(UserError, match="processing_class is missing"):
        FineTuneTrainer(encoder("clip")[0], FineTuneConfig(output_dir=str(tmp_path)), train_dataset=splits)


def test_captions_are_as_long_as_the_tokenizer_says(encoder):
    model, processor = encoder("clip")
    config = DataConfig()
    assert make_preprocessor(model, processor, config).max_length == 16
    processor.tokenizer.model_max_length = 8
    assert make_preprocessor(model, processor, config).max_length == 8
    assert make_preprocessor(model, processor, replace(config, max_length=12)).max_length == 12
    with pytest.raises(UserError, match="max_length=17 is more than the 16 tokens that CLIPModel has positions for"):
        make_preprocessor(model, processor, replace(config, max_length=17))


@pytest.mark.parametrize("method", [name for name, trainer in METHODS.items() if not trainer.iterative])
def test_methods_that_make_no_steps_need_no_learning_rate(method, tmp_path):
    assert METHODS[method].config_class(output_dir=str(tmp_path), learning_rate=0.0).learning_rate == 0
