import numpy as np
import pytest

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.alignment import matched_cosine
from hf_unlearn.metrics.forgetting_score import forgetting_score


def test_is_the_diagonal_of_the_gap_matrix() -> None:
    x0, y0, x1, y1 = (
        u / np.linalg.norm(u, axis=1, keepdims=True) for u in np.random.default_rng(0).normal(size=(4, 9, 5))
    )
    gap = x0 @ y0.T - x1 @ y1.T
    score = forgetting_score(matched_cosine(x0, y0).per_sample, matched_cosine(x1, y1).per_sample)
    np.testing.assert_allclose(score.per_sample, np.diag(gap), atol=1e-14)
    assert score.mean == pytest.approx(np.trace(gap) / 9)
    assert score.std == pytest.approx(np.diag(gap).std())


def test_an_unchanged_model_has_forgotten_nothing() -> None:
    score = forgetting_score([0.3, -0.2], [0.3, -0.2])
    assert (score.mean, score.std) == (0, 0)


def test_samples_must_correspond() -> None:
    with pytest.raises(UserError, match="before 2, after 1"):
        forgetting_score([0.1, 0.2], [0.1])
