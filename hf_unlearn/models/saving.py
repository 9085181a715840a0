"""Save an encoder and its processor in the form that those who use it read."""

import json
from pathlib import Path

from transformers import CLIPModel, PreTrainedModel

from hf_unlearn.data.resizing import Processor
from hf_unlearn.errors import UserError
from hf_unlearn.models.adapters import is_adapted
from hf_unlearn.models.checkpoint_forms import FORMS, OPEN_CLIP, SENTENCE_TRANSFORMERS, TRANSFORMERS
from hf_unlearn.models.weights import CLIP_MODULE, SENTENCE_CONFIG_NAME


def check_form(model: object, form: str, adapted: bool = False) -> None:
    """Refuse, before anything is trained, a form that a model, or its adapter, cannot be saved in."""
    if form not in FORMS:
        raise UserError(f"--save_format {form} is unknown; choose one of {', '.join(FORMS)}")
    if form != TRANSFORMERS and (adapted or not isinstance(model, CLIPModel)):
        what = "an adapter" if adapted else f"a {type(model).__name__}"
        raise UserError(f"--save_format {form} holds a whole CLIPModel, not {what}; use transformers")


def save_encoder(model: PreTrainedModel, processor: Processor, folder: str | Path, form: str = TRANSFORMERS) -> None:
    """Write a model and its processor into a folder.

    Args:
        model: the encoder; an adapter is saved as one.
        processor: its processor.
        folder: made if it is not there.
        form: `transformers`, `open_clip` or `sentence_transformers`, whose CLIP lies in a folder of its own.

    Raises:
        UserError: when the form cannot hold the model, or its preprocessing.
    """
    check_form(model, form, is_adapted(model))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if form == OPEN_CLIP:
        from hf_unlearn.models.open_clip import save_open_clip

        save_open_clip(model, processor, folder)  # type: ignore[arg-type]  # checked above
        return
    if form == SENTENCE_TRANSFORMERS:
        module = {"idx": 0, "name": "0", "path": CLIP_MODULE, "type": "sentence_transformers.models.CLIPModel"}
        (folder / SENTENCE_CONFIG_NAME).write_text(json.dumps([module], indent=2) + "\n", encoding="utf-8")
        folder = folder / CLIP_MODULE
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
