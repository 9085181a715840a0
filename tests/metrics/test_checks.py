import logging
import math
import pkgutil
from collections.abc import Callable

import numpy as np
import pytest
import torch

import hf_unlearn.metrics
from hf_unlearn.errors import UserError
from hf_unlearn.metrics._checks import (
    _mean_cosine,
    check_embeddings,
    check_labels,
    check_owner,
    check_scores,
    normalize,
)
from hf_unlearn.metrics.agreement import agreement
from hf_unlearn.metrics.alignment import matched_cosine
from hf_unlearn.metrics.attacks import roc_auc, tpr_at_fpr
from hf_unlearn.metrics.cka import linear_cka
from hf_unlearn.metrics.cmia import cmia
from hf_unlearn.metrics.completeness import sample_completeness
from hf_unlearn.metrics.emia import best_threshold, emia
from hf_unlearn.metrics.estimated_gap import wasserstein
from hf_unlearn.metrics.forgetting_rate import forgetting_rate
from hf_unlearn.metrics.forgetting_score import forgetting_score
from hf_unlearn.metrics.klom import klom
from hf_unlearn.metrics.knn_probe import knn_probe
from hf_unlearn.metrics.likelihood_ratio import likelihood_ratio_attack
from hf_unlearn.metrics.linear_probe import linear_probe
from hf_unlearn.metrics.membership_probe import membership_probe
from hf_unlearn.metrics.negative_alignment import negative_alignment
from hf_unlearn.metrics.relative_position import neighbourhood_residual, relative_position
from hf_unlearn.metrics.relearning import relearning
from hf_unlearn.metrics.request_level import request_level
from hf_unlearn.metrics.retrieval import retrieval
from hf_unlearn.metrics.three_sample import nearer_to_base
from hf_unlearn.metrics.zero_shot import zero_shot

# How many arguments of scores [n], or of embeddings [n, d], a metric takes.
OF_SCORES: dict[Callable[..., object], int] = {
    **{agreement: 2, roc_auc: 2, tpr_at_fpr: 2, cmia: 3, best_threshold: 2, emia: 3, wasserstein: 2},
    **{forgetting_rate: 4, forgetting_score: 2, relearning: 2, request_level: 2},
}
OF_EMBEDDINGS: dict[Callable[..., object], int] = {
    **{matched_cosine: 2, linear_cka: 2, klom: 2, likelihood_ratio_attack: 2, membership_probe: 3},
    **{negative_alignment: 4, retrieval: 2, nearer_to_base: 3},
}
# Alignment matrices show a broken sample as NaN, a gap is of numbers, and what `evaluate` calls is here itself.
OTHERS = {"alignment_matrices", "gap", "hf_evaluate"}
LABELS = np.arange(8) % 2


def scores_of(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).uniform(0.1, 0.9, size=(count, 8)))


def embeddings_of(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(count, 8, 4)))


def broken(metric: Callable[..., object], given: list[np.ndarray]) -> list[tuple[Callable[..., object], list]]:
    """The metric with one NaN row in each argument in turn."""
    cases = []
    for place in range(len(given)):
        copies = [array.copy() for array in given]
        copies[place][1] = math.nan
        cases.append((metric, copies))
    return cases


def labelled(retain: np.ndarray, unlearn: np.ndarray, test: np.ndarray) -> object:
    return linear_probe((retain, LABELS), (unlearn, LABELS), (test, LABELS))


def shown(images: np.ndarray, prompts: np.ndarray) -> object:
    return zero_shot(torch.tensor(images), torch.tensor(prompts).view(2, 4, 4), LABELS)


