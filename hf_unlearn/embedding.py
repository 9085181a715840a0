"""One pass of a split through a model, whole batches shared out over the processes of a launch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.preprocessing import Encoded
from hf_unlearn.distributed import map_across_processes, world_size
from hf_unlearn.models.contrastive import evaluation_mode

BATCH = 256


@torch.no_grad()
def embed_split(
    model: PreTrainedModel,
    split: EncodedSplit,
    embed: Callable[[Encoded, int], tuple[Tensor, ...]],
    rows: Sequence[int] | None = None,
    batch_size: int = BATCH,
) -> tuple[Tensor, ...]:
    """Embed a split in one pass, whole batches dealt out over processes, and return it whole on every process.

    Args:
        model: put into evaluation mode, and back into its own afterwards.
        split: encoded rows.
        embed: from an encoded batch on the model's device and the batch's number to tensors, batch first.
        rows: the rows to embed; default all.
        batch_size: rows a batch.

    Returns:
        The tensors that `embed` returns, concatenated over batches in the order of the rows, as float32. They stay on
        the model's device, or come to the CPU where they would take more than a quarter of the memory free there.
    """
    chosen = range(len(split)) if rows is None else rows
    batches, device = -(-len(chosen) // batch_size), model.device

    def embed_batch(number: int) -> list[Tensor]:
        encoded = split.rows(chosen[number * batch_size : (number + 1) * batch_size])
        outputs = embed({name: value.to(device, non_blocking=True) for name, value in encoded.items()}, number)
        return [output.float() for output in outputs]

    with evaluation_mode(model):
        if world_size() > 1:
            dealt = map_across_processes(
                batches, lambda number: [output.cpu().numpy() for output in embed_batch(number)]
            )
            parts = [[torch.from_numpy(output) for output in outputs] for outputs in dealt]
        else:
            parts = []
            for number in range(batches):
                outputs = embed_batch(number)
                if number == 0:
                    place = _place(sum(output.nbytes for output in outputs) * batches, device)
                parts.append([output.to(place) for output in outputs])
    joined = [torch.cat(columns) for columns in zip(*parts, strict=True)]
    return tuple(column.to(_place(sum(each.nbytes for each in joined), device)) for column in joined)


def _place(nbytes: int, device: torch.device) -> torch.device:
    """The device if this many bytes are at most a quarter of what is free there, or the CPU."""
    if device.type == "cpu" or 4 * nbytes <= torch.accelerator.get_memory_info(device)[0]:
        return device
    return torch.device("cpu")
