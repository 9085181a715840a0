"""What stands above the targets of unlearn pairs is taken off them, from half of the training on."""

import numpy as np
import pytest
import torch
from transformers import TrainerState

from hf_unlearn.training.standing_excess import GAIN, StandingExcess


def see(trainer):
    """Train, and give the excess of each step over the targets as they were, and by how much they were lowered."""
    seen, lowered = [], []
    plain = trainer.report

    def report(loss, terms, return_outputs, **parts):
        lowered.append(trainer.excess.lowered["unlearn"].item())
        seen.append(parts["unlearn_excess"].item() - lowered[-1])
        return plain(loss, terms, return_outputs, **parts)

    trainer.report = report
    trainer.train()
    return np.array(seen), np.array(lowered)


def test_targets_are_lowered_by_the_sum_of_what_stood_above_them(make_trainer):
    trainer = make_trainer("targeted_calibration", num_train_epochs=10, per_device_train_batch_size=16)
    seen, lowered = see(trainer)
    steps, half = len(seen), len(seen) // 2 + 1
    assert (lowered[: half + 1] == 0).all() and (lowered[half + 1 :] != 0).any()
    added = np.where(abs(seen) < trainer.at_rest, seen, 0)
    assert trainer.at_rest == 0.1 and added[half:-1].any()
    np.testing.assert_allclose(np.diff(lowered)[half:], GAIN / steps * added[half:-1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_what_stands_above_targets_whatever_they_are_ends_at_none(micro_batches):
    """A training that rests 0.02 above its targets and follows them by 90%: next to nothing of it is left."""
    excess, state = StandingExcess(), TrainerState(max_steps=200)
    for state.global_step in range(200):
        for _ in range(micro_batches):
            above = 0.02 - 0.9 * excess.lowered["held"]  # the targets as they were
            excess.see("held", above + excess.lowered["held"], state, micro_batches)
        assert state.global_step > 100 or excess.lowered["held"] == 0
    assert abs(0.02 - 0.9 * excess.lowered["held"]) < 0.001 and excess.lowered["unlearn"] == 0


def test_what_is_still_on_its_way_is_not_added():
    """A training too short to arrive would else lower its targets below every cosine."""
    for above, at_rest, added in ((0.5, 0.2, False), (0.15, 0.2, True), (0.15, 0.1, False)):
        excess, state = StandingExcess(), TrainerState(max_steps=20)
        for state.global_step in range(20):
            excess.see("unlearn", above + excess.lowered["unlearn"], state, 1, at_rest)
        assert (excess.lowered["unlearn"] != 0) == added


def test_a_second_training_starts_without_it_and_views_have_none(make_trainer):
    trainer = make_trainer("targeted_calibration", num_train_epochs=8, per_device_train_batch_size=16)
    first = see(trainer)[1]
    assert trainer.excess.lowered["unlearn"] != 0
    trainer.train()
    assert first[0] == 0
    views = make_trainer("targeted_calibration", "simclr", num_train_epochs=4)
    views.train()
    assert views.excess.lowered["unlearn"] == 0


@pytest.mark.parametrize("accumulated", [1, 2])
def test_resuming_goes_on_with_the_sum_of_the_checkpoint(make_trainer, tmp_path, accumulated):
    settings = {"num_train_epochs": 8, "gradient_accumulation_steps": accumulated, "per_device_train_batch_size": 8}
    settings |= {"save_strategy": "epoch", "save_total_limit": None}
    whole = make_trainer("targeted_calibration", **settings)
    whole.train()
    folders = sorted((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    again = make_trainer("targeted_calibration", **settings)
    again.train(resume_from_checkpoint=str(folders[5]))
    assert whole.excess.lowered["unlearn"] != 0 and again.excess.lowered == whole.excess.lowered
    weights = dict(whole.model.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in again.model.named_parameters())
