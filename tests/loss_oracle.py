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


def similarity_drift(x, y, x_0, y_0, mask):
    members = [i for i in range(len(x)) if mask[i]]
    changes = [(x[i] @ y[j] - x_0[i] @ y_0[j]) ** 2 for i in members for j in members if i != j]
    return np.mean(changes) if changes else 0.0


def alignment_calibration(family, x, y, scale, unlearn, epsilon, alpha, beta, gamma, queue=None):
    members = [i for i in range(len(x)) if unlearn[i]]
    partition = log_partition(family, x, y, scale, queue)
    positive = np.mean([scale * x[i] @ y[i] for i in members]) if members else 0.0
    own_partition = np.mean([partition[i] for i in members]) if members else 0.0
    return info_nce(family, x, y, scale, [not u for u in unlearn], queue) + epsilon * (
        -alpha * negative_alignment(x, y, scale, unlearn) + beta * positive + gamma * own_partition
    )


def gradient_ascent(family, x, y, scale, unlearn, queue=None):
    return -info_nce(family, x, y, scale, unlearn, queue)


def neg_grad(family, x, y, scale, unlearn, preset, epsilon, queue=None):
    """Presets `paper` (mean minus mean) and `reference` ((sum R - sum U) / N, U weighed by its share of the data)."""
    retain = info_nce(family, x, y, scale, [not u for u in unlearn], queue)
    forget = info_nce(family, x, y, scale, unlearn, queue)
    if preset == "paper":
        return retain - forget
    return retain / (1 + epsilon) - forget * epsilon / (1 + epsilon)


def reference_alignment_calibration(family, x, y, scale, unlearn, epsilon, alpha, beta, other, queue=None):
    """The published code: InfoNCE in which unlearn sample i, with weight alpha, has the other half `y[other[i]]`."""
    n = len(x)
    mixed = np.array([y[other[i]] if unlearn[i] else y[i] for i in range(n)])
    partition = log_partition(family, x, mixed, scale, queue)
    total = normaliser = 0.0
    for i in range(n):
        weight = alpha if unlearn[i] else 1.0
        total += weight * (partition[i] - scale * x[i] @ mixed[i])
        normaliser += weight
    cosines = [x[i] @ y[i] for i in range(n) if unlearn[i]]
    share = epsilon / (1 + epsilon)  # |U| / (|U| + |R|)
    return total / normaliser + beta * share * (np.mean(cosines) if cosines else 0.0)


def npo(family, x, y, scale, unlearn, teacher_losses, beta, retain_weight, queue=None):
    """Written with p and the sigmoid of the paper; `teacher_losses [n]` are the InfoNCE of each sample under it."""
    partition = log_partition(family, x, y, scale, queue)
    values = []
    for i in range(len(x)):
        if unlearn[i]:
            ratio = np.exp(scale * x[i] @ y[i] - partition[i]) / np.exp(-teacher_losses[i])
            values.append(-2 / beta * np.log(1 / (1 + np.exp(beta * np.log(ratio)))))
    retain = info_nce(family, x, y, scale, [not u for u in unlearn], queue)
    return retain_weight * retain + (np.mean(values) if values else 0.0)


def teacher_divergence(x, y, scale, teacher_x, teacher_y, teacher_scale):
    """For every sample, the mean over both directions of KL(teacher's choice || student's choice)."""
    n, values = len(x), []
    for i in range(n):
        both = []
        for (a, b), (ta, tb) in (((x, y), (teacher_x, teacher_y)), ((y, x), (teacher_y, teacher_x))):
            p = np.array([np.exp(scale * a[i] @ b[j]) for j in range(n)])
            q = np.array([np.exp(teacher_scale * ta[i] @ tb[j]) for j in range(n)])
            p, q = p / p.sum(), q / q.sum()
            both.append(sum(q[j] * np.log(q[j] / p[j]) for j in range(n)))
        values.append(np.mean(both))
    return np.array(values)


def finite_differences(function, *arrays, step=1e-6):
    """Central differences of a function of float64 arrays with respect to every one of their elements."""
    gradients = []
    for array in arrays:
        gradient = np.empty_like(array)
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            above = function(*arrays)
            array[index] = kept - step
            gradient[index] = (above - function(*arrays)) / (2 * step)
            array[index] = kept
        gradients.append(gradient)
    return gradients


def targeted_calibration(family, x, y, scale, unlearn, targets, negative, base_elements, weights, queue=None):
    """Pairs are held to their targets from both sides (unlearn) or from below (retain), views from above (unlearn)."""
    to_unlearn, to_retain, to_negative, to_similarities = weights
    members, others = ([i for i in range(len(x)) if unlearn[i] is which] for which in (True, False))
    loss = info_nce(family, x, y, scale, [not u for u in unlearn], queue)
    if family != "cross_modal":
        excess = [max(0.0, x[i] @ y[i] - targets[i]) ** 2 for i in members]
        return loss + to_unlearn * (np.mean(excess) if members else 0.0)
    drift = negative_alignment(x, y, 1.0, [True] * len(x)) - negative
    loss += to_unlearn * (np.mean([(x[i] @ y[i] - targets[i]) ** 2 for i in members]) if members else 0.0)
    loss += to_retain * (np.mean([min(0.0, x[i] @ y[i] - targets[i]) ** 2 for i in others]) if others else 0.0)
    changed = similarity_drift(x, y, *base_elements, [not u for u in unlearn])
    return loss + to_negative * drift**2 + to_similarities * changed
