"""What a model owner measures on a checkpoint: one `Evaluation`, whatever the model family."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from hf_unlearn.data.earlier_rows import EARLIER
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.folders import HOLDOUT
from hf_unlearn.data.preprocessing import ContrastivePreprocessor, Encoded, ImageTextPreprocessor, ImageViewPreprocessor
from hf_unlearn.embedding import BATCH, embed_split
from hf_unlearn.metrics._few import FEW as TOO_FEW
from hf_unlearn.metrics.agreement import agreement
from hf_unlearn.metrics.alignment import matched_cosine
from hf_unlearn.metrics.attacks import MembershipAttack
from hf_unlearn.metrics.cka import linear_cka
from hf_unlearn.metrics.cmia import cmia, fitted_note
from hf_unlearn.metrics.emia import emia, view_alignment
from hf_unlearn.metrics.estimated_gap import ImageTextEvidence, ProbeEvidence, ViewEvidence
from hf_unlearn.metrics.forgetting_score import forgetting_score
from hf_unlearn.metrics.knn_probe import KnnProbe, knn_probe
from hf_unlearn.metrics.linear_probe import LinearProbe, cached_views, linear_probe
from hf_unlearn.metrics.negative_alignment import negative_alignment
from hf_unlearn.metrics.retrieval import Retrieval, retrieval
from hf_unlearn.models.contrastive import embed_images, embed_texts
from hf_unlearn.runs.class_labels import ClassLabels, ZeroShotTask

AUDIT_VIEWS = 10  # views an image, as EMIA takes them
SMALL_SIDE = 64  # pixels
AUDIT_SEED = 2406  # the same views for every model, whatever the run's seed
SPLITS = ("retain", "unlearn", "validation", "test")
COUNTED_ROWS = 10_000  # of a split, whose captions are looked at for how many are cut

FEW = 20  # samples, below which it is much of the estimated gap which ones they are
Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one checkpoint, and what comparisons with other checkpoints need of the unlearn samples.

    Attributes:
        metrics: flat key to number; cosines and shares in percent.
        alignment: `[u]` alignment of each unlearn sample (mean over its captions or view pairs).
        x: `[u, d]` first elements of the unlearn samples (images, or first views).
        y: `[u, d]` second elements (first captions, or second views).
        evidence: what the gap to Retrain is estimated from without Retrain, nothing of it from the test split.
        earlier: `[e]` alignment of each sample of earlier requests; None where there are none.
        spread: `mean |x - mean x|^2` of unit-norm embeddings of held-out pictures: 0 if all point the same way, 1 at
            most.
    """

    metrics: dict[str, float]
    alignment: Array = field(repr=False)
    x: Array = field(repr=False)
    y: Array = field(repr=False)
    evidence: ImageTextEvidence | ViewEvidence = field(repr=False)
    earlier: Array | None = field(default=None, repr=False)
    spread: float = 0.0

    def compared_with(self, before: "Evaluation", original: "Evaluation | None" = None) -> "Evaluation":
        """The same evaluation with what needs the model before unlearning.

        That is the forgetting score, the negative alignment and the estimated gap to Retrain, which is estimated from
        the model before any request, if that is another.
        """
        score = forgetting_score(before.alignment, self.alignment)
        metrics = {**self.metrics, "forgetting_score": 100 * score.mean, "forgetting_score_std": 100 * score.std}
        if len(self.x) > 1:
            negative = negative_alignment(before.x, before.y, self.x, self.y)
            metrics |= {"negative_alignment": 100 * negative.mean, "negative_alignment_std": 100 * negative.std}
        return replace(self, metrics=metrics).with_estimated_gap(original or before)

    def with_estimated_gap(self, before: "Evaluation") -> "Evaluation":
        """The same evaluation with the gap to Retrain that is estimated from the model before unlearning."""
        gap = self.evidence.estimated_gap(before.evidence)  # type: ignore[arg-type]  # one family, one kind of evidence
        found = {"estimated_gap": gap.total, "low_estimated_gap": gap.low, "high_estimated_gap": gap.high}
        parts = {f"estimated_gap_{name}": value for name, value in gap.parts.items()}
        return replace(self, metrics={**self.metrics, **found, **parts})

    def compared_with_retrain(self, retrain: "Evaluation") -> "Evaluation":
        """The same evaluation with its per-sample agreement with Retrain: means can match with the wrong samples."""
        agreed = agreement(self.alignment, retrain.alignment)
        return replace(
            self,
            metrics={
                **self.metrics,
                "agreement_pearson": agreed.pearson,
                "agreement_difference": 100 * agreed.mean_absolute_difference,
                "cka_to_retrain": linear_cka(self.x, retrain.x).similarity,
            },
        )


