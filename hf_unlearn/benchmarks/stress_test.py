"""Every attack on every method beside the same attack on Retrain: what could refute that a method unlearns."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import concatenate_datasets

from hf_unlearn.benchmarks.attack_signals import (
    BITS,
    LINE,
    NEGATIVES,
    RETAIN_STEPS,
    WHITE_BOX,
    AttackSignals,
    SignalExtractor,
)
from hf_unlearn.benchmarks.attacks import POINTS, AttackRow, attack_models
from hf_unlearn.benchmarks.benchmark import Benchmark
from hf_unlearn.data.fingerprint import dataset_sha256
from hf_unlearn.data.transformed_copies import TRANSFORMS, plant_near_copies
from hf_unlearn.distributed import owned_together
from hf_unlearn.errors import UserError
from hf_unlearn.files import write_atomically
from hf_unlearn.hub.manifest import public_hyper_parameters
from hf_unlearn.methods import description_of
from hf_unlearn.methods.fine_tune import FineTuneConfig
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.parsing import read_json
from hf_unlearn.runs import results
from hf_unlearn.runs.builders import BUILDERS
from hf_unlearn.runs.command_line import Run, parse_run
from hf_unlearn.runs.experiment import BEFORE, RETRAIN, Experiment
from hf_unlearn.runs.resuming import base_key, data_key, settings_hash
from hf_unlearn.runs.run_data import UnlearningTask, prepare_task
from hf_unlearn.runs.unlearn import base_model
from hf_unlearn.training.config import UnlearningConfig

logger = logging.getLogger(__name__)

SEED_STEP = 1000  # as the benchmark's second Retrain
TOLERANCE = 2.0  # points that an attack may differ from the same attack on Retrain


@dataclass(frozen=True)
class StressTest:
    """What is tested.

    Args:
        benchmark: the task: a family and the recipe's options.
        trial: seed of the split and the base model.
        methods: the methods, Retrain not among them: it is always there.
        ensemble: models of each method, and Retrains, with the seeds trial, trial + 1000, trial + 2000 and so on.
        steps: updates of relearning.
        near_copies: unlearn samples with near-copies planted in retain; 0 plants none.
        copies_each: near-copies of each of them.
        extra: further options of the recipes.
    """

    benchmark: Benchmark
    trial: int = 0
    methods: tuple[str, ...] = ("fine_tune", "alignment_calibration")
    ensemble: int = 4
    steps: int = 20
    near_copies: int = 0
    copies_each: int = 4
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ensemble < 2:
            raise UserError(
                f"ensemble {self.ensemble}: Retrain is compared with other Retrains, so at least 2 are needed (4 for "
                "KLoM, 3 for the likelihood-ratio attack)"
            )
        if RETRAIN in self.methods or len(set(self.methods)) < len(self.methods):
            raise UserError("methods: name each method once, and leave retrain out: it is always tested")

    def run(self, member: int, *methods: str) -> Run:
        """The parsed run of one member of the ensemble, of all methods or of some and what is set for them."""
        seed = ("--seed", str(self.trial + SEED_STEP * member))
        chosen = methods or (RETRAIN, *self.methods)
        return parse_run(self.benchmark.argv(self.trial, *self.extra, *seed, methods=chosen))


def run_stress_test(test: StressTest, output_dir: Path) -> list[AttackRow]:
    """Train what is missing, extract its signals, and attack everything.

    Each finished model is `output_dir/<name>-<member>.safetensors` with its settings and metrics in the `.json` beside
    it; a stopped test goes on with the models that are missing, and what had other data or settings is run again.

    Raises:
        UserError: another test is at work in the folder, or a record in it is damaged.
    """
    with owned_together(output_dir, "Another stress test"):
        signals = _extract_all(test, output_dir)
    base, retrains = signals[BEFORE][0], signals[RETRAIN]
    entrants = {name: models for name, models in signals.items() if name != RETRAIN}
    return attack_models(retrains, entrants, base, test.near_copies)


def _extract_all(test: StressTest, folder: Path) -> dict[str, list[AttackSignals]]:
    """Name -> the signals of its models, trained where the folder has none of these settings."""
    runs = [test.run(member) for member in range(test.ensemble)]
    relearning = test.run(0, "fine_tune")
    relearning_config = relearning.methods["fine_tune"]
    assert isinstance(relearning_config, FineTuneConfig)
    if test.near_copies and runs[0].arguments.streaming:
        raise UserError("--near_copies are planted among rows at hand, which --streaming never has; leave one out")
    task = prepare_task(runs[0].arguments)
    if test.near_copies:
        task = with_near_copies(task, test.near_copies, test.copies_each)
    base = base_model(runs[0], task, BUILDERS[test.benchmark.family])
    experiment = Experiment(relearning, task, base)
    extractor = SignalExtractor(experiment, relearning_config, test.steps)
    shared = {
        **base_key(experiment.base_record),
        **data_key(runs[0].arguments, task),
        "relearning": settings_hash(relearning),
        "steps": test.steps,
        "copies": list(TRANSFORMS),
        "weights": [*BITS, LINE, RETAIN_STEPS, WHITE_BOX, NEGATIVES],
    }
    signals = {BEFORE: [_signals_of(experiment, extractor, None, folder / f"{BEFORE}-0", shared)]}
    for name in (RETRAIN, *test.methods):
        signals[name] = [
            _signals_of(
                experiment,
                extractor,
                run.methods[name],
                folder / f"{name}-{member}",
                shared | {"run": settings_hash(test.run(member, name))},
            )
            for member, run in enumerate(runs)
        ]
    return signals


def _signals_of(
    experiment: Experiment,
    extractor: SignalExtractor,
    config: UnlearningConfig | None,
    path: Path,
    shared: dict[str, object],
) -> AttackSignals:
    """One model's signals, from their file if that had the same data and settings; None stands for the base model."""
    made_by = {} if config is None else {**public_hyper_parameters(config), "seed": config.seed}
    settings = json.loads(json.dumps({**shared, **made_by}, default=str))
    record, tensors = path.with_suffix(".json"), path.with_suffix(".safetensors")
    if record.is_file() and tensors.is_file():
        content = read_json(record, f"delete {path.name}.json, and it is made again")
        if isinstance(content, dict) and content.get("settings") == settings:
            return AttackSignals.load(tensors)
        logger.warning("%s had other data or settings and is made again.", path.name)
    if config is None:
        model, metrics = load_encoder(experiment.base)[0], experiment.before.metrics
        model.to(experiment.device)  # type: ignore[arg-type]  # the stub of `to` lacks devices
    else:
        trained, evaluation = experiment.train_and_evaluate(config, path.name)
        model, metrics = trained.model, evaluation.metrics
    signals = extractor.extract(model)
    record.unlink(missing_ok=True)  # new signals must not be taken for one with the old settings
    signals.save(tensors)
    write_atomically(record, json.dumps({"settings": settings, "metrics": metrics}, indent=1) + "\n")
    logger.info("%s is done.", path.name)
    return signals


