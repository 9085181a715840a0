"""What a whole training step launches, and that the host waits for nothing in it: the same on every machine."""

import copy

import accelerate.optimizer
import pytest
import torch
import transformers.trainer
from kernels import Kernels
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

# Of a step with fused AdamW: views, model, loss, both passes, guard, clipping and update.
MOST = {
    "alignment_calibration": {"simclr": 147, "moco": 162, "clip": 246},
    "fine_tune": {"simclr": 138, "moco": 157, "clip": 234},
    "targeted_calibration": {"simclr": 156, "moco": 175, "clip": 288},
}


class EveryStep(TrainerCallback):
    """Counts each step on its own, and switches the counting off before checks and logs."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, *_, **__):
        self.steps.append(Kernels())
        self.steps[-1].__enter__()

    def on_step_end(self, *_, **__):
        self.steps[-1].__exit__(None, None, None)


@pytest.mark.parametrize("family", ["simclr", "moco", "clip"])
@pytest.mark.parametrize("method", MOST)
def test_a_step_launches_little_and_never_waits(method, family, make_trainer, encoder, splits):
    trainer = make_trainer(method, family, splits, optim="adamw_torch_fused", max_steps=8, logging_steps=100)
    counted = EveryStep()
    trainer.callback_handler.callbacks.insert(0, counted)
    trainer.train()
    later = counted.steps[1:]  # the first sets the optimiser's state up
    assert (most := max(step.count for step in later)) <= MOST[method][family], most
    assert not any(step.waits for step in later)


class HeavyTypes(TorchDispatchMode):
    """The types of what matrix products and convolutions give, one entry each."""

    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.convolution):
            self.types.append(output.dtype)
        return output


@pytest.mark.parametrize("family", ["simclr", "moco", "clip"])
def test_the_model_runs_in_the_precision_that_was_asked_for(family, make_trainer, splits):
    """Mixed precision lies around the model's forward: whatever embeds a batch has to go through it."""
    trainer = make_trainer("fine_tune", family, splits, bf16=True)
    model = trainer.accelerator.prepare(trainer.model).train()
    batch = next(iter(trainer.get_train_dataloader()))
    with HeavyTypes() as heavy:
        trainer.contrast(model, batch)
    assert heavy.types and set(heavy.types) == {torch.bfloat16}


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_a_fused_optimiser_clips_as_pytorch_does(limit, make_trainer, splits):
    """Gradients are divided as they are read, so weights are compared, after updates by plain SGD."""
    weights = []
    for fused in (True, False):
        trainer = make_trainer("fine_tune", "clip", splits, max_steps=2, max_grad_norm=limit)
        parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        trainer.optimizer = torch.optim.SGD(parameters, lr=0.1, fused=fused)
        trainer.train()
        weights.append([p.detach().clone() for p in parameters])
        assert not hasattr(trainer.optimizer, "grad_scale") and trainer.gradient_norm > 0.01
    for ours, theirs in zip(*weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


class MidTraining(TrainerCallback):
    """Looks at the model after the second step's update, as a callback may, and asks a copy of it to drop gradients."""

    def on_optimizer_step(self, args, state, control, model, **_):
        if state.global_step == 1:
            other = copy.deepcopy(model)
            for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
                theirs.grad = None if ours.grad is None else ours.grad.clone()
            other.zero_grad()
            self.kept = sum(weight.grad is not None for weight in model.parameters())
            self.left = sum(weight.grad is not None for weight in other.parameters())
            model.zero_grad(set_to_none=False)
            self.largest = max(weight.grad.abs().max() for weight in model.parameters() if weight.grad is not None)
            model.zero_grad()
            self.after = sum(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("family", ["simclr", "moco", "clip"])
def test_a_step_searches_neither_modules_nor_disk(family, make_trainer, splits, monkeypatch):
    """For weights to drop the gradients of, and for the package of an optimiser that is not used."""
    searches = []
    zero_grad = torch.nn.Module.zero_grad
    monkeypatch.setattr(accelerate.optimizer, "is_lomo_available", lambda: searches.append("disk"))
    monkeypatch.setattr(torch.nn.Module, "zero_grad", lambda *a, **k: searches.append("modules") or zero_grad(*a, **k))
    trainer = make_trainer("fine_tune", family, splits, max_steps=4)
    trainer.train()
    assert searches == ["modules"]  # before the first step
    assert not {"zero_grad", "_weights"} & vars(trainer.model).keys()


def test_a_model_in_training_drops_its_gradients_and_a_copy_its_own(make_trainer, splits):
    trainer = make_trainer("fine_tune", "simclr", splits, max_steps=3)
    seen = MidTraining()
    trainer.add_callback(seen)
    trainer.train()
    assert seen.kept > 0 and (seen.left, seen.largest, seen.after) == (0, 0, 0)


class TwoModes(torch.optim.SGD):
    """As schedule-free optimisers are: it updates in its mode of training alone."""

    mode = "eval"

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"

    def step(self, closure=None):
        assert self.mode == "train"
        return super().step(closure)


def test_an_optimiser_with_modes_is_put_into_that_of_training(make_trainer, splits):
    trainer = make_trainer(
        "fine_tune", "clip", splits, splits["validation"], max_steps=2, eval_strategy="steps", eval_steps=1
    )
    trainer.optimizer = TwoModes(trainer.model.parameters(), lr=0.1)
    trainer.train()
    assert trainer.state.global_step == 2


def test_the_devices_cache_is_emptied_as_often_as_is_asked_for(make_trainer, splits, monkeypatch):
    emptied = []
    monkeypatch.setattr(transformers.trainer, "clear_device_cache", lambda: emptied.append("cache"))
    make_trainer("fine_tune", "clip", splits, max_steps=4, torch_empty_cache_steps=2).train()
    assert len(emptied) == 2


def test_a_model_is_trained_in_training_mode_whatever_wraps_it(make_trainer, splits):
    """A wrapper, such as that of several processes, begins in training mode; what it wraps is in evaluation mode."""
    trainer = make_trainer("fine_tune", "simclr", splits, max_steps=1)
    trainer.train()
    wrapper = torch.nn.Sequential(trainer.model.eval()).requires_grad_()
    wrapper.training = True
    modes = []

    def compute_loss(*_, **__):
        modes.append(trainer.model.training)
        return next(trainer.model.parameters()).sum()

    trainer.compute_loss = compute_loss
    trainer.training_step(wrapper, next(iter(trainer.get_train_dataloader())))
    assert modes == [True]
