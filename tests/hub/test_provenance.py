"""Hashes and descriptions of where a checkpoint came from."""

import getpass
import hashlib
import json
import platform
import socket
from pathlib import Path

import pytest
from transformers import CLIPModel

from hf_unlearn.errors import UserError
from hf_unlearn.hub.provenance import environment_versions, hardware_summary, weights_sha256


def test_one_file_hashes_as_sha256sum_does(base: Path) -> None:
    assert weights_sha256(base) == hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()


def test_shards_hash_by_name_and_content(base: Path, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(base).save_pretrained(tmp_path, max_shard_size="1MB")
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


def test_neither_machine_nor_user_is_named() -> None:
    told = json.dumps([environment_versions(), hardware_summary()])
    assert socket.gethostname() not in told
    assert getpass.getuser() not in told
    assert environment_versions()["python"] == platform.python_version()
    assert "torch" in environment_versions()
