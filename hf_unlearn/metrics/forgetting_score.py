"""The forgetting score: how far unlearning pulled each pair apart (Eq. 2 of arXiv 2406.03603)."""

from dataclasses import dataclass, field

from hf_unlearn.metrics._checks import Array, Scores, check_same_length, check_scores


@dataclass(frozen=True, eq=False)
class ForgettingScore:
    """Loss of alignment of the unlearn samples, in units of cosine.

    Attributes:
        mean: Eq. 2's forgetting score.
        std: Population standard deviation over samples.
        per_sample: `[n]`, the score of each sample: the diagonal of the alignment gap matrix.
    """

    mean: float
    std: float
    per_sample: Scores = field(repr=False)


def forgetting_score(before: Array, after: Array) -> ForgettingScore:
    """Alignment of each unlearn sample before minus after unlearning.

    `FS = E_{p_u+} s(x^before, y^before) - E_{p_u+} s(x^after, y^after)`

    Args:
        before: `[n]` cosines of the positive pairs under the base model: `matched_cosine(...).per_sample`,
            or `view_alignment(...)` for the mean over all pairs of several views.
        after: `[n]` the same pairs, in the same order, under the unlearned model.

    Returns:
        Mean, standard deviation and the score of each sample, in units of cosine (from -2 to 2).

    Raises:
        UserError: A cosine is NaN or infinite, or the numbers of samples differ.

    Source: arXiv 2406.03603, Eq. 2; Table 3 prints the mean in the same units.

    Example:
        >>> result = forgetting_score(before=[0.9, 0.8], after=[0.6, 0.7])
        >>> round(result.mean, 3), round(result.std, 3)
        (0.2, 0.1)
    """
    old, new = check_scores(before, "alignment before"), check_scores(after, "alignment after")
    check_same_length(before=old, after=new)
    score = old - new
    return ForgettingScore(float(score.mean()), float(score.std()), score)
