"""Bad input as a user meets it: each recipe and command ends with status 2 and one sentence, and writes nothing."""

import json
import re
import runpy
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from faults.conftest import FAMILIES
from safetensors.torch import load_file, save_file

from hf_unlearn.cli import main

RECIPES = Path(__file__).parents[2] / "recipes"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int) -> bytes:
    """A PNG of few bytes that says it holds so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.fixture
def told(monkeypatch, capsys) -> Callable[[Callable[[], object], str], str]:
    """Run a program in this process: what it says, having ended with status 2 and that one sentence on stderr."""

    def run(program: Callable[[], object], *argv: str) -> str:
        monkeypatch.setattr(sys, "argv", ["program", *argv])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            program()
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert ended.value.code == 2 and len(lines) == 1, lines
        return lines[0]

    return run


def recipe(family: str) -> Callable[[], object]:
    return lambda: runpy.run_path(str(RECIPES / f"unlearn_{family}.py"), run_name="__main__")


def listing(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def with_images(rows: Dataset, changed: dict[int, bytes]) -> Dataset:
    """The rows with the stored image of some replaced."""
    content = rows.cast_column("image", rows.features["image"].__class__(decode=False))[:]
    for index, image in changed.items():
        content["image"][index] = {"bytes": image, "path": None}
    return Dataset.from_dict(content, features=rows.features)


@pytest.fixture(scope="session")
def inputs(shapes, bases, tmp_path_factory) -> Path:
    """A folder of good and bad datasets, request files, configs and models."""
    root = tmp_path_factory.mktemp("inputs")
    stored = shapes.cast_column("image", shapes.features["image"].__class__(decode=False))[:]["image"]
    captions = [[" "] if i == 5 else row for i, row in enumerate(shapes["captions"])]
    datasets = {
        "good": shapes,
        "truncated": with_images(shapes, {7: stored[7]["bytes"][:60]}),
        "bomb": with_images(shapes, {7: png_of(30_000, 30_000)}),
        "copies": with_images(shapes, {7: stored[0]["bytes"]}),
        "blank": Dataset.from_dict({**with_images(shapes, {})[:], "captions": captions}, features=shapes.features),
        "uncaptioned": shapes.remove_columns("captions"),
        "shared": DatasetDict(retain=shapes.select(range(9)), unlearn=shapes.select(range(7, 11))),
        "all-retain": DatasetDict(retain=shapes.select(range(9)), unlearn=shapes.select([])),
        "all-unlearn": DatasetDict(retain=shapes.select([]), unlearn=shapes.select(range(9))),
    }
    for name, rows in datasets.items():
        rows.save_to_disk(root / name)
    (root / "empty.txt").touch()
    (root / "ids.txt").write_text("\n".join([shapes["id"][0], "no-such-id", shapes["id"][0], "another"]))
    (root / "first.txt").write_text(shapes["id"][0])
    (root / "seventh.txt").write_text(shapes["id"][7])
    (root / "typed.json").write_text('["red-circle-3", 1.5, null]')
    (root / "latin.txt").write_bytes("é".encode("latin-1"))
    (root / "bad.yaml").write_text("learning_rate: [")
    (root / "unknown.yaml").write_text("learning_rat: 1e-4")
    (root / "section.yaml").write_text("amnesia:\n  beta: 1")
    for family, folder in bases.items():
        for kind in ("copy", "pickled", "nan", "code"):
            shutil.copytree(folder, root / f"{family}-{kind}")
        state = load_file(folder / "model.safetensors")
        torch.save(state, root / f"{family}-pickled" / "pytorch_model.bin")
        (root / f"{family}-pickled" / "model.safetensors").unlink()
        broken = {name: value * float("nan") if value.is_floating_point() else value for name, value in state.items()}
        save_file(broken, root / f"{family}-nan" / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "other", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
        (root / f"{family}-code" / "config.json").write_text(json.dumps(config))
        (root / f"{family}-code" / "evil.py").write_text(f"open({str(root / 'code was run')!r}, 'w')")
    return root


REFUSED = {
    "1 an empty request": ("--unlearn_request {}/empty.txt", r"empty.txt must be corrected; it has no id in it"),
    "1 fraction 0": ("--unlearn_fraction 0", r"--unlearn_fraction must be above 0"),
    "nothing to unlearn": ("", r"Nothing says what is to be unlearned: give --unlearn_request FILE"),
    "1 an empty unlearn split": (
        "--dataset_name {}/all-retain",
        r"all-retain has a split without rows .*save it with rows",
    ),
    "2 fraction 1": ("--unlearn_fraction 1", r"--unlearn_fraction must be .* below 1"),
    "2 an empty retain split": ("--dataset_name {}/all-unlearn", r"all-unlearn has a split without rows"),
    "3 ids in both": (
        "--dataset_name {}/shared",
        r"2 ids are in both splits.*leave each in one: blue-square-3, blue-triangle-3",
    ),
    "4 copies": ("--dataset_name {}/copies --unlearn_request {}/first.txt", r"exact copies .*--duplicates move"),
    "5 unknown and repeated ids": ("--unlearn_request {}/ids.txt", r"repeated ids \(1\).*\(2\): no-such-id, another"),
    "5 wrongly typed ids": ("--unlearn_request {}/typed.json", r"no id \(2\): 1.5 \(entry 2\), None \(entry 3\)"),
    "5 another encoding": ("--unlearn_request {}/latin.txt", r"latin.txt is not UTF-8 text .*convert it"),
    "6 the last batch dropped": ("--dataloader_drop_last true", r"dataloader_drop_last.*leave it unset"),
    "6 no epoch": ("--num_train_epochs 0", r"num_train_epochs=0.* would make no update; use more"),
    "9 batch size 1": ("--per_device_train_batch_size 1", r"without negatives; use at least 2"),
    "10 a truncated image": ("--dataset_name {}/truncated", r"--skip_bad_images\): \S+: it cannot be read"),
    "10 a truncated image to unlearn": (
        "--dataset_name {}/truncated --unlearn_request {}/seventh.txt --skip_bad_images",
        r"is never skipped: fetch it anew, or take its id out of the request\): \S+: it cannot be read",
    ),
    "11 a bomb": ("--dataset_name {}/bomb", r"more than the 89,478,485 pixels"),
    "13 an empty caption": (
        "--dataset_name {}/blank",
        r"empty in the rows with these ids: green-triangle-3; .*\(--caption_column\)",
    ),
    "15 a base model of NaN": (
        "--model_name_or_path {}/{family}-nan",
        r"{family}-nan: an embedding is not finite; .*name another",
    ),
    "18 another batch size unasked": ("--auto_find_batch_size true", r"number of negatives unseen; choose"),
    "23 pickled weights": ("--model_name_or_path {}/{family}-pickled", r"pickled.*use_safetensors=False"),
    "24 remote code": ("--model_name_or_path {}/{family}-code", r"--trust_remote_code if you trust it"),
    "24 no name": (
        "--model_name_or_path ../../etc/x",
        r"'\.\./\.\./etc/x' is neither a folder nor a Hub id; name a folder that is there, or owner/name",
    ),
    "a config that is no YAML": ("--config {}/bad.yaml", r"bad.yaml is not valid YAML \(line 1\)"),
    "a setting nobody has": ("--config {}/unknown.yaml", r"--learning_rat; did you mean --learning_rate"),
    "a section nobody has": ("--config {}/section.yaml", r"'amnesia' that is no method; known"),
    "a missing config": ("--config {}/none.yaml", r"none.yaml does not exist"),
    "a missing dataset": ("--dataset_name {}/nowhere", r"nowhere is neither a path .* nor a Hub id"),
    "a missing column": ("--image_column picture", r"'picture' \(--image_column\); its columns: image"),
    "a number that is none": ("--learning_rate fast", r"learning_rate.*'fast'"),
    "a method nobody has": ("--methods amnesia", r"unknown method amnesia; choose from"),
    "an output folder that is a file": ("--output_dir {}/first.txt", r"first.txt is a file; name a folder"),
    "a place nobody can write to": (
        "--output_dir /proc/run",
        r"/proc/run cannot be written to \(.*choose another --output_dir",
    ),
    "an output inside the base model": (
        "--model_name_or_path {}/{family}-nan --output_dir {}/{family}-nan/out",
        r"--output_dir \S+-nan/out lies in --model_name_or_path \S+-nan, which is only read",
    ),
    "a base model inside the output": (
        "--model_name_or_path {}/{family}-nan --output_dir {}",
        r"--model_name_or_path \S+-nan lies in --output_dir \S+, which is written to",
    ),
    "an output inside the initial model": (
        "--model_name_or_path {}/{family}-code --initial_model {}/{family}-nan --output_dir {}/{family}-nan",
        r"--initial_model \S+-nan lies in --output_dir \S+-nan, which is written to",
    ),
    "an output inside the dataset": ("--output_dir {}/good/out", r"good/out lies in --dataset_name \S+/good, which is"),
    "an output that is the Retrain": (
        "--retrain_model {}/{family}-code --output_dir {}/{family}-code",
        r"--retrain_model \S+-code lies in --output_dir",
    ),
    "the base model for a Retrain": (
        "--retrain_model {}/{family}-copy",
        r"{family}-copy is the base model itself; name",
    ),
    "an adapter for what edits weights": (
        "--use_peft true --methods fine_tune slug",
        r"no adapter can hold what slug would change",
    ),
    "13 no captions": ("--dataset_name {}/uncaptioned", r"needs captions; name their column with --caption_column"),
    "13 captions beyond the positions": (
        "--max_length 9999",
        r"max_length=9999 is more than the \d+ tokens that CLIPModel has positions for; use fewer",
    ),
    "a missing Retrain": ("--retrain_model {}/no-retrain", r"no-retrain' is neither a folder nor a Hub id"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_recipe_refuses_bad_input(family, case, told, inputs, bases, tmp_path, monkeypatch):
    if case.startswith("13") and family != "clip":
        pytest.skip("images alone have no captions")
    words, message = REFUSED[case]
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    given = ["--dataset_name", str(inputs / "good"), "--model_name_or_path", str(bases[family]), "--use_cpu", "true"]
    given += ["--output_dir", str(tmp_path / "out"), "--methods", "fine_tune"]
    given += [] if family == "clip" else ["--views", "light"]
    if not re.search("--unlearn_|/shared|/all-", words) and not case.startswith("nothing"):
        given += ["--unlearn_fraction", "0.1"]
    before = listing(inputs)
    sentence = told(recipe(family), *given, *words.replace("{}", str(inputs)).replace("{family}", family).split())
    assert re.search(message.replace("{family}", family), sentence), sentence
    assert listing(tmp_path) == set() and listing(inputs) == before


COMMANDS = {
    "no such method": ("methods amnesia", r"unknown method amnesia; choose from"),
    "nothing to unlearn": ("evaluate {base} --base {base} --dataset {}/good", r"Nothing says what is to be unlearned"),
    "a model that is not there": ("evaluate {}/none --base {base} {good}", r"none' is neither a folder nor a Hub id"),
    "a base that is not there": (
        "evaluate {base} --base {}/none {good}",
        r"none' is neither a folder nor .*name a folder",
    ),
    "weights of NaN": (
        "evaluate {}/clip-nan --base {base} {good}",
        r"clip-nan: an embedding is not finite; .*name another",
    ),
    "a file for a folder": (
        "evaluate {base} --base {base} --dataset {}/good --output_dir {}/first.txt",
        r"first.txt cannot be written to \(Not a directory\)",
    ),
    "an option nobody has": ("evaluate {base} --base {base} --dataset {}/good --colour red", r"option --colour"),
    "a table inside the base": (
        "evaluate {}/clip-copy --base {base} {good} --output_dir {base}/x",
        r"--output_dir \S+/x lies in --base \S+, which is only read",
    ),
    "a table inside the checkpoint": (
        "evaluate {}/clip-copy --base {base} {good} --output_dir {}/clip-copy/x",
        r"--output_dir \S+/x lies in the checkpoint \S+-copy, which is only read",
    ),
    "a table around the data": (
        "evaluate {}/clip-copy --base {base} {good} --output_dir {}/good/..",
        r"the checkpoint \S+-copy lies in --output_dir",
    ),
    "a Retrain that is the base": (
        "evaluate {base} --base {base} --retrain {}/clip-copy {good}",
        r"clip-copy is the base model itself",
    ),
    "trials inside the base": (
        "tune --model_name_or_path {base} --dataset_name {}/good --methods fine_tune --output_dir {base}/tuned",
        r"--output_dir \S+/tuned lies in --model_name_or_path \S+, which is only read",
    ),
    "trials around the data": (
        "tune --family clip --dataset_name {}/good --methods fine_tune --output_dir {}",
        r"--dataset_name \S+/good lies in --output_dir",
    ),
    "a recording inside its model": (
        "audit record --model {base} --images {pictures} --output_file {base}/before.safetensors",
        r"--output_file \S+/before.safetensors lies in --model \S+, which is only read",
    ),
    "a report inside a model": (
        "audit --before {base} --after {}/clip-copy --images {pictures} --output_dir {}/clip-copy/report",
        r"--output_dir \S+/report lies in --after \S+-copy, which is only read",
    ),
    "nothing to publish": ("publish {}/none --repo org/x --dry_run", r"none is no folder; name"),
    "no run to publish": ("publish {base} --repo org/x --dry_run", r"holds no unlearning.json"),
    "no run to verify": ("verify {base}", r"unlearning.json"),
    "no run to make a card of": ("card {base}", r"unlearning.json"),
    "no pictures to audit": (
        "audit --before {base} --after {base} --images {}/none --output_dir {}/report",
        r"none",
    ),
    "a model to audit that is not there": (
        "audit --before {}/nobody --after {base} --images {pictures} --output_dir {}/report",
        r"nobody",
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_refuses_bad_input(case, told, inputs, bases, tmp_path):
    words, message = COMMANDS[case]
    words = words.replace("{good}", "--dataset {}/good --unlearn_fraction .1")
    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(load_from_disk(str(inputs / "good")).select(range(3))["image"]):
        image.save(tmp_path / "pictures" / f"{index}.png")
    for name, folder in {"{}": inputs, "{base}": bases["clip"], "{pictures}": tmp_path / "pictures"}.items():
        words = words.replace(name, str(folder))
    before = listing(inputs)
    sentence = told(main, *words.split())
    assert re.search(message, sentence), sentence
    assert listing(inputs) == before
