"""The audit's first line and its last: did the model change about these pictures, and what does that not mean.

Every verdict has its own. "Consistent with removal" stands under the one verdict that is.
"""

from __future__ import annotations

from dataclasses import dataclass

from hf_unlearn.audit.hypotheses import HypothesisTests
from hf_unlearn.records.audit_result import Verdict

_YES = "the model changed about your pictures"
_ANSWERS = {
    Verdict.NO_MODEL_CHANGE: ("No", "the model answers about your pictures as it did before"),
    Verdict.NO_TARGETED_CHANGE: ("No", "the model changed, but not about the pictures you asked to remove"),
    Verdict.RESIDUAL_SIGNAL: ("Only in part", f"{_YES}, but a trace of them is left"),
    Verdict.RESIDUAL_UNDETERMINED: ("In part", f"{_YES}, but whether a trace of them is left is open"),
    Verdict.WITHIN_BAND: ("Yes", f"{_YES}, and now treats them like pictures it never saw"),
    Verdict.OVERSHOOT: ("Yes, and too far", f"{_YES} so much that they can be told apart again"),
}
OPEN = "This audit cannot tell whether the model changed about your pictures."
SUSPICIOUS = "Answers changed, but not in the way that training without your pictures gives."
RISEN = (
    "The pictures never in training rose to the requested ones, which themselves lost less than half of what set them "
    "apart. What changed is the comparison."
)
ALIKE = "the compared pictures are alike but for the request"
FROM_THE_MODEL = "the answers come from the model alone"
SAME_KIND = "the pictures never in training are of the same kind"
NOT_OF_EVERYTHING = "the model did not lose a little of everything it had learned"
UNEVEN = (
    "The plan's two halves differed before anything changed, as those of one draw in 20 do, and those of a plan chosen "
    "among many. It counts as chosen."
)
_CREDITED = frozenset({Verdict.RESIDUAL_SIGNAL, Verdict.RESIDUAL_UNDETERMINED, Verdict.WITHIN_BAND, Verdict.OVERSHOOT})
_COMPARED = _CREDITED | {Verdict.NO_TARGETED_CHANGE}
_LEVELLED = _COMPARED - {Verdict.RESIDUAL_UNDETERMINED}

_NO_BLACK_BOX = (
    "No black-box test can establish it: the same weights can arise from other data (Thudi et al., arXiv 2110.11891), "
    "and a model owner who knows the requested images could fake a local change."
)
_OPEN = "This supports neither that the images were removed nor that they were not."
_CLOSING = {
    Verdict.NO_MODEL_CHANGE: (
        "This is not what removal looks like. It holds for these images, these views and this copy of the model; ask "
        "whether the model you were shown is the one that was changed."
    ),
    Verdict.NO_TARGETED_CHANGE: (
        "This is not what removal looks like. It shows neither why nor who decided it, and it rests on the compared "
        "images being alike."
    ),
    Verdict.RESIDUAL_SIGNAL: (
        "This is not what complete removal looks like: less of these images is left than before, but not nothing."
    ),
    Verdict.RESIDUAL_UNDETERMINED: (
        f"{_OPEN} Something was done about these images; how much is left needs more images, or other answers."
    ),
    Verdict.WITHIN_BAND: f"At most this is consistent with removal. {_NO_BLACK_BOX}",
    Verdict.OVERSHOOT: (
        "This is not what training without these images gives, and the images can be singled out by it; ask for "
        "another way of removal."
    ),
    Verdict.INCONCLUSIVE: f"{_OPEN} See what would make it conclusive: more images, or images to compare with.",
}
_MEANING = {
    Verdict.NO_MODEL_CHANGE: (
        "For a removal request: nothing that this audit can see was done. You can ask which model was changed, when, "
        "and to be shown that one."
    ),
    Verdict.NO_TARGETED_CHANGE: (
        "For a removal request: the model was updated, and your requested pictures fared no differently from the "
        "others. You can ask what was done about them in particular."
    ),
    Verdict.RESIDUAL_SIGNAL: (
        "For a removal request: it was acted on, not completely. You can ask for the method used, and for the rest."
    ),
    Verdict.RESIDUAL_UNDETERMINED: (
        "For a removal request: it was acted on; whether completely, these pictures cannot tell. You can ask for the "
        "method used, or repeat the audit with more pictures."
    ),
    Verdict.WITHIN_BAND: (
        "For a removal request: what you see is what you would see had these pictures been left out of training. It "
        "does not mean that no copy of them, and no other model, is left."
    ),
    Verdict.OVERSHOOT: (
        "For a removal request: it was acted on in a way that marks your pictures. You can ask for a method that "
        "leaves them like any other picture."
    ),
    Verdict.INCONCLUSIVE: (
        "For a removal request: no conclusion either way. Do not read it as a sign that nothing was done."
    ),
}


