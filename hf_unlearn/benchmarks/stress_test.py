"""Every attack on every method beside the same attack on Retrain: what could refute that a method unlearns."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from datasets import concatenate_datasets

from hf_unlearn.benchmarks.benchmark import Benchmark
from hf_unlearn.benchmarks.observation import Observation, Observer
from hf_unlearn.data.fingerprint import dataset_sha256
from hf_unlearn.data.transformed_copies import TRANSFORMS, plant_near_copies
from hf_unlearn.errors import UserError
from hf_unlearn.files import write_atomically
from hf_unlearn.hub.recording import public_hyper_parameters
from hf_unlearn.methods import METHODS, description_of
from hf_unlearn.methods.fine_tune import FineTuneConfig
from hf_unlearn.metrics.agreement import agreement
from hf_unlearn.metrics.attacks import roc_auc, tpr_at_fpr
from hf_unlearn.metrics.completeness import sample_completeness
from hf_unlearn.metrics.klom import klom
from hf_unlearn.metrics.likelihood_ratio import likelihood_ratio_attack
from hf_unlearn.metrics.relative_position import NEIGHBOURS, neighbourhood_residual, relative_position
from hf_unlearn.metrics.relearning import relearning
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.runs import tables
from hf_unlearn.runs.arguments import Run, grouped_options, parse_run
from hf_unlearn.runs.builders import BUILDERS
from hf_unlearn.runs.experiment import BEFORE, RETRAIN, Experiment
from hf_unlearn.runs.resuming import base_key, data_key, settings_hash
from hf_unlearn.runs.run_data import UnlearningTask, prepare_task
from hf_unlearn.runs.unlearn import base_model
from hf_unlearn.training.config import UnlearningConfig

logger = logging.getLogger(__name__)

SEED_STEP = 1000  # as the benchmark's second Retrain
TOLERANCE = 2.0  # points that an attack may differ from the same attack on Retrain
NATS = "nats"
POINTS = "points"


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
        chosen = methods or (RETRAIN, *self.methods)
        others = set(METHODS) - set(chosen) if methods else set()
        options = [(n, v) for n, v in grouped_options(self.extra) if n.partition(".")[0] not in others]
        extra = [word for name, values in options for word in (f"--{name}", *values)]
        seed = ("--seed", str(self.trial + SEED_STEP * member))
        return parse_run(self.benchmark.argv(self.trial, *extra, *seed, methods=chosen))

    @property
    def family(self) -> str:
        """The family of encoders."""
        return self.benchmark.family


@dataclass(frozen=True)
class AttackRow:
    """One attack on everything.

    Attributes:
        attack: its name.
        unit: points (hundredths) or nats.
        retrain: its value on Retrain, mean over the ensemble.
        retrain_std: standard deviation over the Retrains; None where the ensemble gives one value.
        values: method (or `before`) to the value, mean over its models.
    """

    attack: str
    unit: str
    retrain: float
    retrain_std: float | None
    values: dict[str, float] = field(default_factory=dict)

    @property
    def differences(self) -> dict[str, float]:
        """Value minus Retrain's."""
        return {name: value - self.retrain for name, value in self.values.items()}


