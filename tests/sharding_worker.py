"""What every process of a launch computes for test_sharding.py; the first one writes the results.

Accelerate does not shard on a CPU, though PyTorch does: the one thing that is changed here is that it is told to. All
else, the settings of the shipped fsdp.yaml among it, is what a launch on GPUs goes through.
"""

import math
import os
import sys
from pathlib import Path

import distributed_worker as common
import torch
import torch.distributed as dist
import yaml
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from transformers import CLIPModel

from hf_unlearn.methods import alignment_calibration
from hf_unlearn.models.sharding import full

FSDP_CONFIG = Path(__file__).parents[1] / "recipes" / "accelerate_configs" / "fsdp.yaml"


def shard_from_now_on():
    """Set what `accelerate launch --config_file fsdp.yaml` sets, and have Accelerate shard on a CPU, too."""
    settings = yaml.safe_load(FSDP_CONFIG.read_text())["fsdp_config"]
    os.environ |= {name.upper(): str(value) for name, value in settings.items()} | {"ACCELERATE_USE_FSDP": "true"}
    initialise = AcceleratorState.__init__

    def sharding(self, *positional, fsdp_plugin=None, **named):
        initialise(self, *positional, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # what states built later start from

    AcceleratorState.__init__ = sharding


def trained(method, rows, family="clip", **settings):
    found = common.train(method, family, rows, **settings)
    return found | {"gradients": {name: full(gradient) for name, gradient in found["gradients"].items()}}


def training_cases():
    batch = range(common.BATCH)
    yield "retrain", trained("retrain", batch)
    yield "fine_tune", trained("fine_tune", batch)
    yield "fine_tune in chunks", trained("fine_tune", batch, forward_chunk_size=4)
    yield "gradient_ascent", trained("gradient_ascent", batch)
    yield "neg_grad", trained("neg_grad", common.UNEVEN)
    yield "l1_sparsity", trained("l1_sparsity", batch, l1_lambda=1e-3)
    yield "siglip l1_sparsity", trained("l1_sparsity", batch, "siglip", l1_lambda=1e-3)
    yield "alignment_calibration", trained("alignment_calibration", common.UNEVEN, beta=3.0)
    yield (
        "alignment_calibration reference",
        trained("alignment_calibration", common.PAIRED, preset="reference", beta=12.0),
    )


def weights(trainer):
    return {name: value.clone() for name, value in trainer.whole_model().state_dict().items()}


def stopped(method, spoil_step=None, **settings):
    """A training that its guard stops, a NaN in the last process's loss being one reason."""
    trainer = common.make_trainer(method, "clip", range(common.BATCH), guard_steps=2, **settings)
    compute_loss = trainer.compute_loss

    def spoiled(model, inputs, **named):
        loss = compute_loss(model, inputs, **named)
        here = trainer.state.global_step + 1 == spoil_step and dist.get_rank() == dist.get_world_size() - 1
        return loss * math.nan if here else loss

    trainer.compute_loss = spoiled
    trainer.train()
    return {
        "step": trainer.state.global_step,
        "good_step": trainer.guard.good_step,
        "note": trainer.notes,
        "weights": weights(trainer),
    }


def stopped_cases():
    for optim in ("sgd", "adamw_torch_fused"):
        yield f"nan {optim}", stopped("fine_tune", spoil_step=5, steps=12, optim=optim)
    yield "budget", stopped("gradient_ascent", steps=60, learning_rate=5e-5, retain_loss_budget=0.05)


def saved(folder):
    """Save, reload with plain transformers, and go on from a checkpoint."""
    settings = {"steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    trainer = common.make_trainer("fine_tune", "clip", range(common.BATCH), **settings)
    trainer.train()
    sharded = isinstance(trainer.model, FSDPModule)
    trainer.save_model(f"{folder}/saved")
    resumed = common.make_trainer("fine_tune", "clip", range(common.BATCH), **settings)
    resumed.train(resume_from_checkpoint=f"{sys.argv[1]}/out/checkpoint-2")
    checkpoint = f"{sys.argv[1]}/out/checkpoint-4"
    return {
        "sharded": sharded,
        "weights": weights(trainer),
        "resumed": weights(resumed),
        "reloaded": CLIPModel.from_pretrained(f"{folder}/saved").state_dict(),
        "checkpoint": CLIPModel.from_pretrained(checkpoint).state_dict(),
    }


def run(folder):
    """Every check, in every process."""
    torch.set_num_threads(1)
    PartialState(cpu=True)  # joins the processes
    alignment_calibration.derangement = common.neighbours
    results = {"copied": {"stopped": dict(stopped_cases())}}
    if dist.get_world_size() > 1:
        shard_from_now_on()
    results["sharded"] = {
        "training": dict(training_cases()),
        "stopped": dict(stopped_cases()),
        "saved": saved(folder),
    }
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, results)
    if dist.get_rank() == 0:
        torch.save(ranks, f"{folder}/{len(ranks)}.pt")
    dist.destroy_process_group()


def main(folder):
    """Every check in one and two processes; what they compute is written to a folder."""
    sys.argv = [__file__, str(folder)]
    common.ROWS = common.drawn_shapes()
    common.SPLITS = {family: common.encode(family) for family in ("clip", "siglip")}
    for processes in (1, 2):
        common.launch(run, processes)
