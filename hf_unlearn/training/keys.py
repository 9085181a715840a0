"""MoCo's queue after an unlearning: training leaves keys of what it saw last there, of requested pictures, too."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.preprocessing import ContrastivePreprocessor
from hf_unlearn.models.contrastive import as_weights, evaluation_mode, unwrap
from hf_unlearn.models.moco import MoCoModel

BATCH = 256
logger = logging.getLogger(__name__)


@torch.no_grad()
def keep_keys_of(
    model: nn.Module, preprocessor: ContrastivePreprocessor, retain: Callable[[int], EncodedSplit | None]
) -> None:
    """Fill a MoCo's queue with keys of retain pictures alone; other models have no queue.

    Keys come from the key encoder as it is, in evaluation mode: no running statistic moves. Every process computes all
    of them, so that their queues stay equal.

    Args:
        model: the encoder, wrapped or not; its queue is replaced in place.
        preprocessor: how the rows were encoded.
        retain: from a number of rows to at most so many of them; None where there are none at hand.
    """
    model = unwrap(model)
    if not isinstance(model, MoCoModel):
        return
    if not (rows := retain(len(model.queue))):
        logger.warning("MoCo's queue keeps keys of pictures that were unlearned: no retain is at hand to replace them.")
        return
    keys: list[Tensor] = []
    with evaluation_mode(model):
        while sum(map(len, keys)) < len(model.queue):
            for encoded in rows.batches(BATCH):
                encoded = {name: value.to(model.device) for name, value in encoded.items()}
                views = preprocessor.batch(encoded, len(keys))["pixel_values"][:, 1]
                keys.append(F.normalize(model.get_key_features(as_weights(model, views)).float(), dim=-1))
    model.queue.copy_(torch.cat(keys)[: len(model.queue)])
    model.queue_pointer.zero_()


@contextmanager
def keys_of_retain(
    model: nn.Module, preprocessor: ContrastivePreprocessor, retain: Callable[[int], EncodedSplit | None]
) -> Iterator[None]:
    """As `keep_keys_of` while the block runs; afterwards the queue is as it was, so that a training goes on with it."""
    inner = unwrap(model)
    if not isinstance(inner, MoCoModel):
        yield
        return
    was = inner.queue.clone(), inner.queue_pointer.clone()
    keep_keys_of(inner, preprocessor, retain)
    try:
        yield
    finally:
        inner.queue.copy_(was[0])
        inner.queue_pointer.copy_(was[1])
