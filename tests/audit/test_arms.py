import math
from dataclasses import replace

import pytest

from hf_unlearn.audit.arms import collect
from hf_unlearn.errors import UserError
from hf_unlearn.records.audit_result import Arm, ImageRow


def row(name: str, arm: Arm = Arm.REQUESTED, before: float = 0.9, after: float = 0.5, **fields: object) -> ImageRow:
    return replace(ImageRow(name, f"hash-{name}", arm, before, after), **fields)  # type: ignore[arg-type]


def test_copies_count_once_and_are_declared() -> None:
    copy = row("copy", sha256="hash-a", before=0.7, change=0.2)
    arms = collect([row("a", change=0.4), copy, row("b"), row("c", Arm.NEVER_TRAINED)])
    assert arms.size(Arm.REQUESTED) == 2
    folded = arms.images()[0]
    assert (folded.image, folded.before, folded.change) == ("a", pytest.approx(0.8), pytest.approx(0.3))
    summary, control = arms.summaries(planned=True, provenance={Arm.NEVER_TRAINED: "my archive"})
    assert (summary.collapsed, summary.size, summary.drawn) == (("copy",), 2, "plan")
    assert (control.provenance, control.drawn) == ("my archive", "chosen")


def test_a_measurement_that_one_copy_lacks_is_lacking() -> None:
    arms = collect([row("a", held_back_after=0.4), row("copy", sha256="hash-a")])
    assert arms.images()[0].held_back_after is None


def test_images_without_a_hash_are_told_apart_by_name() -> None:
    assert collect([row("a", sha256=""), row("b", sha256="")]).size(Arm.REQUESTED) == 2


def test_one_image_in_two_arms_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"'x' \(never_trained\) is also 'a' \(requested\)"):
        collect([row("a"), row("x", Arm.NEVER_TRAINED, sha256="hash-a")])


def test_no_request_is_refused() -> None:
    with pytest.raises(UserError, match="no requested image"):
        collect([row("c", Arm.NEVER_TRAINED)])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["after", "held_back_after", "change", "noise"])
def test_an_answer_that_is_not_finite_is_named_and_counts_as_remembered(name: str, value: float) -> None:
    held = {"held_back_before": 0.8, "held_back_after": 0.3}
    arms = collect(
        [row("bad", **{**held, "noise": 0.0, "change": 0.2, name: value}), row("good", before=0.3), row("fine")]
    )
    assert arms.problems() == []
    assert arms.summaries(planned=False, provenance={})[0].unusable == ("bad",)
    (bad,) = [found for found in arms.images() if found.image == "bad"]
    assert (bad.after, bad.held_back_after) == (0.9, 0.8)
    assert [found.image for found in arms.measured] == ["bad", "good", "fine"]


def test_controls_without_an_answer_make_nobody_look_better() -> None:
    kept = {"arm": Arm.STILL_TRAINED}
    never = {"arm": Arm.NEVER_TRAINED}
    arms = collect(
        [
            *(
                row("u"),
                row("k", **kept, after=0.7),
                row("l", **kept, after=0.8),
                row("broken-k", **kept, after=math.nan),
            ),
            *(row("c", **never, after=0.4), row("d", **never, after=0.2), row("broken-c", **never, after=math.nan)),
        ]
    )
    worst = {found.image: found.after for found in arms.images()}
    assert worst["broken-k"] == pytest.approx(0.9 - 0.2) and worst["broken-c"] == 0.2


def test_what_was_never_seen_before_is_left_out() -> None:
    arms = collect([row("bad", before=math.nan), row("good"), row("fine")])
    assert [found.image for found in arms.images()] == ["good", "fine"]
    assert arms.summaries(planned=False, provenance={})[0].unusable == ("bad",)


def test_answers_that_are_mostly_broken_are_no_measurement() -> None:
    arms = collect([row("bad", after=math.nan), row("worse", after=math.inf), row("good")])
    assert arms.problems() == ["2 of 3 images have no finite alignment (zero or NaN embeddings): bad, worse."]


def test_near_duplicates_are_one_image_and_twins_across_arms_are_left_out() -> None:
    kept, never = {"arm": Arm.STILL_TRAINED}, {"arm": Arm.NEVER_TRAINED}
    arms = collect(
        [
            *(row("a", cluster="1", before=0.8), row("a again", cluster="1", before=0.6), row("b")),
            *(row("twin", cluster="2"), row("of twin", cluster="2", **kept), row("k", **kept)),
            *(row("e", cluster="3"), row("of e", cluster="3", **never), row("c", **never)),
        ]
    )
    assert {arm: [found.image for found in rows] for arm, rows in arms.rows.items()} == {
        Arm.REQUESTED: ["a", "b", "e"],  # a control that resembles a requested image is no control; the image stays
        Arm.STILL_TRAINED: ["k"],
        Arm.NEVER_TRAINED: ["c"],
    }
    assert arms.rows[Arm.REQUESTED][0].before == pytest.approx(0.7)
    assert arms.twins == {
        Arm.REQUESTED: ("twin",),
        Arm.STILL_TRAINED: ("of twin",),
        Arm.NEVER_TRAINED: ("of e",),
    }
    only = collect([row("twin", cluster="2"), row("of twin", cluster="2", **kept)])
    assert "Every requested image has a near-duplicate" in only.problems()[0]


def test_a_collapsed_model_is_said() -> None:
    arms = collect([row("a", after=1.0), row("b", before=0.8, after=1.0 - 1e-8)])
    assert arms.problems() == ["The model after has collapsed: all 2 images have the same alignment (1.000000)."]
    assert collect([row("a", after=1.0)]).problems() == []
