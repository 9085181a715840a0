"""The estimate against loops in float64, and what must hold for any data."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.estimated_gap import ImageTextEvidence, ProbeEvidence, ViewEvidence, wasserstein

cosines = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30)
percent = st.floats(0, 100)


def image_text(retain=80.0, recall=30.0, unlearn=(0.8, 0.7), validation=(0.1, 0.5)) -> ImageTextEvidence:
    return ImageTextEvidence(
        retain, 100 * float(np.mean(unlearn)), 100 * float(np.mean(validation)), recall, unlearn, validation
    )


def views(unlearn=(0.8, 0.9), validation=(0.5, 0.6), accuracies=(90.0, 70.0, 50.0)) -> ViewEvidence:
    return ViewEvidence(unlearn, validation, ProbeEvidence(*accuracies, unlearn, validation))


@given(cosines, cosines)
def test_wasserstein_is_scipys(a, b):
    assert wasserstein(a, b) == pytest.approx(wasserstein_distance(a, b), abs=1e-9)


@given(cosines)
def test_wasserstein_of_equally_many_is_the_mean_distance_of_the_sorted(a):
    b = np.random.default_rng(0).normal(size=len(a))
    assert wasserstein(a, b) == pytest.approx(np.abs(np.sort(a) - np.sort(b)).mean(), abs=1e-9)


@given(percent, percent, cosines, cosines)
def test_image_text_estimate_is_the_gap_to_held_out_samples_and_never_less(retain, recall, unlearn, validation):
    before = image_text(unlearn=(0.9, 0.9), validation=tuple(validation))
    gap = image_text(retain, recall, tuple(unlearn)).estimated_gap(before)
    true = (abs(retain - 80) + abs(100 * np.mean(unlearn) - 100 * np.mean(validation))) / 2
    assert all(value >= 0 for value in gap.parts.values())
    assert gap.total >= true - 1e-9
    distance = 100 * wasserstein_distance(unlearn, validation)
    expected = true + max(0, 30 - recall) / 2
    expected += 0.1 * (distance - 100 * abs(np.mean(unlearn) - np.mean(validation)))
    assert gap.total == pytest.approx(expected, abs=1e-6)


def test_right_mean_with_wrong_spread_costs_more_than_the_right_distribution():
    before = image_text(validation=(-0.2, 0.0, 0.2, 0.4))
    matched = image_text(unlearn=(0.4, -0.2, 0.0, 0.2)).estimated_gap(before)
    squeezed = image_text(unlearn=(0.1, 0.1, 0.1, 0.1)).estimated_gap(before)
    assert matched.total == pytest.approx(0) and squeezed.parts["unlearn"] == pytest.approx(0)
    assert squeezed.parts["spread"] == pytest.approx(20)


def test_level_of_the_validation_cosine_is_no_utility_but_lost_retrieval_is():
    before = image_text()
    unseen_lower = image_text(unlearn=(0.1, 0.5), validation=(-0.3, -0.2)).estimated_gap(before)
    retrieves_less = image_text(unlearn=(0.1, 0.5), recall=20.0).estimated_gap(before)
    retrieves_more = image_text(unlearn=(0.1, 0.5), recall=40.0).estimated_gap(before)
    assert unseen_lower.total == pytest.approx(0) and retrieves_more.total == pytest.approx(0)
    assert retrieves_less.total == pytest.approx(5)


@given(cosines, cosines, st.tuples(percent, percent, percent))
def test_view_estimate_against_loops(unlearn, validation, accuracies):
    before, after = views(), views(unlearn, validation, accuracies)
    auc = 100 * np.mean([[(u > v) + (u == v) / 2 for v in validation] for u in unlearn])
    ra, ua, va = accuracies
    gap = after.estimated_gap(before)
    expected = [abs(auc - 50), abs(ra - 90), abs(va - 50), abs(ua - 50), abs(auc - 50)]
    assert list(gap.parts.values()) == pytest.approx(expected, abs=1e-9)
    assert gap.total == pytest.approx(np.mean(expected))


@given(cosines)
def test_unlearn_samples_like_unseen_ones_of_an_unchanged_encoder_have_no_gap(validation):
    unseen = views(validation, validation, (90.0, 50.0, 50.0))
    assert unseen.estimated_gap(views()).total == pytest.approx(0)


def test_over_forgetting_counts_as_much_as_forgetting_too_little():
    below, above = views((0.1, 0.2), (0.5, 0.6)), views((0.9, 0.8), (0.5, 0.6))
    assert below.estimated_gap(below).parts["emia"] == above.estimated_gap(above).parts["emia"] == 50


def test_without_labels_only_the_attack_on_the_encoder_remains():
    unlabelled = ViewEvidence((0.8, 0.9), (0.5, 0.6))
    assert unlabelled.estimated_gap(unlabelled).parts == {"emia": 50.0}


@pytest.mark.parametrize("unlearn", [(), (np.nan, 0.5)])
def test_nothing_to_measure_is_refused(unlearn):
    with pytest.raises(UserError, match="unlearn"):
        ImageTextEvidence(1.0, 1.0, 1.0, 1.0, unlearn, (0.1,)).estimated_gap(image_text())


@pytest.mark.parametrize("name", ["retain", "recalls"])
def test_samples_of_another_number_than_before_are_refused(name):
    before = ImageTextEvidence(1.0, 1.0, 1.0, 1.0, (0.1,), (0.2, 0.3), retain=(0.5, 0.6), recalls=(1.0, 0.0))
    with pytest.raises(UserError, match=r"numbers differ: .* now \d, .* before \d"):
        replace(before, **{name: (0.5, 0.6, 0.7)}).estimated_gap(before)


def bootstrap(evidence, before, seed, draws=2000):
    """Estimates of samples drawn anew, each from the definition, all parts from its own rows."""
    rng, totals = np.random.default_rng(seed), []
    for _ in range(draws):
        u = rng.choice(len(evidence.unlearn), len(evidence.unlearn))
        v = rng.choice(len(before.validation), len(before.validation))
        r = rng.choice(len(evidence.retain), len(evidence.retain))
        now, then = (
            ImageTextEvidence(
                100 * np.mean(np.array(side.retain)[r]), 100 * np.mean(np.array(side.unlearn)[u]),
                100 * np.mean(np.array(side.validation)[v]), float(np.mean(np.array(side.recalls)[v])),
                np.array(side.unlearn)[u], np.array(side.validation)[v],
            )
            for side in (evidence, before)
        )  # fmt: skip
        totals.append(_definition(now, then))
    return np.percentile(totals, (2.5, 97.5))


def _definition(now, before):
    distance = wasserstein_distance(now.unlearn, before.validation)
    spread = 100 * max(0, distance - abs(np.mean(now.unlearn) - np.mean(before.validation)))
    off = abs(now.cosine_retain - before.cosine_retain) + abs(now.cosine_unlearn - before.cosine_validation)
    return (off + max(0, before.recall_validation - now.recall_validation)) / 2 + spread / 10


def sampled(seed, unlearn=0.5, size=40):
    rng = np.random.default_rng(seed)
    u, v, r = rng.normal(unlearn, 0.41, size), rng.normal(0.3, 0.4, 90), rng.normal(0.8, 0.1, 200)
    recalls = rng.choice([0, 50, 100], 90)
    return ImageTextEvidence(100 * r.mean(), 100 * u.mean(), 100 * v.mean(), recalls.mean(), u, v, r, recalls)


def test_interval_of_the_image_text_estimate_is_the_bootstraps():
    before, after = sampled(0, unlearn=0.8), sampled(1)
    gap = after.estimated_gap(before)
    low, high = bootstrap(after, before, seed=2)
    assert gap.total == pytest.approx(_definition(after, before))
    assert gap.low < gap.total < gap.high
    assert (gap.low, gap.high) == pytest.approx((low, high), abs=0.12 * (high - low))
    assert gap.high - gap.low > 10, "40 rows of standard deviation 41 are 6.5 points of standard error, halved"


def test_what_retrain_was_predicted_to_give_takes_the_place_of_held_out_samples():
    before, after = sampled(0, unlearn=0.8), sampled(1)
    predicted = np.random.default_rng(5).normal(0.2, 0.3, 40)
    gap = after.estimated_gap(replace(before, predicted=predicted))
    stands_in = replace(before, validation=predicted, cosine_validation=100 * predicted.mean())
    assert gap.total == pytest.approx(_definition(after, stands_in))
    # Drawn with the samples that they are of, and no surer than the held-out samples that they were read off.
    met = after.estimated_gap(replace(before, predicted=after.unlearn))
    assert met.parts["unlearn"] == pytest.approx(0, abs=1e-9) and met.parts["spread"] == 0
    assert 2 < met.high - met.total < gap.high - gap.low


def test_more_rows_narrow_the_interval():
    few, many = (sampled(1, size=size).estimated_gap(sampled(0)) for size in (40, 4000))
    assert many.high - many.low < 0.8 * (few.high - few.low)


def test_interval_of_the_view_estimate_is_the_bootstraps():
    rng = np.random.default_rng(0)

    def evidence(shift):
        u, v, r = rng.normal(shift, 1, 50), rng.normal(size=70), rng.random(150) < 0.8
        hits = (u > 0.2, v > 0.3)
        accuracies = [100 * rows.mean() for rows in (r, *hits)]
        return ViewEvidence(u, v, ProbeEvidence(*accuracies, u + 1, v - 1, r, *hits))

    before, after = evidence(1.0), evidence(0.5)
    draws = []
    for _ in range(1500):
        u, v, r = (rng.choice(size, size) for size in (50, 70, 150))
        now, then = after.probe, before.probe
        parts = [
            abs(100 * _auc(after.unlearn[u], after.validation[v]) - 50),
            100 * abs(now.retain_hits[r].mean() - then.retain_hits[r].mean()),
            100 * abs(now.validation_hits[v].mean() - then.validation_hits[v].mean()),
            100 * abs(now.unlearn_hits[u].mean() - then.validation_hits[v].mean()),
            abs(100 * _auc(now.unlearn_confidence[u], now.validation_confidence[v]) - 50),
        ]
        draws.append(np.mean(parts))
    low, high = np.percentile(draws, (2.5, 97.5))
    gap = after.estimated_gap(before)
    assert (gap.low, gap.high) == pytest.approx((low, high), abs=0.15 * (high - low))
    bare = ViewEvidence(after.unlearn, after.validation)
    assert bare.estimated_gap(bare).low < bare.estimated_gap(bare).high


def _auc(positives, negatives):
    return np.mean((positives[:, None] > negatives) + (positives[:, None] == negatives) / 2)


def test_an_interval_holds_its_estimate_and_is_the_same_each_time():
    before = sampled(0)
    gap = before.estimated_gap(before)
    assert gap == before.estimated_gap(before)
    same = ViewEvidence((0.5, 0.6), (0.5, 0.6))
    assert same.estimated_gap(same).low == same.estimated_gap(same).total == 0


@given(cosines)
def test_what_samples_nobody_asked_for_lost_adds_to_the_estimate(lost):
    """One-sided, in points: half of it for pairs, as lost retrieval counts, and a fifth for views with a probe."""
    lost = np.array(lost)
    expected = max(0.0, 100 * lost.mean())
    for make, share in ((image_text, 2), (views, 5)):
        before, after = make(), make()
        plain = after.estimated_gap(before)
        held = replace(after, holdout=0.5 - lost).estimated_gap(replace(before, holdout=np.full(len(lost), 0.5)))
        assert held.parts["holdout"] == pytest.approx(expected, abs=1e-6)
        assert held.total == pytest.approx(plain.total + expected / share, abs=1e-6)
        assert held.low <= held.total <= held.high and "holdout" not in plain.parts
