import hashlib
import shutil

import numpy as np
import pytest
import torch
from audit.conftest import folder_of
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from hf_unlearn.audit.encoders import LocalEncoder, embed_pictures, resolve_folder, usable_device, weights_sha256
from hf_unlearn.audit.pictures import list_pictures
from hf_unlearn.audit.transforms import HeldBackViews, TrainingViews
from hf_unlearn.errors import UserError

VIEWS = np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), dtype=np.uint8)


def by_hand(path, backend, head):
    """The same embeddings through the plain transformers calls, one picture at a time."""
    model = AutoModel.from_pretrained(path).eval()
    processor = AutoImageProcessor.from_pretrained(path, backend=backend)
    with torch.no_grad():
        pixels = [processor(view, return_tensors="pt")["pixel_values"] for view in VIEWS]
        outputs = [getattr(model, head)(pixel_values=p) for p in pixels]
    return torch.cat([getattr(output, "pooler_output", output) for output in outputs]).numpy()


@pytest.mark.parametrize(("kind", "device"), [("mps", "mps"), ("cuda", "cuda"), (None, "cpu")])
def test_the_accelerator_is_taken_of_whatever_kind(monkeypatch, kind, device):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: kind and torch.device(kind))
    assert usable_device(None) == device


@pytest.mark.parametrize(
    ("name", "features", "head"),
    [
        ("simclr_a", "projection", "get_projected_features"),
        ("simclr_a", "backbone", "get_image_features"),
        ("moco_a", "projection", "get_projected_features"),
        ("clip_a", "projection", "get_image_features"),
    ],
)
@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_checkpoints_answer_as_transformers_does(checkpoints, name, features, head, backend):
    encoder = LocalEncoder(str(checkpoints[name]), features=features, backend=backend, device="cpu", batch_size=2)
    got = encoder.embed_images(VIEWS)
    np.testing.assert_allclose(got, by_hand(checkpoints[name], backend, head), atol=2e-5)
    assert encoder.view_side == 16 and encoder.deterministic
    told = encoder.describe()
    assert told["processor_backend"] == backend and told["name"] == name and told["revision"] is None
    assert told["weights_sha256"] == hashlib.sha256((checkpoints[name] / "model.safetensors").read_bytes()).hexdigest()


def test_the_two_backends_really_differ(checkpoints):
    """Why the backend is pinned on both sides."""
    one, other = (
        LocalEncoder(str(checkpoints["clip_a"]), backend=backend, device="cpu").embed_images(VIEWS)
        for backend in ("torchvision", "pil")
    )
    assert np.abs(one - other).max() > 0


