import math

import numpy as np
import pytest
import torch

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.linear_probe import LinearProbe, cached_views, linear_probe


def blobs(n: int, seed: int, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(0).normal(size=(3, 8))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    return centres[labels] + spread * rng.normal(size=(n, 8)), labels


RETAIN, UNLEARN, TEST = blobs(90, 1), blobs(20, 2), blobs(60, 3)


def sgd_in_numpy(epochs: int, batch_size: int, augmented: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Cosine SGD with momentum on the cross-entropy, in float64, with the library's order of samples."""
    x, y = RETAIN
    weight, bias = np.zeros((3, 8)), np.zeros(3)
    weight_velocity, bias_velocity = np.zeros((3, 8)), np.zeros(3)
    generator = torch.Generator().manual_seed(4)
    for epoch in range(epochs):
        rate = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        order = torch.randperm(len(x), generator=generator).numpy()
        seen = x if augmented is None else augmented[epoch]
        for start in range(0, len(x), batch_size):
            batch = order[start : start + batch_size]
            weight_gradient, bias_gradient = np.zeros((3, 8)), np.zeros(3)
            for i in batch:
                logits = weight @ seen[i] + bias
                p = np.exp(logits - logits.max())
                error = p / p.sum() - np.eye(3)[y[i]]
                weight_gradient += np.outer(error, seen[i]) / len(batch)
                bias_gradient += error / len(batch)
            weight_velocity = 0.9 * weight_velocity + weight_gradient
            bias_velocity = 0.9 * bias_velocity + bias_gradient
            weight, bias = weight - rate * weight_velocity, bias - rate * bias_velocity
    return weight, bias


@pytest.mark.parametrize("on_augmented", [False, True])
def test_equals_sgd_written_out(on_augmented: bool) -> None:
    views = RETAIN[0] + np.random.default_rng(9).normal(size=(6, *RETAIN[0].shape)) if on_augmented else None
    weight, bias = sgd_in_numpy(6, 32, views)
    result = linear_probe(
        RETAIN, UNLEARN, TEST, augmented=None if views is None else lambda e: views[e], seed=4, epochs=6, batch_size=32
    )
    for (x, y), accuracy, confidence in (
        (RETAIN, result.retain_accuracy, result.retain_confidence),
        (UNLEARN, result.unlearn_accuracy, result.unlearn_confidence),
        (TEST, result.test_accuracy, result.test_confidence),
    ):
        logits = x @ weight.T + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        np.testing.assert_allclose(confidence, p[np.arange(len(y)), y], atol=2e-4)
        assert accuracy == pytest.approx(100 * np.mean(p.argmax(1) == y))
    assert result.test_accuracy > 50


def same(a: LinearProbe, b: LinearProbe) -> bool:
    return np.array_equal(a.test_confidence, b.test_confidence)


def test_the_seed_decides_everything() -> None:
    first = linear_probe(RETAIN, UNLEARN, TEST, seed=1, epochs=3, batch_size=16)
    torch.manual_seed(99)
    assert same(first, linear_probe(RETAIN, UNLEARN, TEST, seed=1, epochs=3, batch_size=16))
    assert not same(first, linear_probe(RETAIN, UNLEARN, TEST, seed=2, epochs=3, batch_size=16))


def test_paper_protocol_asks_for_every_epoch_once() -> None:
    asked: list[int] = []

    def augmented(epoch: int) -> np.ndarray:
        asked.append(epoch)
        return RETAIN[0]

    result = linear_probe(RETAIN, UNLEARN, TEST, augmented=augmented, epochs=5)
    assert asked == [0, 1, 2, 3, 4]
    assert same(result, linear_probe(RETAIN, UNLEARN, TEST, epochs=5))


def test_cached_views_are_trained_on_in_turn() -> None:
    views = RETAIN[0][:, None] + np.random.default_rng(7).normal(size=(90, 3, 8))
    in_turn = linear_probe(RETAIN, UNLEARN, TEST, augmented=lambda epoch: views[:, epoch % 3], epochs=7)
    assert same(in_turn, linear_probe(RETAIN, UNLEARN, TEST, augmented=cached_views(views), epochs=7))
    with pytest.raises(UserError, match="images, views, dimensions"):
        cached_views(RETAIN[0])


def test_members_are_fitted_better_than_unseen_samples() -> None:
    rng = np.random.default_rng(0)
    wide = [(rng.normal(size=(n, 64)), rng.integers(0, 3, n)) for n in (40, 40, 40)]  # nothing to learn but by heart
    result = linear_probe(*wide)
    assert result.retain_accuracy == 100 and result.test_accuracy < 60 and result.unlearn_accuracy < 60
    assert result.retain_confidence.mean() > result.test_confidence.mean()


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match="labels of unlearn: expected one label for each of 20"):
        linear_probe(RETAIN, (UNLEARN[0], UNLEARN[1][:-1]), TEST)
    broken = TEST[0].copy()
    broken[7, 0] = np.inf
    with pytest.raises(UserError, match="features of test: sample 7 is NaN or infinite"):
        linear_probe(RETAIN, UNLEARN, (broken, TEST[1]))
    with pytest.raises(UserError, match="epoch 0: expected the shape of retain's"):
        linear_probe(RETAIN, UNLEARN, TEST, augmented=lambda _: RETAIN[0][:5])
