import math

import numpy as np
import pytest
import torch

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.alignment import matched_cosine


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True)) / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))


def test_equals_loops_with_several_captions_an_image() -> None:
    rng = np.random.default_rng(0)
    x, y, owner = rng.normal(size=(6, 8)), rng.normal(size=(11, 8)), rng.integers(0, 6, 11)
    expected = [cosine(x[o], y[j]) for j, o in enumerate(owner)]
    result = matched_cosine(x, y, owner)
    np.testing.assert_allclose(result.per_sample, expected, rtol=1e-12)
    mean = math.fsum(expected) / 11
    assert result.mean == pytest.approx(100 * mean)
    assert result.std == pytest.approx(100 * math.sqrt(math.fsum((c - mean) ** 2 for c in expected) / 11))


def test_float32_tensors_and_default_owner() -> None:
    x, y = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    expected = [cosine(a, b) for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True)]
    np.testing.assert_allclose(matched_cosine(x, y).per_sample, expected, atol=1e-6)


def test_scale_does_not_matter_and_sign_does() -> None:
    x = np.random.default_rng(1).normal(size=(4, 3))
    assert matched_cosine(x, 7 * x).mean == pytest.approx(100)
    assert matched_cosine(x, -x).mean == pytest.approx(-100)


def test_a_zero_caption_is_named() -> None:
    y = np.ones((3, 2))
    y[1] = 0
    with pytest.raises(UserError, match="caption embeddings: sample 1"):
        matched_cosine(np.ones((3, 2)), y)