def test_captions_answer_as_transformers_does(checkpoints):
    texts = ["a drawing of discs", "discs", "drawing " * 40]
    got = LocalEncoder(str(checkpoints["clip_a"]), device="cpu", batch_size=2).embed_texts(texts)
    model = AutoModel.from_pretrained(checkpoints["clip_a"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["clip_a"])
    with torch.no_grad():
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
        expected = model.get_text_features(**tokens).pooler_output.numpy()
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_captions_are_cut_where_their_tokenizer_says(checkpoints):
    encoder = LocalEncoder(str(checkpoints["clip_a"]), device="cpu")
    texts = ["a drawing", "a discs"]
    assert not np.array_equal(*encoder.embed_texts(texts))
    encoder._tokenizer.model_max_length = 3
    np.testing.assert_array_equal(*encoder.embed_texts(texts))


def test_measure_asks_views_captions_and_held_back_views(tmp_path, checkpoints):
    pictures = list_pictures(folder_of(tmp_path, 18))  # more than one chunk
    captions = [("a",), *((f"b{i}", "c") for i in range(17))]
    encoder = LocalEncoder(str(checkpoints["clip_a"]), device="cpu")
    got = embed_pictures(encoder, pictures, captions, TrainingViews("caption", 16), HeldBackViews(16), seed=1, count=3)
    assert got.images.shape == got.held_back.shape == (18, 3, 64)
    assert got.texts.shape == (35, 64) and got.text_owner.tolist() == [0, *(i for i in range(1, 18) for _ in "bc")]
    np.testing.assert_array_equal(got.repeats, got.images[:, 0])
    assert np.abs(got.images - got.held_back).max() > 0
    alone = embed_pictures(
        encoder, pictures[17:], [("x",)], TrainingViews("caption", 16), HeldBackViews(16), seed=1, count=3
    )
    np.testing.assert_allclose(alone.images[0], got.images[17], atol=1e-5)


def test_where_answers_may_differ_the_noise_is_measured(tmp_path, checkpoints, monkeypatch):
    pictures = list_pictures(folder_of(tmp_path, 3))
    encoder = LocalEncoder(str(checkpoints["simclr_a"]), device="cpu")
    asked = []
    embed = encoder.embed_images
    monkeypatch.setattr(
        encoder, "embed_images", lambda views, **how: (asked.append((len(views), how)), embed(views))[1]
    )
    monkeypatch.setattr(LocalEncoder, "deterministic", False)  # as on an accelerator
    got = embed_pictures(encoder, pictures, [()] * 3, TrainingViews("cifar", 16), HeldBackViews(16), seed=0, count=2)
    # Two views, two held-back views and three nudges of three pictures, all mixed; then the first views again.
    assert asked == [(21, {}), (3, {"repeat": 1})]
    assert got.images.shape[:2] == got.held_back.shape[:2] == (3, 2)
    assert got.nudged.shape[:2] == (3, 3) and got.repeats.shape == got.images[:, 0].shape
    more = embed_pictures(
        encoder, pictures, [()] * 3, TrainingViews("cifar", 16), HeldBackViews(16), seed=0, count=5, skip=2
    )
    whole = embed_pictures(encoder, pictures, [()] * 3, TrainingViews("cifar", 16), HeldBackViews(16), seed=0, count=5)
    np.testing.assert_allclose(np.concatenate([got.images, more.images], 1), whole.images, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([got.held_back, more.held_back], 1), whole.held_back, atol=1e-5)
    np.testing.assert_allclose(got.repeats, got.images[:, 0], atol=1e-5)


def test_captions_for_an_image_encoder_fail_before_the_long_part(tmp_path, checkpoints, monkeypatch):
    encoder = LocalEncoder(str(checkpoints["simclr_a"]), device="cpu")
    monkeypatch.setattr(encoder, "embed_images", lambda *_, **__: pytest.fail("pictures were embedded"))
    pictures = list_pictures(folder_of(tmp_path, 1))
    with pytest.raises(UserError, match="embeds images alone"):
        embed_pictures(encoder, pictures, [("a",)], TrainingViews("cifar", 16), HeldBackViews(16), seed=0, count=2)


def test_weights_hash_of_shards_follows_the_index(tmp_path, checkpoints):
    model = AutoModel.from_pretrained(checkpoints["clip_a"])
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    lines = "".join(f"{shard.name} {hashlib.sha256(shard.read_bytes()).hexdigest()}\n" for shard in shards)
    assert weights_sha256(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()


def broken(tmp_path, source, change):
    target = tmp_path / "broken"
    shutil.copytree(source, target)
    change(target)
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda p: (p / "model.safetensors").write_bytes(b"junk"),
        lambda p: (p / "model.safetensors").unlink(),
        lambda p: (p / "config.json").write_text("{}"),
        lambda p: (p / "preprocessor_config.json").unlink(),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path, checkpoints, change):
    path = broken(tmp_path, checkpoints["simclr_a"], change)
    with pytest.raises(UserError, match="broken' cannot be loaded"):
        LocalEncoder(str(path), device="cpu")


@pytest.mark.parametrize("device", ["cudaa", "", "meta", "cuda:99"])
def test_a_device_that_cannot_be_used_is_said_before_anything_is_loaded(device):
    with pytest.raises(UserError, match=f"The device '{device}' cannot be used"):
        LocalEncoder("nobody/nothing-here", device=device)


def test_pickled_weights_are_never_loaded(tmp_path, checkpoints):
    path = broken(tmp_path, checkpoints["clip_a"], lambda p: (p / "model.safetensors").unlink())
    torch.save(AutoModel.from_pretrained(checkpoints["clip_a"]).state_dict(), path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        LocalEncoder(str(path), device="cpu")


@pytest.mark.parametrize("name", ["../up", "no such/model at all", "nobody/nothing-here"])
def test_names_that_are_nothing_are_said(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=name):
        resolve_folder(name)


def test_a_model_without_image_features_is_refused(tmp_path):
    from transformers import BertConfig, BertModel, CLIPImageProcessor

    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path)
    CLIPImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="BertModel, which has no get_image_features"):
        LocalEncoder(str(tmp_path), device="cpu")
