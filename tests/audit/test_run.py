import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit.conftest import FAST, folder_of

from hf_unlearn.audit.embedding_files import save_embeddings
from hf_unlearn.audit.judging import judge
from hf_unlearn.audit.recording import plan_audit, record_embeddings
from hf_unlearn.audit.run import run_audit
from hf_unlearn.audit.settings import AuditSettings
from hf_unlearn.errors import UserError
from hf_unlearn.metrics.alignment_matrices import alignment_matrix
from hf_unlearn.records.audit_result import Arm, AuditResult, Verdict

pytestmark = pytest.mark.usefixtures("small_plots")

SMALL = AuditSettings(seed=0, most_views=3, view_count=3, view_side=16, endpoint=FAST, device="cpu")


def test_the_untouched_model_reads_no_model_change(tmp_path, arms, checkpoints):
    model = checkpoints["simclr_a"]
    audit = run_audit(model, model, output_dir=tmp_path / "report", settings=SMALL, **arms)
    assert audit.result.verdict is Verdict.NO_MODEL_CHANGE
    assert all(row.change == 0 and row.forgetting_score == 0 for row in audit.result.images)


def test_image_text_audit_agrees_with_matrices_made_by_hand(tmp_path, arms, captions, checkpoints):
    audit = run_audit(
        checkpoints["clip_a"],
        checkpoints["clip_b"],
        output_dir=tmp_path / "r",
        captions=captions,
        settings=SMALL,
        **arms,
    )
    told = json.loads((tmp_path / "r" / "audit.json").read_text())
    assert told["family"] == "image-text" and told["measurement"]["views"]["family"] == "caption"
    assert told["matrices"][0]["captions"][0] == "a drawing, picture-00.png"
    rows = {row.image: row for row in audit.result.images}
    (matrices,) = audit.matrices.values()
    for i, picture in enumerate(matrices.pictures):
        assert rows[picture.name].before == pytest.approx(matrices.am_before[i, i])
        agm = matrices.am_before[i, i] - matrices.am_after[i, i]
        assert rows[picture.name].forgetting_score == pytest.approx(agm)


def test_audit_json_holds_every_field_and_reads_back(tmp_path, arms, checkpoints):
    audit = run_audit(
        checkpoints["moco_a"],
        checkpoints["simclr_a"],
        output_dir=tmp_path / "r",
        settings=SMALL,
        provenance={Arm.NEVER_TRAINED: "drawn after training"},
        **arms,
    )
    told = json.loads((tmp_path / "r" / "audit.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert AuditResult.from_dict(told["results"][0]) == audit.result
    assert told["kind"] == "black-box" and told["family"] == "views"
    measurement = told["measurement"]
    assert {"torch", "transformers", "python", "hf-unlearn"} <= set(measurement["versions"])
    assert (
        measurement["view_count"] == 3
        and measurement["seed"] == 0
        and measurement["processor_backend"] == "torchvision"
    )
    assert measurement["views"]["crop_scale"] == [0.2, 1.0] and measurement["held_back_views"]["family"] == "held-back"
    for side in ("before", "after"):
        assert len(measurement["encoders"][side]["weights_sha256"]) == 64
        assert "/" not in measurement["encoders"][side]["name"]
    provenance = {arm["arm"]: arm["provenance"] for arm in told["results"][0]["arms"]}
    assert provenance["requested"] == "folder 'mine'" and provenance["never_trained"] == "drawn after training"
    assert all(len(row["sha256"]) == 64 for row in told["results"][0]["images"])
    assert str(tmp_path) not in (tmp_path / "r" / "audit.json").read_text()


def test_precomputed_embeddings_on_both_sides(tmp_path, arms):
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 12, 2, 16))
    before[:8, 1] = before[:8, 0] + 0.1 * before[:8, 1]  # members align
    np.save(tmp_path / "before.npy", before)
    np.save(tmp_path / "after.npy", after)
    audit = run_audit(tmp_path / "before.npy", tmp_path / "after.npy", output_dir=tmp_path / "r", **arms)
    am = alignment_matrix(before[:4, 0], before[:4, 1])
    np.testing.assert_allclose(audit.matrices[""].am_before, (am + am.T) / 2)  # both orders of the two views
    assert audit.measurement["views"] == "precomputed" and audit.result.noise is None
    assert any("taken on trust" in note for note in audit.notes)


def recorded_notes(audit):
    return [note for note in audit.notes if "embeddings before" in note]


