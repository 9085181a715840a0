"""What a stranger would try next: folders and inputs that are none of those in `test_forged_folders.py`."""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub.finished_run import SALT
from hub.local_hub import LocalHub
from hub.test_forged_folders import changed, edit, failed, other_version, rewrite
from PIL import Image as Picture
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel

from hf_unlearn.errors import UserError
from hf_unlearn.hub.card import write_card
from hf_unlearn.hub.publishing import publish_run
from hf_unlearn.hub.verification import OwnedSample, verify_repo
from hf_unlearn.hub.verification_report import Outcome
from hf_unlearn.records.schemas import EvaluationRecord, HistoryEntry, RequestStatus, UnlearningManifest

Forgery = Callable[[Path, Path], None]
HEATMAPS = Path("assets") / "alignment_matrices.png"
TIME_STAMP = b"\x30\x0b\x30\x09\x02\x01\x02\x30\x04\x0c\x02\xff\xfe"


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def config_with(**fields: object) -> Forgery:
    return lambda run, base: edit(run, "config.json", **fields)


def before_pixels(run: Path, added: bytes) -> None:
    data = (run / HEATMAPS).read_bytes()
    place = data.index(b"IDAT") - 4
    (run / HEATMAPS).write_bytes(data[:place] + added + data[place:])
    write_card(run)


def animated_heatmaps(run: Path, base: Path) -> None:
    """The first picture is right, and what a browser shows a moment later is not."""
    first = Picture.open(run / HEATMAPS).convert("RGB")
    text = Picture.open(run / HEATMAPS).info
    other = Picture.new("RGB", first.size, "white")
    from PIL.PngImagePlugin import PngInfo

    marks = PngInfo()
    for key, value in text.items():
        if isinstance(value, str):
            marks.add_text(key, value)
    first.save(run / HEATMAPS, save_all=True, append_images=[other], duration=10, pnginfo=marks)
    write_card(run)


def heatmaps_of_another_brightness(run: Path, base: Path) -> None:
    """Browsers follow the gamma that a picture names, and readers of its pixels do not."""
    before_pixels(run, chunk(b"gAMA", (200_000).to_bytes(4)))


def heatmaps_with_an_archive_behind(run: Path, base: Path) -> None:
    (run / HEATMAPS).write_bytes((run / HEATMAPS).read_bytes() + b"PK\x03\x04" + bytes(100))
    write_card(run)


def one_field_twice(run: Path, base: Path) -> None:
    """A reader who stops at the first one sees another hash than one who takes the last."""
    text = (run / "unlearning.json").read_text()
    (run / "unlearning.json").write_text(text.replace("{", '{"weights_sha256": "' + "0" * 64 + '",', 1))


def config_with_one_field_twice(run: Path, base: Path) -> None:
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace("{", '{"projection_dim": 7,', 1))
    write_card(run)


def a_tensor_in_two_shards(run: Path, base: Path) -> None:
    """Which of the two is loaded is up to the loader."""
    CLIPModel.from_pretrained(run).save_pretrained(run, max_shard_size="1MB")
    (run / "model.safetensors").unlink(missing_ok=True)
    first, second, *_ = sorted(run.glob("model-*.safetensors"))
    name, theirs = next(iter(load_file(first))), load_file(second)
    save_file({**theirs, name: load_file(base / "model.safetensors")[name]}, second, metadata={"format": "pt"})
    write_card(run)


def a_tensor_in_a_shard_that_the_index_leaves_out(run: Path, base: Path) -> None:
    CLIPModel.from_pretrained(run).save_pretrained(run, max_shard_size="1MB")
    (run / "model.safetensors").unlink(missing_ok=True)
    first = min(run.glob("model-*.safetensors"))
    save_file({**load_file(first), "hidden": torch.zeros(3)}, first, metadata={"format": "pt"})
    write_card(run)


def weights_that_are_no_numbers(run: Path, base: Path) -> None:
    tensors = load_file(run / "model.safetensors")
    name = "logit_scale"
    save_file({**tensors, name: tensors[name] * float("nan")}, run / "model.safetensors", metadata={"format": "pt"})
    rewrite(run)


def a_folder_of_pictures_that_is_a_link(run: Path, base: Path) -> None:
    shutil.move(run / "assets", run.parent / "elsewhere")
    (run / "assets").symlink_to(run.parent / "elsewhere")
    write_card(run)


def two_preprocessings(run: Path, base: Path) -> None:
    """One file is read by who loads a processor, the other by who loads an image processor."""
    CLIPImageProcessor(image_mean=[9.0] * 3, image_std=[9.0] * 3).save_pretrained(run)
    write_card(run)


