"""Methods times trials: every run's metrics kept in a file of its own, the paper's tables made from them."""

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hf_unlearn.distributed import owned_together
from hf_unlearn.errors import UserError
from hf_unlearn.figures.bars import plot_bars
from hf_unlearn.files import write_atomically
from hf_unlearn.methods import METHODS, description_of
from hf_unlearn.metrics.gap import gap_to_retrain
from hf_unlearn.parsing import read_json, read_yaml
from hf_unlearn.records.codec import decode
from hf_unlearn.records.metric_labels import short_name
from hf_unlearn.runs.builders import BUILDERS
from hf_unlearn.runs.command_line import Run, as_words, grouped_options, options_of, parse_run, section_options
from hf_unlearn.runs.experiment import Experiment
from hf_unlearn.runs.results import columns_of, markdown
from hf_unlearn.runs.resuming import settings_hash
from hf_unlearn.runs.unlearn import start
from hf_unlearn.text import spreadsheet_cell

logger = logging.getLogger(__name__)

RETRAIN_AGAIN = "retrain_again"  # a second Retrain with another seed: the ceiling of agreement with Retrain
CALIBRATION = "alignment_calibration"
WITHOUT_INITIAL = ", initial model unknown"
# Table 5: which calibration terms are on; the weights that are off are set to zero.
ABLATION: dict[str, dict[str, float]] = {
    "neg. + pos.": {},
    "pos. only": {"alpha": 0},
    "neg. only": {"beta": 0},
    "neither": {"alpha": 0, "beta": 0},
}


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark file says.

    Args:
        family: clip, simclr or moco: the small encoder that is pre-trained where `options` names no model.
        options: options of the recipes, such as `config` and `methods`.
        trials: seeds; each draws its own split, base model, Retrain and runs.
        ablation: whether to run Table 5's variants of Alignment Calibration.
        alpha: values of alpha = gamma for Fig. 4.
        beta: values of beta for Fig. 4.
        without_initial: methods that are also run as if nobody knew the initial model, each with its settings then.
    """

    family: str
    options: dict[str, object]
    trials: tuple[int, ...] = (0, 1, 2)
    ablation: bool = False
    alpha: tuple[float, ...] = ()
    beta: tuple[float, ...] = ()
    without_initial: dict[str, dict[str, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.family not in BUILDERS:
            raise UserError(f"family {self.family!r} is unknown; choose from {', '.join(BUILDERS)}")

    @classmethod
    def load(cls, path: Path, content: dict[str, object] | None = None) -> "Benchmark":
        """Read a benchmark file (or what was read from it already); a `config` is a file beside it, or one shipped."""
        if not path.is_file():
            raise UserError(f"the benchmark file {path} does not exist")
        content = content or read_yaml(path)
        try:
            benchmark: Benchmark = decode(cls, content, "the file")
        except UserError as error:
            raise UserError(
                f"the benchmark file {path} is not valid: {str(error).partition(';')[0]}; mend it"
            ) from error
        beside = path.parent / str(benchmark.options.get("config"))
        if beside.is_file():
            benchmark.options["config"] = str(beside)
        return benchmark

    def argv(self, trial: int, *extra: str, methods: Sequence[str] | None = None) -> list[str]:
        """The recipes' arguments for one trial; of the file's methods, or of `methods` and what is set for them."""
        options = {**self.options, "split_seed": trial, "seed": trial, "pretrain.seed": trial}
        if methods is not None:
            others = set(METHODS) - set(methods)
            options = {name: value for name, value in options.items() if name.partition(".")[0] not in others}
            options["methods"] = methods
            given = [(n, words) for n, words in grouped_options(extra) if n.partition(".")[0] not in others]
            extra = tuple(as_words(given))
        return [*as_words(options_of(options)), *extra]

    def variants(self) -> dict[str, dict[str, float]]:
        """Named settings of Alignment Calibration beside its default, for Table 5 and Fig. 4."""
        chosen: dict[str, dict[str, float]] = dict(ABLATION) if self.ablation else {}
        chosen |= {f"alpha={value:g}": {"alpha": value, "gamma": value} for value in self.alpha}
        return chosen | {f"beta={value:g}": {"beta": value} for value in self.beta}


def run_benchmark(benchmark: Benchmark, output_dir: Path) -> dict[int, dict[str, dict[str, float]]]:
    """Run what has not been run yet and return the metrics of every trial: trial -> name -> flat metrics.

    Each finished run is one JSON file in `output_dir/trial-<seed>/`, so a stopped benchmark goes on where it was. The
    file's `key` tells its settings, and those of the Retrain it was compared with; what had others is run again.

    Raises:
        UserError: another benchmark is at work in the folder.
    """
    with owned_together(output_dir, "Another benchmark"):
        return {trial: _run_trial(benchmark, trial, output_dir / f"trial-{trial}") for trial in benchmark.trials}


def _run_trial(benchmark: Benchmark, trial: int, folder: Path) -> dict[str, dict[str, float]]:
    runs = _runs(benchmark, trial)
    keys = _keys(runs)
    done = {name: metrics for name, key in keys.items() if (metrics := _measured(folder / f"{name}.json", key))}
    if len(done) == len(keys):
        return done
    folder.mkdir(parents=True, exist_ok=True)
    experiment = start(parse_run(benchmark.argv(trial)), BUILDERS[benchmark.family])
    for name, key in keys.items():
        # Retrain comes first and is cached: it is measured even if its file is there, for the others' agreement.
        if name in done and name != "retrain":
            continue
        if name == "before":
            metrics = experiment.before.metrics
        else:
            (config,) = runs[name].methods.values()
            chosen = without_initial(experiment) if name.endswith(WITHOUT_INITIAL) else experiment
            metrics = chosen.train_and_evaluate(config, name)[1].metrics
        done[name] = metrics
        write_atomically(folder / f"{name}.json", json.dumps({"key": key, **metrics}, indent=1) + "\n")
    return {name: done[name] for name in keys}


def without_initial(experiment: Experiment) -> Experiment:
    """The same experiment, with all that it measured so far, for who does not know the initial model."""
    blind = copy(experiment)
    blind.initial = None
    return blind


def _runs(benchmark: Benchmark, trial: int) -> dict[str, Run]:
    """Name -> the run of one method that it stands for, of every run of a trial, Retrain first."""

    def run_of(method: str, *options: str) -> Run:
        return parse_run(benchmark.argv(trial, *options, methods=[method]))

    runs = {"retrain": run_of("retrain"), RETRAIN_AGAIN: run_of("retrain", "--retrain.seed", str(trial + 1000))}
    runs |= {method: run_of(method) for method in parse_run(benchmark.argv(trial)).methods if method != "retrain"}
    settings = benchmark.variants().items()
    runs |= {name: run_of(CALIBRATION, *section_options(CALIBRATION, setting)) for name, setting in settings}
    blind = benchmark.without_initial.items()
    return runs | {m + WITHOUT_INITIAL: run_of(m, *section_options(m, setting)) for m, setting in blind}


def _keys(runs: Mapping[str, Run]) -> dict[str, str]:
    """Name -> what its file must agree in: its run's settings and, for what is compared with Retrain, Retrain's."""
    retrain = settings_hash(runs["retrain"])
    compared = {n: f"{n}-{settings_hash(run)}-{retrain}" for n, run in runs.items() if n != "retrain"}
    return {"before": f"before-{retrain}", "retrain": f"retrain-{retrain}", **compared}


def _measured(path: Path, key: str) -> dict[str, float] | None:
    """The metrics in a file, unless it is missing or has another key."""
    if not path.is_file():
        return None
    metrics = read_json(path, "delete it, and it is run again")
    if not isinstance(metrics, dict):
        metrics = {}
    found = metrics.pop("key", None)
    if found == key:
        return metrics
    reason = "does not tell its settings" if found is None else "had other data or settings"
    logger.warning("%s %s and is run again.", path, reason)
    return None


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation over trials.

    Attributes:
        mean: name -> metric -> mean over trials; `avg_gap` and `gap:<metric>` compare with each trial's own Retrain.
        std: the sample standard deviations, 0 for a single trial.
        trials: the seeds.
    """

    mean: dict[str, dict[str, float]]
    std: dict[str, dict[str, float]]
    trials: tuple[int, ...]
    family: str = "image-text"


