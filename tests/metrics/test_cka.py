import numpy as np
import pytest

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.cka import linear_cka


def by_gram_matrices(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    k = np.array([[float(x[i] @ x[j]) for j in range(n)] for i in range(n)])
    l = np.array([[float(y[i] @ y[j]) for j in range(n)] for i in range(n)])  # noqa: E741
    h = np.eye(n) - 1 / n
    k, l = h @ k @ h, h @ l @ h  # noqa: E741
    return float(np.sum(k * l) / np.sqrt(np.sum(k * k) * np.sum(l * l)))


def test_equals_the_gram_form() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5)) + 2
    y = np.c_[x[:, :3] * 100, 100 * rng.normal(size=(30, 4))]
    assert linear_cka(x, y).similarity == pytest.approx(by_gram_matrices(x, y), rel=1e-12)
    assert 0.1 < linear_cka(x, y).similarity < 0.9


def test_rotation_scale_and_shift_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, 4))
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    assert linear_cka(x, -1e-9 * x @ rotation + 3e-9).similarity == pytest.approx(1)


def test_representations_without_spread_or_partner_are_refused() -> None:
    x = np.random.default_rng(2).normal(size=(5, 3))
    with pytest.raises(UserError, match="y: all samples have the same features"):
        linear_cka(x, np.ones((5, 3)))
    with pytest.raises(UserError, match="x 5, y 4"):
        linear_cka(x, x[:4])
