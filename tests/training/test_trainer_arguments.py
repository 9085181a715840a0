"""What a Trainer is given and could make nothing of, or something else than was meant."""

import logging

import numpy as np
import pytest
from datasets import DatasetDict, concatenate_datasets
from transformers import BertConfig, BertModel, TrainingArguments

from hf_unlearn.errors import UserError
from hf_unlearn.methods.fine_tune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.methods.gradient_ascent import GradientAscentTrainer
from hf_unlearn.parsing import read_json


@pytest.fixture
def give(encoder, splits, tmp_path):
    """A function that makes a Fine-Tune trainer, one of its parts replaced."""
    model, processor = encoder("clip")
    config = FineTuneConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")

    def make(trainer=FineTuneTrainer, model=model, args=config, train_dataset=splits, **kwargs):
        return trainer(model, args, train_dataset, processing_class=processor, **kwargs)

    return make


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("compute_metrics", print, "compute_metrics would have no effect, since methods have their own losses"),
        ("compute_loss_func", print, "compute_loss_func would have no effect"),
        ("data_collator", print, "data_collator would have no effect, since rows are encoded once"),
        ("preprocess_logits_for_metrics", print, "preprocess_logits_for_metrics would have no effect"),
        ("model_init", print, "model_init would have no effect, .* hf-unlearn tune"),
        ("model", "org/clip", r"model is a str, no loaded model; load it .* load_encoder\(NAME\)"),
        ("model", None, "model is a NoneType, no loaded model"),
        ("model", BertModel(BertConfig(hidden_size=8, num_attention_heads=1)), "BertModel, which embeds no pairs: it"),
        ("initial_model", "org/clip", "initial_model is a str, no model; load it with load_encoder, and give that"),
        ("trainer", GradientAscentTrainer, "args is a FineTuneConfig, and this method takes a GradientAscentConfig"),
    ],
)
def test_what_is_not_meant_is_refused(give, part, value, message):
    with pytest.raises(UserError, match=message):
        give(**{part: value})


