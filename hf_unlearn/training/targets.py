"""What exact retraining would make of each sample's alignment, predicted from the base model without retraining.

After exact retraining the unlearn samples are samples the model never saw, as held-out ones already are. So their
alignments should be distributed as those of held-out samples under the base model, weighted to resemble the request,
and those of retain samples should stay. Which unlearn sample gets which of these alignments, and their mean, is
predicted: by a regression on held-out samples, from what each sample has in common with retain alone.
"""

import logging
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.preprocessing import ContrastivePreprocessor, ImageTextPreprocessor, ImageViewPreprocessor
from hf_unlearn.models.contrastive import contrastive_terms, evaluation_mode
from hf_unlearn.training.features import FeatureEncoder
from hf_unlearn.training.pair_scores import BATCH, CHUNK, Array, Rows, embed_pairs, pair_scores

logger = logging.getLogger(__name__)

REGRESSION_PAIRS = 4096  # the scores are fitted on about so many retain pairs at most: their cost is cubic
VIEW_PAIRS = 8  # pairs of random views that a picture's alignment is averaged over
# Standard deviations of what is predicted of held-out pairs over which one of them stands for an unlearn pair. At 1,
# average pairs stand for high ones too; at 0.25 few pairs decide the distribution.
LIKENESS = 0.5
PRIOR = 10  # held-out pairs that weigh as much as what a score is worth before any of them is seen
SAME = 1e-9  # scores are products of unit vectors and of kernels; what differs by less does so by rounding
FARTHEST = 4  # standard deviations from the mean of held-out pairs at which a score still counts
FEW = 30  # effective number of held-out pairs below which their distribution is called uncertain
FAR = 0.25  # standard deviations of held-out alignments; a mean that is further off tells members by an AUC of 57%


@dataclass(frozen=True)
class AlignmentTargets:
    """Cosines to train towards.

    Attributes:
        positive: `[retain + unlearn, captions]` cosine of each sample with each of its second elements, retain first;
            what stands beyond a sample's last caption is not used. One column for view encoders.
        negative: scalar, mean cosine of elements of different samples.
        first: `[retain, d]` where the base model embeds each retain sample's first element, in float16; None if not
            asked for.
        second: `[retain, captions, d]` the same of its second elements.
        spread: standard deviation of held-out alignments, cosines.
        notes: what a reader of the card must know of them.
    """

    positive: Tensor
    negative: Tensor
    first: Tensor | None = None
    second: Tensor | None = None
    spread: float = 0.0
    notes: tuple[str, ...] = ()

    def lowered(self, by: float, unlearn: int) -> "AlignmentTargets":
        """The same with lower targets for the unlearn rows, which come last.

        Held-out rows may have risen since the model before any request; by so much their alignments are no targets.
        """
        positive = self.positive.clone()
        positive[len(positive) - unlearn :] -= by
        return replace(self, positive=positive)

    def to(self, device: torch.device) -> "AlignmentTargets":
        """The same targets on a device."""
        first, second = (None if half is None else half.to(device) for half in (self.first, self.second))
        positive, negative = self.positive.to(device), self.negative.to(device)
        return replace(self, positive=positive, negative=negative, first=first, second=second)


def match_quantiles(scores: Array, sample: Array, weights: Array | None = None) -> Array:
    """`[n]` values distributed as `sample [m]` and ordered as `scores [n]`.

    The k-th smallest score is given the `(k - 1/2) / n` quantile of the sample, whose j-th smallest value is at half
    its weight after the weights before it, and which is linear in between. `weights [m]` default to equal ones.
    """
    ranks = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
    order = np.argsort(sample, kind="stable")
    share = np.full(len(sample), 1 / len(sample)) if weights is None else weights[order] / weights.sum()
    return np.interp((ranks + 0.5) / len(scores), np.cumsum(share) - share / 2, sample[order])


