"""OpenCLIP's configuration file, preprocessing and tokenizer as CLIP's processor, and back."""

import gzip
import importlib.util
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    CLIPProcessor,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from hf_unlearn.errors import UserError
from hf_unlearn.models.processor_files import TOKENIZER_FILES
from hf_unlearn.models.weights import OPEN_CLIP_CONFIG_NAME
from hf_unlearn.parsing import Fields, read_json

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's, OpenCLIP's defaults
RESAMPLING = {"bicubic": 3, "bilinear": 2}  # PIL's numbers
CLIP_TOKENS, CLIP_END = 49408, 49407  # of CLIP's own tokenizer


def load_open_clip_processor(folder: Path, backend: str | None = None) -> CLIPProcessor:
    """The processor that an OpenCLIP folder describes: its preprocessing, and CLIP's own tokenizer or the one saved.

    Args:
        folder: the checkpoint's.
        backend: of the image processor, `torchvision` or `pil`; default: torchvision.

    Raises:
        UserError: naming what of the preprocessing cannot be mapped, or that there is no tokenizer.
    """
    settings = read_config(folder)
    length = settings["model_cfg"]["text_cfg"].get("context_length", 77)
    image_processor = clip_image_processor(settings, CLIPImageProcessorPil if backend == "pil" else CLIPImageProcessor)
    return CLIPProcessor(image_processor=image_processor, tokenizer=_tokenizer(folder, settings, length))


def read_config(folder: Path) -> Fields:
    """`open_clip_config.json`: `model_cfg` with `vision_cfg` and `text_cfg`, and `preprocess_cfg`."""
    try:
        settings = read_json(folder / OPEN_CLIP_CONFIG_NAME)
        model = settings["model_cfg"]
        model["embed_dim"], model["vision_cfg"]["width"], model["text_cfg"]["width"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder.name}: {OPEN_CLIP_CONFIG_NAME} is damaged ({error}); fetch it again") from error
    return settings


def clip_image_processor(settings: Fields, kind: Any) -> Any:
    """CLIP's image processor, of this class, of OpenCLIP's `preprocess_cfg`."""
    preprocess = settings.get("preprocess_cfg") or {}
    side = preprocess.get("size") or settings["model_cfg"]["vision_cfg"].get("image_size", 224)
    side = side[0] if isinstance(side, list) and len(set(side)) == 1 else side
    mode, resampling = preprocess.get("resize_mode") or "shortest", preprocess.get("interpolation") or "bicubic"
    if not isinstance(side, int) or mode not in ("shortest", "squash") or resampling not in RESAMPLING:
        raise UserError(
            f"{OPEN_CLIP_CONFIG_NAME}: pictures of {side} pixels, {mode}, {resampling} are nothing that CLIP's image "
            "processor can make; save a preprocessor_config.json and a CLIPModel instead"
        )
    square = {"height": side, "width": side}
    return kind(
        size={"shortest_edge": side} if mode == "shortest" else square,
        crop_size=square,
        do_center_crop=mode == "shortest",
        resample=RESAMPLING[resampling],
        image_mean=list(preprocess.get("mean") or MEAN),
        image_std=list(preprocess.get("std") or STD),
    )


def preprocess_config(processor: ProcessorMixin) -> dict[str, object]:
    """OpenCLIP's `preprocess_cfg` of an image processor.

    Raises:
        UserError: when it leaves a step out that OpenCLIP takes, or prepares pictures of another kind.
    """
    images = processor.image_processor
    left_out = [step for step in ("do_resize", "do_rescale", "do_normalize") if not getattr(images, step)]
    if left_out or not math.isclose(images.rescale_factor, 1 / 255):
        told = f"{left_out[0]} false" if left_out else f"rescale_factor {images.rescale_factor:g}"
        raise UserError(f"OpenCLIP cannot prepare pictures with {told}; use another --save_format")
    size = dict(images.size)
    side = size.get("shortest_edge") or size.get("height")
    crop = dict(images.crop_size) if images.do_center_crop else size
    resampling = {number: name for name, number in RESAMPLING.items()}.get(int(images.resample))
    if resampling is None or any(value != side for value in (*size.values(), *crop.values())):
        raise UserError(f"OpenCLIP cannot prepare pictures as {size} and {crop} say; use another --save_format")
    return {
        "size": side,
        "mean": list(images.image_mean),
        "std": list(images.image_std),
        "interpolation": resampling,
        "resize_mode": "shortest" if images.do_center_crop else "squash",
    }


def _tokenizer(folder: Path, settings: Fields, length: int) -> PreTrainedTokenizerBase:
    """The tokenizer saved in the folder, or CLIP's own from the installed `open_clip_torch`."""
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.model_max_length = min(tokenizer.model_max_length, length)
        return tokenizer
    spec = importlib.util.find_spec("open_clip")
    named = settings["model_cfg"]["text_cfg"].get("hf_tokenizer_name")
    if named or spec is None or spec.origin is None:
        source = f"that of {named}" if named else "that of openai/clip-vit-base-patch32, or install open_clip_torch"
        raise UserError(f"{folder.name} holds no tokenizer; save {source}, beside it")
    merges = gzip.decompress((Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode("utf-8")
    return clip_tokenizer(merges.split("\n")[1 : CLIP_TOKENS - 256 - 2 - 256 + 1], length)


def clip_tokenizer(merges: Iterable[str], length: int) -> CLIPTokenizer:
    """CLIP's tokenizer, given the merges of its byte-pair encoding in order, for texts of `length` tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = list(merges)
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(code) for code in visible]
    letters += [chr(256 + i) for i in range(len(ByteLevel.alphabet()) - len(letters))]  # bytes without a glyph
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    pairs: Any = [tuple(merge.split()) for merge in merges]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=length)
