"""The hash that identifies a checkpoint."""

import hashlib
import json
from pathlib import Path

import pytest
from transformers import CLIPModel

from hf_unlearn.errors import UserError
from hf_unlearn.models.weights import weights_sha256


def test_one_file_hashes_as_sha256sum_does(tiny_clip: Path) -> None:
    assert weights_sha256(tiny_clip) == hashlib.sha256((tiny_clip / "model.safetensors").read_bytes()).hexdigest()


def test_shards_hash_by_name_and_content(tiny_clip: Path, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(tiny_clip).save_pretrained(tmp_path, max_shard_size="1MB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    lines = "".join(f"{shard.name} {hashlib.sha256(shard.read_bytes()).hexdigest()}\n" for shard in shards)
    assert weights_sha256(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
    shards[0].write_bytes(shards[0].read_bytes()[:-1] + b"\1")
    assert weights_sha256(tmp_path) != hashlib.sha256(lines.encode()).hexdigest()
    shards[0].unlink()
    with pytest.raises(UserError, match=shards[0].name):
        weights_sha256(tmp_path)


def test_a_shard_outside_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../secret"}}))
    with pytest.raises(UserError, match="secret"):
        weights_sha256(tmp_path)


def test_pickled_weights_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"holds no model.safetensors"):
        weights_sha256(tmp_path)
