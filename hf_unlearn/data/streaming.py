"""Retain as a stream: rows read as they come, from shards that need not fit on this machine, put into ready batches.

The unlearn split stays encoded in memory. Batches are made as `SplitSampler` makes them: one shape, the same share of
unlearn samples in each, unlearn cycled, and an order that follows from seed and epoch alone.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count, islice
from typing import cast

import numpy as np
import torch
from datasets import Dataset, Image, IterableDataset
from datasets.distributed import split_dataset_by_node
from torch import Tensor

from hf_unlearn.data.encoded import EncodedSplit, concatenate
from hf_unlearn.data.images import check_images
from hf_unlearn.data.preprocessing import ContrastivePreprocessor, Encoded, RowError
from hf_unlearn.data.sampler import SplitSampler
from hf_unlearn.data.sources import readable_rows
from hf_unlearn.errors import UserError

logger = logging.getLogger(__name__)

MOST_LEFT_OUT = 10_000  # rows in succession, where it is not known how many there are
STREAM = "The retain stream"
SHUFFLE_BUFFER = 1000  # rows, as stored: some 100 MB of photographs for each process or worker


class StreamedSplit:
    """The rows of a split that is read from its start at every pass and encoded batch by batch.

    Args:
        dataset: rows in the schema of `hf_unlearn.data`: `image`, and `captions` where there are any.
        preprocessor: how rows are encoded.
        rows: how many there are; default: what the dataset's info says, if it does. A stream that was filtered after
            loading has fewer rows than that.
        shuffle_buffer: rows kept at a time, of which the next one is drawn; shards are shuffled, too.
        skip_bad: whether rows whose picture cannot be read are left out, each with a warning, instead of refused.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        preprocessor: ContrastivePreprocessor,
        rows: int | None = None,
        shuffle_buffer: int = SHUFFLE_BUFFER,
        skip_bad: bool = False,
    ) -> None:
        if dataset.features is not None and isinstance(dataset.features.get("image"), Image):
            dataset = dataset.cast_column("image", Image(decode=False))  # `encode` decodes, within the pixel limit
        self.dataset, self.preprocessor, self.shuffle_buffer = dataset, preprocessor, shuffle_buffer
        self.rows = known_rows(dataset) if rows is None else rows
        self.skip_bad = skip_bad

    def first(self, size: int) -> Encoded:
        """The first `size` rows, or all of them if there are fewer, encoded."""
        return self.next(readable_rows(self.dataset, STREAM), size)

    def sample(self, size: int) -> EncodedSplit:
        """At most `size` rows, the same every time, mixed as far as shards and the buffer mix them."""
        taken = list(readable_rows(self.shuffled((0,)).take(size), STREAM))
        rows = Dataset.from_list(taken, features=self.dataset.features)
        return EncodedSplit(
            cast(Dataset, check_images(rows, skip_bad=True)) if self.skip_bad else rows, self.preprocessor
        )

    def shuffled(self, draw: Sequence[int], process: int = 0, processes: int = 1) -> IterableDataset:
        """This process's share of the rows, in an order that the numbers in `draw` decide.

        Whole shards are dealt out where their number is a multiple of the processes, and single rows otherwise, so that
        every row is on one process; a loader's workers divide the shards further.
        """
        order = self.dataset.shuffle(generator=np.random.default_rng(draw), buffer_size=self.shuffle_buffer)
        return split_dataset_by_node(order, rank=process, world_size=processes)

    def next(self, rows: Iterator[dict[str, object]], size: int) -> Encoded:
        """Encode the next `size` rows of an iterator, or all of them if there are fewer.

        A row that is left out is replaced by the one that follows, so which rows a batch holds depends on them alone.

        Raises:
            UserError: a column is missing, or a row, which is named, holds something else than pictures and captions.
        """
        chosen = list(islice(rows, size))
        if chosen:
            self.preprocessor.check_columns(chosen[0])
        left_out = 0
        while chosen:
            try:
                return self.preprocessor.encode(
                    {name: [row.get(name) for row in chosen] for name in self.preprocessor.columns}
                )
            except RowError as error:
                fault = error.named(f"{chosen.pop(error.place).get('id', '?')} of the retain stream")
                if not self.skip_bad or error.column != "image":
                    raise fault from error
                logger.warning("Left out: %s.", fault)
            chosen += islice(rows, 1)
            left_out += 1
            if left_out > (self.rows or MOST_LEFT_OUT):
                break
        raise UserError(f"The retain stream has no row left that can be used ({left_out:,} were left out); mend it")


