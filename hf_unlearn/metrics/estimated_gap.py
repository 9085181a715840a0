"""The gap to Retrain, estimated without Retrain: held-out samples stand in for what it would make of unlearn.

After exact retraining, unlearn samples are samples the model never saw, as the held-out validation samples are already.
So Retrain's metrics on unlearn are estimated by those of validation, its metrics on retain and on unseen samples by the
original model's, and a run is compared with these estimates as `gap_to_retrain` compares it with Retrain. For a random
request the samples of both sets are exchangeable under Retrain, so only sampling error remains; for a request that
differs in kind from the held-out samples, hold out samples of its kind.

The sampling error is told by an interval: samples are drawn anew from those measured, with replacement, and the
estimate taken of each draw (a bootstrap). Estimates whose intervals overlap do not tell runs apart; more unlearn and
held-out samples do. The interval knows nothing of requests that differ in kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hf_unlearn.metrics._checks import Array, Scores, check_same_length, check_scores
from hf_unlearn.metrics._resampling import Parts, Weights, shift, with_interval

SPREAD_WEIGHT = 0.1
"""Weight of what the true gap does not see: a wholly wrong spread, some 20 points, then weighs as much as two Retrains
of different seeds differ, about 2, and decides only between runs that the gap itself cannot tell apart."""


@dataclass(frozen=True)
class EstimatedGap:
    """An estimate of the average gap to Retrain, in the metrics' own unit.

    Attributes:
        parts: What it is made of, each at least 0: one part for each metric of the true gap, then what guards it.
        total: The estimate, to be minimised.
        low: Lower end of its 95% interval, never above the estimate.
        high: Upper end, never below it.
    """

    parts: dict[str, float]
    total: float
    low: float
    high: float


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
        retain: `[r]` the same of retain, for the interval; without it, retain's means are taken as exact.
        recalls: `[v]` each validation sample's share of `recall_validation`, likewise.
        holdout: `[h]` alignments of samples that were not asked for and are like those that were, if there are any.
        predicted: `[u]` of the original encoder's evidence: what Retrain would make of each unlearn sample, predicted
            from held-out ones and from what else is known. Without it, validation stands for these samples as it is.
    """

    cosine_retain: float
    cosine_unlearn: float
    cosine_validation: float
    recall_validation: float
    unlearn: Array
    validation: Array
    retain: Array | None = None
    recalls: Array | None = None
    holdout: Array | None = None
    predicted: Array | None = None

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

        Where Retrain's alignments of unlearn samples were predicted, these take the place of `v0`, and their mean that
        of V0; the interval knows the sampling error of both sets.

        With samples held out to see whether more was erased than asked, what their mean cosine H lost, `max(0, H0 -
        H)`, counts as lost retrieval does: Retrain was not asked to forget them.

        Args:
            before: The original encoder's, on the same samples.

        Returns:
            The parts `retain`, `unlearn`, `utility` and `spread`, and `holdout` where there is any, and the estimate
            with its interval.

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
        retain = _difference(self.retain, before.retain, "retain")
        recalls = _difference(before.recalls, self.recalls, "validation recalls")
        erased = _difference(before.holdout, self.holdout, "holdout")
        is_predicted = before.predicted is not None
        target = unseen if before.predicted is None else check_scores(before.predicted, "predicted")
        level = 100 * float(target.mean()) if is_predicted else before.cosine_validation

        def estimate(of_retain: Weights, of_unlearn: Weights, of_unseen: Weights, of_held: Weights) -> Parts:
            of_target = of_unlearn if is_predicted else of_unseen
            left, target_left = shift(unlearn, of_unlearn), shift(target, of_target)
            apart = _wasserstein(unlearn, target, of_unlearn, of_target)
            apart -= np.abs(float(unlearn.mean() - target.mean()) + left - target_left)
            lost = before.recall_validation - self.recall_validation + shift(recalls, of_unseen)
            read_off = shift(unseen, of_unseen) if is_predicted else 0.0  # predictions move with what they are of
            off = self.cosine_unlearn - level + 100 * (left - target_left - read_off)
            return {
                "retain": np.abs(self.cosine_retain - before.cosine_retain + 100 * shift(retain, of_retain)),
                "unlearn": np.abs(off),
                "utility": np.maximum(0.0, lost),
                "spread": 100 * np.maximum(0.0, apart),
                **_over_erased(erased, of_held),
            }

        return EstimatedGap(
            *with_interval(estimate, _image_text_total, (len(retain), len(unlearn), len(unseen), len(erased)))
        )


