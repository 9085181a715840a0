"""Counting what a piece of code launches, and where the host would wait for the device: the same on every machine."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that make another view of the same numbers, and marks for the profiler: they launch nothing.
NO_KERNELS = (
    "alias", "as_strided", "detach", "expand", "lift", "permute", "profiler.", "select", "slice", "split", "squeeze",
    "t.", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view",
)  # fmt: skip
# A value read on the host, or a size that depends on values.
WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique",
    "equal",
    "is_nonzero",
    "item",
    "repeat_interleave.Tensor",
)


class Kernels(TorchDispatchMode):
    """Counts operations that launch work, and names those that would make the host wait for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function).removeprefix("aten.")
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        masked = any(getattr(index, "dtype", None) in (torch.bool, torch.uint8) for index in indices)
        self.seen[name + " by a mask" if masked else name] += 1
        return function(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        """Operations that launch work."""
        return sum(count for name, count in self.seen.items() if not name.startswith(NO_KERNELS))

    @property
    def waits(self) -> list[str]:
        """Names of operations that the host waits for."""
        return [name for name in self.seen if name.startswith(WAITS) or name.endswith(" by a mask")]
