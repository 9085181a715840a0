"""The `TrainingArguments` that every unlearning method shares."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import nn
from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.training_args import OptimizerNames
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

from hf_unlearn.data.config import setting
from hf_unlearn.data.sampler import SplitSampler
from hf_unlearn.errors import UserError, check_ranges, first_line
from hf_unlearn.models.contrastive import check_chunkable, is_dual_encoder, unwrap
from hf_unlearn.models.towers import TOWERS, check_freezable
from hf_unlearn.records.method_description import MethodDescription
from hf_unlearn.training.accelerate_state import AccelerateState, refuse_lone_processes
from hf_unlearn.training.search_space import Around, Ranges, SearchSpace, everywhere

# What the Trainer would push while it trains is the whole output folder.
NO_PUSHED_CHECKPOINTS = (
    "push_to_hub=True would send checkpoints with optimiser pickles; leave it unset, and publish the finished model "
    "with trainer.push_to_hub() or hf-unlearn publish"
)

# Numbers that the Trainer would stumble over only after a model is loaded, or take without a word; inf is the limit of
# those that have none, and itself no value.
_RANGES = (
    ("seed", 0, 2**32 - 1), ("data_seed", 0, 2**32 - 1), ("learning_rate", 0, inf), ("weight_decay", 0, inf),
    ("max_grad_norm", 0, inf), ("num_train_epochs", 0, inf), ("gradient_accumulation_steps", 1, inf),
    ("shrink_perturb", 0, 1), ("warmup_steps", 0, inf), ("checkpoint_minutes", 0, inf), ("logging_steps", 0, inf),
    ("save_steps", 0, inf),
)  # fmt: skip
# Optimisers of PyTorch and transformers that need neither a package nor more than their arguments.
_PLAIN_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
_WITHOUT_WARMUP = (SchedulerType.CONSTANT, SchedulerType.REDUCE_ON_PLATEAU)  # which get_scheduler leaves out unsaid
# Settings of transformers that are refused, and why.
_REFUSED = {
    **dict.fromkeys(
        (
            *("label_smoothing_factor", "train_sampling_strategy", "length_column_name", "label_names"),
            *("use_liger_kernel", "batch_eval_metrics", "include_num_input_tokens_seen", "prediction_loss_only"),
        ),
        "would have no effect on contrastive losses and batches; leave it unset",
    ),
    "dataloader_drop_last": "would leave a small split without any batch; leave it unset",
    "auto_find_batch_size": "would change the number of negatives unseen; choose per_device_train_batch_size, with "
    "forward_chunk_size where memory is short",
    "neftune_noise_alpha": "is noise for the embeddings of language models; leave it unset",
    "resume_from_checkpoint": "is an argument of trainer.train(); recipes take --resume",
}
# Reports whose packages transformers does not list where they are installed.
_UNLISTED = ("azure_ml", "flyte")

BUDGET_HELP = (
    "Stop, and go back, when the loss of fixed retain samples has risen above its start by this many times "
    "log(candidates), the loss of an encoder that knows nothing; unset: no limit."
)
FLOOR_HELP = (
    "Stop, and go back, when retain embeddings keep less than this share of the spread they had at the start; "
    "unset: no limit."
)


@dataclass(frozen=True)
class StartingPoint:
    """What a training starts from, as far as it decides what a method can do.

    Attributes:
        model: the model; before there is one, another of its architecture.
        adapted: whether an adapter on it is trained, and its own weights stay.
        has_initial: whether it is known what the model was fine-tuned from.
    """

    model: nn.Module
    adapted: bool = False
    has_initial: bool = False

    @property
    def pairs(self) -> bool:
        """Whether the model embeds pairs of pictures and texts, not views."""
        return is_dual_encoder(unwrap(self.model))


@dataclass
class UnlearningConfig(TrainingArguments):
    """`TrainingArguments` with the defaults contrastive unlearning needs; each method's config extends it."""

    method: ClassVar[str]  # its id on the command line and in results
    description: ClassVar[MethodDescription]
    paper_row: ClassVar[int | None] = None  # its place in the paper's tables, if it has one
    # Where `hf-unlearn tune` looks for better settings; a method says its own.
    search_space: ClassVar[SearchSpace] = everywhere(learning_rate=Around(10))
    makes_steps: ClassVar[bool] = True  # whether its weights move step by step, by a learning rate

    per_device_train_batch_size: int = setting(128, "Batch size per device; a contrastive loss depends on it.")
    per_device_eval_batch_size: int = setting(256, "Batch size per device in evaluation.")
    lr_scheduler_type: str = setting("constant", "Learning-rate schedule; the paper's unlearning runs hold it fixed.")  # type: ignore[assignment]
    save_strategy: str = setting("no", "When to write checkpoints to resume from: no, epoch or steps.")  # type: ignore[assignment]
    save_total_limit: int | None = setting(2, "Checkpoints kept; with two, one may be damaged.")
    checkpoint_minutes: float | None = setting(
        15, "Also write a checkpoint when this many minutes have passed; unset: never."
    )
    logging_strategy: str = setting("epoch", "When to log the mean of each loss term: epoch or steps.")  # type: ignore[assignment]
    logging_nan_inf_filter: bool = setting(False, "Hide losses that are not finite; the guard stops at them instead.")
    dataloader_num_workers: int | None = setting(  # type: ignore[assignment]
        None,
        "Processes that decode pictures beside the training; default: on an accelerator, where rows do not "
        "fit into memory, one for every processor but one; elsewhere, and for a stream, none.",
    )
    remove_unused_columns: bool = setting(False, "Rows are encoded by the library itself.")
    seed: int = setting(0, "Seed of the order of samples, of views and of new weights.")
    forward_chunk_size: int | None = setting(
        None, "Embed this many samples at a time and recompute in backward: exact, for large batches."
    )
    channels_last: bool | None = setting(
        None, "Lay out convolutions channels-last; default: on an accelerator, where they are faster so."
    )
    guard_steps: int | None = setting(
        None, "Steps between checks of the training's health; default: a twentieth of all, at most 50."
    )
    saliency_share: float | None = setting(
        None, "Share of weights to train, those most salient to unlearn samples (SalUn); default: all."
    )
    freeze: str | None = setting(
        None, "Encoder of an image-text model that stays as it is: vision or text; default: neither."
    )
    shrink_perturb: float | None = setting(
        None,
        "Share, from 0 to 1, of a new initialisation that every weight matrix is mixed with before the "
        "first step (shrink and perturb), so that the weights, too, forget; of the initial model where a run names "
        "one, which methods that never see retain need for it; default: none.",
    )
    retain_loss_budget: float | None = setting(None, BUDGET_HELP)
    collapse_floor: float | None = setting(None, FLOOR_HELP)

    def __post_init__(self) -> None:
        for each in fields(self):  # out of np.linspace, say: neither checkpoints nor records can hold them
            if each.init and isinstance(value := getattr(self, each.name), np.generic):
                setattr(self, each.name, value.item())
        if self.torch_compile and self.torch_compile_mode is None and torch.cuda.is_available() and not self.use_cpu:
            self.torch_compile_mode = "reduce-overhead"  # CUDA graphs: with compiled kernels alone the GPU still waits
        if self.bf16 and not (self.use_cpu or is_torch_bf16_gpu_available() or is_torch_xla_available()):
            raise UserError(
                "bf16=True needs an accelerator that computes in bfloat16, and there is none here; set use_cpu=True to "
                "compute on the CPU all the same, or bf16=False to compute in float32"
            )
        self.workers_unset = self.dataloader_num_workers is None  # the rows decide, which are not here yet
        self.dataloader_num_workers = self.dataloader_num_workers or 0
        super().__post_init__()
        refuse_lone_processes()
        self.accelerate_state = AccelerateState()
        self.dataloader_pin_memory &= torch.accelerator.is_available()  # on a CPU it would only warn
        if self.dataloader_pin_memory and self.device.type == "cuda":  # elsewhere a copy may read what is freed by then
            self.accelerator_config.non_blocking = True  # type: ignore[union-attr]
        if self.per_device_train_batch_size < 2:
            size = self.per_device_train_batch_size
            raise UserError(f"per_device_train_batch_size {size} leaves InfoNCE without negatives; use at least 2")
        self.check("max_steps", self.max_steps != 0, "would make no update; use more, or -1 for num_train_epochs")
        steps = self.max_steps > 0 or self.num_train_epochs > 0
        self.check("num_train_epochs", steps, "would make no update; use more than 0")
        chunks = self.forward_chunk_size is None or self.forward_chunk_size >= 1
        self.check("forward_chunk_size", chunks, "must be at least 1, or unset")
        if self.freeze is not None and self.freeze not in TOWERS:
            raise UserError(f"freeze={self.freeze!r} is unknown; choose vision or text, or leave it unset")
        unset = {f.name: f.default for f in fields(TrainingArguments)}
        for name, reason in _REFUSED.items():
            if getattr(self, name) != unset[name]:
                raise UserError(f"{name} {reason}")
        if self.fp16 and self.device.type == "cpu":
            raise UserError("fp16 has no effect on a CPU; use bf16, or leave it unset")
        if self.push_to_hub:
            raise UserError(NO_PUSHED_CHECKPOINTS)
        check_ranges(self, _RANGES)
        rate = self.learning_rate > 0 or not self.makes_steps
        self.check("learning_rate", rate, "would train nothing; use more than 0")
        self._check_optimizer()
        self._check_schedule()
        absent = sorted(set(self.report_to or ()) - {*get_available_reporting_integrations(), *_UNLISTED})
        if absent:
            raise UserError(f"report_to={', '.join(absent)} is not installed here; install it, or leave it unset")
        for name in ("guard_steps", "retain_loss_budget", "collapse_floor"):
            self.check(name, (value := getattr(self, name)) is None or value > 0, "must be more than 0, or unset")
        share = self.saliency_share
        self.check("saliency_share", share is None or 0 < share <= 1, "must be more than 0 and at most 1, or unset")

    def check(self, name: str, holds: bool, words: str) -> None:
        """Refuse the value of the field `name` where something does not hold, by what these words say of it."""
        if not holds:
            raise UserError(f"{name}={getattr(self, name)} {words}")

    def check_choice(self, name: str, choices: Collection[str]) -> None:
        """Refuse a value of the field `name` that is none of the choices."""
        value = getattr(self, name)
        if value not in choices:
            hint = " or ".join(choices) if len(choices) == 2 else f"one of {', '.join(choices)}"
            raise UserError(f"{name}={value!r} is unknown; choose {hint}")

    def check_for(self, splits: Mapping[str, Any], start: StartingPoint) -> None:
        """Refuse what the method could not do, or would do without effect, with a model and rows.

        A run asks this of all its methods before anything is trained, and a Trainer asks it when it is built.

        Args:
            splits: by name.
            start: the model, and how it is to be trained.
        """
        if self.freeze is not None:
            check_freezable(start.model, self.freeze)
        if self.forward_chunk_size is not None:
            check_chunkable(start.model)
        default = {each.name: each.default for each in fields(self)}["shrink_perturb"]
        self.check(
            "shrink_perturb",
            not (start.adapted and self.shrink_perturb) or self.shrink_perturb == default,  # of which a note tells
            "would have no effect on an adapter, which leaves the model's own weights as they are; leave it unset, or "
            "set it to 0 where a config sets it",
        )
        if self.saliency_share is None:
            return
        if not splits.get("unlearn"):
            raise UserError(
                "saliency_share ranks weights by their gradient on the unlearn split, which is empty or missing; pass "
                "one with rows, or leave it unset"
            )
        if start.adapted:
            raise UserError("saliency_share chooses among whole weights, and an adapter has none; leave it unset")

    def refuse_without_effect(self, names: Iterable[str], where: str) -> None:
        """Refuse a value other than the default of fields that a kind of model or run makes no use of."""
        unset = {each.name: each.default for each in fields(self)}
        for name in names:
            self.check(name, getattr(self, name) == unset[name], f"would have no effect {where}; leave it unset")

    def updates(self, retain: float, unlearn: float) -> int | None:
        """Updates that the Trainer makes of so many rows; None where there is no telling how many rows there are."""
        if self.max_steps > 0:
            return self.max_steps
        if math.isinf(retain + unlearn):
            return None
        batches = SplitSampler(int(retain), int(unlearn), self.train_batch_size).batches
        processes = 1 if self.accelerator_config.split_batches else self.world_size  # type: ignore[union-attr]
        return math.ceil(self.num_train_epochs * -(-batches // (processes * self.gradient_accumulation_steps)))

    def schedule(self, updates: int) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule of so many updates as the Trainer makes it, of a weight of its own."""
        optimizer, warmup = torch.optim.SGD([torch.zeros(1)], lr=self.learning_rate), self.get_warmup_steps(updates)
        return get_scheduler(self.lr_scheduler_type, optimizer, warmup, updates, self.lr_scheduler_kwargs)  # type: ignore[arg-type]

    def trainings(self, uses: tuple[str, ...], start: StartingPoint) -> tuple["Training", ...]:
        """The trainings that the method makes: its own, unless it makes no steps.

        Args:
            uses: names of the splits that the method learns from.
            start: the model, and how it is to be trained.
        """
        return ((self, uses),) if self.makes_steps else ()

    @property
    def title(self) -> str:
        """The method's name in sentences."""
        return self.description.title

    def ranges(self, family: str) -> Ranges:
        """Where `hf-unlearn tune` looks for better settings, for the family `image-text` or `views`."""
        return self.search_space.of(family)

    def _check_optimizer(self) -> None:
        """Build the optimiser once, of a weight of its own: it checks what it is given."""
        if self.optim not in _PLAIN_OPTIMIZERS:
            return
        weight = torch.nn.Parameter(torch.zeros(1))
        try:
            kind, given = Trainer.get_optimizer_cls_and_kwargs(self)
            kind([weight], **given)
        except (ValueError, TypeError, ArithmeticError) as error:
            name, words = OptimizerNames(self.optim).value, first_line(error)
            raise UserError(
                f"optim={name}: {words}; see adam_beta1, adam_beta2, adam_epsilon and optim_args"
            ) from error

    def _check_schedule(self) -> None:
        """Build the schedule once, as the Trainer does when it starts: some need `lr_scheduler_kwargs`."""
        try:
            self.schedule(1)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise UserError(
                f"lr_scheduler_type={SchedulerType(self.lr_scheduler_type).value}: {first_line(error)}; set "
                "lr_scheduler_kwargs, or choose another schedule"
            ) from error
        kind, unset = SchedulerType(self.lr_scheduler_type), {each.name: each.default for each in fields(self)}
        self.check(
            "warmup_steps",
            kind not in _WITHOUT_WARMUP or self.warmup_steps in (0, unset["warmup_steps"]),
            f"would have no effect on {self.title}, whose lr_scheduler_type={kind.value} has no warm-up; set it for "
            "others alone, as in --targeted_calibration.warmup_steps, or choose a schedule that has one, such as "
            "constant_with_warmup",
        )


Training: TypeAlias = tuple[UnlearningConfig, tuple[str, ...]]
"""A training's config, and the names of the splits that it learns from."""


@dataclass
class ClimbingConfig(UnlearningConfig):
    """The config of a method that climbs a loss: its guards against divergence are on.

    A rise by log(candidates) leaves retain samples worse off than with an encoder that knows nothing. On the embedded
    data, runs at the paper's learning rates that unlearn best reach 0.02 (Gradient Ascent) and 0.04 (NegGrad) with
    spreads above 0.85; Gradient Ascent at the far end of the range reaches 3.5.
    """

    retain_loss_budget: float | None = setting(1.0, BUDGET_HELP)
    collapse_floor: float | None = setting(0.05, FLOOR_HELP)


def refuse_evaluating(config: UnlearningConfig) -> None:
    """Refuse to evaluate during a training: its rows are those that the finished methods are measured on."""
    settings = {"eval_strategy": "no", "load_best_model_at_end": False}
    given = [name for name, unset in settings.items() if getattr(config, name) != unset]
    given += ["save_strategy best"] if config.save_strategy == "best" else []
    if given:
        raise UserError(
            f"--{given[0]}: a run measures its methods when they are done, not while they train; leave it unset"
        )
