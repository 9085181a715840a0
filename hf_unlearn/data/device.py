"""Small values that a step needs on its device, put there without making the host wait for the device."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The values on `device`; CUDA stages them before the call returns, so `values` may be changed or freed then."""
    return values.to(device, non_blocking=device.type == "cuda")


def kept(values: npt.ArrayLike, device: torch.device) -> Tensor:
    """Constants as float32 on `device`, for a cache: not to be changed in place."""
    with torch.inference_mode(False):  # what is kept must serve training, too, whoever asked for it first
        return torch.tensor(np.asarray(values), dtype=torch.float32, device=device)


@lru_cache(maxsize=64)
def per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`[c, 1, 1]` float32 on `device`, copied there once and then kept."""
    return kept(values, device).view(-1, 1, 1)
