import pytest
import torch
from datasets import DatasetDict

from hf_unlearn.errors import UserError
from hf_unlearn.methods.slug import SLUGConfig, mean_cosine
from hf_unlearn.models.contrastive import contrastive_terms
from hf_unlearn.training.gradients import info_nce_of_all


def state(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@torch.no_grad()
def cosine(trainer, split):
    """Mean cosine of the pairs of a split at once, with the first step's views."""
    terms = contrastive_terms(trainer.model.eval(), trainer.preprocessor.batch(split.rows(range(len(split))), 0))
    return terms.cosine.mean().item()


@pytest.mark.parametrize("family", ["clip", "simclr", "moco"])
def test_one_layer_is_moved_until_unlearn_pairs_have_the_target(make_trainer, family):
    trainer = make_trainer("slug", family, target_cosine=0.0)
    start = cosine(trainer, trainer._unlearn)
    target = start - 0.05
    trainer = make_trainer("slug", family, target_cosine=target, per_device_train_batch_size=10)
    before = state(trainer)
    trainer.train()
    changed = {name for name, value in state(trainer).items() if not value.equal(before[name])}
    assert changed == {trainer._layer} and before[trainer._layer].ndim >= 2
    assert target - 0.01 < cosine(trainer, trainer._unlearn) <= target + 1e-5
    assert trainer.state.log_history[-1]["cosine_unlearn_before"] == pytest.approx(start, abs=1e-5)


def test_the_step_is_along_the_layers_gradient_of_the_mean_cosine(make_trainer):
    trainer = make_trainer("slug", target_cosine=-0.9, per_device_train_batch_size=10)
    trainer.args.target_cosine = cosine(trainer, trainer._unlearn) - 0.05
    before = state(trainer)
    terms = contrastive_terms(trainer.model.eval(), trainer.preprocessor.batch(trainer._unlearn.rows(range(10)), 0))
    terms.cosine.mean().backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.train()
    step = before[trainer._layer] - trainer.model.get_parameter(trainer._layer)
    assert torch.cosine_similarity(step.flatten(), gradients[trainer._layer].flatten(), dim=0) > 0.999


def test_layers_on_the_front_are_not_beaten_in_both(make_trainer):
    trainer = make_trainer("slug", target_cosine=0.0, candidates=100)
    front = trainer._front()
    matrices = [p for p in trainer.model.parameters() if p.ndim >= 2]
    assert 1 <= len(front) < len(matrices)
    norms = [(gradient.norm() / weight.norm()).item() for weight, gradient in front]
    assert norms == sorted(norms, reverse=True)


def test_layers_of_zeros_are_left_out(make_trainer):
    """A step is measured by its layer's norm, so that none of a layer without one would ever be too long."""
    trainer = make_trainer("slug", target_cosine=0.0, candidates=100)
    zeroed = trainer.model.get_parameter("vision_model.embeddings.position_embedding.weight")
    zeroed.data.zero_()
    front = trainer._front()
    assert front and not any(weight is zeroed for weight, _ in front)


def test_the_target_is_that_of_held_out_pairs(make_trainer):
    trainer = make_trainer("slug", per_device_train_batch_size=22)
    held_out = cosine(trainer, trainer._held_out)
    trainer.train()
    assert trainer.state.log_history[-1]["cosine_target"] == pytest.approx(held_out, abs=1e-5)


def test_pairs_that_are_no_more_aligned_than_the_target_leave_the_model_as_it_is(make_trainer):
    trainer = make_trainer("slug", target_cosine=1.0)
    before = state(trainer)
    trainer.train()
    assert all(value.equal(before[name]) for name, value in state(trainer).items())
    assert "Nothing was changed" in trainer.notes[0]


def test_what_cannot_work_is_refused(make_trainer, splits, tmp_path):
    with pytest.raises(UserError, match="pass a validation split, or set target_cosine"):
        make_trainer("slug", train_dataset=DatasetDict({name: splits[name] for name in ("retain", "unlearn")}))
    with pytest.raises(UserError, match="target_cosine=2 must be a cosine"):
        SLUGConfig(output_dir=str(tmp_path), target_cosine=2)
    with pytest.raises(UserError, match="candidates=0 must be at least 1"):
        SLUGConfig(output_dir=str(tmp_path), candidates=0)


def test_of_the_layers_that_reach_the_target_the_one_that_keeps_most_of_retain_is_taken(make_trainer):
    settings = {"target_cosine": 0.0, "candidates": 100, "per_device_train_batch_size": 10}
    start = cosine(trainer := make_trainer("slug", **settings), trainer._unlearn)
    trainer = make_trainer("slug", **settings | {"target_cosine": start - 0.05})
    kept = {}
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    with torch.no_grad():
        for layer, gradient in trainer._front():
            before = layer.clone()
            if trainer._step_size(layer, gradient, start - 0.05) is not None:
                kept[names[id(layer)]] = cosine(trainer, trainer._retain)
            layer.copy_(before)
    assert len(kept) > 1 and max(kept.values()) - min(kept.values()) > 1e-3
    trainer.train()
    assert trainer._layer == max(kept, key=kept.get)


def test_layers_whose_gradients_oppose_those_of_retain_are_as_bad_as_those_along_them(make_trainer):
    trainer = make_trainer("slug", target_cosine=0.0, candidates=100)
    model = trainer.model.eval()
    named = dict(model.named_parameters())
    gradients = [
        dict(zip(named, trainer.mean_gradient(split, loss), strict=True))
        for split, loss in ((trainer._unlearn, mean_cosine), (trainer._retain, info_nce_of_all))
    ]
    scores = {}
    for name, weight in named.items():
        if weight.ndim >= 2 and weight.any():
            own, others = (part[name].double().flatten() for part in gradients)
            signed = (own @ others / (own.norm() * others.norm())).item()
            scores[name] = (own.norm() / weight.double().norm()).item(), signed
    front = {
        name for name, (importance, signed) in scores.items()
        if not any(other[0] >= importance and abs(other[1]) <= abs(signed) and other != (importance, signed)
                   for other in scores.values())
    }  # fmt: skip
    by_sign = {
        name for name, (importance, signed) in scores.items()
        if not any(o[0] >= importance and o[1] <= signed and o != (importance, signed) for o in scores.values())
    }  # fmt: skip
    names = {id(parameter): name for name, parameter in named.items()}
    assert front != by_sign, "some gradients oppose"
    assert {names[id(layer)] for layer, _ in trainer._front()} == front
