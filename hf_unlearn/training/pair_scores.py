"""Scores that predict how aligned a pair would be in a model that never saw it, from what the pair shows and says."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.preprocessing import ImageTextPreprocessor
from hf_unlearn.models.contrastive import embed_images, embed_texts
from hf_unlearn.training.features import FeatureEncoder

Array = npt.NDArray[np.floating]
Rows = npt.NDArray[np.int64]

BATCH = 256
CHUNK = 2**24  # pairs of pairs compared at a time
# Of the ridge regressions from what a retain sample looks like to where the base model embeds it.
CAPTION_NGRAMS = (2, 4)  # characters
CAPTION_PENALTY = 0.1
PICTURE_SIZE = 16  # pixels
PICTURE_COMPONENTS = 64
PICTURE_BANDWIDTH = 0.3  # times the median squared distance
PICTURE_PENALTY = 0.3
# Where another encoder's embeddings add exp(sharpness (cos - 1)): one penalty for pictures and captions.
EMBEDDING_SHARPNESS = 2.0
EMBEDDING_PENALTY = 1.0


@dataclass(frozen=True)
class PairFeatures:
    """What some rows of image-text pairs show and say, and where the base model embeds the pictures.

    Attributes:
        images: `[rows, d]` unit-norm embeddings of the pictures.
        pictures: `[rows, 3 * PICTURE_SIZE**2]` their shrunken pixels in [0, 1].
        texts: captions of these rows, row after row.
        owner: `[texts]` place of each one's picture among `images`.
        encoded: unit-norm embeddings of the pictures `[rows, d']` and of the captions `[texts, d']`, by each other
            encoder.
    """

    images: Array
    pictures: Array
    texts: list[str]
    owner: Rows
    encoded: tuple[tuple[Array, Array], ...] = ()

    def take(self, rows: Rows) -> "PairFeatures":
        """Some of the rows, which ascend."""
        taken = np.isin(self.owner, rows)
        texts = [text for text, chosen in zip(self.texts, taken, strict=True) if chosen]
        encoded = tuple((shown[rows], named[taken]) for shown, named in self.encoded)
        owner = np.searchsorted(rows, self.owner[taken])
        return PairFeatures(self.images[rows], self.pictures[rows], texts, owner, encoded)

    def parts(self, texts: int) -> Iterator["PairFeatures"]:
        """Parts of about so many captions, or of one row, in order."""
        count = min(len(self.images), -(-len(self.texts) // max(1, texts)))
        for rows in np.array_split(np.arange(len(self.images)), count):
            yield self.take(rows)

    def by(self, encoder: int) -> "PairFeatures":
        """The same with the embeddings of one of the other encoders alone."""
        return replace(self, encoded=self.encoded[encoder : encoder + 1])

    @property
    def encoder_alignment(self) -> Array:
        """`[texts]` cosine of each caption with its picture in the first of the other encoders."""
        shown, named = self.encoded[0]
        return (named * shown[self.owner]).sum(1)

    def joined(self, other: "PairFeatures") -> "PairFeatures":
        """These rows, then another's."""
        return PairFeatures(
            np.concatenate([self.images, other.images]),
            np.concatenate([self.pictures, other.pictures]),
            self.texts + other.texts,
            np.concatenate([self.owner, len(self.images) + other.owner]),
            tuple(
                (np.concatenate([shown, others]), np.concatenate([named, captions]))
                for (shown, named), (others, captions) in zip(self.encoded, other.encoded, strict=True)
            ),
        )


Kernel = Callable[[PairFeatures], Any]  # `[others, retain]`


