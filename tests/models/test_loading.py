"""A checkpoint is complete or refused, fits what lies beside it or says what does not, and brings no code along."""

import json
import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    FlavaConfig,
    Siglip2Config,
    TimmWrapperConfig,
    ViTConfig,
    ViTForImageClassification,
    XCLIPConfig,
)

from hf_unlearn.audit.encoders import LocalEncoder
from hf_unlearn.errors import UserError
from hf_unlearn.models.loading import load_encoder, load_model, load_vision_model
from hf_unlearn.models.moco import MoCoConfig, MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel

WAYS = {"run, evaluate and Python": load_encoder, "audit": lambda folder: LocalEncoder(folder, device="cpu")}
SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def with_weights(folder: Path, change) -> None:
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_config(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def without(*names: str):
    return lambda weights: {key: value for key, value in weights.items() if not key.startswith(names)}


MISSING = {
    "the temperature": (without("logit_scale"), "lacks 1 tensor (logit_scale)"),
    "a projection": (without("text_projection"), "lacks 1 tensor (text_projection.weight)"),
    "the vision encoder": (without("vision_model."), "lacks 39 tensors (vision_model."),
    "the text encoder": (without("text_model."), "lacks 20 tensors (text_model."),
    "a prefix": (lambda weights: {f"module.{k}": v for k, v in weights.items()}, "names begin with 'module.'"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", MISSING)
def test_missing_tensors_are_refused_by_name(kind, way, folder):
    change, words = MISSING[kind]
    with_weights(folder, change)
    with pytest.raises(UserError) as told:
        WAYS[way](str(folder))
    assert words in str(told.value) and "drawn at random" in str(told.value) and "\n" not in str(told.value)


def test_a_missing_queue_is_refused_too(tmp_path):
    MoCoModel(MoCoConfig(width=4, queue_size=8)).save_pretrained(tmp_path)
    with_weights(tmp_path, without("queue"))
    with pytest.raises(UserError, match=r"lacks 2 tensors \(queue, queue_pointer\)"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("way", WAYS)
def test_tensors_of_another_shape_are_refused_by_name(way, folder):
    with_weights(folder, lambda w: w | {"visual_projection.weight": torch.zeros(8, 128)})
    with pytest.raises(UserError, match=r"visual_projection\.weight of shape \[8, 128\] where .* \[64, 128\]"):
        WAYS[way](str(folder))


def test_tensors_nobody_asked_for_are_named_and_the_rest_is_loaded(folder, caplog, capfd):
    expected = load_model(str(folder)).state_dict()
    with_weights(folder, lambda w: w | {"classifier.weight": torch.zeros(3, 3)})
    with caplog.at_level(logging.WARNING):
        model = load_model(str(folder))
    assert "also holds 1 tensor (classifier.weight), which CLIPModel leaves out" in caplog.text
    assert "LOAD REPORT" not in caplog.text + capfd.readouterr().err
    assert all(value.equal(expected[name]) for name, value in model.state_dict().items())


def test_a_model_that_is_read_as_another_is_refused(tmp_path):
    text = {**SMALL, "vocab_size": 30, "max_position_embeddings": 8, "encoder_hidden_size": 8}
    vision = {**SMALL, "image_size": 16, "patch_size": 8}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=4, image_text_hidden_size=4)
    BlipForImageTextRetrieval(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks .* saved as BlipForImageTextRetrieval, and is read here as BlipModel"):
        load_encoder(str(tmp_path))


def test_half_precision_is_loaded_in_float32(folder):
    CLIPModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert load_model(str(folder)).dtype == torch.float32


VISION = {
    "DINOv2": lambda: Dinov2Model(Dinov2Config(**SMALL, image_size=16, patch_size=8)),
    "CLIPVision": lambda: CLIPVisionModel(CLIPVisionConfig(**SMALL, image_size=16, patch_size=8)),
}


@pytest.mark.parametrize("kind", VISION)
def test_an_encoder_of_pictures_alone_says_what_to_do_with_it(kind, tmp_path):
    VISION[kind]().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"(?i)is a {kind}Model, which embeds pictures without .* --vision_model"):
        load_encoder(str(tmp_path))
    assert load_vision_model(str(tmp_path)).config.image_size == 16


def test_a_vision_model_is_complete_or_refused(tmp_path, tiny_clip):
    ViTForImageClassification(ViTConfig(**SMALL, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks 2 tensors \(pooler\.dense\.bias, pooler\.dense\.weight\)"):
        load_vision_model(str(tmp_path))  # a classifier's ViT has no pooler
    with pytest.raises(ValueError, match=r"pooler.*drawn at random"):
        SimCLRModel.from_vision_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="is a CLIPModel, no encoder of pictures alone"):
        load_vision_model(str(tiny_clip))


OTHERS = {
    "FLAVA": (FlavaConfig, "CLIP, SigLIP or ALIGN"),
    "X-CLIP": (XCLIPConfig, "embeds videos; use a CLIP"),
    "NaFlex": (Siglip2Config, "google/siglip2-base-patch16-224"),
    "timm": (TimmWrapperConfig, "the same architecture of transformers with --vision_model"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", OTHERS)
def test_families_that_are_not_served_say_what_they_are_and_what_would_do(kind, way, folder):
    config, words = OTHERS[kind]
    config().save_pretrained(folder)
    with pytest.raises(UserError) as told:
        WAYS[way](str(folder))
    assert kind in str(told.value) and words in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("where", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("part", [(), ("text_config",)])
@pytest.mark.parametrize("name", ["somebody/kernel", "kernels-community/flash-attn3", "flash_attention_2"])
def test_attention_from_elsewhere_is_refused_before_anything_is_fetched(name, part, where, folder, monkeypatch):
    config = json.loads((folder / "config.json").read_text())
    (config[part[0]] if part else config)[where] = name
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(CLIPModel, "__init__", lambda *_: pytest.fail("the model was built"))
    with pytest.raises(UserError, match=f"asks for the attention '{name}'"):
        load_encoder(str(folder))


def test_a_quantised_model_is_refused(folder):
    with_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(UserError, match="is quantised, which cannot be trained"):
        load_model(str(folder))


FOREIGN = {
    "config.json": {"model_type": "mine", "auto_map": {"AutoConfig": "evil.It", "AutoModel": "evil.It"}},
    "preprocessor_config.json": {"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "evil.It"}},
    "processor_config.json": {"processor_class": "Mine", "auto_map": {"AutoProcessor": "evil.It"}},
    "tokenizer_config.json": {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["evil.It", "evil.It"]}},
}


@pytest.mark.parametrize("file", FOREIGN)
@pytest.mark.parametrize("way", WAYS)
def test_no_code_runs_and_nobody_is_asked(way, file, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    processor = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor["image_processor"]))
    (folder / "processor_config.json").unlink()
    path = folder / file
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | FOREIGN[file]))
    ran = tmp_path / "code was run"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).mkdir()\nclass It: pass\n")
    try:
        encoder = WAYS[way](str(folder))
        if way == "audit":
            encoder.embed_texts(["a word"])
    except UserError as error:  # or transformers' own class does, where it has one
        assert "\n" not in str(error) and "code that comes with it" in str(error)
    assert not ran.exists()


def test_a_run_that_trusts_a_model_trusts_its_processor(folder):
    config = json.loads((folder / "processor_config.json").read_text())
    own = {"processor_class": "Mine", "auto_map": {"AutoProcessor": "mine.Mine"}}
    (folder / "processor_config.json").write_text(json.dumps(config | own))
    (folder / "mine.py").write_text("from transformers import CLIPProcessor\nclass Mine(CLIPProcessor): pass\n")
    assert type(load_encoder(str(folder), trust_remote_code=True)[1]).__name__ == "Mine"


def test_a_setting_of_another_type_is_one_sentence(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"projection_dim": "64"}))
    with pytest.raises(UserError, match=r"cannot be loaded: .*'projection_dim' .*'64'"):
        load_encoder(str(folder))


def saved_processor(folder: Path, change) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    change(processor)
    processor.save_pretrained(folder)


def replaced_in(path: Path, *fields: str, change) -> None:
    content = json.loads(path.read_text())
    holder = content
    for field in fields[:-1]:
        holder = holder[field]
    holder[fields[-1]] = change(holder[fields[-1]])
    path.write_text(json.dumps(content))


def end_with(folder: Path, token: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = token
    (folder / "config.json").write_text(json.dumps(config))


def forget_padding(processor) -> None:
    processor.tokenizer.pad_token = None


def resize(side: int):
    def change(processor) -> None:
        processor.image_processor.size = {"shortest_edge": side}
        processor.image_processor.crop_size = {"height": side, "width": side}

    return change


MISFITS = {
    "a processor of another size": (lambda f: saved_processor(f, resize(32)), "does not take pictures of 32 x 32"),
    "no pad token": (lambda f: saved_processor(f, forget_padding), "has no pad token"),
    "a greater tokenizer": (
        lambda f: saved_processor(f, lambda p: p.tokenizer.add_tokens([f"new{i}" for i in range(2000)])),
        r"its tokenizer knows \d+ tokens and the model \d+",
    ),
    "a token of a number beyond": (
        lambda f: replaced_in(f / "tokenizer.json", "model", "vocab", change=lambda v: v | {"zebra": 10**6}),
        r"its tokenizer knows 1000001 tokens and the model \d+",
    ),
    "no files of a tokenizer": (
        lambda f: [file.unlink() for file in f.glob("tokenizer*")],
        "its tokenizer knows no words",
    ),
    "another end of a text": (lambda f: end_with(f, 7), "takes token 7 for the end .* ends texts with 1 "),
    "the start for the end": (lambda f: end_with(f, 0), "takes token 0 for the end .* ends texts with 1 "),
    "damaged weights": (
        lambda f: with_weights(f, lambda w: w | {"text_projection.weight": torch.full((64, 128), torch.nan)}),
        "an embedding is not finite",
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_said_before_anything_is_trained(kind, way, folder):
    change, words = MISFITS[kind]
    change(folder)
    with pytest.raises(UserError, match=words) as told:
        encoder = WAYS[way](str(folder))
        encoder.embed_texts(["a"])  # an audit of views alone never needs the tokenizer
    assert "\n" not in str(told.value)


def test_a_view_encoder_whose_backbone_takes_another_size_is_refused(tmp_path):
    config = SimCLRConfig(backbone_config=ViTConfig(**SMALL, image_size=16, patch_size=8), projection_dim=4)
    SimCLRModel(config).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="SimCLRModel does not take pictures of 32 x 32 pixels"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize("way", WAYS)
def test_the_backbone_of_a_view_encoder_brings_no_code(way, tmp_path, monkeypatch):
    """Its configuration lies within that of the encoder, and its class is looked up by transformers once more."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    SimCLRModel(SimCLRConfig(width=4, projection_dim=6, image_size=16)).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"] = {"model_type": "resnet", "auto_map": {"AutoModel": "org/evil--evil.It"}}
    with_config(tmp_path, vision_config=config["vision_config"])
    with pytest.raises(UserError):
        WAYS[way](str(tmp_path))


HUGE = {
    "wide": ({"hidden_size": 40_000, "intermediate_size": 80_000}, "parameters by its config.json"),
    "deep": ({"num_hidden_layers": 10**6}, "1,000,000 layers by its config.json"),
    "deeper still": ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 in its config.json"),
    "of many pixels": ({"image_size": 10**6}, "parameters by its config.json"),
    "of many labels": ({"num_labels": 10**9}, "num_labels = 1000000000 in its config.json"),
}


@pytest.mark.parametrize("kind", HUGE)
@pytest.mark.parametrize("way", WAYS)
def test_a_config_of_a_far_larger_model_takes_neither_time_nor_memory(way, kind, folder):
    change, words = HUGE[kind]
    config = json.loads((folder / "config.json").read_text())
    with_config(folder, vision_config=config["vision_config"] | change)
    with pytest.raises(UserError, match=words):
        WAYS[way](str(folder))


def test_pictures_of_any_size_are_not_made(folder):
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["image_processor"]["size"] = {"height": 16_000, "width": 16_000}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    with pytest.raises(UserError, match="makes pictures of over 4096 pixels a side"):
        load_encoder(str(folder))


def test_a_name_that_is_nowhere_is_refused_with_both_ways_out(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"no folder of that name is here, .* name one that is, or unset HF_HUB_OFFLINE"
    ):
        load_encoder("publik")
