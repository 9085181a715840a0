"""The audit's main entry: from the per-image table to a verdict in plain words.

The rules err on the side of silence: a result that is not significant never accuses, a significant one credits only
what it shows, and the best verdict needs every test to agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from hf_unlearn.audit.arms import Arms, collect
from hf_unlearn.audit.explanations import FOOTER, assumptions, explain, limits, reasons
from hf_unlearn.audit.hypotheses import SHARE_LEVEL, Measurements, measure
from hf_unlearn.audit.power import level_of_one, minimum_detectable_effect
from hf_unlearn.audit.statistics import benjamini_yekutieli
from hf_unlearn.errors import UserError
from hf_unlearn.records.audit_result import Arm, AuditResult, ImageRow, TestResult, Verdict

_ONE_OWNER = "one owner: p-values are not adjusted"
_MANY_OWNERS = "Benjamini-Yekutieli over {} owners, test by test; verdicts read the adjusted p-values"


@dataclass(frozen=True)
class Findings:
    """What the verdict depends on, as yes-or-no answers.

    Args:
        usable: the measurement has no fault.
        unchanged: no answer of the model differs beyond noise (T0).
        sensitive: the audit could see membership before (T1).
        targeted: the requested images lost more than the reference (T2).
        bounded: a targeted change of a quarter of the gap is ruled out (T2.bound and T2.share).
        residual: after, the requested images stand above non-members (T3, on any transforms).
        overshoot: after, they stand below (T3, on any transforms).
        equivalent: after, they are within the margin of non-members, and the change is targeted, on every kind of
            transforms that was tried, with no less removed on the held-back ones (T4.transfer).
    """

    usable: bool = True
    unchanged: bool = False
    sensitive: bool = False
    targeted: bool = False
    bounded: bool = False
    residual: bool = False
    overshoot: bool = False
    equivalent: bool = False


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
        accused = findings.sensitive and findings.bounded
        return Verdict.NO_TARGETED_CHANGE if accused else Verdict.INCONCLUSIVE
    if findings.residual:
        return Verdict.RESIDUAL_SIGNAL
    if findings.overshoot:
        return Verdict.OVERSHOOT
    return Verdict.WITHIN_BAND if findings.sensitive and findings.equivalent else Verdict.RESIDUAL_UNDETERMINED


def run_tests(
    images: Sequence[ImageRow],
    *,
    plan_sha256: str | None = None,
    provenance: Mapping[Arm, str] | None = None,
    problems: Sequence[str] = (),
    level: float = 0.05,
    permutations: int = 9_999,
    seed: int = 0,
) -> AuditResult:
    """Audit one owner: run T0 to T4 on the per-image table and give the verdict.

    Args:
        images: every image of every arm, one owner's.
        plan_sha256: hash of the committed plan that `plan.check_plan` found the arms to follow, if there is one.
        provenance: where each arm's images come from, in the owner's words.
        problems: faults of the measurement, a sentence each ("The encoder after answers 512 numbers, before 768."); any
            one makes the verdict INCONCLUSIVE.
        level: level of the tests.
        permutations: Monte-Carlo draws where a full enumeration would exceed 20,000.
        seed: seed of those draws.

    Returns:
        The tests, effects, minimum detectable effects and the verdict.

    Raises:
        UserError: no image was requested, an image stands in two arms, or the table holds several owners.
    """
    owners = {row.owner for row in images if row.owner}
    if len(owners) > 1:
        raise UserError(f"The table holds the owners {', '.join(sorted(owners))}; audit them with run_tests_by_owner.")
    owner = next(iter(owners), "")
    table = [replace(row, owner=owner) for row in images]
    settings = _Settings(plan_sha256, provenance or {}, tuple(problems), level, permutations, seed)
    return _audit({owner: table}, settings)[owner]


def run_tests_by_owner(
    images: Sequence[ImageRow],
    *,
    plan_sha256: str | None = None,
    provenance: Mapping[Arm, str] | None = None,
    problems: Sequence[str] = (),
    level: float = 0.05,
    permutations: int = 9_999,
    seed: int = 0,
) -> dict[str, AuditResult]:
    """Audit every owner in the table, adjusting each test's p-values over owners by Benjamini-Yekutieli.

    Args:
        images: every image of every arm of every owner; a control without an owner serves all of them.
        plan_sha256, provenance, problems, level, seed: as in `run_tests`.
        permutations: Monte-Carlo draws at least; so many owners that none could pass with them get more.

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
    settings = _Settings(plan_sha256, provenance or {}, tuple(problems), level, permutations, seed)
    return _audit({owner: tables[owner] + (shared if owner else []) for owner in sorted(tables)}, settings)


@dataclass(frozen=True)
class _Settings:
    plan_sha256: str | None
    provenance: Mapping[Arm, str]
    problems: tuple[str, ...]
    level: float
    permutations: int
    seed: int


