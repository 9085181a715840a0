"""One pass of a split through a model, whole batches shared out over the processes of a launch."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.preprocessing import Encoded
from hf_unlearn.distributed import deal
from hf_unlearn.models.contrastive import evaluation_mode

BATCH = 256

Array = npt.NDArray[np.floating]


@torch.no_grad()
def embed_split(
    model: PreTrainedModel,
    split: EncodedSplit,
    embed: Callable[[Encoded, int], tuple[Tensor, ...]],
    rows: Sequence[int] | None = None,
    batch_size: int = BATCH,
) -> tuple[Array, ...]:
    """Embed a split in one pass, whole batches dealt out over processes, and return it whole on every process.

    Args:
        model: put into evaluation mode, and back into its own afterwards.
        split: encoded rows.
        embed: from an encoded batch on the model's device and the batch's number to tensors, batch first.
        rows: the rows to embed; default all.
        batch_size: rows a batch.

    Returns:
        The tensors that `embed` returns, concatenated over batches in the order of the rows, as float32 arrays.
    """
    chosen = range(len(split)) if rows is None else rows

    def embed_batch(number: int) -> list[Array]:
        encoded = split.rows(chosen[number * batch_size : (number + 1) * batch_size])
        outputs = embed({name: value.to(model.device) for name, value in encoded.items()}, number)
        return [output.float().cpu().numpy() for output in outputs]

    with evaluation_mode(model):
        parts = deal(-(-len(chosen) // batch_size), embed_batch)
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))
