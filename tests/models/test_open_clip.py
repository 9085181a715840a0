"""OpenCLIP's checkpoints, made by OpenCLIP, give the same embeddings here; what is saved here, OpenCLIP reads."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_unlearn.errors import UserError
from hf_unlearn.models.checkpoint_forms import save_encoder
from hf_unlearn.models.loading import load_encoder

VISION = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
MODEL = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}
KINDS = {
    "gelu": {},
    "quick_gelu": {"quick_gelu": True},
    "a text tower of its own": {"custom_text": True},
    "the end token by its number": {"text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 49407}},
    "another ratio": {"vision_cfg": {**VISION, "mlp_ratio": 2.0, "head_width": 8}},
}
CAPTIONS = ["two dogs", "A Photo, of the SEA!", "an unbelievably long caption about a great many different things", "é"]


def made_by_open_clip(folder: Path, **changes) -> open_clip.CLIP:
    """A model of random weights in OpenCLIP's form, in a folder."""
    model_cfg = MODEL | changes
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {"size": 16, "mean": [0.4] * 3, "std": [0.3] * 3}})
    )
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if model_cfg.get("custom_text") else open_clip.CLIP
    model = kind(**{name: value for name, value in model_cfg.items() if name != "custom_text"}).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.05)  # biases start at zero, and would hide a mistake
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return model


@torch.no_grad()
def agree(theirs, ours, tokens: torch.Tensor) -> None:
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    outputs = ours(pixel_values=pixels, input_ids=tokens)
    images, texts = theirs.encode_image(pixels), theirs.encode_text(tokens)
    torch.testing.assert_close(ours.get_image_features(pixels).pooler_output, images, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.get_text_features(tokens).pooler_output, texts, atol=1e-5, rtol=1e-5)
    images, texts = (torch.nn.functional.normalize(half, dim=-1) for half in (images, texts))
    logits = theirs.logit_scale.exp() * images @ texts.T
    torch.testing.assert_close(outputs.logits_per_image, logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_to_five_digits(kind, tmp_path):
    theirs = made_by_open_clip(tmp_path, **KINDS[kind])
    ours, processor = load_encoder(str(tmp_path))
    tokens = open_clip.SimpleTokenizer(context_length=12)(CAPTIONS)
    agree(theirs, ours.eval(), tokens)
    back = tmp_path / "back"
    save_encoder(ours, processor, back, "open_clip")
    assert not (back / "model.safetensors").exists()  # in the form it came in
    again, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{back}")
    agree(again.eval(), ours, tokens)
    assert preprocess.transforms[-1].mean == (0.4,) * 3 or list(preprocess.transforms[-1].mean) == [0.4] * 3
    reloaded, _ = load_encoder(str(back))
    assert all(value.equal(ours.state_dict()[name]) for name, value in reloaded.state_dict().items())


def test_captions_and_pictures_are_prepared_as_there(tmp_path):
    made_by_open_clip(tmp_path)
    _, processor = load_encoder(str(tmp_path))
    tokens = processor.tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    theirs = open_clip.SimpleTokenizer(context_length=12)(CAPTIONS)
    for ours, expected in zip(tokens["input_ids"], theirs, strict=True):
        end = int(expected.argmax())
        assert ours[: end + 1].equal(expected[: end + 1]) and int(ours.argmax()) == end
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    ours = processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]
    assert (ours - preprocess(picture)).abs().max() < 0.02  # torchvision resizes bytes, Pillow too, in other rounding


REFUSED = {
    "a timm tower": (
        {"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224", "width": 1}},
        "the timm model vit",
    ),
    "a text tower of elsewhere": ({"text_cfg": {"hf_model_name": "roberta-base", "width": 1}}, "roberta-base"),
    "a ResNet": ({"vision_cfg": {**VISION, "layers": [3, 4, 6, 3]}}, r"vision_cfg.layers = \[3, 4, 6, 3\]"),
    "layer scale": ({"vision_cfg": {**VISION, "ls_init_value": 0.1}}, "vision_cfg.ls_init_value"),
    "attentional pooling": ({"vision_cfg": {**VISION, "attentional_pool": True}}, "vision_cfg.attentional_pool"),
    "the last token": ({"text_cfg": {**TEXT, "pool_type": "last"}}, "text_cfg.pool_type = 'last'"),
    "no causal mask": ({"text_cfg": {**TEXT, "no_causal_mask": True}}, "text_cfg.no_causal_mask"),
    "a bias of the logits": ({"init_logit_bias": -10}, "model_cfg.init_logit_bias"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_mapped_is_refused_by_name(kind, tmp_path):
    changes, words = REFUSED[kind]
    made_by_open_clip(tmp_path)
    settings = json.loads((tmp_path / "open_clip_config.json").read_text())
    settings["model_cfg"] |= changes
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=words) as told:
        load_encoder(str(tmp_path))
    assert "\n" not in str(told.value)


def test_tensors_that_are_missing_or_left_over_are_named(tmp_path):
    made_by_open_clip(tmp_path)
    weights = load_file(tmp_path / "open_clip_model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "ln_final.bias"}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"lacks text_model\.final_layer_norm\.bias"):
        load_encoder(str(tmp_path))
    save_file(weights | {"logit_bias": torch.zeros(())}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match="has no place for logit_bias"):
        load_encoder(str(tmp_path))


def test_pickled_weights_are_refused(tmp_path):
    model = made_by_open_clip(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match="pickled"):
        load_encoder(str(tmp_path))
