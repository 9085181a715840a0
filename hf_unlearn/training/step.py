"""What a training step costs beside the loss and its gradient: as few operations as the Trainer's own, fused."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from hf_unlearn.losses.terms import constant_scale
from hf_unlearn.training.accelerate_state import AccelerateState

P = ParamSpec("P")
R = TypeVar("R")


class LeanTrainer(Trainer):
    """A `Trainer` whose step launches little beside the loss, its gradient and the update.

    With a fused optimiser on whole weights, gradients are clipped by the optimiser itself, which divides them as it
    reads them. A loss that is a whole batch's is not divided by one. No floating-point operations are counted.

    Attributes:
        gradient_norm: of the last update's gradient, before it was clipped, on its device.
    """

    gradient_norm: Tensor
    _clipped: list[nn.Parameter]

    @property  # type: ignore[override]  # an attribute of the Trainer
    def accelerator(self) -> Accelerator:
        """The trainer's own, with accelerate's state as it was when it was made, whatever was built since."""
        self._accelerate_state.restore()
        return self._accelerator

    @accelerator.setter
    def accelerator(self, accelerator: Accelerator) -> None:
        self._accelerator, self._accelerate_state = accelerator, AccelerateState()

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer does, on the devices of its own config."""
        self.args.accelerate_state.restore()  # type: ignore[attr-defined]
        super().create_accelerator_and_postprocess()

    def compiled(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function compiled as the model is, if `torch_compile` is set; it must be one of tensors, whole."""
        args = self.args
        if not args.torch_compile:
            return function
        mode, backend = args.torch_compile_mode, args.torch_compile_backend or "inductor"
        return torch.compile(function, fullgraph=True, dynamic=False, backend=backend, mode=mode)

    def kept(self, value: Tensor) -> Tensor:
        """A value of this step that outlives it, without its graph; a CUDA graph writes its outputs over."""
        return value.detach().clone() if self.args.torch_compile_mode else value.detach()

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As the Trainer does; where nothing decays, all weights, which one fused update then serves."""
        if self.args.weight_decay or self.is_deepspeed_enabled:  # which cannot have a group without weights
            return super().get_decay_parameter_names(model)
        return [name for name, _ in model.named_parameters()]

    def floating_point_ops(self, inputs: dict[str, object]) -> int:
        """0: the Trainer's estimate walks over all weights at every step and means nothing for pairs or views."""
        return 0

    @property
    def fused_optimizer(self) -> torch.optim.Optimizer | None:
        """The optimiser itself if its update can scale and skip on the device; None if it cannot, or need not."""
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        plain = getattr(self.accelerator, "scaler", None) is None and not self.is_fsdp_enabled
        return inner if plain and getattr(inner, "_step_supports_amp_scaling", False) else None

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As the Trainer does; a batch of its own is not divided by one, and its modules are not visited again."""
        accelerator = self.accelerator
        whole = self.current_gradient_accumulation_steps == 1 == accelerator.gradient_accumulation_steps
        usual = accelerator.distributed_type not in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
        if not (whole and usual and self.args.n_gpu <= 1 and getattr(accelerator, "scaler", None) is None):
            return super().training_step(model, inputs, num_items_in_batch)
        if not model.training:
            model.train()
        if self.args.torch_compile:
            torch.compiler.cudagraph_mark_step_begin()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        assert isinstance(loss, Tensor)  # outputs were not asked for
        loss.backward(gradient=constant_scale(1.0, loss.device) if loss.dtype == torch.float32 else None)
        return self.kept(loss)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """The gradient's norm; a fused optimiser divides by what it exceeds `max_grad_norm` by."""
        fused, limit = self.fused_optimizer, self.args.max_grad_norm
        if fused is None:
            self.gradient_norm = super()._clip_grad_norm(model)
        else:
            self.gradient_norm = self._norm(model)
            norm = self.gradient_norm.float()
            exceeds = norm if limit == 1 else norm * (1 / limit)
            fused.grad_scale = exceeds.clamp(min=1)  # type: ignore[attr-defined]
        return self.gradient_norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: object = None) -> object:
        """The norm that clipping found; without clipping it is measured, and nothing is multiplied by one."""
        if grad_norm is None and self.fused_optimizer is not None:
            self.gradient_norm = self._norm(model)
            return self.gradient_norm
        found = super()._get_grad_norm(model, grad_norm)
        self.gradient_norm = torch.as_tensor(found)
        return found

    def train(self, *positional: Any, **kwargs: Any) -> TrainOutput:
        """As the Trainer does; the model's weights are looked up anew."""
        self._clipped = []
        return super().train(*positional, **kwargs)

    def _norm(self, model: nn.Module) -> Tensor:
        if not self._clipped:  # to walk over all modules at every step would take the host as long as 50 launches
            self._clipped = list(model.parameters())
        return torch.nn.utils.get_total_norm([p.grad for p in self._clipped if p.grad is not None])