def a_processor_that_fetches(run: Path, base: Path) -> None:
    named = {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": "org/evil"}
    edit(run, "processor_config.json", audio_tokenizer=named)


def two_tokenizers(run: Path, base: Path) -> None:
    vocabulary = json.loads((run / "tokenizer.json").read_text())["model"]["vocab"]
    first, second, *_ = vocabulary
    swapped = {**vocabulary, first: vocabulary[second], second: vocabulary[first]}
    (run / "vocab.json").write_text(json.dumps(swapped))
    write_card(run)


def a_pipe_for_a_config(run: Path, base: Path) -> None:
    """Loaders open it, and wait."""
    (run / "config.json").unlink()
    os.mkfifo(run / "config.json")


def a_date_before_all_dates(run: Path, base: Path) -> None:
    changed(run, created="0001-01-01T00:00:00+23:59")


def more_rows_than_there_are_numbers(run: Path, base: Path) -> None:
    request = UnlearningManifest.load(run).request
    changed(run, request=replace(request, count=10**300, row_hashes=None))


def a_pipe_for_a_record(run: Path, base: Path) -> None:
    (run / "evaluation.json").unlink()
    os.mkfifo(run / "evaluation.json")


def code_deep_in_a_config(run: Path, base: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["vision_config"]["auto_map"] = {"AutoModel": "org/evil--modeling_evil.Evil"}
    edit(run, "config.json", **config)


def a_far_larger_model(run: Path, base: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["vision_config"] |= {"hidden_size": 50_000, "intermediate_size": 50_000, "num_attention_heads": 1}
    edit(run, "config.json", **config)


def weights_with_more_behind(run: Path, base: Path) -> None:
    with (run / "model.safetensors").open("ab") as file:
        file.write(b"PK\x03\x04" + bytes(100))
    rewrite(run)


def code_in_the_folder_of_a_module(run: Path, base: Path) -> None:
    (run / "0_CLIPModel").mkdir()
    config = {"model_type": "clip", "auto_map": {"AutoModel": "org/evil--modeling_evil.Evil"}}
    (run / "0_CLIPModel" / "config.json").write_text(json.dumps(config))
    write_card(run)


def code_as_a_module(run: Path, base: Path) -> None:
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "org/evil--evil.CLIPModel"}]
    (run / "modules.json").write_text(json.dumps(modules))
    write_card(run)


def a_tensor_twice_in_one_header(run: Path, base: Path) -> None:
    """Of another shape the first time, which some readers take."""
    data = (run / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    name = next(name for name, field in header.items() if len(field.get("shape", ())) == 2)
    first = {**header[name], "shape": header[name]["shape"][::-1]}
    text = data[8:end].replace(b"{", b"{" + json.dumps({name: first})[1:-1].encode() + b",", 1)
    (run / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    rewrite(run)


def many_layers_of_another_name(run: Path, base: Path) -> None:
    (run / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 10**5, "n_embd": 8, "n_head": 2}))
    write_card(run)


def levels_without_an_interval(run: Path, base: Path) -> None:
    manifest, record = UnlearningManifest.load(run), EvaluationRecord.load(run)
    request, sha256 = manifest.request, manifest.base_model.sha256
    assert sha256 is not None
    earlier = HistoryEntry("fine_tune", "2020-01-01T00:00:00+00:00", request, sha256)
    status = RequestStatus(1, "fine_tune", None, request.count, request.count, now=5.0)
    replace(record, requests=(status, replace(status, number=2))).save(run)
    changed(run, history=(earlier,))


def request_of_another_hash(run: Path, base: Path) -> None:
    manifest = UnlearningManifest.load(run)
    sha256 = manifest.dataset.sha256
    assert sha256 is not None
    changed(run, request=replace(manifest.request, sha256=sha256, salted=False, row_hashes=None))


def request_of_nothing(run: Path, base: Path) -> None:
    manifest = UnlearningManifest.load(run)
    sha256 = hashlib.sha256(b"").hexdigest()
    changed(run, request=replace(manifest.request, sha256=sha256, salted=False, row_hashes=None))


PIPELINE = {"impl": "org/evil--evil.Pipeline", "pt": ["AutoModel"]}
FORGERIES: dict[str, tuple[Forgery, str]] = {
    "heatmaps that change when looked at": (animated_heatmaps, "heatmaps"),
    "heatmaps of another brightness": (heatmaps_of_another_brightness, "heatmaps"),
    "heatmaps with an archive behind": (heatmaps_with_an_archive_behind, "heatmaps"),
    "a config with one field twice": (config_with_one_field_twice, "code"),
    "a tensor in two shards": (a_tensor_in_two_shards, "weights"),
    "a tensor that the index leaves out": (a_tensor_in_a_shard_that_the_index_leaves_out, "weights"),
    "weights that are no numbers": (weights_that_are_no_numbers, "tensors"),
    "a linked folder of pictures": (a_folder_of_pictures_that_is_a_link, "links"),
    "two preprocessings": (two_preprocessings, "preprocessing"),
    "a processor that fetches": (a_processor_that_fetches, "preprocessing"),
    "two tokenizers": (two_tokenizers, "tokenizer"),
    "a pipe for a config": (a_pipe_for_a_config, "tensors"),
    "a date before all dates": (a_date_before_all_dates, "history"),
    "more rows than there are": (more_rows_than_there_are_numbers, "unlearning.json: counts"),
    "code deep in a config": (code_deep_in_a_config, "code"),
    "attention from elsewhere": (config_with(attn_implementation="org/evil-kernel"), "tensors"),
    "a far larger model": (a_far_larger_model, "tensors"),
    "weights with more behind": (weights_with_more_behind, "tensors"),
    "code for pipelines": (config_with(custom_pipelines={"it": PIPELINE}), "code"),
    "code in the folder of a module": (code_in_the_folder_of_a_module, "code"),
    "code as a module": (code_as_a_module, "code"),
    "many labels": (config_with(num_labels=10**9), "tensors"),  # a table of them would be made before the model is
    "a tensor twice in one header": (a_tensor_twice_in_one_header, "tensors"),
    "weights that loaders round": (config_with(dtype="float16"), "tensors"),
    "many layers of another name": (many_layers_of_another_name, "tensors"),
    "levels without an interval": (levels_without_an_interval, "request 1"),
    "the hash of the data for the request": (request_of_another_hash, "unlearning.json: hashes"),
    "the hash of nothing for the request": (request_of_nothing, "request"),
}


@pytest.mark.parametrize(("forge", "named"), FORGERIES.values(), ids=FORGERIES)
def test_a_forgery_is_caught(run: Path, base: Path, forge: Forgery, named: str) -> None:
    forge(run, base)
    assert named in failed(verify_repo(run))


@pytest.mark.parametrize("forge", [forge for forge, _ in FORGERIES.values()], ids=FORGERIES)
def test_and_is_not_published(run: Path, base: Path, hub: LocalHub, forge: Forgery) -> None:
    forge(run, base)
    with pytest.raises(UserError):
        publish_run(run, "org/clip")
    assert hub.requests == []


@pytest.mark.parametrize("forge", [one_field_twice, a_pipe_for_a_record])
def test_a_record_that_two_readers_read_differently_is_refused(run: Path, base: Path, forge: Forgery) -> None:
    forge(run, base)
    try:
        report = verify_repo(run)
    except UserError as error:
        assert "twice" in str(error)
        return
    assert any("evaluation.json" in line.subject and line.outcome is not Outcome.HOLDS for line in report.statements)


def test_how_little_of_the_base_was_changed_is_said(run: Path, base: Path) -> None:
    """That one number moved is a change all the same; who reads it can judge."""
    tensors = load_file(base / "model.safetensors")
    tensors["logit_scale"] = tensors["logit_scale"] * 1.00001
    save_file(tensors, run / "model.safetensors", metadata={"format": "pt"})
    rewrite(run)
    (line,) = [line for line in verify_repo(run, base=base).statements if "differ from the base" in line.detail]
    assert "1 of" in line.detail and "% of their size" in line.detail


def test_what_is_written_in_heatmaps_is_not_read_and_said_so(run: Path) -> None:
    (line,) = [line for line in verify_repo(run).statements if line.subject == "heatmaps"]
    assert line.outcome is Outcome.HOLDS and "what is written in it is not read" in line.detail


def test_what_a_card_of_another_version_hides_is_not_said_to_hold(run: Path) -> None:
    def hide(card: str) -> str:
        head, _, body = card.partition("\n---\n")
        return f"{head}\n---\n# Certified\n\n<!--\n{body}\n-->\n"

    other_version(hide)(run, run)
    report = verify_repo(run)
    assert "card text" in failed(report)
    assert not any(line.subject == "card tables" and line.outcome is Outcome.HOLDS for line in report.statements)


@pytest.mark.parametrize("name", ["assets/x.png", "assets/../../pipe.png"])
def test_a_recorded_picture_that_would_never_end_is_not_opened(run: Path, name: str) -> None:
    os.mkfifo(run / name)
    manifest = UnlearningManifest.load(run)
    replace(manifest, files={**manifest.files, name: "0" * 64}).save(run)
    assert name in failed(verify_repo(run))


def test_what_an_owner_names_ends(run: Path, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is no regular file"):
        verify_repo(run, salt=SALT, samples=[OwnedSample(pipe)])
    (run / "digests.sha256.tsr").write_bytes(TIME_STAMP)
    with pytest.raises(UserError, match="there is no certificate"):
        verify_repo(run, tsa_certificate=pipe)


def test_a_time_stamp_may_say_anything(run: Path, tmp_path: Path) -> None:
    """A response that refuses, and gives as its reason what is no text."""
    (run / "digests.sha256.tsr").write_bytes(TIME_STAMP)
    (tmp_path / "authority.pem").write_text("none")
    assert "time-stamp" in failed(verify_repo(run, tsa_certificate=tmp_path / "authority.pem"))


def test_a_folder_that_names_a_repository_says_so(run: Path) -> None:
    changed(run, repo_id="somebody/else")
    line = next(line for line in verify_repo(run).statements if line.subject == "repository")
    assert line.outcome is Outcome.UNCHECKED and "somebody/else" in line.detail


def test_files_that_no_record_describes_are_said(run: Path) -> None:
    (run / "custom_generate").mkdir()
    (run / "custom_generate" / "generate.py").write_text("")
    line = next(line for line in verify_repo(run).statements if line.subject == "other files")
    assert line.outcome is Outcome.UNCHECKED and "custom_generate/generate.py" in line.detail
