"""What the audit promises against those who would game it, and to those who would be wronged by it.

`python tests/audit_attacks.py 200` prints the long table; here each line is simulated as long as a test may take.
"""

import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit.conftest import folder_of
from audit.test_acceptance import DRIFT, assert_at_most
from audit_answers import AT_20, answers, edited, rotation
from audit_attacks import ATTACKS, CAPTION_ATTACKS, LIMITS, MAPPED, SMOOTH, audit, verdicts
from audit_simulation import UNTOUCHED, C, R, U, View, World, findings, table, untouched_rates, verdict_rates
from PIL import Image

from hf_unlearn.audit.headlines import FROM_THE_MODEL, RISEN, SUSPICIOUS
from hf_unlearn.audit.letter import letter
from hf_unlearn.audit.plan import read_plan, view_commitment
from hf_unlearn.audit.recording import plan_audit
from hf_unlearn.audit.verdict import Circumstances, run_tests, run_tests_by_owner
from hf_unlearn.records.audit_result import ImageRow, Verdict

BEST, PART = Verdict.WITHIN_BAND, Verdict.RESIDUAL_SIGNAL
LETTER = {"encoders": {"before": {}, "after": {}}, "started": "2026-01-01", "finished": "2026-01-01"}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_fake_gets_the_best_verdict(name: str) -> None:
    assert verdicts(ATTACKS[name], 10)[BEST] == 0


@pytest.mark.parametrize("name", CAPTION_ATTACKS)
def test_no_fake_of_captions_gets_the_best_verdict(name: str) -> None:
    assert verdicts(CAPTION_ATTACKS[name], 6, captions=True)[BEST] == 0


FEW_CAUGHT = ("noise on answers about requested pictures", "a retrained model for requested pictures alone")


@pytest.mark.parametrize("sizes", [{U: 2, R: 20, C: 20}, {U: 20, C: 2}], ids=str)
@pytest.mark.parametrize("name", FEW_CAUGHT)
def test_few_pictures_are_no_way_past_the_checks(sizes: dict, name: str) -> None:
    assert verdicts(ATTACKS[name], 8, world=World(sizes, gap=0.3, removed=1))[BEST] == 0


def test_what_no_check_could_have_noticed_is_not_credited_as_the_best() -> None:
    world = World({U: 20, C: 2}, gap=0.3, removed=1, image_std=0.02)
    found = next(
        a
        for i in range(9)
        if audit(a := answers(world, np.random.default_rng(i)), a.honest, from_weights=True).verdict is BEST
    )
    result = audit(found, found.honest)
    assert result.verdict is Verdict.RESIDUAL_UNDETERMINED and "would not be noticed" in result.explanation


@pytest.mark.parametrize(
    "name", ["a model retrained apart for requested pictures alone, drift", "a stranger's embedding, the model drifts"]
)
def test_no_fake_gets_the_best_verdict_without_pictures_still_in_training(name: str) -> None:
    assert verdicts(ATTACKS[name], 10, world=World({U: 20, C: 20}, gap=0.3, removed=1))[BEST] == 0


@pytest.mark.parametrize("name", [SMOOTH, MAPPED])
def test_what_is_a_change_of_the_model_from_outside_is_credited_under_a_condition(name: str) -> None:
    """A smooth filter over a drifting model moves answers as another model would: the first line says what it takes."""
    for number in range(8):
        found = answers(AT_20, np.random.default_rng([0, number]))
        result = audit(found, LIMITS[name](found))
        if result.verdict is BEST:
            break
    assert result.verdict is BEST and FROM_THE_MODEL in result.headline
    honest = audit(found, found.honest, from_weights=True)
    assert honest.verdict is BEST and FROM_THE_MODEL not in honest.headline


def test_answers_that_changed_about_others_alone_are_no_change_about_the_requested() -> None:
    """Where pictures still in training alone are answered otherwise, nobody reads that the requested ones changed."""
    found = answers(AT_20, np.random.default_rng(0))
    result = audit(found, ATTACKS["still-trained pictures' views alone pulled together"](found))
    assert result.headline == SUSPICIOUS and "all pictures but the requested ones" in result.explanation
    assert "do not take it as carried out" in result.meaning and "consistent with removal" not in result.footer
    assert "anything else than the model" in letter([result], LETTER)


