import json
import math

import pytest

from hf_unlearn.records.audit_result import (
    Arm,
    ArmSummary,
    AuditResult,
    Effect,
    Histogram,
    ImageRow,
    Interval,
    MinimumDetectableEffect,
    TestResult,
    Verdict,
)


def example() -> AuditResult:
    row = ImageRow("cat.png", "ab", Arm.REQUESTED, 0.9, 0.25, held_back_before=0.8, change=0, owner="ada")
    interval = Interval(-math.inf, 1.0, 0.95)
    test = TestResult(
        *("T2", "Did it?", (Arm.REQUESTED, Arm.STILL_TRAINED), (1, 1), 0.1, "greater", 0.5, 0.05, False, True, 2),
        interval=interval,
        null=Histogram((-0.1, 0.1), (2,)),
    )
    return AuditResult(
        verdict=Verdict.RESIDUAL_UNDETERMINED,
        explanation="e",
        reasons=("r",),
        assumptions=("a", "b"),
        limits=(),
        footer="f",
        arms=(ArmSummary(Arm.REQUESTED, 1, "plan", "my camera", ("copy.png",)),),
        images=(row,),
        effects={"gap_before": Effect("gap_before", 0.1, interval, (1, 1), "w")},
        tests={"T2": test},
        minimum_detectable_effects=(
            MinimumDetectableEffect("T2", (1, 1), math.inf, None, None, 0.05, 0.8, ((0.0, 0.05),), "w"),
        ),
        margin=None,
        noise=0.0,
        multiplicity="one owner",
        level=0.05,
        seed=3,
        owner="ada",
    )


def test_a_result_survives_strict_json() -> None:
    result = example()
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert AuditResult.from_dict(json.loads(text)) == result


def test_json_holds_plain_values_and_the_forgetting_score() -> None:
    data = example().to_dict()
    assert data["verdict"] == "TARGETED CHANGE · RESIDUAL UNDETERMINED"
    assert data["images"][0]["forgetting_score"] == pytest.approx(0.65)
    assert data["images"][0]["arm"] == "requested"
    assert data["tests"]["T2"]["interval"]["low"] == "-inf"
    assert data["minimum_detectable_effects"][0]["standardised"] == "inf"
    assert data["schema"] == 1


def test_not_a_number_is_told_apart_from_missing() -> None:
    data = example().to_dict()
    data["images"][0]["after"] = "nan"
    row = AuditResult.from_dict(data).images[0]
    assert math.isnan(row.after)
    assert row.held_back_after is None


def test_slugs_are_command_line_words() -> None:
    assert Verdict.WITHIN_BAND.slug == "within-band"
    assert len({verdict.slug for verdict in Verdict}) == len(Verdict) == 7
