"""The speed benchmark runs and reports what it says; its figures are not looked at."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from hf_unlearn.errors import UserError

RECIPE = Path(__file__).parents[2] / "recipes" / "benchmark_speed.py"


@pytest.fixture
def benchmark(monkeypatch):
    """A function that runs the recipe with arguments."""
    monkeypatch.syspath_prepend(RECIPE.parent)  # as where a recipe is run
    spec = importlib.util.spec_from_file_location("benchmark_speed", RECIPE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclasses look their module up
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark_speed.py", *arguments])
        module.main()

    return run


def test_every_tenth_epoch_sees_plain_features(monkeypatch):
    monkeypatch.syspath_prepend(RECIPE.parent)
    from speed.evaluation import views_and_plain

    views = torch.arange(8.0).reshape(1, 4, 2)
    features = views_and_plain(views, torch.tensor([[-1.0, -2.0]]))
    seen = [features(epoch).tolist()[0] for epoch in range(20)]
    assert [epoch for epoch, row in enumerate(seen) if row == [-1, -2]] == [9, 19]
    assert [row for row in seen if row != [-1, -2]] == [views[0, place % 4].tolist() for place in range(18)]


def test_lines_set_one_way_against_another(benchmark, tmp_path, capsys):
    benchmark(
        "--small", "--repeats", "2", "--only", "loss", "clip", "--device", "cpu", "--output", f"{tmp_path}/speed.json"
    )
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert len(rows) == 6
    for row in rows:
        assert row["least"] <= row["ratio"] <= row["greatest"]
        assert row["first_seconds"] > 0 and row["second_seconds"] > 0
        assert f"{row['work']}: {row['first']} against {row['second']}" in printed
    assert "share of a GPU's measured bf16 rate (wanted: 40% or more): not measured" in printed


def test_steps_of_view_encoders_against_the_references_construction(benchmark, capsys):
    benchmark("--small", "--repeats", "1", "--only", "views", "--device", "cpu")
    printed = capsys.readouterr().out
    assert "SimCLR step, 32 views: AC against the published construction" in printed
    assert "MoCo step, 32 views (wanted: at most 1.05): Fine-Tune against AC" in printed


def test_a_training_and_an_evaluation_as_a_whole(benchmark, tmp_path, capsys):
    output = tmp_path / "speed.json"
    benchmark("--small", "--repeats", "1", "--only", "train", "checkpoint", "--device", "cpu", "--output", str(output))
    training, evaluation = json.loads(output.read_text())["rows"]
    assert training["first_seconds"] > 0 and re.search(r"\d processor cores busy", training["note"])
    assert evaluation["work"] == "Evaluation of a SimCLR checkpoint, 280 pictures" and evaluation["ratio"] > 0


def test_planning_in_memory_and_in_shards(benchmark, capsys):
    benchmark("--small", "--repeats", "1", "--only", "planning", "--device", "cpu")
    printed = capsys.readouterr().out
    for where in ("memory", "shards"):
        for rows in ("10,000", "30,000"):
            assert f"Request of 10,000 ids, planned in {where}: 10,000 rows against {rows} rows" in printed


def test_the_memory_of_the_loss_grows_with_its_candidates(benchmark, tmp_path):
    output = tmp_path / "speed.json"
    benchmark("--small", "--repeats", "1", "--only", "memory", "--device", "cpu", "--output", str(output))
    rows = json.loads(output.read_text())["rows"]
    assert [row["second"] for row in rows] == ["512 candidates", "1,024 candidates"] * 2
    assert all("wanted: under 300 MB" in row["work"] for row in rows)
    for same, larger in (rows[:2], rows[2:]):
        assert same["ratio"] == 1 and larger["second_peak"] > larger["first_peak"]


def test_steps_can_be_compiled_and_timed_by_the_processor(benchmark, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiled.append(model) or model)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # what the option sets ends with the test
    benchmark("--small", "--repeats", "1", "--only", "clip", "--device", "cpu", "--compile", "yes", "--cpu_time")
    printed = capsys.readouterr().out
    assert "; processor time" in printed and "[clip, compiled: at" in printed
    assert int(re.search(r"pairs/s, (\d+)% of the measured", printed).group(1)) > 0
    assert len(compiled) == 2  # the library's model and its loss


def test_processor_time_is_for_cpus(benchmark, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(UserError, match="--cpu_time says nothing of a GPU"):
        benchmark("--device", "cuda", "--cpu_time")


def test_nothing_is_measured_in_no_rounds(benchmark):
    with pytest.raises(UserError, match="--repeats 0 measures nothing"):
        benchmark("--repeats", "0")
