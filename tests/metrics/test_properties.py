"""What holds for any scores and embeddings, not only for those of an example."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hf_unlearn.metrics.alignment import matched_cosine
from hf_unlearn.metrics.attacks import roc_auc, tpr_at_fpr
from hf_unlearn.metrics.cka import linear_cka
from hf_unlearn.metrics.emia import best_threshold, emia, view_alignment
from hf_unlearn.metrics.forgetting_score import forgetting_score
from hf_unlearn.metrics.gap import gap_to_retrain
from hf_unlearn.metrics.negative_alignment import negative_alignment
from hf_unlearn.metrics.retrieval import retrieval

ANY = settings(max_examples=40, deadline=None)
# Steps of a thousandth: ties are common, and no sum or scale makes new ones.
COSINES = st.lists(st.integers(-1000, 1000).map(lambda n: n / 1000), min_size=1, max_size=20)


@st.composite
def embeddings(draw: st.DrawFn, count: int | None = None, dimension: int | None = None) -> np.ndarray:
    """Rows of whole numbers, none of them zero."""
    shape = (count or draw(st.integers(2, 8)), dimension or draw(st.integers(2, 5)))
    rows = draw(arrays.arrays(np.float64, shape, elements=st.integers(-9, 9).map(float)))
    rows[(rows == 0).all(1), 0] = 1
    return rows


@ANY
@given(COSINES, COSINES)
def test_auc_is_a_probability_that_sees_ranks_alone(positives: list[float], negatives: list[float]) -> None:
    area = roc_auc(positives, negatives)
    assert 0 <= area <= 1
    assert roc_auc(negatives, positives) == pytest.approx(1 - area)
    higher = [np.exp(3 * np.array(side)) for side in (positives, negatives)]
    assert roc_auc(*higher) == pytest.approx(area)


@ANY
@given(COSINES, COSINES, st.floats(0, 1), st.floats(0, 1))
def test_more_false_positives_never_lose_true_ones(
    positives: list[float], negatives: list[float], rate: float, other: float
) -> None:
    low, high = sorted((rate, other))
    assert 0 <= tpr_at_fpr(positives, negatives, low) <= tpr_at_fpr(positives, negatives, high) <= 1
    assert tpr_at_fpr(positives, negatives, 1) == 1


@ANY
@given(COSINES, COSINES)
def test_no_threshold_separates_better(members: list[float], others: list[float]) -> None:
    def right(threshold: float) -> int:
        return sum(x >= threshold for x in members) + sum(x < threshold for x in others)

    found = best_threshold(members, others)
    best = max(right(threshold) for threshold in [*members, *others])
    assert right(found) == best
    assert found == min(t for t in [*members, *others] if right(t) == best)


@ANY
@given(COSINES, COSINES, COSINES)
def test_efficacy_is_a_share_and_its_distance_is_to_test(
    retain: list[float], unlearn: list[float], test: list[float]
) -> None:
    result = emia(retain, unlearn, test)
    share = {name: 100 * np.mean(np.array(rows) < result.threshold) for name, rows in (("u", unlearn), ("t", test))}
    assert result.efficacy == pytest.approx(share["u"]) and result.distance == pytest.approx(share["u"] - share["t"])
    assert emia(retain, test, test).distance == 0, "unseen samples are no distance from themselves"
    assert result.accuracy >= 50, "the best threshold is no worse than a coin"


@ANY
@given(COSINES, st.integers(-500, 500))
def test_forgetting_is_what_was_lost(before: list[float], shift: int) -> None:
    lost = forgetting_score(before, [x - shift / 1000 for x in before])
    assert lost.mean == pytest.approx(shift / 1000) and lost.std == pytest.approx(0, abs=1e-9)
    back = forgetting_score([x - shift / 1000 for x in before], before)
    assert back.mean == pytest.approx(-lost.mean)


@ANY
@given(st.data(), st.floats(0.1, 10))
def test_cosines_do_not_depend_on_length_or_on_the_axes(data: st.DataObject, scale: float) -> None:
    x = data.draw(embeddings())
    y = data.draw(embeddings(*x.shape))
    expected = [u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(x, y, strict=True)]
    result = matched_cosine(x, y)
    assert result.per_sample == pytest.approx(expected, abs=1e-9) and result.mean == pytest.approx(
        100 * np.mean(expected), abs=1e-6
    )
    turned, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(x.shape[1],) * 2))
    assert matched_cosine(scale * x @ turned, y @ turned).per_sample == pytest.approx(expected, abs=1e-9)
    assert matched_cosine(x, x).mean == pytest.approx(100)


@ANY
@given(st.data(), st.integers(2, 4))
def test_the_order_of_views_does_not_matter(data: st.DataObject, count: int) -> None:
    first = data.draw(embeddings())
    views = np.stack([first, *(data.draw(embeddings(*first.shape)) for _ in range(count - 1))], axis=1)
    found = view_alignment(views)
    assert (found >= -1 / (count - 1) - 1e-9).all() and (found <= 1 + 1e-9).all()
    assert view_alignment(views[:, ::-1].copy()) == pytest.approx(found, abs=1e-9)


@ANY
@given(st.data())
def test_more_candidates_are_recalled_and_a_shuffle_changes_nothing(data: st.DataObject) -> None:
    x = data.draw(embeddings())
    y = data.draw(embeddings(*x.shape))
    ks = tuple(range(1, len(x) + 1))
    found = retrieval(torch.tensor(x), torch.tensor(y), ks=ks)
    for recall in (found.image_to_text, found.text_to_image):
        values = [recall[k] for k in ks]
        assert values == sorted(values) and values[-1] == 100
    order = np.array(data.draw(st.permutations(range(len(x)))))
    assert retrieval(torch.tensor(x[order]), torch.tensor(y[order]), ks=ks) == found


@ANY
@given(st.data())
def test_an_unchanged_model_has_no_negative_gap_and_the_way_back_is_minus_the_way_there(data: st.DataObject) -> None:
    x = data.draw(embeddings())
    y, x_after, y_after = (data.draw(embeddings(*x.shape)) for _ in range(3))
    assert negative_alignment(x, y, x, y).mean == pytest.approx(0, abs=1e-9)
    there, back = negative_alignment(x, y, x_after, y_after), negative_alignment(x_after, y_after, x, y)
    assert there.mean == pytest.approx(-back.mean, abs=1e-9)


@ANY
@given(st.data())
def test_cka_is_a_similarity_of_pictures_not_of_axes(data: st.DataObject) -> None:
    x = data.draw(embeddings())
    y = data.draw(embeddings(len(x)))
    if min(np.ptp(x, axis=0).max(), np.ptp(y, axis=0).max()) == 0:
        return  # refused: there is nothing to compare
    found = linear_cka(x, y).similarity
    assert -1e-9 <= found <= 1 + 1e-9 and linear_cka(y, x).similarity == pytest.approx(found)
    assert linear_cka(x, 3 * x).similarity == pytest.approx(1)


@ANY
@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(0, 999), st.integers(0, 999)), min_size=1))
def test_the_average_gap_is_a_distance(values: dict[str, tuple[int, int]]) -> None:
    ours, theirs = ({key: float(pair[i]) for key, pair in values.items()} for i in (0, 1))
    gap = gap_to_retrain(ours, theirs, sorted(values)).average
    assert gap == gap_to_retrain(theirs, ours, sorted(values)).average >= 0
    assert (gap == 0) == (ours == theirs) and math.isfinite(gap)
