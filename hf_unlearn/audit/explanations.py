"""The audit in plain words: explanation, reasons, assumptions and limits.

No sentence claims more than the tests show; three words that would are banned by a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from hf_unlearn.audit.arms import Arms
from hf_unlearn.audit.hypotheses import HypothesisTests
from hf_unlearn.audit.levels import MARGIN_SHARE, RESIDUAL_LEVEL
from hf_unlearn.errors import listed
from hf_unlearn.records.audit_result import Arm, Effect, Verdict

FEW = 20
"""Images of an arm below which a minority that holds all the memory is easily missed by an interval."""
_ARMS = {Arm.STILL_TRAINED: "your images still in training", Arm.NEVER_TRAINED: "images never in training"}


def explain(
    verdict: Verdict,
    sensitive: bool,
    arms: Arms,
    measured: HypothesisTests,
    problems: Sequence[str],
    suspicions: Sequence[str] = (),
    checked: bool = True,
) -> str:
    """The verdict in two or three plain sentences.

    Args:
        verdict: what was decided.
        sensitive: whether T1 found anything to see.
        arms: the images.
        measured: the tests and effects.
        problems: faults of the measurement.
        suspicions: answers that no training gives.
        checked: whether such answers would have been noticed, or could not have been given.
    """
    if verdict is Verdict.INCONCLUSIVE:
        return _why_inconclusive(sensitive, arms, measured, problems)
    if verdict is Verdict.NO_MODEL_CHANGE:
        noise = f" beyond the noise of repeating a query ({measured.noise:.2g})" if measured.noise else ""
        return (
            f"The two models answer all {len(arms.images())} images alike{noise}: nothing changed about these images."
        )
    assert measured.reference is not None  # every other verdict rests on T2 or on its bound
    reference = _ARMS[measured.reference]
    change = _number(measured.effects[f"difference_in_differences.{measured.reference}"])
    if verdict is Verdict.NO_TARGETED_CHANGE:
        return (
            "Before, the requested images stood above images never in training "
            f"({_number(measured.effects['gap_before'])}). The model has changed since, but not where it was asked to: "
            f"the requested images did not lose more alignment than {reference} ({change}), and a targeted loss of a "
            "quarter of that gap is ruled out. This rests on the images never in training being of the same source as "
            "the requested ones."
        )
    targeted = f"The requested images lost more alignment than {reference} ({change})."
    if measured.reference is Arm.NEVER_TRAINED:
        targeted += " Without images still in training, a general loss of what was memorised would look the same."
    if suspicions:
        return f"{targeted} But {suspicions[0][0].lower()}{suspicions[0][1:]}"
    return f"{targeted} {_level(verdict, measured, checked)}"


def _level(verdict: Verdict, measured: HypothesisTests, checked: bool) -> str:
    """Where the requested images stand after the change."""
    if verdict is Verdict.RESIDUAL_UNDETERMINED:
        why = _why_open(measured, checked)
        return f"Whether they are now at the level of images never in training is open: {why}."
    if verdict is Verdict.WITHIN_BAND:
        after = _number(measured.effects["gap_after"])
        return f"They are now at the level of images never in training, within half of the gap before ({after})."
    sign = 1 if verdict is Verdict.RESIDUAL_SIGNAL else -1
    shown = [
        name for name in ("T3", "T4.T3") if (t := measured.tests.get(name)) and t.passed and t.statistic * sign > 0
    ]
    if not shown:
        named = f": {listed(measured.standing_out, most=5)}" if measured.standing_out else ""
        return f"A part of them still stands above images never in training: a trace of them is left{named}."
    effect = "gap_after" if shown[0] == "T3" else "held_back.gap_after"
    place = "" if shown[0] == "T3" else ", on held-back transforms"
    where = f"images never in training{place} ({_number(measured.effects[effect])})"
    if verdict is Verdict.RESIDUAL_SIGNAL:
        return f"They still stand above {where}: a trace of them is left."
    return f"They now stand below {where}: they were pushed so far that they can be told apart again."


def _why_open(measured: HypothesisTests, checked: bool) -> str:
    """What keeps the level of the requested images open."""
    tests = measured.tests
    if "T3" not in tests:
        return "there are none to compare with"
    if measured.standing_out:
        count = len(measured.standing_out)
        return (
            f"{count} of them moved as little as images still in training and stand far above images never in "
            f"training: {listed(measured.standing_out, most=5)}"
        )
    if any(tests[name].passed and tests[name].statistic > 0 for name in ("T3", "T4.T3") if name in tests):
        return (
            "they stand above, but with these images not surely enough to call it a trace "
            f"(that takes p ≤ {2 * RESIDUAL_LEVEL:.1g}; {_number(measured.effects['gap_after'])})"
        )
    if measured.held_back == "some":
        return "only some images were measured on held-back transforms"
    if "T4.transfer" in tests and tests["T4.transfer"].passed:
        return "on held-back transforms they recover, as they would if the change were fitted to the audit's own views"
    within = [name for name in ("T3.equivalence", "T4.T3.equivalence") if name in tests]
    if not checked and measured.held_back != "some" and all(tests[name].passed for name in within):
        return (
            "with so few pictures a filter on the answers about them would not be noticed; add pictures to compare "
            "with (controls, or --decoys where both models can be asked), or audit the model's weights"
        )
    if tests["T3.equivalence"].passed and measured.held_back == "all":
        return "on held-back transforms the same could not be shown"
    return f"too uncertain to call ({_number(measured.effects['gap_after'])})"


def suspicion_words(arms: Arms, measured: HypothesisTests) -> tuple[str, ...]:
    """What single images have to tell: those that stand out, were not answered, or have a twin in another arm."""
    found = []
    if measured.standing_out:
        found.append(
            "Requested images that stand out, since they moved as little as images still in training and stand far "
            f"above images never in training: {listed(measured.standing_out, most=10)}."
        )
    for told, names_of in (
        ("Not answered, or not with finite numbers, so counted as remembered", arms.unusable),
        ("Left out, since a near-duplicate stands in another group", arms.twins),
    ):
        found += [
            f"{told} ({arm.value.replace('_', ' ')}): {listed(names, most=5)}."
            for arm, names in names_of.items()
            if names
        ]
    return tuple(found)


def _why_inconclusive(sensitive: bool, arms: Arms, measured: HypothesisTests, problems: Sequence[str]) -> str:
    """The first thing that stood in the way, and the smallest effect that could have been seen."""
    detectable = {effect.test: effect.words for effect in measured.minimum_detectable_effects}
    smallest = list(detectable.values())[-1]  # the effect of the main test stands last
    if problems:
        return f"The measurement cannot be used. {problems[0]} {smallest}"
    if Arm.STILL_TRAINED not in arms and Arm.NEVER_TRAINED not in arms:
        score = _number(measured.effects[f"forgetting_score.{Arm.REQUESTED}"])
        return (
            f"The forgetting score of the requested images is known ({score}), but without comparison images nothing "
            f"tells a change directed at them from a drift of the whole model. {smallest}"
        )
    if measured.reference is None:
        return f"With so few images no difference, however large, could be significant. {smallest}"
    if (test := measured.tests.get("T2")) is not None and test.passed:
        return (
            "The requested images lost more alignment than the images compared with, but before they did not stand "
            "clearly above images never in training, so there was nothing to lose that this audit can see. "
            f"{detectable['T1']}"
        )
    none_found = "No change directed at the requested images was found, but that does not show there was none:"
    if Arm.NEVER_TRAINED not in arms:
        why = "without images never in training it is unknown whether there was anything to see."
    elif not sensitive:
        why = f"before, they did not stand clearly above images never in training. {detectable['T1']}"
    else:
        why = "a quarter of the gap before is not ruled out."
    return f"{none_found} {why} {smallest}"


def reasons(measured: HypothesisTests) -> tuple[str, ...]:
    """What each test found, a sentence each, in order."""
    found = []
    for test in measured.tests.values():
        if test.p_value is None:
            found.append(f"{test.name}: {test.question} {'Yes' if test.passed else 'No'} (exact comparison).")
            continue
        answer = "Yes" if test.passed else "Not shown"
        adjusted = "" if test.p_adjusted is None else f", adjusted {test.p_adjusted:.2g}"
        how = "exact" if test.exact else f"{test.permutations - 1} random permutations"
        p_value = f"p = {test.p_value:.2g}{adjusted}"
        found.append(f"{test.name}: {test.question} {answer} (difference {test.statistic:+.4f}, {p_value}, {how}).")
    return tuple(found)


def assumptions(arms: Arms, measured: HypothesisTests, planned: bool) -> tuple[str, ...]:
    """What must hold for the verdict, a sentence each."""
    found = ["The images are independent of each other; the image is the unit, not its views."]
    if Arm.STILL_TRAINED in arms:
        found.append(
            "Which images to request was drawn at random and committed beforehand, so T2 holds whatever the model."
            if planned
            else "The requested images and those still in training are alike: they were chosen, not drawn by a plan."
        )
    if Arm.NEVER_TRAINED in arms:
        found.append(
            "The images never in training come from the same source as the requested ones; a difference of content "
            "between the two would read as membership."
        )
    if measured.reference is Arm.NEVER_TRAINED:
        found.append(
            "A change that is not directed at the requested images moves members and non-members alike; a general loss "
            "of what was memorised would read as targeted."
        )
    if measured.tests and "T0" not in measured.tests:
        found.append("The two models differ: the noise of repeating a query was not measured.")
    return tuple(found)


def limits(arms: Arms, measured: HypothesisTests) -> tuple[str, ...]:
    """What the audit could not see and does not say, a sentence each."""
    found = list(dict.fromkeys(effect.words for effect in measured.minimum_detectable_effects))
    if Arm.STILL_TRAINED not in arms and Arm.NEVER_TRAINED not in arms:
        found.append("A forgetting score above zero is no evidence of unlearning: a drift of the model gives one too.")
    if Arm.NEVER_TRAINED not in arms:
        found.append(
            "Without images never in training there is no level to compare with and no finding against a model."
        )
    if measured.held_back == "some":
        found.append("Only some images were measured on held-back transforms, so T4 was not run.")
    if measured.tests and measured.held_back == "none":
        found.append("No held-back transforms: a change fitted to the very views of this audit would not be noticed.")
    if any(effect.interval is None for effect in measured.effects.values()):
        found.append(
            "Where no interval is given, its assumption that one group's images are the other's, shifted, is "
            "visibly false."
        )
    elif measured.effects and min(arms.size(arm) for arm in arms.rows) < FEW:
        found.append(
            f"With fewer than {FEW} images in an arm, intervals can be too narrow where a few images hold all the "
            "memory."
        )
    found.append(
        f"Levels count as equal within {MARGIN_SHARE:.0%} of the gap before: a smaller rest can remain. Other images, "
        "other uses of the model and other copies of it were not looked at."
    )
    return tuple(found)


def _number(effect: Effect) -> str:
    """An estimate with its interval, an open end in words."""
    if effect.interval is None:
        return f"{effect.estimate:z.3f}, no interval, since the two groups spread differently"
    low, high = effect.interval.low, effect.interval.high
    if not isfinite(low) or not isfinite(high):
        return f"{effect.estimate:z.3f}, too few images for an interval"
    return f"{effect.estimate:z.3f}, {effect.interval.confidence:.0%} interval {low:z.3f} to {high:z.3f}"
