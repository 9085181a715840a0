"""Folders forged with care, hashes and card written anew: each is caught, or said to be uncheckable."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hub.local_hub import LocalHub
from PIL import Image as Picture
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from hf_unlearn.errors import UserError
from hf_unlearn.figures.heatmaps import plot_alignment_matrices
from hf_unlearn.hub import card_check
from hf_unlearn.hub.card import write_card
from hf_unlearn.hub.publishing import publish_run
from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.hub.verification_report import Outcome, VerificationReport
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.records.schemas import EvaluationRecord, UnlearningManifest

Forgery = Callable[[Path, Path], None]


def failed(report: VerificationReport) -> list[str]:
    return [statement.subject for statement in report.failures]


def rewrite(run: Path) -> None:
    """Bring every hash and the card up to date, as a publisher can."""
    manifest = replace(UnlearningManifest.load(run), weights_sha256=weights_sha256(run))
    manifest.save(run)
    replace(EvaluationRecord.load(run), weights_sha256=manifest.weights_sha256).save(run)
    write_card(run)


def edit(run: Path, name: str, **fields: object) -> None:
    content = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps({**content, **fields}))
    write_card(run)


def changed(run: Path, **fields: object) -> None:
    replace(UnlearningManifest.load(run), **fields).save(run)  # type: ignore[arg-type]
    write_card(run)


def decoy(run: Path, base: Path) -> None:
    """What everybody loads is the base; what is hashed is a decoy."""
    shutil.copy(base / "model.safetensors", run / "model-00001-of-00001.safetensors")
    edit(run, "config.json", transformers_weights="model-00001-of-00001.safetensors")


def decoy_index(run: Path, base: Path) -> None:
    shutil.copy(base / "model.safetensors", run / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(load_file(base / "model.safetensors"), "model-00001-of-00001.safetensors")
    (run / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    write_card(run)


def index_that_leads_out(run: Path, base: Path) -> None:
    (run / "model.safetensors").rename(run.parent / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"logit_scale": "../elsewhere.safetensors"}}
    (run / "model.safetensors.index.json").write_text(json.dumps(index))
    write_card(run)


def stray_shard(run: Path, base: Path) -> None:
    shutil.copy(base / "model.safetensors", run / "model-00001-of-00002.safetensors")
    rewrite(run)


def adapter_beside(run: Path, base: Path) -> None:
    """With peft there, transformers would load the model that the adapter names."""
    (run / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/other", "revision": None}))
    write_card(run)


def linked_weights(run: Path, base: Path) -> None:
    (run / "model.safetensors").rename(run.parent / "elsewhere.safetensors")
    (run / "model.safetensors").symlink_to(run.parent / "elsewhere.safetensors")
    write_card(run)


def linked_config(run: Path, base: Path) -> None:
    (run / "config.json").rename(run.parent / "config.json")
    (run / "config.json").symlink_to(run.parent / "config.json")
    write_card(run)


def base_again(run: Path, base: Path) -> None:
    shutil.copy(base / "model.safetensors", run / "model.safetensors")
    rewrite(run)


def foreign_code(run: Path, base: Path) -> None:
    edit(run, "config.json", auto_map={"AutoModel": "org/evil--modeling_evil.Evil"})


def foreign_code_of_the_tokenizer(run: Path, base: Path) -> None:
    edit(run, "tokenizer_config.json", auto_map={"AutoTokenizer": ["org/evil--tok.Evil", None]})


def code_of_its_own(run: Path, base: Path) -> None:
    (run / "modeling_simclr.py").write_text("import os\nos.system('true')\n")
    write_card(run)


def hashes_that_are_none(run: Path, base: Path) -> None:
    request = UnlearningManifest.load(run).request
    rows = tuple(f"row {number}" for number in range(request.count))
    combined = hashlib.sha256("".join(f"{row}\n" for row in sorted(rows)).encode()).hexdigest()
    changed(run, request=replace(request, sha256=combined, row_hashes=rows))


def one_hash_for_two_things(run: Path, base: Path) -> None:
    manifest = UnlearningManifest.load(run)
    changed(run, dataset=replace(manifest.dataset, sha256=manifest.weights_sha256))


def revision_that_is_none(run: Path, base: Path) -> None:
    changed(run, base_model=replace(UnlearningManifest.load(run).base_model, revision="main"))


def tomorrow(run: Path, base: Path) -> None:
    changed(run, created="2999-01-01T00:00:00+00:00")


def undated(run: Path, base: Path) -> None:
    changed(run, created="recently")


def figures_beyond_their_unit(run: Path, base: Path) -> None:
    record = EvaluationRecord.load(run)
    replace(record, metrics={**record.metrics, "emia": 250.0}).save(run)
    write_card(run)


def family_without_a_gap(run: Path, base: Path) -> None:
    replace(EvaluationRecord.load(run), family="audio", gap_keys=(), avg_gap=None, comparison=()).save(run)
    write_card(run)


def scores_of_fewer_samples(run: Path, base: Path) -> None:
    record = EvaluationRecord.load(run)
    replace(record, per_sample={"forgetting_score": (record.metrics["forgetting_score"] / 100,)}).save(run)
    write_card(run)


def cosines_beyond_one(run: Path, base: Path) -> None:
    record = EvaluationRecord.load(run)
    assert record.matrices is not None
    big = tuple(tuple(2.5 for _ in row) for row in record.matrices.agm)
    none = tuple(tuple(0.0 for _ in row) for row in record.matrices.agm)
    replace(record, matrices=replace(record.matrices, am_before=big, am_after=none, agm=big)).save(run)
    plot_alignment_matrices(np.array(big), np.array(none), run / "assets" / "alignment_matrices.png")
    write_card(run)


def another_picture(run: Path, base: Path) -> None:
    path = run / "assets" / "alignment_matrices.png"
    size = Picture.open(path).size
    Picture.new("RGB", size, "white").save(path)
    write_card(run)


def kinder_heatmaps(run: Path, base: Path) -> None:
    plot_alignment_matrices(np.eye(6), np.zeros((6, 6)), run / "assets" / "alignment_matrices.png")
    write_card(run)


def picture_that_is_none(run: Path, base: Path) -> None:
    (run / "assets" / "alignment_matrices.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    write_card(run)


def no_heatmaps(run: Path, base: Path) -> None:
    shutil.rmtree(run / "assets")
    write_card(run)


def other_version(change: Callable[[str], str]) -> Forgery:
    """A version that this one cannot write the card of, so that its text cannot be compared whole."""

    def act(run: Path, base: Path) -> None:
        manifest = UnlearningManifest.load(run)
        versions = {**manifest.versions, "hf-unlearn": "9.9"}
        changed(run, library_version="9.9", versions=versions)
        card = (run / "README.md").read_text()
        assert change(card) != card
        (run / "README.md").write_text(change(card))

    return act


def without_section(name: str) -> Callable[[str], str]:
    def act(card: str) -> str:
        before, _, after = card.partition(f"## {name}\n")
        return before + "## " + after.partition("\n## ")[2]

    return act


def without_lines(part: str) -> Callable[[str], str]:
    return lambda card: "\n".join(line for line in card.splitlines() if part not in line) + "\n"


FORGERIES: dict[str, tuple[Forgery, str]] = {
    "other weights named in config.json": (decoy, "weights"),
    "an index beside the weights": (decoy_index, "weights"),
    "an index that leads out": (index_that_leads_out, "weights"),
    "a shard that no index names": (stray_shard, "weights"),
    "an adapter's config beside a model": (adapter_beside, "weights"),
    "weights that are a link": (linked_weights, "weights"),
    "a config that is a link": (linked_config, "links"),
    "the base model itself": (base_again, "change of the weights"),
    "code of another repository": (foreign_code, "code"),
    "code for the tokenizer": (foreign_code_of_the_tokenizer, "code"),
    "code that only has a name of ours": (code_of_its_own, "code"),
    "row hashes that are none": (hashes_that_are_none, "request"),
    "one hash for two things": (one_hash_for_two_things, "unlearning.json: hashes"),
    "a branch as a commit": (revision_that_is_none, "unlearning.json: hashes"),
    "a run of the future": (tomorrow, "history"),
    "a run without a date": (undated, "history"),
    "a share of 250%": (figures_beyond_their_unit, "evaluation.json: ranges"),
    "a family that has no gap": (family_without_a_gap, "evaluation.json: family"),
    "one score for all samples": (scores_of_fewer_samples, "evaluation.json: forgetting score"),
    "cosines of 2.5": (cosines_beyond_one, "evaluation.json: matrices"),
    "a white picture": (another_picture, "heatmaps"),
    "heatmaps of other matrices": (kinder_heatmaps, "heatmaps"),
    "a picture that is none": (picture_that_is_none, "heatmaps"),
    "no heatmaps": (no_heatmaps, "heatmaps"),
    "another version without limits": (other_version(without_section("Limits")), "card text"),
    "another version without one limit": (other_version(without_lines("no certificate")), "card text"),
    "another version without its figures": (
        other_version(without_section("How close to retraining")),
        "card: How close to retraining",
    ),
    "another version without pictures": (other_version(without_lines("![")), "card pictures"),
}


@pytest.mark.parametrize(("forge", "named"), FORGERIES.values(), ids=FORGERIES)
def test_a_forgery_is_caught(run: Path, base: Path, forge: Forgery, named: str) -> None:
    forge(run, base)
    assert named in failed(verify_repo(run))


def test_what_is_hashed_is_what_transformers_loads(run: Path, base: Path) -> None:
    """The decoy as such: transformers reads the base from it, so that hashing model.safetensors says nothing."""
    decoy(run, base)
    loaded = CLIPModel.from_pretrained(run).state_dict()
    original = CLIPModel.from_pretrained(base).state_dict()
    assert all((loaded[name] == original[name]).all() for name in original)
    with pytest.raises(UserError, match="names weights of its own"):
        weights_sha256(run)


@pytest.mark.parametrize("kind", ["metadata", "float16", "shards"])
def test_the_base_in_other_files_is_found_with_the_base_at_hand(run: Path, base: Path, kind: str) -> None:
    tensors = load_file(base / "model.safetensors")
    (run / "model.safetensors").unlink()
    if kind == "shards":
        CLIPModel.from_pretrained(base).save_pretrained(run, max_shard_size="1MB")
        assert not (run / "model.safetensors").exists()
    else:
        cast = {name: tensor.half() if kind == "float16" else tensor for name, tensor in tensors.items()}
        save_file(cast, run / "model.safetensors", metadata={"format": "pt", "by": "us"})
    rewrite(run)
    assert verify_repo(run).ok, "without the base there is nothing to compare with"
    assert failed(verify_repo(run, base=base)) == ["tensors"]


def test_pictures_that_no_record_describes_are_said_to_be_the_publishers(run: Path) -> None:
    Picture.new("RGB", (8, 8)).save(run / "assets" / "certificate.png")
    write_card(run)
    report = verify_repo(run)
    assert report.ok
    unchecked = {line.subject for line in report.statements if line.outcome is Outcome.UNCHECKED}
    assert {"picture assets/certificate.png", "method", "metrics", "data", "training"} <= unchecked


def test_of_empty_matrices_nothing_is_said_to_hold(run: Path) -> None:
    record = EvaluationRecord.load(run)
    assert record.matrices is not None
    empty = tuple(tuple(None for _ in row) for row in record.matrices.agm)
    replace(record, matrices=replace(record.matrices, am_before=empty, am_after=empty, agm=empty)).save(run)
    nothing = np.full((len(empty), len(empty)), np.nan)
    plot_alignment_matrices(nothing, nothing, run / "assets" / "alignment_matrices.png")
    write_card(run)
    outcomes = {line.subject: line.outcome for line in verify_repo(run).statements}
    assert outcomes["evaluation.json: matrices"] is outcomes["heatmaps"] is Outcome.UNCHECKED


def test_an_evaluation_that_was_removed_is_said(run: Path) -> None:
    (run / "evaluation.json").unlink()
    write_card(run)
    unchecked = [line for line in verify_repo(run).statements if line.outcome is Outcome.UNCHECKED]
    assert any(line.subject == "evaluation.json" and "or it was removed" in line.detail for line in unchecked)


def test_figures_of_nobody_knows_which_weights_are_said(run: Path) -> None:
    replace(EvaluationRecord.load(run), weights_sha256=None).save(run)
    write_card(run)
    line = next(line for line in verify_repo(run).statements if line.subject == "evaluation.json: weights")
    assert line.outcome is Outcome.UNCHECKED


@pytest.mark.parametrize("forge", [base_again, decoy, foreign_code, no_heatmaps, hashes_that_are_none])
def test_a_forgery_is_not_published_by_this_library(run: Path, base: Path, hub: LocalHub, forge: Forgery) -> None:
    forge(run, base)
    with pytest.raises(UserError):
        publish_run(run, "org/clip")
    assert hub.requests == []


def test_a_version_of_another_card_names_the_lines_it_does_not_know(run: Path) -> None:
    other_version(lambda card: card.replace("## Load it", "Certified by an independent laboratory.\n\n## Load it"))(
        run, run
    )
    report = verify_repo(run)
    line = next(line for line in report.statements if line.subject == "card text")
    assert line.outcome is Outcome.UNCHECKED and "Certified by an independent laboratory." in line.detail
    assert "9.9" in line.detail and card_check.__version__ in line.detail
