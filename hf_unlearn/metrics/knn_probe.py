"""k-NN probe: accuracy of a nearest-neighbour vote on frozen features, with nothing to train."""

from dataclasses import dataclass

import torch

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._checks import Array, check_embeddings, check_labels


@dataclass(frozen=True)
class KnnProbe:
    """Outcome of the vote.

    Attributes:
        accuracy: Percent of queries whose true class wins the vote.
    """

    accuracy: float


def knn_probe(
    features: Array,
    labels: Array,
    query_features: Array,
    query_labels: Array,
    k: int = 200,
    temperature: float = 0.07,
    block_size: int = 1024,
) -> KnnProbe:
    """Accuracy of a vote among the k nearest neighbours by cosine, each weighing `exp(cosine / temperature)`.

    Args:
        features: `[n, d]` features to search, usually of retain.
        labels: `[n]` their classes, from 0.
        query_features: `[m, d]` features to classify, say of test or unlearn.
        query_labels: `[m]` their classes.
        k: Number of neighbours; all n if there are fewer.
        temperature: Sharpness of the weights, in units of cosine.
        block_size: Queries a block; memory is O(block_size * n).

    Returns:
        The accuracy in percent; the lower class wins a tie.

    Raises:
        UserError: A feature is NaN, infinite or zero, a label is missing, or k or the temperature is not positive.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv 1805.01978,
    Section 3.4, whose k and temperature are the defaults.

    Example:
        >>> knn_probe([[1.0, 0.0], [0.0, 1.0]], [0, 1], [[0.9, 0.1], [0.8, 0.3]], [0, 1], k=1)
        KnnProbe(accuracy=50.0)
    """
    if k < 1 or temperature <= 0:
        raise UserError(f"the k-NN probe needs k >= 1 and a positive temperature, got {k} and {temperature}")
    known, queries = check_embeddings(features, "features"), check_embeddings(query_features, "query features")
    classes = check_labels(labels, len(known)).to(known.device)
    truth = check_labels(query_labels, len(queries), "query labels").to(known.device)
    count = int(torch.cat([classes, truth]).max()) + 1
    right = 0
    for block, wanted in zip(queries.split(block_size), truth.split(block_size), strict=True):
        cosines, nearest = (block @ known.T).topk(min(k, len(known)))
        weights = ((cosines - 1) / temperature).exp()  # minus 1: at most 1, so that nothing overflows
        votes = weights.new_zeros(len(block), count).scatter_add_(1, classes[nearest], weights)
        right += int((votes.argmax(1) == wanted).sum())
    return KnnProbe(100 * right / len(queries))