def run_stress_test(test: StressTest, output_dir: Path) -> list[AttackRow]:
    """Train what is missing, observe it, and attack everything.

    Each finished model is `output_dir/<name>-<member>.safetensors` with its settings and metrics in the `.json` beside
    it; a stopped test goes on with the models that are missing, and what had other data or settings is run again.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    observed = _observe_all(test, output_dir)
    base, retrains = observed[BEFORE][0], observed[RETRAIN]
    entrants = {name: models for name, models in observed.items() if name != RETRAIN}
    return compare(retrains, entrants, base, test.near_copies)


def compare(
    retrains: Sequence[Observation],
    entrants: Mapping[str, Sequence[Observation]],
    base: Observation,
    near_copies: int = 0,
) -> list[AttackRow]:
    """Attack every entrant and every Retrain in the same way.

    Model k of an ensemble is compared with the Retrains other than the k-th: Retrain with its leave-one-out ensemble,
    and a method with as many. Attacks on whole ensembles compare halves, so that both sides are as large for Retrain.

    Args:
        retrains: two or more.
        entrants: name to models; a single model (`before`) is attacked by what takes one model.
        base: the model before unlearning.
        near_copies: the first so many unlearn samples have near-copies in retain.
    """
    single = {name: _one_by_one(models, retrains, base, near_copies) for name, models in entrants.items()}
    own = _one_by_one(retrains, retrains, base, near_copies)
    rows = [
        AttackRow(
            attack,
            POINTS,
            float(np.mean(values)),
            float(np.std(values, ddof=1)),
            {name: float(np.mean(attacked[attack])) for name, attacked in single.items()},
        )
        for attack, values in own.items()
    ]
    whole = {name: models for name, models in entrants.items() if len(models) == len(retrains)}
    return rows + _ensemble_rows(retrains, whole)


def _one_by_one(
    models: Sequence[Observation], retrains: Sequence[Observation], base: Observation, near_copies: int
) -> dict[str, list[float]]:
    """Attack -> its value on each model, in points."""
    values: dict[str, list[float]] = {}
    for k, model in enumerate(models):
        others = [retrain for j, retrain in enumerate(retrains) if j != k % len(retrains)]
        found = _alone(model, base) | _beside_retrains(model, others, base)
        if near_copies:
            found |= _near_copied(model, near_copies)
        for attack, value in found.items():
            values.setdefault(attack, []).append(100 * value)
    return values


def _alone(model: Observation, base: Observation) -> dict[str, float]:
    """Attacks that need no retrained model; shares, not points."""
    found = {}
    for kind in ("", *TRANSFORMS):
        suffix, name = (f"/{kind}", f"alignment, {kind} copies") if kind else ("", "alignment")
        unlearn, test = model.alignment[f"unlearn{suffix}"], model.alignment[f"test{suffix}"]
        found[f"{name}: AUC"] = roc_auc(unlearn, test)
        found[f"{name}: TPR at 1% FPR"] = tpr_at_fpr(unlearn, test)
    anchors = model.images["anchors"]
    near = neighbourhood_residual(
        model.images["unlearn"], model.images["test"], anchors, k=min(NEIGHBOURS, len(anchors))
    )
    found["neighbourhood, oracle-free: AUC"] = near.auc / 100
    completeness = sample_completeness(
        model.alignment["unlearn"], base.alignment["unlearn"], held_out=base.alignment["test"]
    )
    found["completeness by held-out samples"] = completeness.mean
    found["relearning: area"] = relearning(model.recovery, model.recovery).area
    return found


def _beside_retrains(model: Observation, others: Sequence[Observation], base: Observation) -> dict[str, float]:
    """Attacks that compare with Retrains of other seeds; shares, not points."""
    references = np.stack([other.alignment["unlearn"] for other in others])
    completeness = sample_completeness(model.alignment["unlearn"], base.alignment["unlearn"], references)
    pairs: list[dict[str, float]] = []
    for other in others:
        anchors = model.images["anchors"], other.images["anchors"]
        k = min(NEIGHBOURS, len(anchors[0]))
        position = relative_position(model.images["unlearn"], anchors[0], other.images["unlearn"], anchors[1], k=k)
        agreed = agreement(model.alignment["unlearn"], other.alignment["unlearn"])
        pairs.append(
            {
                "position among anchors: agreement": position.agreement,
                "position among anchors: shared neighbours": position.neighbours,
                "alignment per sample: Pearson": agreed.pearson,
                "alignment per sample: mean absolute difference": agreed.mean_absolute_difference,
            }
        )
    return {
        "completeness by Retrains": completeness.mean,
        "completeness by Retrains: share over-unlearned": completeness.over,
        **{attack: float(np.mean([pair[attack] for pair in pairs])) for attack in pairs[0]},
    }


def _near_copied(model: Observation, count: int) -> dict[str, float]:
    """What is left of samples whose near-copies stay in retain, and of the others."""
    unlearn, test = model.alignment["unlearn"], model.alignment["test"]
    found = {}
    for name, part in (("with near-copies in retain", unlearn[:count]), ("without near-copies", unlearn[count:])):
        if len(part):
            found[f"samples {name}: mean alignment"] = float(part.mean())
            found[f"samples {name}: AUC"] = roc_auc(part, test)
    return found


def _ensemble_rows(retrains: Sequence[Observation], entrants: Mapping[str, Sequence[Observation]]) -> list[AttackRow]:
    """KLoM by halves of the ensembles, and the likelihood-ratio attack, as far as there are enough models."""
    rows: list[AttackRow] = []
    count = len(retrains)
    if count < 4:
        logger.warning("KLoM needs 4 models of each kind and is left out: there are %d.", count)
    else:
        halves = [(list(half), [k for k in range(count) if k not in half][: count // 2]) for half in _halves(count)]
        for split in ("unlearn", "retain"):
            sides = {
                name: np.stack([model.alignment[split] for model in models])
                for name, models in {RETRAIN: retrains, **entrants}.items()
            }
            found = {
                name: [klom(side[tested], sides[RETRAIN][half]) for half, tested in halves]
                for name, side in sides.items()
            }
            for label, take in (("mean", "mean"), ("95th percentile", "percentile_95")):
                means = {name: float(np.mean([getattr(r, take) for r in results])) for name, results in found.items()}
                rows.append(AttackRow(f"KLoM, {split}: {label}", NATS, means.pop(RETRAIN), None, means))
    if count < 3:
        logger.warning("The likelihood-ratio attack needs 3 models of each kind and is left out: there are %d.", count)
        return rows
    out_world = np.stack([retrain.alignment["unlearn"] for retrain in retrains])
    attacks = {
        name: likelihood_ratio_attack(np.stack([model.alignment["unlearn"] for model in models]), out_world)
        for name, models in entrants.items()
    }
    n = out_world.shape[1]
    # What exact unlearning gets in expectation: its models and the Retrains are exchangeable.
    chance = 100 * (int(0.01 * n + 1e-9) + 1) / (n + 1)
    rows.append(AttackRow("likelihood ratio: AUC", POINTS, 50.0, None, {k: a.auc for k, a in attacks.items()}))
    tprs = {name: attack.tpr_at_1_fpr for name, attack in attacks.items()}
    rows.append(AttackRow("likelihood ratio: TPR at 1% FPR", POINTS, chance, None, tprs))
    return rows


def _halves(count: int) -> list[tuple[int, ...]]:
    return list(combinations(range(count), count // 2))


def _observe_all(test: StressTest, folder: Path) -> dict[str, list[Observation]]:
    """Name -> its observed models, trained and observed where the folder has none of these settings."""
    runs = [test.run(member) for member in range(test.ensemble)]
    relearning = test.run(0, "fine_tune")
    relearning_config = relearning.methods["fine_tune"]
    assert isinstance(relearning_config, FineTuneConfig)
    if test.near_copies and runs[0].arguments.streaming:
        raise UserError("--near_copies are planted among rows at hand, which --streaming never has; leave one out")
    task = prepare_task(runs[0].arguments)
    if test.near_copies:
        task = with_near_copies(task, test.near_copies, test.copies_each)
    base = base_model(runs[0], task, BUILDERS[test.family])
    experiment = Experiment(relearning, task, base)
    observer = Observer(experiment, relearning_config, test.steps)
    shared = {
        **base_key(experiment.base_record),
        **data_key(runs[0].arguments, task),
        "relearning": settings_hash(relearning),
        "steps": test.steps,
        "copies": list(TRANSFORMS),
    }
    observed = {BEFORE: [_observe(experiment, observer, None, folder / f"{BEFORE}-0", shared)]}
    for name in (RETRAIN, *test.methods):
        observed[name] = [
            _observe(
                experiment,
                observer,
                run.methods[name],
                folder / f"{name}-{member}",
                shared | {"run": settings_hash(test.run(member, name))},
            )
            for member, run in enumerate(runs)
        ]
    return observed


def _observe(
    experiment: Experiment, observer: Observer, config: UnlearningConfig | None, path: Path, shared: dict[str, Any]
) -> Observation:
    """One model's observation, from its file if that had the same data and settings; None observes the base model."""
    made_by = {} if config is None else {**public_hyper_parameters(config), "seed": config.seed}
    settings = json.loads(json.dumps({**shared, **made_by}, default=str))
    record, tensors = path.with_suffix(".json"), path.with_suffix(".safetensors")
    if record.is_file() and tensors.is_file():
        if json.loads(record.read_text(encoding="utf-8"))["settings"] == settings:
            return Observation.load(tensors)
        logger.warning("%s had other data or settings and is made again.", path.name)
    if config is None:
        model, metrics = load_encoder(experiment.base)[0], experiment.before.metrics
        model.to(experiment.device)  # type: ignore[arg-type]  # the stub of `to` lacks devices
    else:
        model, evaluation = experiment.measure(config, path.name)
        metrics = evaluation.metrics
    observation = observer.observe(model)
    record.unlink(missing_ok=True)  # a new observation must not be taken for one with the old settings
    observation.save(tensors)
    write_atomically(record, json.dumps({"settings": settings, "metrics": metrics}, indent=1) + "\n")
    logger.info("%s is done.", path.name)
    return observation


