import logging

import loss_oracle
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_unlearn.methods.targets import Look, _say_if_unlike, match_quantiles, pair_scores


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=40, unique=True),
    st.lists(st.floats(-1, 1), min_size=1, max_size=40),
)
def test_quantiles_take_the_order_of_one_and_the_distribution_of_the_other(scores, sample):
    matched = match_quantiles(np.array(scores), np.array(sample))
    order = np.argsort(scores)
    assert (np.diff(matched[order]) >= 0).all()
    assert min(sample) <= matched.min() and matched.max() <= max(sample)


def test_as_many_scores_as_values_are_given_just_these_values():
    scores, sample = np.array([3.0, -1.0, 7.0, 2.0]), np.array([0.4, 0.1, 0.3, 0.2])
    # The (k - 1/2) / n quantile of n values, interpolated linearly between their order statistics.
    wanted = np.quantile(sample, [5 / 8, 1 / 8, 7 / 8, 3 / 8])
    np.testing.assert_allclose(match_quantiles(scores, sample), wanted)
    large = np.random.default_rng(0).normal(size=2000)
    matched = match_quantiles(np.arange(500.0), large)
    assert matched.mean() == pytest.approx(large.mean(), abs=0.02)
    assert matched.std() == pytest.approx(large.std(), abs=0.03)


@pytest.mark.parametrize("family", ["simclr", "moco"])
def test_with_views_nothing_is_asked_of_retain(make_trainer, family):
    targets = make_trainer("targeted_calibration", family).targets
    assert targets.positive.shape == (50, 1)
    assert (targets.positive[:40] == -1).all()  # no alignment falls short of it


def test_targets_hold_retain_and_give_unlearn_what_held_out_pairs_have(make_trainer, splits):
    splits = splits.map(lambda row: {"captions": row["captions"][:1]})
    trainer = make_trainer("targeted_calibration", "clip", splits)
    targets = trainer.targets.positive[:, 0].numpy()

    def halves(name):
        split = trainer._encode(splits[name])
        with torch.no_grad():
            outputs = trainer.model.eval()(**trainer.model_inputs.batch(split.rows(range(len(split))), None))
        return (loss_oracle.unit(half) for half in (outputs.image_embeds, outputs.text_embeds))

    x, y = halves("retain")
    np.testing.assert_allclose(targets[:40], [a @ b for a, b in zip(x, y, strict=True)], atol=1e-5)
    negative = loss_oracle.negative_alignment(x, y, 1.0, [True] * 40)
    assert trainer.targets.negative.item() == pytest.approx(negative, abs=1e-5)
    unseen = [a @ b for a, b in zip(*halves("validation"), strict=True)]
    quantiles = np.quantile(unseen, (np.arange(10) + 0.5) / 10)
    np.testing.assert_allclose(np.sort(targets[40:]), quantiles, atol=1e-5)


def look(rng, captions, pictures, embed):
    """A split whose pictures are embedded by a known rule."""
    images = embed(captions, pictures)
    row = np.arange(len(captions))
    return Look(np.zeros(len(row)), row, 0 * row, 0.0, images, pictures, [WORDS[c] for c in captions], row)


WORDS = ["red apple", "blue flag", "green leaf", "yellow sun", "white cloud"]


def test_scores_find_pairs_whose_picture_and_caption_belong_together():
    """Captions name a class, pictures show one: a pair scores high where the two agree, without its own embedding."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(8, 8)))[0][:5]
    shown = rng.normal(size=(5, 768))

    def make(named, seen):
        pictures = shown[seen] + 0.2 * rng.normal(size=(len(seen), 768))
        images = directions[seen] + 0.05 * rng.normal(size=(len(seen), 8))
        return look(rng, named, pictures, lambda *_: images / np.linalg.norm(images, axis=1, keepdims=True))

    classes = rng.integers(0, 5, 200)
    agree = rng.random(60) < 0.5
    seen = rng.integers(0, 5, 60)
    named = np.where(agree, seen, (seen + 1 + rng.integers(0, 4, 60)) % 5)
    other = make(named, seen)
    garbled = Look(**{**vars(other), "images": rng.normal(size=other.images.shape)})
    (scores,), (again,) = pair_scores(make(classes, classes), other), pair_scores(make(classes, classes), garbled)
    assert scores[agree].min() > scores[~agree].max()
    assert again[agree].min() > again[~agree].max()


def test_targets_are_those_of_the_base_model_also_when_training_is_resumed(make_trainer, tmp_path):
    trainer = make_trainer("targeted_calibration", "clip", num_train_epochs=1, save_strategy="epoch")
    targets = trainer.targets.positive.clone()
    trainer.train()
    assert torch.equal(trainer.targets.positive, targets)
    again = make_trainer("targeted_calibration", "clip", num_train_epochs=2, save_strategy="epoch")
    assert torch.equal(again.targets.positive, targets)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(again.targets.positive, targets)


def test_a_request_unlike_the_held_out_samples_is_said(make_trainer, splits, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):  # a program that ran before may have asked for more
        make_trainer("targeted_calibration", "clip")
    assert not caplog.records
    odd = np.full(10, 0.9)
    _say_if_unlike(odd, np.linspace(-0.2, 0.2, 22))
    assert "hold out samples of the request's kind" in caplog.text
