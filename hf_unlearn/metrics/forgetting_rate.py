"""Forgetting rate: the share of remembered samples that a model no longer remembers, with an interval."""

from dataclasses import dataclass

import numpy as np

from hf_unlearn.metrics._checks import Array, check_same_length, check_scores


@dataclass(frozen=True)
class ForgettingRate:
    """How many of the samples that one model remembers another does not.

    Attributes:
        rate: share in [0, 1] of the samples remembered before that are not remembered after; NaN if none was.
        low: lower end of its 95% interval.
        high: upper end.
        remembered: how many samples were remembered before.
    """

    rate: float
    low: float
    high: float
    remembered: int


def forgetting_rate(
    before: Array, before_test: Array, after: Array, after_test: Array, fpr: float = 0.05
) -> ForgettingRate:
    """Counts samples that a membership attack finds before unlearning and misses after it.

    A model remembers a sample whose alignment is above the `1 - fpr` quantile of its own test alignments. Of `m`
    remembered samples k are forgotten: `k / m`, with Wilson's 95% interval.

    Args:
        before: `[u]` alignments of the unlearn samples under the model before unlearning.
        before_test: `[t]` its alignments of test samples.
        after: `[u]` alignments of the unlearn samples under the unlearned model.
        after_test: `[t]` its alignments of test samples.
        fpr: share of test samples mistaken for remembered ones, in (0, 1).

    Raises:
        UserError: there are no samples, or numbers of samples differ.

    Source: after the forgetting rate of arXiv 2602.01150, there for membership attacks on classifiers.

    Example:
        >>> unseen = np.linspace(0, 0.4, 100)
        >>> result = forgetting_rate([0.9, 0.8, 0.9, 0.1], unseen, [0.9, 0.1, 0.2, 0.1], unseen)
        >>> result.remembered, round(result.rate, 3), round(result.low, 3), round(result.high, 3)
        (3, 0.667, 0.208, 0.939)
    """
    ours, theirs = check_scores(after, "alignment after"), check_scores(before, "alignment before")
    check_same_length(after=ours, before=theirs)
    thresholds = [
        np.quantile(check_scores(test, name), 1 - fpr)
        for test, name in ((before_test, "test alignment before"), (after_test, "test alignment after"))
    ]
    known = theirs > thresholds[0]
    count = int(known.sum())
    if count == 0:
        return ForgettingRate(float("nan"), 0.0, 1.0, 0)
    rate = float((ours[known] <= thresholds[1]).mean())
    z = 1.959963984540054
    centre = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    return ForgettingRate(rate, float(centre - half), float(centre + half), count)
