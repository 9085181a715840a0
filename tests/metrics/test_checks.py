import logging
import math

import numpy as np
import pytest
import torch

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._checks import (
    _mean_cosine,
    check_embeddings,
    check_labels,
    check_owner,
    check_scores,
    normalize,
)


def test_unit_rows_equal_numpy() -> None:
    x = np.random.default_rng(0).normal(size=(7, 5))
    for given in (x, torch.tensor(x), x.tolist(), x.astype(np.float32)):
        unit = check_embeddings(given)
        np.testing.assert_allclose(unit, x / np.linalg.norm(x, axis=1, keepdims=True), rtol=1e-6)
    assert check_embeddings(torch.tensor(x)).dtype == torch.float64
    assert check_embeddings(torch.tensor(x).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_norms_neither_overflow_nor_vanish(scale: float) -> None:
    unit = normalize(torch.tensor([[3.0, 4.0]]) * scale)
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "sample 2 is NaN or infinite"), (math.inf, "sample 2 is NaN or infinite"), (0.0, "sample 2 has zero")],
)
def test_unsound_sample_is_named(value: float, message: str) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    x[2] = value
    with pytest.raises(UserError, match=message):
        check_embeddings(x, "images")


def test_collapse_is_reported_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.ones(6, 4) + 1e-5 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        check_embeddings(x, "images")
    assert "images: all 6 samples point the same way" in caplog.text


def test_the_mean_cosine_is_over_pairs_of_different_samples(recwarn: pytest.WarningsRecorder) -> None:
    x = np.random.default_rng(1).normal(size=(6, 4)) + 0.5
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = np.mean([u[i] @ u[j] for i in range(6) for j in range(6) if i != j])
    assert _mean_cosine(torch.tensor(u)) == pytest.approx(expected, rel=1e-12)
    assert math.isnan(_mean_cosine(torch.ones(1, 3))) and not recwarn


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 3)])
def test_only_matrices_are_embeddings(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="non-empty matrix"):
        check_embeddings(torch.ones(shape))


def test_scores_labels_and_owners_are_checked() -> None:
    with pytest.raises(UserError, match="sample 1 is NaN"):
        check_scores([0.0, math.nan])
    with pytest.raises(UserError, match="one number a sample"):
        check_scores([[0.0]])
    scores = torch.tensor([0.5, 0.25], requires_grad=True)
    assert check_scores(scores).tolist() == [0.5, 0.25]
    with pytest.raises(UserError, match="one label for each of 3"):
        check_labels([0, 1], 3)
    with pytest.raises(UserError, match="class indices"):
        check_labels([0, -1], 2)
    with pytest.raises(UserError, match="class indices"):
        check_labels([0.5, 1.0], 2)
    with pytest.raises(UserError, match="2 images have 3 captions"):
        check_owner(None, 2, 3)
    with pytest.raises(UserError, match="caption 1 belongs to image 2"):
        check_owner([0, 2], 2, 2)
