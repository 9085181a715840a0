"""Float64 NumPy double loops, written from the equations, that every loss is checked against."""

import numpy as np


def unit(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def candidates(family, x, y, queue=None):
    """For every sample, a list over directions of (anchor, candidates)."""
    n = len(x)
    for i in range(n):
        if family == "cross_modal":
            yield [(x[i], [y[j] for j in range(n)]), (y[i], [x[j] for j in range(n)])]
        elif family == "two_view":
            views = [*x, *y]
            yield [
                (x[i], [v for j, v in enumerate(views) if j != i]),
                (y[i], [v for j, v in enumerate(views) if j != n + i]),
            ]
        else:
            yield [(x[i], [y[i], *queue])]


def log_partition(family, x, y, scale, queue=None):
    values = []
    for directions in candidates(family, x, y, queue):
        values.append(np.mean([np.log(sum(np.exp(scale * a @ c) for c in cs)) for a, cs in directions]))
    return np.array(values)


def info_nce(family, x, y, scale, mask, queue=None):
    partition = log_partition(family, x, y, scale, queue)
    chosen = [partition[i] - scale * x[i] @ y[i] for i in range(len(x)) if mask[i]]
    return np.mean(chosen) if chosen else 0.0


def negative_alignment(x, y, scale, mask):
    members = [i for i in range(len(x)) if mask[i]]
    pairs = [scale * x[i] @ y[j] for i in members for j in members if i != j]
    return np.mean(pairs) if pairs else 0.0


def alignment_calibration(family, x, y, scale, unlearn, epsilon, alpha, beta, gamma, queue=None):
    members = [i for i in range(len(x)) if unlearn[i]]
    partition = log_partition(family, x, y, scale, queue)
    positive = np.mean([scale * x[i] @ y[i] for i in members]) if members else 0.0
    own_partition = np.mean([partition[i] for i in members]) if members else 0.0
    return info_nce(family, x, y, scale, [not u for u in unlearn], queue) + epsilon * (
        -alpha * negative_alignment(x, y, scale, unlearn) + beta * positive + gamma * own_partition
    )
