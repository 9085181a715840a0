"""What exact retraining would make of each sample's alignment, predicted from the base model without retraining.

After exact retraining the unlearn samples are samples the model never saw, as held-out ones already are. So their
alignments should be distributed as those of held-out samples under the base model, weighted to resemble the request and
lowered by what a model loses on them without the request, and those of retain samples should stay. Which unlearn sample
gets which of these alignments follows from a score of each.
"""

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.preprocessing import ImageTextInputs, ImageViewInputs
from hf_unlearn.models.contrastive import contrastive_terms, embed_images, embed_texts, evaluation_mode

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.floating]
Rows = npt.NDArray[np.int64]

BATCH = 256
VIEW_PAIRS = 8  # pairs of random views that a picture's alignment is averaged over
# Ridge regressions from what a retain sample looks like to where the base model embeds it.
REGRESSION_PAIRS = 4096  # they are fitted on about so many at most: their cost is cubic
CAPTION_NGRAMS = (2, 4)  # characters
CAPTION_PENALTY = 0.1
PICTURE_SIZE = 16  # pixels
PICTURE_COMPONENTS = 64
PICTURE_BANDWIDTH = 0.3  # times the median squared distance
PICTURE_PENALTY = 0.3
LIKENESS = 1.0  # standard deviations of the held-out scores over which one of them stands for an unlearn pair's
FEW = 30  # effective number of held-out pairs below which their distribution is called uncertain
CHUNK = 2**24  # pairs of scores compared at a time


@dataclass(frozen=True)
class AlignmentTargets:
    """Cosines to train towards.

    Attributes:
        positive: `[retain + unlearn, captions]` cosine of each sample with each of its second halves, retain first;
            what stands beyond a sample's last caption is not used. One column for view encoders.
        negative: scalar, mean cosine of halves of different samples.
        first: `[retain, d]` where the base model embeds each retain sample's first half, in float16; None if not asked
            for.
        second: `[retain, captions, d]` the same of its second halves.
    """

    positive: Tensor
    negative: Tensor
    first: Tensor | None = None
    second: Tensor | None = None

    def to(self, device: torch.device) -> "AlignmentTargets":
        """The same targets on a device."""
        first, second = (None if half is None else half.to(device) for half in (self.first, self.second))
        return AlignmentTargets(self.positive.to(device), self.negative.to(device), first, second)


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
    inputs: ImageTextInputs,
    retain: EncodedSplit,
    unlearn: EncodedSplit,
    held_out: EncodedSplit,
    noise: TargetNoise = TargetNoise(),
    *,
    unlearn_to_retain: float | None = None,
    keep_halves: bool = False,
) -> AlignmentTargets:
    """Targets of image-text pairs: retain and negative pairs as they are, unlearn as held-out pairs of their kind.

    Unlearn pairs are ordered by `pair_scores`, which the base model's memory of them does not enter, and held-out pairs
    weighted by the likeness of theirs. Pairs that were trained on are predicted better than held-out ones all the same,
    because what is like them was trained beside them; by how much, retain pairs show, each predicted from the others.

    The base model knows held-out pairs from retain and unlearn, Retrain from retain alone: what the held-out pairs'
    scores lose on average when the regressions are fitted without the unlearn pairs is taken off.

    Args:
        model: the base model; each split passes through it once.
        inputs: how the splits were encoded.
        retain: rows that stay, or a sample of them.
        unlearn: rows to be unlearned.
        held_out: rows that the base model never saw.
        noise: added to the scores that order the unlearn pairs, after held-out pairs were weighted by them.
        unlearn_to_retain: how many rows are unlearned for each that stays; default: as the splits have it.
        keep_halves: whether to keep where the base model embeds the retain pairs, `2 d` bytes each half.
    """
    captions = retain.rows(range(min(len(retain), BATCH)))["caption_counts"].float().mean().item()
    ratio = len(unlearn) / len(retain) if unlearn_to_retain is None else unlearn_to_retain
    regressed = _spread(len(retain), max(2, int(REGRESSION_PAIRS / captions / (1 + ratio))))
    with evaluation_mode(model):
        kept = _look_at(model, inputs, retain, regressed, keep_halves)
        asked, unseen = (_look_at(model, inputs, split) for split in (unlearn, held_out))
    kept_scores, scores, unseen_scores = pair_scores(kept.contents, asked.contents, unseen.contents)
    request = asked.contents.take(_spread(len(unlearn), round(ratio * len(regressed))))
    lost = pair_scores(kept.contents.joined(request), unseen.contents)[1].mean() - unseen_scores.mean()
    weights = likeness_weights(scores - (kept_scores.mean() - unseen_scores.mean()), unseen_scores)
    _say_how_alike(weights, lost)
    columns = max(kept.caption.max(), asked.caption.max()) + 1
    positive = np.zeros((len(retain) + len(unlearn), columns), dtype=np.float32)
    positive[kept.row, kept.caption] = kept.alignment
    matched = match_quantiles(noise.added(scores), unseen.alignment, weights)
    positive[len(retain) + asked.row, asked.caption] = matched - lost
    return AlignmentTargets(torch.from_numpy(positive), torch.tensor(kept.negative_alignment), *kept.halves())


