"""Search hyper-parameters of each method on one task and keep every setting's result beside the sweep file.

    accelerate launch recipes/sweep.py recipes/sweeps/clip_openmoji.yaml

A sweep file names a family, the recipe's options (such as `unlearn_fraction`), a list of settings for each method and,
if it likes, a `split_seed`; under `without_initial`, settings of methods that do not know the initial model. By default
it uses a split of its own: the reported trials draw others, so no setting is chosen on what it is judged by. Every
setting's row is written when it is measured; stopped, the same command goes on with what is missing or was changed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState

from hf_unlearn.benchmarks.benchmark import WITHOUT_INITIAL, Benchmark, without_initial
from hf_unlearn.cli.guard import guarded
from hf_unlearn.errors import UserError
from hf_unlearn.files import write_atomically
from hf_unlearn.metrics.gap import gap_to_retrain
from hf_unlearn.records.metric_labels import shown
from hf_unlearn.runs.builders import BUILDERS
from hf_unlearn.runs.command_line import Run, parse_run, section_options
from hf_unlearn.runs.experiment import Experiment
from hf_unlearn.runs.results import markdown
from hf_unlearn.runs.resuming import settings_hash
from hf_unlearn.runs.unlearn import start

SWEEP_SEED = 100

Row = dict[str, Any]


def main() -> None:
    """Measure every setting of every method that has no row yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="sweep file, as those in recipes/sweeps")
    path: Path = parser.parse_args().sweep
    sweep, runs = load(path)
    stored = path.with_suffix(".json")
    known = {row.get("key"): row for row in (json.loads(stored.read_text("utf-8")) if stored.is_file() else [])}
    if runs[1][0]["key"] not in known:  # what is there was compared with another Retrain
        known = {}
    experiment: Experiment | None = None
    for row, run in runs:
        if row["key"] not in known:
            experiment = experiment or begin(sweep, runs[1][1])
            known[row["key"]] = row | setting_metrics(experiment, row["method"], run)
            if PartialState().is_main_process:
                print(summary(known[row["key"]]), flush=True)
                done = {row["key"]: known[row["key"]] for row, _ in runs if row["key"] in known}
                write_atomically(stored, json.dumps(list(done.values()), indent=1) + "\n")
    if PartialState().is_main_process:
        rows = {row["key"]: known[row["key"]] for row, _ in runs}
        write_atomically(path.with_suffix(".md"), table(list(rows.values())))


def load(path: Path) -> tuple[Benchmark, list[tuple[Row, Run]]]:
    """The sweep and the beginnings of its rows, each with the run that it tells of: before, Retrain, every setting."""
    if not path.is_file():
        raise UserError(f"the sweep file {path} does not exist")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise UserError(f"the sweep file {path} must hold settings: a list of them for each method")
    settings, seed = content.pop("settings"), int(content.pop("split_seed", SWEEP_SEED))
    settings |= {method + WITHOUT_INITIAL: tried for method, tried in content.pop("without_initial", {}).items()}
    sweep = Benchmark.load(path, content)
    retrain = parse_run(sweep.argv(seed, methods=["retrain"]))
    runs: list[tuple[Row, Run]] = [({"method": "before"}, retrain), ({"method": "retrain"}, retrain)]
    for name, choices in settings.items():
        method = name.removesuffix(WITHOUT_INITIAL)
        for setting in choices:
            run = parse_run(sweep.argv(seed, *section_options(method, setting), methods=[method]))
            runs.append(({"method": name, "setting": setting}, run))
    return sweep, [(row | {"key": f"{row['method']}-{settings_hash(run)}"}, run) for row, run in runs]


def begin(sweep: Benchmark, retrain: Run) -> Experiment:
    """The experiment, with Retrain measured, which is cached from one sweep to the next."""
    experiment = start(retrain, BUILDERS[sweep.family])
    experiment.train_and_evaluate(retrain.methods["retrain"])
    return experiment


def setting_metrics(experiment: Experiment, method: str, run: Run) -> Row:
    """The rest of a row: a setting's metrics and its gap to Retrain, or why it has none."""
    assert experiment.retrain is not None
    if method in ("before", "retrain"):
        return (experiment.before if method == "before" else experiment.retrain).metrics
    try:
        knowing = without_initial(experiment) if method.endswith(WITHOUT_INITIAL) else experiment
        _, evaluation = knowing.train_and_evaluate(run.methods[method.removesuffix(WITHOUT_INITIAL)])
    except UserError as error:  # it diverged, or the method found nothing to do
        return {"failed": str(error)}
    keys = experiment.evaluator.gap_keys
    gap = gap_to_retrain(evaluation.metrics, experiment.retrain.metrics, keys)
    return {"avg_gap": gap.average, "gap": gap.per_key, **evaluation.metrics}


def summary(row: Row) -> str:
    """A line for the terminal."""
    told = row.get("failed") or ", ".join(f"{k} {shown(row, k)}" for k in ("avg_gap", "estimated_gap") if k in row)
    return f"{row['method']} {row.get('setting', '')} {told}"


def table(rows: list[Row]) -> str:
    """Markdown: one row a setting, the best of each method in bold."""
    tried = [row for row in rows if "avg_gap" in row]
    keys = list(tried[0]["gap"]) if tried else []
    best = {m: min(r["avg_gap"] for r in tried if r["method"] == m) for m in {r["method"] for r in tried}}
    lines = [["method", "setting", *keys, "est. gap", "avg. gap"], ["---", "---", *["---:"] * (len(keys) + 2)]]
    for row in rows:
        setting = ", ".join(f"{name} {value}" for name, value in row.get("setting", {}).items())
        numbers = [shown(row, key) for key in (*keys, "estimated_gap", "avg_gap")]
        if "avg_gap" in row and row["avg_gap"] == best[row["method"]]:
            numbers[-1] = f"**{numbers[-1]}**"
        lines.append([row["method"], setting, *numbers])
    return markdown(lines)


if __name__ == "__main__":
    guarded(main)
