"""Checkpoints of OpenCLIP and sentence-transformers go the whole way: load, unlearn, evaluate, audit, publish, read."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from hub.local_hub import LocalHub
from hub.test_forged_folders import rewrite
from models.test_open_clip import made_by_open_clip
from safetensors.torch import load_file, save_file

from hf_unlearn.audit.encoders import LocalEncoder
from hf_unlearn.errors import UserError
from hf_unlearn.hub.evidence import write_evidence
from hf_unlearn.hub.publishing import publish_run
from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.models.checkpoint_forms import save_encoder
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.open_clip import GREATEST_IS_END
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel
from hf_unlearn.models.small_clip import build_small_clip
from hf_unlearn.records.schemas import UnlearningManifest
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.unlearn import unlearn_and_compare

LOADS = {"open_clip": "open_clip.create_model_and_transforms", "sentence_transformers": "SentenceTransformer("}
WEIGHTS = {"open_clip": "open_clip_model.safetensors", "sentence_transformers": "0_CLIPModel/model.safetensors"}


@pytest.fixture
def unlearn(shapes, tmp_path, monkeypatch):
    """Run Fine-Tune on a base model; returns the finished folder."""
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    shapes.save_to_disk(tmp_path / "data")

    def run(base: Path, *argv: str) -> Path:
        given = ["--dataset_name", str(tmp_path / "data"), "--model_name_or_path", str(base), "--use_cpu", "true"]
        given += ["--output_dir", str(tmp_path / "out"), "--num_train_epochs", "1", "--learning_rate", "1e-2"]
        given += ["--unlearn_fraction", "0.1", "--per_device_train_batch_size", "16", "--methods", "fine_tune"]
        unlearn_and_compare(parse_run([*given, *argv]), build=None)
        return tmp_path / "out" / "fine_tune"

    return run


@pytest.fixture
def small(shapes):
    torch.manual_seed(0)
    return build_small_clip([c for captions in shapes["captions"] for c in captions], image_size=16)


@pytest.mark.parametrize("form", LOADS)
def test_a_checkpoint_goes_the_whole_way_in_its_own_form(form, small, unlearn, hub: LocalHub, tmp_path):
    base = tmp_path / "base"
    save_encoder(*small, base, form)
    out = unlearn(base)
    assert (out / WEIGHTS[form]).is_file() and not (out / "model.safetensors").exists()
    assert verify_repo(out, base=base).ok
    ours, _ = load_encoder(str(out))
    assert not ours.visual_projection.weight.equal(small[0].visual_projection.weight)  # it was trained
    audited = LocalEncoder(str(out), device="cpu")
    assert audited.embed_texts(["a red circle"]).shape == (1, 64)
    write_evidence(out)
    (weights,) = json.loads((out / "removal.intoto.json").read_text())["subject"]  # the same path everywhere
    parts = json.loads((out / "bom.cdx.json").read_text())["metadata"]["component"]["components"]
    assert weights["name"] == WEIGHTS[form] and [part["name"] for part in parts] == [WEIGHTS[form]]
    assert f"{weights['digest']['sha256']}  {WEIGHTS[form]}\n" in (out / "digests.sha256").read_text()
    publish_run(out, "org/clip")
    sent = hub.files("org/clip")
    assert sent[WEIGHTS[form]] == (out / WEIGHTS[form]).read_bytes() and LOADS[form] in sent["README.md"].decode()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    fetched, _ = load_encoder("org/clip")
    assert all(value.equal(ours.state_dict()[name]) for name, value in fetched.state_dict().items())
    if form == "open_clip":
        theirs, _, _ = open_clip.create_model_and_transforms("hf-hub:org/clip")
        pixels = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            expected = ours.eval().get_image_features(pixels).pooler_output
            torch.testing.assert_close(theirs.eval().encode_image(pixels), expected, atol=1e-5, rtol=1e-5)


def test_another_form_is_saved_where_it_is_asked_for(tiny_clip, unlearn):
    out = unlearn(tiny_clip, "--save_format", "sentence_transformers")
    assert (out / "0_CLIPModel" / "model.safetensors").is_file() and verify_repo(out, base=tiny_clip).ok
    assert UnlearningManifest.load(out).weights_sha256


@pytest.mark.parametrize("asked", [(), ("--save_format", "transformers")], ids=["own form", "transformers"])
def test_what_reads_up_to_its_greatest_token_still_does(asked, unlearn, tmp_path):
    """The Trainer would write its tokenizer's end token into the config; the model was built without."""
    base = tmp_path / "base"
    base.mkdir()
    made_by_open_clip(base)
    out = unlearn(base, *asked)
    assert load_encoder(str(out))[0].config.text_config.eos_token_id == GREATEST_IS_END
    assert verify_repo(out, base=base).ok and not verify_repo(out, base=base).failures
    lines = {line.subject: line for line in verify_repo(out, base=base).statements}
    assert "differ from the base model's" in lines["tensors"].detail  # in whatever form


