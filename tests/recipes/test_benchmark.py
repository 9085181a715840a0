"""Benchmarks and sweeps on a tiny SimCLR: tables, plots, and going on where they stopped."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from trainers import BACKBONE

from hf_unlearn.benchmarks import benchmark as benchmarking
from hf_unlearn.errors import UserError
from hf_unlearn.methods import METHODS
from hf_unlearn.runs import unlearn as recipe
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.training.config import StartingPoint
from hf_unlearn.training.trainer_arguments import refuse_unfit

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def options(tmp_path_factory, shapes):
    """A recipe config for 72 pictures and a ResNet of width 8."""
    folder = tmp_path_factory.mktemp("task")
    shapes.save_to_disk(folder / "data")
    config = {
        "dataset_name": str(folder / "data"),
        "unlearn_fraction": 0.1,
        "test_fraction": 0.3,
        "views": "light",
        "use_cpu": True,
        "disable_tqdm": True,
        "per_device_train_batch_size": 16,
        "num_train_epochs": 1,
        "model": {"backbone_config": BACKBONE, "projection_dim": 16},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize("path", sorted((RECIPES / "benchmarks").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_shipped_benchmark_is_refused_when_it_begins(path, encoder):
    benchmark = benchmarking.Benchmark.load(path)
    run = parse_run(benchmark.argv(0))
    unlearned = round(100 * (run.arguments.unlearn_fraction or 0))
    splits = {"retain": range(100 - unlearned), "unlearn": range(unlearned), "validation": range(10)}
    has_initial = run.arguments.initial_model is not None or run.arguments.initial_where is not None
    start = StartingPoint(encoder(benchmark.family)[0], has_initial=has_initial)
    refused = {}
    for method, config in run.methods.items():
        try:
            refuse_unfit(config, METHODS[method].uses, splits, start, run.data)
        except UserError as error:
            refused[method] = str(error)
    assert run.methods and refused == {}


def run(monkeypatch, capsys, script: str, *argv: str) -> str:
    monkeypatch.setattr(sys, "argv", [str(RECIPES / script), *argv])
    runpy.run_path(str(RECIPES / script), run_name="__main__")
    return capsys.readouterr().out


def table_of(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("| Alignment")]


def test_benchmark_writes_the_tables_and_goes_on_where_it_stopped(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    content = {
        "family": "simclr",
        "trials": [0, 1],
        "options": {"config": "task.yaml", "methods": ["retrain", "fine_tune", "alignment_calibration"]},
        "alpha": [0.5],
        "beta": [2],
    }
    path = options / "benchmark.yaml"
    path.write_text(yaml.safe_dump(content))
    out = tmp_path / "out"
    printed = run(monkeypatch, capsys, "benchmark.py", str(path), "--output_dir", str(out))
    assert "| Fine-Tune |" in printed and "Retrain, other seed" in printed
    assert {p.name for p in out.iterdir()} == {
        "trial-0",
        "trial-1",
        "tables.md",
        "tables.csv",
        "tables.json",
        "negative_alignment.png",
        "forgetting_score_ratio.png",
    }
    tables = json.loads((out / "tables.json").read_text())
    first, second = (json.loads((out / f"trial-{t}" / "fine_tune.json").read_text()) for t in (0, 1))
    assert tables["mean"]["fine_tune"]["emia"] == pytest.approx((first["emia"] + second["emia"]) / 2)

    (out / "trial-1" / "fine_tune.json").unlink()
    measured = []
    original = benchmarking.start
    monkeypatch.setattr(benchmarking, "start", lambda *given: measured.append(given) or original(*given))
    again = run(monkeypatch, capsys, "benchmark.py", str(path), "--output_dir", str(out))
    assert len(measured) == 1  # only the trial that misses a run is set up again
    repeated = json.loads((out / "trial-1" / "fine_tune.json").read_text())
    assert repeated["emia"] == second["emia"] and table_of(again) == table_of(printed)
    (out / "tables.md").unlink()
    monkeypatch.setattr("accelerate.PartialState.is_main_process", False)  # as another process of the launch sees it
    assert run(monkeypatch, capsys, "benchmark.py", str(path), "--output_dir", str(out)) == ""
    assert not (out / "tables.md").exists()


def test_methods_are_also_run_as_if_nobody_knew_the_initial_model(tmp_path, monkeypatch):
    class Known:
        initial, retrain, before = "public", None, SimpleNamespace(metrics={"cosine_unlearn": 9.0})

        def train_and_evaluate(self, config, name):
            if name == "retrain":
                self.retrain = "measured"
            assert self.retrain == "measured"
            return None, SimpleNamespace(
                metrics={"cosine_unlearn": float(self.initial is None), "negative_alignment": 0.0}
            )

    monkeypatch.setattr(benchmarking, "start", lambda run, build: Known())
    options = {"methods": ["retrain", "fine_tune"], "unlearn_fraction": 0.1}
    benchmark = benchmarking.Benchmark("clip", options, (3,), without_initial={"fine_tune": {"learning_rate": 0.25}})
    done = benchmarking.run_benchmark(benchmark, tmp_path)
    blind = f"fine_tune{benchmarking.WITHOUT_INITIAL}"
    assert [done[3][name]["cosine_unlearn"] for name in (blind, "fine_tune")] == [1.0, 0.0]
    runs = benchmarking._runs(benchmark, 3)
    assert (
        runs[blind].methods["fine_tune"].learning_rate == 0.25 != runs["fine_tune"].methods["fine_tune"].learning_rate
    )
    summary = benchmarking.summarise(done, ["cosine_unlearn"], "image-text")
    assert "| Fine-Tune, initial model unknown |" in benchmarking.write_tables(summary, benchmark, tmp_path)


def test_what_had_other_settings_is_measured_again(tmp_path, monkeypatch, caplog):
    measured: list[str] = []

    class Measuring:
        before = SimpleNamespace(metrics={"emia": 9.0})

        def train_and_evaluate(self, config, name):
            measured.append(name)
            return None, SimpleNamespace(metrics={"emia": config.learning_rate})

    monkeypatch.setattr(benchmarking, "start", lambda run, build: Measuring())

    def again(**options) -> tuple[list[str], dict[str, dict[str, float]]]:
        measured.clear()
        options = {"methods": ["retrain", "fine_tune", "neg_grad"], "unlearn_fraction": 0.1, **options}
        done = benchmarking.run_benchmark(benchmarking.Benchmark("clip", options, trials=(3,)), tmp_path)
        return list(measured), done[3]

    everything = ["retrain", "retrain_again", "fine_tune", "neg_grad"]
    names, first = again()
    assert names == everything and list(first) == ["before", *everything] and first["before"] == {"emia": 9.0}
    assert again() == ([], first)
    # Retrain is measured along, as others are compared with it.
    names, changed = again(**{"fine_tune.learning_rate": 0.25})
    assert names == ["retrain", "fine_tune"] and changed["fine_tune"] == {"emia": 0.25}
    assert again(**{"retrain.learning_rate": 0.5})[0] == everything
    assert again(unlearn_fraction=0.2)[0] == everything
    again()
    path = tmp_path / "trial-3" / "neg_grad.json"
    path.write_text(json.dumps({"emia": 1.0}))  # as it was written before files told their settings
    caplog.clear()
    assert again() == (["retrain", "neg_grad"], first)
    assert f"{path} does not tell its settings and is run again" in caplog.text


def test_ablation_switches_one_calibration_term_off_at_a_time():
    ablation = benchmarking.Benchmark("moco", {}, ablation=True).variants()
    assert ablation["pos. only"] == {"alpha": 0} and ablation["neither"] == {"alpha": 0, "beta": 0}


def test_sweep_keeps_every_setting(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    content = {
        "family": "simclr",
        "options": {"config": str(options / "task.yaml")},
        "settings": {"fine_tune": [{"learning_rate": 1e-4}, {"learning_rate": 1e-3}]},
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    run(monkeypatch, capsys, "sweep.py", str(path))
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert [row.get("setting") for row in rows] == [None, None, {"learning_rate": 1e-4}, {"learning_rate": 1e-3}]
    table = (tmp_path / "sweep.md").read_text()
    assert table.count("**") == 2 and "learning_rate 0.001" in table
    for row in rows[2:]:
        parts = [value for name, value in row.items() if name.startswith("estimated_gap_")]
        assert row["estimated_gap"] == pytest.approx(sum(parts) / 5) and len(parts) == 5
        assert row["avg_gap"] == pytest.approx(sum(row["gap"].values()) / 5)
    (tmp_path / "sweep.md").unlink()
    (tmp_path / "sweep.json").write_text(json.dumps(rows[:3]))
    monkeypatch.setattr("accelerate.PartialState.is_main_process", False)  # as another process of the launch sees it
    assert run(monkeypatch, capsys, "sweep.py", str(path)) == ""
    assert json.loads((tmp_path / "sweep.json").read_text()) == rows[:3] and not (tmp_path / "sweep.md").exists()


def test_stopped_sweep_goes_on_with_what_is_missing_or_changed(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "sweep.yaml"

    def sweep(*rates: float) -> list[str]:
        """The settings that were measured."""
        settings = {"fine_tune": [{"learning_rate": rate} for rate in rates], "alignment_calibration": [{"beta": 4}]}
        content = {"family": "simclr", "split_seed": 3, "settings": settings}
        content["options"] = {"config": str(options / "task.yaml"), "unlearn_fraction": 0.2}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        printed = run(monkeypatch, capsys, "sweep.py", str(path)).splitlines()
        return [line.split("}")[0].split("{")[1] for line in printed if ", estimated_gap" in line]

    sweep(1e-4, 1e-3)
    rows = json.loads((tmp_path / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps(rows[:3]))  # killed after the first setting
    assert sweep(1e-4, 1e-3) == ["'learning_rate': 0.001", "'beta': 4"]
    assert json.loads((tmp_path / "sweep.json").read_text())[2] == rows[2]
    assert sweep(1e-4, 2e-3) == ["'learning_rate': 0.002"]
    assert sweep(1e-4, 2e-3) == []
    assert [row["method"] for row in json.loads((tmp_path / "sweep.json").read_text())] == [
        "before",
        "retrain",
        "fine_tune",
        "fine_tune",
        "alignment_calibration",
    ]


def test_sweep_compares_with_one_retrain(tmp_path, monkeypatch, capsys):
    measured: list[str] = []

    class Measuring:
        before = retrain = SimpleNamespace(metrics={"emia": 9.0, "estimated_gap": 1.0})
        evaluator = SimpleNamespace(gap_keys=("emia",))

        def train_and_evaluate(self, config):
            measured.append(config.method)
            return None, self.before

    monkeypatch.setattr(recipe, "start", lambda run, build: Measuring())
    path = tmp_path / "sweep.yaml"

    def sweep(rate: float) -> list[str]:
        measured.clear()
        content = {"family": "clip", "options": {"retrain.learning_rate": rate}, "settings": {"fine_tune": [{}]}}
        path.write_text(yaml.safe_dump(content))
        run(monkeypatch, capsys, "sweep.py", str(path))
        return list(measured)

    assert sweep(1e-3) == ["retrain", "fine_tune"] and sweep(1e-3) == []
    assert sweep(2e-3) == ["retrain", "fine_tune"]


@pytest.mark.parametrize("content", ["[1]", "family: simclr"])
def test_bad_sweep_files_are_named(content, tmp_path, monkeypatch):
    (tmp_path / "sweep.yaml").write_text(content)
    monkeypatch.setattr(sys, "argv", ["sweep.py", str(tmp_path / "sweep.yaml")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RECIPES / "sweep.py"), run_name="__main__")
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [({"family": "byol", "options": {}}, "byol"), ({"family": "clip", "options": {}, "seeds": 3}, "seeds")],
)
def test_bad_benchmark_files_are_named(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message):
        benchmarking.Benchmark.load(path)


def test_every_shipped_config_parses():
    from hf_unlearn.runs.command_line import parse_run

    configs = sorted((RECIPES / "configs").glob("*.yaml"))
    assert len(configs) >= 12
    for path in configs:
        run = parse_run(["--config", str(path), "--bf16", "false", "--pretrain.bf16", "false"])  # no accelerator here
        assert run.methods, path


@pytest.mark.parametrize("path", sorted((RECIPES / "benchmarks").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_benchmark_sets_what_its_runs_take(path):
    from hf_unlearn.runs.command_line import parse_run

    benchmark = benchmarking.Benchmark.load(path)
    run = parse_run(benchmark.argv(3))
    runs = benchmarking._runs(benchmark, 3)
    configs = {name: config for name, single in runs.items() for config in single.methods.values()}
    blind = [method + benchmarking.WITHOUT_INITIAL for method in benchmark.without_initial]
    assert list(configs) == ["retrain", "retrain_again", *list(run.methods)[1:], *blind]
    assert all(configs[method].to_dict() == config.to_dict() for method, config in run.methods.items())
    assert configs["retrain"].seed == 3 and configs["retrain_again"].seed == 1003
    for name, value in benchmark.options.items():
        method, _, setting = name.partition(".")
        assert not setting or getattr(configs[method], setting) == value


@pytest.mark.parametrize("path", sorted((RECIPES / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_has_a_row_for_each_of_its_settings(path):
    """The sweep's table is of this sweep: no setting was added, changed or left out since it was measured."""
    sweep = runpy.run_path(str(RECIPES / "sweep.py"))
    asked, rows = sweep["load"](path)[1], json.loads(path.with_suffix(".json").read_text())
    if asked[0][1].arguments.dataset_name == "openmoji":
        assert {row["key"] for row, _ in asked} == {row["key"] for row in rows}
    else:  # a key also tells of the files of a local data set, which is not here
        told = [[(row["method"], row.get("setting")) for row in some] for some in ([row for row, _ in asked], rows)]
        assert told[0] == told[1]
