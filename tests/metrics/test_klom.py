import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._gaussians import fit_gaussians
from hf_unlearn.metrics.klom import klom


def test_shrunk_variances_equal_a_loop() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 7))
    mean, variance = fit_gaussians(scores, prior_weight=3)
    own = [sum((x - sum(column) / 5) ** 2 for x in column) / 4 for column in scores.T.tolist()]
    for i in range(7):
        assert mean[i] == pytest.approx(sum(scores[:, i]) / 5)
        assert variance[i] == pytest.approx((3 * sum(own) / 7 + 4 * own[i]) / 7)
    pooled = fit_gaussians(scores, prior_weight=math.inf)[1]
    assert np.allclose(pooled, sum(own) / 7)
    assert np.allclose(fit_gaussians(scores, prior_weight=0)[1], own)


def test_identical_models_keep_a_positive_variance() -> None:
    assert (fit_gaussians(np.full((4, 3), 0.3))[1] > 0).all() and (fit_gaussians(np.zeros((4, 3)))[1] > 0).all()


def test_equals_the_integral_of_the_fitted_densities() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(0.3, 0.1, (6, 5)), rng.normal(0.2, 0.15, (4, 5))
    (m, v), (p, w) = fit_gaussians(ours), fit_gaussians(theirs)
    for i, value in enumerate(klom(ours, theirs).per_sample):
        retrain, unlearned = norm(p[i], w[i] ** 0.5), norm(m[i], v[i] ** 0.5)
        span = p[i] - 9 * w[i] ** 0.5, p[i] + 9 * w[i] ** 0.5
        integral = quad(lambda x, a=retrain, b=unlearned: a.pdf(x) * (a.logpdf(x) - b.logpdf(x)), *span)[0]
        assert value == pytest.approx(integral, rel=1e-6)


def test_many_models_recover_the_known_divergence() -> None:
    rng = np.random.default_rng(2)
    ours, theirs = rng.normal(1, 2, (4000, 20)), rng.normal(0, 1, (4000, 20))
    known = math.log(2) + (1 + 1) / 8 - 0.5
    assert klom(ours, theirs).mean == pytest.approx(known, rel=0.05)
    assert klom(theirs, rng.normal(0, 1, (4000, 20))).mean == pytest.approx(0, abs=1e-3)


def test_is_never_negative_and_grows_with_the_shift() -> None:
    rng = np.random.default_rng(3)
    retrains, other = rng.normal(size=(2, 4, 150))
    values = [klom(other + shift, retrains) for shift in (0, 0.5, 1, 2)]
    assert all((value.per_sample >= 0).all() for value in values)
    assert [v.mean for v in values] == sorted(v.mean for v in values)
    assert values[3].shift / values[3].mean > 0.9 and values[0].percentile_95 > values[0].mean


def test_units_do_not_matter() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 5, 9))
    assert np.allclose(klom(a, b).per_sample, klom(100 * a + 7, 100 * b + 7).per_sample)


def test_one_wrong_sample_in_ten_shows_in_the_percentile() -> None:
    rng = np.random.default_rng(5)
    retrains, other = rng.normal(size=(2, 8, 100))
    other[:, ::10] += 6
    result = klom(other, retrains)
    assert result.percentile_95 > 5 > np.median(result.per_sample)


def test_unusable_ensembles_are_refused() -> None:
    with pytest.raises(UserError, match="retrains: 2 models are needed"):
        klom([[0.1], [0.2]], [[0.1]])
    with pytest.raises(UserError, match="unlearned 1, retrains 2"):
        klom([[0.1], [0.2]], [[0.1, 0.2], [0.2, 0.3]])
    with pytest.raises(UserError, match="unlearned, model 1: sample 0 is NaN"):
        klom([[0.1], [math.nan]], [[0.1], [0.2]])
    with pytest.raises(UserError, match="expected a matrix"):
        klom([0.1, 0.2], [[0.1], [0.2]])
