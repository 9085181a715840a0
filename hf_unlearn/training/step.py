"""What a training step costs beside the loss and its gradient: as few operations as the Trainer's own, fused."""

from collections.abc import Callable
from types import MethodType
from typing import Any, ParamSpec, TypeVar

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput
from transformers.training_args import OptimizerNames

from hf_unlearn.losses.terms import constant
from hf_unlearn.training.accelerate_state import AccelerateState

P = ParamSpec("P")
R = TypeVar("R")


class LeanOptimizer(AcceleratedOptimizer):
    """accelerate's wrapper of an optimiser, without its two searches of the disk for LOMO's package at every step."""

    def step(self, closure: Callable[[], object] | None = None) -> None:
        """Update; the Trainer calls this only where gradients are to be used."""
        self.optimizer.step(closure)


class LeanTrainer(Trainer):
    """A `Trainer` whose step launches little beside the loss, its gradient and the update.

    With a fused optimiser on whole weights, gradients are clipped by the optimiser itself, which divides them as it
    reads them. A loss that is a whole batch's is not divided by one. No floating-point operations are counted. The
    model's weights are looked up once, not at every step, which would take the host as long as 50 launches.

    Attributes:
        gradient_norm: of the last update's gradient, before it was clipped, on its device.
    """

    gradient_norm: Tensor
    _stepped: list[nn.Module] | None = None  # the model, from the first step of a training on

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

    def create_scheduler(self, *positional: Any, **kwargs: Any) -> Any:
        """As the Trainer does; by then the optimiser is wrapped, here as leanly as nothing else needs the wrapper."""
        lomo = type(getattr(self.optimizer, "optimizer", None)).__module__.startswith("lomo_optim")
        scaled = getattr(self.optimizer, "scaler", None) is not None
        xla = self.accelerator.distributed_type == DistributedType.XLA
        if type(self.optimizer) is AcceleratedOptimizer and not (lomo or scaled or xla):
            self.optimizer.__class__ = LeanOptimizer
        return super().create_scheduler(*positional, **kwargs)

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
        if self._stepped == [] and type(model).zero_grad is nn.Module.zero_grad and not self.is_fsdp_enabled:
            self._stepped.append(model)
            # Not by setattr, which a compiled model hands on to the one that it wraps.
            vars(model).update(_weights=list(model.parameters()), zero_grad=MethodType(_drop_gradients, model))
        if self._asks_for_more:
            return super().training_step(model, inputs, num_items_in_batch)
        inner = self.model  # the wrapper of several processes begins in training mode, whatever it wraps
        if not model.training or (inner is not None and not inner.training):
            model.train()
        if self.args.torch_compile:
            torch.compiler.cudagraph_mark_step_begin()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        assert isinstance(loss, Tensor)  # outputs were not asked for
        loss.backward(gradient=constant(1.0, loss.device) if loss.dtype == torch.float32 else None)
        return self.kept(loss)

    @property
    def _asks_for_more(self) -> bool:
        """Whether the Trainer's step does something for this training that is left out here."""
        accelerator, args = self.accelerator, self.args
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return (
            not self.current_gradient_accumulation_steps == 1 == accelerator.gradient_accumulation_steps
            or accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
            or getattr(accelerator, "scaler", None) is not None
            or args.n_gpu > 1
            or args.torch_empty_cache_steps is not None
            or callable(getattr(optimizer, "train", None))  # of schedule-free optimisers, which have two modes
            or args.optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO)  # which update within the backward pass
        )

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
        """As the Trainer does; afterwards the model looks its weights up again."""
        self._stepped = []
        try:
            return super().train(*positional, **kwargs)
        finally:
            for model in self._stepped:
                del vars(model)["_weights"], vars(model)["zero_grad"]
            self._stepped = None

    def _norm(self, model: nn.Module) -> Tensor:
        weights = vars(model).get("_weights") or model.parameters()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if len({(gradient.device, gradient.dtype) for gradient in gradients}) != 1:
            return torch.nn.utils.get_total_norm(gradients)
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _drop_gradients(model: nn.Module, set_to_none: bool = True) -> None:
    """`nn.Module.zero_grad` over the weights that were looked up; a copy of the model has its own."""
    if not set_to_none:
        type(model).zero_grad(model, set_to_none=False)
        return
    for weight in vars(model)["_weights"]:
        weight.grad = None
