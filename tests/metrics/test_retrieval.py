import numpy as np
import pytest
import torch

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.retrieval import Retrieval, retrieval


def loop(x: np.ndarray, y: np.ndarray, owner: np.ndarray, ks: tuple[int, ...]) -> Retrieval:
    """Sorts every query's candidates, wrong ones first among equals."""
    x, y = (u / np.linalg.norm(u, axis=1, keepdims=True) for u in (x, y))
    image, text = {}, {}
    for k in ks:
        hits = []
        for i in range(len(x)):
            order = sorted(range(len(y)), key=lambda j: (-round(x[i] @ y[j], 9), owner[j] == i))
            hits.append(any(owner[j] == i for j in order[:k]))
        image[k] = 100 * float(np.mean(hits))
        hits = []
        for j in range(len(y)):
            order = sorted(range(len(x)), key=lambda i: (-round(x[i] @ y[j], 9), owner[j] == i))
            hits.append(owner[j] in order[:k])
        text[k] = 100 * float(np.mean(hits))
    return Retrieval(image, text)


@pytest.mark.parametrize("block_size", [1, 5, 1024])
@pytest.mark.parametrize("several", [False, True])
def test_equals_sorting_every_query(block_size: int, several: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(23, 4))
    owner = np.concatenate([np.arange(23), rng.integers(0, 23, 30)]) if several else np.arange(23)
    y = x[owner] + 0.7 * rng.normal(size=(len(owner), 4))
    result = retrieval(x, y, owner, ks=(1, 3, 5), block_size=block_size)
    expected = loop(x, y, owner, (1, 3, 5))
    assert result.image_to_text == pytest.approx(expected.image_to_text)
    assert result.text_to_image == pytest.approx(expected.text_to_image)


def test_duplicates_tie_and_ties_count_against_the_query() -> None:
    rng = np.random.default_rng(1)
    x = np.repeat(rng.normal(size=(6, 8)), 2, axis=0)  # every image twice
    result = retrieval(torch.tensor(x).float(), torch.tensor(x).float(), ks=(1, 2))
    assert result == Retrieval({1: 0, 2: 100}, {1: 0, 2: 100})


def test_collapsed_embeddings_find_nothing() -> None:
    ones = torch.ones(12, 3)
    assert retrieval(ones, ones) == Retrieval({1: 0, 5: 0}, {1: 0, 5: 0})


def test_every_image_needs_a_caption_and_ks_are_ranks() -> None:
    x = np.eye(3)
    with pytest.raises(UserError, match="image 2 has no caption"):
        retrieval(x, x, owner=[0, 1, 1])
    with pytest.raises(UserError, match="at least 1"):
        retrieval(x, x, ks=(0,))
