"""`torch_compile` compiles views, model and loss once, without a graph break: counted by the tracer, on any machine."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import TrainerCallback, TrainingArguments

from hf_unlearn.methods.fine_tune import FineTuneConfig

# What else there is minimises InfoNCE alone.
WITH_MORE_THAN_INFO_NCE = ("alignment_calibration", "l1_sparsity", "neg_grad", "npo", "scrub", "targeted_calibration")


class Graphs(TrainerCallback):
    """Notes after each step how many graphs there are by then."""

    def __init__(self):
        self.counts = []

    def on_step_end(self, *_, **__):
        self.counts.append(counters["stats"]["unique_graphs"])


@pytest.fixture
def no_graphs_yet(monkeypatch):
    """A tracer that has seen nothing; what the option puts into the environment ends with the test."""
    for name in ("BACKEND", "MODE"):
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "no")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("method", "family", "settings"),
    [
        *((method, "clip", {}) for method in WITH_MORE_THAN_INFO_NCE),
        ("alignment_calibration", "clip", {"preset": "level"}),
        *(("targeted_calibration", f, {}) for f in ("simclr", "moco")),
    ],
)
def test_nothing_breaks_a_graph_and_nothing_is_compiled_again(method, family, settings, make_trainer, no_graphs_yet):
    settings = {
        "torch_compile": True,
        "torch_compile_backend": "eager",
        "max_steps": 4,
        "logging_steps": 100,
    } | settings
    trainer = make_trainer(method, family, **settings)
    graphs = Graphs()
    trainer.add_callback(graphs)
    trainer.train()
    assert not counters["graph_break"]
    assert graphs.counts[1] == graphs.counts[-1] >= (2 if family == "clip" else 3)  # model and loss; views


@pytest.mark.parametrize("family", ["clip", "simclr"])
def test_a_compiled_training_ends_where_the_other_does(family, make_trainer, no_graphs_yet):
    weights = []
    for settings in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}):
        torch.manual_seed(0)
        trainer = make_trainer(
            "alignment_calibration", family, max_steps=2, learning_rate=1e-3, optim="sgd", **settings
        )
        trainer.train()
        weights.append([p.detach() for p in trainer.model.parameters()])
    for ours, theirs in zip(*weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("gpu", "given", "resolved"),
    [
        (True, {}, "reduce-overhead"),
        (True, {"torch_compile_mode": "default"}, "default"),
        (True, {"torch_compile": False}, None),
        (True, {"use_cpu": True}, None),
        (False, {}, None),
    ],
)
def test_what_is_compiled_for_a_gpu_is_recorded_as_cuda_graphs(gpu, given, resolved, monkeypatch):
    """The choice is made before `TrainingArguments` looks for devices, so that it can be seen on any machine."""
    seen = []

    def arguments(config):
        seen.append(config.torch_compile_mode)
        raise InterruptedError

    monkeypatch.setattr(TrainingArguments, "__post_init__", arguments)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with pytest.raises(InterruptedError):
        FineTuneConfig(output_dir="out", **{"torch_compile": True, **given})
    assert seen == [resolved]
