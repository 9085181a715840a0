"""The metrics as `evaluate.Metric` modules: columns in, a dictionary of numbers out, the functions beside them inside.

A sample's split ("retain", "unlearn" or "test"), where one is asked for, is a column of its own, so that batches may
mix splits.
"""

from dataclasses import fields
from typing import Any, ClassVar, Literal, TypeAlias

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.agreement import agreement
from hf_unlearn.metrics.alignment import matched_cosine
from hf_unlearn.metrics.cka import linear_cka
from hf_unlearn.metrics.cmia import cmia
from hf_unlearn.metrics.emia import emia
from hf_unlearn.metrics.forgetting_score import forgetting_score
from hf_unlearn.metrics.knn_probe import knn_probe
from hf_unlearn.metrics.linear_probe import linear_probe
from hf_unlearn.metrics.negative_alignment import negative_alignment
from hf_unlearn.metrics.retrieval import retrieval

SPLITS = ("retain", "unlearn", "test")

VECTOR = datasets.Sequence(datasets.Value("float64"))
NUMBER = datasets.Value("float64")
CLASS = datasets.Value("int64")
NAME = datasets.Value("string")
Column: TypeAlias = npt.NDArray[Any]  # of vectors, numbers, classes or names, as `columns` says

CITATION = """\
@article{wang2024alignment,
  title   = {Alignment Calibration: Machine Unlearning for Contrastive Learning under Auditing},
  author  = {Wang, Yihan and Lu, Yiwei and Zhang, Guojun and Boenisch, Franziska and Dziedzic, Adam and Yu, Yaoliang
             and Gao, Xiao-Shan},
  journal = {arXiv preprint arXiv:2406.03603},
  year    = {2024}
}"""


class ColumnMetric(evaluate.Metric):
    """A metric whose subclass says its columns and hands them to a pure function."""

    columns: ClassVar[dict[str, object]]

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation=CITATION,
            inputs_description=", ".join(self.columns),
            features=datasets.Features(self.columns),
        )

    def _compute(self, **inputs: object) -> dict[str, float]:
        # evaluate hands out nested lists; its own NumPy format refuses columns of vectors
        return self._measure(**{k: np.asarray(v) if k in self.columns else v for k, v in inputs.items()})

    def _measure(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        raise NotImplementedError


class MatchedCosineMetric(ColumnMetric):
    """`matched_cosine` of image embeddings (predictions) and their captions' (references), times 100."""

    columns: ClassVar = {"predictions": VECTOR, "references": VECTOR}

    def _measure(self, predictions: Column, references: Column) -> dict[str, float]:
        return numbers(matched_cosine(predictions, references))


class RetrievalMetric(ColumnMetric):
    """`retrieval` between image embeddings (predictions) and their captions' (references), in percent."""

    columns: ClassVar = {"predictions": VECTOR, "references": VECTOR}

    def _measure(self, predictions: Column, references: Column, ks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
        result = retrieval(predictions, references, ks=ks)
        to_text = {f"recall_at_{k}_image_to_text": share for k, share in result.image_to_text.items()}
        to_image = {f"recall_at_{k}_text_to_image": share for k, share in result.text_to_image.items()}
        return to_text | to_image


class ForgettingScoreMetric(ColumnMetric):
    """`forgetting_score` from alignments after unlearning (predictions) and before (references)."""

    columns: ClassVar = {"predictions": NUMBER, "references": NUMBER}

    def _measure(self, predictions: Column, references: Column) -> dict[str, float]:
        return numbers(forgetting_score(before=references, after=predictions))


class NegativeAlignmentMetric(ColumnMetric):
    """`negative_alignment` of the unlearn samples' two elements before and after unlearning."""

    columns: ClassVar = {"x_before": VECTOR, "y_before": VECTOR, "x_after": VECTOR, "y_after": VECTOR}

    def _measure(self, x_before: Column, y_before: Column, x_after: Column, y_after: Column) -> dict[str, float]:
        return numbers(negative_alignment(x_before, y_before, x_after, y_after))


class EmiaMetric(ColumnMetric):
    """`emia` of view alignments (predictions) with each sample's split (references)."""

    columns: ClassVar = {"predictions": NUMBER, "references": NAME}

    def _measure(
        self, predictions: Column, references: Column, preset: Literal["paper", "reference"] = "paper"
    ) -> dict[str, float]:
        return numbers(emia(*by_split(predictions, references), preset=preset))


class CmiaMetric(ColumnMetric):
    """`cmia` of true-class confidences (predictions) with each sample's split (references)."""

    columns: ClassVar = {"predictions": NUMBER, "references": NAME}

    def _measure(self, predictions: Column, references: Column) -> dict[str, float]:
        return numbers(cmia(*by_split(predictions, references)))


class LinearProbeMetric(ColumnMetric):
    """`linear_probe`, plain protocol, of features (predictions), classes (references) and splits, in percent."""

    columns: ClassVar = {"predictions": VECTOR, "references": CLASS, "splits": NAME}

    def _measure(self, predictions: Column, references: Column, splits: Column, **settings: Any) -> dict[str, float]:
        retain, unlearn, test = zip(by_split(predictions, splits), by_split(references, splits), strict=True)
        return numbers(linear_probe(retain, unlearn, test, **settings))


class KnnProbeMetric(ColumnMetric):
    """`knn_probe` of features (predictions), classes (references) and splits, with retain as neighbours, in percent."""

    columns: ClassVar = {"predictions": VECTOR, "references": CLASS, "splits": NAME}

    def _measure(self, predictions: Column, references: Column, splits: Column, **settings: Any) -> dict[str, float]:
        known, *queries = zip(by_split(predictions, splits), by_split(references, splits), strict=True)
        unlearn, test = (knn_probe(*known, *query, **settings).accuracy for query in queries)
        return {"unlearn_accuracy": unlearn, "test_accuracy": test}


class LinearCkaMetric(ColumnMetric):
    """`linear_cka` of a model's features (predictions) and Retrain's (references)."""

    columns: ClassVar = {"predictions": VECTOR, "references": VECTOR}

    def _measure(self, predictions: Column, references: Column) -> dict[str, float]:
        return numbers(linear_cka(predictions, references))


class AgreementMetric(ColumnMetric):
    """`agreement` of a model's alignments of the unlearn samples (predictions) with Retrain's (references)."""

    columns: ClassVar = {"predictions": NUMBER, "references": NUMBER}

    def _measure(self, predictions: Column, references: Column) -> dict[str, float]:
        return numbers(agreement(predictions, references))


def by_split(values: Column, splits: Column) -> tuple[Column, Column, Column]:
    """The rows of retain, of unlearn and of test, each in the given order."""
    found = set(map(str, splits))
    if found != set(SPLITS):
        raise UserError(f"splits: samples of retain, unlearn and test are needed, and no others; got {sorted(found)}")
    retain, unlearn, test = (values[splits == name] for name in SPLITS)
    return retain, unlearn, test


def numbers(result: Any) -> dict[str, float]:
    """The fields of a metric's result that are numbers."""
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}
