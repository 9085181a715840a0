"""What an audit finds, as frozen records that travel through JSON unchanged.

One record a thing: the per-image table (`ImageRow`), an arm (`ArmSummary`), an effect with its interval (`Effect`), a
test (`TestResult`), what the audit could have seen (`MinimumDetectableEffect`) and the whole (`AuditResult`). Nothing
here computes anything; `hf_unlearn.audit.verdict.run_tests` fills them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from hf_unlearn.parsing import Fields
from hf_unlearn.records.codec import decode, encode

SCHEMA = 1

ENOUGH = 0.9  # share of redraws of the views that must give the same verdict; below it more views are asked for


class Arm(StrEnum):
    """The three groups of images an audit compares."""

    REQUESTED = "requested"
    """U: the images whose removal was requested."""
    STILL_TRAINED = "still_trained"
    """R: images of the same owner that stay in training."""
    NEVER_TRAINED = "never_trained"
    """C: images of the same source that never were in training."""

    @property
    def words(self) -> str:
        """As readers know it: requested, still in training, or never in training."""
        return self.value.replace("trained", "in training").replace("_", " ")


class Verdict(StrEnum):
    """The seven answers an audit can give; the value is the headline as printed."""

    NO_MODEL_CHANGE = "NO MODEL CHANGE"
    NO_TARGETED_CHANGE = "NO TARGETED CHANGE DESPITE PRIOR SIGNAL"
    RESIDUAL_SIGNAL = "TARGETED CHANGE · RESIDUAL SIGNAL"
    RESIDUAL_UNDETERMINED = "TARGETED CHANGE · RESIDUAL UNDETERMINED"
    WITHIN_BAND = "TARGETED CHANGE · WITHIN NON-MEMBER BAND"
    OVERSHOOT = "TARGETED CHANGE · OVERSHOOT"
    INCONCLUSIVE = "INCONCLUSIVE"

    @property
    def slug(self) -> str:
        """The verdict as a command-line word, such as `no-model-change`."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True)
class ImageRow:
    """One image of the owner, as both models see it.

    Args:
        image: name shown to the owner.
        sha256: hash of the image's bytes; rows that share it are one image (copies, or one with several captions).
        arm: the group the image belongs to.
        before: alignment (mean cosine over its views or captions) under the model before, in [-1, 1].
        after: the same under the model after, with the same views.
        held_back_before: alignment before on transforms kept back from the main measurement (T4), if measured.
        held_back_after: the same after.
        change: how far the cosines between this image's embeddings and those of all images moved from one model to the
            other (root mean square, at least 0): no rotation, scale or added dimension of the embeddings moves it (T0).
        noise: the same between two identical queries to ONE model; 0 for local weights, None if not measured.
        owner: whose image it is; an empty owner on a control arm serves every owner.
        cluster: what it has in common with its near-duplicates (copies, one scene): they count as one image; empty for
            an image of its own.
    """

    image: str
    sha256: str
    arm: Arm
    before: float
    after: float
    held_back_before: float | None = None
    held_back_after: float | None = None
    change: float | None = None
    noise: float | None = None
    owner: str = ""
    cluster: str = ""

    DERIVED: ClassVar = ("forgetting_score",)

    @property
    def forgetting_score(self) -> float:
        """Alignment before minus alignment after (paper, Eq. 2, for one image)."""
        return self.before - self.after


@dataclass(frozen=True)
class Interval:
    """A confidence interval; an end that the data cannot bound is infinite."""

    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Effect:
    """A quantity on the cosine scale with its interval, such as the forgetting score of one arm.

    Args:
        name: one of `forgetting_score.<arm>`, `gap_before`, `gap_after`, `difference_in_differences.<arm>`; measured on
            held-back transforms, `held_back.` stands before it.
        estimate: the mean or the difference of means.
        interval: 95% interval by inversion of the permutation test; None where its assumption, that all images of an
            arm moved about alike, is visibly false.
        sizes: number of images on each side (one number for a mean).
        words: what it is, for a reader.
    """

    name: str
    estimate: float
    interval: Interval | None
    sizes: tuple[int, ...]
    words: str