def _image_text_total(parts: Mapping[str, Scores]) -> Scores:
    lost = parts["utility"] + parts.get("holdout", 0.0)
    return (parts["retain"] + parts["unlearn"] + lost) / 2 + SPREAD_WEIGHT * parts["spread"]


@dataclass(frozen=True, eq=False)
class ProbeEvidence:
    """What the estimate takes from a linear probe on a view encoder.

    Attributes:
        retain_accuracy: In percent.
        unlearn_accuracy: In percent.
        validation_accuracy: In percent.
        unlearn_confidence: `[u]` probability of the true class.
        validation_confidence: `[v]` the same of validation.
        retain_hits: `[r]` whether each sample's class was found, for the interval; without it, the accuracy is taken as
            exact.
        unlearn_hits: `[u]` the same of unlearn.
        validation_hits: `[v]` the same of validation.
    """

    retain_accuracy: float
    unlearn_accuracy: float
    validation_accuracy: float
    unlearn_confidence: Array
    validation_confidence: Array
    retain_hits: Array | None = None
    unlearn_hits: Array | None = None
    validation_hits: Array | None = None


@dataclass(frozen=True, eq=False)
class ViewEvidence:
    """What the estimate takes from a view encoder; never anything of the test split.

    Attributes:
        unlearn: `[u]` view alignment of each unlearn sample, a cosine.
        validation: `[v]` the same of validation.
        probe: What a linear probe finds; None without labels.
        holdout: `[h]` view alignments of samples that were not asked for and are like those that were, if there are
            any.
    """

    unlearn: Array
    validation: Array
    probe: ProbeEvidence | None = None
    holdout: Array | None = None

    def estimated_gap(self, before: "ViewEvidence") -> EstimatedGap:
        """Estimate this encoder's average gap in EMIA, RA, TA, UA and CMIA (Tables 1 and 2) from the original encoder.

        `estimate = (|AUC_a - 50| + |RA - RA0| + |VA - VA0| + |UA - VA0| + |AUC_c - 50|) / 5`, in percent, with probe
        accuracies on retain RA, unlearn UA and validation VA, 0 marking the original encoder, and the AUC of unlearn
        against validation in view alignment, `AUC_a`, and in the probe's confidence, `AUC_c`, both now.

        Both membership attacks take the share of unlearn samples below one threshold. Under Retrain that share is the
        one of unseen samples whatever the threshold, and `AUC - 1/2` is the difference of the two shares averaged over
        thresholds drawn from validation: the same unit without the jumps of a fitted threshold, where one of 40
        samples is 2.5 points.

        What the mean view alignment of samples held out for over-generalisation lost, times 100, adds to the sum.

        Args:
            before: The original encoder's, on the same samples.

        Returns:
            The parts `emia`, `retain_accuracy`, `test_accuracy`, `unlearn_accuracy` and `cmia`, and their mean with
            its interval; only `emia` without a probe. And `holdout` where there is any.

        Raises:
            UserError: A set is empty, or a value is NaN or infinite.

        Example:
            >>> probe = ProbeEvidence(70.0, 60.0, 50.0, unlearn_confidence=[0.9, 0.3], validation_confidence=[0.5, 0.2])
            >>> view = ViewEvidence(unlearn=[0.9, 0.8], validation=[0.5, 0.85], probe=probe)
            >>> view.estimated_gap(view).parts
            {'emia': 25.0, 'retain_accuracy': 0.0, 'test_accuracy': 0.0, 'unlearn_accuracy': 10.0, 'cmia': 25.0}
        """
        unlearn, unseen = check_scores(self.unlearn, "unlearn"), check_scores(self.validation, "validation")
        probe, earlier = self.probe, before.probe
        erased = _difference(before.holdout, self.holdout, "holdout")
        if probe is None or earlier is None:
            return EstimatedGap(
                *with_interval(
                    lambda _, u, v, h: {"emia": _membership(unlearn, unseen, u, v), **_over_erased(erased, h)},
                    _views_total,
                    (0, len(unlearn), len(unseen), len(erased)),
                )
            )
        sure, unsure = (
            check_scores(given, f"confidence of {name}")
            for name, given in (("unlearn", probe.unlearn_confidence), ("validation", probe.validation_confidence))
        )
        retain = _difference(probe.retain_hits, earlier.retain_hits, "retain hits")
        held_out = _difference(probe.validation_hits, earlier.validation_hits, "validation hits")
        found, found_before = _hits(probe.unlearn_hits), _hits(earlier.validation_hits)

        def estimate(of_retain: Weights, of_unlearn: Weights, of_unseen: Weights, of_held: Weights) -> Parts:
            signed = {
                "retain_accuracy": probe.retain_accuracy - earlier.retain_accuracy + 100 * shift(retain, of_retain),
                "test_accuracy": probe.validation_accuracy
                - earlier.validation_accuracy
                + 100 * shift(held_out, of_unseen),
                "unlearn_accuracy": probe.unlearn_accuracy
                - earlier.validation_accuracy
                + 100 * (shift(found, of_unlearn) - shift(found_before, of_unseen)),
            }
            return {
                "emia": _membership(unlearn, unseen, of_unlearn, of_unseen),
                **{name: np.abs(value) for name, value in signed.items()},
                "cmia": _membership(sure, unsure, of_unlearn, of_unseen),
                **_over_erased(erased, of_held),
            }

        return EstimatedGap(
            *with_interval(estimate, _views_total, (len(retain), len(unlearn), len(unseen), len(erased)))
        )


