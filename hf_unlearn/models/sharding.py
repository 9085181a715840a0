"""Dual encoders under FSDP2: what they need before their weights are sharded, and how they become whole again."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


def make_shardable(model: PreTrainedModel) -> None:
    """Prepare a dual encoder, in place, for `accelerate` to shard it.

    FSDP2 takes no scalar parameters, such as CLIP's `logit_scale`: they become vectors of one number.
    """
    for name, parameter in [(name, value) for name, value in model.named_parameters() if value.ndim == 0]:
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, nn.Parameter(parameter.detach()[None], parameter.requires_grad))
    # Accelerate makes a language model's embeddings a unit of their own; here they already belong to the text encoder.
    model.get_input_embeddings = lambda: None  # type: ignore[assignment,return-value]


def gather_whole(model: PreTrainedModel) -> PreTrainedModel:
    """An ordinary copy of a sharded model, whole on every process; any other model as it is.

    All processes must call it together. The copy is in evaluation mode, on the device of the shards.
    """
    if not isinstance(model, FSDPModule):
        return model
    kind: Any = next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))
    with torch.random.fork_rng():  # the weights drawn here are overwritten
        whole = kind(deepcopy(model.config))
    shapes = {name: value.shape for name, value in whole.state_dict().items()}
    weights = {name: full(value).reshape(shapes[name]) for name, value in model.state_dict().items()}
    whole.load_state_dict(weights, assign=True)
    return whole.to(model.device).eval()


def full(value: Tensor) -> Tensor:
    """A sharded tensor in full, without gradient; any other as it is."""
    return value.full_tensor().detach() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """This process's shard of a sharded tensor, which may be empty; any other tensor as it is."""
    return value.to_local() if isinstance(value, DTensor) else value
