"""The gap to Retrain, estimated without Retrain: held-out samples stand in for what it would make of unlearn.

After exact retraining, unlearn samples are samples the model never saw, as the held-out validation samples are already.
So Retrain's metrics on unlearn are estimated by those of validation, its metrics on retain and on unseen samples by the
original model's, and a run is compared with these estimates as `gap_to_retrain` compares it with Retrain. For a random
request the samples of both sets are exchangeable under Retrain, so only sampling error remains; for a request that
differs in kind from the held-out samples, hold out samples of its kind.
"""

from dataclasses import dataclass

import numpy as np

from hf_unlearn.metrics._checks import Array, check_scores
from hf_unlearn.metrics.attacks import roc_auc

SPREAD_WEIGHT = 0.1
"""Weight of what the true gap does not see: a wholly wrong spread, some 20 points, then weighs as much as two Retrains
of different seeds differ, about 2, and decides only between runs that the gap itself cannot tell apart."""


@dataclass(frozen=True)
class EstimatedGap:
    """An estimate of the average gap to Retrain, in the metrics' own unit.

    Attributes:
        parts: What it is made of, each at least 0: one part for each metric of the true gap, then what guards it.
        total: The estimate, to be minimised.
    """

    parts: dict[str, float]
    total: float


@dataclass(frozen=True, eq=False)
class ImageTextEvidence:
    """What the estimate takes from an image-text encoder; never anything of the test split.

    Attributes:
        cosine_retain: Mean matched cosine of retain, times 100.
        cosine_unlearn: The same of unlearn.
        cosine_validation: The same of validation.
        recall_validation: Retrieval on validation, in percent: mean of recall at 1 and at 5 in both directions.
        unlearn: `[u]` alignment of each unlearn sample, a cosine.
        validation: `[v]` the same of validation.
    """

    cosine_retain: float
    cosine_unlearn: float
    cosine_validation: float
    recall_validation: float
    unlearn: Array
    validation: Array

    def estimated_gap(self, before: "ImageTextEvidence") -> EstimatedGap:
        """Estimate this encoder's average gap in retain and unlearn cosine (Table 4) from the original encoder.

        `estimate = (|R - R0| + |U - V0| + max(0, recall0 - recall)) / 2 + spread / 10`, with the mean cosines of
        retain R, unlearn U and validation V, 0 marking the original encoder, and `spread = W1(u, v0) - |mean u - mean
        v0|`, what the Wasserstein distance between the alignments of unlearn now and of validation before exceeds the
        difference of their means by.

        The first two terms are the true gap with Retrain's values replaced, in its unit and its average. Lost retrieval
        counts as a further metric would, but is not averaged over, as the true gap does not have it; the level of the
        validation cosine is no utility (rankings do not depend on it) and does not count. The spread is 0 wherever one
        set of alignments lies above the other throughout, so it only distinguishes runs near the target.

        Args:
            before: The original encoder's, on the same samples.

        Returns:
            The parts `retain`, `unlearn`, `utility` and `spread`, and the estimate.

        Raises:
            UserError: A set of alignments is empty, or one is NaN or infinite.

        Example:
            >>> before = ImageTextEvidence(80.0, 80.0, 30.0, 20.0, unlearn=[0.8, 0.8], validation=[0.2, 0.4])
            >>> after = ImageTextEvidence(78.0, 36.0, 28.0, 19.0, unlearn=[0.36, 0.36], validation=[0.2, 0.36])
            >>> gap = after.estimated_gap(before)
            >>> {name: round(value, 6) for name, value in gap.parts.items()}, round(gap.total, 6)
            ({'retain': 2.0, 'unlearn': 6.0, 'utility': 1.0, 'spread': 4.0}, 4.9)
        """
        unlearn, unseen = check_scores(self.unlearn, "unlearn"), check_scores(before.validation, "validation")
        parts = {
            "retain": abs(self.cosine_retain - before.cosine_retain),
            "unlearn": abs(self.cosine_unlearn - before.cosine_validation),
            "utility": max(0.0, before.recall_validation - self.recall_validation),
            "spread": 100 * max(0.0, wasserstein(unlearn, unseen) - abs(float(unlearn.mean() - unseen.mean()))),
        }
        total = (parts["retain"] + parts["unlearn"] + parts["utility"]) / 2 + SPREAD_WEIGHT * parts["spread"]
        return EstimatedGap(parts, total)


