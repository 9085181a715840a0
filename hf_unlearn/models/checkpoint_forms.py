"""In which form a checkpoint lies, and is saved: transformers' own, OpenCLIP's, or sentence-transformers'."""

import json
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import CLIPModel, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from hf_unlearn.data.resizing import Processor
from hf_unlearn.errors import UserError, listed
from hf_unlearn.models.adapters import is_adapted
from hf_unlearn.models.open_clip import open_clip_settings, save_open_clip
from hf_unlearn.models.weights import CLIP_MODULE, OPEN_CLIP_CONFIG_NAME, SENTENCE_CONFIG_NAME
from hf_unlearn.parsing import read_json

TRANSFORMERS, OPEN_CLIP, SENTENCE_TRANSFORMERS = FORMS = ("transformers", "open_clip", "sentence_transformers")
FETCHED = ["*.json", "*.txt", "*.model", "*.safetensors"]  # never pickles, never code


def form_of(folder: str | Path) -> str:
    """The form of a checkpoint in a folder; one that has transformers' form beside another has transformers'."""
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return TRANSFORMERS
    if (folder / OPEN_CLIP_CONFIG_NAME).is_file():
        return OPEN_CLIP
    return SENTENCE_TRANSFORMERS if (folder / SENTENCE_CONFIG_NAME).is_file() else TRANSFORMERS


def located(name_or_path: str, revision: str | None = None) -> tuple[str, str]:
    """Where a checkpoint is read from, and its form: a Hub id of transformers' form stays one, others are fetched.

    Raises:
        OSError: when there is no such repository.
        UserError: when the modules of a sentence-transformers model are no CLIP, or a file might never end.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        if cached_file(name_or_path, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False):
            return name_or_path, TRANSFORMERS
        folder = Path(snapshot_download(name_or_path, revision=revision, allow_patterns=FETCHED))
    form = form_of(folder)
    place = clip_module(folder) if form == SENTENCE_TRANSFORMERS else folder
    _refuse_endless(place)
    if form == SENTENCE_TRANSFORMERS:
        return str(place), form
    return (str(folder) if form == OPEN_CLIP else name_or_path), form


def _refuse_endless(folder: Path) -> None:
    """Loaders open whatever has the name of a file of theirs, and a pipe or a device never ends."""
    if odd := [path.name for path in folder.iterdir() if path.exists() and not (path.is_file() or path.is_dir())]:
        raise UserError(f"{folder.name} holds {listed(odd)}, which is no regular file; put the file itself there")


def clip_module(folder: Path) -> Path:
    """The folder, within one of sentence-transformers, that holds its CLIP in transformers' form.

    Raises:
        UserError: when its modules are others, or lead out of the folder.
    """
    try:
        modules = read_json(folder / SENTENCE_CONFIG_NAME)
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        path = str(modules[0]["path"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{folder.name}: {SENTENCE_CONFIG_NAME} is damaged ({error}); fetch it again") from error
    if kinds[0] != "CLIPModel" or any(kind != "Normalize" for kind in kinds[1:]):
        raise UserError(
            f"{folder.name} is a model of sentence-transformers that consists of {', '.join(kinds)}; of these, only a "
            "CLIPModel embeds pictures and texts: name one such as sentence-transformers/clip-ViT-B-32"
        )
    if not path or Path(path).name != path or not (folder / path).is_dir():
        raise UserError(
            f"{folder.name}: {SENTENCE_CONFIG_NAME} names no folder of its own, but {path!r}; fetch it anew"
        )
    return folder / path


def check_form(model: object, form: str, adapted: bool = False, processor: Processor | None = None) -> None:
    """Refuse, before anything is trained, a form that a model, its adapter or its processor cannot be saved in."""
    if form not in FORMS:
        raise UserError(f"--save_format {form} is unknown; choose one of {', '.join(FORMS)}")
    if form != TRANSFORMERS and (adapted or not isinstance(model, CLIPModel)):
        what = "an adapter" if adapted else f"a {type(model).__name__}"
        raise UserError(f"--save_format {form} holds a whole CLIPModel, not {what}; use transformers")
    if form == OPEN_CLIP and processor is not None:
        open_clip_settings(model, processor)  # type: ignore[arg-type]  # checked above


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
        save_open_clip(model, processor, folder)  # type: ignore[arg-type]  # checked above
        return
    if form == SENTENCE_TRANSFORMERS:
        module = {"idx": 0, "name": "0", "path": CLIP_MODULE, "type": "sentence_transformers.models.CLIPModel"}
        (folder / SENTENCE_CONFIG_NAME).write_text(json.dumps([module], indent=2) + "\n", encoding="utf-8")
        folder = folder / CLIP_MODULE
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def stored_dtype(name_or_path: str, revision: str | None = None) -> str:
    """The floating type that a checkpoint of transformers' form says it is stored in; float32 if it does not say."""
    try:
        content, _ = PretrainedConfig.get_config_dict(name_or_path, revision=revision)
    except OSError:  # an adapter has no config of its own
        return "float32"
    stored = str(content.get("dtype") or content.get("torch_dtype")).removeprefix("torch.")
    return stored if stored in ("bfloat16", "float16") else "float32"
