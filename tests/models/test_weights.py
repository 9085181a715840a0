"""The hash that identifies a checkpoint."""

import hashlib
import json
import shutil
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


@pytest.mark.parametrize("inner", ["", "0_CLIPModel"])
def test_the_hubs_cache_may_link_to_its_own_blobs_and_nobody_elsewhere(tiny_clip: Path, tmp_path: Path, inner) -> None:
    weights, module = tiny_clip / "model.safetensors", tmp_path / "models--org--clip" / "snapshots" / "4ef8" / inner
    module.mkdir(parents=True)
    link = module / "model.safetensors"
    own = tmp_path / "models--org--clip" / "blobs" / "abc"
    for kept in (own, tmp_path / "models--org--other" / "blobs" / "abc", tmp_path / "elsewhere"):
        kept.parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(weights, kept)
        link.unlink(missing_ok=True)
        link.symlink_to(kept)
        if kept == own:
            assert weights_sha256(module) == weights_sha256(tiny_clip)
        else:
            with pytest.raises(UserError, match=r"model.safetensors of .* leads out of the folder"):
                weights_sha256(module)
