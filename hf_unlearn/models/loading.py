"""Load a contrastive encoder and its processor: complete or refused, safetensors only, foreign code only on request."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_unlearn.data.resizing import Processor
from hf_unlearn.errors import UserError
from hf_unlearn.files import refuse_revision
from hf_unlearn.models.adapters import apply_adapter, base_of, find_adapter
from hf_unlearn.models.checkpoint_forms import OPEN_CLIP, TRANSFORMERS, form_of, located
from hf_unlearn.models.contrastive import is_contrastive, is_dual_encoder
from hf_unlearn.models.loading_errors import fields_of, refuse_larger, refuse_many, stored_shapes, told
from hf_unlearn.models.open_clip import clip_config, load_open_clip
from hf_unlearn.models.open_clip_processor import load_open_clip_processor, read_config
from hf_unlearn.models.origin import remember_origin
from hf_unlearn.models.processor_files import TOKENIZER_FILES, check_processor_files
from hf_unlearn.models.processor_fit import check_fit, check_texts
from hf_unlearn.models.weights import has_weights, weight_files
from hf_unlearn.parsing import Fields

logger = logging.getLogger(__name__)

# A name of any other implementation is a Hub repository whose compiled code would be fetched and run.
ATTENTION = (None, "eager", "sdpa", "flex_attention")
SHOWN_TENSORS = 4
# Model types that look like what is served here, what they are, and what would do instead.
OTHER_FAMILIES = {
    "flava": "FLAVA, which embeds a picture and a text as sequences under several losses; use a CLIP, SigLIP or ALIGN",
    "xclip": "X-CLIP, which embeds videos; use a CLIP, and pictures taken from the videos",
    "siglip2": "SigLIP 2 NaFlex, whose pictures keep their shapes; use a SigLIP 2 of fixed resolution, such as "
    "google/siglip2-base-patch16-224, which transformers reads as SigLIP",
    "timm_wrapper": "a timm model in a wrapper; start from the same architecture of transformers with --vision_model",
}


def load_encoder(
    name_or_path: str, revision: str | None = None, trust_remote_code: bool = False, base: str | None = None
) -> tuple[PreTrainedModel, Processor]:
    """Load an encoder in float32 and the processor saved with it, and check that they fit each other.

    Args:
        name_or_path: local folder or Hub id, of a model or of a LoRA adapter.
        revision: branch, tag or commit of a Hub model.
        trust_remote_code: whether code that comes with the model may run.
        base: of an adapter, the folder or Hub id of its base model; default: what the adapter names.

    Returns:
        The model (for an adapter, a `PeftModel`), and its processor (dual encoders) or image processor (SimCLR, MoCo).

    Raises:
        UserError: when there is no such model, a revision is given of a folder, it is no contrastive encoder, its
            weights are pickled or incomplete, its processor is missing or does not fit it, or an adapter's base model
            is missing or another.
    """
    model = load_model(name_or_path, revision, trust_remote_code, base)
    if not is_contrastive(model):
        raise UserError(f"the model {name_or_path} is {_instead(model)}")
    kind = AutoProcessor if is_dual_encoder(model) else AutoImageProcessor
    processor = _beside(kind, "processor", name_or_path, trust_remote_code, revision)
    check_fit(model, processor, name_or_path)
    return model, processor


def load_model(
    name_or_path: str, revision: str | None = None, trust_remote_code: bool = False, base: str | None = None
) -> PreTrainedModel:
    """Load an encoder in float32, as `load_encoder` does, without a processor."""
    refuse_revision(name_or_path, revision)
    model = _load_model(name_or_path, revision, trust_remote_code, base)
    remember_origin(model, name_or_path, revision)
    return model


def _load_model(name_or_path: str, revision: str | None, trust_remote_code: bool, base: str | None) -> PreTrainedModel:
    try:
        if has_weights(name_or_path):
            weight_files(name_or_path)  # an index must not lead out of the folder
    except UserError as error:
        raise UserError(f"the model {name_or_path} cannot be loaded: {error}") from error
    with told(lambda reason: f"the model {name_or_path} cannot be loaded: {reason}", name_or_path):
        adapter = find_adapter(name_or_path, revision)
        if adapter is None:
            place, form = located(name_or_path, revision)
            if form == OPEN_CLIP:
                return load_open_clip(Path(place))
            return _load_complete(place, revision, trust_remote_code)
        named, pinned = (base, None) if base is not None else base_of(adapter)
        # Only code of a model that the user named may run, not that of one which an adapter names.
        pinned = None if Path(named).is_dir() else pinned  # a folder of the Hub's cache has one, which says nothing
        plain = load_model(named, pinned, trust_remote_code and base is not None)
        return apply_adapter(plain, adapter)


def load_image_processor(name_or_path: str, backend: str | None = None, revision: str | None = None) -> Processor:
    """The image processor saved with a model; no code that comes with it runs.

    Args:
        name_or_path: the model's folder or Hub id.
        backend: `torchvision` or `pil`; default: the processor's own.
        revision: branch, tag or commit of a Hub model.

    Raises:
        UserError: when there is none, or a revision is given of a folder.
    """
    refuse_revision(name_or_path, revision)
    return _beside(AutoImageProcessor, "image processor", name_or_path, revision=revision, backend=backend)


def load_tokenizer(model: PreTrainedModel, folder: str, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer saved with a dual encoder, checked to fit it; no code that comes with it runs.

    Args:
        model: the dual encoder.
        folder: where it was loaded from.
        name: what to call it.

    Raises:
        UserError: when the model embeds no texts, or there is no tokenizer, or one that does not fit.
    """
    if not is_dual_encoder(model):
        raise UserError(f"The model '{name}' embeds images alone; leave the captions out.")
    tokenizer = _beside(AutoTokenizer, "tokenizer", folder)
    check_texts(model, tokenizer, name)
    return tokenizer


