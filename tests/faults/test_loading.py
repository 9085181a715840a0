"""Cases 23 and 24: no pickles, no code that comes with a model, no way out of a folder."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from faults.conftest import FAMILIES
from transformers import CLIPModel

from hf_unlearn.errors import UserError
from hf_unlearn.models.loading import load_encoder


class Payload:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def broken(tmp_path, bases):
    """A copy of a base model, to be changed."""

    def copy(family: str) -> Path:
        shutil.copytree(bases[family], tmp_path / "broken")
        return tmp_path / "broken"

    return copy


@pytest.mark.parametrize("family", FAMILIES)
def test_pickled_weights_are_refused_with_the_way_to_convert(family, broken, tmp_path):
    folder = broken(family)
    (folder / "model.safetensors").unlink()
    torch.save(Payload(tmp_path / "pickle was run"), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"broken cannot be loaded: .*pickled.*use_safetensors=False.*save_pretrained"):
        load_encoder(str(folder))
    assert not (tmp_path / "pickle was run").exists()


def test_the_way_to_convert_works(broken, bases):
    folder = broken("clip")
    model, _ = load_encoder(str(bases["clip"]))
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    CLIPModel.from_pretrained(folder, use_safetensors=False).save_pretrained(folder)
    assert all(a.equal(b) for a, b in zip(load_encoder(str(folder))[0].parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("model_type", ["clip", "something-else"])
def test_code_that_comes_with_a_model_does_not_run(model_type, broken, tmp_path):
    folder = broken("clip")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'code was run')!r}).mkdir()\n")
    if model_type == "clip":  # transformers has this architecture itself
        assert type(load_encoder(str(folder))[0]) is CLIPModel
    else:
        with pytest.raises(UserError, match="trust_remote_code"):
            load_encoder(str(folder))
    assert not (tmp_path / "code was run").exists()


def leave(folder: Path) -> None:
    """An index of shards whose file lies outside."""
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"logit_scale": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


DAMAGES = {
    "truncated": lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:5000]),
    "no weights": lambda p: (p / "model.safetensors").write_bytes(b""),
    "half a config": lambda p: (p / "config.json").write_text('{"model_type": '),
    "an empty config": lambda p: (p / "config.json").write_text("{}"),
    "a config of another form": lambda p: (p / "config.json").write_text("[1]"),
    "no processor": lambda p: [f.unlink() for f in p.iterdir() if f.name not in ("config.json", "model.safetensors")],
    "half a tokenizer": lambda p: (p / "tokenizer.json").write_text("{"),
    "shards outside": leave,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_model_is_one_sentence(kind, broken):
    folder = broken("clip")
    DAMAGES[kind](folder)
    with pytest.raises(UserError) as told:
        load_encoder(str(folder))
    assert "\n" not in str(told.value) and len(str(told.value)) < 600
    assert "broken" in str(told.value)


@pytest.mark.parametrize("name", ["../nowhere", "org/../name", "/nowhere/at/all", "org/name/more", "", "a b", "~root"])
def test_what_is_neither_a_folder_nor_a_name_is_refused(name):
    with pytest.raises(UserError) as told:
        load_encoder(name)
    assert "neither a folder nor a Hub id" in str(told.value) and "\n" not in str(told.value)
