"""After every training, before it is saved: whether what came out can be what was meant, from what is measured anyway.

None of it is a verdict. A method may do as it was told, and a reader of its card must know all the same.
"""

import numpy as np
import numpy.typing as npt

from hf_unlearn.runs.evaluation import Evaluation

UNMOVED = 0.001  # mean change of an unlearn sample's cosine below which it is called unmoved
FAR = 10.0  # points of a cosine, or of an accuracy, in percent
KEPT_RETRIEVAL = 2 / 3  # of the base model's
KEPT_SPREAD = 0.25  # of the base model's


def sanity_notes(
    before: Evaluation, after: Evaluation, feels_level: bool = False, shrunk: str | None = None
) -> tuple[str, ...]:
    """What is far off in a model that was unlearned, one sentence each; nothing if nothing is.

    Args:
        before: the base model's evaluation.
        after: that of the model, on the same rows.
        feels_level: whether the model's loss changes where all cosines move together: the sigmoid loss, not InfoNCE.
        shrunk: what was taken from its weights, for a training on retain to learn it again (`shrink_perturb`).
    """
    notes = []
    moved = float(np.abs(after.alignment - before.alignment).mean())
    if moved < UNMOVED:
        notes.append(f"Nothing was unlearned: the cosines of unlearn samples moved by {moved:.4f} on average.")
    old, new = before.metrics, after.metrics
    shifts = _shifts(before, after)
    far = len(shifts) > 1 and min(map(abs, shifts.values())) > FAR
    accuracy = old.get("retain_accuracy", 0.0)
    classes_lost = new.get("retain_accuracy", accuracy) < accuracy - FAR
    if shrunk and (shifts.get("retain", 0) < -FAR or classes_lost):
        notes.append(
            f"Retain was not learned again: {shrunk}, and the training was too short for that; train for longer "
            "(num_train_epochs, or smaller batches), or lower shrink_perturb."
        )
    elif far and len({value > 0 for value in shifts.values()}) == 1:
        told = ", ".join(f"{name} by {value:+.0f}" for name, value in shifts.items())
        unfelt = "" if feels_level else ", which InfoNCE does not feel"
        notes.append(f"All cosines moved together (points: {told}){unfelt}.")
    elif shifts.get("retain", 0) < -FAR:
        notes.append(
            f"Retain samples lost alignment: their mean cosine fell from {old['cosine_retain']:.0f} to "
            f"{new['cosine_retain']:.0f} points."
        )
    if classes_lost:
        notes.append(
            f"Retain samples lost their classes: the probe's accuracy fell from {old['retain_accuracy']:.0f}% to "
            f"{new['retain_accuracy']:.0f}%."
        )
    if "recall_validation" in old and new["recall_validation"] < KEPT_RETRIEVAL * old["recall_validation"]:
        notes.append(
            f"Retrieval on validation fell from {old['recall_validation']:.1f}% to {new['recall_validation']:.1f}%."
        )
    first, last = _spread(before.x), _spread(after.x)
    if last < KEPT_SPREAD * first:
        notes.append(f"Embeddings collapsed: their spread is {last:.3f}, and the base model's is {first:.3f}.")
    return tuple(notes)


def _shifts(before: Evaluation, after: Evaluation) -> dict[str, float]:
    """How far mean cosines moved, in points: of splits that were trained on and of held-out ones."""
    names = [name for name in ("retain", "unlearn", "validation") if f"cosine_{name}" in before.metrics]
    if names:
        return {name: after.metrics[f"cosine_{name}"] - before.metrics[f"cosine_{name}"] for name in names}
    old, new = before.evidence, after.evidence
    pairs = {"unlearn": (old.unlearn, new.unlearn), "validation": (old.validation, new.validation)}
    return {name: 100 * float(np.mean(np.asarray(b)) - np.mean(np.asarray(a))) for name, (a, b) in pairs.items()}


def _spread(embeddings: npt.NDArray[np.floating]) -> float:
    """`mean |x - mean x|^2` of unit-norm embeddings `[n, d]`; 0 if all point the same way, 1 at most."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    units = embeddings / np.where(norms > 0, norms, 1)
    return float(np.square(units - units.mean(0)).sum(1).mean())
