import logging
from dataclasses import replace

import loss_oracle
import numpy as np
import pytest
import torch
from datasets import DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPModel

from hf_unlearn.errors import UserError
from hf_unlearn.training import pair_scores as pair_scores_module
from hf_unlearn.training import targets
from hf_unlearn.training.features import FeatureEncoder
from hf_unlearn.training.pair_scores import PairFeatures, _median_squared_distance, pair_scores
from hf_unlearn.training.targets import TargetNoise, likeness_weights, match_quantiles

SAMPLES = st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 1)), min_size=1, max_size=40)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40, unique=True), SAMPLES)
def test_quantiles_take_the_order_of_one_and_the_distribution_of_the_other(scores, sample):
    values, weights = np.array(sample).T
    matched = match_quantiles(np.array(scores), values, weights)
    order = np.argsort(scores)
    assert (np.diff(matched[order]) >= 0).all()
    assert values.min() <= matched.min() and matched.max() <= values.max()
    np.testing.assert_allclose(match_quantiles(np.array(scores), values, 7 * weights), matched, atol=1e-12)


def test_as_many_scores_as_values_are_given_just_these_values():
    scores, sample = np.array([3.0, -1.0, 7.0, 2.0]), np.array([0.4, 0.1, 0.3, 0.2])
    np.testing.assert_allclose(match_quantiles(scores, sample), [0.3, 0.1, 0.4, 0.2])
    large = np.random.default_rng(0).normal(size=2000)
    matched = match_quantiles(np.arange(500.0), large)
    assert matched.mean() == pytest.approx(large.mean(), abs=0.02)
    assert matched.std() == pytest.approx(large.std(), abs=0.03)


def test_weighted_values_are_given_as_often_as_their_weights_say():
    large = np.random.default_rng(0).normal(size=2000)
    weights = np.exp(large)  # turns a standard normal distribution into one around 1
    matched = match_quantiles(np.arange(500.0), large, weights)
    assert matched.mean() == pytest.approx((weights * large).sum() / weights.sum(), abs=0.02)
    assert matched.mean() == pytest.approx(1, abs=0.1) and matched.std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("share", [0.0, 0.35, 1.0])
def test_noise_takes_its_share_of_the_order_and_leaves_the_distribution(share):
    """Two draws of the same scores correlate by what is left of them; the targets are the same values."""
    rng = np.random.default_rng(0)
    scores, sample = rng.normal(3, 2, size=20_000), rng.uniform(size=20_000)
    first, second = (TargetNoise(share, seed).added(scores) for seed in (1, 2))
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(1 - share, abs=0.02)
    assert np.corrcoef(first, scores)[0, 1] == pytest.approx(np.sqrt(1 - share), abs=0.02)
    assert (first.mean(), first.std()) == pytest.approx((scores.mean(), scores.std()), abs=0.05)
    assert sorted(match_quantiles(first, sample)) == sorted(match_quantiles(scores, sample))
    assert (TargetNoise(share, 1).added(scores) == first).all()


def test_held_out_pairs_weigh_as_they_are_like_the_request(monkeypatch):
    rng = np.random.default_rng(0)
    scores, unseen = rng.normal(size=30), rng.normal(size=20)
    wanted = np.zeros(20)
    for score in scores:
        near = [np.exp(-0.5 * ((score - other) / (targets.LIKENESS * unseen.std())) ** 2) for other in unseen]
        wanted += np.array(near) / sum(near) / 30
    np.testing.assert_allclose(likeness_weights(scores, unseen), wanted)
    monkeypatch.setattr(targets, "CHUNK", 50)
    np.testing.assert_allclose(likeness_weights(scores, unseen), wanted)
    far = likeness_weights(np.full(3, 1e6), unseen)  # unlike all: the least unlike one stands for them
    assert far.argmax() == unseen.argmax() and far.sum() == pytest.approx(1) and far.max() == pytest.approx(1)
    np.testing.assert_allclose(likeness_weights(scores, np.full(4, 0.3)), 0.25)