def test_controls_that_rose_are_no_removal() -> None:
    """Per-image tables alone, without embeddings, show it too."""
    rng = np.random.default_rng(4)
    world = World({U: 20, R: 20, C: 20}, gap=0.3)
    images = world.images(1, rng)
    raised = {R: 0.3, C: 0.3, U: 0.0}
    views = [world.view(1, rng, images) for _ in range(2)]
    views = [View(v.before, {arm: values + raised[arm] for arm, values in v.after.items()}) for v in views]
    result = run_tests(table(views[0], 0, views[1]), plan_sha256="ab", permutations=399)
    assert result.verdict is Verdict.RESIDUAL_UNDETERMINED and RISEN in result.findings
    assert result.headline == SUSPICIOUS


def test_honest_unlearning_keeps_the_best_verdict() -> None:
    """The checks cost nothing on honest answers, and the tests no more than .05 of the .945 they had."""
    assert verdicts(None, 20, seed=5) == verdicts(None, 20, seed=5, checks=False)
    rng = np.random.default_rng(0)
    world = replace(AT_20, drift=DRIFT)
    images = world.images(600, rng)
    assert verdict_rates(world.view(600, rng, images), world.view(600, rng, images))[BEST] > 0.895


@pytest.mark.parametrize(("n", "count"), UNTOUCHED)
def test_a_few_pictures_left_alone_are_named(n: int, count: int) -> None:
    owners = 150 if n < 100 else 40
    rates = untouched_rates(n, count, owners, np.random.default_rng(1))
    assert_at_most(round(rates[BEST] * owners), owners, 0.05)


def test_the_pictures_left_alone_are_those_named() -> None:
    rng = np.random.default_rng(2)
    world = World({U: 12, R: 12, C: 12}, gap=0.3, removed=1, image_std=0.05)
    rows = table(world.view(1, rng), 0)
    rows[3] = replace(rows[3], after=rows[3].before)
    result = run_tests(rows)
    assert result.standing_out == (rows[3].image,) and result.verdict is Verdict.RESIDUAL_UNDETERMINED
    assert rows[3].image in result.explanation and any(rows[3].image in sentence for sentence in result.findings)


@pytest.mark.parametrize("sizes", [{U: 9, R: 9, C: 9}, {U: 20, R: 20, C: 20}, {U: 12, C: 30}])
@pytest.mark.parametrize("shape", ["normal", "t3", "a fifth holds it all"])
def test_exact_retraining_is_not_said_to_leave_a_trace(sizes: dict, shape: str) -> None:
    """Whatever images and memory are like, RESIDUAL SIGNAL and the accusation stay at 1% together with T4."""
    rng = np.random.default_rng(3)
    owners = 800
    world = World(sizes, gap=0.3, removed=1)
    images = world.images(owners, rng)
    if shape == "t3":
        images = {arm: 0.7 + 0.08 * rng.standard_t(3, values.shape) / np.sqrt(3) for arm, values in images.items()}
    views = [world.view(owners, rng, images) for _ in range(2)]
    if shape == "a fifth holds it all":
        lucky = {arm: rng.random(values.shape) < 0.2 for arm, values in images.items()}
        for view in views:
            for arm in view.before:
                if arm is not C:
                    view.before[arm][...] -= 0.3 * ~lucky[arm]
                if arm is R:
                    view.after[arm][...] -= 0.3 * ~lucky[arm]
    rates = verdict_rates(*views)
    assert_at_most(round(owners * rates[PART]), owners, 0.01)
    assert_at_most(round(owners * rates[Verdict.NO_TARGETED_CHANGE]), owners, 0.01)


def several(count: int, rng: np.random.Generator, faker: float = 0.0) -> dict[str, Verdict]:
    """Owners retrained exactly, the first left with a share of the memory, judged together."""
    rows: list[ImageRow] = []
    shared = World({C: 20, U: 8, R: 8}, gap=0.3, removed=1)
    for i in range(count):
        world = replace(shared, removed=1 - faker) if i == 0 else shared
        images = world.images(1, rng)
        own = table(world.view(1, rng, images), 0, world.view(1, rng, images))
        rows += [replace(row, owner=f"{i:02}", image=f"{i}{row.image}", sha256=f"{i}{row.sha256}") for row in own]
    results = run_tests_by_owner(rows, permutations=399, details=False)
    return {owner: result.verdict for owner, result in results.items()}


