import numpy as np
import pytest
import torch

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.retrieval import Retrieval, retrieval


def loop(
    x: np.ndarray, y: np.ndarray, owner: np.ndarray, ks: tuple[int, ...], captions: list[str] | None = None
) -> Retrieval:
    """Sorts every query's candidates, wrong ones first among equals; whoever has the caption is right."""
    captions = captions or [str(j) for j in range(len(y))]
    says = [{caption for j, caption in enumerate(captions) if owner[j] == i} for i in range(len(x))]
    x, y = (u / np.linalg.norm(u, axis=1, keepdims=True) for u in (x, y))
    image, text = {}, {}
    for k in ks:
        hits = []
        for i in range(len(x)):
            order = sorted(range(len(y)), key=lambda j: (-round(x[i] @ y[j], 9), captions[j] in says[i]))
            hits.append(any(captions[j] in says[i] for j in order[:k]))
        image[k] = 100 * float(np.mean(hits))
        hits = []
        for j in range(len(y)):
            order = sorted(range(len(x)), key=lambda i: (-round(x[i] @ y[j], 9), captions[j] in says[i]))
            hits.append(any(captions[j] in says[i] for i in order[:k]))
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


@pytest.mark.parametrize("block_size", [1, 4, 1024])
def test_shared_captions_equal_sorting_every_query(block_size: int) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(15, 3))
    owner = np.concatenate([np.arange(15), rng.integers(0, 15, 20)])
    captions = [f"text {number}" for number in rng.integers(0, 9, 35)]
    y = rng.normal(size=(9, 3))[[int(caption[5:]) for caption in captions]]  # the same text, the same embedding
    result = retrieval(x, y, owner, ks=(1, 3, 5), block_size=block_size, captions=captions)
    expected = loop(x, y, owner, (1, 3, 5), captions)
    assert result.image_to_text == pytest.approx(expected.image_to_text)
    assert result.text_to_image == pytest.approx(expected.text_to_image)


def test_a_perfect_model_finds_captions_that_several_images_share() -> None:
    texts = np.eye(4)[[0, 0, 1, 1, 2, 3]]
    captions = ["a dog", "a dog", "a cat", "a cat", "a cow", "an eel"]
    assert retrieval(texts, texts, ks=(1,), captions=captions) == Retrieval({1: 100}, {1: 100})
    assert retrieval(texts, texts, ks=(1,)) == Retrieval({1: 100 * (2 / 6)}, {1: 100 * (2 / 6)}), (
        "unless nothing is known of them"
    )


def test_collapsed_embeddings_find_nothing_but_their_own_captions() -> None:
    ones = torch.ones(12, 3)
    assert retrieval(ones, ones, captions=list("aabbccddeeff")) == Retrieval({1: 0, 5: 0}, {1: 0, 5: 0})


def test_captions_are_one_for_each_embedding() -> None:
    with pytest.raises(UserError, match="3 caption embeddings have 2 captions"):
        retrieval(np.eye(3), np.eye(3), captions=["a", "b"])