def _views_total(parts: Mapping[str, Scores]) -> Scores:
    measured = [part for name, part in parts.items() if name != "holdout"]
    return (np.sum(measured, axis=0) + parts.get("holdout", 0.0)) / len(measured)


def _over_erased(erased: Scores, of_held: Weights) -> Parts:
    """What samples that nobody asked for lost on average, in points; nothing where there are none."""
    return {"holdout": np.maximum(0.0, 100 * (erased.mean() + shift(erased, of_held)))} if len(erased) else {}


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
    first, second = check_scores(a, "first sample"), check_scores(b, "second sample")
    return float(_wasserstein(first, second, np.ones((1, len(first))), np.ones((1, len(second))))[0])


def _wasserstein(a: Scores, b: Scores, of_a: Weights, of_b: Weights) -> Scores:
    """The distance between each draw of one sample and each of the other, `[draws]`."""
    together = np.concatenate([a, b])
    order = np.argsort(together, kind="stable")
    shares = np.concatenate([of_a / len(a), -of_b / len(b)], axis=1)[:, order].cumsum(1)[:, :-1]
    return (np.abs(shares) * np.diff(together[order])).sum(1)


def _membership(unlearn: Scores, validation: Scores, of_unlearn: Weights, of_validation: Weights) -> Scores:
    """`|AUC - 50|` of each draw, in percent; `roc_auc` by counting what lies below each score, and half of its ties."""
    places, at = np.unique(np.concatenate([unlearn, validation]), return_inverse=True)
    sides = ((of_unlearn, at[: len(unlearn)]), (of_validation, at[len(unlearn) :]))
    ours, theirs = (np.stack([np.bincount(on, w, len(places)) for w in draws]) for draws, on in sides)
    pairs = (ours * (theirs.cumsum(1) - theirs / 2)).sum(1)
    return np.abs(100 * (pairs / (len(unlearn) * len(validation))) - 50)


def _difference(now: Array | None, before: Array | None, name: str) -> Scores:
    """`now - before` of the same samples; empty where either is not known."""
    if now is None or before is None:
        return np.empty(0)
    ours, theirs = check_scores(now, f"{name} now"), check_scores(before, f"{name} before")
    check_same_length(**{f"{name} now": ours, f"{name} before": theirs})
    return ours - theirs


def _hits(hits: Array | None) -> Scores:
    return np.empty(0) if hits is None else check_scores(hits, "hits")
