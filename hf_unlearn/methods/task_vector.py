"""Task-vector negation: learn the unlearn samples even better, and go the opposite way."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from hf_unlearn.errors import DivergenceError, UserError
from hf_unlearn.losses import ContrastiveTerms, info_nce
from hf_unlearn.parsing import read_tensors
from hf_unlearn.records.method_description import INFO_NCE, UNLEARN, MethodDescription, bibtex
from hf_unlearn.training.config import StartingPoint, UnlearningConfig, setting
from hf_unlearn.training.loss import BatchLoss
from hf_unlearn.training.search_space import Around, Choice, Log, everywhere
from hf_unlearn.training.trainer import UnlearningTrainer

VECTORS_NAME = "task_vectors.safetensors"


@dataclass
class TaskVectorConfig(UnlearningConfig):
    """Negation of one task vector, or NegMerge of several; defaults: one vector, 8 epochs at a low rate."""

    method = "task_vector"
    description = MethodDescription(
        title="Task Vector",
        summary=(
            "It trains copies of the base model further on the unlearn split, and moves the base model the opposite "
            "way; of several copies only those entries count in which all moved the same way (NegMerge)."
        ),
        equations=(
            r"\theta = \theta_0 - \lambda\, \frac{1}{n} \sum_k v_k \odot"
            r" \mathbb{1}[\operatorname{sign} v_1 = \dots = \operatorname{sign} v_n],"
            r" \qquad v_k = \arg\min_\theta^{(k)} " + UNLEARN + r" - \theta_0",
            INFO_NCE,
        ),
        citation=bibtex(
            "ilharco2022editing",
            "Editing Models with Task Arithmetic",
            "Ilharco, Gabriel and Ribeiro, Marco Tulio and Wortsman, Mitchell and Gururangan, Suchin and Schmidt, "
            "Ludwig and Hajishirzi, Hannaneh and Farhadi, Ali",
            "2212.04089",
            2022,
        )
        + "\n"
        + bibtex(
            "kim2024negmerge",
            "NegMerge: Sign-Consensual Weight Merging for Machine Unlearning",
            "Kim, Hyo Seo and Han, Dongyoon and Choe, Junsuk",
            "2410.05583",
            2024,
        ),
    )
    search_space = everywhere(learning_rate=Around(10), scale=Log(0.1, 3), vectors=Choice((1, 3)))

    num_train_epochs: float = setting(8, "Epochs over unlearn, shared among the vectors.")
    learning_rate: float = setting(5e-5, "Learning rate.")
    scale: float = setting(1.0, "How far to go the opposite way.")
    vectors: int = setting(1, "Task vectors; of several, only entries on whose sign all agree are kept.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("vectors", self.vectors >= 1, "must be at least 1")
        self.check("scale", 0 < self.scale < inf, "must be a number above 0")  # below, it would teach the request

    def check_for(self, splits: Mapping[str, Any], start: StartingPoint) -> None:
        """As every config does; each vector needs a step of its own."""
        super().check_for(splits, start)
        steps = self.updates(0, len(splits["unlearn"]))
        assert steps is not None  # no stream can be unlearned
        self.ends(steps)

    def ends(self, steps: int) -> list[int]:
        """The step at which each vector ends: vector k of n gets `k / (1 + 2 + ... + n)` of them.

        Raises:
            UserError: when one would get none.
        """
        count = self.vectors
        ends = [round(steps * k * (k + 1) / (count * (count + 1))) for k in range(count + 1)]
        if len(set(ends)) <= count:
            raise UserError(f"{steps} steps are too few for {count} task vectors; train longer, or use fewer")
        return ends[1:]


class TaskVectorTrainer(UnlearningTrainer):
    """Fine-tunes on unlearn, then sets the weights to `theta_0 - scale * v`, where `v = theta_ft - theta_0`.

    With several vectors every fine-tuning starts from the base model, and `v` is the mean of theirs where all have one
    sign, 0 elsewhere (NegMerge). Buffers (running statistics, MoCo's queue) stay those of the base model. Checkpoints
    hold a fine-tuning as it goes; the model is negated at the end of `train`.

    Source: Ilharco et al., "Editing Models with Task Arithmetic", arXiv 2212.04089, section 3; Kim et al., "NegMerge",
    arXiv 2410.05583. Deviations: the fine-tuning loss is InfoNCE of the unlearn samples among themselves, and moves all
    of the model, where the papers tune CLIP's image encoder with labels; NegMerge's fine-tunings differ in their length
    (1 : 2 : 3 ...) and order of samples, where the paper also varies rate and augmentation.
    """

    uses = ("unlearn",)
    adaptable = False
    holds_earlier = False  # what its steps learn is taken away from the model
    config_class = TaskVectorConfig
    args: TaskVectorConfig

    def __init__(self, *positional: Any, **kwargs: Any) -> None:
        super().__init__(*positional, **kwargs)
        self._all = [value.detach() for value in (*self.model.parameters(), *self.model.buffers())]
        self._base = [value.clone() for value in self._all]
        self._weights = dict(self.model.named_parameters())
        self._sums: dict[str, Tensor] = {}  # of the vectors finished so far
        self._finished = 0  # how many these are
        self._signs: dict[str, Tensor] = {}  # those all of them share: -1 or 1; 0 where they do not
        self.add_callback(_NextVector(self))

    def batch_loss(self, terms: ContrastiveTerms, is_unlearn: Tensor, *beside: object) -> BatchLoss:
        """Eq. 1 on the unlearn samples of a batch, which is lowered."""
        return info_nce(terms, is_unlearn), {}

    def train(self, *positional: Any, **kwargs: Any) -> TrainOutput:
        """Fine-tune from the base model, as the base class trains, then negate."""
        torch._foreach_copy_(self._all, self._base)
        self._sums, self._signs, self._finished = {}, {}, 0
        self.trainings = 0  # none that was before is left in the weights
        output = super().train(*positional, **kwargs)
        if self.guard.stopped:  # in the midst of one, which is not counted
            torch._foreach_copy_(self._all, self._base)
        else:
            self.finish_vector()
        if not self._finished:
            raise DivergenceError(
                f"Task Vector was stopped before any vector was finished ({self.guard.stopped}); lower its "
                "learning rate"
            )
        for name, weight in self._weights.items():
            vector = torch.where(self._signs[name] != 0, self._sums[name] / self._finished, 0.0)
            weight.data.sub_(vector, alpha=self.args.scale)
        self.temperature_bound.on_optimizer_step()
        if not torch.stack([weight.isfinite().all() for weight in self._weights.values()]).all():
            raise DivergenceError(
                f"Task Vector ended with weights that are not finite, at scale {self.args.scale:g}; lower it"
            )
        return output

    def stopping_note(self) -> str | None:
        """As the base class's; where the guard stopped, which vectors count."""
        if not self.guard.stopped:
            return super().stopping_note()
        return (
            f"Training was stopped at step {self.state.global_step} of {self.state.max_steps}: {self.guard.stopped}. "
            f"Of {self.args.vectors} task vectors only the {self._finished} finished by then count, divided by their "
            "number."
        )

    def shrink_and_perturb(self) -> None:
        """As the base class does; vectors then start from, and are taken off, what is left."""
        super().shrink_and_perturb()
        self._base = [value.clone() for value in self._all]

    @torch.no_grad()
    def finish_vector(self) -> None:
        """Add the model's task vector to those before it, and put the base model back."""
        tuned = {name: weight.detach().clone() for name, weight in self._weights.items()}
        torch._foreach_copy_(self._all, self._base)
        first = not self._finished
        self._finished += 1
        for name, weight in self._weights.items():
            vector = tuned[name].sub_(weight)
            sign = vector.sign().to(torch.int8)
            self._sums[name] = vector if first else self._sums[name] + vector
            self._signs[name] = sign if first else sign.where(sign == self._signs[name], 0)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._sums and self.args.should_save:
            kinds = {"sum": self._sums, "sign": self._signs}
            tensors = {f"{kind}.{n}": v.contiguous() for kind, values in kinds.items() for n, v in values.items()}
            tensors["finished"] = torch.tensor(self._finished)
            save_file(tensors, Path(output_dir) / VECTORS_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        path = Path(checkpoint or "") / VECTORS_NAME
        if checkpoint is not None and path.is_file():
            tensors = {name: tensor.to(self.args.device) for name, tensor in read_tensors(path).items()}
            self._finished = int(tensors["finished"])
            self._sums = {name: tensors[f"sum.{name}"] for name in self._weights}
            self._signs = {name: tensors[f"sign.{name}"] for name in self._weights}


class _NextVector(TrainerCallback):
    """Ends the fine-tuning of one task vector and begins that of the next, with a new optimiser state."""

    def __init__(self, trainer: TaskVectorTrainer) -> None:
        self._trainer = trainer
        self._ends: set[int] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Share out the steps."""
        self._ends = set(self._trainer.args.ends(state.max_steps)[:-1])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move on to the next vector; not when the guard has just put back an earlier state to end with."""
        if state.global_step in self._ends and not self._trainer.guard.stopped:
            self._trainer.finish_vector()
            kwargs["optimizer"].state.clear()
