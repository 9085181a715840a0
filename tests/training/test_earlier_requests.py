"""Rows of earlier requests stay where their own runs left them, under every method that can hold them."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from datasets import DatasetDict, concatenate_datasets

from hf_unlearn.methods.fine_tune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.models.contrastive import contrastive_terms
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.training.earlier_requests import HELD_WEIGHT, NOT_HELD, EarlierRequests
from hf_unlearn.training.standing_excess import StandingExcess

SETTINGS = {"per_device_train_batch_size": 16, "max_steps": 20, "learning_rate": 1e-3, "lr_scheduler_type": "cosine"}


@pytest.fixture
def with_earlier(splits):
    """A function from what the held rows have risen by to splits in which validation's first twelve are held."""

    def build(risen=0.0):
        rows = splits["validation"].select(range(12)).map(lambda row: {"captions": row["captions"][:1]})
        return {**splits, "earlier": EarlierRequests(rows, np.full(12, risen), unseen_risen=0.1)}

    return build


@pytest.fixture(scope="module")
def knowing(tiny_clip, tmp_path_factory, splits):
    """A tiny CLIP that has learnt its pairs, so that there is something to hold."""
    model, processor = load_encoder(str(tiny_clip))
    rows = DatasetDict(retain=concatenate_datasets(list(splits.values())))
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 36}
    config = FineTuneConfig(
        str(tmp_path_factory.mktemp("base")), max_steps=150, learning_rate=3e-3, lr_scheduler_type="cosine", **options
    )
    FineTuneTrainer(model, config, rows, processing_class=processor).train()
    return model


def levels(trainer):
    """`[12]` cosine of each held pair, by plain sums in float64."""
    rows, model = trainer.rows.encoded(trainer.earlier.rows), trainer.model.eval()
    with torch.no_grad():
        terms = contrastive_terms(model, trainer.preprocessor.batch(rows.rows(range(12)), None))
    pairs = zip(terms.x.double().tolist(), terms.y.double().tolist(), strict=True)
    return np.array([sum(a * b for a, b in zip(u, v, strict=True)) for u, v in pairs])


@pytest.mark.parametrize("method", ["fine_tune", "alignment_calibration", "targeted_calibration"])
def test_what_came_back_is_brought_down_again(make_trainer, with_earlier, knowing, method):
    settings = {**SETTINGS, "max_steps": 60, "learning_rate": 3e-4}

    def ended(risen):
        rows = with_earlier(risen)
        trainer = make_trainer(method, train_dataset=rows, given_model=deepcopy(knowing), **settings)
        trainer.train()
        assert trainer.excess.lowered["held"] != 0  # what still stood above was seen
        return levels(trainer).mean()

    assert ended(risen=0.2) < ended(risen=0.0) - 0.02


def test_the_distance_is_that_of_its_docstring(make_trainer, with_earlier):
    trainer = make_trainer("fine_tune", train_dataset=with_earlier(risen=0.25), **{**SETTINGS, "max_steps": 1})
    trainer.begin_holding()
    trainer.held._each = 12
    at_start = trainer.held_distance(StandingExcess())
    assert at_start.item() == pytest.approx(HELD_WEIGHT * 0.25**2, rel=1e-4)  # each is to fall by what it has risen
    start = levels(trainer)
    weight = trainer.model.text_projection.weight.data
    weight.mul_(torch.linspace(0.2, 2, weight.numel()).view_as(weight))
    by_hand = HELD_WEIGHT * np.square(levels(trainer) - start + 0.25).mean()
    assert trainer.held_distance(StandingExcess()).item() == pytest.approx(by_hand, rel=1e-3)
    above = trainer.held.excess(trainer.model, (0, 0, 0)).mean().item()
    lowered = StandingExcess()
    lowered.lowered["held"] = torch.tensor(0.1)
    by_hand = HELD_WEIGHT * np.square(levels(trainer) - start + 0.25 + 0.1).mean()
    assert trainer.held_distance(lowered).item() == pytest.approx(by_hand, rel=1e-3)
    assert above == pytest.approx((levels(trainer) - start).mean() + 0.25, rel=1e-3)


@pytest.mark.parametrize("method", ["task_vector", "slug"])
def test_methods_that_cannot_hold_say_so(make_trainer, with_earlier, method):
    trainer = make_trainer(method, train_dataset=with_earlier(), max_steps=1)
    trainer.begin_holding()
    assert trainer.held is None and NOT_HELD in trainer.notes


def test_targets_do_not_rise_with_held_out_rows(make_trainer, with_earlier, splits):
    """Where held-out rows have risen by 0.1 since the original model, unlearn rows are brought 0.1 lower."""
    here, anchored = (
        make_trainer("targeted_calibration", train_dataset=rows, max_steps=1).targets.positive[40:, 0]
        for rows in (splits, with_earlier())
    )
    assert torch.allclose(anchored, here - 0.1, atol=1e-5)


def test_held_rows_are_no_candidates_and_move_no_state(make_trainer, with_earlier):
    """A MoCo queue takes none of them, and the model stays in training mode."""
    trainer = make_trainer("fine_tune", family="moco", train_dataset=with_earlier(), **{**SETTINGS, "max_steps": 1})
    trainer.begin_holding()
    queue = trainer.model.queue.clone()
    distance = trainer.held.excess(trainer.model.train(), (0, 0, 0)).square().mean()
    assert trainer.model.queue.equal(queue) and trainer.model.training
    distance.backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in trainer.model.parameters())
