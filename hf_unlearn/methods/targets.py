"""What exact retraining would make of each sample's alignment, predicted from the base model without retraining.

After exact retraining the unlearn samples are samples the model never saw, as held-out ones already are. So their
alignments should be distributed as those of held-out samples under the base model, and those of retain samples should
stay. Which unlearn sample gets which of these alignments follows from a score of each.
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
from hf_unlearn.data.inputs import ImageTextInputs, ImageViewInputs
from hf_unlearn.models.contrastive import contrastive_terms, embed_images, embed_texts, evaluation_mode

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.floating]
Rows = npt.NDArray[np.int64]

BATCH = 256
VIEW_PAIRS = 8  # pairs of random views that a picture's alignment is averaged over
# Ridge regressions from what a retain sample looks like to where the base model embeds it.
REGRESSION_ROWS = 8192  # they are fitted on at most so many samples: their cost is cubic
CAPTION_NGRAMS = (2, 4)  # characters
CAPTION_PENALTY = 0.1
PICTURE_SIZE = 16  # pixels
PICTURE_COMPONENTS = 64
PICTURE_BANDWIDTH = 0.3  # times the median squared distance
PICTURE_PENALTY = 0.3
UNLIKE = 1e-3  # p-value below which the request is called unlike the held-out samples


@dataclass(frozen=True)
class AlignmentTargets:
    """Cosines to train towards.

    Attributes:
        positive: `[retain + unlearn, captions]` cosine of each sample with each of its second halves, retain first;
            what stands beyond a sample's last caption is not used. One column for view encoders.
        negative: scalar, mean cosine of halves of different samples.
    """

    positive: Tensor
    negative: Tensor

    def to(self, device: torch.device) -> "AlignmentTargets":
        """The same targets on a device."""
        return AlignmentTargets(self.positive.to(device), self.negative.to(device))


def match_quantiles(scores: Array, sample: Array) -> Array:
    """`[n]` values distributed as `sample [m]` and ordered as `scores [n]`.

    The k-th smallest score is given the `(k - 1/2) / n` quantile of the sample.
    """
    ranks = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
    return np.quantile(sample, (ranks + 0.5) / len(scores))


@torch.no_grad()
def pair_targets(
    model: PreTrainedModel, inputs: ImageTextInputs, retain: EncodedSplit, unlearn: EncodedSplit, held_out: EncodedSplit
) -> AlignmentTargets:
    """Targets of image-text pairs: retain and negative pairs as they are, unlearn as held-out pairs.

    Unlearn pairs are ordered by `pair_scores`, which the base model's memory of them does not enter.

    Args:
        model: the base model; each split passes through it once.
        inputs: how the splits were encoded.
        retain: rows that stay.
        unlearn: rows to be unlearned.
        held_out: rows that the base model never saw.
    """
    rows = np.linspace(0, len(retain) - 1, min(len(retain), REGRESSION_ROWS)).astype(np.int64)
    with evaluation_mode(model):
        kept = _look_at(model, inputs, retain, rows)
        asked, unseen = (_look_at(model, inputs, split) for split in (unlearn, held_out))
    scores, unseen_scores = pair_scores(kept, asked, unseen)
    _say_if_unlike(scores, unseen_scores)
    captions = max(kept.caption.max(), asked.caption.max()) + 1
    positive = np.zeros((len(retain) + len(unlearn), captions), dtype=np.float32)
    positive[kept.row, kept.caption] = kept.alignment
    positive[len(retain) + asked.row, asked.caption] = match_quantiles(scores, unseen.alignment)
    return AlignmentTargets(torch.from_numpy(positive), torch.tensor(kept.negative_alignment))


@torch.no_grad()
def view_targets(
    model: PreTrainedModel, inputs: ImageViewInputs, retain: int, unlearn: EncodedSplit, held_out: EncodedSplit
) -> AlignmentTargets:
    """Targets of pictures under random views: unlearn as held-out pictures, in the order of the base model's own.

    How well two views of a picture agree depends on the picture above all, so retraining changes their order little.
    The `retain` samples get -1, which no alignment falls short of.
    """
    with evaluation_mode(model):
        own, unseen = (_view_alignment(model, inputs, split) for split in (unlearn, held_out))
    positive = np.concatenate([np.full(retain, -1.0), match_quantiles(own, unseen)])
    return AlignmentTargets(torch.tensor(positive[:, None], dtype=torch.float32), torch.tensor(0.0))


@dataclass(frozen=True)
class Look:
    """What is kept of one pass over a split of image-text pairs; a pair is a picture and one of its captions.

    Attributes:
        alignment: `[pairs]` cosine of each pair.
        row: `[pairs]` row of each.
        caption: `[pairs]` which of its row's captions it has.
        negative_alignment: mean cosine of a picture and another row's captions.
        images: `[rows, d]` unit-norm embeddings of the pictures, some of them if the split is large.
        pictures: `[rows, 3 * PICTURE_SIZE**2]` their shrunken pixels in [0, 1].
        texts: captions of these rows.
        owner: `[texts]` place of each one's picture among `images`.
    """

    alignment: Array
    row: Rows
    caption: Rows
    negative_alignment: float
    images: Array
    pictures: Array
    texts: list[str]
    owner: Rows


def pair_scores(retain: Look, *others: Look) -> list[Array]:
    """Predict the alignment of other pairs in a model that saw retain alone: a score `[pairs]` for each of them.

    Two kernel ridge regressions are fitted on retain pairs, both to the base model's image embeddings: one from
    captions (TF-IDF of character n-grams), one from pictures (principal components of their shrunken pixels). A pair's
    score is the inner product of where its caption and where its picture are predicted to lie. The pair's own
    embeddings do not enter: those of unlearn pairs are what the base model remembers.
    """
    from sklearn.decomposition import PCA
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.kernel_ridge import KernelRidge

    centre = retain.images.mean(0)
    embedded = retain.images - centre
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=CAPTION_NGRAMS, sublinear_tf=True)
    of_captions = KernelRidge(alpha=CAPTION_PENALTY, kernel="linear")
    of_captions.fit(vectorizer.fit_transform(retain.texts), embedded[retain.owner])

    components = PCA(min(PICTURE_COMPONENTS, *retain.pictures.shape), random_state=0).fit(retain.pictures)
    reduced = components.transform(retain.pictures)
    width = PICTURE_BANDWIDTH * _median_squared_distance(reduced) or 1.0  # 0: all pictures alike
    of_pictures = KernelRidge(alpha=PICTURE_PENALTY, kernel="rbf", gamma=1 / width).fit(reduced, embedded)

    scores: list[Array] = []
    for look in others:
        captions = of_captions.predict(vectorizer.transform(look.texts)) + centre
        pictures = of_pictures.predict(components.transform(look.pictures)) + centre
        scores.append((captions * pictures[look.owner]).sum(1))
    return scores


def _look_at(model: PreTrainedModel, inputs: ImageTextInputs, split: EncodedSplit, rows: Rows | None = None) -> Look:
    """One pass of a split through the model; `rows` are those whose contents are kept, default all."""
    close = np.ones(len(split), dtype=bool) if rows is None else np.isin(np.arange(len(split)), rows)
    alignments, counts, images, pictures, texts = [], [], [], [], []
    total_x = total_y = torch.zeros((), device=model.device)
    for start, encoded in zip(range(0, len(split), BATCH), split.batches(BATCH), strict=True):
        encoded = {name: value.to(model.device) for name, value in encoded.items()}
        x = F.normalize(embed_images(model, inputs.normalise(encoded["pixels"]).to(model.dtype)).float(), dim=-1)
        tokens, owner = inputs.captions(encoded)
        y = F.normalize(embed_texts(model, **tokens).float(), dim=-1)
        alignments.append((x[owner] * y).sum(-1).cpu())
        counts.append(encoded["caption_counts"].cpu())
        total_x = total_x + x.sum(0)
        total_y = total_y + (y / encoded["caption_counts"][owner, None]).sum(0)
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
        torch.cat(images).double().numpy(),
        torch.cat(pictures).double().numpy(),
        texts,
        np.repeat(np.arange(close.sum()), captions[close]),
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
    from scipy.spatial.distance import pdist

    return float(np.median(pdist(points[:: max(1, len(points) // 1024)], "sqeuclidean")))


def _say_if_unlike(scores: Array, unseen: Array) -> None:
    """Warn where the request differs in kind from the held-out samples that stand in for it."""
    from scipy.stats import ks_2samp

    test = ks_2samp(scores, unseen)
    logger.info("Unlearn and held-out samples differ by a Kolmogorov-Smirnov distance of %.2f.", test.statistic)
    if test.pvalue < UNLIKE:
        logger.warning(
            "The unlearn samples look unlike the held-out ones, whose alignments they are given (Kolmogorov-Smirnov "
            "distance %.2f); hold out samples of the request's kind.",
            test.statistic,
        )