@dataclass(frozen=True, eq=False)
class ProbeEvidence:
    """What the estimate takes from a linear probe on a view encoder.

    Attributes:
        retain_accuracy: In percent.
        unlearn_accuracy: In percent.
        validation_accuracy: In percent.
        unlearn_confidence: `[u]` probability of the true class.
        validation_confidence: `[v]` the same of validation.
    """

    retain_accuracy: float
    unlearn_accuracy: float
    validation_accuracy: float
    unlearn_confidence: Array
    validation_confidence: Array


@dataclass(frozen=True, eq=False)
class ViewEvidence:
    """What the estimate takes from a view encoder; never anything of the test split.

    Attributes:
        unlearn: `[u]` view alignment of each unlearn sample, a cosine.
        validation: `[v]` the same of validation.
        probe: What a linear probe finds; None without labels.
    """

    unlearn: Array
    validation: Array
    probe: ProbeEvidence | None = None

    def estimated_gap(self, before: "ViewEvidence") -> EstimatedGap:
        """Estimate this encoder's average gap in EMIA, RA, TA, UA and CMIA (Tables 1 and 2) from the original encoder.

        `estimate = (|AUC_a - 50| + |RA - RA0| + |VA - VA0| + |UA - VA0| + |AUC_c - 50|) / 5`, in percent, with probe
        accuracies on retain RA, unlearn UA and validation VA, 0 marking the original encoder, and the AUC of unlearn
        against validation in view alignment, `AUC_a`, and in the probe's confidence, `AUC_c`, both now.

        Both membership attacks take the share of unlearn samples below one threshold. Under Retrain that share is the
        one of unseen samples whatever the threshold, and `AUC - 1/2` is the difference of the two shares averaged over
        thresholds drawn from validation: the same unit without the jumps of a fitted threshold, where one of 40
        samples is 2.5 points.

        Args:
            before: The original encoder's, on the same samples.

        Returns:
            The parts `emia`, `retain_accuracy`, `test_accuracy`, `unlearn_accuracy` and `cmia`, and their mean; only
            `emia` without a probe.

        Raises:
            UserError: A set is empty, or a value is NaN or infinite.

        Example:
            >>> probe = ProbeEvidence(70.0, 60.0, 50.0, unlearn_confidence=[0.9, 0.3], validation_confidence=[0.5, 0.2])
            >>> view = ViewEvidence(unlearn=[0.9, 0.8], validation=[0.5, 0.85], probe=probe)
            >>> view.estimated_gap(view).parts
            {'emia': 25.0, 'retain_accuracy': 0.0, 'test_accuracy': 0.0, 'unlearn_accuracy': 10.0, 'cmia': 25.0}
        """
        parts = {"emia": _membership(self.unlearn, self.validation)}
        if self.probe is not None and before.probe is not None:
            parts |= {
                "retain_accuracy": abs(self.probe.retain_accuracy - before.probe.retain_accuracy),
                "test_accuracy": abs(self.probe.validation_accuracy - before.probe.validation_accuracy),
                "unlearn_accuracy": abs(self.probe.unlearn_accuracy - before.probe.validation_accuracy),
                "cmia": _membership(self.probe.unlearn_confidence, self.probe.validation_confidence),
            }
        return EstimatedGap(parts, float(np.mean(list(parts.values()))))


def wasserstein(a: Array, b: Array) -> float:
    """Wasserstein-1 distance between two samples: how far, on average, one has to be moved to become the other.

    `W1 = integral |F_a(t) - F_b(t)| dt`, never less than the difference of their means.

    Args:
        a: `[n]` scores.
        b: `[m]` scores.

    Returns:
        The distance, in the scores' unit.

    Raises:
        UserError: A sample is empty or holds a NaN or an infinity.

    Example:
        >>> wasserstein([0.0, 1.0], [0.5])
        0.5
    """
    first, second = np.sort(check_scores(a, "first sample")), np.sort(check_scores(b, "second sample"))
    places = np.sort(np.concatenate([first, second]))
    shares = (np.searchsorted(given, places[:-1], side="right") / len(given) for given in (first, second))
    return float((np.abs(np.subtract(*shares)) * np.diff(places)).sum())


def _membership(unlearn: Array, validation: Array) -> float:
    return abs(100 * roc_auc(unlearn, validation) - 50)
