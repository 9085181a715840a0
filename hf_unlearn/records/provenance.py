"""What a run computed with: versions of libraries and hardware; never a machine or user name."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = (
    *("hf-unlearn", "torch", "torchvision", "transformers", "datasets", "accelerate", "peft"),
    *("huggingface_hub", "safetensors", "numpy"),
)


def environment_versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """List the versions of Python and of the libraries that a result can depend on."""
    versions = {"python": platform.python_version()}
    for name in libraries:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # an optional part, or the library run from its sources
            continue
    return versions


def hardware_summary() -> str:
    """Say what the run computed on, such as `1 x NVIDIA H200` or `CPU, 2 cores (x86_64)`; no host or user name."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU, {cores} cores ({platform.machine()})"
