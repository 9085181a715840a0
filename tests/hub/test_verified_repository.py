"""A repository on a Hub is checked as it lies there, with what was added or exchanged since."""

from pathlib import Path

import pytest
from datasets import Dataset
from hub.local_hub import Blob, LocalHub
from hub.test_verification import subjects

from hf_unlearn.audit.encoders import resolve_folder
from hf_unlearn.errors import UserError
from hf_unlearn.hub.past_requests import past_rows
from hf_unlearn.hub.publishing import publish_run
from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.hub.verification_report import Outcome


def test_a_repository_is_checked_as_published(run: Path, hub: LocalHub) -> None:
    publish_run(run, "org/clip")
    report = verify_repo("org/clip")
    assert report.ok, report.failures
    held = {line.subject for line in report.statements if line.outcome is Outcome.HOLDS}
    assert {"weights", "repository", "other weights", "card tables"} < held


@pytest.mark.parametrize(
    ("name", "old", "new", "named"),
    [
        ("model.safetensors", None, None, "weights"),
        ("README.md", b"| 41.00\xc2\xa0", b"| 35.00\xc2\xa0", "Matched cosine, unlearn (×100), This model"),
        ("unlearning.json", b'"row_hashes": [\n      "', b'"row_hashes": [\n      "0', "request"),
    ],
)
def test_tampering_in_the_repository_is_named(run: Path, hub: LocalHub, name: str, old, new, named: str) -> None:
    publish_run(run, "org/clip")
    content = hub.files("org/clip")[name]
    changed = content[:-1] + bytes([content[-1] ^ 1]) if old is None else content.replace(old, new)
    assert changed != content
    hub.tamper("org/clip", name, changed)
    assert [subject for subject in subjects(verify_repo("org/clip")) if subject.endswith(named)]


@pytest.mark.parametrize(
    ("target", "revision", "named"),
    [
        ("../runs/clip", None, "neither a folder nor a Hub id"),
        ("org/none", None, "nor a repository that you may read"),
        ("org/clip", "v9", "org/clip has no revision 'v9'"),
    ],
)
def test_what_is_no_model_is_refused(run: Path, hub: LocalHub, target: str, revision: str | None, named: str) -> None:
    publish_run(run, "org/clip")
    with pytest.raises(UserError, match=named):
        verify_repo(target, revision=revision)


def test_a_revision_of_a_folder_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match=r"--revision v1 would have no effect: \S+ is a folder, not on the Hub"):
        verify_repo(run, revision="v1")
    with pytest.raises(UserError, match="the revision v1 would have no effect"):
        past_rows(run, Dataset.from_dict({}), revision="v1")
    with pytest.raises(UserError, match="the revision v1 would have no effect"):
        resolve_folder(f"{run}@v1")


def test_a_repository_in_the_cache_is_checked_offline(
    run: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    publish_run(run, "org/clip")
    assert verify_repo("org/clip").ok
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    report = verify_repo("org/clip")
    assert report.ok
    assert "other weights" in [line.subject for line in report.statements if line.outcome is Outcome.UNCHECKED]


def test_a_hub_out_of_reach_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        verify_repo("org/clip")


def test_a_pickle_added_later_and_a_copy_elsewhere_are_found(run: Path, hub: LocalHub) -> None:
    publish_run(run, "org/clip")
    repo = hub.repos["org/clip"]
    files = dict(repo.commits[repo.refs["main"]])
    hub.repos["org/copy"] = copy = type(repo)()
    copy.commit("main", {**files, "pytorch_model.bin": files["README.md"]}, "copied")
    assert subjects(verify_repo("org/copy")) == ["repository", "other weights"]


FOREIGN = [
    "model.onnx",
    "onnx/model.onnx",
    "m.gguf",
    "m.tflite",
    "m.keras",
    "handler.py",
    "tf_model.h5",
    "M.PT",
    "Config.json",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_whatever_else_could_be_loaded_is_named(run: Path, hub: LocalHub, name: str) -> None:
    publish_run(run, "org/clip")
    repo = hub.repos["org/clip"]
    repo.commit("main", {**repo.commits[repo.refs["main"]], name: Blob(b"x", lfs=False)}, "added")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_bytes(b"x")
    for target in ("org/clip", run):
        (failure,) = verify_repo(target).failures
        assert failure.subject == "other weights" and failure.detail == f"also holds {name}"
    publish_run(run, "org/clip")
    assert verify_repo("org/clip").ok, "publishing removes what verification would name"