def likeness_weights(scores: Array, unseen: Array) -> Array:
    """`[m]` weights, summing to 1, with which held-out pairs of scores `unseen [m]` stand for those of `scores [n]`.

    Each of the n spreads `1 / n` over the held-out pairs, by a Gaussian of the difference of scores. So a random
    request weighs them nearly alike, and one of a kind gives weight to its kind.
    """
    from scipy.special import softmax

    width = LIKENESS * unseen.std() or 1.0
    parts = np.array_split(scores, -(-len(scores) * len(unseen) // CHUNK))
    near = (softmax(-0.5 * ((part[:, None] - unseen) / width) ** 2, axis=1).sum(0) for part in parts)
    return sum(near, np.zeros(len(unseen))) / len(scores)


def predicted(known: Array, alignment: Array, *others: Array) -> list[Array]:
    """What a linear regression on held-out pairs predicts of other pairs.

    Scores are standardised on the held-out pairs. Before any of these is seen, each of k scores counts `1 / (k + 1)`
    standard deviations of alignment, as it does on the embedded tasks; that weighs as much as `PRIOR` held-out pairs,
    so that few of them do not turn an order round. A score that is one for all held-out pairs tells nothing, and none
    counts for more than `FARTHEST`: they may nearly be copies of requested pairs, without which all scores fall far.

    Args:
        known: `[k, m]` scores of held-out pairs.
        alignment: `[m]` what the base model makes of these.
        others: `[k, n]` scores of other pairs each.

    Returns:
        `[n]` alignments for each of the others.
    """
    centre, width = known.mean(1, keepdims=True), known.std(1, keepdims=True)
    width = np.where(width > SAME, width, np.inf)
    standard, mean = (known - centre) / width, alignment.mean()
    before = alignment.std() / (len(known) + 1)
    slopes = np.linalg.solve(
        standard @ standard.T + PRIOR * np.eye(len(known)), standard @ (alignment - mean) + PRIOR * before
    )
    return [mean + slopes @ np.clip((other - centre) / width, -FARTHEST, FARTHEST) for other in others]


@dataclass(frozen=True)
class TargetNoise:
    """How far targets are drawn instead of predicted, so that runs differ as retrainings do.

    Attributes:
        share: of the variance of the scores that order the unlearn samples, what is drawn, in [0, 1].
        seed: of the draw.
    """

    share: float = 0.0
    seed: int = 0

    def added(self, scores: Array) -> Array:
        """`[n]` scores of the same variance, `share` of it normal noise."""
        if self.share == 0:
            return scores
        noise = np.random.default_rng(self.seed).normal(scale=scores.std(), size=len(scores))
        return scores.mean() + np.sqrt(1 - self.share) * (scores - scores.mean()) + np.sqrt(self.share) * noise


@torch.no_grad()
def pair_targets(
    model: PreTrainedModel,
    preprocessor: ImageTextPreprocessor,
    retain: EncodedSplit,
    unlearn: EncodedSplit,
    held_out: EncodedSplit,
    noise: TargetNoise = TargetNoise(),
    *,
    unlearn_to_retain: float | None = None,
    keep_embeddings: bool = False,
    encoder: FeatureEncoder | None = None,
    orderer: FeatureEncoder | None = None,
) -> AlignmentTargets:
    """Targets of image-text pairs: retain and negative pairs as they are, unlearn as held-out pairs of their kind.

    The base model's alignments of held-out pairs are regressed on their `pair_scores`, which its memory of unlearn
    pairs does not enter. What that predicts of unlearn pairs gives their order and their mean; their distribution
    about it is that of held-out pairs, weighted by how alike their predictions are.

    The base model knows held-out pairs from retain and unlearn, Retrain from retain alone. So what is regressed on are
    scores from both, and predictions are made with scores from retain.

    An encoder that learned retain, as Retrain does, orders unlearn pairs better: by a regression on its own alignments
    and on the scores that its embeddings give. It may remember something of them all the same, so it decides the order
    alone.

    Args:
        model: the base model; each split passes through it once.
        preprocessor: how the splits were encoded.
        retain: rows that stay, or a sample of them.
        unlearn: rows to be unlearned.
        held_out: rows that the base model never saw.
        noise: added to the scores that order the unlearn pairs, after held-out pairs were weighted by them.
        unlearn_to_retain: how many rows are unlearned for each that stays; default: as the splits have it.
        keep_embeddings: whether to keep where the base model embeds retain pairs, `2 d` bytes a picture and a caption.
        encoder: one that never saw the unlearn pairs, to predict from beside pixels and character n-grams.
        orderer: one that learned retain and has forgotten most of the unlearn pairs, to order them by.
    """
    captions = retain.rows(range(min(len(retain), BATCH)))["caption_counts"].float().mean().item()
    ratio = len(unlearn) / len(retain) if unlearn_to_retain is None else unlearn_to_retain
    regressed = _spread(len(retain), max(2, int(REGRESSION_PAIRS / captions / (1 + ratio))))
    encoders = [each for each in (orderer, encoder) if each is not None]
    with evaluation_mode(model):
        kept = embed_pairs(model, preprocessor, retain, regressed, keep_embeddings, encoders)
        asked, unseen = (embed_pairs(model, preprocessor, split, encoders=encoders) for split in (unlearn, held_out))
    features = [each.features for each in (kept, asked, unseen)]
    known, *others = (each.by(0 if orderer is None else 1) for each in features)
    request = others[0].take(_spread(len(unlearn), round(ratio * len(regressed))))
    (learned,) = pair_scores(known.joined(request), others[1])
    expected, without = predicted(learned, unseen.alignment, *pair_scores(known, *others))
    level, weights = expected.mean(), likeness_weights(expected, without)
    notes = _say_how_alike(weights, unseen.alignment.mean() - without.mean())
    if orderer is not None:
        by_copy, held = (
            np.concatenate([each.encoder_alignment[None], scores])
            for each, scores in zip(features[1:], pair_scores(*features), strict=True)
        )
        (expected,) = predicted(held, unseen.alignment, by_copy)
    columns = max(kept.caption.max(), asked.caption.max()) + 1
    positive = np.zeros((len(retain) + len(unlearn), columns), dtype=np.float32)
    positive[kept.row, kept.caption] = kept.alignment
    matched = match_quantiles(noise.added(expected), unseen.alignment, weights)
    positive[len(retain) + asked.row, asked.caption] = matched + (level - matched.mean())
    negative = torch.tensor(kept.negative_alignment, dtype=torch.float32)
    return AlignmentTargets(torch.from_numpy(positive), negative, *kept.embeddings(), unseen.alignment.std(), notes)


@torch.no_grad()
def view_targets(
    model: PreTrainedModel,
    preprocessor: ImageViewPreprocessor,
    retain: int,
    unlearn: EncodedSplit,
    held_out: EncodedSplit,
    noise: TargetNoise = TargetNoise(),
    orderer: PreTrainedModel | None = None,
) -> AlignmentTargets:
    """Targets of pictures under random views: unlearn as held-out pictures, in the order of the base model's own.

    How well two views of a picture agree depends on the picture above all, so retraining changes their order little. A
    model that learned from retain alone, where there is one, orders them instead. The `retain` samples get -1, which no
    alignment falls short of.
    """
    orderer = model if orderer is None else orderer
    with evaluation_mode(model):
        unseen = _view_alignment(model, preprocessor, held_out)
    with evaluation_mode(orderer):
        scores = _view_alignment(orderer, preprocessor, unlearn)
    positive = np.concatenate([np.full(retain, -1.0), match_quantiles(noise.added(scores), unseen)])
    targets = torch.tensor(positive[:, None], dtype=torch.float32)
    return AlignmentTargets(targets, torch.tensor(0.0), spread=unseen.std())


@torch.no_grad()
def own_alignments(model: PreTrainedModel, preprocessor: ContrastivePreprocessor, split: EncodedSplit) -> Tensor:
    """`[n, captions]` cosine of each row with each of its second elements as the model has them; one column for views.

    What stands beyond a row's last caption is not a number.
    """
    with evaluation_mode(model):
        if isinstance(preprocessor, ImageViewPreprocessor):
            return torch.tensor(_view_alignment(model, preprocessor, split)[:, None], dtype=torch.float32)
        pairs = embed_pairs(model, cast("ImageTextPreprocessor", preprocessor), split)
    own = torch.full((len(split), int(pairs.caption.max()) + 1), torch.nan)
    own[pairs.row, pairs.caption] = torch.tensor(pairs.alignment, dtype=torch.float32)
    return own


def say_where_it_ended(own: Tensor, meant: Tensor, spread: float, below: bool = True) -> tuple[str, ...]:
    """Log, and return for the card, that unlearn samples ended far from where they were meant to.

    Args:
        own: `[n, captions]` their alignments after training; what is not a number is not counted.
        meant: what these were to become; broadcast to `own`.
        spread: standard deviation of held-out alignments; 0, of a single one, is no measure.
        below: whether to tell of what ended too low, too.
    """
    ended, goal = own.nanmean().item(), meant.expand_as(own)[~own.isnan()].mean().item()
    if not spread or abs(ended - goal) <= FAR * spread or (ended < goal and not below):
        return ()
    side = "above" if ended > goal else "below"
    note = (
        f"Unlearn samples ended at a mean cosine of {100 * ended:.1f}, {100 * abs(ended - goal):.1f} points {side} the "
        f"{100 * goal:.1f} that was meant ({abs(ended - goal) / spread:.1f} standard deviations of held-out samples): "
        "the training was too short, or its rate or weights do not suit this model."
    )
    logger.warning("%s", note)
    return (note,)


def _spread(count: int, most: int) -> Rows:
    """At most so many of `count` rows, spread evenly."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def _view_alignment(model: PreTrainedModel, preprocessor: ImageViewPreprocessor, split: EncodedSplit) -> Array:
    """`[n]` mean cosine of each picture's pairs of seeded random views, as the loss sees them."""
    means: list[Tensor] = []
    for number, encoded in enumerate(split.batches(BATCH)):
        encoded = {name: value.to(model.device) for name, value in encoded.items()}
        seeds = range(number * VIEW_PAIRS, (number + 1) * VIEW_PAIRS)
        cosines = [contrastive_terms(model, preprocessor.batch(encoded, seed)).cosine for seed in seeds]
        means.append(torch.stack(cosines).mean(0).cpu())
    return torch.cat(means).double().numpy()


def _say_how_alike(weights: Array, lost: float) -> tuple[str, ...]:
    """Log it, and return what the card says, too."""
    effective = 1 / np.square(weights).sum()
    logger.info(
        "Held-out pairs that stand for the request: %d, with the weight of %.0f. Without the requested "
        "rows they are predicted to align otherwise by %+.3f.",
        len(weights),
        effective,
        -lost,
    )
    if effective >= FEW:
        return ()
    note = (
        f"The level of unlearn pairs is uncertain: the held-out pairs that are like them (of {len(weights)}) weigh as "
        f"{effective:.0f} would; hold out more samples of the request's kind."
    )
    logger.warning("%s", note)
    return (note,)