def summarise(trials: Mapping[int, Mapping[str, Mapping[str, float]]], gap_keys: Sequence[str], family: str) -> Summary:
    """Mean and standard deviation of every metric, and of each trial's gap to its own Retrain."""
    collected: dict[str, dict[str, list[float]]] = {}
    for runs in trials.values():
        for name, metrics in runs.items():
            values = dict(metrics)
            if name != "retrain":
                gap = gap_to_retrain(metrics, runs["retrain"], gap_keys)
                values |= {f"gap:{key}": value for key, value in gap.per_key.items()} | {"avg_gap": gap.average}
            for key, value in values.items():
                collected.setdefault(name, {}).setdefault(key, []).append(value)
    mean = {name: {k: float(np.mean(v)) for k, v in keys.items()} for name, keys in collected.items()}
    std = {
        name: {k: float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for k, v in keys.items()}
        for name, keys in collected.items()
    }
    return Summary(mean, std, tuple(trials), family)


def write_tables(summary: Summary, benchmark: Benchmark, output_dir: Path) -> str:
    """Write the tables (Markdown, CSV, JSON) and plots; returns the Markdown."""
    names = ["before", "retrain", RETRAIN_AGAIN]
    names += [name for m in METHODS if m != "retrain" for name in (m, m + WITHOUT_INITIAL) if name in summary.mean]
    parts = [_main_table(summary, names)]
    if benchmark.ablation:
        lines = [["Terms", "Avg. gap"], ["---", "---:"], *([n, _number(summary, n, "avg_gap")] for n in ABLATION)]
        parts.append("Ablation of Alignment Calibration (Table 5), average gap:\n\n" + markdown(lines))
    text = "\n".join(parts)
    write_atomically(output_dir / "tables.md", text)
    write_atomically(output_dir / "tables.csv", _csv(summary))
    content = {"trials": summary.trials, "mean": summary.mean, "std": summary.std}
    write_atomically(output_dir / "tables.json", json.dumps(content, indent=1) + "\n")
    key = "negative_alignment"
    bars = {_title(n): (summary.mean[n][key], summary.std[n][key]) for n in names if n in METHODS}
    plot_bars(bars, output_dir / "negative_alignment.png", ylabel="negative alignment gap (×100)")
    if benchmark.alpha or benchmark.beta:
        _plot_ratios(summary, benchmark, output_dir / "forgetting_score_ratio.png")
    return text