def _audit(tables: Mapping[str, Sequence[ImageRow]], settings: _Settings) -> dict[str, AuditResult]:
    """Measure every owner, adjust over owners, then decide for each."""
    arms = {owner: collect(rows) for owner, rows in tables.items()}
    problems = {owner: [*settings.problems, *of_owner.problems()] for owner, of_owner in arms.items()}
    permutations = _enough_permutations(settings, len(tables))
    measured = {
        owner: measure(
            arms[owner], level=settings.level, permutations=permutations, seed=settings.seed, owners=len(tables)
        )
        for owner in arms
        if not problems[owner]
    }
    if len(tables) > 1:
        measured = _adjust(measured)
    return {
        owner: _result(owner, arms[owner], problems[owner], measured.get(owner), len(tables), settings)
        for owner in tables
    }


def _enough_permutations(settings: _Settings, owners: int) -> int:
    """Draws with which one owner's p-value can pass every test although no other owner's does."""
    if owners == 1:
        return settings.permutations
    return max(settings.permutations, ceil(1 / level_of_one(min(settings.level, SHARE_LEVEL), owners)))


def _adjust(measured: Mapping[str, Measurements]) -> dict[str, Measurements]:
    """Replace each test by itself with its p-value adjusted over the owners that have it."""
    adjusted: dict[str, dict[str, TestResult]] = {owner: dict(found.tests) for owner, found in measured.items()}
    for name in sorted({name for tests in adjusted.values() for name in tests}):
        family = {owner: test for owner, tests in adjusted.items() if (test := tests.get(name)) and test.p_value}
        if not family:
            continue
        p_values = benjamini_yekutieli([test.p_value or 1.0 for test in family.values()])
        for (owner, test), p_value in zip(family.items(), p_values.tolist(), strict=True):
            adjusted[owner][name] = replace(test, p_adjusted=p_value, passed=p_value <= test.level)
    return {owner: replace(found, tests=adjusted[owner]) for owner, found in measured.items()}


def find(measured: Measurements) -> Findings:
    """Read the yes-or-no answers off the tests."""
    tests = measured.tests

    def passed(*names: str) -> bool:
        return all(name in tests and tests[name].passed for name in names)

    levels = [tests[name] for name in ("T3", "T4.T3") if passed(name)]
    transferred = passed("T4.T2", "T4.T3.equivalence") and not passed("T4.transfer")
    held_back = {"all": transferred, "some": False, "none": True}[measured.held_back]
    return Findings(
        unchanged=_unchanged(measured),
        sensitive=passed("T1"),
        targeted=passed("T2"),
        bounded=passed("T2.bound", "T2.share"),
        residual=any(test.statistic > 0 for test in levels),
        overshoot=any(test.statistic < 0 for test in levels),
        equivalent=passed("T3.equivalence") and held_back,
    )


def _unchanged(measured: Measurements) -> bool:
    """No number differs; or, against noise, no excess is seen and one as large as the noise itself is ruled out."""
    test = measured.tests.get("T0")
    if test is None or test.passed:
        return False
    if test.interval is None or measured.noise is None:
        return True
    return test.interval.high < measured.noise


def _result(
    owner: str,
    arms: Arms,
    problems: Sequence[str],
    measured: Measurements | None,
    owners: int,
    settings: _Settings,
) -> AuditResult:
    if measured is None:
        measured = _nothing(arms, settings.level, owners)
        findings = Findings(usable=False)
    else:
        findings = find(measured)
    verdict = decide(findings)
    planned = settings.plan_sha256 is not None
    return AuditResult(
        owner=owner,
        verdict=verdict,
        explanation=explain(verdict, findings.sensitive, arms, measured, problems),
        reasons=(*problems, *reasons(measured)),
        assumptions=assumptions(arms, measured, planned),
        limits=limits(arms, measured),
        footer=FOOTER,
        arms=arms.summaries(planned=planned, provenance=settings.provenance),
        images=arms.images(),
        effects=measured.effects,
        tests=measured.tests,
        minimum_detectable_effects=measured.minimum_detectable_effects,
        margin=measured.margin,
        noise=measured.noise,
        multiplicity=_MANY_OWNERS.format(owners) if owners > 1 else _ONE_OWNER,
        level=settings.level,
        seed=settings.seed,
        plan_sha256=settings.plan_sha256,
    )


def _nothing(arms: Arms, level: float, owners: int) -> Measurements:
    """What an unusable measurement still says: how large an effect arms of this size would see."""
    unknown = {arm: [float("nan")] * arms.size(arm) for arm in arms.rows}
    control = next((arm for arm in (Arm.STILL_TRAINED, Arm.NEVER_TRAINED) if arm in arms), None)
    test = "forgetting_score" if control is None else "T2"
    controls = None if control is None else unknown[control]
    effect = minimum_detectable_effect(test, unknown[Arm.REQUESTED], controls, level=level, owners=owners)
    return Measurements({}, {}, (effect,), None, None, None, "none")
