import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.completeness import sample_completeness


def test_equals_the_integral_over_interpolates() -> None:
    rng = np.random.default_rng(0)
    references = rng.normal(0.2, 0.1, (5, 12))
    model, base = rng.normal(0.4, 0.3, 12), rng.normal(0.8, 0.2, 12)
    base[0] = references[:, 0].mean() + 1e-7  # nothing to unlearn: the narrow case
    base[1] = -0.3  # aligned less than the reference
    centre, own = references.mean(0), references.var(0, ddof=1)
    spread = np.sqrt((4 * own.mean() + 4 * own) / 8)
    expected = [
        1 - quad(lambda t, i=i: norm.cdf(model[i], centre[i] + t * (base[i] - centre[i]), spread[i]), 0, 1)[0]
        for i in range(12)
    ]
    result = sample_completeness(model, base, references)
    assert np.allclose(result.per_sample, expected, atol=1e-7)
    assert result.mean == pytest.approx(np.mean(expected), abs=1e-7)
    assert result.percentile_5 == pytest.approx(np.percentile(expected, 5), abs=1e-6)


def test_without_spread_it_is_the_share_of_the_way() -> None:
    held_out = np.array([0.2 - 1e-6, 0.2 + 1e-6])
    base = np.full(5, 1.0)
    model = 0.2 + 0.8 * np.array([1.0, 0.75, 0.5, 0.25, 0.0])
    completeness = sample_completeness(model, base, held_out=held_out).per_sample
    assert np.allclose(completeness, [0, 0.25, 0.5, 0.75, 1], atol=1e-4)


def test_retrain_is_complete_and_the_base_model_is_not() -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(0.2, 0.1, 200)
    references = centres + rng.normal(0, 0.02, (4, 200))
    retrain, base = centres + rng.normal(0, 0.02, 200), np.full(200, 0.85)
    complete = sample_completeness(retrain, base, references)
    assert complete.mean > 0.97 and complete.over < 0.06
    assert sample_completeness(base, base, references).mean < 0.03
    halfway = sample_completeness((retrain + base) / 2, base, references)
    assert 0.45 < halfway.mean < 0.55 and complete.percentile_5 > halfway.percentile_5


def test_over_unlearning_is_told_where_completeness_is_full() -> None:
    rng = np.random.default_rng(2)
    references = rng.normal(0.2, 0.02, (4, 100))
    result = sample_completeness(np.full(100, 0.0), np.full(100, 0.9), references)
    assert result.mean > 0.999 and result.over == 1


def test_one_reference_is_blunter_than_many() -> None:
    rng = np.random.default_rng(3)
    centres = rng.normal(0.2, 0.1, 300)
    references = centres + rng.normal(0, 0.01, (4, 300))
    model, base = centres - 0.05, np.full(300, 0.9)
    many, one = (sample_completeness(model, base, references[:k]) for k in (4, 1))
    # Five spreads below the reference models, but half of what samples differ by under one model.
    assert many.over > 0.95 and one.over == 0
    assert (one.per_sample > 0).all() and one.per_sample.mean() < many.per_sample.mean()


def test_completeness_falls_as_alignment_rises() -> None:
    model = np.linspace(-1, 1, 201)
    values = sample_completeness(model, np.full(201, 0.8), held_out=[0.1, 0.2, 0.3]).per_sample
    assert (
        (np.diff(values) <= 1e-12).all() and values[0] == pytest.approx(1) and values[-1] == pytest.approx(0, abs=1e-3)
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-1, 1) for _ in range(4)]), min_size=2, max_size=20),
    st.floats(0.1, 50),
    st.floats(-3, 3),
)
def test_lies_between_0_and_1_whatever_the_units(rows, scale, shift) -> None:
    model, base, *references = np.array(rows).T + 1e-3 * np.random.default_rng(0).normal(size=(4, len(rows)))
    first = sample_completeness(model, base, np.array(references))
    again = sample_completeness(scale * model + shift, scale * base + shift, scale * np.array(references) + shift)
    assert ((first.per_sample >= 0) & (first.per_sample <= 1)).all() and 0 <= first.over <= 1
    assert np.allclose(first.per_sample, again.per_sample, atol=1e-6)


def test_bad_references_are_refused() -> None:
    with pytest.raises(UserError, match="either reference models or held-out"):
        sample_completeness([0.1], [0.2])
    with pytest.raises(UserError, match="either reference models or held-out"):
        sample_completeness([0.1], [0.2], [[0.1]], [0.1, 0.2])
    with pytest.raises(UserError, match="do not vary"):
        sample_completeness([0.1, 0.2], [0.2, 0.3], held_out=[0.5])
    with pytest.raises(UserError, match="references 1"):
        sample_completeness([0.1, 0.2], [0.2, 0.3], [[0.1], [0.2]])
