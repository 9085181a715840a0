"""After every training, before it is saved: whether what came out can be what was meant, from what is measured anyway.

None of it is a verdict. A method may do as it was told, and a reader of its card must know all the same.
"""

import numpy as np

from hf_unlearn.runs.evaluation import Evaluation

UNMOVED = 0.001  # mean change of an unlearn sample's cosine below which it is called unmoved
FAR = 10.0  # points of a cosine, or of an accuracy, in percent
COMMON = 0.5  # share of the move of unlearn samples that all have where all moved together
APART = 0.5  # standard deviations of held-out alignments between their mean and that of unlearn samples
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
    least = min(map(abs, shifts.values()))
    together = len({value > 0 for value in shifts.values()}) == 1 and least > FAR
    together &= least >= COMMON * abs(shifts["unlearn"])
    accuracy = old.get("retain_accuracy", 0.0)
    classes_lost = new.get("retain_accuracy", accuracy) < accuracy - FAR
    if shrunk and (shifts.get("retain", 0) < -FAR or classes_lost):
        notes.append(
            f"Retain was not learned again: {shrunk}, and the training was too short for that; train for longer "
            "(num_train_epochs, or smaller batches), or lower shrink_perturb."
        )
    elif together:
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
    if after.spread < KEPT_SPREAD * before.spread:
        notes.append(
            f"Embeddings of held-out pictures collapsed: their spread is {after.spread:.3f}, and the base model's is "
            f"{before.spread:.3f}."
        )
    if moved >= UNMOVED:
        notes += _apart(after)
    if new.get("low_estimated_gap", 0) > old.get("high_estimated_gap", np.inf):
        notes.append(
            f"It is further from Retrain than before: the estimated gap is {new['estimated_gap']:.1f}, and was "
            f"{old['estimated_gap']:.1f}."
        )
    return tuple(notes)


def _apart(after: Evaluation) -> list[str]:
    """That unlearn samples lie apart from held-out ones, by more than so few of them do by chance."""
    unlearn, unseen = (100 * np.asarray(each) for each in (after.evidence.unlearn, after.evidence.validation))
    off, spread = unlearn.mean() - unseen.mean(), unseen.std()
    if not abs(off) > max(APART, 2 * np.sqrt(1 / len(unlearn) + 1 / len(unseen))) * spread > 0:
        return []
    side, means = (
        ("above", "they are still known") if off > 0 else ("below", "they were pushed too far, which tells them")
    )
    return [
        f"Unlearn samples lie {abs(off):.1f} points {side} held-out ones ({unlearn.mean():.1f} and "
        f"{unseen.mean():.1f}): unless the request is of another kind, {means}."
    ]


def _shifts(before: Evaluation, after: Evaluation) -> dict[str, float]:
    """How far mean cosines moved, in points: of splits that were trained on and of held-out ones."""
    names = [name for name in ("retain", "unlearn", "validation") if f"cosine_{name}" in before.metrics]
    if names:
        return {name: after.metrics[f"cosine_{name}"] - before.metrics[f"cosine_{name}"] for name in names}
    old, new = before.evidence, after.evidence
    pairs = {"unlearn": (old.unlearn, new.unlearn), "validation": (old.validation, new.validation)}
    return {name: 100 * float(np.mean(np.asarray(b)) - np.mean(np.asarray(a))) for name, (a, b) in pairs.items()}