def test_arguments_of_any_trainer_are_no_config(give, tmp_path):
    with pytest.raises(UserError, match="args is a TrainingArguments, and this method takes a FineTuneConfig"):
        give(args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"))


@pytest.mark.parametrize("output", ["file", "file/below", "/proc/nowhere"])
def test_an_output_folder_that_cannot_be_written_to_is_refused_at_once(give, tmp_path, output):
    (tmp_path / "file").write_text("")
    config = FineTuneConfig(output_dir=str(tmp_path / output), use_cpu=True, report_to="none")
    with pytest.raises(UserError, match=rf"{output} cannot be written to \(.*\); choose another output_dir$"):
        give(args=config)
    with pytest.raises(UserError, match=rf"{output} cannot be written to \(.*\); choose another folder$"):
        give().save_model(str(tmp_path / output))


def test_the_models_own_folder_is_not_even_tried_out(give, tiny_clip):
    before = tiny_clip.stat().st_mtime_ns
    own = give(args=FineTuneConfig(output_dir=str(tiny_clip), use_cpu=True, report_to="none"))
    for write in (own.train, own.save_model):
        with pytest.raises(UserError, match="would write into the folder that the model was loaded from"):
            write()
    assert tiny_clip.stat().st_mtime_ns == before


def test_an_evaluation_needs_rows(give, splits):
    with pytest.raises(UserError, match=r"no eval_dataset, .* give it one \(splits\['validation'\]\), or measure"):
        give().evaluate()
    assert give().evaluate(splits["validation"])["eval_loss"] > 0


def test_a_row_to_be_unlearned_is_not_retained(give, splits):
    both = concatenate_datasets([splits["retain"], splits["unlearn"].select([2, 0])])
    ids = splits["unlearn"]["id"]
    with pytest.raises(UserError, match=f"2 rows are in both splits, retain and unlearn: {ids[2]}, {ids[0]}; leave"):
        give(train_dataset=DatasetDict(retain=both, unlearn=splits["unlearn"]))
    with pytest.raises(UserError, match="the split retain is a list; make a Dataset of it"):
        give(train_dataset={"retain": list(splits["retain"]), "unlearn": splits["unlearn"]})


def test_a_held_out_row_is_not_trained_on(give, splits):
    """One that shows something else only has the same number, as where splits count their rows each from 0."""
    retain, validation = splits["retain"], splits["validation"]
    leaked = concatenate_datasets([validation, retain.select([1, 0])])
    with pytest.raises(UserError, match=f"2 rows are in both splits, validation and retain: {retain['id'][1]}, "):
        give(train_dataset=DatasetDict(splits | {"validation": leaked}))
    numbered = {
        name: split.map(lambda row, place: {"id": str(place)}, with_indices=True)
        for name, split in (("retain", retain), ("validation", validation))
    }
    give(train_dataset=DatasetDict(unlearn=splits["unlearn"], **numbered))


@pytest.mark.parametrize(
    ("name", "other"), [("retain", "unlearn"), ("validation", "retain"), ("validation", "unlearn")]
)
def test_rows_without_ids_are_told_by_what_they_show_and_say(give, splits, caplog, name, other):
    unnamed = DatasetDict(splits).remove_columns("id")
    give(train_dataset=unnamed)
    leaked = concatenate_datasets([unnamed[name], unnamed[other].select([1])])
    rows, place = DatasetDict(unnamed | {name: leaked}), len(unnamed[name])
    if name == "retain":
        with pytest.raises(UserError, match=f"1 rows are in both splits, retain and unlearn: row {place} of retain;"):
            give(train_dataset=rows)
        return
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        give(train_dataset=rows)
    assert f"1 rows of validation show and say what rows of {other} do (row {place} of validation)" in caplog.text


def test_settings_without_effect_are_refused(tmp_path):
    for name, value in (("label_smoothing_factor", 0.1), ("train_sampling_strategy", "group_by_length")):
        with pytest.raises(UserError, match=f"{name} would have no effect on contrastive losses and batches"):
            FineTuneConfig(output_dir=str(tmp_path), **{name: value})


def test_settings_of_a_stream_are_refused_where_there_is_none(make_trainer, splits):
    for name in ("retain_rows", "shuffle_buffer"):
        with pytest.raises(
            UserError, match=f"{name}=40 would have no effect where retain is no stream; leave it unset"
        ):
            make_trainer("fine_tune", **{name: 40})
    rows = {**splits, "retain": splits["retain"].to_iterable_dataset()}
    make_trainer("fine_tune", train_dataset=rows, retain_rows=40, shuffle_buffer=40)


def test_half_precision_that_a_cpu_does_not_have_is_refused(tmp_path):
    with pytest.raises(UserError, match="fp16 has no effect on a CPU; use bf16"):
        FineTuneConfig(output_dir=str(tmp_path), use_cpu=True, fp16=True)


def test_bfloat16_without_an_accelerator_is_refused_with_both_remedies(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_unlearn.training.config.is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(UserError, match=r"bf16=True needs an accelerator .* set use_cpu=True .*, or bf16=False"):
        FineTuneConfig(output_dir=str(tmp_path), bf16=True)
    assert FineTuneConfig(output_dir=str(tmp_path), bf16=True, use_cpu=True).bf16


def test_a_search_for_a_lower_loss_is_refused(give):
    with pytest.raises(UserError, match="search with hf-unlearn tune"):
        give().hyperparameter_search(n_trials=1)


def test_numbers_out_of_numpy_are_plain_ones_for_checkpoints_and_records(make_trainer, tmp_path):
    given = {"max_steps": np.int64(1), "learning_rate": np.float32(1e-4), "seed": np.int64(3), "scale": np.float16(0.5)}
    trainer = make_trainer("task_vector", save_strategy="steps", save_steps=np.int64(1), bf16=np.bool_(False), **given)
    for name, value in given.items():
        assert getattr(trainer.args, name) == value and type(getattr(trainer.args, name)) in (int, float)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert read_json(tmp_path / "saved" / "unlearning.json")["hyper_parameters"]["scale"] == 0.5
