"""Search hyper-parameters of each method on one task and keep every setting's result beside the sweep file.

    accelerate launch recipes/sweep.py recipes/sweeps/clip_openmoji.yaml

A sweep file names a family, the recipe's options and a list of settings for each method. It uses a split of its own:
the reported trials draw others, so no setting is chosen on what it is judged by.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from hf_unlearn.cli.guard import guarded
from hf_unlearn.errors import UserError
from hf_unlearn.hub.records import write_atomically
from hf_unlearn.metrics.gap import gap_to_retrain
from hf_unlearn.runs.arguments import parse_run
from hf_unlearn.runs.benchmark import BUILDERS, Benchmark
from hf_unlearn.runs.recipe import start

SWEEP_SEED = 100


def main() -> None:
    """Run every setting of every method and write the table."""
    if len(sys.argv) != 2:
        raise UserError("usage: sweep.py SWEEP.yaml")
    path = Path(sys.argv[1])
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings = content.pop("settings")
    sweep = Benchmark.load(path, content)
    run = parse_run(sweep.argv(SWEEP_SEED, "--methods", "retrain", *settings))
    experiment = start(run, BUILDERS[sweep.family])
    _, retrain = experiment.measure(run.methods["retrain"])
    keys = experiment.evaluator.gap_keys
    rows: list[dict[str, Any]] = [
        {"method": "before", **experiment.before.metrics},
        {"method": "retrain", **retrain.metrics},
    ]
    for method, choices in settings.items():
        for setting in choices:
            options = [token for name, value in setting.items() for token in (f"--{method}.{name}", str(value))]
            config = parse_run(sweep.argv(SWEEP_SEED, "--methods", "retrain", method, *options)).methods[method]
            _, evaluation = experiment.measure(config)
            gap = gap_to_retrain(evaluation.metrics, retrain.metrics, keys)
            rows.append({"method": method, "setting": setting, "avg_gap": gap.average, **evaluation.metrics})
            print(method, setting, f"average gap {gap.average:.2f}", flush=True)
    write_atomically(path.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")
    write_atomically(path.with_suffix(".md"), table(rows, keys))


def table(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> str:
    """Markdown: one row a setting, the best of each method in bold."""
    tried = [row for row in rows if "setting" in row]
    best = {m: min(r["avg_gap"] for r in tried if r["method"] == m) for m in {r["method"] for r in tried}}
    lines = [["method", "setting", *keys, "avg. gap"], ["---", "---", *["---:"] * (len(keys) + 1)]]
    for row in rows:
        setting = ", ".join(f"{name} {value}" for name, value in row.get("setting", {}).items())
        gap = f"{row['avg_gap']:.2f}" if "avg_gap" in row else "–"
        if row.get("avg_gap") == best.get(row["method"], -1):
            gap = f"**{gap}**"
        lines.append([row["method"], setting, *(f"{row[key]:.2f}" for key in keys), gap])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    guarded(main)
