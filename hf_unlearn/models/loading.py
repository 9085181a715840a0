"""Load a contrastive encoder and its processor: safetensors only, remote code only on request."""

from typing import Any

from transformers import AutoImageProcessor, AutoModel, AutoProcessor, PreTrainedModel

import hf_unlearn.models.moco
import hf_unlearn.models.simclr  # noqa: F401 (both register their families with the Auto classes)
from hf_unlearn.errors import UserError
from hf_unlearn.models.contrastive import is_dual_encoder


def load_encoder(
    name_or_path: str, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, Any]:
    """Load an encoder in float32 and the processor saved with it.

    Args:
        name_or_path: local folder or Hub id.
        revision: branch, tag or commit of a Hub model.
        trust_remote_code: whether code that comes with the model may run.

    Returns:
        The model, and its processor (dual encoders) or image processor (SimCLR, MoCo).

    Raises:
        UserError: when there is no such model, its weights are pickled, or its processor is missing.
    """
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        model = AutoModel.from_pretrained(name_or_path, use_safetensors=True, dtype="float32", **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if "safetensors" in str(error) or "pytorch_model.bin" in str(error):
            reason += " (pickled weights are refused: load them once where you trust them and save_pretrained again)"
        raise UserError(f"the model {name_or_path} cannot be loaded: {reason}") from error
    try:
        processor_class = AutoProcessor if is_dual_encoder(model) else AutoImageProcessor
        processor = processor_class.from_pretrained(name_or_path, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the processor of {name_or_path} cannot be loaded: {reason}; save it beside the model"
        ) from error
    return model, processor