@pytest.mark.parametrize(("end", "holds"), [(49407, True), (49406, False)])
def test_the_end_token_by_its_number_is_the_same_as_the_greatest(end, holds, unlearn, tmp_path):
    """As earlier versions saved it; another number reads another token."""
    base = tmp_path / "base"
    base.mkdir()
    made_by_open_clip(base)
    out = unlearn(base)
    config = json.loads((out / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"pool_type": "eos", "eos_id": end}
    (out / "open_clip_config.json").write_text(json.dumps(config))
    rewrite(out)
    found = verify_repo(out, base=base).failures
    assert not found if holds else "settings" in {line.subject for line in found}


def test_a_base_of_transformers_is_the_same_model_in_open_clips_form(small, unlearn, tmp_path):
    """What only new weights, a training or a step that is not taken is decided by has no field there."""
    model, processor = small
    model.config.text_config.initializer_range = model.config.vision_config.attention_dropout = 0.01
    processor.tokenizer.model_max_length = 77  # the model has fewer places
    images = processor.image_processor
    images.do_center_crop, images.crop_size = False, {"height": 99, "width": 99}
    images.size = {"height": 16, "width": 16}
    save_encoder(model, processor, tmp_path / "base")
    out = unlearn(tmp_path / "base", "--save_format", "open_clip")
    assert not verify_repo(out, base=tmp_path / "base").failures


def test_what_open_clip_has_no_field_for_is_refused_before_training(small, unlearn, tmp_path):
    model, processor = small
    model.config.text_config.layer_norm_eps = 1e-6
    save_encoder(model, processor, tmp_path / "base")
    with pytest.raises(UserError, match="layer norms add 1e-05, not 1e-06; use another --save_format"):
        unlearn(tmp_path / "base", "--save_format", "open_clip")
    model.config.text_config.layer_norm_eps = 1e-5
    processor.image_processor.do_normalize = False
    with pytest.raises(UserError, match="cannot prepare pictures with do_normalize false; use another --save_format"):
        save_encoder(model, processor, tmp_path / "other", "open_clip")


def test_forms_that_cannot_hold_the_model_are_refused_before_training(tiny_clip, small, unlearn, tmp_path):
    with pytest.raises(UserError, match="--save_format pickle is unknown; choose one of transformers, open_clip"):
        unlearn(tiny_clip, "--save_format", "pickle")
    with pytest.raises(UserError, match="holds a whole CLIPModel, not an adapter"):
        unlearn(tiny_clip, "--save_format", "open_clip", "--use_peft")
    with pytest.raises(UserError, match="holds a whole CLIPModel, not a SimCLRModel"):
        save_encoder(SimCLRModel(SimCLRConfig(width=4)), None, tmp_path / "views", "open_clip")


MODULES = {
    "a text model": ([{"path": "", "type": "sentence_transformers.models.Transformer"}], "consists of Transformer"),
    "a folder outside": ([{"path": "../up", "type": "sentence_transformers.models.CLIPModel"}], "no folder of its own"),
    "half a list": ([{}], "modules.json is damaged"),
}


@pytest.mark.parametrize("kind", MODULES)
def test_other_models_of_sentence_transformers_are_named(kind, small, tmp_path):
    modules, words = MODULES[kind]
    save_encoder(*small, tmp_path, "sentence_transformers")
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=words):
        load_encoder(str(tmp_path))


def test_a_published_model_that_lacks_a_tensor_does_not_hold(run: Path):
    weights = load_file(run / "model.safetensors")
    del weights["logit_scale"]
    save_file(weights, run / "model.safetensors", metadata={"format": "pt"})
    told = {line.subject: line for line in verify_repo(run).statements}
    assert told["tensors"].fails and "lacks 1 tensor (logit_scale)" in told["tensors"].detail
