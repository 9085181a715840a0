"""Trainers on a retain stream: every method learns, resumes exactly, and says what it needs to know."""

from dataclasses import replace

import pytest
import torch
from datasets import load_dataset
from faults.conftest import weights

from hf_unlearn.data.streaming import StreamedBatches
from hf_unlearn.errors import UserError
from hf_unlearn.methods import METHODS


@pytest.fixture(scope="module")
def shards(tmp_path_factory, shapes):
    """40 retain rows in two parquet shards, as a stream whose number of rows is unknown."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(2):
        shapes.select(range(20 * number, 20 * number + 20)).to_parquet(folder / f"{number}.parquet")
    return load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", streaming=True)


# What these compute before training needs every retain sample.
LOADED = {"selective_synaptic_dampening", "slug"}


@pytest.fixture
def streamed(make_trainer, shards, splits):
    """A function from a method and settings to its Trainer on the stream."""

    def make(method, retain=shards, family="clip", **settings):
        settings = {"per_device_train_batch_size": 16, "num_train_epochs": 2, "retain_rows": 40} | settings
        rows = {"retain": retain, "unlearn": splits["unlearn"], "validation": splits["validation"]}
        return make_trainer(method, family, train_dataset=rows, **settings)

    return make


@pytest.mark.parametrize("method", sorted(LOADED))
def test_methods_that_look_at_all_of_retain_refuse_a_stream(streamed, method):
    with pytest.raises(UserError, match="stream"):
        streamed(method)


@pytest.mark.parametrize("method", [method for method in METHODS if method not in LOADED])
def test_every_other_method_learns_from_a_stream(streamed, method):
    trainer = streamed(method)
    before = weights(trainer.model)
    output = trainer.train()
    assert weights(trainer.model) != before and output.training_loss == output.training_loss
    if "retain" in trainer.uses:
        assert isinstance(trainer.train_dataset, StreamedBatches)
        sampled = 16 - (3 if "unlearn" in trainer.uses else 0)
        assert trainer.state.global_step == 2 * -(-40 // sampled)
        assert trainer.unlearn_to_retain == 10 / 40


def test_its_losses_are_those_of_resident_splits(streamed, make_trainer, splits):
    ours, resident = streamed("alignment_calibration"), make_trainer("alignment_calibration")
    resident.model.load_state_dict(ours.model.state_dict())
    batch = next(iter(ours.get_train_dataloader()))
    known = resident.train_dataset.__getitems__(range(50))["pixels"].flatten(1)
    rows = [int((known == picture).all(1).nonzero()[0, 0]) for picture in batch["pixels"].flatten(1)]
    same = resident.train_dataset.__getitems__(rows)
    assert same["is_unlearn"].equal(batch["is_unlearn"])
    losses = [trainer.compute_loss(trainer.model.eval(), b) for trainer, b in ((ours, batch), (resident, same))]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(
    ("family", "weight", "tolerance"),
    [("clip", 0, {}), ("clip", 20, {"rtol": 1e-3, "atol": 1e-4}), ("simclr", 20, {})],  # 20: float16 and float32
)
def test_targeted_calibration_has_the_targets_of_resident_splits(streamed, make_trainer, family, weight, tolerance):
    """The sample of the stream is all of it here, and the frozen base model gives what it gave."""
    settings = {"similarity_weight": weight, "retain_weight": 40} if family == "clip" else {}
    ours, resident = (make("targeted_calibration", family=family, **settings) for make in (streamed, make_trainer))
    torch.testing.assert_close(ours.targets.positive, resident.targets.positive[40:], atol=2e-4, rtol=0)
    torch.testing.assert_close(ours.targets.negative, resident.targets.negative)
    ours.targets = replace(resident.targets, positive=resident.targets.positive[40:])  # free of the order of rows
    torch.manual_seed(1)
    moved = [p + 0.05 * torch.randn_like(p) for p in ours.model.parameters()]
    for trainer in (ours, resident):
        with torch.no_grad():
            for parameter, value in zip(trainer.model.parameters(), moved, strict=True):
                parameter.copy_(value)
        trainer._step_seed = lambda: 7
    batch = next(iter(ours.get_train_dataloader()))
    known = resident.train_dataset.__getitems__(range(50))["pixels"].flatten(1)
    rows = [int((known == picture).all(1).nonzero()[0, 0]) for picture in batch["pixels"].flatten(1)]
    same = resident.train_dataset.__getitems__(rows)
    unlearn = batch["is_unlearn"]
    assert batch["index"][unlearn].tolist() == [row - 40 for row in rows[-int(unlearn.sum()) :]]
    losses = [trainer.compute_loss(trainer.model.train(), b) for trainer, b in ((ours, batch), (resident, same))]
    torch.testing.assert_close(*(loss.float() for loss in losses), **tolerance)
    for loss in losses:
        loss.backward()
    for mine, theirs in zip(ours.model.parameters(), resident.model.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, **{"atol": 1e-6, "rtol": 1e-4, **tolerance})


def test_a_streamed_row_may_have_more_captions_than_any_unlearn_row(streamed, shapes, tmp_path):
    rows = shapes.select(range(40)).map(lambda row: {"captions": [*row["captions"], "one more", "and another"]})
    rows.to_parquet(tmp_path / "many.parquet")
    stream = load_dataset("parquet", data_files=str(tmp_path / "many.parquet"), split="train", streaming=True)
    trainer = streamed("targeted_calibration", retain=stream)
    assert trainer.train().training_loss > 0


@pytest.mark.parametrize("settings", [{"num_train_epochs": 2}, {"max_steps": 6, "dataloader_num_workers": 2}])
def test_resuming_equals_the_uninterrupted_run(streamed, tmp_path, settings):
    never_stopped = streamed("neg_grad", **settings)
    never_stopped.train()
    saving = streamed("neg_grad", **settings, save_strategy="steps", save_steps=1, save_total_limit=None)
    saving.train()
    for step in (3, 5):
        resumed = streamed("neg_grad", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
        assert weights(resumed.model) == weights(never_stopped.model), step


def test_an_unknown_number_of_rows_needs_steps(streamed):
    trainer = streamed("fine_tune", retain_rows=None, max_steps=5)
    trainer.train()
    assert trainer.state.global_step == 5
    with pytest.raises(UserError, match="does not say how many rows it has; set max_steps, or retain_rows"):
        streamed("fine_tune", retain_rows=None)
    with pytest.raises(UserError, match=r"Alignment Calibration weighs unlearn against retain .* set retain_rows"):
        streamed("alignment_calibration", retain_rows=None, max_steps=5)


def test_a_streaming_unlearn_split_is_refused(make_trainer, shards, splits):
    with pytest.raises(UserError, match="unlearn split is a stream"):
        make_trainer("neg_grad", train_dataset={"retain": splits["retain"], "unlearn": shards})


def test_the_first_rows_are_watched(streamed, shapes):
    trainer = streamed("gradient_ascent", retain_rows=None)
    expected = trainer.preprocessor.encode(shapes.select(range(16))[:])
    assert trainer._probe["pixels"].equal(expected["pixels"])
    assert len(trainer.probe_retain()) == 3
