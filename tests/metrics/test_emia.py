import math

import numpy as np
import pytest
import torch

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.attacks import fitting_scores
from hf_unlearn.metrics.emia import best_threshold, emia, view_alignment


def pairwise(views: np.ndarray) -> list[float]:
    """Mean of the pairs' cosines, one pair after the other."""
    means = []
    for image in views:
        k = len(image)
        cosines = [
            math.fsum(image[v] * image[w]) / math.sqrt(math.fsum(image[v] ** 2) * math.fsum(image[w] ** 2))
            for v in range(k)
            for w in range(v + 1, k)
        ]
        means.append(math.fsum(cosines) / (k * (k - 1) / 2))
    return means


def efficacy_by_search(retain: np.ndarray, unlearn: np.ndarray, test: np.ndarray, grid: list[float] | None) -> float:
    members, non_members = fitting_scores(retain, test)
    best, threshold = -1, math.nan
    for t in sorted(set(members) | set(non_members)) if grid is None else grid:
        right = sum(m >= t for m in members) + sum(n < t for n in non_members)
        if right > best:
            best, threshold = right, t
    return 100 * (sum(u < threshold for u in unlearn) / len(unlearn))


def test_ten_views_make_45_pairs() -> None:
    views = np.random.default_rng(0).normal(size=(6, 10, 12)) + 0.4
    expected = pairwise(views)
    np.testing.assert_allclose(view_alignment(views), expected, rtol=1e-12)
    np.testing.assert_allclose(view_alignment(torch.tensor(views)), expected, rtol=1e-12)
    np.testing.assert_allclose(view_alignment(views[:, k] for k in range(10)), expected, rtol=1e-12)
    np.testing.assert_allclose(view_alignment(torch.tensor(views).float()), expected, atol=1e-6)


def test_unusable_views_are_named() -> None:
    views = np.ones((3, 4, 2))
    views[1, 2] = np.nan
    with pytest.raises(UserError, match="view 2: sample 1 is NaN"):
        view_alignment(views)
    with pytest.raises(UserError, match="at least two views"):
        view_alignment(np.ones((3, 1, 2)))
    with pytest.raises(UserError, match="at least two views"):
        view_alignment([])
    with pytest.raises(UserError, match="view 0 2, view 1 3"):
        view_alignment([np.ones((2, 4)), np.ones((3, 4))])
    with pytest.raises(UserError, match="images, views, dimensions"):
        view_alignment(np.ones((3, 2)))


@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize("digits", [2, 3, 12])  # 2: many ties, on the grid; 3: on and between grid points
@pytest.mark.parametrize("seed", range(4))
def test_efficacy_equals_brute_force_exactly(preset: str, digits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = (120, 47, 60) if seed % 2 else (40, 47, 60)  # more, and fewer, retain than test
    retain, unlearn, test = (
        np.round(rng.normal(mean, 0.2, n), digits) for mean, n in zip((0.75, 0.7, 0.6), sizes, strict=True)
    )
    grid = [i / 500 for i in range(501)] if preset == "reference" else None
    assert emia(retain, unlearn, test, preset).efficacy == efficacy_by_search(retain, unlearn, test, grid)  # type: ignore[arg-type]


def test_no_threshold_beats_the_one_found() -> None:
    rng = np.random.default_rng(5)
    members, non_members = np.round(rng.normal(0.3, 1, 80), 1), np.round(rng.normal(0, 1, 80), 1)

    def right(t: float) -> int:
        return int((members >= t).sum() + (non_members < t).sum())

    found = best_threshold(members, non_members)
    scores = np.unique(np.r_[members, non_members])
    tried = np.r_[scores - 0.05, scores, scores[-1] + 1]
    assert right(found) == max(map(right, tried))
    assert all(right(t) < right(found) for t in scores[scores < found])  # the first best one


def test_result_tells_share_distance_and_accuracy() -> None:
    result = emia([0.9, 0.8, 0.7], [0.2, 0.95], [0.3, 0.4, 0.75])
    assert result.threshold == 0.7
    assert result.efficacy == 50
    assert result.distance == pytest.approx(50 - 200 / 3)
    assert result.accuracy == pytest.approx(500 / 6)
    assert result.signal_auc == pytest.approx(100 * 8 / 9)


def test_rows_sorted_by_class_are_attacked_as_shuffled_ones() -> None:
    rng = np.random.default_rng(0)
    by_class = np.concatenate([rng.normal(mean, 0.02, 60) for mean in (0.2, 0.5, 0.8, 0.95)])
    test, unlearn = by_class[::4] - 0.1, by_class[1::7] - 0.05
    sorted_rows, shuffled = (
        emia(by_class, unlearn, test),
        emia(rng.permutation(by_class), unlearn, rng.permutation(test)),
    )
    assert sorted_rows == shuffled
    first_rows = emia(by_class[: len(test)], unlearn, test)  # what the first class alone would say
    assert first_rows.threshold < sorted_rows.threshold


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError, match="paper and reference, got 'exact'"):
        emia([0.5], [0.5], [0.5], "exact")  # type: ignore[arg-type]
