"""Choose settings, and between methods, without retraining: the smallest gap to Retrain estimated on held-out samples.

The Trainer's own `hyperparameter_search` minimises a loss of one split at the end of each training. The estimated gap
needs embeddings of three splits before and after, so the search goes over `Experiment` instead, which encodes the
splits once for all trials.
"""

import json
import logging
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import yaml

from hf_unlearn.distributed import owned_together, world_size
from hf_unlearn.errors import DivergenceError, UserError, missing_extra
from hf_unlearn.files import write_atomically
from hf_unlearn.methods import METHODS
from hf_unlearn.parsing import read_json, read_yaml
from hf_unlearn.records.metric_labels import shown
from hf_unlearn.runs.builders import BUILDERS, Builder
from hf_unlearn.runs.command_line import Run, config_file, displaced, grouped_options, parse_run, section_options
from hf_unlearn.runs.experiment import RETRAIN, Experiment
from hf_unlearn.runs.results import TERMINAL_WIDTH, aligned
from hf_unlearn.runs.resuming import settings_hash
from hf_unlearn.runs.run_arguments import refuse_to_write_to_sources
from hf_unlearn.runs.unlearn import start
from hf_unlearn.training.config import UnlearningConfig
from hf_unlearn.training.search_space import Around, Choice, Log, Range, Same

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

TRIALS_NAME = "trials.json"
TUNED_NAME = "tuned.yaml"
TIES_TOLD = 5
RANDOM_TRIALS = 5  # after the default setting, before the estimator has enough to go by

logger = logging.getLogger(__name__)

Setting = dict[str, Any]
Row = Setting  # method, setting, key, and the metrics with `estimated_gap`, or why the trial was `stopped`


@dataclass(frozen=True)
class Search:
    """What is searched.

    Args:
        argv: the recipes' options: data, model, settings that all trials share.
        methods: ids of the methods to tune; they have the same number of trials.
        trials: of each method, its default setting first; fewer where its search space has fewer settings.
        seed: of the search.

    Raises:
        UserError: as `parse_run` does, and when a method has nothing to tune or the family is missing.
    """

    argv: tuple[str, ...]
    methods: tuple[str, ...]
    trials: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UserError(f"--n_trials {self.trials} leaves nothing to compare; use at least 1")
        if not self.methods or RETRAIN in self.methods:
            raise UserError("tuning is for methods that avoid retraining; name them with --methods, without retrain")
        runs = [self.run_of(method) for method in self.methods]
        if runs[0].family is None and runs[0].arguments.model_name_or_path is None:
            raise UserError(
                "name the model with --model_name_or_path, or with --family clip, simclr or moco the small one that "
                "the recipes pre-train"
            )
        if world_size() > 1:
            raise UserError("tuning runs in one process; start it with --num_processes 1 or without accelerate launch")

    @property
    def builder(self) -> Builder:
        """Builds the encoder to pre-train; not called where a model is named."""
        return BUILDERS[self.run_of(self.methods[0]).family or "clip"]

    def run_of(self, method: str, setting: Setting | None = None) -> Run:
        """The run of one setting of a method."""
        return parse_run([*self.argv, "--methods", method, *section_options(method, setting or {})])

    def key(self, method: str) -> str:
        """What a trial of a method must agree in to be one of this search."""
        run = self.run_of(method)
        spaces = [run.methods[method].ranges(family) for family in ("image-text", "views")]
        return f"{method}-{settings_hash(run)}-{crc32(repr(spaces).encode()):08x}-{self.seed}"


def tune(search: Search, folder: Path, resume: bool = False, say: Callable[[str], None] = lambda _: None) -> list[Row]:
    """Measure every method's trials that are missing in `folder`, and write the best setting for the recipes.

    Trials are drawn by a tree-structured Parzen estimator (Optuna) from what a method's config declares as its
    `search_space`, after the default setting. A draw depends on the seed, its number and the trials before it alone, so
    a search that was stopped and resumed is the uninterrupted one. A trial that the guard stops, or that cannot be
    measured, is no candidate.

    Args:
        search: What is searched.
        folder: Gets `trials.json`, after every trial, and `tuned.yaml`.
        resume: Whether to go on with the trials in the folder.
        say: Told a line for each trial.

    Returns:
        The trials of the search, the best first and the stopped ones last.

    Raises:
        UserError: When the folder holds trials and `resume` is False or they are of another search, or the model or the
            data, which are only read, or every trial was stopped.
    """
    _optuna()  # before anything is measured
    arguments = search.run_of(search.methods[0]).arguments
    refuse_to_write_to_sources(arguments, folder)
    with owned_together(folder, "Another search"):
        return _tune(search, folder, resume, say)


