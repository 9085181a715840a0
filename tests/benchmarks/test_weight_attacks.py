"""What is read off weights, against loops and closed forms, on tiny encoders of every family."""

import copy

import pytest
import torch

from hf_unlearn.benchmarks.weight_attacks import (
    SEED,
    barrier,
    gradient_norms,
    on_the_line,
    quantised,
    weight_distance,
)
from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.models.contrastive import contrastive_terms
from hf_unlearn.training.rows import make_preprocessor


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rounding_is_to_the_nearest_of_the_levels_of_a_row(encoder, bits):
    model, _ = encoder("simclr")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rounded = quantised(model, bits)
    levels = 2 ** (bits - 1) - 1
    for name, weight in rounded.named_parameters():
        assert model.state_dict()[name].equal(before[name])
        if weight.ndim < 2:
            assert weight.equal(before[name])
            continue
        for row, was in zip(weight.flatten(1).tolist(), before[name].flatten(1).tolist(), strict=True):
            step = max(abs(value) for value in was) / levels
            for new, old in zip(row, was, strict=True):
                assert new == pytest.approx(step * round(new / step), abs=1e-6)
                assert abs(new - old) <= step / 2 + 1e-6


@pytest.mark.parametrize("family", ["clip", "simclr", "moco"])
def test_the_line_ends_at_both_models_and_is_straight(encoder, family):
    base, _ = encoder(family)
    model = copy.deepcopy(base)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn_like(value))
    for share in (0.0, 0.25, 1.0):
        between = on_the_line(base, model, share).state_dict()
        for name, value in base.state_dict().items():
            if value.is_floating_point():
                wanted = (1 - share) * value + share * model.state_dict()[name]
                torch.testing.assert_close(between[name], wanted, rtol=1e-5, atol=1e-6)


def test_a_barrier_is_the_deepest_fall_below_the_straight_line():
    assert barrier([1.0, 0.9, 0.8]) == pytest.approx(0.0)
    assert barrier([1.0, 0.95, 0.8]) == 0.0  # above the line
    assert barrier([0.8, 0.5, 0.1, 0.7, 0.8]) == pytest.approx(0.7)
    assert barrier([1.0, 0.1, 0.0]) == pytest.approx(0.4)


def test_distance_is_relative_to_the_base_model(encoder):
    base, _ = encoder("clip")
    model = copy.deepcopy(base)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    assert weight_distance(base, base) == 0.0
    assert weight_distance(base, model) == pytest.approx(0.1, rel=1e-4)


def test_the_gradient_of_a_sample_is_that_of_its_own_info_nce_among_anchors(encoder, shapes):
    model, processor = encoder("clip")
    preprocessor = make_preprocessor(model, processor, DataConfig())
    split, anchors = EncodedSplit(shapes, preprocessor), EncodedSplit(shapes.select(range(8)), preprocessor)
    norms = gradient_norms(model, preprocessor, split, [20, 41], anchors)
    model.eval()
    for row, norm in zip([20, 41], norms, strict=True):
        own = contrastive_terms(model, preprocessor.batch(split.rows([row]), SEED))
        with torch.no_grad():
            fixed = contrastive_terms(model, preprocessor.batch(anchors.rows(range(8)), SEED))
        x, y = own.x[0], own.y[0]
        to_texts = [(own.scale * x @ other).exp() for other in (y, *fixed.y)]
        to_images = [(own.scale * y @ other).exp() for other in (x, *fixed.x)]
        loss = (sum(to_texts).log() + sum(to_images).log()) / 2 - own.scale * x @ y
        model.zero_grad()
        loss.backward()
        wanted = sum((p.grad.double() ** 2).sum() for p in model.parameters() if p.grad is not None).sqrt()
        assert norm == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("family", ["simclr", "moco"])
def test_gradients_change_no_state(encoder, shapes, family):
    model, processor = encoder(family)
    preprocessor = make_preprocessor(model, processor, DataConfig(views="light"))
    split = EncodedSplit(shapes, preprocessor)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    norms = gradient_norms(
        model, preprocessor, split, [20, 41, 20], EncodedSplit(shapes.select(range(8)), preprocessor)
    )
    assert (norms > 0).all() and norms[0] == norms[2] != norms[1]
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
