import math

import numpy as np
import pytest

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.knn_probe import knn_probe


@pytest.mark.parametrize(("k", "block_size"), [(1, 1024), (5, 3), (500, 7)])
def test_equals_a_vote_by_hand(k: int, block_size: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6))
    labels, truth = rng.integers(0, 4, 40), rng.integers(0, 4, 25)
    x, q = centres[labels] + rng.normal(size=(40, 6)), centres[truth] + rng.normal(size=(25, 6))
    right = 0
    for query, wanted in zip(q, truth, strict=True):
        cosines = [float(query @ v) / float(np.linalg.norm(query) * np.linalg.norm(v)) for v in x]
        votes = [0.0] * 4
        for i in sorted(range(40), key=lambda i: -cosines[i])[:k]:
            votes[labels[i]] += math.exp(cosines[i] / 0.5)
        right += int(np.argmax(votes)) == wanted
    result = knn_probe(x, labels, q, truth, k=k, temperature=0.5, block_size=block_size)
    assert result.accuracy == pytest.approx(4 * right)
    assert 40 < result.accuracy < 100


def test_a_class_unknown_to_the_neighbours_is_never_right() -> None:
    assert knn_probe(np.eye(3), [0, 1, 2], np.eye(3), [0, 1, 7], k=1).accuracy == pytest.approx(200 / 3)


def test_settings_and_labels_are_checked() -> None:
    with pytest.raises(UserError, match="k >= 1"):
        knn_probe(np.eye(2), [0, 1], np.eye(2), [0, 1], k=0)
    for temperature in (0.0, -1.0):
        with pytest.raises(UserError, match="a positive temperature"):
            knn_probe(np.eye(2), [0, 1], np.eye(2), [0, 1], temperature=temperature)
    with pytest.raises(UserError, match="query labels: expected one label for each of 2"):
        knn_probe(np.eye(2), [0, 1], np.eye(2), [0])


def test_the_lower_class_wins_a_tie() -> None:
    assert knn_probe(np.eye(2), [1, 0], np.ones((1, 2)), [0], k=2).accuracy == 100