def _tune(search: Search, folder: Path, resume: bool, say: Callable[[str], None]) -> list[Row]:
    keys = {method: search.key(method) for method in search.methods}
    stored = _stored(folder / TRIALS_NAME, resume, keys)
    trials = {method: [row for row in stored if row["key"] == key] for method, key in keys.items()}
    others = [row for row in stored if row["method"] not in keys]
    untouched = _untouched(folder / TRIALS_NAME)
    experiment: Experiment | None = None
    for method, past in trials.items():
        while len(past) < search.trials:
            if experiment is None:
                experiment = start(search.run_of(method), search.builder)
                untouched = experiment.before.metrics["estimated_gap"]
            run, family = search.run_of(method), experiment.evaluator.family
            setting = propose(run.methods[method], family, past, search.seed, run.arguments.use_peft)
            if setting is None:
                say(f"{method}: its search space has {len(past)} settings, and all are tried")
                break
            row: Row = {"method": method, "setting": setting, "key": keys[method]}
            row |= _measured(experiment, search.run_of(method, setting).methods[method])
            past.append(row)
            outcome = f"stopped, {row['stopped']}" if "stopped" in row else f"estimated gap {shown(row)}"
            say(f"{method} {len(past)}/{search.trials}: {_words(setting)}: {outcome}")
            content = {
                "schema": 1,
                "before": untouched,
                "rows": [*others, *(row for rows in trials.values() for row in rows)],
            }
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / TRIALS_NAME, json.dumps(content, indent=1) + "\n")
    ranked = sorted((row for rows in trials.values() for row in rows), key=lambda row: row.get("estimated_gap", np.inf))
    if "estimated_gap" not in ranked[0]:
        raise UserError(f"every trial was stopped ({ranked[0]['stopped']}); lower the learning rate in its section")
    tuned = tuned_config(search.argv, ranked[0]["method"], ranked[0]["setting"]) | {"output_dir": str(folder)}
    say(f"before unlearning: estimated gap {untouched:.2f}")
    if (tied := ties(ranked)) is not None:
        logger.warning("%s", tied)
    if ranked[0]["estimated_gap"] >= untouched:
        logger.warning(
            "No setting is estimated to come closer to Retrain than the untouched model; more trials, or validation "
            "rows that the model never saw, may help."
        )
    write_atomically(folder / TUNED_NAME, yaml.safe_dump(tuned, sort_keys=False))
    return ranked


def _measured(experiment: Experiment, config: UnlearningConfig) -> Row:
    """The metrics of a trial, or why it was stopped: these rows do not allow its setting, or its training diverged."""
    try:
        experiment.check(config)
    except UserError as error:
        return {"stopped": str(error)}
    try:
        trained, evaluation = experiment.train_and_evaluate(config)
    except DivergenceError as error:
        return {"stopped": str(error)}
    return {"stopped": trained.stopped} if trained.stopped else evaluation.metrics


def propose(
    config: UnlearningConfig, family: str, past: Sequence[Row], seed: int, adapted: bool = False
) -> Setting | None:
    """The next setting to try, none that was tried before; None where all are.

    Args:
        config: the method's config with its default setting.
        family: image-text or views.
        past: the method's earlier trials.
        seed: of the search.
        adapted: whether an adapter is trained, on which `shrink_perturb` has no effect: it is left as it is.

    Raises:
        UserError: when a default value cannot lie in its range.
    """
    ranges = {name: r for name, r in config.ranges(family).items() if not (adapted and name == "shrink_perturb")}
    if not past:
        return {name: getattr(config, name) for name in ranges}
    optuna = _optuna()
    tied = {name: given.field for name, given in ranges.items() if isinstance(given, Same)}
    spread = {name: _distribution(config, name, given) for name, given in ranges.items() if name not in tied}
    state, other = map(int, np.random.SeedSequence([seed, len(past)]).generate_state(2))
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=state, n_startup_trials=RANDOM_TRIALS))
    for row in past:
        params = {name: row["setting"][name] for name in spread}
        stopped = {"state": optuna.trial.TrialState.PRUNED}
        outcome = stopped if "stopped" in row else {"value": row["estimated_gap"]}
        study.add_trial(optuna.create_trial(params=params, distributions=spread, **outcome))
    tried = [row["setting"] for row in past]

    def whole(drawn: Setting) -> Setting:
        return {name: drawn[tied.get(name, name)] for name in ranges}

    setting = whole(study.ask(spread).params)
    if setting not in tried:
        return setting
    # A training repeats to the bit, so that a setting tried again tells nothing; the estimator does not mind.
    every = [whole(dict(zip(spread, values, strict=True))) for values in product(*map(_values, spread.values()))]
    left = [setting for setting in every if setting not in tried]
    return left[other % len(left)] if left else None


def ties(rows: Sequence[Row]) -> str | None:
    """Say which trials the estimate does not tell from the best; None where it tells all.

    Args:
        rows: The trials, best first. One is tied whose estimate lies within the best one's 95% interval; the best
            setting itself, where earlier versions tried it twice, is no rival.
    """
    best = rows[0]
    rivals = [row for row in rows[1:] if (row["method"], row["setting"]) != (best["method"], best["setting"])]
    tied = [row for row in rivals if row.get("estimated_gap", np.inf) <= best.get("high_estimated_gap", -np.inf)]
    if not tied:
        return None
    which = "; ".join(f"{row['method']} {_words(row['setting'])}".strip() for row in tied[:TIES_TOLD])
    more = f" and {len(tied) - TIES_TOLD} more" if len(tied) > TIES_TOLD else ""
    return (
        f"{len(tied)} of {len(rows)} trials lie within the interval of the best, {shown(best)}, which the estimate "
        f"does not tell from it: {which}{more}. More validation and unlearn rows would."
    )


