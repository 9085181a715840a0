"""An adapter beside a model says nothing that is run, larger than its weights, or searched for without end."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_unlearn.errors import UserError
from hf_unlearn.models.loading import load_encoder, load_image_processor, load_model


def _adapter(folder, target, change):
    """The folder of a LoRA adapter on `folder`, with other settings than it was saved with."""
    from peft import LoraConfig

    from hf_unlearn.models.adapters import add_adapter

    add_adapter(load_encoder(str(folder))[0], LoraConfig(r=1, target_modules=["q_proj"])).save_pretrained(target)
    config = target / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    return str(target)


def test_an_adapter_imports_no_module_by_its_name(folder, tmp_path, monkeypatch):
    """peft imports what `megatron_core` names, whoever named the base model."""
    adapter = _adapter(folder, tmp_path / "a", {"megatron_config": {}, "megatron_core": "evil"})
    (tmp_path / "evil.py").write_text("raise SystemExit('it was imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="is no plain LoRA adapter"):
        load_model(adapter, base=str(folder))


@pytest.mark.parametrize("change", [{"r": 10**7}, {"rank_pattern": {"q_proj": 10**7}}, {"layer_replication": [[0, 1]]}])
def test_an_adapter_is_not_larger_than_its_weights(change, folder, tmp_path):
    adapter = _adapter(folder, tmp_path / "a", change)
    with pytest.raises(UserError, match="is far larger by its adapter_config"):
        load_model(adapter, base=str(folder))


@pytest.mark.parametrize(
    "change",
    [{"target_modules": "((a|[a-z_.0-9]+)+)+X"}, {"exclude_modules": ".*.*.*.*.*X"}, {"rank_pattern": {"(a+)+X": 1}}],
)
def test_an_adapter_names_layers_by_no_pattern_that_takes_for_ever(change, folder, tmp_path):
    adapter = _adapter(folder, tmp_path / "a", change)
    with pytest.raises(UserError, match="which may take for ever"):
        load_model(adapter, base=str(folder))


def test_an_adapter_replaces_no_tensor_of_its_base(folder, tmp_path):
    """peft would put it there, whatever the adapter's settings say."""
    adapter = _adapter(folder, tmp_path / "a", {})
    load_model(adapter, base=str(folder))
    weights = tmp_path / "a" / "adapter_model.safetensors"
    save_file({**load_file(weights), "base_model.model.logit_scale": torch.tensor(9.0)}, weights)
    with pytest.raises(UserError, match=r"holds base_model\.model\.logit_scale of its base model"):
        load_model(adapter, base=str(folder))


@pytest.mark.parametrize("start", ["pissa_niter_100000000", "olora", "eva"])
def test_an_adapter_is_not_computed_anew(start, folder, tmp_path):
    adapter = _adapter(folder, tmp_path / "a", {"init_lora_weights": start})
    with pytest.raises(UserError, match="is made of its base's weights"):
        load_model(adapter, base=str(folder))


def test_a_revision_of_a_folder_is_refused_where_a_user_names_it(folder, tmp_path):
    for load in (load_encoder, load_model, partial(load_image_processor, backend=None)):
        with pytest.raises(UserError, match=r"the revision v1 would have no effect: \S+ is a folder, not on the Hub"):
            load(str(folder), revision="v1")
    # That of a folder of the Hub's cache, which an adapter on it notes, is no reason to refuse the adapter.
    load_model(_adapter(folder, tmp_path / "a", {"base_model_name_or_path": str(folder), "revision": "0" * 40}))
