"""Every attack on everything, beside the same attack on Retrain: one row an attack."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import numpy.typing as npt

from hf_unlearn.benchmarks.attack_signals import BITS, AttackSignals
from hf_unlearn.benchmarks.weight_attacks import barrier
from hf_unlearn.data.transformed_copies import TRANSFORMS
from hf_unlearn.metrics.agreement import agreement
from hf_unlearn.metrics.attacks import roc_auc, tpr_at_fpr
from hf_unlearn.metrics.completeness import sample_completeness
from hf_unlearn.metrics.forgetting_rate import forgetting_rate
from hf_unlearn.metrics.klom import klom
from hf_unlearn.metrics.likelihood_ratio import likelihood_ratio_attack
from hf_unlearn.metrics.membership_probe import membership_probe
from hf_unlearn.metrics.relative_position import NEIGHBOURS, neighbourhood_residual, relative_position
from hf_unlearn.metrics.relearning import relearning
from hf_unlearn.metrics.three_sample import nearer_to_base
from hf_unlearn.runs.experiment import RETRAIN

logger = logging.getLogger(__name__)

NATS = "nats"
POINTS = "points"
SHARE = "share"  # of the base model's weights: a measure, no attack on samples


@dataclass(frozen=True)
class AttackRow:
    """One attack on everything.

    Attributes:
        attack: its name.
        unit: points (hundredths), nats, or a share of the base model's weights.
        retrain: its value on Retrain, mean over the ensemble.
        retrain_std: standard deviation over the Retrains; None where the ensemble gives one value.
        values: method (or `before`) to the value, mean over its models.
    """

    attack: str
    unit: str
    retrain: float
    retrain_std: float | None
    values: dict[str, float] = field(default_factory=dict)

    @property
    def is_defined(self) -> bool:
        """Whether it has a value on Retrain; the forgetting rate has none where the base model remembers no sample."""
        return not math.isnan(self.retrain)

    @property
    def differences(self) -> dict[str, float]:
        """Value minus Retrain's."""
        return {name: value - self.retrain for name, value in self.values.items()}


def attack_models(
    retrains: Sequence[AttackSignals],
    entrants: Mapping[str, Sequence[AttackSignals]],
    base: AttackSignals,
    near_copies: int = 0,
) -> list[AttackRow]:
    """Attack every entrant and every Retrain in the same way.

    Model k of an ensemble is compared with the Retrains other than the k-th: Retrain with its leave-one-out ensemble,
    and a method with as many. Attacks on whole ensembles compare halves, so that both sides are as large for Retrain.

    Args:
        retrains: two or more.
        entrants: name to models; a single model (`before`) is attacked by what takes one model.
        base: the model before unlearning.
        near_copies: the first so many unlearn samples have near-copies in retain.
    """
    single = {name: _one_by_one(models, retrains, base, near_copies) for name, models in entrants.items()}
    own = _one_by_one(retrains, retrains, base, near_copies)
    rows = [
        AttackRow(
            attack,
            POINTS,
            float(np.mean(values)),
            float(np.std(values, ddof=1)),
            {name: float(np.mean(attacked[attack])) for name, attacked in single.items()},
        )
        for attack, values in own.items()
    ]
    if base.weights:
        rows.append(_distances(retrains, entrants))
    whole = {name: models for name, models in entrants.items() if len(models) == len(retrains)}
    return rows + _ensemble_rows(retrains, whole)


def _distances(retrains: Sequence[AttackSignals], entrants: Mapping[str, Sequence[AttackSignals]]) -> AttackRow:
    """How far the weights are from the base model's: a measure, no attack on samples."""

    def of(models: Sequence[AttackSignals]) -> list[float]:
        return [float(model.weights["distance"][0]) for model in models]

    own, values = of(retrains), {name: float(np.mean(of(models))) for name, models in entrants.items()}
    mean, spread = float(np.mean(own)), float(np.std(own, ddof=1))
    return AttackRow("distance of weights from the base model", SHARE, mean, spread, values)


