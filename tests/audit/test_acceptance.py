"""What the audit promises, simulated: thousands of owners, the library's own tests and rules, fixed seeds.

The scale is the paper's (forgetting score of exact retraining: mean .025, standard deviation .081 at two views; ten
views halve the latter). A rate promised to be at most x must not be significantly above x in the simulation.
"""

from dataclasses import replace

import numpy as np
import pytest
from audit_simulation import PAPER_MEAN, PAPER_STD, C, R, U, World, findings, table, verdict_rates
from scipy import stats

from hf_unlearn.audit.statistics import OneSample, TwoSample
from hf_unlearn.audit.verdict import run_tests
from hf_unlearn.records.audit_result import Arm, ImageRow, Verdict

SMALL = {U: 5, R: 5, C: 5}
SMALL_WITHOUT_R = {U: 5, C: 5}
POWERED = {U: 24, R: 24, C: 24}
DRIFT = 0.055


def assert_at_most(count: int, trials: int, rate: float) -> None:
    assert stats.binomtest(count, trials, rate, alternative="greater").pvalue > 0.001, count / trials


def assert_uniform(p_values: np.ndarray, smallest: float) -> None:
    """A p-value takes multiples of `smallest`, each as often: Kolmogorov-Smirnov after spreading it below itself."""
    spread = p_values - smallest * np.random.default_rng(0).uniform(size=p_values.shape)
    assert stats.kstest(spread, "uniform").pvalue > 0.001


@pytest.mark.parametrize("alternative", ["greater", "less"])
@pytest.mark.parametrize(("n", "m", "permutations"), [(5, 5, 0), (4, 8, 0), (3, 9, 0), (20, 20, 199)])
def test_null_p_values_are_uniform(n: int, m: int, permutations: int, alternative: str) -> None:
    """Skewed scores, arms of one distribution: T1, T2 and both sides of T3, enumerated or drawn."""
    rng = np.random.default_rng(1)
    p_values = []
    for seed in range(40):
        arms = rng.exponential(size=(50, n)), rng.exponential(size=(50, m))
        test = TwoSample(*arms, permutations=permutations, seed=seed)
        p_values.append(test.p_value(alternative))
    assert_uniform(np.concatenate(p_values), 1 / test.permutations)


def test_null_p_values_of_sign_flips_are_uniform() -> None:
    test = OneSample(np.random.default_rng(2).standard_t(3, (2_000, 8)))
    assert_uniform(test.p_value("greater"), 1 / 256)


@pytest.mark.parametrize("shape", ["normal", "t3"])
@pytest.mark.parametrize("spread", [1.0, 2.0])
def test_intervals_cover_at_eight_images(shape: str, spread: float) -> None:
    """95% intervals of the difference in differences at n = 8 hold the truth 95% of the time, also for unequal spreads.

    An interval holds a value exactly when the two-sided test does not reject it, which is cheaper to ask.
    """
    rng = np.random.default_rng(3)
    draw = rng.standard_normal if shape == "normal" else (lambda size: rng.standard_t(3, size) / np.sqrt(3))
    covered = trials = 0
    for _ in range(80):
        treated, control = draw((15, 8)) * PAPER_STD * spread + PAPER_MEAN, draw((15, 8)) * PAPER_STD
        inside = TwoSample(treated, control).p_value("two-sided", PAPER_MEAN) > 0.05
        covered, trials = covered + int(inside.sum()), trials + inside.size
    assert_at_most(trials - covered, trials, 0.06)


def test_an_interval_holds_what_the_test_does_not_reject() -> None:
    rng = np.random.default_rng(4)
    test = TwoSample(rng.normal(PAPER_MEAN, PAPER_STD, (60, 5)), rng.normal(0, PAPER_STD, (60, 8)))
    low, high = test.interval(0.95)
    inside = (low <= PAPER_MEAN) & (high >= PAPER_MEAN)
    assert (inside == (test.p_value("two-sided", PAPER_MEAN) > 0.05)).all()
    assert 0 < inside.sum() < 60