@dataclass(frozen=True)
class EmbeddedPairs:
    """What is kept of one pass over a split of image-text pairs; a pair is a picture and one of its captions.

    Attributes:
        alignment: `[pairs]` cosine of each pair.
        row: `[pairs]` row of each.
        caption: `[pairs]` which of its row's captions it has.
        negative_alignment: mean cosine of a picture and another row's captions.
        features: of its rows, or of some of them if the split is large.
        first: `[rows, d]` unit-norm embeddings of all pictures in float16, if they were asked for.
        second: `[pairs, d]` the same of all captions.
    """

    alignment: Array
    row: Rows
    caption: Rows
    negative_alignment: float
    features: PairFeatures
    first: Tensor | None = None
    second: Tensor | None = None

    def embeddings(self) -> tuple[Tensor | None, Tensor | None]:
        """`[rows, d]` of the pictures and `[rows, captions, d]` of the captions, if they were asked for."""
        if self.first is None or self.second is None:
            return None, None
        second = self.second.new_zeros(len(self.first), int(self.caption.max()) + 1, self.first.shape[1])
        second[self.row, self.caption] = self.second
        return self.first, second


def embed_pairs(
    model: PreTrainedModel,
    preprocessor: ImageTextPreprocessor,
    split: EncodedSplit,
    rows: Rows | None = None,
    keep_embeddings: bool = False,
    encoders: Sequence[FeatureEncoder] = (),
) -> EmbeddedPairs:
    """One pass of a split through the model and through some other encoders.

    `rows` are those whose features are kept, default all.
    """
    close = np.ones(len(split), dtype=bool) if rows is None else np.isin(np.arange(len(split)), rows)
    alignments, counts, images, pictures, texts, first, second = [], [], [], [], [], [], []
    encoded_pairs: list[list[tuple[Array, Array]]] = [[] for _ in encoders]
    total_x = total_y = torch.zeros((), device=model.device)
    for start, encoded in zip(range(0, len(split), BATCH), split.batches(BATCH), strict=True):
        encoded = {name: value.to(model.device) for name, value in encoded.items()}
        x = F.normalize(embed_images(model, preprocessor.normalise(encoded["pixels"])).float(), dim=-1)
        tokens, owner = preprocessor.captions(encoded)
        y = F.normalize(embed_texts(model, **tokens).float(), dim=-1)
        alignments.append((x[owner] * y).sum(-1).cpu())
        counts.append(encoded["caption_counts"].cpu())
        total_x = total_x + x.sum(0)
        total_y = total_y + (y / encoded["caption_counts"][owner, None]).sum(0)
        if keep_embeddings:
            first.append(x.half().cpu())
            second.append(y.half().cpu())
        kept = torch.from_numpy(close[start : start + BATCH])
        images.append(x.cpu()[kept])
        shrunk = F.interpolate(encoded["pixels"].float() / 255, (PICTURE_SIZE, PICTURE_SIZE), mode="area")
        pictures.append(shrunk.flatten(1).cpu()[kept])
        said = preprocessor.tokenizer.batch_decode(tokens["input_ids"][kept[owner.cpu()]], skip_special_tokens=True)
        texts += said
        if said:
            for encoder, pairs in zip(encoders, encoded_pairs, strict=True):
                pairs.append((encoder.images(encoded["pixels"].cpu()[kept]), encoder.texts(said)))
    alignment, captions = torch.cat(alignments).double().numpy(), torch.cat(counts).numpy()
    row = np.repeat(np.arange(len(split)), captions)
    of_pairs = (total_x * total_y).sum().item() - (alignment / captions[row]).sum()
    return EmbeddedPairs(
        alignment,
        row,
        np.arange(len(row)) - (np.cumsum(captions) - captions)[row],
        of_pairs / max(1, len(split) * (len(split) - 1)),
        PairFeatures(
            torch.cat(images).double().numpy(),
            torch.cat(pictures).double().numpy(),
            texts,
            np.repeat(np.arange(close.sum()), captions[close]),
            tuple((np.concatenate([x for x, _ in p]), np.concatenate([y for _, y in p])) for p in encoded_pairs),
        ),
        torch.cat(first) if keep_embeddings else None,
        torch.cat(second) if keep_embeddings else None,
    )


