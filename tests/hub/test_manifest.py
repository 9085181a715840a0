"""What a run writes about its base model and its settings."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from datasets import Dataset
from hub.finished_run import CAPTIONS, SALT, describe, perturb
from hub.local_hub import LocalHub
from transformers import TrainingArguments

from hf_unlearn.data.fingerprint import sample_hash
from hf_unlearn.data.requests import RemovalRequest
from hf_unlearn.errors import UserError
from hf_unlearn.hub.manifest import describe_base_model, describe_request, public_hyper_parameters, record_run
from hf_unlearn.hub.publishing import publish_run
from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.records.schemas import BaseModel, DatasetRecord, RequestRecord, UnlearningManifest
from hf_unlearn.runs.run_arguments import RunArguments


@dataclass
class Config(TrainingArguments):
    alpha: float = 0.5
    views: str = "cifar"
    request_file: str = "ids.txt"
    api_token: str = "sentinel"
    limit: float = field(default=float("inf"))


def test_a_local_base_is_named_without_its_path(base: Path) -> None:
    described, history = describe_base_model(str(base))
    assert described == BaseModel("small-clip", None, weights_sha256(base), license="cc-by-sa-4.0")
    assert history == ()


def test_a_base_that_was_unlearned_before_brings_its_history(finished_run: Path) -> None:
    described, history = describe_base_model(str(finished_run))
    assert [entry.weights_sha256 for entry in history] == [described.sha256]
    assert history[0].method == "alignment_calibration"


def test_a_base_on_the_hub_is_pinned_to_its_commit(run: Path, hub: LocalHub) -> None:
    publish_run(run, "org/clip")
    described, history = describe_base_model("org/clip", "main")
    assert (described.name_or_path, described.revision) == ("org/clip", hub.repos["org/clip"].refs["main"])
    assert described.sha256 == weights_sha256(run)
    assert len(history) == 1


def test_three_requests_on_one_model_form_a_chain(run: Path, requested, tmp_path: Path) -> None:
    model = run
    for method in ("fine_tune", "neg_grad"):
        folder = tmp_path / "runs" / method
        folder.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_bytes((model / name).read_bytes())
        perturb(folder)
        describe(folder, model, requested, method)
        model = folder
    history = UnlearningManifest.load(model).history
    assert [entry.method for entry in history] == ["alignment_calibration", "fine_tune"]
    assert history[1].base_sha256 == history[0].weights_sha256
    assert "| 3 | " in (model / "README.md").read_text()


@pytest.mark.parametrize("salt", ["", "  "])
def test_an_empty_salt_is_refused_wherever_one_is_given(salt: str, requested: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--request_salt is empty, so anybody could make the same hashes"):
        RunArguments(request_salt=salt)
    with pytest.raises(UserError, match="salt is empty, so anybody"):
        describe_request(RemovalRequest("file", (CAPTIONS[1],)), requested, salt)
    with pytest.raises(UserError, match="--salt is empty; give the request's"):
        verify_repo(str(tmp_path), salt=salt)


def test_a_salted_request_lists_its_rows_and_an_unsalted_one_does_not(requested: Dataset, pictures: list[Path]) -> None:
    request = RemovalRequest("file", (CAPTIONS[3], CAPTIONS[1]))  # the split also holds copies that were moved along
    plain = describe_request(request, requested)
    assert plain == RequestRecord("file", 2, request.sha256)
    salted = describe_request(request, requested, SALT)
    expected = {sample_hash(pictures[number], (CAPTIONS[number],), SALT) for number in (1, 3)}
    assert salted.row_hashes == tuple(sorted(expected))
    assert salted.count == 2
    assert salted.sha256 == hashlib.sha256("".join(f"{line}\n" for line in sorted(expected)).encode()).hexdigest()
    assert describe_request(request, requested, "another").sha256 != salted.sha256


def test_only_settings_that_may_be_shown_are_picked(tmp_path: Path) -> None:
    shown = public_hyper_parameters(Config(output_dir=str(tmp_path), hub_token="sentinel", learning_rate=1e-4))
    assert shown["alpha"] == 0.5
    assert shown["views"] == "cifar"
    assert shown["learning_rate"] == 1e-4
    assert shown["lr_scheduler_type"] == "linear"
    assert not {"request_file", "api_token", "limit", "output_dir", "hub_token"} & set(shown)
    assert "sentinel" not in str(shown)


def test_a_split_that_lacks_part_of_the_request_is_refused(base: Path) -> None:
    with pytest.raises(UserError, match="3 samples, but the unlearn split holds 2"):
        record_run(
            base,
            method="fine_tune",
            base_model=BaseModel("small-clip"),
            dataset=DatasetRecord("pictures"),
            request=RequestRecord("file", 3, "0" * 64),
            splits={"retain": 8, "unlearn": 2, "validation": 1, "test": 1},
            hyper_parameters={},
        )
    assert not (base / "unlearning.json").exists()
