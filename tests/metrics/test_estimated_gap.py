"""The estimate against loops in float64, and what must hold for any data."""

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