def test_a_recording_is_bound_to_its_captions(tmp_path, arms, captions, checkpoints):
    model, mine = checkpoints["clip_a"], arms["images"]
    recorded = record_embeddings(model, mine, tmp_path / "a.safetensors", captions=captions, settings=SMALL)
    audit = run_audit(recorded, model, mine, tmp_path / "r", captions=captions, settings=SMALL)
    assert audit.result.verdict is Verdict.NO_MODEL_CHANGE
    assert recorded_notes(audit) == [
        "The embeddings before were recorded earlier; by that record, both sides saw the same views and captions."
    ]
    reworded = tmp_path / "reworded.csv"
    reworded.write_text(captions.read_text().replace("a drawing, picture-00", "a photograph, picture-00"))
    for texts in (reworded, None):
        with pytest.raises(UserError, match=r"use the same (views, )?captions for both"):
            run_audit(recorded, model, mine, tmp_path / "r2", captions=texts, settings=SMALL)
    assert not (tmp_path / "r2").exists()
    again = record_embeddings(model, mine, tmp_path / "b.safetensors", captions=reworded, settings=SMALL)
    with pytest.raises(UserError, match="use the same captions for both"):
        run_audit(recorded, again, mine, tmp_path / "r2", settings=SMALL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": "backbone"}, "use the same features for both"),
        ({"backend": "pil"}, "use the same image processors' backend for both"),
        (
            {"seed": 4, "view_count": 2},
            r'before {"count": \d+}, after {"count": 2}; use the same seed, view count for both',
        ),
        ({"seed": 987}, r"than the other is asked; use the same seed for both \(audit record --seed, with the number"),
    ],
)
def test_a_recording_is_bound_to_what_was_chosen(tmp_path, arms, checkpoints, change, words):
    model, mine = checkpoints["simclr_a"], arms["images"]
    recorded = record_embeddings(model, mine, tmp_path / "a.safetensors", settings=SMALL)
    other = replace(SMALL, **change)
    again = record_embeddings(model, mine, tmp_path / "b.safetensors", settings=other)
    for after in (model, again):
        with pytest.raises(UserError, match=words):
            run_audit(recorded, after, mine, tmp_path / "r", settings=other)


def test_a_recording_without_hashes_of_its_captions_is_taken_on_trust(tmp_path, arms, checkpoints, monkeypatch):
    """As this library wrote them before."""
    save = "hf_unlearn.audit.recording.save_embeddings"
    monkeypatch.setattr(
        save, lambda embeddings, pictures, path, drawn, _: save_embeddings(embeddings, pictures, path, drawn)
    )
    model, mine = checkpoints["simclr_a"], arms["images"]
    recorded = record_embeddings(model, mine, tmp_path / "a.safetensors", settings=SMALL)
    audit = run_audit(recorded, model, mine, tmp_path / "r", settings=SMALL)
    assert "taken on trust" in recorded_notes(audit)[0]


@pytest.mark.parametrize("side", ["before", "after"])
def test_decoys_beside_a_file_of_embeddings_are_left_out_and_that_is_said(tmp_path, arms, checkpoints, side):
    model, mine, decoys = checkpoints["simclr_a"], arms["images"], folder_of(tmp_path / "decoys", 2, 40)
    sides = {"before": model, "after": model}
    sides[side] = record_embeddings(model, mine, tmp_path / "a.safetensors", settings=SMALL)
    audit = run_audit(**sides, images=mine, output_dir=tmp_path / "r", settings=SMALL, decoys=decoys)
    (note,) = (note for note in audit.notes if "--decoys" in note)
    assert f"left out, as the embeddings {side} come from a file, which holds no answers" in note
    told = json.loads((tmp_path / "r" / "audit.json").read_text())
    assert told["command"]["decoys"] is None and told["measurement"]["decoys"] == 0 and note in told["notes"]
    sides = dict.fromkeys(sides, sides[side])
    with pytest.raises(UserError, match=r"Decoys .* would have no effect: both sides are files"):
        run_audit(**sides, images=mine, output_dir=tmp_path / "r2", settings=SMALL, decoys=decoys)


def test_decoys_between_two_models_are_mixed_in_unless_they_are_audited(tmp_path, arms, checkpoints):
    model, mine = checkpoints["simclr_a"], arms["images"]
    decoys = folder_of(tmp_path / "decoys", 2, 40)
    mixed = run_audit(model, model, mine, tmp_path / "r", settings=SMALL, decoys=decoys)
    assert mixed.command["decoys"] == "../decoys" and not any("--decoys" in note for note in mixed.notes)
    none = run_audit(model, model, mine, tmp_path / "r2", settings=SMALL, decoys=mine)
    assert none.command["decoys"] is None and any("all of them are audited pictures" in note for note in none.notes)


