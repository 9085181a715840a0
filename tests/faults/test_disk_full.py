"""Case 19: a disk that fills up while something is saved costs only that; what was there still loads."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.conftest import FAMILIES, weights
from folders import folder_hash

from hf_unlearn.errors import UserError
from hf_unlearn.hub.records import write_atomically
from hf_unlearn.methods.checkpoints import damage, newest_checkpoint
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.runs.folders import finished_folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a file system of so many KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"a small file system cannot be mounted here ({done.stderr.strip()}); run as root")
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