class Evaluator(ABC):
    """Evaluates any checkpoint of a family on splits that are encoded once.

    Args:
        splits: `retain`, `unlearn`, `validation` and `test`, encoded. The gap to Retrain is estimated from the first
            three; the test split is only reported. Splits `earlier` and `holdout_*` are measured, too, if there are
            any; the latter guard the estimated gap against erasing more than was asked.
        preprocessor: how they were encoded.
    """

    family: ClassVar[str]
    gap_keys: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what a reader of the figures must know of how they were measured

    def __init__(self, splits: Mapping[str, EncodedSplit], preprocessor: ContrastivePreprocessor) -> None:
        self.splits, self.preprocessor = splits, preprocessor
        self._holdouts = tuple(name for name in splits if name.startswith(HOLDOUT))
        self._further = (*((EARLIER,) if splits.get(EARLIER) else ()), *self._holdouts)

    def _holdout(self, alignment: Mapping[str, Array]) -> Array | None:
        """Alignments of all samples of the splits `holdout_*`, one after another."""
        return np.concatenate([alignment[name] for name in self._holdouts]) if self._holdouts else None

    @abstractmethod
    def evaluate(self, model: PreTrainedModel) -> Evaluation:
        """Measure a checkpoint in evaluation mode, on its own device; each process embeds its share of the rows."""


class ImageTextEvaluator(Evaluator):
    """Table 4's cosines and retrieval for dual encoders.

    Args:
        splits: as the base class takes them.
        preprocessor: how they were encoded.
        zero_shot: classes and prompts, where zero-shot accuracy is measured, too.
    """

    family = "image-text"
    gap_keys: tuple[str, ...] = ("cosine_retain", "cosine_unlearn")
    preprocessor: ImageTextPreprocessor

    def __init__(
        self,
        splits: Mapping[str, EncodedSplit],
        preprocessor: ContrastivePreprocessor,
        zero_shot: ZeroShotTask | None = None,
    ) -> None:
        super().__init__(splits, preprocessor)
        self.zero_shot = zero_shot
        self.notes = (*caption_notes(splits, self.preprocessor), *few_notes(splits))

    def evaluate(self, model: PreTrainedModel) -> Evaluation:
        """Matched cosines on every split; R@1 and R@5 on validation and test; all captions of every image."""
        metrics: dict[str, float] = {}
        alignment: dict[str, Array] = {}
        prompts = None if self.zero_shot is None else self.zero_shot.embed(model, self.preprocessor)
        for name in (*SPLITS, *self._further):
            x, y, owner, said = self._embed(model, self.splits[name])
            if self.zero_shot is not None and prompts is not None:
                metrics |= self.zero_shot.accuracy(x, prompts, name)
            cosine = matched_cosine(x, y, owner)
            metrics |= {f"cosine_{name}": cosine.mean, f"cosine_{name}_std": cosine.std}
            captions = np.bincount(owner)
            alignment[name] = np.bincount(owner, cosine.per_sample) / captions
            if name == "unlearn":
                elements = x.numpy(force=True), y[torch.from_numpy(np.cumsum(captions) - captions)].numpy(force=True)
            if name in ("validation", "test"):
                ranks = retrieval(x, y, owner, captions=said)
                recalls = {
                    f"recall_at_{k}_{way}": found[k]
                    for k in (1, 5)
                    for way, found in (("image_to_text", ranks.image_to_text), ("text_to_image", ranks.text_to_image))
                }
                if name == "test":
                    metrics |= recalls
                else:
                    spread = _spread(x)
                    metrics["recall_validation"] = float(np.mean(list(recalls.values())))
                    recall_of_each = _recall_of_each(ranks, owner)
        known = ("cosine_retain", "cosine_unlearn", "cosine_validation", "recall_validation")
        evidence = ImageTextEvidence(
            **{name: metrics[name] for name in known},
            unlearn=alignment["unlearn"],
            validation=alignment["validation"],
            retain=alignment["retain"],
            recalls=recall_of_each,
            holdout=self._holdout(alignment),
        )
        return Evaluation(metrics, alignment["unlearn"], *elements, evidence, alignment.get(EARLIER), spread)

    def _embed(
        self, model: PreTrainedModel, split: EncodedSplit
    ) -> tuple[Tensor, Tensor, npt.NDArray[np.int64], list[bytes]]:
        """Images `[n, d]`, captions `[m, d]`, the index `[m]` of each caption's image, and what the model reads `[m]`.

        Captions that differ only in what the tokenizer drops, or beyond the length it cuts at, read the same.
        """

        def embed(encoded: Encoded, _: int) -> tuple[Tensor, ...]:
            tokens = self.preprocessor.captions(encoded)[0]
            pixels = self.preprocessor.normalise(encoded["pixels"]).to(model.dtype)
            read = torch.cat(list(tokens.values()), dim=1)  # as float32, exact below 16 million
            return embed_images(model, pixels), embed_texts(model, **tokens), encoded["caption_counts"], read

        x, y, counts, read = embed_split(model, split, embed)
        owner = np.repeat(np.arange(len(counts)), counts.long().numpy(force=True))
        return x, y, owner, [tokens.tobytes() for tokens in read.numpy(force=True)]


