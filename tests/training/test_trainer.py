"""What all methods share: batches, seeds, gradient accumulation, logs, evaluation and what is written."""

import functools
import os
from contextlib import nullcontext

import pytest
import torch
from torch.utils.data import Sampler
from trainers import one_caption
from transformers import TrainerCallback

from hf_unlearn.data.sampler import SplitSampler
from hf_unlearn.errors import UserError
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.fine_tune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.models.simclr import SimCLRModel
from hf_unlearn.records.schemas import UnlearningManifest


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


@pytest.mark.parametrize("evaluated", [{}, {"eval_strategy": "steps", "eval_steps": 1}])
def test_each_loss_term_is_logged_as_its_mean_since_the_last_log(make_trainer, splits, evaluated):
    trainer = make_trainer(
        "alignment_calibration",
        "simclr",
        eval_dataset=splits["validation"],
        per_device_train_batch_size=12,
        num_train_epochs=2,
        logging_strategy="epoch",
        alpha=0.5,
        beta=2.0,
        gamma=0.25,
        **evaluated,
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    for entry in logs:
        calibration = -0.5 * entry["negative"] + 2.0 * entry["positive"] + 0.25 * entry["partition"]
        assert entry["loss"] == pytest.approx(entry["loss_retain"] + 10 / 40 * calibration, rel=1e-5)
    assert logs[0]["positive"] != logs[1]["positive"]


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


def test_chunks_are_refused_where_batch_norm_would_see_them(make_trainer):
    with pytest.raises(UserError, match="forward_chunk_size cannot be exact for SimCLRModel"):
        make_trainer("fine_tune", "simclr", forward_chunk_size=2)


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
        ("gradient_ascent", {"max_steps": 1, "learning_rate": 1e-4}),
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
    settings = {"max_steps": 1} | ({"retain_rows": 40} if stream else {})
    retain = splits["retain"].to_iterable_dataset() if stream else splits["retain"]
    rows = {"retain": retain, "unlearn": splits["unlearn"]}
    waits = make_trainer("neg_grad", train_dataset=rows, accelerator_config={"non_blocking": True}, **settings)
    assert waits.get_train_dataloader()._non_blocking
    trainer = make_trainer("neg_grad", train_dataset=rows, **settings)
    assert not trainer.get_train_dataloader()._non_blocking


@pytest.mark.parametrize(("steps", "warmup", "trains"), [(1, 0.05, False), (1, 0, True), (2, 0.05, True), (2, 9, True)])
def test_a_schedule_that_never_leaves_0_is_refused(steps, warmup, trains, make_trainer):
    told = r"Retrain: the learning rate is 0 at each of its updates \(1, with warmup_steps 0.05\), so it would train"
    with nullcontext() if trains else pytest.raises(UserError, match=told):
        make_trainer("retrain", max_steps=steps, warmup_steps=warmup)
    trainer = make_trainer("retrain", max_steps=4, warmup_steps=warmup)
    with nullcontext() if trains else pytest.raises(UserError, match=told):  # once it is known, too
        trainer.create_optimizer_and_scheduler(steps)


@pytest.mark.parametrize("method", ["fine_tune", "neg_grad", "gradient_ascent"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"num_train_epochs": 0.4},
        {"num_train_epochs": 1.5, "gradient_accumulation_steps": 2},
        {"num_train_epochs": 3, "per_device_train_batch_size": 7, "gradient_accumulation_steps": 4},
        {"max_steps": 3, "per_device_train_batch_size": 60},
    ],
)
def test_updates_are_counted_as_the_trainer_counts_them(method, stream, settings, make_trainer, splits):
    uses = METHODS[method].uses
    rows = {**splits, "retain": splits["retain"].to_iterable_dataset()} if stream else splits
    settings = {"per_device_train_batch_size": 9} | settings | ({"retain_rows": 40} if stream else {})
    trainer = make_trainer(method, train_dataset=rows, **settings)
    loader = trainer.get_train_dataloader()
    *_, steps = trainer.set_initial_training_values(trainer.args, loader)
    assert trainer.args.updates(*(len(splits[name]) if name in uses else 0 for name in ("retain", "unlearn"))) == steps


def test_a_schedule_of_ones_own_is_not_judged_by_the_config(make_trainer, splits, encoder):
    model, _ = encoder("clip")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1)
    own = functools.partial(FineTuneTrainer, optimizers=(optimizer, schedule))
    before = model.visual_projection.weight.detach().clone()
    settings = {"max_steps": 1, "warmup_steps": 1, "lr_scheduler_type": "linear"}
    trainer = make_trainer("fine_tune", trainer_class=own, given_model=model, **settings)
    trainer.train()
    assert trainer.state.global_step == 1 and not torch.equal(model.visual_projection.weight, before)


def test_a_copy_that_would_stand_still_is_told_by_its_name(make_trainer, encoder):
    model, _ = encoder("clip")
    torch.manual_seed(3)
    given = {"initial_model": type(model)(model.config), "warmup_steps": 0.05, "num_train_epochs": 4}
    with pytest.raises(UserError, match=r"Targeted Calibration's copy \(target_epochs\): the learning rate is 0 at"):
        make_trainer("targeted_calibration", target_epochs=1, **given)
    make_trainer("targeted_calibration", target_epochs=0, **given)


def test_what_is_kept_on_the_device_is_not_copied(make_trainer, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (2**40, 2**40))
    trainer = make_trainer("neg_grad", accelerator_config={"non_blocking": True})
    trainer._feed_accelerator(trainer.train_dataset)
    assert not trainer.args.accelerator_config.non_blocking
    assert not trainer.get_train_dataloader()._non_blocking


@pytest.mark.parametrize(
    ("settings", "processes", "workers"),
    [
        ({"resident_bytes": 0}, 1, 7),
        ({"resident_bytes": 0}, 4, 1),
        ({"resident_bytes": 0}, 16, 1),
        ({"resident_bytes": 0, "dataloader_num_workers": 3}, 1, 3),
        ({"resident_bytes": 0, "dataloader_num_workers": 0}, 1, 0),
        ({}, 1, 0),
    ],
)
def test_pictures_that_are_decoded_again_are_so_beside_the_training(
    settings, processes, workers, make_trainer, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (2**40, 2**40))
    trainer = make_trainer("neg_grad", **settings)
    assert trainer.args.dataloader_num_workers == settings.get("dataloader_num_workers", 0)  # on a CPU
    trainer._feed_accelerator(trainer.train_dataset)
    assert trainer.args.dataloader_num_workers == workers


def test_convolutions_are_laid_out_channels_last_on_request(make_trainer):
    def layouts(trainer):
        return {p.is_contiguous(memory_format=torch.channels_last) for p in trainer.model.parameters() if p.ndim == 4}

    assert layouts(make_trainer("fine_tune", "moco", channels_last=True)) == {True}
    assert False in layouts(make_trainer("fine_tune", "moco"))  # the default on a CPU


def test_a_training_that_a_callback_ends_says_so_on_its_card(make_trainer, tmp_path):
    class Ending(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    trainer = make_trainer("fine_tune", max_steps=8, per_device_train_batch_size=12)
    trainer.add_callback(Ending())
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    (note,) = UnlearningManifest.load(tmp_path / "saved").notes
    assert note == "Training was stopped at step 1 of 8, before its end."
    assert note in (tmp_path / "saved" / "README.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
