"""The three quantities every contrastive model yields and every method is built on."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Self, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_unlearn.distributed import Context, all_gather, rank, world_size
from hf_unlearn.losses.partition import log_partition, partition_and_alignment


class _Unit(torch.autograd.Function):
    """`v / |v|`, with the backward pass in four operations where PyTorch's own takes fifteen."""

    @staticmethod
    def forward(ctx: Context, vectors: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_(min=1e-12)
        unit = vectors / norm
        ctx.save_for_backward(unit, norm)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> Tensor:
        unit, norm = ctx.saved_tensors
        (grad,) = grads
        return grad.addcmul(unit, (grad * unit).sum(-1, keepdim=True), value=-1).div_(norm)


@lru_cache(maxsize=64)
def constant(value: float | tuple[float, ...], device: torch.device) -> Tensor:
    """A fixed number, or several, on `device`, copied there once and then kept: not to be changed in place."""
    with torch.inference_mode(False):  # what is kept must serve training, too, whoever asked for it first
        return torch.tensor(value, dtype=torch.float32, device=device)


@lru_cache(maxsize=64)
def _places(count: int, first: int, device: torch.device) -> Tensor:
    """`[count]` consecutive places from `first` on, kept on `device`: not to be changed in place."""
    with torch.inference_mode(False):
        return torch.arange(first, first + count, device=device)


class Quantity:
    """A property worked out when it is first read; `functools.cached_property` has a lock, which cannot be compiled."""

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        self._function, self.__doc__ = function, function.__doc__
        self.__isabstractmethod__ = getattr(function, "__isabstractmethod__", False)

    @overload
    def __get__(self, terms: None, owner: type) -> Self: ...

    @overload
    def __get__(self, terms: object, owner: type) -> Tensor: ...

    def __get__(self, terms: object, owner: type) -> Self | Tensor:
        if terms is None:
            return self
        value = self._function(terms)
        object.__setattr__(terms, self._function.__name__, value)  # found before this descriptor from now on
        return value


@dataclass(frozen=True)
class ContrastiveTerms(ABC):
    """Alignments and log-partition of a batch of pairs `(x_i, y_i)` with `s(x, y) = scale * cos(x, y)`.

    A model family says through its subclass which candidates it contrasts with; a method reads `positive_alignment`,
    `log_partition` and the functions in `hf_unlearn.losses.functional`, and so never builds the similarity matrix.
    Across processes, candidates are gathered with gradient and each rank computes the rows of its own samples.

    Args:
        x: `[n, d]` first elements (image, first view, query); normalised here, in float32.
        y: `[n, d]` second elements (text, second view, momentum key).
        scale: scalar inverse temperature; the only place where a temperature is applied.
        unit: whether the elements are unit-norm float32 already, as view encoders give them.
    """

    x: Tensor
    y: Tensor
    scale: Tensor
    unit: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.x.shape != self.y.shape:
            raise ValueError(f"both elements must have one shape, got {tuple(self.x.shape)} and {tuple(self.y.shape)}")
        if not self.unit:
            x, y = _Unit.apply(torch.stack([self.x.float(), self.y.float()])).unbind()
            for name, value in (("x", x), ("y", y), ("unit", True)):
                object.__setattr__(self, name, value)
        object.__setattr__(self, "scale", self.scale.float())

    @Quantity
    def cosine(self) -> Tensor:
        """`[n]` raw cosine of each pair, without temperature."""
        return (self.x * self.y).sum(-1)

    @Quantity
    def positive_alignment(self) -> Tensor:
        """`[n]` `s(x_i, y_i)`."""
        return self.scale * self.cosine

    @Quantity
    @abstractmethod
    def log_partition(self) -> Tensor:
        """`[n]` `log sum_y exp s(x_i, y)` over every candidate, averaged over the directions a model contrasts in.

        Read before the positive alignment, it gives that, too: one similarity among those that it is made of.
        """

    def _found(self, alignment: Tensor) -> None:
        vars(self).setdefault("positive_alignment", alignment)

    def repair(self, permutation: Tensor) -> "ContrastiveTerms":
        """The same batch with sample i's second element taken from sample `permutation[i]` (`[n]` int64)."""
        return replace(self, y=self.y[permutation])


@dataclass(frozen=True)
class CrossModalTerms(ContrastiveTerms):
    """CLIP-like dual encoders: image to every text and text to every image of the batch."""

    @Quantity
    def log_partition(self) -> Tensor:
        """`[n]` mean of the image-to-text and the text-to-image log-partition."""
        if world_size() == 1:
            to_text, to_image, alignment = partition_and_alignment(self.x, self.y, self.scale, both=True)
            assert to_image is not None  # asked for
            self._found(alignment)
        else:
            to_text, _ = log_partition(self.x, all_gather(self.y), self.scale)
            to_image, _ = log_partition(self.y, all_gather(self.x), self.scale)
        return (to_text + to_image) / 2


@dataclass(frozen=True)
class TwoViewTerms(ContrastiveTerms):
    """SimCLR (NT-Xent): every view against all other views of the batch, itself left out."""

    @Quantity
    def log_partition(self) -> Tensor:
        """`[n]` mean over the two views of a sample."""
        views = torch.cat([self.x, self.y])
        candidates = views if world_size() == 1 else torch.cat([all_gather(self.x), all_gather(self.y)])
        n, other = len(self.x), len(candidates) // 2  # the second views come after all first ones
        if torch.compiler.is_compiling():  # on one process
            itself = torch.arange(2 * n, device=views.device)
        elif world_size() == 1:
            itself = _places(2 * n, 0, views.device)
        else:
            itself = torch.cat([_places(n, rank() * n + half, views.device) for half in (0, other)])
        rows, _, alignment = partition_and_alignment(views, candidates, self.scale, masked=itself, first=other)
        if world_size() == 1:
            self._found(alignment)
        return rows.view(2, -1).mean(0)


@dataclass(frozen=True)
class QueueTerms(ContrastiveTerms):
    """MoCo: every query against its own key and a queue of earlier keys; gradient through the query only.

    Args:
        queue: `[K, d]` unit-norm keys, the same on every rank.
    """

    queue: Tensor

    @Quantity
    def log_partition(self) -> Tensor:
        """`[n]` over the own key and the queue."""
        rows, _, alignment = partition_and_alignment(self.x, self.queue.float(), self.scale, own=self.y)
        self._found(alignment)
        return rows
