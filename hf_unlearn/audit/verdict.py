"""The audit's main entry: from the per-image table to a verdict in plain words.

The rules err on the side of silence: a result that is not significant never accuses, a significant one credits only
what it shows, and the best verdict needs every test to agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_unlearn.audit.arms import Arms, collect
from hf_unlearn.audit.explanations import assumptions, explain, limits, reasons, suspicion_words
from hf_unlearn.audit.headlines import RISEN, UNEVEN, Basis, closing, headline, meaning
from hf_unlearn.audit.hypotheses import HypothesisTests, run_hypothesis_tests
from hf_unlearn.audit.levels import RESIDUAL_LEVEL, TOLERANCE
from hf_unlearn.audit.power import minimum_detectable_effect
from hf_unlearn.audit.several_owners import adjusted, enough_permutations, multiplicity
from hf_unlearn.audit.statistics import TwoSample
from hf_unlearn.errors import UserError
from hf_unlearn.records.audit_result import Arm, AuditResult, ImageRow, Verdict

EVEN_LEVEL = 0.05
"""Level at which a plan's halves are told apart before the change; then the plan counts as chosen."""
NO_TEST = "there are no controls, and no query was repeated: nothing can be compared"


@dataclass(frozen=True)
class Circumstances:
    """What was found about one owner's measurement besides the table.

    Args:
        suspicions: answers that no training gives (`answer_checks`), a sentence each; any one bars the best verdict.
        incomparable: how requested and never-trained images can be told apart without a model (`blind_baseline`), a
            sentence each; any one means that their levels say nothing.
        remarks: what else a reader must know, a sentence each.
        from_weights: whether the answers after were computed here from a model's weights, which no filter in front of
            them can change.
        checked: whether there were enough pictures for `answer_checks` to notice anything (`answer_jumps.checkable`).
        drawn: whether the plan's halves are those that its seed draws, if there is a plan.
    """

    suspicions: tuple[str, ...] = ()
    incomparable: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    from_weights: bool = False
    checked: bool = True
    drawn: bool = True


@dataclass(frozen=True)
class Findings:
    """What the verdict depends on, as yes-or-no answers.

    Args:
        usable: the measurement has no fault.
        unchanged: no answer of the model moved beyond noise (T0).
        sensitive: the audit could see membership before (T1).
        blind: there are never-trained images, and T1 did not pass: there was nothing to lose.
        targeted: the requested images lost more than the reference (T2).
        bounded: a targeted change of a quarter of the gap is ruled out (T2.bound and T2.share).
        residual: after, the requested images surely stand above non-members (T3 on any transforms, or T3.tail).
        above: after, they stand above at the ordinary level.
        overshoot: after, they stand below (T3, on any transforms).
        equivalent: after, they are within the margin of non-members, and the change is targeted, on every kind of
            transforms that was tried, with no less removed on the held-back ones (T4.transfer).
        standing_out: single requested images moved little and stand high.
        suspicious: the answers are such as no training gives.
        comparable: requested and never-trained images cannot be told apart without a model.
        checked: answers that no training gives would have been noticed, or could not have been given.
    """

    usable: bool = True
    unchanged: bool = False
    sensitive: bool = False
    blind: bool = False
    targeted: bool = False
    bounded: bool = False
    residual: bool = False
    above: bool = False
    overshoot: bool = False
    equivalent: bool = False
    standing_out: bool = False
    suspicious: bool = False
    comparable: bool = True
    checked: bool = True


def decide(findings: Findings) -> Verdict:
    """The verdict that the findings allow, the first that holds.

    >>> decide(Findings(sensitive=True)).value
    'INCONCLUSIVE'
    """
    if not findings.usable:
        return Verdict.INCONCLUSIVE
    if findings.unchanged and not findings.targeted:
        return Verdict.NO_MODEL_CHANGE
    if not findings.targeted:
        accused = findings.sensitive and findings.bounded and findings.comparable
        return Verdict.NO_TARGETED_CHANGE if accused else Verdict.INCONCLUSIVE
    if findings.blind:
        return Verdict.INCONCLUSIVE
    if not findings.comparable:
        return Verdict.RESIDUAL_UNDETERMINED
    if findings.residual:
        return Verdict.RESIDUAL_SIGNAL
    if findings.suspicious or findings.standing_out or findings.above:
        return Verdict.RESIDUAL_UNDETERMINED
    if findings.overshoot:
        return Verdict.OVERSHOOT
    best = findings.sensitive and findings.equivalent and findings.checked
    return Verdict.WITHIN_BAND if best else Verdict.RESIDUAL_UNDETERMINED