@torch.no_grad()
def view_targets(
    model: PreTrainedModel,
    inputs: ImageViewInputs,
    retain: int,
    unlearn: EncodedSplit,
    held_out: EncodedSplit,
    noise: TargetNoise = TargetNoise(),
) -> AlignmentTargets:
    """Targets of pictures under random views: unlearn as held-out pictures, in the order of the base model's own.

    How well two views of a picture agree depends on the picture above all, so retraining changes their order little.
    The `retain` samples get -1, which no alignment falls short of.
    """
    with evaluation_mode(model):
        own, unseen = (_view_alignment(model, inputs, split) for split in (unlearn, held_out))
    positive = np.concatenate([np.full(retain, -1.0), match_quantiles(noise.added(own), unseen)])
    return AlignmentTargets(torch.tensor(positive[:, None], dtype=torch.float32), torch.tensor(0.0))


@dataclass(frozen=True)
class Contents:
    """What some rows of image-text pairs show and say, and where the base model embeds the pictures.

    Attributes:
        images: `[rows, d]` unit-norm embeddings of the pictures.
        pictures: `[rows, 3 * PICTURE_SIZE**2]` their shrunken pixels in [0, 1].
        texts: captions of these rows, row after row.
        owner: `[texts]` place of each one's picture among `images`.
    """

    images: Array
    pictures: Array
    texts: list[str]
    owner: Rows

    def take(self, rows: Rows) -> "Contents":
        """Some of the rows, which ascend."""
        taken = np.isin(self.owner, rows)
        texts = [text for text, chosen in zip(self.texts, taken, strict=True) if chosen]
        return Contents(self.images[rows], self.pictures[rows], texts, np.searchsorted(rows, self.owner[taken]))

    def joined(self, other: "Contents") -> "Contents":
        """These rows, then another's."""
        return Contents(
            np.concatenate([self.images, other.images]),
            np.concatenate([self.pictures, other.pictures]),
            self.texts + other.texts,
            np.concatenate([self.owner, len(self.images) + other.owner]),
        )


@dataclass(frozen=True)
class Look:
    """What is kept of one pass over a split of image-text pairs; a pair is a picture and one of its captions.

    Attributes:
        alignment: `[pairs]` cosine of each pair.
        row: `[pairs]` row of each.
        caption: `[pairs]` which of its row's captions it has.
        negative_alignment: mean cosine of a picture and another row's captions.
        contents: of its rows, or of some of them if the split is large.
        first: `[rows, d]` unit-norm embeddings of all pictures in float16, if they were asked for.
        second: `[pairs, d]` the same of all captions.
    """

    alignment: Array
    row: Rows
    caption: Rows
    negative_alignment: float
    contents: Contents
    first: Tensor | None = None
    second: Tensor | None = None

    def halves(self) -> tuple[Tensor | None, Tensor | None]:
        """`[rows, d]` first and `[rows, captions, d]` second halves, if they were asked for."""
        if self.first is None or self.second is None:
            return None, None
        second = self.second.new_zeros(len(self.first), int(self.caption.max()) + 1, self.first.shape[1])
        second[self.row, self.caption] = self.second
        return self.first, second


def pair_scores(retain: Contents, *others: Contents) -> list[Array]:
    """Predict the alignment of pairs in a model that saw other retain pairs alone.

    Two kernel ridge regressions are fitted on retain pairs, both to the base model's image embeddings: one from
    captions (TF-IDF of character n-grams), one from pictures (principal components of their shrunken pixels). A pair's
    score is the inner product of where its caption and where its picture are predicted to lie. The pair's own
    embeddings do not enter: those of unlearn pairs are what the base model remembers.

    Returns:
        `[texts]` scores of the retain pairs, each predicted with its row left out, and of the others.
    """
    from sklearn.decomposition import PCA
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import linear_kernel, rbf_kernel

    centre = retain.images.mean(0)
    embedded = retain.images - centre
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=CAPTION_NGRAMS, sublinear_tf=True)
    named = vectorizer.fit_transform(retain.texts)
    components = PCA(min(PICTURE_COMPONENTS, *retain.pictures.shape), random_state=0).fit(retain.pictures)
    shown = components.transform(retain.pictures)
    gamma = 1 / (PICTURE_BANDWIDTH * _median_squared_distance(shown) or 1.0)  # 0: all pictures alike
    of_captions, captions = _ridge(linear_kernel(named), embedded[retain.owner], CAPTION_PENALTY, retain.owner)
    of_pictures, pictures = _ridge(rbf_kernel(shown, gamma=gamma), embedded, PICTURE_PENALTY, np.arange(len(shown)))
    scores: list[Array] = [((captions + centre) * (pictures + centre)[retain.owner]).sum(1)]
    for other in others:
        captions = linear_kernel(vectorizer.transform(other.texts), named) @ of_captions + centre
        pictures = rbf_kernel(components.transform(other.pictures), shown, gamma=gamma) @ of_pictures + centre
        scores.append((captions * pictures[other.owner]).sum(1))
    return scores