def _one_by_one(
    models: Sequence[AttackSignals], retrains: Sequence[AttackSignals], base: AttackSignals, near_copies: int
) -> dict[str, list[float]]:
    """Attack -> its value on each model, in points."""
    values: dict[str, list[float]] = {}
    for k, model in enumerate(models):
        others = [retrain for j, retrain in enumerate(retrains) if j != k % len(retrains)]
        found = _alone(model, base) | _beside_retrains(model, others, base)
        if near_copies:
            found |= _near_copied(model, near_copies)
        for attack, value in found.items():
            values.setdefault(attack, []).append(100 * value)
    return values


def _alone(model: AttackSignals, base: AttackSignals) -> dict[str, float]:
    """Attacks that need no retrained model; shares, not points."""
    found = {}
    for kind in ("", *TRANSFORMS):
        suffix, name = (f"/{kind}", f"alignment, {kind} copies") if kind else ("", "alignment")
        unlearn, test = model.alignment[f"unlearn{suffix}"], model.alignment[f"test{suffix}"]
        found[f"{name}: AUC"] = roc_auc(unlearn, test)
        found[f"{name}: TPR at 1% FPR"] = tpr_at_fpr(unlearn, test)
    anchors = model.images["anchors"]
    near = neighbourhood_residual(
        model.images["unlearn"], model.images["test"], anchors, k=min(NEIGHBOURS, len(anchors))
    )
    found["neighbourhood, oracle-free: AUC"] = near.auc / 100
    completeness = sample_completeness(
        model.alignment["unlearn"], base.alignment["unlearn"], held_out=base.alignment["test"]
    )
    found["completeness by held-out samples"] = completeness.mean
    found["relearning: area"] = relearning(model.recovery, model.recovery).area
    return found | _in_weights(model, base)


def _in_weights(model: AttackSignals, base: AttackSignals) -> dict[str, float]:
    """What is left in the weights, as far as it is known; shares, not points."""
    found = {}
    for bits in BITS:
        if f"unlearn/int{bits}" in model.alignment:
            unlearn, test = model.alignment[f"unlearn/int{bits}"], model.alignment[f"test/int{bits}"]
            found[f"weights rounded to INT{bits}: AUC"] = roc_auc(unlearn, test)
    before, after = ((seen.alignment["unlearn"], seen.alignment["test"]) for seen in (base, model))
    found["forgetting rate"] = forgetting_rate(*before, *after).rate
    for name, parts in (("pictures", model.images), ("texts", model.texts)):
        if parts:
            found[f"membership probe, {name} alone: AUC"] = membership_probe(
                parts["anchors"], parts["test"], parts["unlearn"]
            )
    if model.gradients:
        found["white box, gradient norm: AUC"] = roc_auc(-model.gradients["unlearn"], -model.gradients["test"])
    if model.weights:
        unlearn, test, auc = model.weights["retain_only"][-1]
        found["fine-tuned on retain alone: unlearn above test"] = unlearn - test
        found["fine-tuned on retain alone: AUC"] = auc
        found["barrier to the base model"] = barrier(model.weights["line"].tolist())
    return found


