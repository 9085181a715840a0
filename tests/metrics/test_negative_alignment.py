import numpy as np
import pytest
import torch

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.negative_alignment import negative_alignment


def loop(x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray, owner: np.ndarray) -> list[float]:
    x0, y0, x1, y1 = (u / np.linalg.norm(u, axis=1, keepdims=True) for u in (x0, y0, x1, y1))
    return [
        float(x0[i] @ y0[j] - x1[i] @ y1[j]) for i in range(len(x0)) for j in range(len(y0)) if owner[j] != i
    ]  # fmt: skip


@pytest.mark.parametrize("captions", [7, 17])
def test_equals_double_loop(captions: int) -> None:
    rng = np.random.default_rng(captions)
    x0, y0 = rng.normal(size=(7, 6)), rng.normal(size=(captions, 6))
    x1, y1 = rng.normal(size=(7, 4)) + 0.5, rng.normal(size=(captions, 4)) + 0.5  # another width after is fine
    owner = np.arange(7) if captions == 7 else rng.integers(0, 7, captions)
    gaps = loop(x0, y0, x1, y1, owner)
    result = negative_alignment(x0, y0, x1, y1, None if captions == 7 else owner)
    assert result.pairs == len(gaps) == 6 * captions
    assert result.mean == pytest.approx(np.mean(gaps), abs=1e-14)
    assert result.std == pytest.approx(np.std(gaps), abs=1e-12)


def test_a_small_gap_keeps_its_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 300, 16, generator=generator)
    x1, y1 = x + 1e-3 * torch.randn(300, 16, generator=generator), y
    gaps = loop(x.double().numpy(), y.double().numpy(), x1.double().numpy(), y1.double().numpy(), np.arange(300))
    result = negative_alignment(x, y, x1, y1)
    assert result.mean == pytest.approx(np.mean(gaps), abs=1e-8)
    assert result.std == pytest.approx(np.std(gaps), rel=1e-3)


def test_an_unchanged_model_has_no_gap() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 50, 8))
    result = negative_alignment(x, y, x, y)
    assert result.mean == pytest.approx(0, abs=1e-12) and result.std == pytest.approx(0, abs=1e-6)


def test_one_sample_has_no_negative_pair() -> None:
    with pytest.raises(UserError, match="at least two"):
        negative_alignment(*([[[1.0, 0.0]]] * 4))
