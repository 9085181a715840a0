"""Case 19: a disk that fills up while something is saved costs only that; what was there still loads."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.conftest import FAMILIES, weights
from folders import folder_hash

from hf_unlearn.cli import main
from hf_unlearn.errors import UserError
from hf_unlearn.files import finished_folder, write_atomically
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.training.checkpoints import damage, newest_checkpoint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a file system of so many KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            missing = pytest.fail if "CI" in os.environ else pytest.skip  # where every case has to be shown
            missing(f"a small file system cannot be mounted here ({done.stderr.strip()}); run as root")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def size_kib(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024


@pytest.mark.parametrize("share", [0.05, 0.4, 0.75, 0.95])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoint_before_still_loads(family, share, trainer, small_disk, tmp_path):
    options = {"num_train_epochs": 1, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    never_stopped = trainer(family, "fine_tune", **options)
    never_stopped.train()
    one = size_kib(tmp_path / "out" / "checkpoint-1")
    disk = small_disk(int(one * (1 + share)) + 64)  # room for one and a part of the next
    ours = trainer(family, "fine_tune", **options, output_dir=str(disk / "out"))
    with pytest.raises(UserError, match=r"no space left on the disk of .*checkpoint-2 was not written.*--output_dir"):
        ours.train()
    assert [path.name for path in (disk / "out").iterdir()] == ["checkpoint-1"]
    newest = newest_checkpoint(disk / "out")
    assert newest is not None and damage(newest) is None
    resumed = trainer(family, "fine_tune", **{**options, "save_strategy": "no"}, output_dir=str(disk / "out"))
    resumed.train(resume_from_checkpoint=True)
    assert weights(resumed.model) == weights(never_stopped.model)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_finished_folder_is_replaced_whole_or_not_at_all(share, bases, small_disk):
    model, processor = load_encoder(str(bases["simclr"]))
    disk = small_disk(int(size_kib(bases["simclr"]) * (1 + share) * 1.1) + 64)
    with finished_folder(disk / "run") as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
    before = folder_hash(disk / "run")
    with (
        pytest.raises(UserError, match=r"no space left on the disk of .*: run was not written"),
        finished_folder(disk / "run") as temporary,
    ):
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        (temporary / "assets.png").write_bytes(bytes(2**20))
    assert [path.name for path in disk.iterdir()] == ["run"] and folder_hash(disk / "run") == before
    load_encoder(str(disk / "run"))


def test_a_record_is_replaced_whole_or_not_at_all(small_disk):
    disk = small_disk(64)
    write_atomically(disk / "results.json", "old")
    with pytest.raises(OSError, match=re.escape("No space left")):
        write_atomically(disk / "results.json", "x" * 2**17)
    assert [path.name for path in disk.iterdir()] == ["results.json"]
    assert (disk / "results.json").read_text() == "old"


def test_a_recording_that_does_not_fit_is_one_sentence(small_disk, bases, shapes, tmp_path, monkeypatch, capsys):
    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(shapes.select(range(8))["image"]):
        image.save(tmp_path / "pictures" / f"{index}.png")
    disk = small_disk(4)
    words = ["audit", "record", "--model", bases["simclr"], "--images", tmp_path / "pictures", "--device", "cpu"]
    words += ["--view_side", "16", "--output_file", disk / "before.safetensors"]
    monkeypatch.setattr(sys, "argv", ["hf-unlearn", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2 and len(told) == 1 and told[0].startswith("error: no space left on the disk")
    assert not list(disk.iterdir())
