"""The rules of the verdict, one at a time, then on whole tables."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import pytest
from audit_simulation import C, R, U, World, findings, table
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unlearn.audit.arms import collect
from hf_unlearn.audit.headlines import Basis, closing
from hf_unlearn.audit.hypotheses import run_hypothesis_tests
from hf_unlearn.audit.power import level_of_one
from hf_unlearn.audit.statistics import benjamini_yekutieli
from hf_unlearn.audit.verdict import Findings, decide, find, run_tests, run_tests_by_owner
from hf_unlearn.errors import UserError
from hf_unlearn.records.audit_result import Arm, AuditResult, ImageRow, Verdict

FORBIDDEN = ("deleted", "verified", "proved")
SIZES = {U: 8, R: 8, C: 8}
CLEAR = World(SIZES, gap=0.3, image_std=0.03, score_std=0.02)


def owner(world: World, *, held_back: World | None = None, seed: int = 0) -> list[ImageRow]:
    rng = np.random.default_rng(seed)
    images = world.images(1, rng)
    view = world.view(1, rng, images)
    return table(view, 0, held_back.view(1, rng, images) if held_back else None)


def text(result: AuditResult) -> str:
    return json.dumps(result.to_dict(), ensure_ascii=False).lower()


def every_finding() -> Iterator[Findings]:
    for answers in itertools.product([False, True], repeat=len(fields(Findings))):
        yield Findings(*answers)


def test_the_rules_hold_for_every_combination_of_findings() -> None:
    for found in every_finding():
        verdict = decide(found)
        if verdict is Verdict.NO_TARGETED_CHANGE:
            assert found.usable and found.sensitive and found.bounded and not found.targeted and not found.unchanged
        if verdict is Verdict.WITHIN_BAND:
            assert found.usable and found.sensitive and found.targeted and found.equivalent
            assert not found.residual and not found.overshoot
        if verdict.value.startswith("TARGETED"):
            assert found.usable and found.targeted
        if not found.usable:
            assert verdict is Verdict.INCONCLUSIVE
    assert {decide(found) for found in every_finding()} == set(Verdict)


@pytest.mark.parametrize(
    ("world", "verdict"),
    [
        (replace(CLEAR, removed=1), Verdict.WITHIN_BAND),
        (replace(CLEAR, removed=0.5), Verdict.RESIDUAL_SIGNAL),
        (replace(CLEAR, removed=1.6), Verdict.OVERSHOOT),
        (replace(CLEAR, drift=0.1), Verdict.NO_TARGETED_CHANGE),
        (replace(CLEAR, gap=0, drift=0.1), Verdict.INCONCLUSIVE),
        (replace(CLEAR, removed=1, gap=0.05, image_std=0.08), Verdict.RESIDUAL_UNDETERMINED),
    ],
)
def test_each_world_gets_its_verdict(world: World, verdict: Verdict) -> None:
    result = run_tests(owner(world, held_back=world))
    assert result.verdict is verdict
    assert not any(word in text(result) for word in FORBIDDEN)
    assert result.footer == closing(verdict, Basis(planned=False, from_weights=False, suspicious=False))
    assert AuditResult.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result


def test_the_untouched_model_reads_no_model_change() -> None:
    rows = [replace(row, after=row.before, change=0.0) for row in owner(CLEAR)]
    assert run_tests(rows).verdict is Verdict.NO_MODEL_CHANGE
    alone = [row for row in rows if row.arm is U]
    assert run_tests(alone).verdict is Verdict.NO_MODEL_CHANGE


def test_a_noisy_endpoint_reads_no_model_change_only_where_noise_bounds_the_change() -> None:
    rng = np.random.default_rng(0)
    rows = owner(replace(CLEAR, score_std=0.001))

    def noisy(rows: list[ImageRow], spread: float, extra: float = 0.0) -> list[ImageRow]:
        draws = np.abs(rng.normal(0.01, spread, (2, len(rows))))
        return [replace(row, change=a + extra, noise=b) for row, a, b in zip(rows, *draws.tolist(), strict=True)]

    assert run_tests(noisy(rows, 0.002)).verdict is Verdict.NO_MODEL_CHANGE
    assert run_tests(noisy(rows, 0.002, extra=0.02)).verdict is not Verdict.NO_MODEL_CHANGE
    few = [row for row in rows if row.arm is U][:4]
    assert run_tests(noisy(few, 0.002)).verdict is Verdict.INCONCLUSIVE  # 4 images bound nothing at 95%


@pytest.mark.parametrize(("times", "is_none"), [(1.0, True), (1.4, False), (1.9, False)])
def test_a_change_of_less_than_twice_the_noise_is_a_change(times: float, is_none: bool) -> None:
    rng = np.random.default_rng(1)
    rows = owner(replace(CLEAR, score_std=0.001))
    noises, noises_again = np.abs(rng.normal(0.01, 0.001, (2, len(rows)))).tolist()
    changed = [replace(r, change=times * a, noise=b) for r, a, b in zip(rows, noises_again, noises, strict=True)]
    assert (run_tests(changed).verdict is Verdict.NO_MODEL_CHANGE) is is_none


@pytest.mark.parametrize("seed", [11, 15, 28])
def test_without_a_seen_excess_one_as_large_as_the_noise_must_be_ruled_out(seed: int) -> None:
    """Heavy tails: no excess is seen, but its interval reaches from the noise to less than twice of it."""
    rows = owner(replace(CLEAR, score_std=0.001))
    changes, noises = 0.01 * np.random.default_rng(seed).lognormal(0, 1.5, (2, len(rows)))
    result = run_tests(
        [replace(r, change=a, noise=b) for r, a, b in zip(rows, changes.tolist(), noises.tolist(), strict=True)]
    )
    test = result.tests["T0"]
    assert not test.passed and noises.mean() < test.interval.high < 2 * noises.mean()
    assert result.verdict is not Verdict.NO_MODEL_CHANGE


def test_a_targeted_change_is_never_read_as_no_change() -> None:
    rows = [replace(row, change=0.01, noise=0.05 + i / 1e3) for i, row in enumerate(owner(replace(CLEAR, removed=1)))]
    assert run_tests(rows).verdict is Verdict.WITHIN_BAND


@pytest.mark.parametrize("removed", [0.0, 0.5, 1.0])
def test_eight_images_without_controls_get_an_interval_and_no_judgement(removed: float) -> None:
    alone = [row for row in owner(replace(CLEAR, removed=removed, drift=0.1)) if row.arm is U]
    result = run_tests(alone)
    assert result.verdict is Verdict.INCONCLUSIVE
    effect = result.effects["forgetting_score.requested"]
    assert math.isfinite(effect.interval.low) and math.isfinite(effect.interval.high)
    (detectable,) = result.minimum_detectable_effects
    assert detectable.words in result.explanation and detectable.cosine
    assert f"{effect.estimate:.3f}" in result.explanation


@pytest.mark.parametrize("removed", [0.0, 1.0])
def test_without_never_trained_images_nobody_is_accused_and_no_level_is_claimed(removed: float) -> None:
    result = run_tests([row for row in owner(replace(CLEAR, removed=removed)) if row.arm is not C])
    assert result.verdict is (Verdict.RESIDUAL_UNDETERMINED if removed else Verdict.INCONCLUSIVE)


def test_one_image_answers_in_words() -> None:
    result = run_tests([ImageRow("a", "a", U, 0.9, 0.3)])
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "minimum detectable effect is not defined" in result.explanation
    assert result.minimum_detectable_effects[0].standardised == math.inf


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_an_image_without_an_answer_is_named_and_counts_as_remembered(broken: float) -> None:
    rows = owner(replace(CLEAR, removed=1))
    assert run_tests(rows).verdict is Verdict.WITHIN_BAND
    rows[2] = replace(rows[2], after=broken)
    result = run_tests(rows)
    assert result.verdict is Verdict.RESIDUAL_UNDETERMINED
    assert rows[2].image in result.explanation and rows[2].image in result.arms[0].unusable
    assert result.standing_out == (rows[2].image,)
    assert any("counted as remembered" in sentence and rows[2].image in sentence for sentence in result.findings)
    ignored = [replace(row, after=broken) if row.arm is U else row for row in owner(CLEAR)]
    assert run_tests(ignored).verdict is Verdict.NO_TARGETED_CHANGE  # silence is no way out of a bad verdict


def test_a_collapsed_model_is_inconclusive_even_if_nothing_changed() -> None:
    collapsed = [replace(row, before=1.0, after=1.0, change=0.0) for row in owner(CLEAR)]
    result = run_tests(collapsed)
    assert result.verdict is Verdict.INCONCLUSIVE and "collapsed" in result.explanation


def test_a_declared_problem_is_inconclusive() -> None:
    problem = "The encoder after answers 512 numbers, before 768."
    result = run_tests(owner(replace(CLEAR, removed=1)), problems=[problem])
    assert result.verdict is Verdict.INCONCLUSIVE
    assert problem in result.explanation and result.reasons == (problem,)


def test_a_change_on_the_audited_transforms_alone_is_not_the_best_verdict() -> None:
    audited = replace(CLEAR, removed=1)
    result = run_tests(owner(audited, held_back=CLEAR))
    assert result.verdict is Verdict.RESIDUAL_SIGNAL
    assert "held-back" in result.explanation
    some = owner(audited, held_back=audited)
    some[0] = replace(some[0], held_back_after=None)
    assert run_tests(some).verdict is Verdict.RESIDUAL_UNDETERMINED
    assert run_tests(owner(audited)).verdict is Verdict.WITHIN_BAND  # without T4 nothing shows, and the limits say so
    assert any("held-back" in limit for limit in run_tests(owner(audited)).limits)


def test_a_change_that_partly_carries_over_is_seen_image_by_image() -> None:
    """Four fifths of the gap removed on held-back transforms pass as a level, but not beside the audited views."""
    audited = replace(CLEAR, removed=1, image_std=0.1, sizes={U: 24, R: 24, C: 24})
    result = run_tests(owner(audited, held_back=replace(audited, removed=0.8), seed=2), permutations=999)
    assert result.tests["T4.T3.equivalence"].passed and result.tests["T4.transfer"].passed
    assert result.verdict is Verdict.RESIDUAL_UNDETERMINED and "recover" in result.explanation


def test_what_the_arms_rest_on_is_said() -> None:
    rows = owner(replace(CLEAR, removed=1))
    planned = run_tests(rows, plan_sha256="ab", provenance={C: "my archive"})
    assert any("drawn at random" in sentence for sentence in planned.assumptions)
    assert [arm.drawn for arm in planned.arms] == ["plan", "plan", "chosen"]
    assert planned.arms[2].provenance == "my archive" and planned.plan_sha256 == "ab"
    assert any("they were chosen" in sentence for sentence in run_tests(rows).assumptions)
    without = run_tests([row for row in rows if row.arm is not R])
    assert "general loss of what was memorised would look the same" in without.explanation


def test_simulated_findings_are_those_of_the_audit() -> None:
    """The simulations judge thousands of owners by a shortcut; here it agrees with the audit itself."""
    rng = np.random.default_rng(4)
    for sizes in ({U: 5, R: 5, C: 5}, {U: 5, C: 9}, {U: 6, R: 4}):
        for removed in (0.0, 0.6, 1.0):
            world = World(sizes, gap=0.2, removed=removed, image_std=0.05, score_std=0.03)
            images = world.images(2, rng)
            view, held_back = world.view(2, rng, images), replace(world, removed=removed / 2).view(2, rng, images)
            for again in (None, held_back):
                expected = [
                    find(run_hypothesis_tests(collect(table(view, i, again)), level=0.05, permutations=399, seed=0))
                    for i in range(2)
                ]
                assert findings(view, again, permutations=399) == expected


def many_owners(n: int) -> list[ImageRow]:
    """Owners with requested and still-trained images of their own, and shared images never in training."""
    controls = [row for row in owner(CLEAR) if row.arm is C]
    found = list(controls)
    for i in range(n):
        name = f"owner-{i}"
        own = [row for row in owner(replace(CLEAR, removed=i % 2), seed=i) if row.arm is not C]
        found += [replace(row, owner=name, sha256=f"{name}/{row.sha256}") for row in own]
    return found


def test_every_owner_is_audited_with_adjusted_p_values() -> None:
    results = run_tests_by_owner(many_owners(4))
    assert list(results) == [f"owner-{i}" for i in range(4)]
    for name in ("T1", "T2", "T2.bound", "T3.equivalence"):
        raw = [result.tests[name].p_value or math.nan for result in results.values()]
        adjusted = [result.tests[name].p_adjusted for result in results.values()]
        assert adjusted == pytest.approx(benjamini_yekutieli(raw).tolist())
        for result in results.values():
            test = result.tests[name]
            assert test.p_adjusted and test.p_value and test.p_adjusted >= test.p_value
            assert test.passed == (test.p_adjusted <= 0.05)
    for result in results.values():  # what protects an owner when it rejects is left as it is
        assert all(result.tests[name].p_adjusted is None for name in ("T3", "T3.tail"))
    assert [result.verdict for result in results.values()] == [Verdict.NO_TARGETED_CHANGE, Verdict.WITHIN_BAND] * 2
    assert "Benjamini-Yekutieli over 4 owners" in results["owner-0"].multiplicity
    assert all(result.arms[-1].size == 8 for result in results.values())


def test_many_owners_get_permutations_enough_and_effects_at_their_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 99 draws no p-value of one of four owners could be as small as the adjustment asks."""
    monkeypatch.setattr("hf_unlearn.audit.statistics.ENUMERATION_LIMIT", 0)
    results = run_tests_by_owner(many_owners(4), permutations=99, seed=77)
    for result in results.values():
        assert {effect.level for effect in result.minimum_detectable_effects} == {level_of_one(0.05, 4)}
        draws = {test.permutations for test in result.tests.values() if not test.exact}
        assert draws and all(1 / count <= level_of_one(0.005, 4) for count in draws)
    (alone,) = run_tests_by_owner(many_owners(1), permutations=99, seed=77).values()
    assert {test.permutations for test in alone.tests.values() if not test.exact} == {100}
    assert {effect.level for effect in alone.minimum_detectable_effects} == {0.05}


