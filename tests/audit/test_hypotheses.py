"""T0 to T4 on small tables, against SciPy and closed forms."""

from dataclasses import replace

import numpy as np
import pytest
from audit_simulation import C, R, U, World, table
from scipy import stats

from hf_unlearn.audit.arms import Arms, collect
from hf_unlearn.audit.hypotheses import HypothesisTests, choose_reference, run_hypothesis_tests
from hf_unlearn.audit.standing_out import tail_scores
from hf_unlearn.records.audit_result import Arm, ImageRow

SIZES = {U: 6, R: 6, C: 6}


def measured(rows: list[ImageRow], **settings: int) -> HypothesisTests:
    return run_hypothesis_tests(collect(rows), level=0.05, **{"permutations": 499, "seed": 0, **settings})


@pytest.fixture
def rows() -> list[ImageRow]:
    """One owner whose requested images lost half of a gap of .2, on two kinds of transforms."""
    rng = np.random.default_rng(0)
    world = World(SIZES, gap=0.2, removed=0.5, score_std=0.02)
    images = world.images(1, rng)
    return table(world.view(1, rng, images), 0, world.view(1, rng, images))


def permutation_p(x: np.ndarray, y: np.ndarray, alternative: str) -> float:
    found = stats.permutation_test(
        (x, y), lambda a, b, axis: a.mean(axis) - b.mean(axis), alternative=alternative, n_resamples=np.inf
    )
    return float(found.pvalue)


def values(rows: list[ImageRow], arm: Arm, name: str) -> np.ndarray:
    return np.array([getattr(row, name) for row in rows if row.arm is arm])


def test_every_p_value_is_the_one_scipy_gives(rows: list[ImageRow]) -> None:
    tests = measured(rows).tests
    before, after, score = (
        {arm: values(rows, arm, name) for arm in Arm} for name in ("before", "after", "forgetting_score")
    )
    held_after = {arm: values(rows, arm, "held_back_after") for arm in Arm}
    held_score = {arm: values(rows, arm, "held_back_before") - held_after[arm] for arm in Arm}
    gap = before[U].mean() - before[C].mean()
    rest = {arm: 0.75 * before[arm] - after[arm] for arm in Arm}
    below = permutation_p(after[U] - gap / 2, after[C], "less")
    above = permutation_p(after[U] + gap / 2, after[C], "greater")
    expected = {
        "T1": permutation_p(before[U], before[C], "greater"),
        "T2": permutation_p(score[U], score[R], "greater"),
        "T2.bound": permutation_p(score[U] - gap / 4, score[R], "less"),
        "T2.share": permutation_p(rest[U], rest[C], "less"),
        "T3": permutation_p(after[U], after[C], "two-sided"),
        "T3.tail": permutation_p(*tail_scores(after[U], after[C]), "greater"),
        "T3.equivalence": max(below, above),
        "T4.T2": permutation_p(held_score[U], held_score[R], "greater"),
        "T4.T3": permutation_p(held_after[U], held_after[C], "two-sided"),
        "T4.transfer": permutation_p(held_after[U] - after[U] - gap / 10, held_after[C] - after[C], "greater"),
    }
    assert {name: tests[name].p_value for name in expected} == pytest.approx(expected)
    assert sorted(tests) == sorted(["T0", *expected, "T4.T3.equivalence"])


def test_effects_are_differences_of_means_inside_their_intervals(rows: list[ImageRow]) -> None:
    effects = measured(rows).effects
    score = {arm: values(rows, arm, "forgetting_score").mean() for arm in Arm}
    assert effects["forgetting_score.requested"].estimate == pytest.approx(score[U])
    assert effects["difference_in_differences.never_trained"].estimate == pytest.approx(score[U] - score[C])
    gap = effects["gap_before"].estimate - effects["gap_after"].estimate
    assert effects["difference_in_differences.never_trained"].estimate == pytest.approx(gap)
    for effect in effects.values():
        assert effect.interval.low < effect.estimate < effect.interval.high
    assert {name for name in effects if name.startswith("held_back.")} == {
        f"held_back.{name}" for name in effects if not name.startswith(("held_back.", "forgetting_score."))
    }


def test_bounds_and_p_values_say_the_same(rows: list[ImageRow]) -> None:
    """The upper 95% bound is below a quarter of the gap, and the 90% interval inside half of it, just when p <= .05."""
    rng = np.random.default_rng(1)
    for removed in (0.0, 0.1, 0.4, 0.8, 1.0):
        found = measured(table(World(SIZES, gap=0.2, removed=removed, score_std=0.05, image_std=0.05).view(1, rng), 0))
        bound, inside = found.tests["T2.bound"], found.tests["T3.equivalence"]
        assert bound.interval and inside.interval and found.margin
        assert bound.passed == (bound.interval.high < found.margin / 2)
        assert inside.passed == (-found.margin < inside.interval.low and inside.interval.high < found.margin)


