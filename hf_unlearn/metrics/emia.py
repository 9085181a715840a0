"""EMIA: encoder membership inference from the alignment of augmented views (Eq. 7 of arXiv 2406.03603)."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._checks import Array, Scores, check_embeddings, check_same_length, check_scores, to_numpy
from hf_unlearn.metrics.attacks import MembershipAttack, fitting_scores, membership_attack

REFERENCE_GRID = np.linspace(0, 1, 501)


@dataclass(frozen=True)
class Emia(MembershipAttack):
    """Outcome of EMIA, in percent but for the threshold.

    Attributes:
        threshold: View alignment from which a sample is predicted to be a member, a cosine.
    """

    threshold: float


def view_alignment(views: Tensor | npt.NDArray[np.floating] | Iterable[Array]) -> Scores:
    """Mean cosine over all pairs of different views of each image: EMIA's membership feature.

    `a_i = mean_{v != w} <u_iv, u_iw> = (|sum_v u_iv|^2 - sum_v |u_iv|^2) / (k (k - 1))` for unit vectors
    `u`: one pass over the k views and no loop over their k (k - 1) / 2 pairs.

    Args:
        views: `[n, k, d]` backbone features of k views of each image, a tensor or a NumPy array; or an iterable of k
            matrices `[n, d]`, one a view, so that only one view need be in memory.

    Returns:
        `[n]` mean cosines, from -1 / (k - 1) to 1.

    Raises:
        UserError: There are fewer than two views, they differ in their number of images, or a feature is NaN, infinite
            or zero; the message names view and sample.

    Source: arXiv 2406.03603, Appendix A.3, with k = 10 views and 45 pairs.

    Example:
        >>> views = np.array([[[1.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [2.0, 0.0]]])  # two views of two images
        >>> view_alignment(views).round(3).tolist()
        [0.6, 1.0]
    """
    total, squares, count = torch.zeros(()), torch.zeros(()), 0
    for view in _one_by_one(views):
        unit = check_embeddings(view, f"view {count}")
        if count == 0:
            total, squares = torch.zeros_like(unit), unit.new_zeros(len(unit))
        check_same_length(**{"view 0": total, f"view {count}": unit})
        total += unit
        squares += unit.square().sum(1)
        count += 1
    if count < 2:
        raise UserError(f"view alignment needs at least two views of each image, got {count}")
    return to_numpy(total.square().sum(1) - squares) / (count * (count - 1))


def best_threshold(members: Array, non_members: Array, candidates: Array | None = None) -> float:
    """Threshold that best separates members (scores at or above it) from non-members (below it).

    `t* = min argmax_t #{members >= t} + #{non-members < t}`: the first best one in ascending order. Sorted once, each
    candidate costs two binary searches.

    Args:
        members: `[p]` scores.
        non_members: `[q]` scores.
        candidates: Thresholds to try; by default every score, which covers every distinct prediction but "no member".

    Returns:
        The threshold.

    Raises:
        UserError: A side is empty or holds a NaN or an infinity.

    Example:
        >>> best_threshold([0.9, 0.8, 0.4], [0.7, 0.5, 0.3])
        0.8
    """
    inside, outside = np.sort(check_scores(members, "members")), np.sort(check_scores(non_members, "non-members"))
    if candidates is None:
        tried = np.unique(np.concatenate([inside, outside]))
    else:
        tried = np.sort(check_scores(candidates, "candidates"))
    right = len(inside) - np.searchsorted(inside, tried) + np.searchsorted(outside, tried)
    return float(tried[np.argmax(right)])


def emia(retain: Array, unlearn: Array, test: Array, preset: Literal["paper", "reference"] = "paper") -> Emia:
    """Alignment-based EncoderMI-T on an encoder: how many unlearn samples look like non-members.

    `EMIA-efficacy = #{unlearn samples predicted non-member} / |D_unlearn|`, with the threshold on view alignment that
    best separates as many retain members as test non-members: all of the smaller set and a seeded draw from the other,
    whatever the order of the rows (`fitting_scores`).

    Args:
        retain: `[r]` view alignments (`view_alignment`) of retain samples.
        unlearn: `[u]` view alignments of the unlearn samples.
        test: `[t]` view alignments of unseen samples.
        preset: "paper" searches every threshold; "reference" the 501 points of [0, 1] that the authors' code tries.

    Returns:
        Efficacy, two-sided distance from test, AUC, TPR at 1% FPR, and the threshold.

    Raises:
        UserError: A set is empty, an alignment is NaN or infinite, or the preset is unknown.

    Source: arXiv 2406.03603, Eq. 7 and Appendix A.3; EncoderMI, arXiv 2108.11023.

    Example:
        >>> result = emia(retain=[0.9, 0.8, 0.9], unlearn=[0.9, 0.5, 0.3, 0.2], test=[0.4, 0.5, 0.6])
        >>> result.threshold, result.efficacy, result.distance
        (0.8, 75.0, -25.0)
    """
    if preset not in ("paper", "reference"):
        raise UserError(f"preset: EMIA has the presets paper and reference, got {preset!r}")
    kept, forgotten, unseen = (
        check_scores(values, f"view alignment of {name}")
        for name, values in (("retain", retain), ("unlearn", unlearn), ("test", test))
    )
    fitted_on = fitting_scores(kept, unseen)
    threshold = best_threshold(*fitted_on, REFERENCE_GRID if preset == "reference" else None)
    attack = membership_attack(kept, forgotten, unseen, fitted_on, lambda scores: scores >= threshold)
    return Emia(**asdict(attack), threshold=threshold)


def _one_by_one(views: Tensor | npt.NDArray[np.floating] | Iterable[Array]) -> Iterable[Array]:
    if not isinstance(views, (Tensor, np.ndarray)):
        return views
    stacked = torch.as_tensor(views)
    if stacked.ndim != 3:
        raise UserError(f"views: expected [images, views, dimensions], got shape {list(stacked.shape)}")
    return stacked.unbind(1)
