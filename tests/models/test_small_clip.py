"""The embedded CLIP reads whole captions, and one that does not is told of."""

import json
import logging

import pytest
import torch
from transformers import AutoTokenizer

from hf_unlearn.models.contrastive import embed_texts
from hf_unlearn.models.processor_fit import check_fit
from hf_unlearn.models.small_clip import build_small_clip

CAPTIONS = ["flag of albania", "flag of algeria", "grinning cat", "grinning face with a hat"]


def embedded(model, tokenizer, texts):
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    return embed_texts(model.eval(), **tokens)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return build_small_clip(CAPTIONS)


@pytest.mark.parametrize("text", CAPTIONS)
def test_every_word_of_a_caption_counts(clip, text):
    """As transformers' CLIP reads a text: up to the first end token, or the greatest one where its number is 2."""
    model, processor = clip
    words = text.split()
    others = [" ".join([*words[:i], "sea", *words[i + 1 :]]) for i in range(len(words))]
    with torch.no_grad():
        own, *changed = embedded(model, processor.tokenizer, [text, *others])
    assert all((own - other).abs().max() > 1e-3 for other in changed)


def test_a_clip_that_reads_up_to_the_greatest_token_is_told_of(clip, tmp_path, caplog):
    model, processor = clip
    processor.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text().replace('"<|endoftext|>"', '"<end>"').replace('"<pad>"', '"<|endoftext|>"'))
    content = json.loads(json.dumps(content).replace('"<end>"', '"<pad>"'))  # token 2 ends a text, and 1 pads it
    content["post_processor"]["special_tokens"]["<|endoftext|>"] = {
        "id": "<|endoftext|>",
        "ids": [2],
        "tokens": ["<|endoftext|>"],
    }
    content["post_processor"]["single"][-1]["SpecialToken"]["id"] = "<|endoftext|>"
    file.write_text(json.dumps(content))
    processor = type(processor)(processor.image_processor, AutoTokenizer.from_pretrained(tmp_path))
    assert processor.tokenizer("a cat")["input_ids"][-1] == processor.tokenizer.eos_token_id == 2
    for module in (model, model.text_model):
        module.eos_token_id = 2
    with caplog.at_level(logging.WARNING, "hf_unlearn"):
        for _ in range(2):
            check_fit(model, processor, "org/clip")
    assert caplog.text.count("org/clip reads a text up to its greatest token") == 1
