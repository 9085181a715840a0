"""What every unlearning method shares: its `Trainer` around the three quantities."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, TrainerCallback, set_seed
from transformers.trainer_utils import TrainOutput

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit, EncodedSplits, as_batch
from hf_unlearn.data.resizing import Processor
from hf_unlearn.data.streaming import StreamedBatches, StreamedSplit
from hf_unlearn.distributed import world_size
from hf_unlearn.errors import DivergenceError, UserError, is_out_of_memory
from hf_unlearn.losses import ContrastiveTerms, info_nce
from hf_unlearn.models.adapters import add_adapter, is_adapted
from hf_unlearn.models.contrastive import contrastive_terms, evaluation_mode, is_dual_encoder, unwrap
from hf_unlearn.models.loading import without_report
from hf_unlearn.models.origin import refuse_folder_of_origin
from hf_unlearn.models.patches import as_matrix_products
from hf_unlearn.models.sharding import make_shardable
from hf_unlearn.models.towers import freeze_tower, say_what_is_frozen
from hf_unlearn.records.settings import weight_settings
from hf_unlearn.training import checkpoints
from hf_unlearn.training.config import StartingPoint, UnlearningConfig
from hf_unlearn.training.earlier_requests import HoldingTrainer, find_earlier_requests
from hf_unlearn.training.gradients import Objective, SaliencyMask, mean_gradient
from hf_unlearn.training.guards import DivergenceGuard
from hf_unlearn.training.keys import keys_of_retain
from hf_unlearn.training.loss import LossTrainer, ReportedLoss
from hf_unlearn.training.rows import Split, TrainingRows, make_preprocessor
from hf_unlearn.training.saving import SavingTrainer
from hf_unlearn.training.shrink_perturb import (
    NOT_SHRUNK,
    move_towards,
    refill_queue,
    refuse_other_start,
    shrink_and_perturb,
    taken,
)
from hf_unlearn.training.special_tokens import ALIGNMENT_REPORT, OwnTokens
from hf_unlearn.training.standing_excess import AT_REST, StandingExcess
from hf_unlearn.training.temperature import LogitScaleBound
from hf_unlearn.training.trainer_arguments import refuse_search, refuse_standing_still, refuse_unfit, refuse_unusable

if TYPE_CHECKING:
    from peft import LoraConfig

logger = logging.getLogger(__name__)


WHOLE_WEIGHTS = (
    "edits whole weights, no shards and no adapters; leave peft_config (--use_peft) unset, and launch with "
    "recipes/accelerate_configs/multi_gpu.yaml"
)

METHODS: dict[str, type["UnlearningTrainer"]] = {}
"""Method id -> Trainer; `hf_unlearn.methods` fills it."""


class UnlearningTrainer(LossTrainer, HoldingTrainer, SavingTrainer):
    """A `Trainer` over `DatasetDict(retain=..., unlearn=...)`; a method overrides `batch_loss`.

    A subclass with a `config_class` of its own is a method, known by the id of its config from then on.

    Args:
        model: a contrastive encoder (CLIP-like, SimCLR, MoCo); it is trained in place, its source is never written.
        args: the method's config.
        train_dataset: `DatasetDict` with splits `retain` and `unlearn` in the schema of `hf_unlearn.data`, or the same
            splits already encoded, so that several methods share them. `retain` may be a stream, a
            `datasets.IterableDataset`, whose pictures are then decoded batch by batch.
        eval_dataset: rows for the evaluation loss, usually `validation`, or several splits by name.
        processing_class: the model's processor (image-text) or image processor (views).
        data_config: how rows are read and encoded; default: a `DataConfig` as it comes.
        initial_model: what the model was fine-tuned from, where it is known: Retrain starts there, `shrink_perturb`
            leads back there, and Targeted Calibration predicts its targets from there. It is never changed.
        peft_config: a `peft.LoraConfig` to train an adapter instead of the model's own weights, which then stay as they
            are; without `target_modules`, all linear layers are adapted, and a view encoder's convolutions, too.
        callbacks: as `transformers.Trainer` takes them.
        optimizers: an optimiser and a schedule of one's own, in place of those that the config names.
        kwargs: further arguments of `transformers.Trainer`; those without effect are refused.

    Raises:
        UserError: when a split the method learns from is missing or empty, no step could be made, the model cannot
            have this adapter, or an argument of `transformers.Trainer` would have no effect.
    """

    uses: ClassVar[tuple[str, ...]] = ("retain", "unlearn")
    iterative: ClassVar[bool] = True  # whether training makes steps, and so checkpoints
    adaptable: ClassVar[bool] = True  # whether an adapter can take what is changed
    config_class: ClassVar[type[UnlearningConfig]]
    at_rest: ClassVar[float] = AT_REST  # of unlearn samples
    train_dataset: EncodedSplits | StreamedBatches
    # A contrastive loss is a mean over its own batch: let the Trainer divide by the accumulation steps.
    loss_is_scaled_for_ga = False
    hyperparameter_search = refuse_search  # type: ignore[assignment]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        config = vars(cls).get("config_class")
        if config is None:
            return
        if absent := [name for name in ("method", "description") if not hasattr(config, name)]:
            raise UserError(
                f"{config.__name__} has no {absent[0]}, which its method is listed and shown by; give the class one, "
                "as that of FineTuneConfig in hf_unlearn/methods/fine_tune.py"
            )
        known = METHODS.setdefault(config.method, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"{cls.__name__} and {known.__name__} are both called {config.method}; rename one")

    def __init__(
        self,
        model: PreTrainedModel,
        args: UnlearningConfig,
        train_dataset: DatasetDict | Mapping[str, Split],
        eval_dataset: Dataset | EncodedSplit | Mapping[str, Dataset | EncodedSplit] | None = None,
        processing_class: Processor = None,
        peft_config: "LoraConfig | None" = None,
        data_config: DataConfig | None = None,
        initial_model: PreTrainedModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, LRScheduler | None] = (None, None),
        **kwargs: Any,
    ) -> None:
        if isinstance(train_dataset, Mapping) and any(split is None for split in train_dataset.values()):
            train_dataset = {name: split for name, split in train_dataset.items() if split is not None}
        refuse_unusable(self.config_class, model, args, train_dataset, kwargs)
        self.initial_model = initial_model
        if initial_model is not None:
            refuse_other_start(initial_model, model, getattr(processing_class, "tokenizer", None))
        told = isinstance(train_dataset, Mapping) and all(isinstance(rows, Dataset) for rows in train_dataset.values())
        self.source_splits = DatasetDict(train_dataset) if told else None
        train_dataset, self.earlier = find_earlier_requests(train_dataset, model)
        self.data_config = data_config or DataConfig()
        self.preprocessor = make_preprocessor(model, processing_class, self.data_config)
        if isinstance(train_dataset, Mapping):
            encoded = [split for split in train_dataset.values() if isinstance(split, EncodedSplit | StreamedSplit)]
            self.preprocessor = encoded[0].preprocessor if encoded else self.preprocessor  # as they were made
        self.rows = TrainingRows(train_dataset, self.uses, self.preprocessor, args, self.data_config)
        start = StartingPoint(model, peft_config is not None or is_adapted(model), initial_model is not None)
        if start.adapted and not self.adaptable:  # before the model has one, which it would keep
            raise UserError(f"{args.title} {WHOLE_WEIGHTS}")
        own_schedule = optimizers[1] is not None
        refuse_unfit(args, self.uses, train_dataset, start, self.data_config, own_schedule)
        self.unlearn_to_retain = self.rows.unlearn_to_retain
        if peft_config is not None:
            set_seed(args.seed)  # the adapter's new weights
            model = add_adapter(model, peft_config, args.freeze)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(
                "the model has no trainable weights; call model.requires_grad_(True), as after merge_and_unload, or "
                "load its adapter with is_trainable=True"
            )
        if args.freeze is not None:
            freeze_tower(model, args.freeze)
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise UserError(
                    f"freeze={args.freeze} keeps that encoder as it is, and the model's adapter has layers of no other "
                    "one; leave freeze unset, or merge the adapter with merge_and_unload"
                )
        self._frozen = None if args.freeze is not None or is_adapted(model) else say_what_is_frozen(model)
        self._probe = self.rows.probe()
        batches = self.rows.batches()
        super().__init__(
            model=model,
            args=args,
            train_dataset=batches,
            eval_dataset=self.rows.evaluation(eval_dataset),
            processing_class=processing_class,
            data_collator=as_batch,  # type: ignore[arg-type]
            callbacks=callbacks,
            optimizers=optimizers,
            **kwargs,
        )
        if self.is_fsdp_enabled:
            if not self.adaptable:
                raise UserError(f"{args.title} {WHOLE_WEIGHTS}")
            self._check_shardable(model)
        if args.device.type != "cpu":
            as_matrix_products(model)
        if args.channels_last or (args.channels_last is None and args.device.type != "cpu"):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
        if isinstance(batches, EncodedSplits) and args.device.type != "cpu":
            self._feed_accelerator(batches)
        self._started_from = checkpoints.fingerprint(model)
        self.guard, self.excess = DivergenceGuard(self), StandingExcess()
        self.temperature_bound = LogitScaleBound(lambda: self.model)
        for callback in (self.guard, self.excess, self.temperature_bound, OwnTokens(model)):
            self.add_callback(callback)
        self.saliency = self._saliency_mask() if args.saliency_share is not None else None
        self._shrinking: str | None = None  # what was done to the weights, once it was
        self._ended: tuple[str, ...] = ()

    def _saliency_mask(self) -> SaliencyMask:
        if self.is_fsdp_enabled:
            raise UserError("saliency_share chooses among whole weights, and FSDP shards them; leave it unset")
        unlearn = self.rows.unlearn(self.train_dataset)
        mask = SaliencyMask(self.model, self.mean_gradient, unlearn, self.args.saliency_share or 1.0)
        self.add_callback(mask)
        return mask

    def _check_shardable(self, model: nn.Module) -> None:
        """Refuse what FSDP would train wrongly, or would not help."""
        if self.accelerator.state.fsdp_plugin.fsdp_version != 2:
            raise UserError(
                "FSDP 1 is not supported; set fsdp_version: 2, as recipes/accelerate_configs/fsdp.yaml does"
            )
        if not is_dual_encoder(model) or is_adapted(model):
            what = "an adapter" if is_adapted(model) else f"a {type(model).__name__}"
            raise UserError(
                f"FSDP is for the weights of image-text models, not for {what}; launch with "
                "recipes/accelerate_configs/multi_gpu.yaml"
            )

    @property
    def identity(self) -> Mapping[str, object]:
        """Everything that decides the weights: method, settings, processes, rows, processor and the models given."""
        streams = isinstance(self.train_dataset, StreamedBatches)  # each worker reads shards of its own
        return {
            "method": self.args.method,
            **weight_settings(self.args, self.data_config),
            "use_cpu": self.args.device.type == "cpu",
            "processes": world_size(),
            **({"dataloader_num_workers": self.args.dataloader_num_workers} if streams else {}),
            **self.rows.identity,
            **self.held_identity,
            "model": self._started_from,
            **self._beside_weights,
        }

    @cached_property
    def _beside_weights(self) -> dict[str, object]:  # once: every checkpoint has it, and the initial model is hashed
        return checkpoints.beside_weights(self.model, self.initial_model)

    def create_optimizer(self, *positional: object, **kwargs: object) -> torch.optim.Optimizer:
        """As the Trainer does; what FSDP shards next is made ready for it before."""
        if self.is_fsdp_enabled and not isinstance(self.model, FSDPModule):
            make_shardable(self.model)
        return super().create_optimizer(*positional, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """As the Trainer does; a schedule that never leaves 0, as a warm-up's of a single update, is refused."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        refuse_standing_still(self.args, scheduler, num_training_steps)
        return scheduler

    def mean_gradient(
        self, split: EncodedSplit, objective: Objective, size: Callable[[Tensor], Tensor] = lambda gradient: gradient
    ) -> list[Tensor]:
        """`hf_unlearn.training.gradients.mean_gradient` over the batches of a split."""
        return mean_gradient(self.model, self.split_batches(split), objective, self.args.forward_chunk_size, size)

    def report(self, loss: Tensor, terms: ContrastiveTerms, return_outputs: bool, **parts: Tensor) -> ReportedLoss:
        """As the base class does; a training step's excess over targets is added up, and its held rows' term joins in.

        A method that has targets reports what unlearn samples have above them, lowered as they are: `unlearn_excess`.
        """
        if self.model.training and "unlearn_excess" in parts:
            excess = self.kept(parts["unlearn_excess"])
            parts["unlearn_excess"] = excess - self.excess.lowered["unlearn"]  # over what was meant
            micro_batches = self.args.gradient_accumulation_steps
            self.excess.see("unlearn", excess, self.state, micro_batches, self.at_rest)
        if self.held is not None and self.model.training:
            parts["held_distance"] = self.held_distance(self.excess)
            loss = loss + parts["held_distance"]
        return super().report(loss, terms, return_outputs, **parts)

    @torch.no_grad()
    def probe_retain(self) -> Tensor | None:
        """InfoNCE of fixed retain samples, that of an encoder that knows nothing, and the spread of their embeddings.

        Returns:
            `[3]`, the same on all processes; None without retain samples to watch.
        """
        if self._probe is None:
            return None
        batch = self.preprocessor.batch(self._prepare_inputs(self._probe), self.args.seed)
        with evaluation_mode(self.model):
            terms = contrastive_terms(self.model, batch, self.args.forward_chunk_size)
        uninformed = replace(terms, scale=torch.zeros_like(terms.scale))
        spread = torch.stack([half.var(0, correction=0).sum() for half in (terms.x, terms.y)]).min()
        health = torch.stack([info_nce(terms), info_nce(uninformed), spread])
        return self.accelerator.reduce(health, "mean")

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward and backward pass; the guard sees its loss."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.saliency is not None:
            self.saliency.mask_gradients()
        self.guard.see_loss(loss)
        return loss

    def begin(self) -> None:
        """What a method makes of the model as it is before training changes any weight: nothing by default."""

    def end(self) -> tuple[str, ...]:
        """What a reader of the card must know of the model as training left it: nothing by default."""
        return ()

    def train(self, resume_from_checkpoint: str | bool | None = None, *positional: Any, **kwargs: Any) -> TrainOutput:
        """Train, as `transformers.Trainer.train` does, until the end or until the guard stops a divergence.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for this training's newest undamaged one in
                `output_dir`.
            positional: passed on, like `kwargs`.

        Returns:
            The number of steps, the mean loss and the run time, time before resuming included.

        Raises:
            UserError: when there is nothing to resume from, memory does not suffice, the disk is full, or the training
                diverged before anything was learned.
        """
        self.refuse_sources(str(self.args.output_dir), "output_dir")
        identity = self.identity if resume_from_checkpoint else None
        folder = checkpoints.checked_checkpoint(resume_from_checkpoint, Path(str(self.args.output_dir)), identity)
        self._seconds_before = checkpoints.seconds_trained(folder) if folder else 0.0
        self.begin_holding()
        self.remember_training(resumed=folder is not None)
        self._started = time.monotonic()
        try:
            self.begin()
            set_seed(self.args.seed)  # the Trainer does so when it is built; what ran since must not matter
            if self.saliency is not None:
                self.saliency.begin()
            if self.args.shrink_perturb and self._shrinking is None:
                self.shrink_and_perturb()
                set_seed(self.args.seed)
            self.guard.begin()
            self.excess.begin()
            with without_report(*ALIGNMENT_REPORT):
                output = super().train(str(folder) if folder else None, *positional, **kwargs)
        except (RuntimeError, MemoryError) as error:  # PyTorch's own class for it is a RuntimeError
            if not is_out_of_memory(error):
                raise
            raise UserError(self._memory_advice()) from error
        if self.guard.stopped and self.guard.good_step == 0:
            raise DivergenceError(
                f"{self.args.title} diverged before anything was learned ({self.guard.stopped}); lower its learning "
                "rate or its weights, or check more often with guard_steps"
            )
        self._ended = self.end()
        return output

    def shrink_and_perturb(self) -> None:
        """Take from the weights what the config says, once; a checkpoint that is resumed from is loaded afterwards."""
        if is_adapted(self.model):
            self._shrinking = NOT_SHRUNK
            logger.warning("%s: %s", self.args.title, NOT_SHRUNK)
            return
        model, share = unwrap(self.model), self.args.shrink_perturb or 0.0
        self._shrinking = f"When training began, {taken(share, self.initial_model is not None)} (shrink_perturb)."
        if self.initial_model is not None:
            move_towards(model, self.initial_model, share)
        else:
            shrink_and_perturb(model, share, self.args.seed)
        refill_queue(model, lambda rows: self.split_batches(self._first_split(rows)))
        if self.saliency is not None:
            self.saliency.restore()

    def refuse_sources(self, folder: str | Path, what: str) -> None:
        """As the base class does; the initial model's folder, too."""
        super().refuse_sources(folder, what)
        refuse_folder_of_origin(self.initial_model, folder, what)

    def saved_keys(self) -> AbstractContextManager[None]:
        """MoCo's queue holds keys of retain alone while the block runs, where something was unlearned."""
        return keys_of_retain(self.model, self.preprocessor, self.rows.kept) if self.rows.unlearns else nullcontext()

    @property
    def notes(self) -> list[str]:
        """What a reader of the model's card must know of the training."""
        own = (self._frozen, self._shrinking, self.stopping_note(), self.repetition_note, *self._ended)
        return [*self.holding_notes, *filter(None, own)]

    def stopping_note(self) -> str | None:
        """Where the training was ended before its time, and why if the guard did it; None where it was not."""
        step, of = self.state.global_step, self.state.max_steps
        ended = f"Training was stopped at step {step} of {of}, before its end." if 0 < step < of else None
        return self.guard.note(self.state) if self.guard.stopped else ended

    def _memory_advice(self) -> str:
        size = self.args.per_device_train_batch_size
        return (
            f"out of memory with batches of {size} samples; the batch was not made smaller, which would change the "
            "negatives: set forward_chunk_size (dual encoders; same gradients) or bf16, or choose a smaller "
            "per_device_train_batch_size yourself"
        )

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: object = None
    ) -> tuple[Tensor, None, None]:
        """InfoNCE of held-out rows: pairs with their first caption, or two seeded views of each picture.

        Methods differ in what they train on, not in what they are evaluated by.
        """
        with torch.no_grad(), self.compute_loss_context_manager():
            terms, _ = self.contrast(model, self._prepare_inputs(inputs))
            return info_nce(terms).detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the base class does; the run time counts what was trained before resuming."""
        if "train_runtime" in logs:
            logs["train_runtime"] += self._seconds_before
        super().log(logs, start_time)