def pair_scores(retain: PairFeatures, *others: PairFeatures) -> list[Array]:
    """Two scores that tell how aligned pairs would be in a model that saw other retain pairs alone.

    The first is the inner product of where a pair's caption and where its picture are predicted to lie. Two kernel
    ridge regressions, fitted on retain pairs, predict these places from the captions (TF-IDF of character n-grams) and
    from the pictures (principal components of their shrunken pixels); both learn where the base model embeds the
    pictures. The second is how near the nearest retain pair is: the largest product of both kernels. Another encoder's
    embeddings (the first one's), where there are any, add the kernel `exp(2 (cos - 1))` to both.

    The pair's own embeddings by the base model do not enter: those of unlearn pairs are what it remembers.

    Returns:
        `[2, texts]` of each of the others.
    """
    centre = retain.images.mean(0)
    embedded = retain.images - centre
    like_captions, like_pictures, penalties = _kernels(retain)
    of_captions = _ridge(like_captions(retain), embedded[retain.owner], penalties[0])
    of_pictures = _ridge(like_pictures(retain), embedded, penalties[1])

    def scores(other: PairFeatures) -> Array:
        near, by_picture = like_captions(other), like_pictures(other)
        captions, pictures = near @ of_captions + centre, by_picture @ of_pictures + centre
        near *= by_picture[np.ix_(other.owner, retain.owner)]
        return np.stack([(captions * pictures[other.owner]).sum(1), near.max(1)])

    return [
        np.concatenate([scores(part) for part in other.parts(CHUNK // len(retain.texts))], axis=1) for other in others
    ]


def _kernels(retain: PairFeatures) -> tuple[Kernel, Kernel, tuple[float, float]]:
    """How alike other captions, and other pictures, are to those of retain, and the penalties of both regressions."""
    from sklearn.decomposition import PCA
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import linear_kernel, rbf_kernel

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=CAPTION_NGRAMS, sublinear_tf=True)
    legible = any(text.strip() for text in retain.texts)  # not where a tokenizer knows none of their words
    said = vectorizer.fit_transform(retain.texts) if legible else None
    with np.errstate(invalid="ignore"):  # of pictures all alike, whose shares of no variance nobody reads
        components = PCA(min(PICTURE_COMPONENTS, *retain.pictures.shape), random_state=0).fit(retain.pictures)
    seen = components.transform(retain.pictures)
    gamma = 1 / (PICTURE_BANDWIDTH * _median_squared_distance(seen) or 1.0)  # 0: all pictures alike

    def by_n_grams(other: PairFeatures) -> Array:
        if said is None:
            return np.zeros((len(other.texts), len(retain.texts)))
        return linear_kernel(said if other is retain else vectorizer.transform(other.texts), said)

    def by_pixels(other: PairFeatures) -> Array:
        return rbf_kernel(seen if other is retain else components.transform(other.pictures), seen, gamma=gamma)

    if not retain.encoded:
        return by_n_grams, by_pixels, (CAPTION_PENALTY, PICTURE_PENALTY)
    shown, named = retain.encoded[0]
    return (
        lambda other: by_n_grams(other) + np.exp(EMBEDDING_SHARPNESS * (other.encoded[0][1] @ named.T - 1)),
        lambda other: by_pixels(other) + np.exp(EMBEDDING_SHARPNESS * (other.encoded[0][0] @ shown.T - 1)),
        (EMBEDDING_PENALTY, EMBEDDING_PENALTY),
    )


def _ridge(kernel: Array, outputs: Array, penalty: float) -> Array:
    """Dual coefficients `[n, d]` of a kernel ridge regression; the kernel is used up."""
    from scipy.linalg import solve

    kernel[np.diag_indices_from(kernel)] += penalty
    return solve(kernel, outputs, assume_a="pos", overwrite_a=True)


def _median_squared_distance(points: Array) -> float:
    """Of pairs of different points; 1 where there are none."""
    from scipy.spatial.distance import pdist

    if len(points) < 2:
        return 1.0
    return float(np.median(pdist(points[:: max(1, len(points) // 1024)], "sqeuclidean")))