WRAPPED = {
    "completeness": [
        *broken(lambda now, base, held: sample_completeness(now, base, held_out=held), scores_of(3)),
        *broken(lambda others: sample_completeness(*scores_of(2), others), [np.stack(scores_of(3))]),
    ],
    "knn_probe": broken(lambda known, asked: knn_probe(known, LABELS, asked, LABELS, k=2), embeddings_of(2)),
    "linear_probe": [
        *broken(labelled, embeddings_of(3)),
        *broken(
            lambda seen: linear_probe(*[(part, LABELS) for part in embeddings_of(3)], augmented=lambda _: seen),
            embeddings_of(1),
        ),
    ],
    "relative_position": [
        *broken(lambda *given: relative_position(*given, k=2), embeddings_of(4)),
        *broken(lambda *given: neighbourhood_residual(*given, k=2), embeddings_of(3)),
    ],
    "zero_shot": broken(shown, embeddings_of(2)),
}
BROKEN = [
    *(case for metric, count in OF_SCORES.items() for case in broken(metric, scores_of(count))),
    *(case for metric, count in OF_EMBEDDINGS.items() for case in broken(metric, embeddings_of(count))),
    *(case for cases in WRAPPED.values() for case in cases),
]


@pytest.mark.parametrize(("metric", "given"), BROKEN)
def test_every_metric_refuses_a_row_that_is_no_number(metric: Callable[..., object], given: list[np.ndarray]) -> None:
    with pytest.raises(UserError, match="is NaN or infinite"):
        metric(*given)


def test_every_metric_is_among_them() -> None:
    modules = {module.name for module in pkgutil.iter_modules(hf_unlearn.metrics.__path__)}
    asked = {metric.__module__.rpartition(".")[2] for metric in (*OF_SCORES, *OF_EMBEDDINGS)}
    assert {name for name in modules if not name.startswith("_")} == asked | set(WRAPPED) | OTHERS


def test_unit_rows_equal_numpy() -> None:
    x = np.random.default_rng(0).normal(size=(7, 5))
    for given in (x, torch.tensor(x), x.tolist(), x.astype(np.float32)):
        unit = check_embeddings(given)
        np.testing.assert_allclose(unit, x / np.linalg.norm(x, axis=1, keepdims=True), rtol=1e-6)
    assert check_embeddings(torch.tensor(x)).dtype == torch.float64
    assert check_embeddings(torch.tensor(x).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_norms_neither_overflow_nor_vanish(scale: float) -> None:
    unit = normalize(torch.tensor([[3.0, 4.0]]) * scale)
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "sample 2 is NaN or infinite"), (math.inf, "sample 2 is NaN or infinite"), (0.0, "sample 2 has zero")],
)
def test_unsound_sample_is_named(value: float, message: str) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    x[2] = value
    with pytest.raises(UserError, match=message):
        check_embeddings(x, "images")


def test_collapse_is_reported_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.ones(6, 4) + 1e-5 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        check_embeddings(x, "images")
    assert "images: all 6 samples point the same way" in caplog.text


def test_the_mean_cosine_is_over_pairs_of_different_samples(recwarn: pytest.WarningsRecorder) -> None:
    x = np.random.default_rng(1).normal(size=(6, 4)) + 0.5
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = np.mean([u[i] @ u[j] for i in range(6) for j in range(6) if i != j])
    assert _mean_cosine(torch.tensor(u)) == pytest.approx(expected, rel=1e-12)
    assert math.isnan(_mean_cosine(torch.ones(1, 3))) and not recwarn


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 3)])
def test_only_matrices_are_embeddings(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="non-empty matrix"):
        check_embeddings(torch.ones(shape))


def test_scores_labels_and_owners_are_checked() -> None:
    with pytest.raises(UserError, match="sample 1 is NaN"):
        check_scores([0.0, math.nan])
    with pytest.raises(UserError, match="one number a sample"):
        check_scores([[0.0]])
    scores = torch.tensor([0.5, 0.25], requires_grad=True)
    assert check_scores(scores).tolist() == [0.5, 0.25]
    with pytest.raises(UserError, match="one label for each of 3"):
        check_labels([0, 1], 3)
    with pytest.raises(UserError, match="class indices"):
        check_labels([0, -1], 2)
    with pytest.raises(UserError, match="class indices"):
        check_labels([0.5, 1.0], 2)
    with pytest.raises(UserError, match="2 images have 3 captions"):
        check_owner(None, 2, 3)
    with pytest.raises(UserError, match="caption 1 belongs to image 2"):
        check_owner([0, 2], 2, 2)
