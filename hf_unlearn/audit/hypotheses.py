"""The audit's tests T0 to T4 on the three arms, with their effects and what they could have seen.

With `a` the alignment of an image and `FS = a_before - a_after`:

    T0  identity             did any cosine move, beyond a tolerance and the noise of repeating one query?
    T1  sensitivity          before: U above C
    T2  targeted change      FS_U - FS_R > 0 (without R: FS_U - FS_C)
        T2.bound             FS_U - FS_R < gap / 4, where gap = U - C before
        T2.share             FS_U - FS_C < gap / 4, allowing for the error of the gap itself
    T3  level                after: U against C, two-sided
        T3.tail              after: the upper tail of U above that of C
        T3.equivalence       after: |U - C| < gap / 2
    T4                       T2 and T3 on held-back transforms
        T4.transfer          after: held-back alignment minus the audited one, U - C > gap / 10
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hf_unlearn.audit.arms import Arms
from hf_unlearn.audit.levels import (
    BOUND_SHARE,
    MARGIN_SHARE,
    RESIDUAL_LEVEL,
    SHARE_LEVEL,
    TOLERANCE,
    TRANSFER_LEVEL,
    TRANSFER_SHARE,
)
from hf_unlearn.audit.power import minimum_detectable_effect
from hf_unlearn.audit.standing_out import risen, standing_out, tail_scores
from hf_unlearn.audit.statistics import Alternative, Floats, OneSample, PermutationTest, TwoSample, smallest_p_value
from hf_unlearn.records.audit_result import Arm, Effect, Histogram, Interval, MinimumDetectableEffect, TestResult

_ORDER = (
    *("T0", "T1", "T2", "T2.bound", "T2.share", "T3", "T3.tail", "T3.equivalence"),
    *("T4.T2", "T4.T3", "T4.T3.equivalence", "T4.transfer"),
)
_BINS = 40
_WORDS = {arm: "requested images" if arm is Arm.REQUESTED else f"images {arm.words}" for arm in Arm}


@dataclass(frozen=True)
class HypothesisTests:
    """What `run_hypothesis_tests` finds; the verdict reads nothing else.

    Args:
        tests: by name.
        effects: by name.
        minimum_detectable_effects: of T1 and T2, or of the forgetting score where there is no control.
        reference: the arm that T2 compares with; None without a usable one.
        margin: equivalence margin of T3; None without never-trained images.
        noise: mean distance between identical queries; None if not measured.
        held_back: "all" images were measured on held-back transforms, "some" or "none".
        standing_out: requested images that moved little and stand high, the highest first.
        risen: the controls rose to the requested images, which themselves fell by less than half of the gap.
    """

    tests: dict[str, TestResult]
    effects: dict[str, Effect]
    minimum_detectable_effects: tuple[MinimumDetectableEffect, ...]
    reference: Arm | None
    margin: float | None
    noise: float | None
    held_back: str
    standing_out: tuple[str, ...] = ()
    risen: bool = False


def run_hypothesis_tests(
    arms: Arms, *, level: float, permutations: int, seed: int, owners: int = 1, audits: int = 1, details: bool = True
) -> HypothesisTests:
    """Run every test the arms allow.

    Args:
        arms: usable arms (`arms.problems()` is empty).
        level: level of each test, before `audits` share it.
        permutations: Monte-Carlo draws where enumeration is too long.
        seed: their seed.
        owners: how many owners the p-values will be adjusted over, for the minimum detectable effects.
        audits: how many audits are planned of the same request. What credits or accuses is tested at a share of its
            level each, so that all of them together keep it; what only bars the best verdict is not.
        details: whether intervals and permutation distributions are wanted; the verdict needs none.

    Returns:
        Tests, effects and minimum detectable effects.
    """
    reference = choose_reference(arms, level / audits)
    rows = arms.images()
    measured = [row.held_back_before is not None and row.held_back_after is not None for row in rows]
    held_back = "all" if all(measured) else "some" if any(measured) else "none"

    bench = _Bench(arms, level / audits, level, audits, permutations, seed, details)
    noise = bench.identity()
    for arm in arms.rows:
        bench.forgetting(arm)
    margin = bench.before_and_after(reference, held_back=False)
    if held_back == "all":
        bench.before_and_after(reference, held_back=True)
        bench.transfer(margin)
    tests = {name: bench.tests[name] for name in _ORDER if name in bench.tests}
    detectable = _detectable(arms, reference, level / audits, owners)
    changed = margin is not None and "T2" in tests and tests["T1"].passed and tests["T2"].passed
    gap = margin / MARGIN_SHARE if changed and margin is not None else 0.0
    flagged, up = standing_out(arms, gap), risen(arms, gap)
    return HypothesisTests(tests, bench.effects, detectable, reference, margin, noise, held_back, flagged, up)


def choose_reference(arms: Arms, level: float) -> Arm | None:
    """The comparison arm of T2: R, else C; an arm too small for any data to reach the level is passed over."""
    for arm in (Arm.STILL_TRAINED, Arm.NEVER_TRAINED):
        if arm in arms and smallest_p_value(arms.size(Arm.REQUESTED), arms.size(arm)) <= level:
            return arm
    return None


@dataclass
class _Bench:
    """Collects tests and effects of one owner."""

    arms: Arms
    level: float
    barring_level: float
    audits: int
    permutations: int
    seed: int
    details: bool
    tests: dict[str, TestResult] = field(default_factory=dict)
    effects: dict[str, Effect] = field(default_factory=dict)

    def identity(self) -> float | None:
        """T0; returns the mean noise, if measured.

        Each image's cosines must have moved beyond the tolerance and their own noise: a sign-flip test of the excess
        where there is noise, a plain comparison where there is none. A change seen without knowing the noise answers
        nothing, and there is no T0.
        """
        rows = self.arms.images()
        noises = [row.noise for row in rows if row.noise is not None]
        noise = float(np.mean(noises)) if len(noises) == len(rows) else None
        # Distance between the two models' answers; without embeddings, how far the alignment moved.
        change = np.array([abs(row.forgetting_score) if row.change is None else row.change for row in rows])
        question = "Did the model's answers move, beyond rounding and the noise of repeating the same query?"
        beyond, everyone = change > TOLERANCE, tuple(self.arms.rows)
        if not beyond.any() or noise == 0:
            self.tests["T0"] = TestResult(
                name="T0",
                question=question,
                arms=everyone,
                sizes=self._sizes(*everyone),
                statistic=float(change.mean()),
                alternative="greater",
                p_value=None,
                level=self.level,
                passed=bool(beyond.any()),
                exact=True,
                permutations=1,
                shift=TOLERANCE,
            )
        elif noise is not None and all(row.change is not None for row in rows):
            test = self._one(change - np.array(noises))
            p_value = test.p_value("greater", TOLERANCE)
            self._add("T0", question, everyone, test, "greater", p_value, shift=TOLERANCE, confidence=0.9)
        return noise

    def forgetting(self, arm: Arm) -> None:
        """The forgetting score of one arm, an effect without a test: a drift of the whole model moves it too."""
        scores = self.arms.before(arm) - self.arms.after(arm)
        self._effect(f"forgetting_score.{arm}", self._one(scores), (len(scores),), f"forgetting score of {_WORDS[arm]}")

    def before_and_after(self, reference: Arm | None, *, held_back: bool) -> float | None:
        """T1 to T3, or T4 on held-back transforms; returns the equivalence margin."""
        prefix, place = ("held_back.", " on held-back transforms") if held_back else ("", "")
        t2, t3 = ("T4.T2", "T4.T3") if held_back else ("T2", "T3")
        requested = Arm.REQUESTED
        before = {arm: self.arms.before(arm, held_back=held_back) for arm in self.arms.rows}
        after = {arm: self.arms.after(arm, held_back=held_back) for arm in self.arms.rows}
        scores = {arm: before[arm] - after[arm] for arm in before}

        differences = {arm: self._two(scores[requested], scores[arm]) for arm in before if arm is not requested}
        for arm, test in differences.items():
            words = f"forgetting score of requested images minus that of {_WORDS[arm]}{place}"
            self._effect(f"{prefix}difference_in_differences.{arm}", test, self._sizes(requested, arm), words)
        if reference is not None:
            question = f"Did the requested images lose more alignment than {_WORDS[reference]}{place}?"
            test = differences[reference]
            self._add(t2, question, (requested, reference), test, "greater", test.p_value("greater"))
        if Arm.NEVER_TRAINED not in self.arms:
            return None

        control = Arm.NEVER_TRAINED
        pair, sizes = (requested, control), self._sizes(requested, control)
        gap, level = self._two(before[requested], before[control]), self._two(after[requested], after[control])
        above = "requested images minus images never in training"
        self._effect(f"{prefix}gap_before", gap, sizes, f"alignment before, {above}{place}")
        self._effect(f"{prefix}gap_after", level, sizes, f"alignment after, {above}{place}")
        margin = MARGIN_SHARE * float(gap.estimate)
        if not held_back:
            words = "Before, did the requested images stand above images never in training?"
            self._add("T1", words, pair, gap, "greater", gap.p_value("greater"))
            if reference is not None:
                self._bounds(differences[reference], reference, float(gap.estimate), before, after)

        question = f"After, do the requested images differ in level from images never in training{place}?"
        two_sided = level.p_value("two-sided")
        self._add(t3, question, pair, level, "two-sided", two_sided, level=self.barring_level)
        if not held_back:
            tail = self._two(*tail_scores(after[requested], after[control]))
            words = "After, do the highest requested images stand above the highest never in training?"
            self._add(
                "T3.tail", words, pair, tail, "greater", tail.p_value("greater"), level=RESIDUAL_LEVEL / self.audits
            )
        question = f"After, is that difference within half of the gap before{place}?"
        inside = np.maximum(level.p_value("less", margin), level.p_value("greater", -margin)) if margin > 0 else 1.0
        self._add(f"{t3}.equivalence", question, pair, level, "equivalence", inside, shift=margin, confidence=0.9)
        return margin

    def transfer(self, margin: float | None) -> None:
        """Is less removed on held-back transforms than on audited ones? The mark of a change fitted to the audit.

        The image's own level cancels, so this sees what the two levels apart would not. Images whose removal is real
        are like those never in training on every kind of transforms, and then the test is exact.
        """
        if margin is None:
            return
        pair = (Arm.REQUESTED, Arm.NEVER_TRAINED)
        excess = [self.arms.after(arm, held_back=True) - self.arms.after(arm) for arm in pair]
        test = self._two(*excess)
        share = max(0.0, margin / MARGIN_SHARE * TRANSFER_SHARE)
        question = "After, do the requested images recover a tenth of the gap before on held-back transforms?"
        p_value = test.p_value("greater", share)
        self._add("T4.transfer", question, pair, test, "greater", p_value, level=TRANSFER_LEVEL, shift=share)

    def _bounds(
        self, test: TwoSample, reference: Arm, gap: float, before: dict[Arm, Floats], after: dict[Arm, Floats]
    ) -> None:
        """The two conditions of an accusation besides T1."""
        requested, control, bound = Arm.REQUESTED, Arm.NEVER_TRAINED, BOUND_SHARE * gap
        question = "Is the targeted change below a quarter of the gap before (upper 95% bound)?"
        p_value = test.p_value("less", bound) if gap > 0 else 1.0
        self._add("T2.bound", question, (requested, reference), test, "less", p_value, shift=bound, confidence=0.9)
        # FS - a_before / 4 of each image: its mean difference U - C is the targeted change minus a quarter of the gap.
        rest = {arm: (1 - BOUND_SHARE) * before[arm] - after[arm] for arm in (requested, control)}
        share = self._two(rest[requested], rest[control])
        question = "Is it still below, allowing for the error of the gap itself (against images never in training)?"
        p_value = share.p_value("less")
        self._add("T2.share", question, (requested, control), share, "less", p_value, level=SHARE_LEVEL / self.audits)

    def _one(self, values: Floats) -> OneSample:
        return OneSample(values, permutations=self.permutations, seed=self.seed)

    def _two(self, treated: Floats, control: Floats) -> TwoSample:
        return TwoSample(treated, control, permutations=self.permutations, seed=self.seed)

    def _sizes(self, *arms: Arm) -> tuple[int, ...]:
        return tuple(self.arms.size(arm) for arm in arms)

    def _effect(self, name: str, test: PermutationTest, sizes: tuple[int, ...], words: str) -> None:
        interval = _interval(test, 0.95) if self.details and not test.shift_is_false() else None
        self.effects[name] = Effect(name, float(test.estimate), interval, sizes, words)

    def _add(
        self,
        name: str,
        question: str,
        arms: tuple[Arm, ...],
        test: PermutationTest,
        alternative: Alternative | Literal["equivalence"],
        p_value: float | Floats,
        *,
        level: float | None = None,
        shift: float = 0.0,
        confidence: float = 0.95,
    ) -> None:
        level = self.level if level is None else level
        self.tests[name] = TestResult(
            name=name,
            question=question,
            arms=arms,
            sizes=self._sizes(*arms),
            statistic=float(test.estimate),
            alternative=alternative,
            p_value=float(p_value),
            level=level,
            passed=bool(p_value <= level),
            exact=test.exact,
            permutations=test.permutations,
            shift=shift,
            interval=_interval(test, confidence) if self.details or name == "T0" else None,
            null=_histogram(test.null()) if self.details else None,
        )


def _interval(test: PermutationTest, confidence: float) -> Interval:
    low, high = test.interval(confidence)
    return Interval(float(low), float(high), confidence)


def _histogram(values: Floats) -> Histogram:
    counts, edges = np.histogram(values, bins=_BINS)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def _detectable(arms: Arms, reference: Arm | None, level: float, owners: int) -> tuple[MinimumDetectableEffect, ...]:
    """Minimum detectable effects of T1 and T2 against every control there is; of the forgetting score without any."""
    before = {arm: arms.before(arm) for arm in arms.rows}
    scores = {arm: before[arm] - arms.after(arm) for arm in before}
    requested = scores[Arm.REQUESTED]
    compared = reference or next((arm for arm in (Arm.STILL_TRAINED, Arm.NEVER_TRAINED) if arm in arms), None)
    if compared is None:
        return (minimum_detectable_effect("forgetting_score", requested, level=level, owners=owners),)
    found = [minimum_detectable_effect("T2", requested, scores[compared], level=level, owners=owners)]
    if Arm.NEVER_TRAINED in arms:
        gap = minimum_detectable_effect(
            "T1", before[Arm.REQUESTED], before[Arm.NEVER_TRAINED], level=level, owners=owners
        )
        found.insert(0, gap)
    return tuple(found)
