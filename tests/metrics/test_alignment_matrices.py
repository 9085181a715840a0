import math

import numpy as np
import pytest
import torch

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.alignment_matrices import alignment_gap_matrix, alignment_matrix, diagonal_statistics


def loop_cosines(x, y):
    return [[sum(a * b for a, b in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v) for v in y] for u in x]


def test_alignment_matrix_is_the_double_loop_of_cosines():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 7, 5))
    np.testing.assert_allclose(alignment_matrix(x, y), loop_cosines(x.tolist(), y.tolist()), atol=1e-12)
    np.testing.assert_allclose(alignment_matrix(torch.tensor(x), torch.tensor(y)), alignment_matrix(x, y))


def test_alignment_matrix_rows_are_first_elements():
    am = alignment_matrix([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]])
    assert am[0, 1] == pytest.approx(2**-0.5) and am[1, 0] == 0


def test_float16_embeddings_lose_nothing_in_the_sum():
    x = np.full((2, 4096), 60.0, dtype=np.float16)  # the squared norm overflows float16
    assert alignment_matrix(x, x).tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("broken", [0.0, np.nan, np.inf])
def test_a_broken_embedding_marks_its_own_row_and_no_other(broken):
    x = np.eye(3)
    x[1] = broken
    am = alignment_matrix(x, np.eye(3))
    assert np.isnan(am[1]).all() and np.isfinite(am[[0, 2]]).all()


def test_a_broken_embedding_is_told_by_nothing_but_its_row(recwarn):
    """No number is divided by a norm that is zero or no number."""
    x = np.eye(4)
    x[1], x[2], x[3, 0] = 0.0, np.inf, np.nan
    assert np.isnan(alignment_matrix(x, np.eye(4))[1:]).all() and not recwarn


def test_gap_is_before_minus_after_with_the_forgetting_score_on_its_diagonal():
    rng = np.random.default_rng(1)
    x, y, z = rng.normal(size=(3, 6, 4))
    before, after = alignment_matrix(x, y), alignment_matrix(x, z)
    agm = alignment_gap_matrix(before, after)
    scores = [loop_cosines([a], [b])[0][0] - loop_cosines([a], [c])[0][0] for a, b, c in zip(x, y, z, strict=True)]
    np.testing.assert_allclose(np.diagonal(agm), scores, atol=1e-12)


def test_diagonal_statistics_against_loops():
    matrix = np.random.default_rng(2).normal(size=(5, 5))
    on = [matrix[i, i] for i in range(5)]
    off = [matrix[i, j] for i in range(5) for j in range(5) if i != j]
    got = diagonal_statistics(matrix)
    assert (got.diagonal_mean, got.diagonal_std) == pytest.approx((np.mean(on), np.std(on)))
    assert (got.off_diagonal_mean, got.off_diagonal_std) == pytest.approx((np.mean(off), np.std(off)))


def test_one_sample_has_no_off_diagonal(recwarn):
    got = diagonal_statistics([[0.5]])
    assert got.diagonal_mean == 0.5 and math.isnan(got.off_diagonal_mean) and math.isnan(got.off_diagonal_std)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: alignment_matrix(np.ones((3, 2)), np.ones((3, 4))), r"\[3, 2\] and \[3, 4\]"),
        (lambda: alignment_matrix(np.ones(3), np.ones(3)), r"\[n, d\]"),
        (lambda: alignment_gap_matrix(np.eye(2), np.eye(3)), "2 and 3 samples"),
        (lambda: diagonal_statistics(np.ones((2, 3))), "square"),
        (lambda: diagonal_statistics(np.ones((0, 0))), "n >= 1"),
    ],
)
def test_wrong_shapes_are_named(call, words):
    with pytest.raises(UserError, match=words):
        call()