def with_near_copies(task: UnlearningTask, samples: int, copies: int) -> UnlearningTask:
    """The task with near-copies of its first unlearn samples in retain; base model and Retrain learn them, too."""
    splits = plant_near_copies(task.splits, samples, copies)
    train = concatenate_datasets([splits["retain"], splits["unlearn"]])
    return replace(task, splits=splits, dataset=replace(task.dataset, sha256=dataset_sha256(train)))


def write_comparison(rows: Sequence[AttackRow], test: StressTest, output_dir: Path) -> str:
    """Write `results.json` and `results.md`; returns the Markdown."""
    content = {
        "schema": 1,
        "family": test.family,
        "trial": test.trial,
        "ensemble": test.ensemble,
        "near_copies": test.near_copies,
        "tolerance": TOLERANCE,
        "rows": [
            {
                "attack": row.attack,
                "unit": row.unit,
                "retrain": row.retrain,
                "retrain_std": row.retrain_std,
                "values": row.values,
                "differences": row.differences,
            }
            for row in rows
        ],
    }
    write_atomically(output_dir / "results.json", json.dumps(content, indent=1) + "\n")
    text = markdown(rows)
    write_atomically(output_dir / "results.md", text)
    return text


def markdown(rows: Sequence[AttackRow]) -> str:
    """One row an attack: Retrain's value, then each method's with its difference to Retrain in parentheses.

    Differences beyond the tolerance are bold; below, the count of them for each method.
    """
    names = [name for name in rows[0].values]
    lines = [["Attack", "Retrain", *map(_title, names)], ["---", *["---:"] * (len(names) + 1)]]
    for row in rows:
        spread = "" if row.retrain_std is None else f" ± {row.retrain_std:.2f}"
        unit = f" ({row.unit})" if row.unit != POINTS else ""
        cells = [f"{row.attack}{unit}", f"{row.retrain:.2f}{spread}"]
        lines.append([*cells, *(_cell(row, name) for name in names)])
    table = tables.markdown(lines)
    inside = [_verdict(rows, name) for name in names]
    return f"{table}\nAttacks (in points) within {TOLERANCE:g} points of Retrain's: {'; '.join(inside)}.\n"


def _cell(row: AttackRow, name: str) -> str:
    if name not in row.values:
        return "–"
    difference = row.differences[name]
    text = f"{row.values[name]:.2f} ({difference:+.2f})"
    return f"**{text}**" if _is_beyond(row, name) else text


def _verdict(rows: Sequence[AttackRow], name: str) -> str:
    measured = [row for row in rows if name in row.values and row.unit == POINTS]
    within = sum(not _is_beyond(row, name) for row in measured)
    return f"{_title(name)} {within} of {len(measured)}"


def _is_beyond(row: AttackRow, name: str) -> bool:
    """Not within the tolerance; a value that is no number is not, either."""
    return row.unit == POINTS and not abs(row.differences[name]) <= TOLERANCE


def _title(name: str) -> str:
    return "before unlearning" if name == BEFORE else description_of(name).title
