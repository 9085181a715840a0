import json

import pytest

from hf_unlearn.benchmarks.benchmark import Benchmark, summarise, write_tables
from hf_unlearn.runs.results import make_results, markdown_table, save_results, text_table

# Table 4 of the paper (CLIP on COCO, 10%): retain and unlearn cosines, and the average gaps it prints.
TABLE_4 = {
    "retrain": (62.47, 49.84),
    "fine_tune": (58.67, 54.75),
    "gradient_ascent": (61.96, 62.03),
    "neg_grad": (58.57, 49.19),
    "l1_sparsity": (57.70, 53.54),
    "alignment_calibration": (60.75, 51.23),
}
PRINTED_GAPS = {"fine_tune": 4.35, "gradient_ascent": 6.35, "neg_grad": 2.28, "l1_sparsity": 4.23}
KEYS = ("cosine_retain", "cosine_unlearn")


@pytest.fixture
def results():
    metrics = {method: dict(zip(KEYS, values, strict=True)) for method, values in TABLE_4.items()}
    metrics = {"before": {"cosine_retain": 62.09, "cosine_unlearn": 62.08}, **metrics}
    return make_results("image-text", KEYS, metrics, metrics["retrain"])


def test_gaps_are_those_the_paper_prints(results):
    gaps = {row.method: row.avg_gap for row in results.rows}
    for method, printed in PRINTED_GAPS.items():
        assert gaps[method] == pytest.approx(printed, abs=0.011)
    assert gaps["retrain"] is None


def test_best_method_is_bold_and_before_never_is(results):
    table = markdown_table(results)
    bold = [line for line in table.splitlines() if "**" in line]
    assert len(bold) == 1 and bold[0].startswith("| Alignment Calibration |")
    assert "60.75 (1.72)" in bold[0]
    assert table.splitlines()[2].startswith("| before unlearning | 62.09 (0.38)")


def test_figures_of_the_first_request_are_told_apart(results):
    metrics = {"original": dict(zip(KEYS, TABLE_4["retrain"], strict=True))}
    both = make_results("image-text", KEYS, metrics | {row.method: row.metrics for row in results.rows}, None)
    told = "The original model's Cosine, unlearn and gaps are of the first request's samples."
    assert markdown_table(both).endswith(f"|\n\n{told}\n") and text_table(both).endswith(f"\n{told}")
    assert told not in markdown_table(results) and told not in text_table(results)


def test_terminal_columns_line_up(results):
    lines = text_table(results).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "**" not in text_table(results)


@pytest.mark.parametrize("family", ["image-text", "views"])
def test_the_terminal_has_eighty_columns(family):
    keys = KEYS if family == "image-text" else ("emia", "retain_accuracy", "test_accuracy", "unlearn_accuracy", "cmia")
    further = {"cosine_test": 20.3, "forgetting_score": -84.6, "negative_alignment": -100.0, "run_time_minutes": 12.34}
    metrics = dict.fromkeys(keys, 100.0) | further | {"estimated_gap": 33.6}
    results = make_results(family, keys, {name: metrics for name in ("before", *TABLE_4)}, metrics)
    *lines, left_out = text_table(results).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 80
    text = " ".join(" ".join(lines).split())
    assert "100.0" in text and "12.3" in text and "alignment" not in text  # dispensable, and in results.md
    assert left_out == f"Too wide for here: Neg. alignment gap{', FS' * (family == 'views')}."
    wide = text_table(results, width=200)
    assert "alignment" in wide and "Too wide" not in wide
    assert wide.count("\n") == len(lines)  # one line more than these: its head has three words


def test_the_estimated_gap_stands_with_its_interval():
    gap = {"estimated_gap": 4.9, "low_estimated_gap": 3.123, "high_estimated_gap": 6.8}
    results = make_results("image-text", KEYS, {"before": dict.fromkeys(KEYS, 1.0) | gap}, None)
    assert "4.90 [3.12, 6.80]" in markdown_table(results) and "4.9 [3.1, 6.8]" in text_table(results)


def test_without_retrain_there_is_no_gap():
    results = make_results("image-text", KEYS, {"before": dict.fromkeys(KEYS, 1.0)}, None)
    assert results.rows[0].avg_gap is None and markdown_table(results).count("–") >= 1


def test_saved_results_hold_the_rows(results, tmp_path):
    save_results(results, tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["before", *TABLE_4]


def test_trials_are_compared_with_their_own_retrain():
    trials = {
        0: {"retrain": {"a": 10.0}, "fine_tune": {"a": 12.0}},
        1: {"retrain": {"a": 20.0}, "fine_tune": {"a": 16.0}},
    }
    summary = summarise(trials, ["a"], "image-text")
    assert summary.mean["fine_tune"]["avg_gap"] == 3.0  # 2 and 4, although the means 14 and 15 differ by 1
    assert summary.std["retrain"]["a"] == pytest.approx(50**0.5)
    assert summary.mean["fine_tune"]["a"] == 14.0


def test_benchmark_tables_hold_ablation_and_ratio_plot(tmp_path):
    keys = ("emia", "retain_accuracy", "test_accuracy", "unlearn_accuracy", "cmia")
    base = {**dict.fromkeys(keys, 50.0), "forgetting_score": 2.0, "negative_alignment": 1.0}
    benchmark = Benchmark("moco", {}, ablation=True, alpha=(0.5,), beta=(0, 2))
    names = ["before", "retrain", "retrain_again", "fine_tune", "alignment_calibration", *benchmark.variants()]
    runs = {name: {key: value + 2 * i for key, value in base.items()} for i, name in enumerate(names)}
    runs["retrain"] = base
    text = write_tables(summarise({0: runs}, keys, "views"), benchmark, tmp_path)
    assert "| neg. + pos. | 10.00 ± 0.00 |" in text and "| neither | 16.00 ± 0.00 |" in text
    assert {p.name for p in tmp_path.iterdir()} == {
        "tables.md",
        "tables.csv",
        "tables.json",
        "negative_alignment.png",
        "forgetting_score_ratio.png",
    }
