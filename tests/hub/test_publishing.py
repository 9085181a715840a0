"""Publishing to a Hub on this machine with the real client: the right files, in one commit, or nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub.local_hub import Blob, LocalHub, Repo
from PIL import Image as Picture

from hf_unlearn.errors import UserError
from hf_unlearn.figures.heatmaps import plot_alignment_matrices
from hf_unlearn.hub.card import write_card
from hf_unlearn.hub.publishing import publish_run
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.records.schemas import EvaluationRecord, UnlearningManifest

SENT = {
    "README.md",
    "assets/alignment_matrices.png",
    "evaluation.json",
    "config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "unlearning.json",
}
INITIAL = {".gitattributes"}


def published(hub: LocalHub, repo_id: str = "org/clip", revision: str = "main") -> set[str]:
    return set(hub.files(repo_id, revision)) - INITIAL


def test_exactly_the_listed_files_are_sent_in_one_commit(run: Path, hub: LocalHub) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = publish_run(run, "org/clip", private=True)
    assert published(hub) == SENT == {file.name for file in result.files}
    assert hub.log("org/clip") == ["initial commit", "Unlearned with Alignment Calibration"]
    assert hub.repos["org/clip"].private
    assert result.commit == hub.repos["org/clip"].refs["main"]
    assert set(result.kept_back) == {"checkpoint-4", "events.log", "training_args.bin"}
    sent = hub.files("org/clip")
    assert sent["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert 'from_pretrained("org/clip")' in sent["README.md"].decode()
    assert json.loads(sent["unlearning.json"])["repo_id"] == "org/clip"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_dry_run_lists_every_file_and_size_and_sends_nothing(run: Path, hub: LocalHub) -> None:
    plan = publish_run(run, "org/clip", dry_run=True)
    assert not plan.sent
    assert not hub.repos
    assert not [request for request in hub.requests if not request.startswith("GET")]
    publish_run(run, "org/clip")
    assert {file.name: file.size for file in plan.files} == {
        name: len(content) for name, content in hub.files("org/clip").items() if name not in INITIAL
    }


def test_a_dry_run_needs_no_hub(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    plan = publish_run(run, "org/clip", dry_run=True)
    assert {file.name for file in plan.files} == SENT
    assert plan.removed is None


def test_publishing_again_makes_no_further_commit(run: Path, hub: LocalHub) -> None:
    first = publish_run(run, "org/clip")
    again = publish_run(run, "org/clip")
    assert again.commit == first.commit
    assert len(hub.log("org/clip")) == 2


def test_older_weights_and_pictures_do_not_stay_beside_the_new(run: Path, hub: LocalHub) -> None:
    names = (
        *("pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "assets/old.png"),
        *("onnx/model.onnx", "model.gguf", "tf_model.keras", "handler.py", "modeling_old.py"),
    )
    kept = ("LICENSE", "assets/logo.svg", "examples/demo.py")
    hub.repos["org/clip"] = repo = Repo()
    repo.commit("main", {name: Blob(b"old", lfs=False) for name in (*names, *kept)}, "the base model")
    assert set(publish_run(run, "org/clip", dry_run=True).removed or ()) == set(names)
    assert set(publish_run(run, "org/clip").removed or ()) == set(names)
    assert published(hub) == SENT | set(kept)
    assert len(repo.commits) == 2


def test_a_pull_request_leaves_the_base_repository_as_it_is(run: Path, hub: LocalHub) -> None:
    hub.repos["org/base"] = repo = Repo()
    head = repo.commit("main", {"pytorch_model.bin": Blob(b"old", lfs=True)}, "the base model")
    result = publish_run(run, "org/base", create_pr=True)
    assert repo.refs["main"] == head
    assert result.pull_request == f"{hub.url}/org/base/discussions/1"
    assert published(hub, "org/base", "refs/pr/1") == SENT


def test_a_lost_answer_opens_no_second_pull_request(run: Path, hub: LocalHub) -> None:
    hub.repos["org/base"] = repo = Repo()
    repo.commit("main", {"pytorch_model.bin": Blob(b"old", lfs=True)}, "the base model")
    hub.drop = "commit-answer"
    with pytest.raises(UserError, match="publish again"):
        publish_run(run, "org/base", create_pr=True)
    hub.drop = None
    again = publish_run(run, "org/base", create_pr=True)
    assert repo.pull_requests == 1 and again.sent
    assert again.commit == repo.refs["refs/pr/1"] and again.pull_request == f"{hub.url}/org/base/discussions/1"
    publish_run(run, "org/base", create_pr=True, commit_message="Another request")
    title = "Unlearned with Alignment Calibration"
    repo.refs["refs/pr/1"] = repo.commit("elsewhere", {"README.md": Blob(b"other", lfs=False)}, title)
    publish_run(run, "org/base", create_pr=True)
    assert repo.pull_requests == 3, "other titles and other files are other pull requests"


def test_a_pull_request_against_nothing_is_refused(run: Path, hub: LocalHub) -> None:
    with pytest.raises(UserError, match=r"HTTP 404.*create it first"):
        publish_run(run, "org/none", create_pr=True)
    assert not hub.repos


def test_a_branch_is_created_and_main_left_alone(run: Path, hub: LocalHub) -> None:
    for _ in range(2):
        publish_run(run, "org/clip", revision="unlearned")
    assert published(hub, revision="unlearned") == SENT
    assert published(hub) == set()
    assert len(hub.log("org/clip")) == 2


def test_a_bare_name_belongs_to_the_token(run: Path, hub: LocalHub) -> None:
    with pytest.raises(UserError, match="hf auth login"):
        publish_run(run, "clip")
    assert publish_run(run, "clip", token="hf_me").repo_id == "me/clip"
    assert published(hub, "me/clip") == SENT


@pytest.mark.parametrize("moment", ["preupload", "lfs", "commit"])
def test_a_broken_connection_leaves_the_repository_untouched(run: Path, hub: LocalHub, moment: str) -> None:
    hub.drop = moment
    with pytest.raises(UserError, match="publish again"):
        publish_run(run, "org/clip")
    assert published(hub) == set()
    hub.drop = None
    publish_run(run, "org/clip")
    assert published(hub) == SENT
    assert len(hub.log("org/clip")) == 2


def test_a_lost_answer_leaves_the_repository_complete(run: Path, hub: LocalHub) -> None:
    hub.drop = "commit-answer"
    with pytest.raises(UserError, match="publish again"):
        publish_run(run, "org/clip")
    assert published(hub) == SENT
    hub.drop = None
    assert publish_run(run, "org/clip").commit == hub.repos["org/clip"].refs["main"]
    assert len(hub.log("org/clip")) == 2


def test_a_commit_by_somebody_else_meanwhile_is_not_overwritten(
    run: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    publish_run(run, "org/clip")
    hub.tamper("org/clip", "config.json", b"{}")
    look = HfApi.model_info

    def look_then_lose_the_race(api: HfApi, *arguments: object, **options: object) -> object:
        info = look(api, *arguments, **options)
        hub.tamper("org/clip", "README.md", b"somebody else's")
        return info

    monkeypatch.setattr(HfApi, "model_info", look_then_lose_the_race)
    with pytest.raises(UserError, match=r"HTTP 412.*somebody committed"):
        publish_run(run, "org/clip")
    assert hub.files("org/clip")["README.md"] == b"somebody else's"


@pytest.mark.parametrize("repo_id", ["../clip", "a/b/c", "org/cl ip", "/etc/clip"])
def test_what_is_no_repository_name_is_refused(run: Path, hub: LocalHub, repo_id: str) -> None:
    with pytest.raises(UserError, match="no repository name"):
        publish_run(run, repo_id)
    assert hub.requests == []


def break_weights(run: Path) -> None:
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "model.safetensors").write_bytes(weights)


def pickle_weights(run: Path) -> None:
    torch.save({"w": torch.ones(1)}, run / "model.safetensors")
    evaluation, manifest = EvaluationRecord.load(run), UnlearningManifest.load(run)
    replace(evaluation, weights_sha256=weights_sha256(run)).save(run)
    replace(manifest, weights_sha256=weights_sha256(run)).save(run)
    write_card(run)


def leak_path(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "_name_or_path": "/data/runs/clip"}))
    write_card(run)


def need_more_code(run: Path) -> None:
    (run / "modeling_clip.py").write_text("from .helpers import pool\n")
    write_card(run)


def leak_note(run: Path) -> None:
    replace(UnlearningManifest.load(run), notes=("resumed from /data/runs/checkpoint-4",)).save(run)
    write_card(run)


def label_by_caption(run: Path) -> None:
    evaluation = EvaluationRecord.load(run)
    assert evaluation.matrices is not None
    replace(evaluation, matrices=replace(evaluation.matrices, labels=("a red apple",) * 6)).save(run)
    write_card(run)


def draw_with_samples(run: Path) -> None:
    samples = [Picture.new("RGB", (8, 8))] * 6
    matrices = EvaluationRecord.load(run).matrices
    assert matrices is not None
    path = run / "assets" / "alignment_matrices.png"
    plot_alignment_matrices(matrices.am_before, matrices.am_after, path, images=samples)
    write_card(run)


def unmarked_picture(run: Path) -> None:
    Picture.new("RGB", (8, 8)).save(run / "assets" / "mine.png")
    write_card(run)


def remove(name: str):
    def act(run: Path) -> None:
        (run / name).unlink()

    return act


def edit_figure(run: Path) -> None:
    card = (run / "README.md").read_text()
    (run / "README.md").write_text(card.replace("41.00\xa0±\xa09.50", "35.00\xa0±\xa09.50"))


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (break_weights, "weights: SHA-256 is"),
        (pickle_weights, "model.safetensors: is not what its name says"),
        (leak_path, "config.json: line 1 holds the absolute path /data/runs/clip"),
        (need_more_code, "would need helpers.py"),
        (leak_note, "unlearning.json: line"),
        (label_by_caption, "--show_samples"),
        (draw_with_samples, "alignment_matrices.png shows requested samples, but evaluation.json"),
        (unmarked_picture, "assets/mine.png does not say whether requested samples are shown"),
        (edit_figure, "Matched cosine, unlearn (×100), This model: shows '35.00"),
        (remove("README.md"), "hf-unlearn card alignment_calibration"),
        (remove("config.json"), "holds no config.json"),
        (remove("unlearning.json"), "holds no unlearning.json"),
        (remove("assets/alignment_matrices.png"), "assets/alignment_matrices.png"),
    ],
)
def test_a_run_that_should_not_be_seen_is_refused_before_anything_is_sent(
    run: Path, hub: LocalHub, break_it, named: str
) -> None:
    break_it(run)
    with pytest.raises(UserError) as error:
        publish_run(run, "org/clip")
    assert named in str(error.value)
    assert hub.requests == []


def test_samples_are_shown_where_that_was_asked_for(run: Path, hub: LocalHub) -> None:
    label_by_caption(run)
    publish_run(run, "org/clip", show_samples=True)
    assert b"Except for the samples drawn on the heatmaps" in hub.files("org/clip")["README.md"]


def test_a_picture_of_samples_that_the_record_denies_is_refused_even_then(run: Path, hub: LocalHub) -> None:
    draw_with_samples(run)
    with pytest.raises(UserError, match="the card say that none is shown"):
        publish_run(run, "org/clip", show_samples=True)
    assert hub.requests == []
    label_by_caption(run)  # as a run with --show_samples writes it
    publish_run(run, "org/clip", show_samples=True)


def test_a_picture_of_unknown_content_may_be_shown_where_that_was_asked_for(run: Path, hub: LocalHub) -> None:
    unmarked_picture(run)
    publish_run(run, "org/clip", show_samples=True)
    assert "assets/mine.png" in published(hub)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        publish_run(tmp_path / "none", "org/clip")
