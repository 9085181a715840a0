"""The hash of a processor: it tells what makes other pixels or tokens, and nothing else."""

import json

import pytest
from transformers import AutoTokenizer, CLIPProcessor

from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.models.effective_settings import processor_hash
from hf_unlearn.models.image_processor import image_processor_of
from hf_unlearn.models.loading import load_image_processor
from hf_unlearn.models.small_clip import build_small_clip


@pytest.fixture
def processor():
    """A processor as it is made, not loaded, whose vocabulary holds two words that name fields of a tokenizer, too."""
    return build_small_clip(["a-version-dtype"] * 9)[1]


def edited(processor, folder, edit):
    """The processor with another content of its tokenizer's file."""
    processor.save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    edit(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return CLIPProcessor(image_processor=processor.image_processor, tokenizer=tokenizer)


def swap(one, other):
    def edit(content):
        vocabulary = content["model"]["vocab"]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    return edit


def test_a_processor_is_known_again_wherever_it_lies_and_whatever_it_was_used_for(processor, tmp_path):
    made = processor_hash(processor)
    processor.tokenizer(["a version"], padding="max_length", max_length=5, truncation=True)
    assert processor_hash(processor) == made
    for place in ("here", "there"):
        processor.save_pretrained(tmp_path / place)
        assert processor_hash(CLIPProcessor.from_pretrained(tmp_path / place)) == made
    views = image_processor_of(VIEW_PRESETS["light"])
    views.save_pretrained(tmp_path / "views")
    assert processor_hash(load_image_processor(str(tmp_path / "views"))) == processor_hash(views) != made


def test_whatever_makes_other_pixels_or_tokens_is_another_processor(processor, tmp_path):
    made = [processor_hash(processor)]
    for name, edit in {
        "letters": swap("a", "b"),
        "words": swap("version", "dtype"),  # which name fields of a file, too
        "steps": lambda content: content.update(normalizer=None),
    }.items():
        made.append(processor_hash(edited(processor, tmp_path / name, edit)))
    for name, value in {"image_mean": [0.0, 0.0, 0.0], "do_center_crop": False, "resample": 0}.items():
        was = getattr(processor.image_processor, name)
        setattr(processor.image_processor, name, value)
        made.append(processor_hash(processor))
        setattr(processor.image_processor, name, was)
    processor.tokenizer.padding_side = "left"
    made.append(processor_hash(processor))
    assert len(set(made)) == len(made)