_SUSPICIOUS_MEANING = (
    "For a removal request: do not take it as carried out before you know how. You can ask for the method that was "
    "used, whether answers about your pictures pass through anything else than the model, and for an audit of the "
    "model itself."
)
_SUSPICIOUS_CLOSING = f"{_OPEN} It withholds credit; it accuses nobody."


@dataclass(frozen=True)
class Basis:
    """What a verdict rests on besides the tests.

    Args:
        planned: whether a committed plan drew which images to request.
        from_weights: whether the answers after were computed from a model's weights, with nothing in between.
        suspicious: whether answers are such as training without these images does not give.
        beside_members: whether the change is seen beside images still in training, which a general loss moves as well.
    """

    planned: bool
    from_weights: bool
    suspicious: bool
    beside_members: bool = True

    def doubts(self, verdict: Verdict) -> bool:
        """Whether a change is not to be credited."""
        return self.suspicious and verdict in _CREDITED

    def condition(self, verdict: Verdict) -> str:
        """What a verdict takes for granted, as `, if ...`; empty where it takes nothing."""
        taken = []
        if verdict in _COMPARED and not self.planned:
            taken.append(ALIKE)
        elif verdict in _LEVELLED:  # no plan draws the images never in training
            taken.append(SAME_KIND)
        if verdict in _CREDITED and not self.beside_members:
            taken.append(NOT_OF_EVERYTHING)
        if verdict in _CREDITED and not self.from_weights:
            taken.append(FROM_THE_MODEL)
        return f", if {' and '.join([', '.join(taken[:-1]), taken[-1]] if taken[1:] else taken)}" if taken else ""


def headline(verdict: Verdict, measured: HypothesisTests, basis: Basis) -> str:
    """The first line of an audit: the answer, what it takes for granted, and how sure it is."""
    if verdict is Verdict.INCONCLUSIVE:
        return OPEN
    if basis.doubts(verdict):
        return SUSPICIOUS
    lead, answer = _ANSWERS[verdict]
    return f"{lead}{basis.condition(verdict)}: {answer}.{_how_sure(verdict, measured)}"


def meaning(verdict: Verdict, basis: Basis) -> str:
    """What the verdict means for a removal request."""
    return _SUSPICIOUS_MEANING if basis.doubts(verdict) else _MEANING[verdict]


def closing(verdict: Verdict, basis: Basis) -> str:
    """What the verdict does not mean; every verdict has its own."""
    return _SUSPICIOUS_CLOSING if basis.doubts(verdict) else _CLOSING[verdict]


def _how_sure(verdict: Verdict, measured: HypothesisTests) -> str:
    if verdict is Verdict.NO_TARGETED_CHANGE:
        return " Such a finding against a model that was retrained is wrong in at most 1 of 100 audits."
    test = measured.tests.get("T2")
    if test is None or test.p_value is None or verdict not in _COMPARED:
        return ""
    p_value = test.p_adjusted if test.p_adjusted is not None else test.p_value
    often = "fewer than 1" if p_value < 0.001 else f"about {1000 * p_value:.0f}"
    return f" Chance alone would show so large a change in {often} of 1,000 audits."
