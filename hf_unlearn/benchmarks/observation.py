"""What attacks need to see of one model: alignments, image embeddings, and how fast it relearns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from hf_unlearn.benchmarks.relearn import relearn
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.transformed_copies import TRANSFORMS, DerivedSplit
from hf_unlearn.methods.fine_tune import FineTuneConfig
from hf_unlearn.metrics.alignment import matched_cosine
from hf_unlearn.metrics.emia import view_alignment
from hf_unlearn.runs.evaluation import ImageTextEvaluator, ImageViewEvaluator
from hf_unlearn.runs.experiment import Experiment

ANCHORS = 256  # retain pictures that positions are relative to
COPIED = 200  # held-out pictures that are also shown as transformed copies: a TPR at 1% FPR needs a hundred
DRAW_SEED = 2406  # which rows these are: the same for every model, whatever the run's seed

Array = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Observation:
    """One model as an attacker with every access sees it.

    Attributes:
        alignment: Alignments `[n]` of `retain`, `unlearn` and `test`, and of the transformed copies `unlearn/flip`,
            `test/flip` and so on.
        images: Image embeddings `[n, d]` of `anchors` (retain), `unlearn` and `test`.
        recovery: `[steps + 1]` mean alignment of half of unlearn while the model is shown the other half.
    """

    alignment: dict[str, Array] = field(repr=False)
    images: dict[str, Array] = field(repr=False)
    recovery: Array = field(repr=False)

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {f"alignment:{name}": values for name, values in self.alignment.items()}
        tensors |= {f"images:{name}": values for name, values in self.images.items()} | {"recovery": self.recovery}
        partial = path.with_name(f".{path.name}.partial")
        save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, partial)
        partial.chmod(0o644)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Observation":
        """Read what `save` wrote."""
        tensors = load_file(path)
        recovery = tensors.pop("recovery")
        parts: dict[str, dict[str, Array]] = {"alignment": {}, "images": {}}
        for key, values in tensors.items():
            part, _, name = key.partition(":")
            parts[part][name] = values
        return cls(parts["alignment"], parts["images"], recovery)


class Observer:
    """Observes any model of an experiment's family on the experiment's splits.

    Args:
        experiment: Its encoded splits are used, not its results.
        config: How Fine-Tune trains, for relearning.
        steps: Updates of relearning.
    """

    def __init__(self, experiment: Experiment, config: FineTuneConfig, steps: int) -> None:
        self.splits, self.processor = experiment.splits, experiment.processor
        self.config, self.steps = config, steps
        self.sides = _sides(experiment)

    def observe(self, model: PreTrainedModel) -> Observation:
        """Embed the splits and their transformed copies, and relearn half of unlearn on a copy of the model."""
        retain, unlearn, test = (self.splits[name] for name in ("retain", "unlearn", "test"))
        alignment: dict[str, Array] = {}
        images: dict[str, Array] = {}
        alignment["retain"], retain_images = self.sides(model, retain)
        images["anchors"] = retain_images[drawn(len(retain), ANCHORS)]
        for name, split in (("unlearn", unlearn), ("test", test)):
            alignment[name], images[name] = self.sides(model, split)
            some = drawn(len(split), len(split) if name == "unlearn" else COPIED)
            for transform, change in TRANSFORMS.items():
                alignment[f"{name}/{transform}"], _ = self.sides(model, DerivedSplit(split, some, change))
        return Observation(alignment, images, self._recovery(model))

    def _recovery(self, model: PreTrainedModel) -> Array:
        rows = np.random.default_rng(DRAW_SEED).permutation(len(self.splits["unlearn"])).tolist()
        halves = [DerivedSplit(self.splits["unlearn"], rows[i::2]) for i in (0, 1)]

        def measure(learner: PreTrainedModel) -> float:
            return float(self.sides(learner, halves[1])[0].mean())

        return relearn(model, self.config, halves[0], self.processor, measure, self.steps)


def drawn(count: int, most: int) -> list[int]:
    """At most so many of `count` rows, ascending: a fixed draw, as rows may be sorted, by class say."""
    return sorted(np.random.default_rng(DRAW_SEED).permutation(count)[:most].tolist())


Sides = Callable[[PreTrainedModel, EncodedSplit], tuple[Array, Array]]


class _PairSides(ImageTextEvaluator):
    def sides(self, model: PreTrainedModel, split: EncodedSplit) -> tuple[Array, Array]:
        """Mean cosine of each picture with its captions, and the pictures' embeddings."""
        x, y, owner, _ = self._embed(model, split)
        return np.bincount(owner, matched_cosine(x, y, owner).per_sample) / np.bincount(owner), x


class _ViewSides(ImageViewEvaluator):
    def sides(self, model: PreTrainedModel, split: EncodedSplit) -> tuple[Array, Array]:
        """Mean cosine between views of each picture, and the backbone's features of the first view."""
        views = self._embed_views(model, split)
        return view_alignment(views), views[:, 0]


def _sides(experiment: Experiment) -> Sides:
    evaluator = experiment.evaluator
    kind = _PairSides if isinstance(evaluator, ImageTextEvaluator) else _ViewSides
    return kind(evaluator.splits, evaluator.inputs).sides