def run_tests(images: Sequence[ImageRow], *, circumstances: Circumstances | None = None, **how: Any) -> AuditResult:
    """Audit one owner: run T0 to T4 on the per-image table and give the verdict.

    Args:
        images: every image of every arm, one owner's.
        circumstances: what was found besides the table.
        how: plan, provenance, problems, audits, level, permutations, seed and details, as `run_tests_by_owner` takes
            them.

    Returns:
        The tests, effects, minimum detectable effects and the verdict.

    Raises:
        UserError: no image was requested, an image stands in two arms, or the table holds several owners.
    """
    owners = {row.owner for row in images if row.owner}
    if len(owners) > 1:
        raise UserError(f"The table holds the owners {', '.join(sorted(owners))}; audit them with run_tests_by_owner.")
    owner = next(iter(owners), "")
    known = {owner: circumstances or Circumstances()}
    return run_tests_by_owner([replace(row, owner=owner) for row in images], circumstances=known, **how)[owner]


def run_tests_by_owner(
    images: Sequence[ImageRow],
    *,
    plan_sha256: str | None = None,
    provenance: Mapping[Arm, str] | None = None,
    problems: Sequence[str] = (),
    circumstances: Mapping[str, Circumstances] | None = None,
    audits: int = 1,
    level: float = 0.05,
    permutations: int = 9_999,
    seed: int = 0,
    details: bool = True,
) -> dict[str, AuditResult]:
    """Audit every owner in the table; what credits or accuses is adjusted over owners by Benjamini-Yekutieli.

    Args:
        images: every image of every arm of every owner; a control without an owner serves all of them.
        plan_sha256: hash of the committed plan that `plan.check_plan` found the arms to follow, if there is one.
        provenance: where each arm's images come from, in the owner's words.
        problems: faults of the measurement, a sentence each ("The model after has collapsed."); any one makes the
            verdict INCONCLUSIVE.
        circumstances: owner to what was found besides the table.
        audits: how many audits of this request are planned, this one included; they share the error.
        level: level of the tests.
        permutations: Monte-Carlo draws, at least, where a full enumeration would exceed 20,000; so many owners that
            none could pass with them get more.
        seed: seed of those draws.
        details: whether intervals and permutation distributions are wanted; the verdict needs none.

    Returns:
        One result an owner, in alphabetical order.

    Raises:
        UserError: an owner has no requested image, or an image stands in two of one owner's arms.
    """
    shared = [row for row in images if not row.owner and row.arm is not Arm.REQUESTED]
    tables: dict[str, list[ImageRow]] = defaultdict(list)
    for row in images:
        if row.owner or row.arm is Arm.REQUESTED:
            tables[row.owner].append(row)
    owners = sorted(tables) or [""]
    arms = {owner: collect(tables[owner] + shared) for owner in owners}
    faults = {owner: [*problems, *of_owner.problems()] for owner, of_owner in arms.items()}
    measured = {
        owner: run_hypothesis_tests(
            arms[owner],
            level=level,
            permutations=enough_permutations(permutations, level, audits, len(owners)),
            seed=seed,
            owners=len(owners),
            audits=audits,
            details=details,
        )
        for owner in owners
        if not faults[owner]
    }
    if len(owners) > 1:
        measured = adjusted(measured)
    known = circumstances or {}
    stated: dict[str, Any] = {"plan_sha256": plan_sha256, "provenance": provenance}
    stated |= {"audits": audits, "level": level, "seed": seed}
    return {
        owner: _result(owner, arms[owner], faults[owner], measured.get(owner), known.get(owner), len(owners), **stated)
        for owner in owners
    }