@dataclass(frozen=True)
class Histogram:
    """A permutation distribution, binned for a plot: `counts[i]` values lie between `edges[i]` and `edges[i + 1]`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class TestResult:
    """One test of the audit.

    Args:
        name: `T0`, `T1`, `T2`, `T2.bound`, `T2.share`, `T3`, `T3.tail`, `T3.equivalence`, and for held-back transforms
            `T4.T2`, `T4.T3`, `T4.T3.equivalence`, `T4.transfer`.
        question: what it asks, for a reader.
        arms: the arms compared, treated first.
        sizes: number of images in each.
        statistic: the observed difference of means (cosine scale).
        alternative: "greater", "less", "two-sided", or "equivalence".
        p_value: p-value; None where the exact comparison of deterministic outputs needs none.
        p_adjusted: p-value after Benjamini-Yekutieli over owners; None for a single owner, and for a test whose
            rejection protects the data owner.
        level: the level at which it is read.
        passed: whether it rejects its null hypothesis at that level (after adjustment, where adjusted).
        exact: True if every permutation was enumerated.
        permutations: how many were used.
        shift: the value of the difference under the null hypothesis (0, or the margin).
        interval: the interval that this test inverts to, if it has one.
        null: the permutation distribution of the statistic.
    """

    __test__ = False  # pytest: not a test class

    name: str
    question: str
    arms: tuple[Arm, ...]
    sizes: tuple[int, ...]
    statistic: float
    alternative: str
    p_value: float | None
    level: float
    passed: bool
    exact: bool
    permutations: int
    shift: float = 0.0
    interval: Interval | None = None
    p_adjusted: float | None = None
    null: Histogram | None = None


@dataclass(frozen=True)
class MinimumDetectableEffect:
    """The smallest true effect that a test of this size finds with the stated power.

    Args:
        test: the test it belongs to (`T1`, `T2`), or `forgetting_score` for a lone arm.
        sizes: number of images on each side.
        standardised: Cohen's d; infinite if no effect, however large, could be found.
        cosine: the same on the cosine scale (d times the pooled standard deviation); None if that is not defined.
        pooled_std: that standard deviation; None if not defined.
        level: one-sided level; with several owners, what the adjustment leaves to one of them at worst.
        power: power at that effect.
        curve: points (effect on the cosine scale, power) for the power plot; empty if not defined.
        words: the same as one sentence.
    """

    test: str
    sizes: tuple[int, ...]
    standardised: float
    cosine: float | None
    pooled_std: float | None
    level: float
    power: float
    curve: tuple[tuple[float, float], ...]
    words: str


@dataclass(frozen=True)
class ArmSummary:
    """One arm and where it comes from.

    Args:
        arm: which.
        size: images that count: near-duplicates are one, and twins of another arm are left out.
        drawn: "plan" (randomised and committed beforehand) or "chosen" (by the owner).
        provenance: the owner's words on where the images come from.
        collapsed: names of rows folded into another row because the image is the same.
        unusable: names of images without an answer, or one that is not finite; they count as remembered.
        twins: names of images left out because a near-duplicate stands in another arm.
    """

    arm: Arm
    size: int
    drawn: str
    provenance: str
    collapsed: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()
    twins: tuple[str, ...] = ()


@dataclass(frozen=True)
class AuditResult:
    """Everything statistical about the audit of one owner.

    Args:
        owner: whose images; empty for the only owner.
        verdict: the verdict.
        headline: the first line: did the model change about these images, and how sure is that.
        explanation: the verdict in two or three plain sentences.
        meaning: what the verdict means for a removal request.
        findings: what a reader must know before trusting it (answers that no training gives, twins, images that stand
            out, arms that can be told apart without a model), a sentence each.
        standing_out: requested images that moved as little as images still in training, the furthest first.
        stability: share of redraws of the views that give the same verdict; None where views cannot be redrawn.
        reasons: the findings that led to it, one sentence each, in order.
        assumptions: what must hold for it.
        limits: what it cannot say.
        footer: what the verdict does not mean; every verdict has its own.
        arms: the arms.
        images: the per-image table, as it was tested (one row an image).
        effects: quantities with intervals, by name.
        tests: tests, by name.
        minimum_detectable_effects: what could have been seen.
        margin: half the gap before (cosine scale), the equivalence margin of T3; None without a gap.
        noise: mean distance between two identical queries; None if never measured.
        multiplicity: the rule used over owners.
        level: the level of the tests.
        seed: seed of the Monte-Carlo permutations.
        plan_sha256: the committed plan the arms were checked against; None without one.
    """

    verdict: Verdict
    explanation: str
    reasons: tuple[str, ...]
    assumptions: tuple[str, ...]
    limits: tuple[str, ...]
    footer: str
    arms: tuple[ArmSummary, ...]
    images: tuple[ImageRow, ...]
    effects: dict[str, Effect]
    tests: dict[str, TestResult]
    minimum_detectable_effects: tuple[MinimumDetectableEffect, ...]
    margin: float | None
    noise: float | None
    multiplicity: str
    level: float
    seed: int
    owner: str = ""
    plan_sha256: str | None = None
    headline: str = ""
    meaning: str = ""
    findings: tuple[str, ...] = ()
    standing_out: tuple[str, ...] = ()
    stability: float | None = None
    schema: int = field(default=SCHEMA)

    @property
    def unsteady(self) -> bool:
        """Whether the verdict hangs on which views were drawn, as far as that can be told."""
        return self.stability is not None and self.stability < ENOUGH

    @property
    def stability_words(self) -> str:
        """What the choice of views leaves open."""
        if self.stability is None:
            return "How far the verdict hangs on the views that were drawn was not measured."
        share = f"{self.stability:.0%} of redraws of the views give this verdict"
        return f"Only {share}: read it as undecided between neighbouring verdicts." if self.unsteady else f"{share}."

    def to_dict(self) -> dict[str, object]:
        """The result as strict JSON values; numbers that JSON lacks become the strings "inf", "-inf" and "nan"."""
        return encode(self, words=True)

    @classmethod
    def from_dict(cls, data: Fields) -> AuditResult:
        """The inverse of `to_dict`.

        Raises:
            UserError: A field is unknown, missing or of another type.
        """
        return decode(cls, data, "the audit's result", words=True)
