"""Search hyper-parameters of each method on one task and keep every setting's result.

    accelerate launch recipes/sweep.py --sweep recipes/sweeps/clip_openmoji.yaml --split_seed 100 --seed 100

The sweep file maps a method to a list of settings. Run it on a split of its own: the reported trials use other seeds,
so no setting is chosen on what it is judged by. Retrain is known here; choosing without it is a different task.
"""

import json
import sys
from pathlib import Path

import yaml

from hf_unlearn.cli.guard import guarded
from hf_unlearn.hub.records import write_atomically
from hf_unlearn.metrics.gap import gap_to_retrain
from hf_unlearn.models.small_clip import build_small_clip
from hf_unlearn.runs.arguments import parse_run
from hf_unlearn.runs.experiment import Experiment
from hf_unlearn.runs.pretrain import pretrain
from hf_unlearn.runs.task import prepare_task

CONFIGS = Path(__file__).parent / "configs"


def main() -> None:
    """Run every setting of every method and write the table beside the sweep file."""
    place = sys.argv.index("--sweep")
    sweep = Path(sys.argv[place + 1])
    argv = sys.argv[1:place] + sys.argv[place + 2 :]
    default = CONFIGS / "clip_openmoji.yaml"
    run = parse_run(argv, default)
    task = prepare_task(run.arguments)
    model, processor = build_small_clip(caption for captions in task.train["captions"] for caption in captions)
    experiment = Experiment(task, pretrain(task, model, processor, run.pretrain), run.arguments, run.methods["retrain"])
    _, retrain = experiment.measure(run.methods["retrain"])
    keys = experiment.evaluator.gap_keys
    rows = [{"method": "before", **experiment.before.metrics}, {"method": "retrain", **retrain.metrics}]
    for method, settings in yaml.safe_load(sweep.read_text(encoding="utf-8")).items():
        for setting in settings:
            options = [token for name, value in setting.items() for token in (f"--{method}.{name}", str(value))]
            config = parse_run([*argv, "--methods", "retrain", method, *options], default).methods[method]
            _, evaluation = experiment.measure(config)
            gap = gap_to_retrain(evaluation.metrics, retrain.metrics, keys)
            rows.append({"method": method, "setting": setting, "avg_gap": gap.average, **evaluation.metrics})
            print(method, setting, f"average gap {gap.average:.2f}", flush=True)
    write_atomically(sweep.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")
    write_atomically(sweep.with_suffix(".md"), table(rows, keys))


def table(rows: list[dict], keys: tuple[str, ...]) -> str:
    """Markdown: one row a setting, the best of each method in bold."""
    best = {
        m: min(r["avg_gap"] for r in rows if r["method"] == m) for m in {r["method"] for r in rows if "setting" in r}
    }
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
