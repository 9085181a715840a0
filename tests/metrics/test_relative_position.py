import numpy as np
import pytest
from scipy.stats import ortho_group, pearsonr

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.relative_position import neighbourhood_residual, relative_position


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.fixture
def spaces() -> tuple[np.ndarray, ...]:
    """Samples and anchors in one space of 8 dimensions and in another of 5."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(9, 8)), rng.normal(size=(30, 8)), rng.normal(size=(9, 5)), rng.normal(size=(30, 5))


def test_equals_loops(spaces) -> None:
    result = relative_position(*spaces, k=4)
    profiles = [[[cosine(x, b) for b in anchors] for x in xs] for xs, anchors in (spaces[:2], spaces[2:])]
    assert np.allclose(result.per_sample, [pearsonr(p, q).statistic for p, q in zip(*profiles, strict=True)])
    assert result.agreement == pytest.approx(result.per_sample.mean())
    assert result.displacement == pytest.approx(np.abs(np.subtract(*profiles)).mean())
    near = [[set(np.argsort(p)[-4:]) for p in profile] for profile in profiles]
    assert result.neighbours == pytest.approx(np.mean([len(a & b) / 4 for a, b in zip(*near, strict=True)]))


def test_rotation_and_scale_of_a_space_change_nothing(spaces) -> None:
    turn = ortho_group.rvs(8, random_state=0)
    result = relative_position(spaces[0], spaces[1], 3 * spaces[0] @ turn, 2 * spaces[1] @ turn)
    assert result.agreement == pytest.approx(1) and result.neighbours == 1
    assert result.displacement == pytest.approx(0, abs=1e-6)


def test_samples_that_swapped_places_are_seen() -> None:
    rng = np.random.default_rng(1)
    samples, anchors = rng.normal(size=(40, 6)), rng.normal(size=(100, 6))
    moved = relative_position(samples[::-1].copy(), anchors, samples, anchors)
    near = relative_position(samples + 0.2 * rng.normal(size=samples.shape), anchors, samples, anchors)
    assert moved.agreement < 0.3 < 0.9 < near.agreement and moved.neighbours < near.neighbours


def test_residual_equals_loops() -> None:
    rng = np.random.default_rng(2)
    unlearn, held_out, anchors = rng.normal(size=(12, 5)), rng.normal(size=(15, 5)), rng.normal(size=(20, 5))
    sides = [[np.mean(sorted(cosine(x, b) for b in anchors)[-3:]) for x in side] for side in (unlearn, held_out)]
    auc = 100 * np.mean([u > h for u in sides[0] for h in sides[1]])
    result = neighbourhood_residual(unlearn, held_out, anchors, k=3)
    assert result.auc == pytest.approx(auc) and result.residual == pytest.approx(abs(auc - 50))
    assert result.gap == pytest.approx(np.mean(sides[0]) - np.mean(sides[1]), abs=1e-6)


def test_unseen_samples_leave_no_residual_and_crowded_ones_do() -> None:
    def draw(seed: int, pull: float) -> float:
        rng = np.random.default_rng(seed)
        anchors = rng.normal(size=(200, 8))
        unlearn = rng.normal(size=(60, 8)) + pull * anchors[:60]
        return neighbourhood_residual(unlearn, rng.normal(size=(60, 8)), anchors, k=2).auc

    null = np.array([draw(seed, 0) for seed in range(30)])
    assert null.mean() == pytest.approx(50, abs=4 * null.std(ddof=1) / 30**0.5)
    assert [draw(0, pull) for pull in (0, 1, 3)] == sorted(draw(0, pull) for pull in (0, 1, 3))
    assert draw(0, 3) > 80


def test_unusable_inputs_are_refused(spaces) -> None:
    with pytest.raises(UserError, match="k=31 nearest of 30"):
        relative_position(*spaces, k=31)
    with pytest.raises(UserError, match="anchors 30, retrain_anchors 29"):
        relative_position(*spaces[:3], spaces[3][:29])
    with pytest.raises(UserError, match="samples 9, retrain_samples 8"):
        relative_position(*spaces[:2], spaces[2][:8], spaces[3])
    with pytest.raises(UserError, match="zero norm"):
        neighbourhood_residual(np.zeros((2, 8)), spaces[0], spaces[1])
    with pytest.raises(UserError, match="k=0"):
        neighbourhood_residual(spaces[0], spaces[0], spaces[1], k=0)
