import doctest
import json

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from hf_unlearn.benchmarks import selection
from hf_unlearn.benchmarks.selection import Candidate, assess_selection, averaged, read_candidates, selection_table
from hf_unlearn.errors import UserError

SWEEP = [
    {"method": "before", "estimated_gap": 30.0},
    {"method": "retrain", "estimated_gap": 0.5},
    {"method": "fine_tune", "setting": {"learning_rate": 1e-4}, "avg_gap": 9.0, "estimated_gap": 8.0},
    {"method": "fine_tune", "setting": {"learning_rate": 1e-3}, "avg_gap": 4.0, "estimated_gap": 3.0},
    {"method": "npo", "setting": {}, "avg_gap": 3.5, "estimated_gap": 3.2, "estimated_gap_retain": 1.0},
    {"method": "npo", "setting": {"beta": 9}, "failed": "diverged"},
]


def test_correlations_and_regret_against_pairs():
    rng = np.random.default_rng(0)
    gaps, estimates = rng.integers(0, 9, size=(2, 30)).astype(float)
    found = assess_selection(
        [Candidate(str(i), g, {"estimated_gap": e}) for i, (g, e) in enumerate(zip(gaps, estimates, strict=True))]
    )
    assert found.spearman == pytest.approx(spearmanr(gaps, estimates)[0])
    assert found.kendall == pytest.approx(kendalltau(gaps, estimates)[0])
    chosen = gaps[estimates == estimates.min()]
    assert found.regret + gaps.min() in chosen and found.regret_at_random == pytest.approx(np.mean(gaps - gaps.min()))


def test_example():
    assert doctest.testmod(selection).failed == 0


def test_perfect_estimate_has_no_regret_and_a_constant_one_no_correlation():
    perfect = [Candidate(str(g), g, {"estimated_gap": g, "flat": 1.0}) for g in (3.0, 1.0, 2.0)]
    assert assess_selection(perfect).regret == 0 and assess_selection(perfect).kendall == pytest.approx(1)
    assert np.isnan(assess_selection(perfect, "flat").spearman)


def test_candidates_are_the_finished_runs_of_a_sweep(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps(SWEEP))
    found = read_candidates(tmp_path / "sweep.json")
    assert [run.name for run in found] == ["fine_tune learning_rate 0.0001", "fine_tune learning_rate 0.001", "npo"]
    table = selection_table({"task": found})
    assert "| fine_tune learning_rate 0.001 (4.00) | npo (3.50) | 0.50 | 2.00 |" in table


def test_splits_are_averaged_over_the_runs_they_share():
    first = [Candidate("a", 1.0, {"estimated_gap": 5.0}), Candidate("b", 2.0, {"estimated_gap": 4.0})]
    second = [Candidate("b", 6.0, {"estimated_gap": 1.0}), Candidate("c", 0.0, {"estimated_gap": 0.0})]
    assert averaged([first, second]) == [Candidate("b", 4.0, {"estimated_gap": 2.5})]


def test_results_of_a_run_and_trials_of_a_benchmark_are_read(tmp_path):
    rows = [{"method": m, "metrics": {"estimated_gap": 1.0}, "gap": {}, "avg_gap": g} for m, g in (("npo", 2.0),)]
    (tmp_path / "results.json").write_text(json.dumps({"schema": 1, "rows": rows}))
    assert read_candidates(tmp_path / "results.json") == [Candidate("npo", 2.0, {"estimated_gap": 1.0})]
    trial = tmp_path / "trial-0"
    trial.mkdir()
    values = {"before": 80.0, "retrain": 20.0, "retrain_again": 21.0, "npo": 30.0, "beta=2": 26.0}
    for name, value in values.items():
        metrics = {"cosine_retain": 80.0, "cosine_unlearn": value, "estimated_gap": value}
        (trial / f"{name}.json").write_text(json.dumps(metrics))
    assert {run.name: run.gap for run in read_candidates(trial)} == {"npo": 5.0, "beta=2": 3.0}


@pytest.mark.parametrize("content", ["{}", "[1]", "nothing"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json holds no finished runs"):
        read_candidates(tmp_path / "x.json")
    with pytest.raises(UserError, match="at least two"):
        assess_selection([])
    (tmp_path / "trial").mkdir()
    with pytest.raises(UserError, match=r"no retrain\.json"):
        read_candidates(tmp_path / "trial")
