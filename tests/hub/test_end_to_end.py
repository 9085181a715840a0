"""From a finished run to a stranger's machine: published here, loaded and verified in a process that knows nothing."""

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hub.finished_run import SALT
from hub.local_hub import LocalHub
from transformers import CLIPImageProcessor

from hf_unlearn.hub.card import write_card
from hf_unlearn.hub.manifest import record_run
from hf_unlearn.hub.publishing import publish_run
from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.models.moco import MoCoConfig, MoCoModel
from hf_unlearn.records.schemas import BaseModel, DatasetRecord, EvaluationRecord, RequestRecord

STRANGER = """
import sys
sys.modules["hf_unlearn"] = None  # not installed here
import torch
from huggingface_hub import ModelCard, snapshot_download
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, CLIPModel

repo, views, base, picture, salt = sys.argv[1:]
model, clip = AutoModel.from_pretrained(repo), CLIPModel.from_pretrained(repo)
assert type(model) is CLIPModel
assert all(torch.equal(a, b) for a, b in zip(model.parameters(), clip.parameters(), strict=True))
AutoProcessor.from_pretrained(repo)
card = ModelCard.load(repo)
assert {r.metric_type for r in card.data.eval_results} >= {"cosine_retain", "cosine_unlearn"}
print(snapshot_download(repo))

encoder = AutoModel.from_pretrained(views, trust_remote_code=True)
inputs = AutoImageProcessor.from_pretrained(views)(Image.open(picture), return_tensors="pt")
print(type(encoder).__name__, *encoder.get_image_features(**inputs).pooler_output.shape)

del sys.modules["hf_unlearn"]  # installed now
from hf_unlearn.cli import main
owner = ["--salt", salt, "--image", picture, "--caption", "a red apple"]
sys.argv = ["hf-unlearn", "verify", repo, "--base", base, *owner]
main()
"""


def environment(hub: LocalHub, home: Path) -> dict[str, str]:
    """The variables of a fresh user whose Hub is the local one."""
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


@pytest.fixture
def moco_run(tmp_path: Path) -> Path:
    """A finished run of a family whose code is not in transformers."""
    folder = tmp_path / "moco"
    MoCoModel(MoCoConfig(width=8, image_size=32, projection_dim=8, queue_size=16)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    record_run(
        folder,
        method="fine_tune",
        base_model=BaseModel("moco"),
        dataset=DatasetRecord("org/pictures"),
        request=RequestRecord("fraction", 6, "0" * 64),
        splits={"retain": 60, "unlearn": 6, "validation": 8, "test": 9},
        hyper_parameters={},
    )
    EvaluationRecord("views", metrics={"emia": 50.0}).save(folder)
    write_card(folder)
    return folder


def test_a_stranger_loads_and_verifies_what_was_published(
    finished_run: Path, moco_run: Path, base: Path, pictures: list[Path], hub: LocalHub, tmp_path: Path
) -> None:
    publish_run(finished_run, "org/clip")
    publish_run(moco_run, "org/moco")
    command = [sys.executable, "-c", STRANGER, "org/clip", "org/moco", str(base), str(pictures[0]), SALT]
    done = subprocess.run(command, env=environment(hub, tmp_path), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    snapshot, encoder, *lines = done.stdout.splitlines()
    files = {path.relative_to(snapshot).as_posix() for path in Path(snapshot).rglob("*") if path.is_file()}
    assert files == set(hub.files("org/clip"))
    assert encoder == "MoCoModel 1 64"
    assert not [line for line in lines if line.startswith("does not hold")]
    assert [line for line in lines if line.startswith("recomputed and holds") and " weights: SHA-256 " in line]
    assert [
        line
        for line in lines
        if line.startswith("recomputed and holds") and "your a_red_apple.png: is in the request" in line
    ]
    assert lines[-1].endswith("does not hold: 0, cannot be checked here: 6")


@pytest.mark.parametrize("arrived", [False, True])
def test_a_process_killed_while_publishing_leaves_no_half_repository(run: Path, hub: LocalHub, arrived: bool) -> None:
    hub.hold = threading.Event()
    process = multiprocessing.get_context("fork").Process(target=publish_run, args=(run, "org/clip"))
    process.start()
    assert hub.held.wait(60)  # the weights are uploaded, the commit is on its way
    process.kill()
    process.join(10)
    hub.drop = None if arrived else "commit"
    hub.hold.set()
    hub.committing.join(10)
    expected = {"README.md", "model.safetensors"} if arrived else set()
    assert set(hub.files("org/clip")) & {"README.md", "model.safetensors"} == expected
    hub.drop, hub.hold = None, None
    publish_run(run, "org/clip")
    assert verify_repo("org/clip").ok
    assert len(hub.log("org/clip")) == 2