def test_one_broken_owner_does_not_stop_the_others() -> None:
    rows = [replace(row, after=math.nan) if row.owner == "owner-0" else row for row in many_owners(2)]
    results = run_tests_by_owner(rows)
    assert results["owner-0"].verdict is Verdict.INCONCLUSIVE
    assert results["owner-1"].verdict is Verdict.WITHIN_BAND


def test_several_owners_in_one_audit_are_refused() -> None:
    with pytest.raises(UserError, match="owner-0, owner-1"):
        run_tests(many_owners(2))


def test_one_named_owner_keeps_the_name() -> None:
    result = run_tests(many_owners(1))
    assert result.owner == "owner-0" and {row.owner for row in result.images} == {"owner-0"}


numbers = st.floats(-1, 1) | st.sampled_from([0.0, 1.0, math.nan, math.inf])


@st.composite
def tables(draw: st.DrawFn) -> list[ImageRow]:
    sizes = {arm: draw(st.integers(1 if arm is U else 0, 4)) for arm in Arm}
    held = draw(st.booleans())
    return [
        ImageRow(
            *(f"{arm}{i}", f"{arm}{i}", arm, draw(numbers), draw(numbers)),
            held_back_before=draw(numbers) if held else None,
            held_back_after=draw(numbers) if held else None,
            change=draw(st.none() | st.floats(0, 1)),
            noise=draw(st.none() | st.floats(0, 0.1)),
        )
        for arm, n in sizes.items()
        for i in range(n)
    ]


@settings(max_examples=60, deadline=None)
@given(tables())
def test_any_table_gets_an_answer_in_allowed_words(rows: list[ImageRow]) -> None:
    result = run_tests(rows)
    json.dumps(result.to_dict(), allow_nan=False)
    assert result.explanation and result.minimum_detectable_effects
    assert not any(word in text(result) for word in FORBIDDEN)
    if not any(row.arm is C for row in rows):
        assert result.verdict not in (Verdict.NO_TARGETED_CHANGE, Verdict.WITHIN_BAND)
    if {row.arm for row in rows} == {U}:
        assert result.verdict in (Verdict.INCONCLUSIVE, Verdict.NO_MODEL_CHANGE)
