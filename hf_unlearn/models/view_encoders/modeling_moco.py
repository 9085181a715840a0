"""The MoCo family: a query encoder, its momentum copy and a queue of keys."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.utils import ModelOutput

from .configuration_moco import MoCoConfig
from .view_encoder import ViewEncoder, ViewEncoderModel
from .view_encoder_operations import AllGather, UnitPair, world_size


@dataclass
class MoCoOutput(ModelOutput):
    """Unit-norm float32 queries and gradient-free keys `[n, d]`, and the queue `[K, d]` they are contrasted with."""

    x_embeds: Tensor | None = None
    y_embeds: Tensor | None = None
    queue: Tensor | None = None


class MoCoModel(ViewEncoderModel):
    """Encoder of queries, its momentum copy for keys and the queue of MoCo; only queries have gradients.

    Args:
        config: what to build; weights are random until loaded.

    Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", arXiv 1911.05722, and its
    version 2, arXiv 2003.04297. Deviation: the queue is saved with the weights, so training goes on where it stopped.
    """

    config: MoCoConfig
    config_class = MoCoConfig
    base_model_prefix = "moco"
    queue: Tensor
    queue_pointer: Tensor

    def __init__(self, config: MoCoConfig) -> None:
        super().__init__(config)
        self.encoder = ViewEncoder(config, config.batch_norm_splits)
        self.key_encoder = ViewEncoder(config, config.batch_norm_splits).requires_grad_(False)
        self.register_buffer("queue", torch.empty(config.queue_size, config.projection_dim))
        self.register_buffer("queue_pointer", torch.empty((), dtype=torch.long))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:  # comes last, after both encoders
            for key, query in zip(self.key_encoder.parameters(), self.encoder.parameters(), strict=True):
                initialization.copy_(key, query)
            initialization.normal_(self.queue)
            initialization.copy_(self.queue, F.normalize(self.queue, dim=-1))
            initialization.zeros_(self.queue_pointer)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as every transformers model does, and keep the key encoder free of gradients."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a pair with output_loading_info
        model.key_encoder.requires_grad_(False)  # loading replaces the parameters
        return loaded

    @classmethod
    def from_vision_model(cls, backbone: PreTrainedModel, **settings: Any) -> Self:
        """Start both encoders from a pretrained vision model, with a fresh projection head."""
        model = super().from_vision_model(backbone, **settings)
        model.key_encoder.load_state_dict(model.encoder.state_dict())
        return model

    @torch.no_grad()
    def get_key_features(self, pixel_values: Tensor) -> Tensor:
        """Keys `[n, d]`, not normalised, without gradient and not enqueued, of `[n, 3, H, W]` normalised pixels."""
        if not (self.training and self.config.batch_norm_splits):
            return self.key_encoder(pixel_values)
        # Shuffled, so that a key's batch statistics come from other pictures than its query's.
        order = torch.randperm(len(pixel_values), device=pixel_values.device)
        return self.key_encoder(pixel_values[order])[order.argsort()]

    def forward(self, pixel_values: Tensor) -> MoCoOutput:
        """Embed the first views as queries and the second views as keys.

        In training mode every pass first moves the key encoder, to momentum * itself + (1 - momentum) * query encoder,
        and last enqueues its keys. In evaluation mode no state changes.

        Args:
            pixel_values: `[n, 2, 3, H, W]`, normalised; n is the same on all processes, whose keys are all enqueued.

        Returns:
            Queries, keys and the queue as it was before this batch.
        """
        queries = self.encoder(pixel_values[:, 0])
        if self.training:
            self._update_key_encoder()
        queries, keys = UnitPair.apply(queries.float(), self.get_key_features(pixel_values[:, 1]).float())
        self.count_batches(of_forward=True)
        queue = self.queue.to(torch.float32, copy=True)  # the loss keeps it for its backward pass
        if self.training:
            self.enqueue(keys)
        return MoCoOutput(x_embeds=queries, y_embeds=keys, queue=queue)

    @torch.no_grad()
    def _update_key_encoder(self) -> None:
        keys, queries = (tuple(encoder.parameters()) for encoder in (self.key_encoder, self.encoder))
        torch._foreach_lerp_(keys, queries, 1 - self.config.momentum)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Put unit-norm keys `[n, d]` in place of the oldest ones; n is the same on all processes."""
        if world_size() > 1:
            keys = AllGather.apply(keys).flatten(0, 1)  # so that the queues stay equal
        newest = keys[-self.config.queue_size :].to(self.queue.dtype)
        # The pointer stays on its device: reading it on the host would stall an accelerator at every step.
        slots = _slots(self.queue_pointer, len(newest) + 1, self.config.queue_size)
        self.queue.index_copy_(0, slots[:-1], newest)
        self.queue_pointer.copy_(slots[-1])


def _slots(pointer: Tensor, count: int, size: int) -> Tensor:
    """`[count]` slots of a ring of `size`, from the one that `pointer` names on."""
    if torch.compiler.is_compiling():
        return (pointer + torch.arange(count, device=pointer.device)) % size
    return _ring(count, size, pointer.device).index_select(0, pointer.view(1))[0]


@lru_cache(maxsize=8)
def _ring(count: int, size: int, device: torch.device) -> Tensor:
    """`[size, count]` what `_slots` gives for every pointer, all in the memory of one row of `size + count`."""
    with torch.inference_mode(False):
        return (torch.arange(size + count - 1, device=device) % size).unfold(0, count, 1)