def test_a_request_of_one_kind_is_given_the_alignments_of_its_kind():
    """Alignment follows the score: a random request keeps the held-out mean, one of high scores gets a higher one."""
    rng = np.random.default_rng(1)
    unseen = rng.normal(size=400)
    alignment = 0.2 + 0.1 * unseen + 0.05 * rng.normal(size=400)
    same, high = (match_quantiles(s, alignment, likeness_weights(s, unseen)) for s in (unseen, unseen[unseen > 0.5]))
    assert same.mean() == pytest.approx(alignment.mean(), abs=0.005)
    assert high.mean() > alignment.mean() + 0.7 * 0.1 * unseen[unseen > 0.5].mean()  # smoothing keeps most of it


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_points_without_a_distance_count_as_one_apart(rows):
    points = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])[:rows]
    assert _median_squared_distance(points) == (25.0 if rows > 1 else 1.0)


def test_a_single_retain_row_gives_targets(make_trainer, splits):
    few = DatasetDict({**splits, "retain": splits["retain"].select([0])})
    trainer = make_trainer("targeted_calibration", train_dataset=few, max_steps=1, per_device_train_batch_size=8)
    assert trainer.targets.positive.isfinite().all() and trainer.targets.negative.isfinite()
    assert trainer.train().global_step == 1


@pytest.mark.parametrize("family", ["simclr", "moco"])
def test_with_views_nothing_is_asked_of_retain(make_trainer, family):
    given = make_trainer("targeted_calibration", family).targets
    assert given.positive.shape == (50, 1)
    assert (given.positive[:40] == -1).all()  # no alignment falls short of it


def test_targets_hold_retain_and_give_unlearn_what_held_out_pairs_have(make_trainer, splits, monkeypatch):
    monkeypatch.setattr("hf_unlearn.training.targets.likeness_weights", lambda _, unseen: np.ones(len(unseen)))
    expected = np.linspace(0.2, 0.5, 10)
    monkeypatch.setattr("hf_unlearn.training.targets.predicted", lambda known, _, *others: [expected, known.mean(0)])
    splits = splits.map(lambda row: {"captions": row["captions"][:1]})
    trainer = make_trainer("targeted_calibration", "clip", splits)
    given = trainer.targets.positive[:, 0].numpy()

    def elements(name):
        split = trainer.rows.encoded(splits[name])
        with torch.no_grad():
            outputs = trainer.model.eval()(**trainer.preprocessor.batch(split.rows(range(len(split))), None))
        return (loss_oracle.unit(half) for half in (outputs.image_embeds, outputs.text_embeds))

    x, y = elements("retain")
    np.testing.assert_allclose(given[:40], [a @ b for a, b in zip(x, y, strict=True)], atol=1e-5)
    negative = loss_oracle.negative_alignment(x, y, 1.0, [True] * 40)
    assert trainer.targets.negative.item() == pytest.approx(negative, abs=1e-5)
    unseen = [a @ b for a, b in zip(*elements("validation"), strict=True)]
    quantiles = np.quantile(unseen, (np.arange(10) + 0.5) / 10, method="hazen")
    np.testing.assert_allclose(given[40:], quantiles - quantiles.mean() + 0.35, atol=1e-5)  # ordered as predicted
    np.testing.assert_allclose(trainer.targets.first, x, atol=1e-3)
    np.testing.assert_allclose(trainer.targets.second[:, 0], y, atol=1e-3)


WORDS = ["red apple", "blue flag", "green leaf", "yellow sun", "white cloud"]


@pytest.fixture
def make_contents():
    """Captions name a class, pictures show one; the base model embeds pictures by class."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(8, 8)))[0][:5]
    shown = rng.normal(size=(5, 768))

    def make(named, seen):
        pictures = shown[seen] + 0.2 * rng.normal(size=(len(seen), 768))
        images = directions[seen] + 0.05 * rng.normal(size=(len(seen), 8))
        images /= np.linalg.norm(images, axis=1, keepdims=True)
        return PairFeatures(images, pictures, [WORDS[c] for c in named], np.arange(len(named)))

    return make


def test_scores_find_pairs_whose_picture_and_caption_belong_together(make_contents):
    """A pair scores high where its picture and its caption agree, without its own embedding."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 5, 200)
    agree = rng.random(60) < 0.5
    seen = rng.integers(0, 5, 60)
    named = np.where(agree, seen, (seen + 1 + rng.integers(0, 4, 60)) % 5)
    retain, other = make_contents(classes, classes), make_contents(named, seen)
    garbled = replace(other, images=rng.normal(size=other.images.shape))
    for pairs in (other, garbled):
        for scores in pair_scores(retain, pairs)[0]:
            assert scores[agree].min() > scores[~agree].max()


