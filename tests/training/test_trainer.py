"""What all methods share: batches, seeds, gradient accumulation, logs, evaluation and what is written."""

from dataclasses import replace

import loss_oracle
import pytest
import torch
from datasets import DatasetDict, concatenate_datasets
from torch.utils.data import Sampler

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.sampler import SplitSampler
from hf_unlearn.errors import UserError
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.fine_tune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.models.simclr import SimCLRModel
from hf_unlearn.training.preprocessor import make_preprocessor


class SameBatch(Sampler[int]):
    """The same rows in the same order, several times an epoch."""

    def __init__(self, rows: int, times: int) -> None:
        self.order = list(range(rows)) * times

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self):
        return iter(self.order)


class SameBatchTrainer(FineTuneTrainer):
    def _get_train_sampler(self, train_dataset=None):
        return SameBatch(8, times=4)


def one_caption(splits: DatasetDict) -> DatasetDict:
    """Without a choice among captions, and without flips, nothing is drawn for a batch of pairs."""
    return splits.map(lambda row: {"captions": row["captions"][:1]}, load_from_cache_file=False)


def weights(trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_method_trains_every_family_and_logs_finite_numbers(make_trainer):
    for family in ("clip", "simclr", "moco"):
        for method in (name for name, trainer in METHODS.items() if trainer.iterative):
            trainer = make_trainer(method, family, max_steps=2, per_device_train_batch_size=10)
            before = weights(trainer)
            trainer.train()
            logged = trainer.state.log_history[0]
            assert torch.tensor([logged["loss"], logged["grad_norm"]]).isfinite().all(), (family, method)
            assert not same(before, weights(trainer))


def test_batches_are_stratified_and_shuffled_anew_each_epoch(make_trainer):
    trainer = make_trainer("neg_grad", per_device_train_batch_size=12)
    assert isinstance(trainer._get_train_sampler(), SplitSampler)
    loader = trainer.get_train_dataloader()
    epochs = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert [len(batch["index"]) for batch in batches] == [12] * 4
        assert [int(batch["is_unlearn"].sum()) for batch in batches] == [2] * 4
        seen = torch.cat([batch["index"] for batch in batches])
        assert set(range(40)) <= set(seen.tolist())
        epochs.append(seen.tolist())
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("steps", [1, 4])
def test_gradient_accumulation_averages_over_micro_batches(make_trainer, splits, steps):
    """Four times the same batch has that batch's gradient, whether it makes one update or four."""
    trainer = make_trainer(
        "fine_tune",
        train_dataset=one_caption(splits),
        trainer_class=SameBatchTrainer,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=steps,
        max_steps=1,
        logging_steps=1,
        logging_strategy="steps",
    )
    batch = trainer.train_dataset.__getitems__(list(range(8)))
    loss = trainer.compute_loss(trainer.model.train(), batch)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters() if p.grad is not None])
    trainer.model.zero_grad()
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_each_loss_term_is_logged_as_its_mean_since_the_last_log(make_trainer):
    trainer = make_trainer(
        "alignment_calibration",
        "simclr",
        per_device_train_batch_size=12,
        num_train_epochs=2,
        logging_strategy="epoch",
        alpha=0.5,
        beta=2.0,
        gamma=0.25,
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    for entry in logs:
        calibration = -0.5 * entry["negative"] + 2.0 * entry["positive"] + 0.25 * entry["partition"]
        assert entry["loss"] == pytest.approx(entry["loss_retain"] + 10 / 40 * calibration, rel=1e-5)
    assert logs[0]["positive"] != logs[1]["positive"]


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
    assert ((x * y).sum(1) < 0.9999).all()  # no picture is compared with itself
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


def test_views_are_drawn_from_seed_step_and_micro_step(make_trainer):
    def drawn(trainer):
        batch = trainer.train_dataset.__getitems__([0, 1, 2, 45])
        return trainer.contrast(trainer.model.train(), batch)[0].x

    trainer = make_trainer("neg_grad", "moco")
    trainer.model.config.momentum = 0.0
    first, second = drawn(trainer), drawn(trainer)  # two micro-batches of one step
    trainer.state.global_step = 1
    third = drawn(trainer)
    assert not torch.equal(first, second) and not torch.equal(first, third) and not torch.equal(second, third)
    assert torch.equal(first, drawn(make_trainer("neg_grad", "moco")))
    assert not torch.equal(first, drawn(make_trainer("neg_grad", "moco", seed=1)))
    resumed = make_trainer("neg_grad", "moco")
    resumed.state.global_step = 1
    assert torch.equal(third, drawn(resumed))


def test_the_same_seed_gives_the_same_weights_whatever_ran_before(make_trainer):
    results = []
    for seed in (3, 3, 4):
        torch.rand(len(results) + 1)
        trainer = make_trainer(
            "alignment_calibration",
            "simclr",
            preset="reference",  # draws partners, too
            per_device_train_batch_size=12,
            num_train_epochs=1,
            learning_rate=1e-3,
            seed=seed,
        )
        trainer.train()
        results.append(weights(trainer))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_nothing_is_pickled_beside_saved_weights(make_trainer, tmp_path):
    trainer = make_trainer(
        "fine_tune", max_steps=1, per_device_train_batch_size=10, save_strategy="steps", save_steps=1
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not list(tmp_path.rglob("training_args.bin"))
    assert (tmp_path / "out" / "checkpoint-1" / "model.safetensors").is_file()


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


def test_chunks_are_refused_where_batch_norm_would_see_them(make_trainer, loss_of_batch):
    trainer = make_trainer("fine_tune", "simclr", forward_chunk_size=2)
    with pytest.raises(UserError, match="forward_chunk_size cannot be exact for SimCLRModel"):
        loss_of_batch(trainer, range(6))


def first_loss(trainer) -> float:
    trainer.train()
    return trainer.state.log_history[0]["loss"]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"channels_last": True}, 1e-5),
        ({"bf16": True}, 0.05),
        ({"torch_compile": True, "torch_compile_backend": "eager"}, 1e-5),  # the graph as it is: no compiler is run
        ({"dataloader_num_workers": 2, "resident_bytes": 0}, 1e-5),
    ],
    ids=lambda options: next(iter(options)) if isinstance(options, dict) else "",
)
def test_options_for_speed_do_not_change_what_is_computed(make_trainer, tmp_path, options, tolerance):
    settings = {"max_steps": 2, "per_device_train_batch_size": 12, "logging_strategy": "steps", "logging_steps": 1}
    plain = make_trainer("alignment_calibration", "simclr", **settings)
    fast = make_trainer("alignment_calibration", "simclr", **settings, **options)
    assert first_loss(fast) == pytest.approx(first_loss(plain), rel=tolerance)
    fast.save_model(str(tmp_path / "saved"))
    reloaded = SimCLRModel.from_pretrained(tmp_path / "saved")
    for name, value in fast.accelerator.unwrap_model(fast.model).state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], value)


