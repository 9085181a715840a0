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
@pytest.mark.parametrize("name", ["before", "after", "held_back_before", "change", "noise"])
def test_values_that_are_not_finite_are_named(name: str, value: float) -> None:
    arms = collect([row("bad", **{name: value}), row("good", before=0.3, after=0.2)])
    assert arms.problems() == ["1 of 2 images have no finite alignment (zero or NaN embeddings): bad."]
    assert arms.summaries(planned=False, provenance={})[0].unusable == ("bad",)


def test_a_collapsed_model_is_said() -> None:
    arms = collect([row("a", after=1.0), row("b", before=0.8, after=1.0 - 1e-8)])
    assert arms.problems() == ["The model after has collapsed: all 2 images have the same alignment (1.000000)."]
    assert collect([row("a", after=1.0)]).problems() == []