def test_the_number_of_an_audit_needs_a_plan(tmp_path, arms, checkpoints):
    model, mine = checkpoints["simclr_a"], arms["images"]
    with pytest.raises(UserError, match="--audit_number 5 would have no effect without a plan"):
        run_audit(model, model, mine, tmp_path / "r", settings=SMALL, audit_number=5)
    with pytest.raises(UserError, match="--audit_number 2 would have no effect without a plan"):
        record_embeddings(model, mine, tmp_path / "a.safetensors", settings=SMALL, audit_number=2)
    assert not (tmp_path / "r").exists() and not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"view_side": 0}, {"view_count": 1}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="at least"):
        AuditSettings(**wrong)


def test_faults_of_places_are_found_before_any_work(tmp_path, arms, checkpoints, monkeypatch):
    monkeypatch.setattr(
        "hf_unlearn.audit.both_encoders.embed_pictures", lambda *_, **__: pytest.fail("something was embedded")
    )
    model, mine, file = checkpoints["simclr_a"], arms["images"], tmp_path / "file"
    file.write_text("x")
    for folder in (file, file / "report"):
        with pytest.raises(UserError, match=r"'.*file' is a file"):
            run_audit(model, model, mine, folder, settings=SMALL)
    with pytest.raises(UserError, match=r"'.*file' is a file"):
        record_embeddings(model, mine, file / "x.safetensors", settings=SMALL)
    with pytest.raises(UserError, match="no URL"):
        run_audit("http://[bad/embed", model, mine, tmp_path / "r", settings=SMALL)
    assert not (tmp_path / "r").exists()


def test_eight_images_without_controls_get_an_answer_but_no_accusation(tmp_path, checkpoints):
    mine = folder_of(tmp_path / "mine", 8)
    audit = run_audit(checkpoints["simclr_a"], checkpoints["simclr_b"], mine, tmp_path / "r", settings=SMALL)
    assert audit.result.verdict is Verdict.INCONCLUSIVE
    (effect,) = audit.result.minimum_detectable_effects
    assert 0 < effect.cosine < 2 and effect.words in audit.result.explanation


def test_one_image(tmp_path, checkpoints):
    mine = folder_of(tmp_path / "mine", 1)
    audit = run_audit(checkpoints["simclr_a"], checkpoints["simclr_b"], mine, tmp_path / "r", settings=SMALL)
    assert audit.result.verdict is Verdict.INCONCLUSIVE
    assert json.loads((tmp_path / "r" / "audit.json").read_text())["matrices"][0]["agm"][0][0] is not None


def test_duplicate_images_count_once(tmp_path, arms, checkpoints):
    shutil.copy(arms["images"] / "picture-00.png", arms["images"] / "again.png")
    audit = run_audit(
        checkpoints["simclr_a"], checkpoints["simclr_b"], output_dir=tmp_path / "r", settings=SMALL, **arms
    )
    requested = audit.result.arms[0]
    assert requested.size == 4 and len(requested.collapsed) == 1
    assert requested.collapsed[0] in (tmp_path / "r" / "report.html").read_text()


def test_several_owners_are_adjusted_together(tmp_path, arms, checkpoints):
    table = tmp_path / "owners.csv"
    names = [f"picture-{i:02}.png" for i in (*range(4), *range(10, 14))]
    table.write_text(
        "image,owner\n" + "\n".join(f"{name},{'ann<b>' if int(name[8:10]) % 2 else 'bob'}" for name in names)
    )
    audit = run_audit(
        checkpoints["simclr_a"],
        checkpoints["simclr_b"],
        output_dir=tmp_path / "r",
        captions=table,
        settings=SMALL,
        **arms,
    )
    assert list(audit.results) == ["ann<b>", "bob"]
    assert all("Benjamini-Yekutieli" in result.multiplicity for result in audit.results.values())
    assert [len(result.images) for result in audit.results.values()] == [8, 8]  # 2 + 2 of one's own, 4 shared controls
    page = (tmp_path / "r" / "report.html").read_text()
    assert "ann&lt;b&gt;" in page and "ann<b>" not in page
    assert (tmp_path / "r" / "owner_2_paired_dots.png").exists()
    with pytest.raises(UserError, match="2 owners"):
        _ = audit.result


@pytest.mark.parametrize("committed", [True, False])
def test_a_plan_goes_with_a_recording(tmp_path, checkpoints, committed):
    """Planned, recorded, audited: the recording's views are used, and said where the plan committed to others."""
    model, mine = checkpoints["simclr_a"], folder_of(tmp_path / "all", 8)
    plan_audit(mine, tmp_path / "plan")
    plan, settings = tmp_path / "plan" / "plan.json", replace(SMALL, seed=None)
    how = {"plan": plan} if committed else {}
    recorded = record_embeddings(model, mine, tmp_path / "a.safetensors", settings=settings, **how)
    audit = run_audit(recorded, checkpoints["simclr_b"], mine, tmp_path / "r", plan=plan, settings=settings)
    assert any("not those that the plan committed to" in finding for finding in audit.result.findings) != committed


