"""Whether a model can be set beside others: it must read rows as its base does, and its record may speak against it."""

from copy import deepcopy
from types import SimpleNamespace

import pytest

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.errors import UserError
from hf_unlearn.models.image_processor import image_processor_of
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel
from hf_unlearn.models.small_clip import train_tokenizer
from hf_unlearn.records.schemas import RequestRecord, UnlearningManifest
from hf_unlearn.runs.comparable import record_doubts, refuse_other_reading
from hf_unlearn.training.rows import make_preprocessor


@pytest.fixture(scope="module")
def clip(tiny_clip):
    return load_encoder(str(tiny_clip))


def other_words(processor):
    processor.tokenizer = train_tokenizer(["a red circle", "triangle of size 4"])


def other_tokens(processor):
    processor.tokenizer.add_tokens("circle")
    vocabulary = processor.tokenizer.get_vocab()
    processor.tokenizer.get_vocab = lambda: {w: n for w, n in vocabulary.items() if n < len(vocabulary) - 1}


def another_mean(processor):
    processor.image_processor.image_mean = [0.4, 0.5, 0.5]


def another_crop(processor):
    processor.image_processor.resample = 0


OTHERS = [
    (other_words, r"its tokenizer has other tokens \(\d+, the base's \d+\), or other numbers for them"),
    (other_tokens, "its tokenizer makes other tokens of the same captions"),
    (another_mean, "its image processor's mean is 0.4, 0.5, 0.5, the base's 0"),
    (another_crop, "its image processor resizes or crops otherwise"),
]


@pytest.mark.parametrize(("change", "told"), OTHERS)
def test_what_is_read_otherwise_is_named(change, told, clip, shapes):
    model, processor = clip
    base = make_preprocessor(model, processor, DataConfig())
    refuse_other_reading("it", make_preprocessor(model, deepcopy(processor), DataConfig()), base, shapes)
    changed = deepcopy(processor)
    own = make_preprocessor(model, changed, DataConfig())
    change(changed)
    own = type(own)(changed, own.max_length, masked=own.masked)
    with pytest.raises(
        UserError, match=f"it does not read rows as the base model does, .*{told}.*; name the base model"
    ):
        refuse_other_reading("it", own, base, shapes)


def test_a_model_of_views_is_no_model_of_pairs(clip, shapes):
    views = SimCLRModel(SimCLRConfig(stem="imagenet", width=4, projection_dim=8))
    own = make_preprocessor(views, image_processor_of(VIEW_PRESETS["light"]), DataConfig())
    told = "it embeds views of pictures, and the base model pictures and texts; name its own base model"
    with pytest.raises(UserError, match=told):
        refuse_other_reading("it", own, make_preprocessor(*clip, DataConfig()), shapes)


@pytest.mark.parametrize(
    ("base", "asked", "told"),
    [
        ("b", RequestRecord("fraction", 3, "r"), None),
        (None, RequestRecord("file", 3, "r"), None),
        ("b", RequestRecord("file", 3, "a salt's", salted=True), None),
        ("b", RequestRecord("fraction", 9, "s"), "another request than these Retrains have"),
        ("c", RequestRecord("fraction", 9, "s"), "another base model and another request than these Retrains have"),
    ],
)
def test_a_record_of_another_base_model_or_request_is_told(base, asked, told, tmp_path, monkeypatch):
    assert record_doubts(tmp_path, "b", RequestRecord("file", 3, "r"), "these Retrains have") == ()  # without a record
    (tmp_path / "unlearning.json").write_text("{}")
    record = SimpleNamespace(base_model=SimpleNamespace(sha256=base), request=asked)
    monkeypatch.setattr(UnlearningManifest, "load", lambda folder: record)
    doubts = record_doubts(tmp_path, "b", RequestRecord("file", 3, "r"), "these Retrains have")
    assert doubts == (() if told is None else (f"Its record names {told}: the figures tell little of it.",))