def load_config(folder: str | Path) -> PreTrainedConfig:
    """The configuration of the model saved in a folder, in transformers' form.

    Raises:
        UserError: when there is none, or it needs code that comes with it.
    """
    with told(lambda reason: f"the configuration of {folder} cannot be read: {reason}", str(folder)):
        place, form = located(str(folder))
        if form == OPEN_CLIP:
            return clip_config(read_config(Path(place))["model_cfg"])
        return AutoConfig.from_pretrained(place, trust_remote_code=False)


def load_preparation(folder: str | Path) -> tuple[Processor, PreTrainedTokenizerBase | None]:
    """The image processor and the tokenizer saved in a folder, whether or not they fit its model; None where none is.

    Raises:
        UserError: when one is damaged.
    """
    texts = form_of(folder) != TRANSFORMERS or any((Path(folder) / name).is_file() for name in TOKENIZER_FILES)
    return load_image_processor(str(folder)), _beside(AutoTokenizer, "tokenizer", str(folder)) if texts else None


def load_vision_model(name_or_path: str, revision: str | None = None) -> PreTrainedModel:
    """A pretrained vision model, complete and in float32, that `from_vision_model` can start SimCLR or MoCo from.

    Raises:
        UserError: when there is no such model, it is incomplete, or it is no encoder of pictures alone.
    """
    model = load_model(name_or_path, revision)
    if is_contrastive(model) or getattr(model, "main_input_name", None) != "pixel_values":
        raise UserError(
            f"--vision_model {name_or_path} is a {type(model).__name__}, no encoder of pictures alone; name one such "
            "as a ViT, DINOv2 or ResNet, or save the vision_model of an image-text model on its own"
        )
    return model


def _beside(
    kind: Any,
    what: str,
    name_or_path: str,
    trust_remote_code: bool = False,
    revision: str | None = None,
    backend: str | None = None,
) -> Any:
    """What is saved beside a model: a processor, or a part of one.

    Without a word on `trust_remote_code`, transformers would ask on the terminal.
    """

    def sentence(reason: str) -> str:
        return f"the {what} of {name_or_path} cannot be loaded: {reason}; save it beside the model"

    with told(sentence, name_or_path):
        place, form = located(name_or_path, revision)
        if kind is not AutoImageProcessor:
            check_processor_files(place, revision)
        if form == OPEN_CLIP:
            processor = load_open_clip_processor(Path(place), backend)
            return {AutoImageProcessor: processor.image_processor, AutoTokenizer: processor.tokenizer}.get(
                kind, processor
            )
        options = {} if backend is None else {"backend": backend}
        return kind.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code, **options)


