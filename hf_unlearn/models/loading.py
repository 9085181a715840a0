"""Load a contrastive encoder and its processor: safetensors only, remote code only on request."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, PreTrainedModel

import hf_unlearn.models.moco
import hf_unlearn.models.simclr  # noqa: F401 (both register their families with the Auto classes)
from hf_unlearn.errors import UserError
from hf_unlearn.models.adapters import apply_adapter, base_of, find_adapter
from hf_unlearn.models.contrastive import is_dual_encoder
from hf_unlearn.models.weights import has_weights, weight_files

# What transformers raises on models that are missing, damaged or of no kind it knows.
_FAULTS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError)
CONVERT = (
    "its weights are pickled, which can run code when they are loaded, and are refused: where you trust them, load "
    "them with transformers and use_safetensors=False, and call save_pretrained"
)


def load_encoder(
    name_or_path: str, revision: str | None = None, trust_remote_code: bool = False, base: str | None = None
) -> tuple[PreTrainedModel, Any]:
    """Load an encoder in float32 and the processor saved with it.

    Args:
        name_or_path: local folder or Hub id, of a model or of a LoRA adapter.
        revision: branch, tag or commit of a Hub model.
        trust_remote_code: whether code that comes with the model may run.
        base: of an adapter, the folder or Hub id of its base model; default: what the adapter names.

    Returns:
        The model (for an adapter, a `PeftModel`), and its processor (dual encoders) or image processor (SimCLR, MoCo).

    Raises:
        UserError: when there is no such model, its weights are pickled, its processor is missing, or an adapter's base
            model is missing or another.
    """
    model = load_model(name_or_path, revision, trust_remote_code, base)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        processor_class = AutoProcessor if is_dual_encoder(model) else AutoImageProcessor
        processor = processor_class.from_pretrained(name_or_path, **options)
    except _FAULTS as error:
        raise UserError(
            f"the processor of {name_or_path} cannot be loaded: {_first_line(error)}; save it beside the model"
        ) from error
    return model, processor


def load_model(
    name_or_path: str, revision: str | None = None, trust_remote_code: bool = False, base: str | None = None
) -> PreTrainedModel:
    """Load an encoder in float32, as `load_encoder` does, without a processor."""
    if has_weights(name_or_path):
        weight_files(name_or_path)  # an index must not lead out of the folder
    try:
        adapter = find_adapter(name_or_path, revision)
        if adapter is None:
            return AutoModel.from_pretrained(
                name_or_path,
                use_safetensors=True,
                dtype="float32",
                revision=revision,
                trust_remote_code=trust_remote_code,
            )
        named, pinned = (base, None) if base is not None else base_of(adapter)
        # Only code of a model that the user named may run, not that of one which an adapter names.
        plain = load_model(named, pinned, trust_remote_code and base is not None)
        return apply_adapter(plain, adapter)
    except UserError:
        raise
    except _FAULTS as error:
        raise UserError(f"the model {name_or_path} cannot be loaded: {_reason(name_or_path, error)}") from error


def _reason(name_or_path: str, error: Exception) -> str:
    if _is_pickled(name_or_path, error):
        return CONVERT
    if "Repo id must" in str(error):  # the client's words for what could not be a name
        return "there is no such folder, and it is no Hub id (owner/name); name one or the other"
    if "trust_remote_code" in str(error):
        return "it needs code that comes with it; read that code, and pass --trust_remote_code if you trust it"
    return _first_line(error)


def _is_pickled(name_or_path: str, error: Exception) -> bool:
    """Whether a model failed to load because its weights are pickled."""
    folder = Path(name_or_path)
    if folder.exists():
        pickled = any(any(folder.glob(f"*.{kind}")) for kind in ("bin", "pt", "pth", "ckpt"))
        return pickled and folder.is_dir() and not has_weights(folder)
    return "safetensors" in str(error) or "pytorch_model.bin" in str(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