def test_captions_that_a_tokenizer_knows_nothing_of_tell_nothing(make_contents):
    classes = np.arange(20) % 5
    pairs = make_contents(classes, classes)
    (scores,) = pair_scores(replace(pairs, texts=[""] * 20), replace(pairs, texts=[" "] * 20))
    assert np.isfinite(scores).all() and not scores[1].any()


def test_another_encoders_features_are_added_to_pixels_and_n_grams(monkeypatch):
    """Against ridge regressions written out, on two pictures and two captions that share no letter."""
    rng = np.random.default_rng(0)
    unit = [rng.normal(size=(n, 4)) for n in (9, 12, 5, 5)]
    shown, named, other_shown, other_named = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in unit)
    owner = np.array([0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8])
    images = loss_oracle.unit(rng.normal(size=(9, 6)))
    kinds, said = rng.permutation([0, 1, 0, 1, 0, 1, 0, 1, 0]), rng.integers(0, 2, 12)
    other_kinds, other_said = rng.integers(0, 2, 5), rng.integers(0, 2, 5)
    two, words = rng.random((2, 768)), np.array(["ab", "xy"])
    retain = PairFeatures(np.array(images), two[kinds], list(words[said]), owner, ((shown, named),))
    other = PairFeatures(
        rng.normal(size=(5, 6)), two[other_kinds], list(words[other_said]), np.arange(5), ((other_shown, other_named),)
    )
    (scores,) = pair_scores(retain, other)
    monkeypatch.setattr(pair_scores_module, "CHUNK", 24)
    np.testing.assert_allclose(pair_scores(retain, other)[0], scores, atol=1e-12)
    centre = retain.images.mean(0)
    unlike = np.exp(-1 / 0.3)  # the median of squared distances is that of the two pictures

    def like(features, kinds, otherwise, at, kind):
        return np.exp(2 * (features @ at - 1)) + np.where(kinds == kind, 1, otherwise)

    def predict(near, features, kinds, otherwise, outputs):
        gram = np.array([like(features, kinds, otherwise, *each) for each in zip(features, kinds, strict=True)])
        return near @ np.linalg.solve(gram + np.eye(len(features)), outputs - centre) + centre

    for pair in range(5):
        by_caption = like(named, said, 0, other_named[pair], other_said[pair])
        by_picture = like(shown, kinds, unlike, other_shown[pair], other_kinds[pair])
        of_caption = predict(by_caption, named, said, 0, retain.images[owner])
        of_picture = predict(by_picture, shown, kinds, unlike, retain.images)
        assert scores[0, pair] == pytest.approx(of_caption @ of_picture, abs=1e-9)
        nearest = max(a * by_picture[place] for a, place in zip(by_caption, owner, strict=True))
        assert scores[1, pair] == pytest.approx(nearest, abs=1e-9)
    joined = retain.take(np.array([1, 4])).joined(other)
    (joined_shown, joined_named), *_ = joined.encoded
    np.testing.assert_allclose(joined_shown, [*shown[[1, 4]], *other_shown])
    np.testing.assert_allclose(joined_named, [*named[[1, 2, 5, 6]], *other_named])