def test_losses_stay_in_float32_under_mixed_precision(make_trainer):
    trainer = make_trainer("alignment_calibration", "simclr", bf16=True)
    batch = trainer.train_dataset.__getitems__([0, 1, 2, 45])
    with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
        terms, _ = trainer.contrast(trainer.model.train(), batch)
        assert {terms.x.dtype, terms.log_partition.dtype} == {torch.float32}


@pytest.mark.parametrize("family", ["clip", "simclr", "moco"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("gradient_ascent", {"max_steps": 1, "learning_rate": 1e-3}),
        ("targeted_calibration", {"max_steps": 1, "learning_rate": 1e-3}),
        ("scrub", {"max_steps": 1, "learning_rate": 1e-3}),
        ("selective_synaptic_dampening", {"alpha": 1.0}),
    ],
)
def test_weights_in_half_precision_train(make_trainer, encoder, splits, family, method, settings):
    model = encoder(family)[0].to(torch.bfloat16)
    settings = {"per_device_train_batch_size": 10, **settings}
    trainer = make_trainer(method, family, given_model=model, eval_dataset=splits["validation"], **settings)
    before = weights(trainer)
    trainer.train()
    assert {weight.dtype for weight in weights(trainer)} == {torch.bfloat16}
    assert not same(before, weights(trainer)) and torch.tensor(trainer.evaluate()["eval_loss"]).isfinite()


def test_captions_are_as_long_as_the_tokenizer_says(encoder):
    model, processor = encoder("clip")
    config = DataConfig()
    assert make_preprocessor(model, processor, config).max_length == 16
    processor.tokenizer.model_max_length = 8
    assert make_preprocessor(model, processor, config).max_length == 8
    assert make_preprocessor(model, processor, replace(config, max_length=12)).max_length == 12
    with pytest.raises(UserError, match="max_length=17 is more than the 16 tokens that CLIPModel has positions for"):
        make_preprocessor(model, processor, replace(config, max_length=17))


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_pinned_batches_are_copied_to_a_gpu_without_waiting(monkeypatch, tmp_path, kind):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind != "cpu")
    monkeypatch.setattr(FineTuneConfig, "device", torch.device(kind))
    config = FineTuneConfig(output_dir=str(tmp_path))
    assert config.dataloader_pin_memory == (kind != "cpu")
    assert config.accelerator_config.non_blocking == (kind == "cuda")
    config = FineTuneConfig(output_dir=str(tmp_path), dataloader_pin_memory=False)
    assert not config.accelerator_config.non_blocking


@pytest.mark.parametrize("stream", [False, True])
def test_loaders_copy_as_the_config_says(make_trainer, splits, stream):
    settings = {"accelerator_config": {"non_blocking": True}, "max_steps": 1, "retain_rows": 40}
    retain = splits["retain"].to_iterable_dataset() if stream else splits["retain"]
    rows = {"retain": retain, "unlearn": splits["unlearn"]}
    assert make_trainer("neg_grad", train_dataset=rows, **settings).get_train_dataloader()._non_blocking
    trainer = make_trainer("neg_grad", train_dataset=rows, max_steps=1, retain_rows=40)
    assert not trainer.get_train_dataloader()._non_blocking


def test_what_is_kept_on_the_device_is_not_copied(make_trainer, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (2**40, 2**40))
    trainer = make_trainer("neg_grad", accelerator_config={"non_blocking": True})
    trainer._keep_on_device(trainer.train_dataset)
    assert not trainer.args.accelerator_config.non_blocking
    assert not trainer.get_train_dataloader()._non_blocking


def test_convolutions_are_laid_out_channels_last_on_request(make_trainer):
    def layouts(trainer):
        return {p.is_contiguous(memory_format=torch.channels_last) for p in trainer.model.parameters() if p.ndim == 4}

    assert layouts(make_trainer("fine_tune", "moco", channels_last=True)) == {True}
    assert False in layouts(make_trainer("fine_tune", "moco"))  # the default on a CPU
