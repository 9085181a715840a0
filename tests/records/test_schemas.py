"""The run's records: what is written is read back, and what does not belong is refused by name."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from hf_unlearn.errors import UserError
from hf_unlearn.files import write_atomically
from hf_unlearn.records.schemas import (
    BaseModel,
    DatasetRecord,
    EvaluationRecord,
    Matrices,
    RequestRecord,
    UnlearningManifest,
)

MANIFEST = UnlearningManifest(
    method="fine_tune",
    base_model=BaseModel("org/clip", "0" * 40, "a" * 64),
    weights_sha256="b" * 64,
    dataset=DatasetRecord("org/pictures"),
    request=RequestRecord("where", 2, "c" * 64, salted=True, row_hashes=("d" * 64, "e" * 64)),
    splits={"retain": 8, "unlearn": 2, "validation": 1, "test": 1},
    created="2026-05-01T10:00:00+00:00",
    library_version="0.1.0",
    hyper_parameters={"learning_rate": 1e-3, "views": "cifar", "flip": True, "chunk": None},
)


def edited(**changes: object) -> str:
    return json.dumps({**json.loads(MANIFEST.to_json()), **changes})


def test_manifest_reads_back_as_written(tmp_path: Path) -> None:
    again = replace(MANIFEST, history=(MANIFEST.as_history_entry(),), seed=1)
    again.save(tmp_path)
    assert UnlearningManifest.load(tmp_path) == again
    assert again.history[0].request == MANIFEST.request


def test_an_evaluation_turns_what_is_not_finite_into_null(tmp_path: Path) -> None:
    evaluation = EvaluationRecord(
        "views", {"emia": float("nan"), "cmia": 50.0}, matrices=Matrices(("1",), False, ((1.0,),))
    )
    evaluation.save(tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["metrics"] == {"emia": None, "cmia": 50.0}
    assert EvaluationRecord.load(tmp_path) == replace(evaluation, metrics={"emia": None, "cmia": 50.0})


def test_whole_numbers_are_read_as_metrics() -> None:
    assert EvaluationRecord.from_json('{"family": "views", "metrics": {"emia": 50}}').metrics == {"emia": 50.0}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not valid JSON"),
        ("[]", "should be a JSON object"),
        (edited(metod="x"), "unknown fields ['metod']"),
        (edited(splits={"retain": "many"}), "unlearning.json.splits.retain"),
        (edited(seed=True), "unlearning.json.seed"),
        (edited(request={"kind": "file"}), "lacks the fields ['count', 'sha256']"),
        (edited(schema=2), "upgrade hf_unlearn"),
    ],
)
def test_a_manifest_that_is_not_one_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(UserError) as error:
        UnlearningManifest.from_json(text)
    assert named in str(error.value)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no unlearning.json"):
        UnlearningManifest.load(tmp_path)


@pytest.mark.parametrize(
    ("matrices", "shows"),
    [
        (Matrices(("1", "2")), False),
        (Matrices(("sample 1",)), False),
        (Matrices(("a red apple",)), True),
        (Matrices(("1",), shows_pictures=True), True),
    ],
)
def test_labels_other_than_numbers_show_who_was_removed(matrices: Matrices, shows: bool) -> None:
    assert matrices.shows_samples is shows


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomically(tmp_path / "unlearning.json", "old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_of_earlier_versions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text(EvaluationRecord("views", {}).to_json())
    for read in (EvaluationRecord.load, EvaluationRecord.load_if_evaluated):
        with pytest.raises(UserError, match=r"holds an audit.json but no evaluation.json.*rename the file"):
            read(tmp_path)
    (tmp_path / "audit.json").rename(tmp_path / "evaluation.json")
    assert EvaluationRecord.load_if_evaluated(tmp_path) == EvaluationRecord("views", {})
    (tmp_path / "evaluation.json").unlink()
    assert EvaluationRecord.load_if_evaluated(tmp_path) is None