def _load_complete(name_or_path: str, revision: str | None, trust_remote_code: bool) -> PreTrainedModel:
    """A model each of whose tensors stands in its checkpoint.

    transformers draws missing tensors at random and goes on; two loads of one checkpoint then differ.
    """
    config, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=revision)
    _check_config(name_or_path, config)
    if has_weights(name_or_path) and not trust_remote_code:  # whose code may do as it likes
        parsed = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        random = partial(AutoModel.from_config, trust_remote_code=False)
        refuse_larger(name_or_path, parsed, random, stored_shapes(Path(name_or_path)))
    with without_report("transformers.modeling_utils", "LOAD REPORT"):  # a table of tensors
        model, info = AutoModel.from_pretrained(
            name_or_path,
            use_safetensors=True,
            dtype="float32",
            revision=revision,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    read_as = type(model).__name__
    saved_as = (config.get("architectures") or [read_as])[0]
    other = "" if saved_as == read_as else f"; it was saved as {saved_as}, and is read here as {read_as}"
    if missing:
        raise UserError(
            f"the model {name_or_path} lacks {named_tensors(missing)}, which would be drawn at random"
            f"{_prefix(missing, unexpected) or other}; save the whole {read_as} with save_pretrained"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        more = f" and {len(mismatched) - 1} more" if len(mismatched) > 1 else ""
        raise UserError(
            f"the model {name_or_path} holds {name}{more} of shape {list(stored)} where its config.json asks for "
            f"{list(wanted)}; save weights and config together with save_pretrained"
        )
    if unexpected:
        held = named_tensors(unexpected)
        logger.warning("%s also holds %s, which %s leaves out%s.", name_or_path, held, read_as, other)
    return model


def _check_config(name_or_path: str, config: Fields) -> None:
    """Refuse, before anything is built, what is served under another name, or asks for foreign compiled code."""
    if config.get("model_type") in OTHER_FAMILIES:
        raise UserError(f"the model {name_or_path} is {OTHER_FAMILIES[config['model_type']]}")
    refuse_many(name_or_path, config)
    if config.get("quantization_config"):
        raise UserError(f"the model {name_or_path} is quantised, which cannot be trained; name the model it is made of")
    prefixes = ("attn_implementation", "_attn_implementation")
    for value in (value for name, value in fields_of(config) if name.startswith(prefixes)):
        for implementation in value.values() if isinstance(value, dict) else [value]:
            if implementation not in ATTENTION:
                raise UserError(
                    f"the model {name_or_path} asks for the attention {implementation!r}, code from elsewhere; remove "
                    "attn_implementation from its config.json"
                )


def named_tensors(names: list[str]) -> str:
    """`4 tensors (a, b, c, d)`, the first of them by name."""
    shown = ", ".join(names[:SHOWN_TENSORS]) + (", ..." if len(names) > SHOWN_TENSORS else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown})"


def _prefix(missing: list[str], unexpected: list[str]) -> str:
    """What to say where a wrapper has put a prefix before the names of the tensors."""
    for name in unexpected:
        for wanted in missing:
            if name.endswith(f".{wanted}"):
                prefix = name.removesuffix(wanted)
                return f"; its names begin with {prefix!r}, as those of a wrapped model do: save the model inside"
    return ""


def _instead(model: PreTrainedModel) -> str:
    """What a model is that no contrastive encoder is, and what would do."""
    name = type(model).__name__
    article = "an" if name[0] in "AEIO" else "a"
    if getattr(model, "main_input_name", None) == "pixel_values":
        return (
            f"{article} {name}, which embeds pictures without a contrastive head; start SimCLR or MoCo from it with "
            "--vision_model (SimCLRModel.from_vision_pretrained), or name an image-text model"
        )
    return f"{article} {name}, no contrastive encoder; name a CLIP-like, SimCLR or MoCo model"


@contextmanager
def without_report(reporter: str, words: str) -> Iterator[None]:
    """Leave out what transformers reports of a thing that is dealt with here, or said in a sentence.

    Args:
        reporter: the name of its logger.
        words: of the reports to leave out.
    """
    reporting = logging.getLogger(reporter)

    def no_report(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    reporting.addFilter(no_report)
    try:
        yield
    finally:
        reporting.removeFilter(no_report)