def test_sign_flip_intervals_cover_at_eight_images_where_the_bootstrap_does_not() -> None:
    rng = np.random.default_rng(5)
    scores = rng.normal(PAPER_MEAN, PAPER_STD, (2_000, 8))
    low, high = OneSample(scores).interval(0.95)
    assert_at_most(int(np.sum((low > PAPER_MEAN) | (high < PAPER_MEAN))), len(scores), 0.06)
    means = scores[:, rng.integers(0, 8, (400, 8))].mean(-1)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    assert np.mean((low <= PAPER_MEAN) & (high >= PAPER_MEAN)) < 0.91


@pytest.mark.parametrize("sizes", [SMALL, SMALL_WITHOUT_R])
@pytest.mark.parametrize("gap", [0.0, 0.1])
def test_drift_is_credited_by_the_naive_test_and_not_by_this_one(sizes: dict[Arm, int], gap: float) -> None:
    """Every image lost .055, the request was ignored: a sign-flip test at n = 8 credits 95% of owners, T2 5%."""
    rng = np.random.default_rng(6)
    world = World(sizes, gap=gap, drift=DRIFT)
    naive = OneSample(rng.normal(DRIFT, world.score_std, (2_000, 8))).p_value("greater") <= 0.05
    assert naive.mean() == pytest.approx(0.95, abs=0.02)
    credited = sum(found.targeted for found in findings(world.view(3_000, rng)))
    assert_at_most(credited, 3_000, 0.05)


def test_a_general_loss_of_memory_is_drift_beside_members_and_not_beside_non_members() -> None:
    """Why the images still in training matter: every member lost half of its gap, the request was ignored."""
    rng = np.random.default_rng(7)
    world = World({U: 10, R: 10, C: 10}, gap=0.2, removed=0.5, kept=0.5)
    view = world.view(300, rng)
    assert_at_most(sum(found.targeted for found in findings(view, permutations=199)), 300, 0.05)
    without = world.view(300, rng)
    for side in (without.before, without.after):
        del side[R]
    assert sum(found.targeted for found in findings(without, permutations=199)) > 250


@pytest.mark.parametrize("sizes", [SMALL, SMALL_WITHOUT_R, {U: 6, R: 6, C: 6}, {U: 12, R: 12, C: 24}])
@pytest.mark.parametrize(("gap", "score_std"), [(0.0, 0.002), (0.0, 0.04), (0.02, 0.002), (0.1, 0.04)])
def test_exact_retraining_is_hardly_ever_accused(sizes: dict[Arm, int], gap: float, score_std: float) -> None:
    """The hardest case is the first: nothing was memorised, chance alone passes T1 and nothing can be removed."""
    rng = np.random.default_rng(8)
    rates = verdict_rates(World(sizes, gap=gap, removed=1, score_std=score_std).view(2_000, rng), permutations=399)
    assert rates[Verdict.NO_TARGETED_CHANGE] <= 0.01


def test_an_accusation_rests_on_controls_of_the_same_source() -> None:
    """Nothing was memorised, the model was retrained exactly, but the controls differ in content: no test can tell.

    The verdict and its assumptions say so; only controls of the same source make an accusation sound.
    """
    rng = np.random.default_rng(13)
    view = World({U: 20, R: 20, C: 20}, gap=0, removed=1, content=0.1, score_std=0.01).view(200, rng)
    assert verdict_rates(view)[Verdict.NO_TARGETED_CHANGE] > 0.5
    accused = (run_tests(table(view, owner), permutations=399) for owner in range(200))
    result = next(result for result in accused if result.verdict is Verdict.NO_TARGETED_CHANGE)
    assert "rests on the images never in training being of the same source" in result.explanation
    assert any("same source" in sentence for sentence in result.assumptions)


def test_an_ignored_request_is_named_where_the_arms_have_power() -> None:
    rng = np.random.default_rng(9)
    rates = verdict_rates(World(POWERED, gap=0.3, drift=DRIFT).view(300, rng))
    assert rates[Verdict.NO_TARGETED_CHANGE] > 0.9
    assert rates[Verdict.WITHIN_BAND] == 0


