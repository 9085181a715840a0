"""A report is complete: it repeats, its hashes hold, and its letter says what the page says."""

import hashlib
import json
import os
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from audit.conftest import folder_of

from hf_unlearn.audit.repeat import compare_audits, read_report, repeat_audit
from hf_unlearn.audit.report import report_digest
from hf_unlearn.audit.run import run_audit
from hf_unlearn.audit.settings import AuditSettings
from hf_unlearn.audit.verdict import run_tests
from hf_unlearn.errors import UserError
from hf_unlearn.records.audit_result import Arm, ImageRow, Verdict

pytestmark = pytest.mark.usefixtures("small_plots")
QUICK = AuditSettings(view_count=3, most_views=3, view_side=16, device="cpu")


def test_an_audit_without_a_seed_repeats_from_its_report(tmp_path, arms, captions, checkpoints):
    model, other = checkpoints["clip_a"], checkpoints["clip_b"]
    decoys = folder_of(tmp_path / "d", 3, 40)
    first = run_audit(model, other, output_dir=tmp_path / "r", captions=captions, settings=QUICK, decoys=decoys, **arms)
    again = run_audit(model, other, output_dir=tmp_path / "s", captions=captions, settings=QUICK, **arms)
    assert first.measurement["seed"] != again.measurement["seed"]  # secret: another draw each time
    comparison = repeat_audit(tmp_path / "r", tmp_path / "repeated")
    assert comparison.agrees and comparison.difference == 0 and "agree" in comparison.lines()[-1]
    record = json.loads((tmp_path / "r" / "audit.json").read_text())
    assert record["command"]["captions"] == "../captions.csv" and record["captions"]["picture-00.png"]
    assert str(tmp_path) not in (tmp_path / "r" / "audit.json").read_text()
    (arms["images"] / "picture-00.png").unlink()
    changed = repeat_audit(tmp_path / "r", tmp_path / "without")
    assert not changed.agrees and changed.unmatched == ("picture-00.png",)


def test_hashes_letter_and_recordings_lie_beside_the_page(tmp_path, arms, checkpoints):
    model, folder = checkpoints["simclr_a"], tmp_path / "r"
    audit = run_audit(model, model, output_dir=folder, settings=QUICK, **arms)
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    named = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert named == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    assert report_digest(folder) == hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()
    words = " ".join((folder / "letter.txt").read_text().split())
    assert audit.result.headline in words and audit.result.verdict.value in words and "I ask for:" in words
    sides = folder / "before.safetensors", folder / "after.safetensors"
    kept = run_audit(*sides, output_dir=tmp_path / "again", settings=QUICK, **arms)
    assert kept.result.verdict is Verdict.NO_MODEL_CHANGE
    rows = {row.image: row for row in audit.result.images}
    assert all(row.before == pytest.approx(rows[row.image].before) for row in kept.result.images)


def test_an_alignment_that_one_audit_lacks_is_a_difference_and_one_that_both_lack_is_none():
    arms = [Arm.REQUESTED] * 4 + [Arm.NEVER_TRAINED] * 4
    rows = [ImageRow(f"{n}.png", str(n), arm, 0.8 + n / 100, 0.5 - n / 100) for n, arm in enumerate(arms)]
    first = replace(run_tests(rows), images=tuple(rows))

    def compared(edits, others=()):
        changed = [replace(first, images=tuple(replace(row, **dict(some).get(n, {})) for n, row in enumerate(rows)))
                   for some in (edits, others)]  # fmt: skip
        return compare_audits({"": changed[1]}, {"": changed[0]})

    nan = float("nan")
    mostly = compared([(n, {"after": nan}) for n in range(1, 8)])
    assert not mostly.agrees and mostly.difference == np.inf and mostly.unanswered == 7
    assert mostly.lines()[-1] == "The audits do not agree." and any(
        line.endswith("answer: 7.") for line in mostly.lines()
    )
    assert compared([], [(0, {"before": nan})]).difference == np.inf, "of the first audit"
    both = compared([(0, {"after": nan}), (1, {"after": 0.4895})], [(0, {"after": nan})])
    assert both.agrees and both.unanswered == 0 and both.difference == pytest.approx(0.0005)


def test_a_command_that_is_none_is_refused(tmp_path):
    (tmp_path / "audit.json").write_text('{"command": [1], "measurement": {"audits": 1}, "results": []}')
    with pytest.raises(UserError, match="audit anew"):
        repeat_audit(tmp_path, tmp_path / "again")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"command": {}, "measurement": {}, "results": []}', "[" * 50_000])
def test_what_is_no_report_is_refused(tmp_path, content):
    (tmp_path / "audit.json").write_text(content)
    with pytest.raises(UserError, match=r"no readable finished audit|an older version"):
        read_report(tmp_path)


def test_an_older_report_names_decoys_that_were_left_out(tmp_path, arms):
    for side in ("before", "after"):
        np.save(tmp_path / f"{side}.npy", np.random.default_rng(0).normal(size=(12, 3, 5)))
    run_audit(tmp_path / "before.npy", tmp_path / "after.npy", output_dir=tmp_path / "r", **arms)
    record = json.loads((tmp_path / "r" / "audit.json").read_text())
    record["command"]["decoys"] = os.path.relpath(folder_of(tmp_path / "d", 2, 40), tmp_path / "r")
    (tmp_path / "r" / "audit.json").write_text(json.dumps(record))
    assert repeat_audit(tmp_path / "r", tmp_path / "again").agrees


def test_a_strangers_report_has_no_endpoint_asked(tmp_path, arms, checkpoints):
    """It would be shown the pictures, and the token that is meant for another."""
    run_audit(checkpoints["simclr_a"], checkpoints["simclr_a"], output_dir=tmp_path / "r", settings=QUICK, **arms)
    record = json.loads((tmp_path / "r" / "audit.json").read_text())
    record["command"]["before"] = "https://evil.example/v1/embeddings"
    (tmp_path / "r" / "audit.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"names the endpoint https://evil\.example"):
        repeat_audit(tmp_path / "r", tmp_path / "again")