@pytest.mark.parametrize("with_initial", [False, True])
def test_an_encoder_that_knows_retain_decides_the_order_and_nothing_else(
    make_trainer, splits, monkeypatch, with_initial
):
    """Where the scores say nothing, the order is that of pair cosines computed here; the values are as without it."""
    single = splits.map(lambda row: {"captions": row["captions"][:1]})
    trainer = make_trainer("targeted_calibration", "clip", single)
    torch.manual_seed(3)
    other = CLIPModel(trainer.model.config).eval()
    rows = [trainer.rows.encoded(single[name]) for name in ("retain", "unlearn", "validation")]

    torch.manual_seed(4)
    initial = FeatureEncoder(CLIPModel(trainer.model.config).eval(), trainer.processing_class)
    encoder = initial if with_initial else None

    def given(orderer, regressed=pair_scores):
        monkeypatch.setattr(targets, "pair_scores", regressed)
        found = targets.pair_targets(trainer.model, trainer.preprocessor, *rows, encoder=encoder, orderer=orderer)
        return found.positive[40:, 0].double().numpy()

    def cosines(model, split):
        with torch.no_grad():
            outputs = model(**trainer.preprocessor.batch(split.rows(range(len(split))), None))
        x, y = (loss_oracle.unit(half) for half in (outputs.image_embeds, outputs.text_embeds))
        return np.array([a @ b for a, b in zip(x, y, strict=True)])

    knowing, plain = FeatureEncoder(other, trainer.processing_class), given(None)
    own, unseen, base = cosines(other, rows[1]), cosines(other, rows[2]), cosines(trainer.model.eval(), rows[2])
    alone = given(knowing, lambda _, *others: [np.zeros((2, len(each.texts))) for each in others])
    sign = np.sign(np.cov(unseen, base)[0, 1])
    assert np.argsort(sign * own).tolist() == np.argsort(alone).tolist()
    np.testing.assert_allclose(np.sort(given(knowing)), np.sort(plain), atol=1e-6)
    assert np.argsort(given(knowing)).tolist() != np.argsort(plain).tolist()


def test_features_predict_as_well_as_held_out_pairs_let_them():
    rng = np.random.default_rng(0)

    def pairs(n):
        features = rng.normal(3, 2, size=(2, n))
        return features, 0.2 + features.T @ [0.1, -0.05] + rng.normal(0, 0.01, size=n)

    (asked, truth), (unseen, alignment) = pairs(2000), pairs(4000)
    np.testing.assert_allclose(targets.predicted(unseen, alignment, asked)[0], truth, atol=0.05)
    (nothing,) = targets.predicted(np.ones((2, 5)), np.arange(5.0), np.ones((2, 3)))  # scores that say nothing
    assert nothing.tolist() == [2.0] * 3
    nearly = np.ones((2, 5)) + 1e-15 * np.arange(5)  # by rounding
    np.testing.assert_allclose(targets.predicted(nearly, np.arange(5.0), np.zeros((2, 3)))[0], 2.0)


def test_scores_far_from_all_held_out_pairs_do_not_lead_beyond_any_cosine():
    """Held-out pairs that nearly are copies of requested ones have one score with these, and far lower ones without."""
    known, alignment = 1 - 1e-4 * np.arange(12.0)[None], np.linspace(0.5, 0.1, 12)
    without, four = targets.predicted(known, alignment, np.array([[0.2]]), known.mean() - 4 * known.std()[None, None])
    assert without == pytest.approx(four) and -1 < without[0] < 0.1


def test_a_handful_of_held_out_pairs_does_not_turn_the_order_round():
    """A ridge regression towards half a standard deviation, in closed form; a hundred such pairs would turn it."""
    scores, asked = np.array([[-1.0, 1.0]]), np.array([[-2.0, 0.0, 2.0]])
    alignment = np.array([0.3, 0.1])
    slope = (-0.2 + 10 * 0.1 / 2) / (2 + 10)
    np.testing.assert_allclose(targets.predicted(scores, alignment, asked)[0], 0.2 + slope * asked[0])
    assert slope > 0
    (turned,) = targets.predicted(np.tile(scores, 50), np.tile(alignment, 50), asked)
    assert turned[0] > turned[2]


@pytest.mark.parametrize("family", ["clip", "simclr"])
def test_the_initial_model_is_retrained_for_a_while_and_stays_as_it_is(make_trainer, encoder, family):
    initial, _ = encoder(family)
    torch.manual_seed(3)
    initial = type(initial)(initial.config)
    begun = {name: value.clone() for name, value in initial.state_dict().items()}
    settings = {"initial_model": initial, "target_epochs": 1, "max_steps": 1, "per_device_train_batch_size": 8}
    trainer = make_trainer("targeted_calibration", family, **settings)
    assert "targets" not in vars(trainer)  # a Trainer that is built trains nothing yet
    assert trainer.targets is trainer.targets
    assert all(value.equal(begun[name]) for name, value in initial.state_dict().items())
    plain = make_trainer("targeted_calibration", family, **settings | {"initial_model": None}).targets.positive
    retain = slice(0, 40)
    torch.testing.assert_close(trainer.targets.positive[retain], plain[retain])
    assert not trainer.targets.positive[40:].equal(plain[40:])
    trainer.begin = lambda: vars(trainer).update(_seconds_of_targets=1000.0)
    assert trainer.train().metrics["train_runtime"] > 1000  # targets are part of the cost