def _spread(embeddings: Tensor) -> float:
    return F.normalize(embeddings.float(), dim=-1).var(0, correction=0).sum().item()


def _recall_of_each(ranks: Retrieval, owner: npt.NDArray[np.int64]) -> Array:
    """`[n]` share of the recalls at 1 and 5, both ways, that each image and its captions find, in percent."""
    captions = np.bincount(owner)
    of_images, of_texts = ranks.image_ranks.numpy(force=True), ranks.text_ranks.numpy(force=True)
    found = [((of_images < k) + np.bincount(owner, of_texts < k) / captions) / 2 for k in (1, 5)]
    return 100 * np.mean(found, axis=0)


class ImageViewEvaluator(Evaluator):
    """Tables 1 to 3 for SimCLR and MoCo: EMIA, RA, TA, UA, CMIA and what the forgetting score needs.

    Args:
        splits: `retain`, `unlearn`, `validation` and `test`, encoded.
        preprocessor: how they were encoded, and the views they are attacked with.
        labels: split to class labels; without them, the probe's metrics are left out.
        seed: of the linear probe.
    """

    family = "views"
    gap_keys: tuple[str, ...] = ("emia", "retain_accuracy", "test_accuracy", "unlearn_accuracy", "cmia")
    preprocessor: ImageViewPreprocessor

    def __init__(
        self,
        splits: Mapping[str, EncodedSplit],
        preprocessor: ContrastivePreprocessor,
        labels: ClassLabels | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(splits, preprocessor)
        self.labels, self.seed = labels.of if labels is not None else None, seed
        if self.labels is None:
            self.gap_keys = ("emia",)
        self.notes = (*view_notes(splits, labels), *few_notes(splits))

    def evaluate(self, model: PreTrainedModel) -> Evaluation:
        """Attack the encoder with views, and a linear probe on cached views where there are labels.

        The retain views that the attack needs are those the probe trains on, so no picture is embedded twice. The
        attack on the probe is fitted on the host, in a thread, while the device embeds the views of the other splits.
        """
        viewed = {"retain": self._embed_views(model, self.splits["retain"], self._attacked())}
        alignment = {"retain": view_alignment(viewed["retain"])}
        with ThreadPoolExecutor(1) as beside:
            if self.labels is not None:
                probe, near = self._probe(model, self.labels, viewed["retain"])
                confidences = probe.retain_confidence, probe.unlearn_confidence, probe.test_confidence
                attacked = beside.submit(cmia, *confidences)
            viewed |= {name: self._embed_views(model, self.splits[name]) for name in (*SPLITS[1:], *self._further)}
            alignment |= {name: view_alignment(features) for name, features in viewed.items() if name != "retain"}
        attack = emia(alignment["retain"], alignment["unlearn"], alignment["test"])
        metrics = {**_attack_metrics("emia", attack), "emia_signal_auc": attack.signal_auc}
        metrics |= {f"alignment_{name}": 100 * float(alignment[name].mean()) for name in self._holdouts}
        evidence = ViewEvidence(alignment["unlearn"], alignment["validation"], holdout=self._holdout(alignment))
        if self.labels is not None:
            metrics |= _probe_metrics(probe, near, attacked.result())
            evidence = replace(evidence, probe=_probe_evidence(probe))
        unlearn = viewed["unlearn"]
        elements = unlearn[:, 0].numpy(force=True), unlearn[:, 1].numpy(force=True)
        spread = _spread(viewed["validation"][:, 0])
        return Evaluation(metrics, alignment["unlearn"], *elements, evidence, alignment.get(EARLIER), spread)

    def _attacked(self) -> Sequence[int]:
        """Retain rows to take views of: all for the probe, and without it as many as the attack has non-members."""
        retain = len(self.splits["retain"])
        if self.labels is not None:
            return range(retain)
        drawn = np.random.default_rng(AUDIT_SEED).permutation(retain)  # rows may be sorted, by class say
        return np.sort(drawn[: len(self.splits["test"])]).tolist()

    def _probe(
        self, model: PreTrainedModel, labels: Mapping[str, npt.NDArray[np.int64]], views: Tensor
    ) -> tuple[LinearProbe, KnnProbe]:
        def embed(encoded: Encoded, _: int) -> tuple[Tensor, ...]:
            return (embed_images(model, self.preprocessor.normalise(encoded["pixels"]).to(model.dtype)),)

        retain, unlearn, validation, test = (
            (embed_split(model, self.splits[name], embed)[0], labels[name]) for name in SPLITS
        )
        probe = linear_probe(
            retain, unlearn, test, augmented=cached_views(views), seed=self.seed, validation=validation
        )
        return probe, knn_probe(*retain, *test)

    def _embed_views(self, model: PreTrainedModel, split: EncodedSplit, rows: Sequence[int] | None = None) -> Tensor:
        """`[n, views, d]` backbone features of seeded views, the same for every model."""

        def embed(encoded: Encoded, batch: int) -> tuple[Tensor, ...]:
            views = self.preprocessor.views(encoded["pixels"], seed=AUDIT_SEED + batch, count=AUDIT_VIEWS)
            features = embed_images(model, views.flatten(0, 1).to(model.dtype))
            return (features.unflatten(0, (-1, AUDIT_VIEWS)),)

        # Small pictures keep an accelerator busy only by the thousand; large ones fill its memory.
        many = model.device.type != "cpu" and self.preprocessor.views.config.size <= SMALL_SIDE
        return embed_split(model, split, embed, rows, batch_size=BATCH if many else BATCH // 4)[0]


def _probe_evidence(probe: LinearProbe) -> ProbeEvidence:
    assert probe.validation_accuracy is not None and probe.validation_confidence is not None
    return ProbeEvidence(
        probe.retain_accuracy,
        probe.unlearn_accuracy,
        probe.validation_accuracy,
        probe.unlearn_confidence,
        probe.validation_confidence,
        *(probe.hits[name] for name in ("retain", "unlearn", "validation")),
    )


def _probe_metrics(probe: LinearProbe, near: KnnProbe, attack: MembershipAttack) -> dict[str, float]:
    assert probe.validation_accuracy is not None
    return {
        "retain_accuracy": probe.retain_accuracy,
        "validation_accuracy": probe.validation_accuracy,
        "test_accuracy": probe.test_accuracy,
        "unlearn_accuracy": probe.unlearn_accuracy,
        "knn_accuracy": near.accuracy,
        **_attack_metrics("cmia", attack),
    }


def _attack_metrics(name: str, attack: MembershipAttack) -> dict[str, float]:
    parts = ("distance", "auc", "tpr_at_1_fpr")
    return {name: attack.efficacy, **{f"{name}_{part}": getattr(attack, part) for part in parts}}


def caption_notes(splits: Mapping[str, EncodedSplit], preprocessor: ImageTextPreprocessor) -> tuple[str, ...]:
    """What is to be said of captions of retain and unlearn whose last words no model reads."""
    counted = cut = 0
    trained = [splits[name].dataset for name in ("retain", "unlearn") if name in splits]
    for rows in trained:
        texts = rows.select_columns("captions").select(range(min(len(rows), COUNTED_ROWS)))["captions"]
        captions = [text for each in texts for text in ([each] if isinstance(each, str) else each)]
        counted, cut = counted + len(captions), cut + preprocessor.cut(captions)
    if not cut:
        return ()
    looked_at = " that were counted" if any(len(rows) > COUNTED_ROWS for rows in trained) else ""
    return (
        f"Captions are cut to {preprocessor.max_length} tokens: {cut:,} of the {counted:,} in retain and unlearn"
        f"{looked_at} are longer, and nothing is learned of, unlearned or measured by what stands beyond.",
    )


def few_notes(splits: Mapping[str, EncodedSplit]) -> tuple[str, ...]:
    """What is to be said where the estimated gap is read off so few samples that others would give another one."""
    sizes = {name: len(splits[name]) for name in ("unlearn", "validation") if name in splits}
    few = [f"{name} {size}" for name, size in sizes.items() if size < FEW]
    if not few:
        return ()
    told = f"The estimated gap is read off few samples ({', '.join(few)}): which ones they are moves it by points, and "
    told += "Retrain's own is not near 0, either."
    if min(sizes.values()) < TOO_FEW:
        told += " Its interval is too narrow; of one sample alone it knows no spread at all."
    return (told,)


def view_notes(splits: Mapping[str, EncodedSplit | Dataset], labels: ClassLabels | None) -> tuple[str, ...]:
    """What is to be said of a view encoder's figures on these splits: a probe that is left out, attacks on a draw."""
    if labels is None or labels.of is None:
        reason = labels.reason if labels is not None else ""
        return (f"The linear probe's metrics (RA, TA, UA, CMIA) are left out. {reason}".strip(),)
    note = fitted_note(len(splits["retain"]), len(splits["test"]))
    return (note,) if note is not None else ()