def test_exact_retraining_gets_the_best_verdict_where_the_arms_have_power() -> None:
    rng = np.random.default_rng(10)
    world = World(POWERED, gap=0.3, removed=1, drift=DRIFT)
    images = world.images(300, rng)
    rates = verdict_rates(world.view(300, rng, images), world.view(300, rng, images))
    assert rates[Verdict.WITHIN_BAND] > 0.88  # the rest: the two-sided tests of T3 and T4 at 5% each


@pytest.mark.parametrize("carried_over", [0.0, 0.5, 0.8])
def test_a_change_of_the_audited_views_never_gets_the_best_verdict(carried_over: float) -> None:
    """The gap is gone on the audited transforms; of it only a share is gone on the held-back ones."""
    rng = np.random.default_rng(11)
    world = World(POWERED, gap=0.3, removed=1, score_std=0.02)
    images = world.images(300, rng)
    audited = world.view(300, rng, images)
    held_back = replace(world, removed=carried_over).view(300, rng, images)
    assert verdict_rates(audited)[Verdict.WITHIN_BAND] > 0.9
    assert verdict_rates(audited, held_back)[Verdict.WITHIN_BAND] == 0


def embedded_alignment(views: np.ndarray) -> np.ndarray:
    """Mean pairwise cosine of the views `[images, views, d]` of each image."""
    unit = views / np.linalg.norm(views, axis=-1, keepdims=True)
    count = views.shape[1]
    return ((unit.sum(1) ** 2).sum(-1) - count) / (count * (count - 1))


def fake_last_layer(rng: np.random.Generator, *, images: int = 20, views: int = 6, width: int = 512) -> list[ImageRow]:
    """An owner whose model was given the smallest linear edit of its last layer that scatters the audited views of U.

    Members' views lie closer together (.35) than non-members' (.6); the edit `W + pinv(H) (target - H)` moves exactly
    the audited features `H` of the requested images as far apart as a non-member's.
    """
    member, other = 0.35, 0.6
    centres = {arm: rng.normal(size=(images, 1, width)) / np.sqrt(width) for arm in Arm}
    spread = {arm: (other if arm is C else member) * rng.uniform(0.8, 1.2, (images, 1, 1)) for arm in Arm}

    def features(arm: Arm) -> np.ndarray:
        return centres[arm] + spread[arm] * rng.normal(size=(images, views, width)) / np.sqrt(width)

    audited, held_back = ({arm: features(arm) for arm in Arm} for _ in range(2))
    scatter = rng.normal(size=(images, views, width)) * np.sqrt((other**2 - member**2) / width)
    scatter -= scatter.mean(1, keepdims=True)
    edit = np.linalg.pinv(audited[U].reshape(-1, width)) @ scatter.reshape(-1, width)
    layer = np.eye(width) + edit + rng.normal(size=(width, width)) * 0.01 / np.sqrt(width)
    rows = []
    for arm in Arm:
        seen = [embedded_alignment(x @ w) for x in (audited[arm], held_back[arm]) for w in (np.eye(width), layer)]
        for i, numbers in enumerate(np.array(seen).T.tolist()):
            rows.append(ImageRow(f"{arm}-{i}", f"{arm}-{i}", arm, *numbers, change=0.1, noise=0.0))
    return rows


def test_a_fake_of_the_last_layer_never_gets_the_best_verdict() -> None:
    rng = np.random.default_rng(12)
    without_held_back = []
    for _ in range(8):
        rows = fake_last_layer(rng)
        assert run_tests(rows, permutations=299).verdict is not Verdict.WITHIN_BAND
        blind = [replace(row, held_back_before=None, held_back_after=None) for row in rows]
        without_held_back.append(run_tests(blind, permutations=299).verdict)
    assert Verdict.WITHIN_BAND in without_held_back  # T4 is what catches it
