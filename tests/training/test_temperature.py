import math

import pytest

BOUND = math.log(100)
SIGLIP = math.log(117.33)


def trained(make_trainer, encoder, start, direction, **settings):
    """The logit scale after two steps of size 1 up or down from where a model begins."""
    model = encoder("clip")[0]
    model.logit_scale.data.fill_(start)
    settings = {"learning_rate": 1.0, "max_steps": 2, "per_device_train_batch_size": 10, **settings}
    trainer = make_trainer("fine_tune", given_model=model, **settings)
    trainer.compute_loss = lambda model, inputs, **_: -direction * model.logit_scale
    trainer.train()
    return model.logit_scale.item()


@pytest.mark.parametrize("start", [2.6592, 4.0, BOUND])
def test_it_rises_to_one_hundred_at_most(make_trainer, encoder, start):
    assert trained(make_trainer, encoder, start, +1) == pytest.approx(min(start + 2, BOUND), abs=1e-5)


def test_a_model_that_begins_above_the_bound_is_not_changed_by_it(make_trainer, encoder):
    assert trained(make_trainer, encoder, SIGLIP, +1) == pytest.approx(SIGLIP, abs=1e-6)


@pytest.mark.parametrize("start", [BOUND, SIGLIP])
def test_a_model_that_begins_at_the_bound_or_above_can_leave_it(make_trainer, encoder, start):
    assert trained(make_trainer, encoder, start, -1) == pytest.approx(start - 2, abs=1e-5)


def test_resuming_has_the_bound_of_the_base_model(make_trainer, encoder, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "max_steps": 8}
    assert trained(make_trainer, encoder, SIGLIP, -1, **saving) < BOUND
    model = encoder("clip")[0]
    model.logit_scale.data.fill_(SIGLIP)
    resumed = make_trainer(
        "fine_tune", given_model=model, learning_rate=1.0, max_steps=8, per_device_train_batch_size=10
    )
    resumed.compute_loss = lambda model, inputs, **_: -100 * model.logit_scale
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert model.logit_scale.item() == pytest.approx(SIGLIP, abs=1e-6)


@pytest.mark.parametrize("family", ["simclr", "moco"])
def test_encoders_without_a_learned_temperature_train_as_ever(make_trainer, family):
    trainer = make_trainer("fine_tune", family, max_steps=1, per_device_train_batch_size=10)
    assert trainer.train().global_step == 1