def known_rows(dataset: IterableDataset) -> int | None:
    """How many rows a stream has according to its info; None if it does not say."""
    splits, name = dataset.info.splits, str(dataset.split)
    return (splits[name].num_examples or None) if splits and name in splits else None


class StreamedBatches(torch.utils.data.IterableDataset[dict[str, Tensor]]):
    """Ready batches of a retain stream and a resident unlearn split, for a loader with `batch_size=None`.

    An epoch is one pass over retain: `ceil(rows / (processes * retain rows a batch))` batches a process, and a process
    whose share is used up before that begins its next pass. Where the number of rows is unknown, an epoch has no end.

    A batch holds the encoded tensors, retain rows first, `index [n]` (place in the unlearn split; -1 for retain rows)
    and `is_unlearn [n]` bool.

    Args:
        retain: the stream.
        unlearn: the resident split; None for methods that learn from retain alone. With it, the stream's number of rows
            must be known.
        batch_size: rows a batch on each process.
        seed: with the epoch, decides the order.
        process: number of this process.
        processes: how many there are.
    """

    def __init__(
        self,
        retain: StreamedSplit,
        unlearn: EncodedSplit | None,
        batch_size: int,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        shares = SplitSampler(retain.rows or batch_size, len(unlearn) if unlearn is not None else 0, batch_size)
        self.retain_per_batch, self.unlearn_per_batch = shares.retain_per_batch, shares.unlearn_per_batch
        self.retain, self.unlearn, self.seed, self.epoch = retain, unlearn, seed, 0
        self.process, self.processes = process, processes

    @property
    def shards(self) -> int:
        """How many workers of a loader find a shard of their own on this process."""
        return self.retain.shuffled((0,), self.process, self.processes).num_shards

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.retain.rows is None:
            raise TypeError("a stream with an unknown number of rows has no length")
        return -(-self.retain.rows // (self.processes * self.retain_per_batch))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        places = count(first, step) if self.retain.rows is None else range(first, len(self), step)
        is_unlearn = torch.arange(self.retain_per_batch + self.unlearn_per_batch) >= self.retain_per_batch
        rows = self._endless_rows()
        for place in places:
            parts = [self.retain.next(rows, self.retain_per_batch)]
            index = torch.full((len(is_unlearn),), -1)
            if self.unlearn is not None and self.unlearn_per_batch:
                unlearn_rows = self._unlearn_rows(place * self.processes + self.process)
                parts.append(self.unlearn.rows(unlearn_rows))
                index[self.retain_per_batch :] = torch.tensor(unlearn_rows)
            yield {**concatenate(parts), "index": index, "is_unlearn": is_unlearn}

    def _endless_rows(self) -> Iterator[dict[str, object]]:
        for visit in count():
            found = False
            rows = self.retain.shuffled((self.seed, self.epoch, visit), self.process, self.processes)
            for row in readable_rows(rows, STREAM):
                found = True
                yield row
            if not found:
                raise UserError(
                    f"The retain stream has no row for process {self.process} of {self.processes}; use fewer processes "
                    "or dataloader workers, or data in more shards"
                )

    def _unlearn_rows(self, batch: int) -> list[int]:
        """Unlearn rows of the epoch's batch with this number, counted over all processes."""
        assert self.unlearn is not None
        size = len(self.unlearn)
        positions = range(batch * self.unlearn_per_batch, (batch + 1) * self.unlearn_per_batch)
        return [_permutation(size, self.seed, self.epoch, at // size)[at % size] for at in positions]


@lru_cache(maxsize=2)
def _permutation(size: int, *draw: int) -> list[int]:
    return np.random.default_rng(draw).permutation(size).tolist()
