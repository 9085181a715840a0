"""The loss alone: time beside the whole matrix, and memory."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_unlearn.losses import ContrastiveTerms, CrossModalTerms, TwoViewTerms, info_nce
from speed.rounds import Rounds, Row, Setting, Work, growth


def dense_cross_modal(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss over the whole similarity matrix."""
    logits = scale * F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T
    target = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def dense_two_view(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """NT-Xent over the whole similarity matrix."""
    views = F.normalize(torch.cat([x, y]), dim=-1)
    logits = scale * views @ views.T
    logits = logits.masked_fill(torch.eye(len(views), dtype=torch.bool, device=x.device), float("-inf"))
    return F.cross_entropy(logits, (torch.arange(len(views), device=x.device) + len(x)) % len(views))


def _ours(terms: type[ContrastiveTerms], x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return info_nce(terms(x, y, scale))


def _both_passes(loss: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> None:
    for leaf in leaves:
        leaf.grad = None
    loss(*leaves).backward()


def loss_passes(setting: Setting, _: str) -> Iterator[Row]:
    """Both passes of the loss alone over matrices of 4,096 and more similarities a side, of 256 dimensions."""
    sizes = (512,) if setting.small else (4096, 16_384) if setting.cuda else (4096,)
    cases: tuple[tuple[type[Any], Callable[..., Tensor], int], ...] = (
        (CrossModalTerms, dense_cross_modal, 1),
        (TwoViewTerms, dense_two_view, 2),
    )
    blocks, whole = "block-wise", "the whole matrix"
    for rows, (terms, dense, views) in product(sizes, cases):
        x, y = (torch.randn(rows // views, 256, device=setting.device, requires_grad=True) for _ in range(2))
        leaves = (x, y, torch.tensor(14.0, device=setting.device, requires_grad=True))
        contenders: dict[str, Work] = {
            blocks: partial(_both_passes, partial(_ours, terms), leaves),
            whole: partial(_both_passes, dense, leaves),
        }
        title = f"{terms.__name__}, {rows} x {rows} similarities, forward and backward"
        yield Rounds(setting, contenders).compare(title, blocks, whole)


# Both passes of a loss in a process of its own: the recipes' folder, terms, candidates and device are its arguments.
MEMORY = """
import json, sys
import torch
sys.path.insert(0, sys.argv[1])
from speed.rounds import measure
from hf_unlearn import losses
terms, candidates, device = getattr(losses, sys.argv[2]), int(sys.argv[3]), torch.device(sys.argv[4])

def passes(n):
    x, y = (torch.randn(n, 256, device=device).requires_grad_() for _ in range(2))
    x.grad, y.grad = torch.zeros_like(x), torch.zeros_like(y)
    scale = torch.tensor(14.0, device=device, requires_grad=True)
    return lambda: losses.info_nce(terms(x, y, scale), torch.ones(n, device=device)).backward()

passes(64)()  # what is set up on first use is not counted
taken = measure(device, passes(candidates // 2 if terms is losses.TwoViewTerms else candidates))
print(json.dumps([taken.seconds, taken.peak]))
"""


def loss_memory(setting: Setting, _: str) -> Iterator[Row]:
    """Both passes of the loss at more and more candidates of 256 dimensions: peak above embeddings and gradients."""
    sizes = (512, 1024) if setting.small else (8_192, 16_384, 32_768)
    for terms in (CrossModalTerms, TwoViewTerms):
        fixed = [str(Path(__file__).parents[1]), terms.__name__]
        yield from growth(
            setting,
            f"{terms.__name__}, memory above embeddings and gradients (wanted: under 300 MB)",
            "candidates",
            {size: [MEMORY, *fixed, str(size), str(setting.device)] for size in sizes},
        )
