"""A processor's files, read before a loader reads them: what leads elsewhere, or takes all memory that there is."""

import base64
import binascii
import math
import struct

from transformers.utils import cached_file

from hf_unlearn.errors import UserError
from hf_unlearn.parsing import Fields, read_object

PROCESSOR_NAME, AUDIO_NAME = "processor_config.json", "audio_tokenizer_config.json"
CONFIG_NAME, TOKENIZER_NAME = "tokenizer_config.json", "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER_NAME, CONFIG_NAME, "vocab.json", "vocab.txt", "spiece.model")  # any of which makes one
REMEDY = "save the tokenizer that the model was trained with beside it"
MOST_GROWTH = 1_000  # of the bytes of a text; the steps of known tokenizers come to 500 at most
# The most bytes that a step makes of one: in Unicode, and with the spaces that it may put before it.
_GROWTH = {"NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 1.5, "BertNormalizer": 5}
_GROWTH |= {"ByteLevel": 3, "Metaspace": 5, "BertProcessing": 3, "RobertaProcessing": 3}


def check_processor_files(name_or_path: str, revision: str | None = None) -> None:
    """Refuse files of a processor that make a loader read others, or of a tokenizer that take memory without end.

    Each step may lengthen a text a little; what a few dozen of them make of it takes all memory there is, and the
    tokenizers package then aborts.

    Args:
        name_or_path: The folder or Hub id that it is saved in.
        revision: Branch, tag or commit of a Hub model.

    Raises:
        UserError: A file is damaged, names another in its place, or lengthens a text over 1,000 times.
    """

    def content_of(file: str) -> Fields:
        found = cached_file(name_or_path, file, revision=revision, _raise_exceptions_for_missing_entries=False)
        return read_object(found, f"{file} of {name_or_path}", REMEDY)

    if "audio_tokenizer" in content_of(PROCESSOR_NAME) or content_of(AUDIO_NAME):
        raise UserError(f"{name_or_path}: its processor names a model to fetch (audio_tokenizer); remove the field")
    if content_of(CONFIG_NAME).get("fast_tokenizer_files") is not None:
        raise UserError(
            f"{name_or_path}: {CONFIG_NAME} names tokenizers by version (fast_tokenizer_files), and loaders differ on "
            f"which; call the one {TOKENIZER_NAME} and remove the field"
        )
    content = content_of(TOKENIZER_NAME)
    before = _growth(content.get("normalizer")) * _growth(content.get("pre_tokenizer"))
    most = max(before, _growth(content.get("post_processor")), _growth(content.get("decoder")))
    if most > MOST_GROWTH:
        times = f"{most:,.0f}" if most < 1e15 else "endlessly many"
        raise UserError(
            f"{name_or_path}: the steps of {TOKENIZER_NAME} may make a text {times} times as long; {REMEDY}"
        )


def _growth(step: object) -> float:
    """By which factor a step, and every one inside it, may lengthen a text."""
    if isinstance(step, list):
        return math.prod(map(_growth, step))
    if not isinstance(step, dict):
        return 1
    kind = step.get("type")
    if kind == "Replace":
        # A pattern may match nothing at all, and so stand between any two letters.
        literal = step["pattern"].get("String") if isinstance(step.get("pattern"), dict) else None
        added = _length(step.get("content"))
        return max(1, added / _length(literal)) if literal else 1 + added
    if kind == "Prepend":
        return 1 + _length(step.get("prepend"))
    if kind == "Precompiled":
        return 1 + _longest(step.get("precompiled_charsmap"))
    if kind == "TemplateProcessing":
        template, special = step.get("single"), step.get("special_tokens")
        kinds = special.values() if isinstance(special, dict) else ()
        ids = [len(one["ids"]) for one in kinds if isinstance(one, dict) and isinstance(one.get("ids"), list)]
        return max(1, len(template) if isinstance(template, list) else 1) * max([1, *ids])
    return _GROWTH.get(str(kind), 1) * math.prod(map(_growth, step.values()))


def _length(text: object) -> int:
    return len(text.encode(errors="surrogatepass")) if isinstance(text, str) else 0


def _longest(charsmap: object) -> int:
    """Bytes of the longest text that stands in a map of sentencepiece: a tree of given length, then the texts."""
    try:
        data = base64.b64decode(charsmap) if isinstance(charsmap, str) else b""
        return max(map(len, data[4 + struct.unpack("<I", data[:4])[0] :].split(b"\0")))
    except (ValueError, binascii.Error, struct.error):
        return 0  # which the loader refuses