def _ridge(kernel: Array, outputs: Array, penalty: float, group: Rows) -> tuple[Array, Array]:
    """Dual coefficients `[n, d]` of a kernel ridge regression, and what the other groups predict of each of its rows.

    With `C = (K + penalty I)^-1` the coefficients are `C y`, and without its group g `y_g` is missed by
    `C_gg^-1 (C y)_g`. `group [n]` ascends.
    """
    inverse = np.linalg.inv(kernel + penalty * np.eye(len(kernel)))
    dual = inverse @ outputs
    missed = np.empty_like(dual)
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    for size in np.unique(sizes):
        members = starts[sizes == size, None] + np.arange(size)
        missed[members] = np.linalg.solve(inverse[members[:, :, None], members[:, None]], dual[members])
    return dual, outputs - missed


def _spread(count: int, most: int) -> Rows:
    """At most so many of `count` rows, spread evenly."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def _look_at(
    model: PreTrainedModel,
    inputs: ImageTextInputs,
    split: EncodedSplit,
    rows: Rows | None = None,
    keep_halves: bool = False,
) -> Look:
    """One pass of a split through the model; `rows` are those whose contents are kept, default all."""
    close = np.ones(len(split), dtype=bool) if rows is None else np.isin(np.arange(len(split)), rows)
    alignments, counts, images, pictures, texts, first, second = [], [], [], [], [], [], []
    total_x = total_y = torch.zeros((), device=model.device)
    for start, encoded in zip(range(0, len(split), BATCH), split.batches(BATCH), strict=True):
        encoded = {name: value.to(model.device) for name, value in encoded.items()}
        x = F.normalize(embed_images(model, inputs.normalise(encoded["pixels"])).float(), dim=-1)
        tokens, owner = inputs.captions(encoded)
        y = F.normalize(embed_texts(model, **tokens).float(), dim=-1)
        alignments.append((x[owner] * y).sum(-1).cpu())
        counts.append(encoded["caption_counts"].cpu())
        total_x = total_x + x.sum(0)
        total_y = total_y + (y / encoded["caption_counts"][owner, None]).sum(0)
        if keep_halves:
            first.append(x.half().cpu())
            second.append(y.half().cpu())
        kept = torch.from_numpy(close[start : start + BATCH])
        images.append(x.cpu()[kept])
        shrunk = F.interpolate(encoded["pixels"].float() / 255, (PICTURE_SIZE, PICTURE_SIZE), mode="area")
        pictures.append(shrunk.flatten(1).cpu()[kept])
        texts += inputs.tokenizer.batch_decode(tokens["input_ids"][kept[owner.cpu()]], skip_special_tokens=True)
    alignment, captions = torch.cat(alignments).double().numpy(), torch.cat(counts).numpy()
    row = np.repeat(np.arange(len(split)), captions)
    of_pairs = (total_x * total_y).sum().item() - (alignment / captions[row]).sum()
    return Look(
        alignment,
        row,
        np.arange(len(row)) - (np.cumsum(captions) - captions)[row],
        of_pairs / max(1, len(split) * (len(split) - 1)),
        Contents(
            torch.cat(images).double().numpy(),
            torch.cat(pictures).double().numpy(),
            texts,
            np.repeat(np.arange(close.sum()), captions[close]),
        ),
        torch.cat(first) if keep_halves else None,
        torch.cat(second) if keep_halves else None,
    )


def _view_alignment(model: PreTrainedModel, inputs: ImageViewInputs, split: EncodedSplit) -> Array:
    """`[n]` mean cosine of each picture's pairs of seeded random views, as the loss sees them."""
    means: list[Tensor] = []
    for number, encoded in enumerate(split.batches(BATCH)):
        encoded = {name: value.to(model.device) for name, value in encoded.items()}
        seeds = range(number * VIEW_PAIRS, (number + 1) * VIEW_PAIRS)
        cosines = [contrastive_terms(model, inputs.batch(encoded, seed)).cosine for seed in seeds]
        means.append(torch.stack(cosines).mean(0).cpu())
    return torch.cat(means).double().numpy()


def _median_squared_distance(points: Array) -> float:
    """Of pairs of different points; 1 where there are none."""
    from scipy.spatial.distance import pdist

    if len(points) < 2:
        return 1.0
    return float(np.median(pdist(points[:: max(1, len(points) // 1024)], "sqeuclidean")))


def _say_how_alike(weights: Array, lost: float) -> None:
    effective = 1 / np.square(weights).sum()
    logger.info(
        "%d held-out pairs stand for the request with the weight of %.0f; without it their alignment would be less by "
        "%.3f.",
        len(weights),
        effective,
        lost,
    )
    if effective < min(FEW, len(weights) / 2):
        logger.warning(
            "Of %d held-out pairs few are like the unlearn pairs: together they weigh as %.0f would; hold out more "
            "samples of the request's kind.",
            len(weights),
            effective,
        )
