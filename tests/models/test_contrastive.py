"""What models are asked for: temperatures, embeddings in any precision, chunks and the length of captions."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, ViTConfig

from hf_unlearn.errors import UserError
from hf_unlearn.models.contrastive import caption_length, contrastive_terms, embed_images, embed_texts, logit_scale
from hf_unlearn.models.moco import MoCoConfig, MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel

SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VIT = ViTConfig(**SMALL, image_size=16, patch_size=8)


def clip():
    text = {**SMALL, "vocab_size": 10, "max_position_embeddings": 6}
    return CLIPModel(CLIPConfig(text_config=text, vision_config={**SMALL, "image_size": 16, "patch_size": 8}))


@pytest.mark.parametrize("scale", [1.0, 14.28, 99.99, 100.0, 117.33])
def test_the_inverse_temperature_is_the_models_own_with_its_gradient(scale):
    model = SimpleNamespace(logit_scale=nn.Parameter(torch.tensor([math.log(scale)])))
    value = logit_scale(model)
    value.backward()
    assert value.shape == () and value.item() == pytest.approx(scale, rel=1e-6)
    assert model.logit_scale.grad.item() == value.item()  # d exp(s) / ds


def test_features_may_be_tensors_as_code_that_comes_with_a_model_returns_them():
    class Plain(nn.Module):
        dtype = torch.float32

        def get_image_features(self, pixel_values):
            return pixel_values.flatten(1)

        def get_text_features(self, input_ids):
            return input_ids.float()

    pixels, tokens = torch.rand(2, 3, 4, 4), torch.arange(6).view(2, 3)
    assert embed_images(Plain(), pixels).equal(pixels.flatten(1))
    assert embed_texts(Plain(), input_ids=tokens).equal(tokens.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "model",
    [
        clip,
        lambda: SimCLRModel(SimCLRConfig(stem="imagenet", width=4)),
        lambda: MoCoModel(MoCoConfig(width=4, queue_size=8)),
    ],
    ids=["clip", "simclr", "moco"],
)
def test_pictures_follow_the_type_of_the_weights(model, dtype):
    torch.manual_seed(0)
    model = model().eval()
    inputs = {"pixel_values": torch.randn(4, 2, 3, 16, 16)}
    if isinstance(model, CLIPModel):
        inputs = {"pixel_values": inputs["pixel_values"][:, 0], "input_ids": torch.randint(0, 10, (4, 6))}
    expected = contrastive_terms(model, inputs).cosine
    single = inputs["pixel_values"] if "input_ids" in inputs else inputs["pixel_values"][:, 0]
    features = embed_images(model, single)
    model.to(dtype)
    torch.testing.assert_close(contrastive_terms(model, inputs).cosine, expected, atol=0.05, rtol=0)
    torch.testing.assert_close(embed_images(model, single).float(), features, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("kind", "config"), [(SimCLRModel, SimCLRConfig), (MoCoModel, MoCoConfig)])
def test_chunks_are_refused_where_samples_are_not_embedded_by_themselves(kind, config):
    options = {"queue_size": 8} if config is MoCoConfig else {}
    model = kind(config(backbone_config=VIT, projection_batch_norm=False, projection_dim=4, **options)).train()
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    views = {"pixel_values": torch.randn(4, 2, 3, 16, 16)}
    with pytest.raises(UserError, match=f"cannot be exact for {kind.__name__}: it needs an image-text model without"):
        contrastive_terms(model, views, chunk_size=2)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("positions", "tokens", "length"),
    [(77, 77, 77), (512, 64, 64), (514, 512, 512), (77, int(1e30), 77), (None, 32, 32)],
    ids=["CLIP", "ALIGN", "XLM-R", "a tokenizer that does not say", "an encoder that does not say"],
)
def test_a_caption_is_as_long_as_text_encoder_and_tokenizer_allow(positions, tokens, length):
    text = SimpleNamespace() if positions is None else SimpleNamespace(max_position_embeddings=positions)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    assert caption_length(model, SimpleNamespace(model_max_length=tokens)) == length


def test_a_caption_of_unknown_length_is_refused():
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=SimpleNamespace))
    with pytest.raises(UserError, match="nor its tokenizer says how many tokens a caption may have; set model_max_l"):
        caption_length(model, SimpleNamespace(model_max_length=int(1e30)))