def with_near_copies(task: UnlearningTask, samples: int, copies: int) -> UnlearningTask:
    """The task with near-copies of its first unlearn samples in retain; base model and Retrain learn them, too."""
    splits = plant_near_copies(task.splits, samples, copies)
    train = concatenate_datasets([splits["retain"], splits["unlearn"]])
    return replace(task, splits=splits, dataset=replace(task.dataset, sha256=dataset_sha256(train)))


def write_comparison(rows: Sequence[AttackRow], test: StressTest, output_dir: Path) -> str:
    """Write `results.json` and `results.md`; returns the Markdown."""
    content = {
        "schema": 1,
        "family": test.benchmark.family,
        "trial": test.trial,
        "ensemble": test.ensemble,
        "near_copies": test.near_copies,
        "tolerance": TOLERANCE,
        "rows": [
            {
                "attack": row.attack,
                "unit": row.unit,
                "retrain": _number(row.retrain),
                "retrain_std": _number(row.retrain_std),
                "power": has_power(row),
                "values": {name: _number(value) for name, value in row.values.items()},
                "differences": {name: _number(value) for name, value in row.differences.items()},
            }
            for row in rows
        ],
    }
    write_atomically(output_dir / "results.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    text = table(rows)
    write_atomically(output_dir / "results.md", text)
    return text


def _number(value: float | None) -> float | None:
    """A value as JSON has it, which knows none that is no number."""
    return value if value is not None and math.isfinite(value) else None


def table(rows: Sequence[AttackRow]) -> str:
    """One row an attack: Retrain's value, then each method's with its difference to Retrain in parentheses.

    Differences beyond the tolerance are bold. An attack has power if it finds the untouched model: if its value there
    differs from Retrain's by more than the tolerance and by more than twice what Retrains vary. Below, the count of
    attacks within the tolerance for each method, of all and of those with power. What has no value on Retrain is
    no attack here.
    """
    names = list(rows[0].values)
    lines = [["Attack", "Retrain", *map(_title, names), "Power"], ["---", *["---:"] * (len(names) + 1), "---"]]
    for row in rows:
        spread = "" if row.retrain_std is None else f" ± {row.retrain_std:.2f}"
        unit = f" ({row.unit})" if row.unit != POINTS else ""
        reference = f"{row.retrain:.2f}{spread}" if row.is_defined else "–"
        cells = [f"{row.attack}{unit}", reference]
        found = has_power(row)
        power = "–" if found is None else "yes" if found else "no"
        lines.append([*cells, *(_cell(row, name) for name in names), power])
    powerful = [row for row in rows if has_power(row)]
    return (
        f"{results.markdown(lines)}\nAttacks (in points) within {TOLERANCE:g} points of Retrain's: "
        f"{_counts(rows, names)}. Of those with power: {_counts(powerful, names)}.\n"
    )


def has_power(row: AttackRow) -> bool | None:
    """Whether an attack finds the untouched model; None if it was not made on it, or has no value in points."""
    if row.unit != POINTS or BEFORE not in row.values or not row.is_defined:
        return None
    return not abs(row.differences[BEFORE]) <= max(TOLERANCE, 2 * (row.retrain_std or 0.0))


def _cell(row: AttackRow, name: str) -> str:
    if name not in row.values or not row.is_defined:
        return "–"
    difference = row.differences[name]
    text = f"{row.values[name]:.2f} ({difference:+.2f})"
    return f"**{text}**" if _is_beyond(row, name) else text


def _counts(rows: Sequence[AttackRow], names: Sequence[str]) -> str:
    told = []
    for name in names:
        measured = [row for row in rows if name in row.values and row.unit == POINTS and row.is_defined]
        told.append(f"{_title(name)} {sum(not _is_beyond(row, name) for row in measured)} of {len(measured)}")
    return "; ".join(told)


def _is_beyond(row: AttackRow, name: str) -> bool:
    """Not within the tolerance; a value that is no number is not, either."""
    return row.unit == POINTS and not abs(row.differences[name]) <= TOLERANCE


def _title(name: str) -> str:
    return "before unlearning" if name == BEFORE else description_of(name).title