def test_a_plan_is_followed_and_reported(tmp_path, checkpoints):
    mine = folder_of(tmp_path / "mine", 8)
    plan = plan_audit(mine, tmp_path / "plan", seed=1)
    audit = run_audit(
        checkpoints["simclr_a"],
        checkpoints["simclr_b"],
        mine,
        tmp_path / "r",
        plan=tmp_path / "plan/plan.json",
        settings=SMALL,
    )
    assert audit.result.plan_sha256 == plan.sha256
    assert [(arm.size, arm.drawn) for arm in audit.result.arms] == [(4, "plan"), (4, "plan")]
    assert plan.sha256 in (tmp_path / "r" / "report.html").read_text()


def test_more_than_200_images_are_shown_in_part(tmp_path, monkeypatch, checkpoints):
    monkeypatch.setattr("hf_unlearn.audit.run.MOST_IN_MATRIX", 5)
    mine = folder_of(tmp_path / "mine", 8)
    audit = run_audit(checkpoints["simclr_a"], checkpoints["simclr_a"], mine, tmp_path / "r", settings=SMALL)
    assert audit.matrices[""].am_before.shape == (5, 5) and audit.matrices[""].omitted == 3
    assert "The first 5 requested images are shown" in (tmp_path / "r" / "report.html").read_text()


def test_a_bad_picture_or_name_stops_everything_before_anything_is_written(tmp_path, arms, checkpoints):
    model, output = checkpoints["simclr_a"], tmp_path / "r"
    with pytest.raises(UserError, match="nowhere"):
        run_audit(model, tmp_path / "nowhere", output_dir=output, settings=SMALL, **arms)
    (arms["never_trained"] / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"'bad\.png' cannot be used"):
        run_audit(model, model, output_dir=output, settings=SMALL, **arms)
    assert not output.exists()


def test_a_finished_report_is_not_replaced_unasked(tmp_path, checkpoints):
    model, other, output, mine = checkpoints["simclr_a"], checkpoints["simclr_b"], tmp_path / "r", tmp_path / "mine"
    folder_of(mine, 2)
    run_audit(model, model, mine, output, settings=SMALL)
    first = (output / "audit.json").read_bytes()
    with pytest.raises(UserError, match="holds a finished audit"):
        run_audit(model, other, mine, output, settings=SMALL)
    assert (output / "audit.json").read_bytes() == first
    run_audit(model, other, mine, output, settings=SMALL, overwrite=True)
    assert (output / "audit.json").read_bytes() != first


def test_the_same_command_gives_the_same_numbers(tmp_path, checkpoints):
    mine, kept = folder_of(tmp_path / "mine", 3), folder_of(tmp_path / "kept", 3, 10)
    results = [
        run_audit(
            checkpoints["simclr_a"], checkpoints["simclr_b"], mine, tmp_path / name, still_trained=kept, settings=SMALL
        ).result
        for name in "ab"
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize(("stability", "views"), [(0.0, 6), (0.5, 6), (0.95, 3), (None, 3)])
def test_more_views_are_drawn_while_the_verdict_hangs_on_them(tmp_path, checkpoints, monkeypatch, stability, views):
    def judged(measured, provenance):
        return {owner: replace(result, stability=stability) for owner, result in judge(measured, provenance).items()}

    monkeypatch.setattr("hf_unlearn.audit.run.judge", judged)
    model, mine = checkpoints["simclr_a"], folder_of(tmp_path / "mine", 2)
    audit = run_audit(model, model, mine, tmp_path / "r", settings=replace(SMALL, most_views=6))
    assert audit.measurement["view_count"] == views


def test_settings_that_make_no_audit_are_refused():
    with pytest.raises(UserError, match="at least 2 views"):
        AuditSettings(view_count=1)


def test_folders_and_words_in_another_encoding_do_not_end_an_audit(tmp_path):
    mine = folder_of(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9")), 4)
    for side in ("before", "after"):
        np.save(tmp_path / f"{side}.npy", np.random.default_rng(0).normal(size=(4, 3, 5)))
    words = {Arm.REQUESTED: "\udcff"}
    for provenance in ({}, words):
        out = tmp_path / f"out{len(provenance)}"
        run_audit(tmp_path / "before.npy", tmp_path / "after.npy", mine, out, provenance=provenance)
        sums = (out / "SHA256SUMS").read_text().splitlines()
        sha256 = hashlib.sha256((out / "audit.json").read_bytes()).hexdigest()
        assert f"{sha256}  audit.json" in sums