def find(measured: HypothesisTests, circumstances: Circumstances | None = None, audits: int = 1) -> Findings:
    """Read the yes-or-no answers off the tests and the circumstances."""
    circumstances = circumstances or Circumstances()
    tests = measured.tests

    def passed(*names: str) -> bool:
        return all(name in tests and tests[name].passed for name in names)

    levels = [tests[name] for name in ("T3", "T4.T3") if passed(name)]
    transferred = passed("T4.T2", "T4.T3.equivalence") and not passed("T4.transfer")
    held_back = {"all": transferred, "some": False, "none": True}[measured.held_back]
    high = [test for test in levels if test.statistic > 0]
    surely = any((test.p_value or 1.0) / 2 <= RESIDUAL_LEVEL / audits for test in high)
    return Findings(
        unchanged=_unchanged(measured),
        sensitive=passed("T1"),
        blind="T1" in tests and not passed("T1"),
        targeted=passed("T2") and tests["T2"].statistic > TOLERANCE,  # rounding alone is no change
        bounded=passed("T2.bound", "T2.share"),
        residual=surely or passed("T3.tail"),
        above=bool(high),
        overshoot=any(test.statistic < 0 for test in levels),
        equivalent=passed("T3.equivalence") and held_back,
        standing_out=bool(measured.standing_out),
        suspicious=bool(circumstances.suspicions) or measured.risen,
        comparable=not circumstances.incomparable,
        checked=circumstances.checked or circumstances.from_weights,
    )


def _unchanged(measured: HypothesisTests) -> bool:
    """No cosine moved; or, against noise, no excess is seen and one as large as the noise itself is ruled out."""
    test = measured.tests.get("T0")
    if test is None or test.passed:
        return False
    if test.interval is None or measured.noise is None:
        return True
    return test.interval.high < max(measured.noise, TOLERANCE)


def _result(
    owner: str,
    arms: Arms,
    problems: Sequence[str],
    measured: HypothesisTests | None,
    circumstances: Circumstances | None,
    owners: int,
    *,
    plan_sha256: str | None,
    provenance: Mapping[Arm, str] | None,
    audits: int,
    level: float,
    seed: int,
) -> AuditResult:
    circumstances = circumstances or Circumstances()
    if measured is None:
        measured = _nothing(arms, level, owners)
        findings = Findings(usable=False)
    else:
        findings = find(measured, circumstances, audits)
    verdict = decide(findings)
    planned = plan_sha256 is not None
    suspicions = (*circumstances.suspicions, *([RISEN] if measured.risen else []))
    even = not planned or not findings.usable or _even(arms, seed)
    beside_members = measured.reference is not Arm.NEVER_TRAINED
    drawn = planned and circumstances.drawn and even
    basis = Basis(drawn, circumstances.from_weights, findings.suspicious, beside_members)
    return AuditResult(
        owner=owner,
        verdict=verdict,
        headline=headline(verdict, measured, basis),
        explanation=explain(verdict, findings.sensitive, arms, measured, problems, suspicions, findings.checked),
        meaning=meaning(verdict, basis),
        findings=(
            *suspicions,
            *suspicion_words(arms, measured),
            *circumstances.incomparable,
            *circumstances.remarks,
            *([] if even else [UNEVEN]),
        ),
        standing_out=measured.standing_out,
        reasons=(*problems, *reasons(measured)) or (NO_TEST,),
        assumptions=assumptions(arms, measured, planned),
        limits=limits(arms, measured),
        footer=closing(verdict, basis),
        arms=arms.summaries(planned=planned, provenance=provenance or {}),
        images=arms.measured,
        effects=measured.effects,
        tests=measured.tests,
        minimum_detectable_effects=measured.minimum_detectable_effects,
        margin=measured.margin,
        noise=measured.noise,
        multiplicity=multiplicity(owners),
        level=level / audits,
        seed=seed,
        plan_sha256=plan_sha256,
    )


def _even(arms: Arms, seed: int) -> bool:
    """Whether a plan's halves stood alike before: what is drawn by chance does."""
    if Arm.STILL_TRAINED not in arms:
        return True
    halves = TwoSample(arms.before(Arm.REQUESTED), arms.before(Arm.STILL_TRAINED), permutations=1_999, seed=seed)
    return bool(halves.p_value("two-sided") > EVEN_LEVEL)


def _nothing(arms: Arms, level: float, owners: int) -> HypothesisTests:
    """What an unusable measurement still says: how large an effect arms of this size would see."""
    unknown = {arm: [float("nan")] * max(1, arms.size(arm)) for arm in arms.rows}
    control = next((arm for arm in (Arm.STILL_TRAINED, Arm.NEVER_TRAINED) if arm in arms), None)
    test = "forgetting_score" if control is None else "T2"
    controls = None if control is None else unknown[control]
    effect = minimum_detectable_effect(test, unknown[Arm.REQUESTED], controls, level=level, owners=owners)
    return HypothesisTests({}, {}, (effect,), None, None, None, "none")