@pytest.mark.parametrize("owners", [1, 10, 30])
def test_each_owner_of_several_is_promised_the_same(owners: int) -> None:
    """Retrained exactly: nobody is accused or said to keep a trace in more than 1%, however many are audited."""
    rng = np.random.default_rng(owners)
    counts: Counter[Verdict] = Counter()
    for _ in range(90 // owners):
        counts.update(several(owners, rng).values())
    assert_at_most(counts[Verdict.NO_TARGETED_CHANGE], 90, 0.01)
    assert_at_most(counts[PART], 90, 0.01)


def test_a_faker_does_not_hide_among_honest_owners() -> None:
    """A third of the memory left gets the best verdict no more often beside nine honest owners than alone."""
    alone = [several(1, np.random.default_rng(i), faker=0.45)["00"] for i in range(16)]
    among = [several(10, np.random.default_rng(i), faker=0.45)["00"] for i in range(16)]
    assert among.count(BEST) <= alone.count(BEST)


def test_twins_across_arms_accuse_nobody() -> None:
    """Scenes parted between request and rest keep all of their memory, rightly: they are left out, and named."""
    rng = np.random.default_rng(6)
    for _ in range(20):
        world = World({U: 20, R: 20, C: 20}, gap=0.3, removed=0)
        rows = [
            replace(row, cluster=f"scene {int(row.image.rsplit('-', 1)[1]) // 4}") if row.arm is not C else row
            for row in table(world.view(1, rng), 0)
        ]
        result = run_tests(rows, permutations=199, details=False)
        assert result.verdict is Verdict.INCONCLUSIVE
        assert len(result.arms[0].twins) == 20 and "near-duplicate" in result.explanation


def test_whole_scenes_are_the_unit_of_a_drift() -> None:
    """Every scene drifts by itself; with its pictures folded together the request that was ignored is not credited."""
    rng = np.random.default_rng(7)
    credited = 0
    for _ in range(150):
        view = World({U: 20, R: 20, C: 20}, gap=0.3).view(1, rng)
        rows = []
        for row in table(view, 0):
            scene = int(row.image.rsplit("-", 1)[1]) // 4
            rows.append(replace(row, cluster=f"{row.arm} {scene}"))
        drifts = {row.cluster: rng.normal(0.05, 0.05) for row in rows}
        rows = [replace(row, after=row.after - drifts[row.cluster]) for row in rows]
        result = run_tests(rows, permutations=199, details=False)
        assert result.arms[0].size == 5
        credited += result.tests["T2"].passed
    assert_at_most(credited, 150, 0.05)


def test_near_duplicates_stay_together_in_a_plan(tmp_path) -> None:
    """Ten pictures with two JPEG copies each: no family is split, and ten count, not thirty."""
    mine = folder_of(tmp_path / "mine", 10)
    for path in sorted(mine.iterdir()):
        for quality in (90, 60):
            with Image.open(path) as image:
                image.convert("RGB").save(path.with_name(f"{path.stem}-{quality}.jpg"), quality=quality)
    plan = plan_audit(mine, tmp_path / "plan")
    families = [{name[:10] for name in half} for half in (plan.requested, plan.still_trained)]
    assert not families[0] & families[1] and [len(family) for family in families] == [5, 5]
    assert plan.clusters == (5, 5)


def test_the_views_of_an_audit_are_committed_and_secret(tmp_path) -> None:
    mine = folder_of(tmp_path / "mine", 6)
    plans = [plan_audit(mine, tmp_path / name, seed=1, audits=3) for name in "ab"]
    assert plans[0].requested == plans[1].requested
    assert not set(plans[0].view_commitments) & set(plans[1].view_commitments)  # the secret is drawn anew
    secret = tmp_path / "a" / "view_secret.json"
    assert secret.stat().st_mode & 0o077 == 0 and secret.read_text() not in (tmp_path / "a" / "plan.json").read_text()
    from hf_unlearn.audit.plan import read_view_seed

    seeds = [read_view_seed(plans[0], tmp_path / "a", number) for number in (1, 2, 3)]
    assert [view_commitment(seed) for seed in seeds] == list(plans[0].view_commitments) and len(set(seeds)) == 3
    assert read_plan(tmp_path / "a" / "plan.json").audits == 3
    shutil.copy(tmp_path / "b" / "view_secret.json", secret)
    with pytest.raises(Exception, match="another secret"):
        read_view_seed(plans[0], tmp_path / "a", 1)


def test_uneven_drift_is_not_credited_under_a_plan_and_conditional_without() -> None:
    """A model that drifts more on one style: a plan parts the styles at random, so T2 stays exact."""
    rng = np.random.default_rng(8)
    world = World({U: 10, R: 10, C: 10}, gap=0.3)
    credited = 0
    for _ in range(300):
        view = world.view(1, rng)
        style = rng.permutation(np.repeat([0.055, 0.025], 10))
        after = {U: view.after[U] - style[:10], R: view.after[R] - style[10:], C: view.after[C] - 0.04}
        credited += findings(View(view.before, after), permutations=199)[0].targeted
    assert_at_most(credited, 300, 0.05)
    requested = {U: view.after[U] - 0.1, R: view.after[R] - 0.02, C: view.after[C]}
    rows = table(View(view.before, requested), 0)
    assert "if the compared pictures are alike but for the request" in run_tests(rows).headline
    assert "alike but for" not in run_tests(rows, plan_sha256="ab").headline


def test_controls_that_can_be_told_apart_blindly_support_no_level() -> None:
    rng = np.random.default_rng(9)
    world = World({U: 20, R: 20, C: 20}, gap=0, removed=1, content=0.1, score_std=0.01)
    apart = Circumstances(incomparable=("They can be told apart.",))
    for owner in range(20):
        rows = table(world.view(1, rng), 0)
        verdict = run_tests(rows, circumstances=apart, permutations=199, details=False).verdict
        assert verdict not in (Verdict.NO_TARGETED_CHANGE, PART, BEST), owner


@pytest.mark.parametrize("way", ["scaled", "rotated", "half precision", "a zero appended"])
def test_an_untouched_model_served_otherwise_is_no_change(way: str) -> None:
    world = answers(AT_20, np.random.default_rng(10))
    ways = {
        "scaled": lambda x: 1.001 * x,
        "rotated": lambda x: x @ rotation(np.random.default_rng(0)),
        "half precision": lambda x: x.astype(np.float16).astype(float),
        "a zero appended": lambda x: np.concatenate([x, np.zeros((*x.shape[:-1], 1))], -1),
    }
    if way == "a zero appended":
        parts = {name: ways[way](getattr(world.before, name)) for name in ("images", "held_back", "repeats", "nudged")}
        served = replace(world.before, **parts)
    else:
        served = edited(world.before, np.ones(len(world.arms), bool), ways[way])
    assert audit(world, served).verdict is Verdict.NO_MODEL_CHANGE


def test_rounding_alone_is_never_a_targeted_change() -> None:
    """One owner in twenty would pass T2 by the luck of the last digits."""
    rng = np.random.default_rng(12)
    for _ in range(60):
        view = World({U: 20, R: 20, C: 20}, gap=0.3).view(1, rng)
        after = {arm: values + 1e-5 * rng.normal(size=values.shape) for arm, values in view.before.items()}
        rows = [replace(row, change=2e-5) for row in table(View(view.before, after), 0)]
        assert run_tests(rows, permutations=199, details=False).verdict is Verdict.NO_MODEL_CHANGE


def test_silence_about_requested_pictures_is_no_way_out() -> None:
    """Zeros, NaN or nothing for one requested picture or one control never turn a bad verdict into an open one."""
    world = answers(replace(AT_20, removed=0.0, drift=DRIFT), np.random.default_rng(11))
    assert audit(world, world.honest).verdict is Verdict.NO_TARGETED_CHANGE
    for row in (0, 45):
        for value in (0.0, np.nan):
            images = world.honest.images.copy()
            images[row] = value
            assert audit(world, replace(world.honest, images=images)).verdict is Verdict.NO_TARGETED_CHANGE


def test_the_page_of_attacks_names_tests_that_exist() -> None:
    root = Path(__file__).parents[2]
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "audit_attacks.md").read_text()))
    defined = {
        name for path in Path(__file__).parent.glob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 15 and named <= defined, named - defined
