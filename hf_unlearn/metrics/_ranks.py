"""Ranks with ties, written out because `scipy.stats` takes a second to import."""

import numpy as np

from hf_unlearn.metrics._checks import Scores


def midranks(scores: Scores) -> Scores:
    """Ranks from 1; equal scores share the mean of the ranks they take up.

    Example:
        >>> midranks(np.array([0.3, 0.1, 0.3, 0.9])).tolist()
        [2.5, 1.0, 2.5, 4.0]
    """
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[group]
