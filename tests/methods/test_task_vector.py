import math

import loss_oracle
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from hf_unlearn.errors import DivergenceError, UserError
from hf_unlearn.methods.task_vector import TaskVectorConfig
from hf_unlearn.training.checkpoints import newest_checkpoint

TINY = {"per_device_train_batch_size": 5, "learning_rate": 1e-3}


def state(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(first, second):
    return all(value.equal(second[name]) for name, value in first.items())


@pytest.mark.parametrize("family", ["clip", "simclr", "moco"])
def test_the_loss_is_info_nce_of_unlearn_alone(make_trainer, loss_of_batch, family):
    trainer = make_trainer("task_vector", family)
    assert len(trainer.train_dataset) == 10
    loss, quantities = loss_of_batch(trainer, range(7))
    assert loss.item() == pytest.approx(quantities(loss_oracle.info_nce, [True] * 7), rel=1e-5)


@pytest.mark.parametrize("family", ["clip", "simclr", "moco"])
def test_it_ends_with_the_base_minus_the_scaled_task_vector(make_trainer, family, tmp_path):
    trainer = make_trainer("task_vector", family, **TINY, max_steps=3, scale=0.7, save_strategy="steps", save_steps=3)
    base = state(trainer)
    trainer.train()
    tuned = load_file(tmp_path / "out" / "checkpoint-3" / "model.safetensors")
    weights = dict(trainer.model.named_parameters())
    changed = 0
    for name, value in trainer.model.state_dict().items():
        wanted = base[name] - 0.7 * (tuned[name] - base[name]) if name in weights else base[name]
        torch.testing.assert_close(value, wanted)
        changed += not torch.equal(value, base[name])
    assert changed > len(base) / 3


@pytest.mark.parametrize("vectors", [1, 3])
def test_scale_zero_gives_the_base_model(make_trainer, vectors):
    trainer = make_trainer("task_vector", "moco", **TINY, max_steps=12, vectors=vectors)
    trainer.args.scale = 0.0  # which a config refuses
    base = state(trainer)
    trainer.train()
    assert same(base, state(trainer))


def test_it_pushes_the_unlearn_samples_apart(make_trainer):
    def unlearn_loss(trainer):
        batch = trainer.train_dataset.__getitems__(list(range(10)))
        with torch.no_grad():
            return trainer.compute_loss(trainer.model.eval(), batch).item()

    trainer = make_trainer("task_vector", **TINY, num_train_epochs=4)
    before = unlearn_loss(trainer)
    trainer.train()
    assert unlearn_loss(trainer) > before


def test_several_vectors_are_averaged_where_their_signs_agree(make_trainer, tmp_path):
    """Steps 1 to 2, 3 to 6 and 7 to 12 are fine-tunings of their own from the base model."""
    trainer = make_trainer(
        "task_vector", **TINY, max_steps=12, vectors=3, save_strategy="steps", save_steps=1, save_total_limit=None
    )
    base = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    ends = []
    finish = trainer.finish_vector
    trainer.finish_vector = lambda: (
        ends.append({name: value.detach().clone() for name, value in trainer.model.named_parameters()}),
        finish(),
    )
    trainer.train()
    kept = [load_file(tmp_path / "out" / f"checkpoint-{step}" / "model.safetensors") for step in (2, 6)]
    assert all(value.equal(weights[name]) for weights in kept for name, value in base.items())  # put back
    agreeing = []
    for name, value in trainer.model.named_parameters():
        vectors = torch.stack([end[name] - base[name] for end in ends])
        agree = (vectors > 0).all(0) | (vectors < 0).all(0)
        torch.testing.assert_close(value, base[name] - torch.where(agree, vectors.mean(0), 0.0))
        agreeing.append(agree.float().mean())
    assert len(ends) == 3 and 0.1 < torch.stack(agreeing).mean() < 0.95


def spoiled(make_trainer, step):
    """A training of three vectors, steps 1 to 2, 3 to 6 and 7 to 12, whose loss is lost at a step."""
    trainer = make_trainer("task_vector", **TINY, max_steps=12, vectors=3, guard_steps=1)
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda *given, **named: (
        compute_loss(*given, **named) * (float("nan") if trainer.state.global_step == step - 1 else 1)
    )
    return trainer


@pytest.mark.parametrize(("step", "finished"), [(3, 1), (5, 1), (7, 2), (12, 2)])
def test_stopped_by_the_guard_only_finished_vectors_count(make_trainer, step, finished):
    trainer = spoiled(make_trainer, step)
    base = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    ends, finish = [], trainer.finish_vector
    trainer.finish_vector = lambda: (
        ends.append({name: value.detach().clone() for name, value in trainer.model.named_parameters()}),
        finish(),
    )
    trainer.train()
    assert len(ends) == finished
    for name, value in trainer.model.named_parameters():
        vectors = torch.stack([end[name] - base[name] for end in ends])
        agree = (vectors > 0).all(0) | (vectors < 0).all(0)
        torch.testing.assert_close(value, base[name] - torch.where(agree, vectors.mean(0), 0.0))
    (note,) = trainer.notes
    assert f"Of 3 task vectors only the {finished} finished by then count" in note and "The weights are" not in note


def test_stopped_before_any_vector_was_finished_it_is_an_error(make_trainer):
    with pytest.raises(DivergenceError, match="stopped before any vector was finished"):
        spoiled(make_trainer, 2).train()


@pytest.mark.parametrize("family", ["clip", "moco"])
def test_resumed_at_any_step_it_ends_with_the_same_weights(make_trainer, family, tmp_path):
    options = {**TINY, "max_steps": 6, "vectors": 2}
    never_stopped = make_trainer("task_vector", family, **options)
    never_stopped.train()
    saving = make_trainer("task_vector", family, **options, save_strategy="steps", save_steps=1, save_total_limit=None)
    saving.train()
    assert same(state(never_stopped), state(saving))
    for step in (1, 2, 3, 5, 6):
        resumed = make_trainer("task_vector", family, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
        assert same(state(never_stopped), state(resumed)), step
    assert newest_checkpoint(tmp_path / "out").name == "checkpoint-6"


def test_what_cannot_work_is_refused(make_trainer, tmp_path):
    with pytest.raises(UserError, match="2 steps are too few for 3 task vectors"):
        make_trainer("task_vector", **TINY, max_steps=2, vectors=3).train()
    with pytest.raises(UserError, match="no shards and no adapters"):
        make_trainer("task_vector", peft_config=LoraConfig(r=2))
    with pytest.raises(UserError, match="vectors=0 must be at least 1"):
        TaskVectorConfig(output_dir=str(tmp_path), vectors=0)
    for scale in (-1.0, 0.0, float("nan"), float("inf")):  # below 0 it would teach what it is to take away
        with pytest.raises(UserError, match=f"scale={scale} must be a number above 0"):
            TaskVectorConfig(output_dir=str(tmp_path), scale=scale)
    with pytest.raises(DivergenceError, match=r"not finite, at scale 3e\+38; lower it"):
        make_trainer("task_vector", **TINY | {"learning_rate": 50.0}, max_steps=2, scale=3e38).train()


def test_the_temperature_it_ends_with_is_bounded_as_in_training(make_trainer, encoder):
    model = encoder("clip")[0]
    model.logit_scale.data.fill_(math.log(100))
    trainer = make_trainer("task_vector", given_model=model, **TINY, max_steps=2)
    trainer.compute_loss = lambda model, inputs, **_: model.logit_scale  # learns a lower one, so takes it higher
    trainer.train()
    assert model.logit_scale.item() == pytest.approx(math.log(100), abs=1e-6)
