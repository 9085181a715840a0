"""Alignment matrix (AM) and alignment gap matrix (AGM): what a data owner sees of an encoder."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_unlearn.errors import UserError

Matrix = NDArray[np.float64]

COLLAPSED = 1 - 1e-6
"""Mean cosine of different samples from which an encoder tells them apart no longer; float32 rounds at about 1e-7."""


@dataclass(frozen=True)
class DiagonalStatistics:
    """Mean and (population) standard deviation of a square matrix on and off its diagonal.

    On an alignment gap matrix the diagonal is the per-sample forgetting score and the off-diagonal the negative
    alignment gap of Fig. 2. A 1 x 1 matrix has no off-diagonal: those two fields are NaN.
    """

    diagonal_mean: float
    diagonal_std: float
    off_diagonal_mean: float
    off_diagonal_std: float


def unit_rows(x: ArrayLike) -> Matrix:
    """Scale embeddings to unit length: `x / |x|` along the last axis, in float64.

    Args:
        x: Embeddings `[..., d]`.

    Returns:
        Array `[..., d]`; an embedding that is zero or not finite has no direction and comes back as NaN.
    """
    array = np.asarray(x, dtype=np.float64)
    norm = np.linalg.norm(array, axis=-1, keepdims=True)
    usable = np.isfinite(norm) & (norm > 0)
    return np.where(usable, array / np.where(usable, norm, 1.0), np.nan)


def alignment_matrix(x: ArrayLike, y: ArrayLike) -> Matrix:
    """Cosines between the two elements of the owner's pairs: `AM[i, j] = cos(x_i, y_j)`.

    Args:
        x: Embeddings `[n, d]` of the first elements (first view, or image).
        y: Embeddings `[n, d]` of the second elements (second view, or caption).

    Returns:
        Matrix `[n, n]` of cosines in [-1, 1]; a zero or non-finite embedding makes its row or column NaN.

    Raises:
        UserError: When the two are not `[n, d]` of one shape.

    Source: Alignment Calibration (arXiv 2406.03603), section 4.2.

    >>> alignment_matrix([[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [1.0, 0.0]]).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    first, second = np.asarray(x), np.asarray(y)
    if first.ndim != 2 or first.shape != second.shape:
        raise UserError(
            "An alignment matrix needs two arrays of one shape [n, d]; "
            f"got {list(first.shape)} and {list(second.shape)}."
        )
    return np.clip(unit_rows(first) @ unit_rows(second).T, -1.0, 1.0)


def alignment_gap_matrix(am_before: ArrayLike, am_after: ArrayLike) -> Matrix:
    """What unlearning changed: `AGM = AM(before) - AM(after)`; its diagonal is the per-sample forgetting score.

    Args:
        am_before: Alignment matrix `[n, n]` of the model before unlearning.
        am_after: Alignment matrix `[n, n]` of the model after it, on the same samples and views.

    Returns:
        Matrix `[n, n]` in [-2, 2].

    Raises:
        UserError: When the two are not square matrices of one size.

    Source: Alignment Calibration (arXiv 2406.03603), section 4.2.

    >>> alignment_gap_matrix([[1.0]], [[0.25]]).tolist()
    [[0.75]]
    """
    before, after = square(am_before), square(am_after)
    if before.shape != after.shape:
        raise UserError(
            f"The alignment matrices before and after differ in size ({len(before)} and {len(after)} samples); "
            "compute both on the same samples."
        )
    return before - after


def diagonal_statistics(matrix: ArrayLike) -> DiagonalStatistics:
    """Summarise a square matrix on and off its diagonal.

    Args:
        matrix: Matrix `[n, n]`, an AM or an AGM.

    Returns:
        The four numbers of `DiagonalStatistics`.

    Raises:
        UserError: When the matrix is not square or empty.

    >>> diagonal_statistics([[1.0, 0.5], [0.0, 1.0]]).off_diagonal_mean
    0.25
    """
    array = square(matrix)
    diagonal = np.diagonal(array)
    off_diagonal = array[~np.eye(len(array), dtype=bool)]
    alone = off_diagonal.size == 0
    return DiagonalStatistics(
        diagonal_mean=float(diagonal.mean()),
        diagonal_std=float(diagonal.std()),
        off_diagonal_mean=float("nan") if alone else float(off_diagonal.mean()),
        off_diagonal_std=float("nan") if alone else float(off_diagonal.std()),
    )


def square(matrix: ArrayLike) -> Matrix:
    """Return the matrix as float64, or refuse it when it is empty or not square.

    Args:
        matrix: Anything array-like, expected `[n, n]` with `n >= 1`.

    Returns:
        The same numbers as a float64 array.

    Raises:
        UserError: When the shape is not `[n, n]`.
    """
    array = np.asarray(matrix, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.size == 0:
        raise UserError(f"Expected a square matrix [n, n] with n >= 1; got shape {list(array.shape)}.")
    return array
