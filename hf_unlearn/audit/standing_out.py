"""Requested images that stand out: a few fully remembered ones hide in the mean of many that were removed.

An image is flagged when it did both, and both are out of the ordinary together:

    it moved as little as images still in training:   FS_i - median FS_R  <  gap / 2
    it stands where remembered images stand:          a_i after - mean a_C after  >  2 gap / 5

A flag bars the best verdict and names the image. It accuses nobody: an image that never was memorised also moves
little, and one of many such may stand high by itself. What accuses is the permutation test of the upper tail
(`tail_scores`), which is exact whatever each image's memory was.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from hf_unlearn.audit.arms import Arms
from hf_unlearn.audit.statistics import Floats
from hf_unlearn.records.audit_result import Arm

MOVED_SHARE, ABOVE_SHARE, RISEN_SHARE = 0.5, 0.4, 0.25
LEVEL = 0.05
"""Level of all flags of an audit together (Bonferroni over the requested images)."""
FEWEST_CONTROLS = 4


def standing_out(arms: Arms, gap: float) -> tuple[str, ...]:
    """Name the requested images that moved little and stand high, the highest first.

    Args:
        arms: the images.
        gap: the mean alignment of requested images above never-trained ones, before.

    Returns:
        Names; empty where there is nothing to compare with.
    """
    if gap <= 0 or Arm.NEVER_TRAINED not in arms or arms.size(Arm.NEVER_TRAINED) < FEWEST_CONTROLS:
        return ()
    after, controls = arms.after(Arm.REQUESTED), arms.after(Arm.NEVER_TRAINED)
    reference = Arm.STILL_TRAINED if Arm.STILL_TRAINED in arms else Arm.NEVER_TRAINED
    flagged = flags(arms.before(Arm.REQUESTED), after, arms.before(reference) - arms.after(reference), controls, gap)
    names = [row.image for row in arms.rows[Arm.REQUESTED]]
    return tuple(names[i] for i in np.argsort(-after) if flagged[i])


def risen(arms: Arms, gap: float) -> bool:
    """Whether images never in training rose by a quarter of the gap, and the requested ones fell by less than half.

    Then it is the comparison that changed: removal lowers the requested images, it does not lift the others.
    """
    if gap <= 0 or Arm.NEVER_TRAINED not in arms:
        return False
    fell, rest = (float((arms.before(arm) - arms.after(arm)).mean()) for arm in (Arm.REQUESTED, Arm.NEVER_TRAINED))
    return rest < -RISEN_SHARE * gap and fell < MOVED_SHARE * gap


def flags(before: Floats, after: Floats, unmoved: Floats, controls: Floats, gap: float) -> NDArray[np.bool_]:
    """Which requested images moved little and stand high.

    Args:
        before: their alignments before `[n]`.
        after: the same after.
        unmoved: forgetting scores of images that nothing was asked about `[r]`.
        controls: alignments of never-trained images after `[m]`.
        gap: the mean alignment of requested images above never-trained ones, before.
    """
    moved, above = before - after - np.median(unmoved), after - controls.mean()
    suspects = (moved < MOVED_SHARE * gap) & (above > ABOVE_SHARE * gap)
    if not suspects.any():
        return suspects
    both = (_moved_little(moved, above, unmoved, suspects), _stands_high(above, controls))
    p_values = special.chdtrc(4, -2 * sum(np.log(np.maximum(p_value, 1e-300)) for p_value in both))  # Fisher's
    return suspects & (p_values <= LEVEL / len(after))


def tail_scores(treated: Floats, control: Floats) -> tuple[Floats, Floats]:
    """Savage scores of both arms' pooled ranks, which weigh the upper tail: `sum over j >= N - r + 1 of 1 / j`.

    Their difference of means sees a minority of high values that the difference of plain means overlooks.

    Source: Savage (1956); Conover and Salsburg (1988) on mixtures.
    """
    n = treated.shape[-1]
    pooled = np.concatenate([treated, control], axis=-1)
    size = pooled.shape[-1]
    harmonic = np.cumsum(1 / np.arange(size, 0, -1.0))
    scores = np.interp(stats.rankdata(pooled, axis=-1), np.arange(1, size + 1), harmonic)
    return scores[..., :n], scores[..., n:]


def _moved_little(moved: Floats, above: Floats, unmoved: Floats, suspects: NDArray[np.bool_]) -> Floats:
    """How unusual so small a move is for an image that stands so high, by what the images beyond suspicion show.

    Where all images stood equally high before, a small move and a high stand are one thing told twice; the line through
    the others takes that out.
    """
    others = ~suspects
    slope = 0.0
    if others.sum() >= FEWEST_CONTROLS and np.ptp(above[others]) > 0:
        slope = float(np.cov(moved[others], above[others])[0, 1] / np.var(above[others], ddof=1))
    rest = moved - slope * (above - (above[others].mean() if others.any() else above.mean()))
    centre = np.median(rest[others] if others.any() else rest)
    spread = 1.4826 * float(np.median(np.abs((rest[others] if others.any() else rest) - centre)))
    spread = max(spread, float(np.std(unmoved, ddof=1)) if len(unmoved) > 1 else 0.0, 1e-12)
    return special.ndtr((rest - centre) / spread)


def _stands_high(above: Floats, controls: Floats) -> Floats:
    """How unusual so high a level is for another image of the controls' kind (prediction by Student's t)."""
    n = len(controls)
    spread = max(float(np.std(controls, ddof=1)), 1e-12) * np.sqrt(1 + 1 / n)
    return special.stdtr(n - 1, -above / spread)
