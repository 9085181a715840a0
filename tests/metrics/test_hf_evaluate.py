"""Each wrapper gives the numbers of the function it wraps, also when fed batch by batch and combined."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest

from hf_unlearn.errors import UserError
from hf_unlearn.metrics import hf_evaluate
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

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 40, 6))
SPLITS = np.repeat(["retain", "unlearn", "test"], [20, 8, 12])
SCORES = RNG.uniform(size=40)
LABELS = RNG.integers(0, 3, 40)


def compute(metric: type[evaluate.Metric], tmp_path: Path, **columns: Any) -> dict[str, float]:
    return metric(cache_dir=str(tmp_path)).compute(**columns)


def split(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return values[:20], values[20:28], values[28:]


def test_pairs(tmp_path: Path) -> None:
    cosine = compute(hf_evaluate.MatchedCosineMetric, tmp_path, predictions=X, references=Y)
    assert cosine == pytest.approx({"mean": matched_cosine(X, Y).mean, "std": matched_cosine(X, Y).std})
    recall = compute(hf_evaluate.RetrievalMetric, tmp_path, predictions=X, references=Y, ks=(2,))
    expected = retrieval(X, Y, ks=(2,))
    assert recall == {
        "recall_at_2_image_to_text": expected.image_to_text[2],
        "recall_at_2_text_to_image": expected.text_to_image[2],
    }
    cka = compute(hf_evaluate.LinearCkaMetric, tmp_path, predictions=X, references=Y)
    assert cka == pytest.approx(asdict(linear_cka(X, Y)))
    gap = compute(hf_evaluate.NegativeAlignmentMetric, tmp_path, x_before=X, y_before=X, x_after=X, y_after=Y)
    assert gap == pytest.approx(asdict(negative_alignment(X, X, X, Y)))


def test_scores(tmp_path: Path) -> None:
    fs = compute(hf_evaluate.ForgettingScoreMetric, tmp_path, predictions=SCORES, references=SCORES[::-1])
    assert fs["std"] == pytest.approx(forgetting_score(SCORES[::-1], SCORES).std)
    agreed = compute(hf_evaluate.AgreementMetric, tmp_path, predictions=SCORES, references=SCORES[::-1])
    assert agreed["spearman"] == pytest.approx(agreement(SCORES, SCORES[::-1]).spearman)


def test_attacks(tmp_path: Path) -> None:
    for preset in ("paper", "reference"):
        attack = compute(hf_evaluate.EmiaMetric, tmp_path, predictions=SCORES, references=SPLITS, preset=preset)
        assert attack == pytest.approx(asdict(emia(*split(SCORES), preset=preset)))  # type: ignore[arg-type]
    attack = compute(hf_evaluate.CmiaMetric, tmp_path, predictions=SCORES, references=SPLITS)
    assert attack == pytest.approx(asdict(cmia(*split(SCORES))))


def test_probes(tmp_path: Path) -> None:
    columns = {"predictions": X, "references": LABELS, "splits": SPLITS}
    sets = list(zip(split(X), split(LABELS), strict=True))
    linear = compute(hf_evaluate.LinearProbeMetric, tmp_path, **columns, epochs=5)
    direct = linear_probe(*sets, epochs=5)
    assert linear == {
        "retain_accuracy": direct.retain_accuracy,
        "unlearn_accuracy": direct.unlearn_accuracy,
        "test_accuracy": direct.test_accuracy,
    }
    nearest = compute(hf_evaluate.KnnProbeMetric, tmp_path, **columns, k=3)
    assert nearest["test_accuracy"] == knn_probe(*sets[0], *sets[2], k=3).accuracy
    assert nearest["unlearn_accuracy"] == knn_probe(*sets[0], *sets[1], k=3).accuracy


def test_batches_may_mix_splits_and_metrics_combine(tmp_path: Path) -> None:
    metric = hf_evaluate.EmiaMetric(cache_dir=str(tmp_path))
    for batch in np.arange(40).reshape(8, 5, order="F"):
        metric.add_batch(predictions=SCORES[batch], references=SPLITS[batch])
    order = np.arange(40).reshape(8, 5, order="F").ravel()
    expected = emia(*(SCORES[order][SPLITS[order] == name] for name in ("retain", "unlearn", "test")))
    assert metric.compute() == pytest.approx(asdict(expected))
    both = evaluate.combine(
        [
            hf_evaluate.MatchedCosineMetric(cache_dir=str(tmp_path)),
            hf_evaluate.LinearCkaMetric(cache_dir=str(tmp_path)),
        ]
    )
    assert set(both.compute(predictions=X, references=Y)) == {"mean", "std", "similarity"}


def test_unknown_or_missing_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got \\['retain', 'train'\\]"):
        compute(hf_evaluate.EmiaMetric, tmp_path, predictions=[0.1, 0.2], references=["retain", "train"])