def test_a_gap_the_wrong_way_round_supports_nothing() -> None:
    rng = np.random.default_rng(2)
    tests = measured(table(World(SIZES, gap=-0.3).view(1, rng), 0)).tests
    assert not any(tests[name].passed for name in ("T1", "T2.bound", "T3.equivalence"))


def test_still_trained_images_are_the_reference_unless_they_cannot_serve(rows: list[ImageRow]) -> None:
    def reference(**sizes: int) -> Arm | None:
        arms = {Arm[name]: size for name, size in sizes.items()}
        kept = [row for row in rows if int(row.image.rsplit("-", 1)[1]) < arms.get(row.arm, 0)]
        return choose_reference(collect(kept), 0.05)

    assert reference(REQUESTED=6, STILL_TRAINED=6, NEVER_TRAINED=6) is R
    assert reference(REQUESTED=6, NEVER_TRAINED=6) is C
    assert reference(REQUESTED=6, STILL_TRAINED=1, NEVER_TRAINED=6) is C  # 1 in 7 is the smallest p-value
    assert reference(REQUESTED=6, STILL_TRAINED=6) is R
    assert reference(REQUESTED=2, NEVER_TRAINED=2) is None
    assert reference(REQUESTED=6) is None


def with_change(rows: list[ImageRow], change: np.ndarray, noise: np.ndarray | None) -> HypothesisTests:
    noises = [None] * len(rows) if noise is None else noise.tolist()
    changed = [replace(row, change=c, noise=n) for row, c, n in zip(rows, change.tolist(), noises, strict=True)]
    return measured(changed)


def test_identity_of_deterministic_models_is_an_exact_comparison(rows: list[ImageRow]) -> None:
    zero, one = np.zeros(len(rows)), np.zeros(len(rows))
    one[3] = 2e-3
    rounded = np.full(len(rows), 5e-4)
    same, changed = with_change(rows, zero, zero).tests["T0"], with_change(rows, one, zero).tests["T0"]
    assert (
        not with_change(rows, rounded, zero).tests["T0"].passed
    )  # half precision moves cosines less than the tolerance
    assert (same.passed, same.p_value) == (False, None)
    assert (changed.passed, changed.p_value) == (True, None)


def test_identity_of_noisy_endpoints_is_tested_against_their_noise(rows: list[ImageRow]) -> None:
    rng = np.random.default_rng(3)
    noise, again = np.abs(rng.normal(0.01, 0.002, (2, len(rows))))
    same, changed = with_change(rows, again, noise), with_change(rows, again + 0.005, noise)
    assert not same.tests["T0"].passed and changed.tests["T0"].passed
    assert same.noise == pytest.approx(noise.mean())
    interval = same.tests["T0"].interval
    assert interval and interval.low < 0 < interval.high < noise.mean()


def test_identity_is_not_judged_when_noise_is_unknown(rows: list[ImageRow]) -> None:
    assert "T0" not in with_change(rows, np.full(len(rows), 0.1), None).tests
    assert not with_change(rows, np.zeros(len(rows)), None).tests["T0"].passed


def test_without_embeddings_identical_alignments_are_identity() -> None:
    rows = [ImageRow(f"{i}", f"{i}", U, before=i / 10, after=i / 10) for i in range(5)]
    assert not measured(rows).tests["T0"].passed
    assert "T0" not in measured([*rows, ImageRow("x", "x", U, 0.1, 0.2)]).tests


def test_held_back_transforms_must_cover_every_image(rows: list[ImageRow]) -> None:
    partial = [replace(rows[0], held_back_after=None), *rows[1:]]
    found = measured(partial)
    assert found.held_back == "some" and not any(name.startswith("T4") for name in found.tests)
    none = measured([replace(row, held_back_before=None, held_back_after=None) for row in rows])
    assert none.held_back == "none" and measured(rows).held_back == "all"


def test_detectable_effects_are_always_there(rows: list[ImageRow]) -> None:
    def named(*arms: Arm) -> dict[str, tuple[int, ...]]:
        found = measured([row for row in rows if row.arm in arms])
        return {effect.test: effect.sizes for effect in found.minimum_detectable_effects}

    assert named(U, R, C) == {"T1": (6, 6), "T2": (6, 6)}
    assert named(U, R) == {"T2": (6, 6)}
    assert named(U) == {"forgetting_score": (6,)}


def test_the_table_is_not_needed_in_any_order(rows: list[ImageRow]) -> None:
    forward, backward = measured(rows).tests, measured(rows[::-1]).tests
    for name, test in forward.items():
        assert test.p_value == (None if test.p_value is None else pytest.approx(backward[name].p_value))


def test_arms_know_their_sizes(rows: list[ImageRow]) -> None:
    arms: Arms = collect(rows)
    assert [arms.size(arm) for arm in Arm] == [6, 6, 6]