def trials_table(rows: Sequence[Row]) -> str:
    """The trials for a terminal, best first: the estimated gap with its parts, and below it what was tried."""
    parts = [name for name in rows[0] if name.startswith("estimated_gap_")]
    heads = [name.removeprefix("estimated_gap_").removesuffix("_accuracy") for name in parts]  # of narrow columns
    lines = [["Method", "Est. gap", *heads]]
    for row in rows:
        numbers = [shown(row), *(f"{row[name]:.2f}" if name in row else "–" for name in parts)]
        lines.append([row["method"], *numbers])
    head, *table = aligned(lines, words=1)
    settings = [
        textwrap.fill(_words(row["setting"]), TERMINAL_WIDTH, initial_indent="  ", subsequent_indent="  ")
        for row in rows
    ]
    return "\n".join([head, *(line for pair in zip(table, settings, strict=True) for line in pair)])


def tuned_config(argv: Sequence[str], method: str, setting: Setting) -> Setting:
    """What `--config` takes to run a method with a setting: the YAML and the options of `argv`, and the setting."""
    options = grouped_options(argv)
    config = next((values[0] for name, values in reversed(options) if name == "config"), None)
    content = read_yaml(config_file(config)) if config else {}
    others = displaced({name for name, _ in options})
    content = {name: value for name, value in content.items() if name not in others}
    for name, values in options:
        section, dot, field = name.rpartition(".")
        if name != "config":
            value = {field: values[0] if len(values) == 1 else values}
            content |= {section: {**content.get(section, {}), **value}} if dot else value
    content["methods"] = [method]
    content[method] = {**(content.get(method) or {}), **setting}
    return {name: value for name, value in content.items() if name not in METHODS or name in (method, RETRAIN)}


def _distribution(config: UnlearningConfig, name: str, given: Range) -> "BaseDistribution":
    """The range of a field, widened where the run's own value lies outside."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    own = getattr(config, name)
    if isinstance(given, Choice):
        return CategoricalDistribution([*given.values, *([own] if own not in given.values else [])])
    logarithmic = isinstance(given, Log | Around)
    if logarithmic and not own > 0:
        raise UserError(f"{config.method}.{name}={own} cannot be searched by factors; give it a value above 0")
    if isinstance(given, Around):
        given = Log(own / given.factor, own * given.factor)
    assert not isinstance(given, Same)
    low, high = min(given.low, own), max(given.high, own)
    if isinstance(own, int):
        return IntDistribution(round(low), round(high), log=logarithmic)
    return FloatDistribution(low, high, log=logarithmic)


def _values(distribution: "BaseDistribution") -> Sequence[Any]:
    """All values of a range that was drawn from twice with one outcome, which no other than a finite one is."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1)
    return [distribution.low]  # type: ignore[attr-defined]  # of floats, a range of one


def _stored(path: Path, resume: bool, keys: dict[str, str]) -> list[Row]:
    """The trials in a file, refused where they are not to be gone on with or are of another search."""
    if not path.is_file():
        return []
    if not resume:
        raise UserError(f"{path} holds trials already; give --resume to go on with them, or another --output_dir")
    try:
        rows: list[Row] = read_json(path)["rows"]
        changed = [row["method"] for row in rows if keys.get(row["method"], row["key"]) != row["key"]]
        if not all(isinstance(row["setting"], dict) and _outcome(row) for row in rows):
            raise ValueError("a trial without its setting or outcome")
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} cannot be read; choose another --output_dir") from error
    if changed:
        raise UserError(
            f"--resume: the trials of {changed[0]} in {path} had other data, settings or seed; repeat them, or choose "
            "another --output_dir"
        )
    return rows


def _untouched(path: Path) -> float:
    """The estimated gap of the model before unlearning, if a file of trials has it."""
    try:
        return float(read_json(path).get("before", np.nan)) if path.is_file() else np.nan
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} cannot be read; choose another --output_dir") from error


def _outcome(row: Row) -> bool:
    """Whether a trial says why it was stopped, or has numbers alone beside its setting."""
    measured = (value for name, value in row.items() if name not in ("method", "setting", "key"))
    return isinstance(row.get("stopped"), str) or all(isinstance(value, int | float) for value in measured)


def _words(setting: Setting) -> str:
    return ", ".join(f"{name} {v:.3g}" if isinstance(v, float) else f"{name} {v}" for name, v in setting.items())


def _optuna() -> ModuleType:
    """The module, quiet."""
    try:
        import optuna
    except ImportError as error:
        raise missing_extra("Tuning", "optuna", "tune") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
