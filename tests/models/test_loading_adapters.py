"""An adapter beside a model says nothing that is run, larger than its weights, or searched for without end."""

import json

import pytest

from hf_unlearn.errors import UserError
from hf_unlearn.models.loading import load_encoder, load_model


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
