"""The signals that attacks take from one model: alignments, image embeddings, and how fast it relearns."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments

from hf_unlearn.benchmarks.weight_attacks import gradient_norms, on_the_line, quantised, weight_distance
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.resizing import Processor
from hf_unlearn.data.transformed_copies import TRANSFORMS, DerivedSplit
from hf_unlearn.errors import UserError
from hf_unlearn.methods.fine_tune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.metrics.alignment import matched_cosine
from hf_unlearn.metrics.attacks import roc_auc
from hf_unlearn.metrics.emia import view_alignment
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.parsing import read_tensors
from hf_unlearn.runs.evaluation import ImageTextEvaluator, ImageViewEvaluator
from hf_unlearn.runs.experiment import Experiment

ANCHORS = 256  # retain pictures that positions are relative to
PARTS = ("alignment", "images", "texts", "gradients", "weights")
BITS = (8, 4)  # of rounded weights
LINE = 5  # models on the line from the base model
RETAIN_STEPS, RETAIN_EVERY = 40, 10  # updates on retain alone
WHITE_BOX = 100  # samples of a split whose gradients are taken
NEGATIVES = 64  # retain samples they are contrasted with
COPIED = 200  # held-out pictures that are also shown as transformed copies: a TPR at 1% FPR needs a hundred
DRAW_SEED = 2406  # which rows these are: the same for every model, whatever the run's seed

Array = npt.NDArray[np.floating]
Measured: TypeAlias = float | tuple[float, ...]


@dataclass(frozen=True, eq=False)
class AttackSignals:
    """What an attacker with every access takes from one model.

    Attributes:
        alignment: Alignments `[n]` of `retain`, `unlearn` and `test`, and of the transformed copies `unlearn/flip`,
            `test/flip` and so on; of the model with rounded weights, `unlearn/int8`, `test/int8`, `unlearn/int4`,
            `test/int4`.
        images: Image embeddings `[n, d]` of `anchors` (retain), `unlearn` and `test`.
        recovery: `[steps + 1]` mean alignment of half of unlearn while the model is shown the other half.
        texts: Text embeddings `[n, d]` of `anchors`, `unlearn` and `test`, each sample's first caption; none of views.
        gradients: Norms `[n]` of the gradients of some `unlearn` and `test` samples.
        weights: `retain_only [points, 3]`, mean alignment of unlearn, of test and the AUC between them after 0, 10, 20
            ... updates on retain alone; `line [5]`, how well models on the line from the base model to this one know
            retain; `distance [1]` from the base model's weights, relative to their size.
    """

    alignment: dict[str, Array] = field(repr=False)
    images: dict[str, Array] = field(repr=False)
    recovery: Array = field(repr=False)
    texts: dict[str, Array] = field(default_factory=dict, repr=False)
    gradients: dict[str, Array] = field(default_factory=dict, repr=False)
    weights: dict[str, Array] = field(default_factory=dict, repr=False)

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {f"{part}:{name}": values for part in PARTS for name, values in getattr(self, part).items()}
        tensors["recovery"] = self.recovery
        partial = path.with_name(f".{path.name}.partial")
        save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, partial)
        partial.chmod(0o644)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "AttackSignals":
        """Read what `save` wrote.

        Raises:
            UserError: It is something else.
        """
        tensors = read_tensors(path, "delete it, and it is made again")
        parts: dict[str, dict[str, Array]] = {part: {} for part in PARTS}
        try:
            recovery = tensors.pop("recovery").numpy()
            for key, values in tensors.items():
                part, _, name = key.partition(":")
                parts[part][name] = values.numpy()
        except KeyError as error:
            raise UserError(
                f"{path} holds what is no observation ({error}); delete it, and it is made again"
            ) from error
        return cls(recovery=recovery, **parts)


class SignalExtractor:
    """Takes the signals of any model of an experiment's family on the experiment's splits.

    Args:
        experiment: Its base model and encoded splits are used, not its results.
        config: How Fine-Tune trains, for relearning.
        steps: Updates of relearning.
    """

    def __init__(self, experiment: Experiment, config: FineTuneConfig, steps: int) -> None:
        self.splits, self.processor, self.base = experiment.splits, experiment.processor, experiment.base
        self.config, self.steps = config, steps
        evaluator = experiment.evaluator
        kind = _PairSignals if isinstance(evaluator, ImageTextEvaluator) else _ViewSignals
        self.evaluator = kind(evaluator.splits, evaluator.preprocessor)
        self._base_knowledge: float | None = None  # of every line's first end

    def extract(self, model: PreTrainedModel) -> AttackSignals:
        """Embed the splits and their transformed copies, look into the weights, and train copies of the model on."""
        retain = self.splits["retain"]
        of_retain, retain_images = self.evaluator.alignment_and_images(model, retain)
        anchors = drawn(len(retain), ANCHORS)
        alignment, images = {"retain": of_retain}, {"anchors": retain_images[anchors]}
        for name in ("unlearn", "test"):
            split = self.splits[name]
            alignment[name], images[name] = self.evaluator.alignment_and_images(model, split)
            some = drawn(len(split), len(split) if name == "unlearn" else COPIED)
            for transform, change in TRANSFORMS.items():
                copies = DerivedSplit(split, some, change)
                alignment[f"{name}/{transform}"], _ = self.evaluator.alignment_and_images(model, copies)
        for bits in BITS:
            rounded = quantised(model, bits)
            alignment |= {f"{name}/int{bits}": self._alignment(rounded, name) for name in ("unlearn", "test")}
        splits = {"anchors": DerivedSplit(retain, anchors), **{name: self.splits[name] for name in ("unlearn", "test")}}
        texts = {
            name: found for name, split in splits.items() if (found := self.evaluator.texts(model, split)) is not None
        }
        return AttackSignals(
            alignment, images, self._recovery(model), texts, self._gradients(model), self._of_weights(model, alignment)
        )

    def _alignment(self, model: PreTrainedModel, name: str) -> Array:
        return self.evaluator.alignment_and_images(model, self.splits[name])[0]

    def _recovery(self, model: PreTrainedModel) -> Array:
        rows = np.random.default_rng(DRAW_SEED).permutation(len(self.splits["unlearn"])).tolist()
        parts = [DerivedSplit(self.splits["unlearn"], rows[i::2]) for i in (0, 1)]

        def measure(learner: PreTrainedModel) -> float:
            return float(self.evaluator.alignment_and_images(learner, parts[1])[0].mean())

        return relearn(model, self.config, parts[0], self.processor, measure, self.steps)

    def _gradients(self, model: PreTrainedModel) -> dict[str, Array]:
        retain = self.splits["retain"]
        negatives = DerivedSplit(retain, drawn(len(retain), NEGATIVES))
        found = {}
        for name in ("unlearn", "test"):
            rows = drawn(len(self.splits[name]), WHITE_BOX)
            found[name] = gradient_norms(model, self.evaluator.preprocessor, self.splits[name], rows, negatives)
        return found

    def _of_weights(self, model: PreTrainedModel, alignment: Mapping[str, Array]) -> dict[str, Array]:
        base = load_encoder(self.base)[0].to(model.device)  # type: ignore[arg-type]  # the stub of `to` lacks devices
        if self._base_knowledge is None:
            self._base_knowledge = self._knowledge(base)
        between = [self._knowledge(on_the_line(base, model, share)) for share in np.linspace(0, 1, LINE)[1:-1]]
        line = [self._base_knowledge, *between, self.evaluator.knowledge(alignment.__getitem__)]
        return {
            "retain_only": self._retain_only(model),
            "line": np.array(line),
            "distance": np.array([weight_distance(base, model)]),
        }

    def _knowledge(self, model: PreTrainedModel) -> float:
        return self.evaluator.knowledge(lambda name: self._alignment(model, name))

    def _retain_only(self, model: PreTrainedModel) -> Array:
        """As Fine-Tune, its rate falling to 0 by a cosine: nothing of unlearn is shown, and it comes back or not."""
        config = deepcopy(self.config)
        config.lr_scheduler_type = "cosine"

        def measure(learner: PreTrainedModel) -> tuple[float, float, float]:
            unlearn, test = (self._alignment(learner, name) for name in ("unlearn", "test"))
            return float(unlearn.mean()), float(test.mean()), roc_auc(unlearn, test)

        return relearn(
            model, config, self.splits["retain"], self.processor, measure, steps=RETAIN_STEPS, every=RETAIN_EVERY
        )


class _Curve(TrainerCallback):
    """Measures the model at first and after every so many updates."""

    def __init__(self, measure: Callable[[PreTrainedModel], Measured], every: int) -> None:
        self.measure, self.every = measure, every
        self.points: list[Measured] = []

    def on_train_begin(self, *_: object, **kwargs: Any) -> None:
        self.points = [self.measure(kwargs["model"])]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: object, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.points.append(self.measure(kwargs["model"]))


def relearn(
    model: PreTrainedModel,
    config: FineTuneConfig,
    shown: EncodedSplit,
    processor: Processor,
    measure: Callable[[PreTrainedModel], Measured],
    steps: int = 20,
    every: int = 1,
) -> npt.NDArray[np.float64]:
    """Fine-tune a copy of a model on some samples and measure it on the way.

    Whatever the model, the same samples come in the same batches: curves of two models differ by what they know. With
    Retrain's curve, `hf_unlearn.metrics.relearning` says which comes back faster.

    Args:
        model: An unlearned model, or Retrain; it is not changed.
        config: How Fine-Tune trains; its number of epochs is not used.
        shown: Encoded samples to learn from, usually half of unlearn; two or more.
        processor: The model's processor.
        measure: What is measured, usually the mean alignment of the other half; a number or several.
        steps: Updates.
        every: Updates between measurements.

    Returns:
        `[steps // every + 1]` measurements, or `[steps // every + 1, k]` of several numbers, the first one before any
        update.

    Raises:
        UserError: There are no two samples to show, no steps, or the training diverges at once.

    Source: "relearn time", Golatkar et al., arXiv 1911.04933; here with other samples measured than shown.
    """
    if steps < 1:
        raise UserError(f"relearning needs at least one update, got {steps}")
    config = deepcopy(config)
    config.max_steps, config.save_strategy, config.checkpoint_minutes = steps, "no", None
    config.logging_strategy = "no"
    curve = _Curve(measure, every)
    trainer = FineTuneTrainer(deepcopy(model), config, {"retain": shown}, processing_class=processor, callbacks=[curve])
    trainer.train()
    return np.array(curve.points)


def drawn(count: int, most: int) -> list[int]:
    """At most so many of `count` rows, ascending: a fixed draw, as rows may be sorted, by class say."""
    return sorted(np.random.default_rng(DRAW_SEED).permutation(count)[:most].tolist())


class _PairSignals(ImageTextEvaluator):
    def alignment_and_images(self, model: PreTrainedModel, split: EncodedSplit) -> tuple[Array, Array]:
        """Mean cosine of each picture with its captions, and the pictures' embeddings."""
        x, y, owner, _ = self._embed(model, split)
        return np.bincount(owner, matched_cosine(x, y, owner).per_sample) / np.bincount(owner), x.numpy(force=True)

    def knowledge(self, alignment: Callable[[str], Array]) -> float:
        """How well a model knows retain, from its alignments of a split: their mean."""
        return float(alignment("retain").mean())

    def texts(self, model: PreTrainedModel, split: EncodedSplit) -> Array | None:
        """The embedding of each picture's first caption."""
        _, y, owner, _ = self._embed(model, split)
        return y.numpy(force=True)[np.searchsorted(owner, np.arange(len(split)))]


class _ViewSignals(ImageViewEvaluator):
    def alignment_and_images(self, model: PreTrainedModel, split: EncodedSplit) -> tuple[Array, Array]:
        """Mean cosine between views of each picture, and the backbone's features of the first view."""
        views = self._embed_views(model, split)
        return view_alignment(views), views[:, 0].numpy(force=True)

    def knowledge(self, alignment: Callable[[str], Array]) -> float:
        """AUC of retain above test: where features collapse, as between two basins, every alignment rises to 1."""
        return roc_auc(alignment("retain"), alignment("test"))

    def texts(self, model: PreTrainedModel, split: EncodedSplit) -> Array | None:
        """Pictures have none."""
        return None
