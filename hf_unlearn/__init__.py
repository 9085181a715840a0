"""Machine unlearning for contrastive encoders on the Hugging Face stack.

    from hf_unlearn import AlignmentCalibrationConfig, AlignmentCalibrationTrainer

Names are imported when first used, so that `import hf_unlearn` costs nothing.
"""

import ast
import importlib
from pathlib import Path

from hf_unlearn.models.lazy_families import register_families

__version__ = "0.1.0"

# Name -> module: the stub beside this file is the one list, for type checkers, too.
_EXPORTS = {
    alias.name: str(node.module)
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}

__all__ = ["__version__", *_EXPORTS]

register_families()


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hf_unlearn' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