def test_an_encoder_that_embeds_rows_as_nan_is_refused(make_trainer, splits):
    trainer = make_trainer("targeted_calibration", "clip")
    damaged = CLIPModel(trainer.model.config).eval()
    with torch.no_grad():
        damaged.visual_projection.weight[0, 0] = torch.nan
    rows = [trainer.rows.encoded(splits[name]) for name in ("retain", "unlearn", "validation")]
    encoder = FeatureEncoder(damaged, trainer.processing_class)
    with pytest.raises(UserError, match="embeds some rows as NaN"):
        targets.pair_targets(trainer.model, trainer.preprocessor, *rows, encoder=encoder)


def test_features_of_texts_are_refused_for_views(make_trainer, tiny_clip):
    with pytest.raises(UserError, match=r"target_features=.* would have no effect on a model that embeds views"):
        make_trainer("targeted_calibration", "simclr", target_features=str(tiny_clip))


def test_what_only_the_request_shows_is_lost_without_it(make_contents):
    """Scores of held-out pairs fall when a class of theirs is in the request alone, and hardly when retain has it."""
    retain, request = make_contents([0, 1, 2] * 20, [0, 1, 2] * 20), make_contents([3, 4] * 10, [3, 4] * 10)
    lost = []
    for classes in ([3, 4] * 5, [0, 1, 2] * 5):
        unseen = make_contents(classes, classes)
        lost.append((pair_scores(retain.joined(request), unseen)[0] - pair_scores(retain, unseen)[0]).mean(1))
    assert lost[0].min() > 0.3 and abs(lost[1]).max() < 0.1


def test_rows_that_are_taken_and_joined_keep_their_captions():
    texts, owner = ["a", "b", "c", "d", "e"], np.array([0, 0, 1, 2, 2])
    rows = PairFeatures(np.arange(3.0)[:, None], np.arange(3.0)[:, None], texts, owner)
    some = rows.take(np.array([0, 2]))
    assert (
        some.images[:, 0].tolist() == [0, 2] and some.texts == ["a", "b", "d", "e"] and list(some.owner) == [0, 0, 1, 1]
    )
    both = rows.joined(some)
    assert [both.images[place, 0] for place in both.owner] == [0, 0, 1, 2, 2, 0, 0, 2, 2] and both.texts[
        5:
    ] == some.texts


