"""What verify says of a model beside its base: tensors, settings, and bases that are none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub.test_forged_folders import edit, failed, rewrite
from safetensors.torch import load_file, save_file

from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.hub.verification_report import Outcome


def test_tensors_of_half_a_byte_are_told(run: Path, base: Path) -> None:
    kind = getattr(torch, "float4_e2m1fn_x2", None)
    if kind is None:
        pytest.skip("this torch has no such type")
    theirs = Path(shutil.copytree(base, run.parent / "theirs"))
    for folder in (run, theirs):
        tensors = load_file(folder / "model.safetensors")
        odd = torch.zeros(4, dtype=torch.uint8).view(kind)
        save_file({**tensors, "odd": odd}, folder / "model.safetensors", metadata={"format": "pt"})
    assert "tensors" in failed(verify_repo(run, base=theirs))


def test_the_base_with_a_tensor_that_no_model_reads_is_the_base(run: Path, base: Path) -> None:
    tensors = {**load_file(base / "model.safetensors"), "odd": torch.ones(1)}
    save_file(tensors, run / "model.safetensors", metadata={"format": "pt"})
    rewrite(run)
    assert "tensors" in failed(verify_repo(run, base=base))


def test_a_base_of_other_names_is_nothing_to_compare_with(run: Path, base: Path, tmp_path: Path) -> None:
    theirs = Path(shutil.copytree(base, tmp_path / "theirs"))
    renamed = {f"module.{name}": tensor for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(renamed, theirs / "model.safetensors", metadata={"format": "pt"})
    line = next(line for line in verify_repo(run, base=theirs).statements if "in one of the two alone" in line.detail)
    assert line.outcome is Outcome.UNCHECKED


def other_pictures(run: Path) -> None:
    config = json.loads((run / "processor_config.json").read_text())
    config["image_processor"]["image_mean"] = [0.9, 0.9, 0.9]
    edit(run, "processor_config.json", **config)


def other_tokens(run: Path) -> None:
    """Every word of the request is read as another one."""
    steps = json.loads((run / "tokenizer.json").read_text())
    swap = {"type": "Replace", "pattern": {"String": "apple"}, "content": "pear"}
    edit(run, "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [swap, steps["normalizer"]]})


def another_activation(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["text_config"]["hidden_act"] = "relu"
    edit(run, "config.json", **config)


def pictures_of_another_class(run: Path) -> None:
    config = json.loads((run / "processor_config.json").read_text())
    config["image_processor"]["image_processor_type"] = "ViTImageProcessor"
    edit(run, "processor_config.json", **config)


def tokenizer_with(**fields: object) -> Callable[[Path], None]:
    return lambda run: edit(run, "tokenizer_config.json", **fields)


SETTINGS = {
    "image processor's class": pictures_of_another_class,
    "tokenizer's model_max_length": tokenizer_with(model_max_length=3),
    "tokenizer's padding_side": tokenizer_with(padding_side="left"),
    "tokenizer's truncation_side": tokenizer_with(truncation_side="left"),
    "tokenizer's model_input_names": tokenizer_with(model_input_names=["input_ids"]),
    "tokenizer's special_tokens_map": tokenizer_with(pad_token="<|endoftext|>"),
    "image processor's image_mean": other_pictures,
    "tokenizer's normalizer": other_tokens,
    "model's text_config.hidden_act": another_activation,
}


@pytest.mark.parametrize(("named", "forge"), SETTINGS.items(), ids=SETTINGS)
def test_settings_are_the_bases(run: Path, base: Path, forge: Callable[[Path], None], named: str) -> None:
    forge(run)
    assert verify_repo(run).ok, "without the base there is nothing to compare with"
    (line,) = verify_repo(run, base=base).failures
    assert line.subject == "settings" and line.detail.endswith(f": {named}")


def test_so_little_a_change_is_not_said_to_unlearn(run: Path, base: Path) -> None:
    scaled = {name: tensor * (1 + 1e-6) for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(scaled, run / "model.safetensors", metadata={"format": "pt"})
    rewrite(run)
    (line,) = [line for line in verify_repo(run, base=base).statements if "differ from the base" in line.detail]
    assert line.outcome is Outcome.UNCHECKED and "less than 0.01%" in line.detail


def test_tensors_that_no_model_reads_are_said(run: Path, base: Path) -> None:
    """The base beside what was unlearned, or layers that config.json leaves out."""
    hidden = {f"x.position_ids.{name}": tensor for name, tensor in load_file(base / "model.safetensors").items()}
    save_file({**load_file(run / "model.safetensors"), **hidden}, run / "model.safetensors", metadata={"format": "pt"})
    rewrite(run)
    (line,) = [line for line in verify_repo(run).statements if line.subject == "other tensors"]
    assert line.outcome is Outcome.UNCHECKED and line.detail.startswith(f"{len(hidden)} stand")


def test_what_is_not_compared_without_the_base_is_said(run: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (run / name).unlink()
    save_file({"lora_A.weight": torch.full((2, 2), torch.nan)}, run / "adapter_model.safetensors")
    (run / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "revision": None}))
    rewrite(run)
    unchecked = [line.subject for line in verify_repo(run).statements if line.outcome is Outcome.UNCHECKED]
    assert {"settings", "tensors"} <= set(unchecked)


def test_a_difference_that_is_no_number_is_named(run: Path, base: Path) -> None:
    broken = {name: tensor * torch.nan for name, tensor in load_file(run / "model.safetensors").items()}
    save_file(broken, run / "model.safetensors", metadata={"format": "pt"})
    rewrite(run)
    (line,) = [line for line in verify_repo(run, base=base).failures if "here or in the base" in line.detail]
    assert line.subject == "tensors"