def _main_table(summary: Summary, names: Sequence[str]) -> str:
    """Tables 1, 2, 4, 6 and 7: mean ± sd, mean gap to the trial's own Retrain in parentheses, best in bold."""
    present = {key for metrics in summary.mean.values() for key in metrics}
    columns = [*columns_of(summary.family, present), *({"agreement_pearson"} & present)]
    compared = [n for n in names if n.removesuffix(WITHOUT_INITIAL) in METHODS and n != "retrain"]
    best = min(summary.mean[n]["avg_gap"] for n in compared) if compared else None
    lines = [["Method", *(short_name(key) for key in columns), "Avg. gap"]]
    lines.append(["---", *["---:"] * (len(columns) + 1)])
    for name in names:
        cells = [_title(name), *(_cell(summary, name, key) for key in columns)]
        gap = "–" if name == "retrain" else _number(summary, name, "avg_gap")
        lines.append([*cells, f"**{gap}**" if name in compared and summary.mean[name]["avg_gap"] == best else gap])
    return markdown(lines)


def _cell(summary: Summary, name: str, key: str) -> str:
    if key not in summary.mean[name]:
        return "–"
    gap = summary.mean[name].get(f"gap:{key}")
    return _number(summary, name, key) + (f" ({gap:.2f})" if gap is not None else "")


def _number(summary: Summary, name: str, key: str) -> str:
    return f"{summary.mean[name][key]:.2f} ± {summary.std[name][key]:.2f}"


def _title(name: str) -> str:
    titles = {"before": "before unlearning", RETRAIN_AGAIN: "Retrain, other seed"}
    method = name.removesuffix(WITHOUT_INITIAL)
    return titles.get(name) or description_of(method).title + name.removeprefix(method)


def _csv(summary: Summary) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["run", "metric", "mean", "std", "trials"])
    for name, metrics in summary.mean.items():
        for key, value in metrics.items():
            writer.writerow(
                [spreadsheet_cell(name), spreadsheet_cell(key), value, summary.std[name][key], len(summary.trials)]
            )
    return buffer.getvalue()


def _plot_ratios(summary: Summary, benchmark: Benchmark, path: Path) -> None:
    """Fig. 4: forgetting score of Retrain over that of Alignment Calibration, along alpha = gamma and along beta."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True, squeeze=False)[0]
    retrain = summary.mean["retrain"]["forgetting_score"]
    for axis, label, values in zip(axes, ("alpha", "beta"), (benchmark.alpha, benchmark.beta), strict=True):
        ratios = [retrain / summary.mean[f"{label}={value:g}"]["forgetting_score"] for value in values]
        axis.bar([f"{value:g}" for value in values], ratios, color="#d95f02" if label == "alpha" else "#1b6ca8")
        axis.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
        axis.set_xlabel("α = γ" if label == "alpha" else "β")
    axes[0].set_ylabel("FS(Retrain) : FS(AC)")
    figure.savefig(path, dpi=150)
