"""Divergence guards: a training that stops making sense ends, says why, and leaves its last good state.

With a fused optimiser, the default, no step waits for the device. Losses and gradients are tested there, the optimiser
skips its update there from the first bad one on, and the host reads what was found only at a check, every `guard_steps`
steps. Other optimisers cannot skip on the device: before each of their updates the host waits to learn whether to.
"""

import logging
import math
import time
from typing import Any, ClassVar, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_unlearn.distributed import all_reduce_sum
from hf_unlearn.models.adapters import is_adapted
from hf_unlearn.models.sharding import local
from hf_unlearn.training.config import UnlearningConfig

logger = logging.getLogger(__name__)


class Watched(Protocol):
    """What a guard sees of a trainer."""

    model: PreTrainedModel
    args: UnlearningConfig
    accelerator: Accelerator
    gradient_norm: Tensor

    def probe_retain(self) -> Tensor | None:
        """Loss of fixed retain samples, that of an encoder that knows nothing, and their spread; None if unwatched."""


class DivergenceGuard(TrainerCallback):
    """Checks a training's health and puts the last good state back when it is lost.

    - The loss and the gradient must be finite. An update from a bad gradient is never made.
    - The InfoNCE of a fixed batch of retain samples must not rise above its start by more than `retain_loss_budget`
      times `log(candidates)`, the loss of an encoder that knows nothing.
    - The spread of their unit-norm embeddings, `mean |x - mean x|^2`, must stay above `collapse_floor` times its start;
      vectors that all point the same way, or vanish, have none.

    A state found good is copied, on its own device. It is the model alone that goes back: the training ends there.

    Args:
        trainer: the trainer to watch.
    """

    most_steps: ClassVar[int] = 50  # between checks
    checks: ClassVar[int] = 20  # of a short run

    def __init__(self, trainer: Watched) -> None:
        self._trainer = trainer
        self.stopped: str | None = None
        self._unsound = False  # whether outputs, not only losses or gradients, were not finite
        self.good_step = 0
        self._start: list[float] = []
        self._watched: list[Tensor] = []
        self._good: list[Tensor] = []
        self._losses: list[Tensor] = []  # of the micro-batches since the last update
        self._seen: list[tuple[int, Tensor, Tensor]] = []  # step, loss and gradient's norm since the last check
        self._soundness = self._faults = torch.zeros(())

    def begin(self) -> None:
        """Measure what the budgets are relative to; before a checkpoint is loaded, so that resuming repeats it."""
        self.stopped, self._unsound = None, False
        health = self._trainer.probe_retain()
        self._start = [] if health is None else health.tolist()

    def see_loss(self, loss: Tensor) -> None:
        """Note the loss of a (micro-)batch."""
        self._losses.append(loss)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Copy the state that training starts or goes on from; checkpoints are only taken of good ones."""
        model = self._trainer.model
        # Of what is frozen, the model under an adapter stays as it is; a momentum encoder does not.
        moving = (value for value in model.parameters() if value.requires_grad or not is_adapted(model))
        self._watched = [local(value.detach()) for value in (*moving, *model.buffers())]
        self._good = [value.clone() for value in self._watched]
        self.good_step = state.global_step
        self._every = self._trainer.args.guard_steps or min(self.most_steps, max(1, state.max_steps // self.checks))
        # The first steps at which the loss and the gradient were not finite.
        self._faults = torch.full((2,), math.inf, device=args.device)
        self._soundness = torch.zeros((), device=args.device)  # becomes, and stays, not a number at the first fault
        self._losses, self._seen = [], []
        self._saved = time.monotonic()

    @torch.no_grad()
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note whether loss and gradient are finite; if one of them ever was not, no update follows."""
        optimizer = kwargs["optimizer"]
        loss = self._losses[0] if len(self._losses) == 1 else torch.stack(self._losses).sum()
        self._losses = []
        scaled = getattr(self._trainer.accelerator, "scaler", None) is not None
        sharded = isinstance(self._trainer.model, FSDPModule)
        if scaled:  # float16's scaler expects overflows, skips the update and goes on with a smaller scale
            norm = loss
        elif sharded:  # each process sees its shards; all must skip the same update
            shards = [local(p.grad) for p in self._trainer.model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm([part for part in shards if part.numel()], norm_type=math.inf)
        else:
            norm = self._trainer.gradient_norm
        norm = norm.to(loss)
        if sharded:
            loss, norm = all_reduce_sum(torch.stack([loss, norm])).unbind()
        self._seen.append((state.global_step + 1, loss, norm))
        self._soundness = torch.addcmul(self._soundness, loss, norm, value=0)  # 0 times what is finite is 0
        if scaled:
            return
        bad = self._soundness.nan_to_num(nan=1.0)
        inner = getattr(optimizer, "optimizer", optimizer)
        if getattr(inner, "_step_supports_amp_scaling", False):  # fused: skips on the device, as GradScaler has it do
            inner.found_inf = bad
        elif bad.item():  # the others skip parameters without a gradient
            inner.zero_grad(set_to_none=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Check every `guard_steps` steps, at the end, and before a checkpoint is written."""
        if state.global_step % self._every == 0 or control.should_save or control.should_training_stop:
            self._check(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Check before an epoch's checkpoint; a training that was stopped writes none."""
        if self.stopped:
            control.should_save = False
        elif control.should_save and self.good_step != state.global_step:
            self._check(state, control)

    def on_save(self, *_: object, **kwargs: object) -> None:
        """Remember when the last checkpoint was written."""
        self._saved = time.monotonic()

    def on_train_end(self, *_: object, **kwargs: Any) -> None:
        """Give back the memory."""
        self._watched, self._good = [], []
        inner = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
        for name in ("found_inf", "grad_scale"):
            if hasattr(inner, name):
                delattr(inner, name)

    def _check(self, state: TrainerState, control: TrainerControl) -> None:
        """Copy the model if it is sound; put the copy back and end the training if it is not."""
        args, health = self._trainer.args, self._trainer.probe_retain()
        if self._seen:
            steps, losses, norms = zip(*self._seen, strict=True)
            bad = ~torch.stack([torch.stack(losses), torch.stack(norms)], dim=1).isfinite()
            when = torch.tensor(steps, dtype=torch.float32)[:, None].to(bad.device)
            self._faults = torch.minimum(self._faults, torch.where(bad, when, math.inf).amin(0))
            self._seen = []
        elapsed = torch.tensor([time.monotonic() - self._saved], device=args.device)
        found = torch.cat([self._faults, elapsed, *([] if health is None else [health])])
        rows = self._trainer.accelerator.gather(found[None]).tolist()  # processes must decide alike
        faults = [min(column) for column in list(zip(*rows, strict=True))[:2]]
        self.stopped = self._fault(*faults) or self._excess(rows[0][3:])
        if self.stopped is None:
            torch._foreach_copy_(self._good, self._watched)
            self.good_step = state.global_step
            minutes = args.checkpoint_minutes
            control.should_save |= minutes is not None and max(row[2] for row in rows) >= 60 * minutes
            return
        torch._foreach_copy_(self._watched, self._good)
        if isinstance(self._trainer.model, FSDPModule):
            self._trainer.model.reshard()  # whole weights that are still there from the probe are no longer the model's
        control.should_save, control.should_training_stop = False, True
        logger.error("%s: %s", args.title, self.note(state))

    @property
    def failed(self) -> bool:
        """Whether training was stopped by numbers that were not finite, not by a budget."""
        return self.stopped is not None and (self._unsound or bool(self._faults.isfinite().any()))

    def note(self, state: TrainerState) -> str:
        """What a reader of the model's card must know, once the training was stopped."""
        return (
            f"Training was stopped at step {state.global_step} of {state.max_steps}: {self.stopped}. The weights are "
            f"those of step {self.good_step}, the last that was found good."
        )

    def _fault(self, loss_step: float, gradient_step: float) -> str | None:
        first = min(loss_step, gradient_step)
        if math.isinf(first):
            return None
        what = "loss" if loss_step == first else "gradient"
        return f"the {what} of step {first:.0f} was not finite, and that update was not made"

    def _excess(self, health: list[float]) -> str | None:
        """Which budget a probe exceeds; one that is not a number exceeds every budget."""
        if not health:
            return None
        args = self._trainer.args
        (loss, _, spread), (first_loss, chance, first_spread) = health, self._start
        if not (math.isfinite(loss) and math.isfinite(spread)):
            self._unsound = True
            return "the embeddings of retain samples are not finite"
        if args.retain_loss_budget is not None:
            limit = first_loss + args.retain_loss_budget * chance
            if not loss <= limit:
                return f"the retain loss rose from {first_loss:.2f} to {loss:.2f}, beyond its budget of {limit:.2f}"
        if args.collapse_floor is not None and not spread >= args.collapse_floor * first_spread:
            share = 100 * spread / first_spread if first_spread else math.nan
            return f"the retain embeddings collapsed to {share:.2g}% of their spread at the start"
        return None
