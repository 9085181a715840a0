"""A processor's files lead nowhere else, and their steps do not take all memory there is, which aborts the process."""

import base64
import json
import string
import struct
from pathlib import Path

import pytest

from hf_unlearn.errors import UserError
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.processor_files import check_processor_files


def replaced(pattern: dict, content: str, times: int) -> dict:
    return {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": pattern, "content": content}] * times}


def charsmap(longest: int) -> str:
    return base64.b64encode(struct.pack("<I", 4) + bytes(4) + b"a\0" + b"b" * longest + b"\0").decode()


TWICE = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}] * 2, "special_tokens": {}}
MULTIPLYING = {
    "replacements": {"normalizer": replaced({"String": "a"}, "aa", 40)},
    "what stands between any two letters": {"normalizer": replaced({"Regex": ""}, "a" * 9, 4)},
    "a long prefix": {"normalizer": {"type": "Prepend", "prepend": "a" * 2000}},
    "a map to long texts": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap(2000)}},
    "bytes as letters": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 9}},
    "both together": {
        "normalizer": {"type": "Prepend", "prepend": "a" * 400},
        "pre_tokenizer": {"type": "ByteLevel"},
    },
    "templates": {"post_processor": {"type": "Sequence", "processors": [TWICE] * 20}},
    "decoders": {"decoder": {"type": "Sequence", "decoders": replaced({"String": "a"}, "aa", 40)["normalizers"]}},
}
USUAL = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            *({"type": "Replace", "pattern": {"String": mark}, "content": ""} for mark in string.punctuation),
            {"type": "Precompiled", "precompiled_charsmap": charsmap(36)},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ],
    },
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    },
}


@pytest.mark.parametrize("steps", MULTIPLYING.values(), ids=MULTIPLYING)
def test_steps_that_multiply_are_refused(steps, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(steps))
    with pytest.raises(UserError, match="times as long"):
        check_processor_files(str(tmp_path))


def test_the_steps_of_known_tokenizers_pass(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(USUAL))
    check_processor_files(str(tmp_path))  # 37 of the map, 2 of the spaces, 5 of the marks: 370, and 1,000 may be
    marks = {"type": "Sequence", "pretokenizers": [USUAL["pre_tokenizer"]] * 2}
    path.write_text(json.dumps({**USUAL, "pre_tokenizer": marks}))
    with pytest.raises(UserError, match="may make a text 1,850 times as long"):
        check_processor_files(str(tmp_path))


def test_what_a_model_comes_with_is_checked_before_it_is_loaded(folder: Path):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **MULTIPLYING["replacements"]}))
    with pytest.raises(UserError, match=r"clip: the steps of tokenizer.json may make a text"):
        load_encoder(str(folder))


def test_a_tokenizer_that_only_some_loaders_read_is_refused(folder: Path):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fast_tokenizer_files": ["../tokenizer.1.0.json"]}))
    with pytest.raises(UserError, match="fast_tokenizer_files"):
        load_encoder(str(folder))


def test_a_processor_fetches_no_model_of_its_own(folder: Path):
    """transformers would load whatever is named, and ask on the terminal whether its code may run."""
    path = folder / "processor_config.json"
    named = {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": "org/evil"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "audio_tokenizer": named}))
    with pytest.raises(UserError, match="names a model to fetch"):
        load_encoder(str(folder))


def test_a_pattern_that_the_tokenizer_gives_up_on_is_one_sentence(folder: Path):
    """It ends in an exception that is no `Exception`."""
    path = folder / "tokenizer.json"
    slow = replaced({"Regex": r"([a-z ]+)+[0-9]"}, "", 1)
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": slow}))
    with pytest.raises(UserError, match="gave up on a text"):
        load_encoder(str(folder))
