"""The metrics as `evaluate.Metric` modules: columns in, a dictionary of numbers out, the functions beside them inside.

A sample's split ("retain", "unlearn" or "test"), where one is asked for, is a column of its own, so that batches may
mix splits.
"""

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

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
from hf_unlearn.metrics.linear_probe import LinearProbe, linear_probe
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
    """A metric whose subclass says its columns, and which function of them, in their order, it is."""

    columns: ClassVar[dict[str, object]]
    _measure: ClassVar[Callable[..., Any]]

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation=CITATION,
            inputs_description=", ".join(self.columns),
            features=datasets.Features(self.columns),
        )

    def _compute(self, **inputs: Any) -> dict[str, float]:
        # evaluate hands out nested lists; its own NumPy format refuses columns of vectors
        columns = [np.asarray(inputs.pop(name)) for name in self.columns]
        return numbers(self._measure(*columns, **inputs))


class MatchedCosineMetric(ColumnMetric):
    """`matched_cosine` of image embeddings (predictions) and their captions' (references), times 100."""

    columns: ClassVar = {"predictions": VECTOR, "references": VECTOR}
    _measure = staticmethod(matched_cosine)


class RetrievalMetric(ColumnMetric):
    """`retrieval` between image embeddings (predictions) and their captions' (references), in percent."""

    columns: ClassVar = {"predictions": VECTOR, "references": VECTOR}

    @staticmethod
    def _measure(predictions: Column, references: Column, ks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
        result = retrieval(predictions, references, ks=ks)
        to_text = {f"recall_at_{k}_image_to_text": share for k, share in result.image_to_text.items()}
        to_image = {f"recall_at_{k}_text_to_image": share for k, share in result.text_to_image.items()}
        return to_text | to_image


class ForgettingScoreMetric(ColumnMetric):
    """`forgetting_score` from alignments after unlearning (predictions) and before (references)."""

    columns: ClassVar = {"predictions": NUMBER, "references": NUMBER}
    _measure = staticmethod(lambda after, before: forgetting_score(before, after))


class NegativeAlignmentMetric(ColumnMetric):
    """`negative_alignment` of the unlearn samples' two elements before and after unlearning."""

    columns: ClassVar = {"x_before": VECTOR, "y_before": VECTOR, "x_after": VECTOR, "y_after": VECTOR}
    _measure = staticmethod(negative_alignment)


class EmiaMetric(ColumnMetric):
    """`emia` of view alignments (predictions) with each sample's split (references)."""

    columns: ClassVar = {"predictions": NUMBER, "references": NAME}
    _measure = staticmethod(lambda scores, splits, **preset: emia(*by_split(scores, splits), **preset))


class CmiaMetric(ColumnMetric):
    """`cmia` of true-class confidences (predictions) with each sample's split (references)."""

    columns: ClassVar = {"predictions": NUMBER, "references": NAME}
    _measure = staticmethod(lambda confidences, splits: cmia(*by_split(confidences, splits)))


class LinearProbeMetric(ColumnMetric):
    """`linear_probe`, plain protocol, of features (predictions), classes (references) and splits, in percent."""

    columns: ClassVar = {"predictions": VECTOR, "references": CLASS, "splits": NAME}

    @staticmethod
    def _measure(features: Column, classes: Column, splits: Column, **settings: Any) -> LinearProbe:
        retain, unlearn, test = zip(by_split(features, splits), by_split(classes, splits), strict=True)
        return linear_probe(retain, unlearn, test, **settings)


class KnnProbeMetric(ColumnMetric):
    """`knn_probe` of features (predictions), classes (references) and splits, with retain as neighbours, in percent."""

    columns: ClassVar = {"predictions": VECTOR, "references": CLASS, "splits": NAME}

    @staticmethod
    def _measure(features: Column, classes: Column, splits: Column, **settings: Any) -> dict[str, float]:
        known, *queries = zip(by_split(features, splits), by_split(classes, splits), strict=True)
        unlearn, test = (knn_probe(*known, *query, **settings).accuracy for query in queries)
        return {"unlearn_accuracy": unlearn, "test_accuracy": test}


class LinearCkaMetric(ColumnMetric):
    """`linear_cka` of a model's features (predictions) and Retrain's (references)."""

    columns: ClassVar = {"predictions": VECTOR, "references": VECTOR}
    _measure = staticmethod(linear_cka)


class AgreementMetric(ColumnMetric):
    """`agreement` of a model's alignments of the unlearn samples (predictions) with Retrain's (references)."""

    columns: ClassVar = {"predictions": NUMBER, "references": NUMBER}
    _measure = staticmethod(agreement)


def by_split(values: Column, splits: Column) -> tuple[Column, Column, Column]:
    """The rows of retain, of unlearn and of test, each in the given order."""
    found = set(map(str, splits))
    if found != set(SPLITS):
        raise UserError(f"splits: samples of retain, unlearn and test are needed, and no others; got {sorted(found)}")
    retain, unlearn, test = (values[splits == name] for name in SPLITS)
    return retain, unlearn, test


def numbers(result: Any) -> dict[str, float]:
    """The numbers of a metric's result, by name."""
    values = result if isinstance(result, dict) else vars(result)
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}
