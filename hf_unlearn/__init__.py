"""Machine unlearning for contrastive encoders on the Hugging Face stack.

    from hf_unlearn import AlignmentCalibrationConfig, AlignmentCalibrationTrainer

Names are imported when first used, so that `import hf_unlearn` costs nothing.
"""

import importlib
from typing import Any

from hf_unlearn.models.lazy_families import register_families

__version__ = "0.1.0"

_METHODS = (
    *("Retrain", "FineTune", "GradientAscent", "NegGrad", "L1Sparsity", "AlignmentCalibration"),
    *("TargetedCalibration", "NPO", "SCRUB", "TaskVector", "SSD", "SLUG"),
    "Unlearning",
)
_EXPORTS = {
    **{f"{name}{kind}": "methods" for name in _METHODS for kind in ("Config", "Trainer")},
    "METHODS": "methods",
    "PAPER_METHODS": "methods",
    "load_openmoji": "data.openmoji",
    "load_source": "data.sources",
    "make_splits": "data.splits",
    "load_encoder": "models.loading",
    "SimCLRConfig": "models.simclr",
    "SimCLRModel": "models.simclr",
    "MoCoConfig": "models.moco",
    "MoCoModel": "models.moco",
    "run_audit": "audit.run",
    "publish_run": "hub.publishing",
    "verify_repo": "hub.verification",
    "UserError": "errors",
}

__all__ = ["__version__", *_EXPORTS]

register_families()


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hf_unlearn' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"hf_unlearn.{_EXPORTS[name]}"), name)
    if name.endswith("Trainer"):
        # Publishing needs the layers above the methods; whoever takes a Trainer from here gets `push_to_hub` with them.
        importlib.import_module("hf_unlearn.runs.publishing")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