def test_targets_are_those_of_the_base_model_also_when_training_is_resumed(make_trainer, tmp_path):
    trainer = make_trainer("targeted_calibration", "clip", num_train_epochs=2, save_strategy="epoch")
    given = trainer.targets.positive.clone()
    trainer.train()
    assert torch.equal(trainer.targets.positive, given)
    again = make_trainer("targeted_calibration", "clip", num_train_epochs=2, save_strategy="epoch")
    assert torch.equal(again.targets.positive, given)
    first, _ = sorted((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    again.train(resume_from_checkpoint=str(first))
    assert torch.equal(again.targets.positive, given)


@pytest.mark.parametrize("family", ["clip", "simclr"])
def test_nothing_of_the_loss_is_in_float64_which_some_devices_lack(make_trainer, family):
    trainer = make_trainer("targeted_calibration", family, per_device_train_batch_size=12)
    given = (trainer.targets.positive, trainer.targets.negative, trainer.targets.first, trainer.targets.second)
    assert {value.dtype for value in given if value is not None} <= {torch.float32, torch.float16}
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer.compute_loss(trainer.model, batch).dtype == torch.float32


def test_a_request_unlike_the_held_out_samples_is_said(caplog):
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):  # a program that ran before may have asked for more
        assert targets._say_how_alike(np.full(40, 1 / 40), 0.0) == ()
        assert not caplog.records
        targets._say_how_alike(likeness_weights(np.full(10, 9.0), np.linspace(-0.2, 0.2, 80)), 0.0)
        assert "(of 80) weigh as 1 would; hold out more samples of the request's" in caplog.text
        (note,) = targets._say_how_alike(np.full(12, 1 / 12), 0.0)  # all alike, and few
        assert "(of 12) weigh as 12 would" in note and note in caplog.text


def test_an_uncertain_level_is_among_the_notes_of_the_training(make_trainer, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        trainer = make_trainer("targeted_calibration")
        trainer.begin()
        (note,) = trainer.notes
    assert "The level of unlearn pairs is uncertain" in note and caplog.text.count(note) == 1


def test_what_held_out_pairs_lose_without_the_request_is_taken_off(make_trainer, monkeypatch):
    """Scores of held-out pairs are higher by 0.1 with the request: a regression makes that a move of all targets."""
    as_it_is = make_trainer("targeted_calibration").targets.positive
    lost = []

    def told_by_the_request(*features):
        others = pair_scores(*features)
        return [scores + 0.1 for scores in others] if len(features) == 2 else others

    def regressed(known, alignment, *others):
        found = targets_predicted(known, alignment, *others)
        lost.append(found[1] - targets_predicted(known - 0.1, alignment, *others)[1])
        return found

    targets_predicted = targets.predicted
    monkeypatch.setattr(targets, "pair_scores", told_by_the_request)
    monkeypatch.setattr(targets, "predicted", regressed)
    monkeypatch.setattr(targets, "FARTHEST", np.inf)  # 0.1 is far for an encoder this small
    lowered = make_trainer("targeted_calibration").targets.positive
    retain, captions = 40, as_it_is[40:] != 0
    torch.testing.assert_close(lowered[:retain], as_it_is[:retain])
    (by,) = lost
    assert np.ptp(by) < 1e-9 and abs(by[0]) > 1e-3
    torch.testing.assert_close(lowered[retain:][captions], as_it_is[retain:][captions] + float(by[0]))


@pytest.mark.parametrize(
    ("own", "below", "told"),
    [
        ([[0.5, 0.1], [0.3, torch.nan]], True, None),  # 0.3 on average, as meant
        ([[0.34, 0.34], [0.34, torch.nan]], True, None),  # nearer than a quarter of a standard deviation of 0.2
        ([[0.5, 0.3], [0.4, torch.nan]], True, "40.0, 10.0 points above the 30.0 that was meant (0.5 standard"),
        ([[0.1, 0.0], [-0.1, torch.nan]], True, "0.0, 30.0 points below the 30.0 that was meant (1.5 standard"),
        ([[0.1, 0.0], [-0.1, torch.nan]], False, None),
    ],
)
def test_unlearn_samples_far_from_where_they_were_to_end_are_told_of(caplog, own, below, told):
    meant = torch.tensor([[0.2, 0.5], [0.2, 9.0]])  # the last one of a caption that the row does not have
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        notes = targets.say_where_it_ended(torch.tensor(own), meant, 0.2, below)
    assert len(notes) == len(caplog.records) == (told is not None)
    assert told is None or (told in notes[0] and notes[0] in caplog.text)


def test_one_held_out_sample_has_no_spread_to_measure_by():
    assert targets.say_where_it_ended(torch.tensor([[0.9]]), torch.tensor(0.1), 0.0) == ()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("targeted_calibration", {"shrink_perturb": 0, "unlearn_weight": 0}),
        ("alignment_calibration", {"preset": "level", "beta": 0, "gamma": 0}),
    ],
)
def test_a_training_that_does_not_reach_its_targets_says_so_and_one_that_does_says_nothing(
    make_trainer, method, settings
):
    for moved in (0.0, 0.8):
        trainer = make_trainer(method, max_steps=1, learning_rate=1e-9, **settings)
        own = targets.own_alignments(trainer.model, trainer.preprocessor, trainer.rows.unlearn(trainer.train_dataset))
        meant = own - moved
        if method == "alignment_calibration":
            trainer.floor, trainer._spread = meant.nanmean(), 0.1
        else:
            trainer.begin()
            positive = trainer.targets.positive.clone()
            positive[40:, : own.shape[1]] = meant.nan_to_num()
            trainer.targets = replace(trainer.targets, positive=positive, spread=0.1)
        trainer.train()
        ended = [note for note in trainer.notes if note.startswith("Unlearn samples ended")]
        assert len(ended) == bool(moved)
        assert not moved or f"80.0 points above the {100 * meant.nanmean():.1f} that was meant (8.0" in ended[0]
