"""Requested and compared pictures told apart without a model: its level, its power, and near-duplicates as one."""

import numpy as np
import pytest
from audit.conftest import draw
from audit.test_acceptance import assert_at_most
from scipy import stats

from hf_unlearn.audit.blind_baseline import LEVEL, separability, told_apart
from hf_unlearn.audit.judging import _one_a_cluster
from hf_unlearn.audit.pictures import list_pictures


def test_alike_arms_are_told_apart_in_one_of_a_hundred_audits() -> None:
    """With two comparisons in an audit each gets half of the level, heavy tails and two-valued features included."""
    rng = np.random.default_rng(0)
    found, n, m = 0, 10, 12
    for _ in range(100):
        features = rng.standard_t(3, (n + m, 14))
        features[:, 12] = rng.random(n + m) < 0.3
        # The two comparisons of one audit share its requested pictures.
        pairs = (features, np.concatenate([features[:n], rng.standard_t(3, (m, 14))]))
        found += any(separability(pair, n, 0, level=LEVEL / 2) is not None for pair in pairs)
    assert_at_most(found, 100, LEVEL)


def test_the_share_of_pairs_is_the_area_under_the_curve() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(40, 1))
    features[:20] += 3
    share = separability(features, 20, 0)
    left_out = np.empty(40)  # a ridge regression without each picture in turn, as plain loops
    labels = np.where(np.arange(40) < 20, 1.0, -1.0)
    standard = (features - features.mean(0)) / features.std(0)
    for i in range(40):
        kept = np.delete(np.arange(40), i)
        design = np.column_stack([np.ones(39), standard[kept]])
        penalty = np.diag([0.0, 0.1 * 40])
        left_out[i] = np.array([1, *standard[i]]) @ np.linalg.solve(
            design.T @ design + penalty, design.T @ labels[kept]
        )
    area = stats.mannwhitneyu(left_out[:20], left_out[20:]).statistic / 400
    assert share == pytest.approx(area, abs=0.005)


def test_copies_count_once(tmp_path) -> None:
    """Eight qualities of three pictures are three pictures, too few to be told apart from others by their files."""
    for i in range(3):
        for quality in range(20, 100, 10):
            draw(i).save(tmp_path / f"{i}-{quality}.jpg", quality=quality)
    for i in range(10, 18):
        draw(i).save(tmp_path / f"{i}.png")
    pictures = list_pictures(tmp_path)
    copies = [i for i, picture in enumerate(pictures) if picture.path.suffix == ".jpg"]
    others = [pictures[i] for i in range(len(pictures)) if i not in copies]
    clusters = np.array([int(picture.name.split("-")[0].split(".")[0]) for picture in pictures])
    assert told_apart([pictures[i] for i in copies], others, 0) is not None
    once = _one_a_cluster(copies, clusters)
    assert len(once) == 3 and once == sorted(once) and told_apart([pictures[i] for i in once], others, 0) is None
