"""The order in which retain and unlearn samples meet in batches."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class SplitSampler(Sampler[int]):
    """Stratified batches over a dataset that holds `retain` rows first and `unlearn` rows after them.

    One epoch is one pass over retain (over unlearn, if there is no retain). Every batch holds the same share of
    unlearn samples, at least two where there are two, so that both terms of Eq. 5 are estimated at each step; a small
    unlearn split is therefore cycled within the epoch. The last batch is filled from the start of a new permutation,
    so all batches have one shape and none is dropped.

    Args:
        retain: number of retain rows.
        unlearn: number of unlearn rows.
        batch_size: samples per batch; consecutive runs of this length in the order are the batches.
        seed: with the epoch, fixes the order whatever ran before.
    """

    def __init__(self, retain: int, unlearn: int, batch_size: int, seed: int = 0) -> None:
        self.retain, self.unlearn, self.seed, self.epoch = retain, unlearn, seed, 0
        if retain and unlearn:
            share = round(batch_size * unlearn / (retain + unlearn))
            self.unlearn_per_batch = min(max(share, 2), unlearn, batch_size - 1)
        else:
            self.unlearn_per_batch = min(batch_size, unlearn)
        self.retain_per_batch = min(batch_size - self.unlearn_per_batch, retain)
        per_batch, total = (self.retain_per_batch, retain) if retain else (self.unlearn_per_batch, unlearn)
        self.batches = -(-total // per_batch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches * (self.retain_per_batch + self.unlearn_per_batch)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        retain = self._cycle(self.retain, self.batches * self.retain_per_batch, generator)
        unlearn = self._cycle(self.unlearn, self.batches * self.unlearn_per_batch, generator) + self.retain
        order = torch.cat([retain.view(self.batches, -1), unlearn.view(self.batches, -1)], dim=1)
        yield from order.flatten().tolist()

    @staticmethod
    def _cycle(size: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """`length` indices below `size`: permutations one after the other."""
        rounds = -(-length // size) if size else 0
        orders = [torch.randperm(size, generator=generator) for _ in range(rounds)]
        return torch.cat(orders)[:length] if orders else torch.empty(0, dtype=torch.int64)
