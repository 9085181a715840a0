"""Where an earlier request stands: is what it named still as far away as it was, or has it drifted back?"""

from dataclasses import dataclass

import numpy as np

from hf_unlearn.metrics._checks import Array, check_scores
from hf_unlearn.metrics._few import FEW

DRAWS = 1_000
LEVEL = 0.95
_NO_SPREAD = 1e-6  # of cosines: one sample in different batches differs by less


@dataclass(frozen=True)
class RequestLevel:
    """The mean alignment of a request's samples, times 100, beside what it is compared with.

    Attributes:
        now: Mean alignment of the samples.
        low: Lower end of the 95% bootstrap interval of `now`; None of one sample, or of fewer than five that are alike.
        high: Upper end of it.
        non_member: Mean alignment of held-out samples under the same model.
        drifted: Whether the samples came back: `low` lies above both `non_member` and what they had been left at. False
            where there is no interval, or where what they were left at is not known.
    """

    now: float
    low: float | None
    high: float | None
    non_member: float
    drifted: bool


def request_level(alignment: Array, held_out: Array, then: float | None = None) -> RequestLevel:
    """Compare a request's samples with where its own run left them, and with samples that were never trained on.

    A sample below the non-members' level that rises to it has not come back; neither has one whose rise is within the
    sampling error of the mean.

    Args:
        alignment: `[n]` alignment of the request's samples now, a cosine.
        held_out: `[m]` the same of samples that the model never saw.
        then: Mean alignment of the same `n` samples, times 100, right after the request's own run; None where it is not
            known.

    Returns:
        The level, with the percentile interval of 1,000 seeded bootstrap draws over the samples.

    Raises:
        UserError: A set of alignments is empty, or one is NaN or infinite.

    Example:
        >>> level = request_level([0.8, 0.9, 0.85], held_out=[0.2, 0.3], then=25.0)
        >>> round(level.now, 6), round(level.non_member, 6), level.drifted
        (85.0, 25.0, True)
    """
    own, unseen = check_scores(alignment, "request"), check_scores(held_out, "held out")
    now, non_member = 100 * float(own.mean()), 100 * float(unseen.mean())
    # Draws of one sample, or of its copies, are all alike: an interval without width would be certain of anything.
    if len(own) < FEW and np.ptp(own) < _NO_SPREAD:
        return RequestLevel(now, None, None, non_member, drifted=False)
    rng, tail = np.random.default_rng(0), 100 * (1 - LEVEL) / 2
    # One by one: all draws of a million samples take 15 GB.
    means = [own[rng.integers(0, len(own), len(own))].mean() for _ in range(DRAWS)]
    low, high = (100 * float(end) for end in np.percentile(means, [tail, 100 - tail]))
    return RequestLevel(now, low, high, non_member, drifted=then is not None and low > max(then, non_member))