def _beside_retrains(model: AttackSignals, others: Sequence[AttackSignals], base: AttackSignals) -> dict[str, float]:
    """Attacks that compare with Retrains of other seeds; shares, not points."""
    references = np.stack([other.alignment["unlearn"] for other in others])
    completeness = sample_completeness(model.alignment["unlearn"], base.alignment["unlearn"], references)
    pairs: list[dict[str, float]] = []
    for other in others:
        anchors = model.images["anchors"], other.images["anchors"]
        k = min(NEIGHBOURS, len(anchors[0]))
        position = relative_position(model.images["unlearn"], anchors[0], other.images["unlearn"], anchors[1], k=k)
        agreed = agreement(model.alignment["unlearn"], other.alignment["unlearn"])
        outputs = [_to_anchors(seen) for seen in (model, other, base)]
        pairs.append(
            {
                "position among anchors: agreement": position.agreement,
                "position among anchors: shared neighbours": position.neighbours,
                "alignment per sample: Pearson": agreed.pearson,
                "alignment per sample: mean absolute difference": agreed.mean_absolute_difference,
                "three samples: nearer to the base model": nearer_to_base(*outputs),
            }
        )
    return {
        "completeness by Retrains": completeness.mean,
        "completeness by Retrains: share over-unlearned": completeness.over,
        **{attack: float(np.mean([pair[attack] for pair in pairs])) for attack in pairs[0]},
    }


def _to_anchors(model: AttackSignals) -> npt.NDArray[np.floating]:
    """`[n, anchors]` cosines of the unlearn pictures with retain pictures, which no rotation of a model changes."""
    halves = (model.images[name] for name in ("unlearn", "anchors"))
    unlearn, anchors = (half / np.linalg.norm(half, axis=1, keepdims=True) for half in halves)
    return unlearn @ anchors.T


def _near_copied(model: AttackSignals, count: int) -> dict[str, float]:
    """What is left of samples whose near-copies stay in retain, and of the others."""
    unlearn, test = model.alignment["unlearn"], model.alignment["test"]
    found = {}
    for name, part in (("with near-copies in retain", unlearn[:count]), ("without near-copies", unlearn[count:])):
        if len(part):
            found[f"samples {name}: mean alignment"] = float(part.mean())
            found[f"samples {name}: AUC"] = roc_auc(part, test)
    return found


def _ensemble_rows(
    retrains: Sequence[AttackSignals], entrants: Mapping[str, Sequence[AttackSignals]]
) -> list[AttackRow]:
    """KLoM by halves of the ensembles, and the likelihood-ratio attack, as far as there are enough models."""
    rows: list[AttackRow] = []
    count = len(retrains)
    if count < 4:
        logger.warning("KLoM needs 4 models of each kind and is left out: there are %d.", count)
    else:
        halves = [
            (list(half), [k for k in range(count) if k not in half][: count // 2])
            for half in combinations(range(count), count // 2)
        ]
        for split in ("unlearn", "retain"):
            sides = {
                name: np.stack([model.alignment[split] for model in models])
                for name, models in {RETRAIN: retrains, **entrants}.items()
            }
            found = {
                name: [klom(side[tested], sides[RETRAIN][half]) for half, tested in halves]
                for name, side in sides.items()
            }
            for label, take in (("mean", "mean"), ("95th percentile", "percentile_95")):
                means = {name: float(np.mean([getattr(r, take) for r in results])) for name, results in found.items()}
                rows.append(AttackRow(f"KLoM, {split}: {label}", NATS, means.pop(RETRAIN), None, means))
    if count < 3:
        logger.warning("The likelihood-ratio attack needs 3 models of each kind and is left out: there are %d.", count)
        return rows
    out_world = np.stack([retrain.alignment["unlearn"] for retrain in retrains])
    attacks = {
        name: likelihood_ratio_attack(np.stack([model.alignment["unlearn"] for model in models]), out_world)
        for name, models in entrants.items()
    }
    n = out_world.shape[1]
    # What exact unlearning gets in expectation: its models and the Retrains are exchangeable.
    chance = 100 * (int(0.01 * n + 1e-9) + 1) / (n + 1)
    rows.append(AttackRow("likelihood ratio: AUC", POINTS, 50.0, None, {k: a.auc for k, a in attacks.items()}))
    tprs = {name: attack.tpr_at_1_fpr for name, attack in attacks.items()}
    rows.append(AttackRow("likelihood ratio: TPR at 1% FPR", POINTS, chance, None, tprs))
    return rows
