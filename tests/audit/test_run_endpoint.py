"""A whole audit of models behind URLs: their faults, a kill on the way, an exchange of the model."""

import json
import multiprocessing
import re
import shutil
import signal
import threading

import pytest
from audit.conftest import FAST
from commands import ends

from hf_unlearn.audit.both_encoders import CACHE_FILE
from hf_unlearn.audit.recording import record_embeddings
from hf_unlearn.audit.run import run_audit
from hf_unlearn.audit.settings import AuditSettings
from hf_unlearn.errors import UserError
from hf_unlearn.records.audit_result import Verdict

pytestmark = pytest.mark.usefixtures("small_plots")

SMALL = AuditSettings(seed=0, most_views=3, view_count=3, view_side=16, endpoint=FAST, device="cpu")
SECRET = "sentinel-81c2d7"


def audit_endpoint(endpoint, arms, output_dir, **kwargs):
    return run_audit(endpoint.tei, endpoint.openai, output_dir=output_dir, settings=SMALL, **arms, **kwargs)


def test_an_endpoint_that_answers_429_then_recovers(tmp_path, arms, endpoint):
    endpoint.faults += [{"status": 429, "headers": {"Retry-After": "0"}}, {}, {"status": 429}, {"drop": True}]
    audit = audit_endpoint(endpoint, arms, tmp_path / "r")
    told = audit.measurement["encoders"]
    assert told["before"]["form"] == "inference-endpoints" and told["after"]["form"] == "openai"
    assert audit.result.verdict is Verdict.NO_MODEL_CHANGE  # both URLs are the same model
    assert audit.result.noise == 0


def test_the_noise_of_an_endpoint_is_measured_and_is_no_change(tmp_path, arms, endpoint):
    endpoint.noise = 0.01
    audit = audit_endpoint(endpoint, arms, tmp_path / "r")
    assert audit.result.noise > 0 and all(row.noise > 0 for row in audit.result.images)
    assert audit.result.verdict in (Verdict.NO_MODEL_CHANGE, Verdict.INCONCLUSIVE)


def switch(endpoint, edit):
    """Let the endpoint answer `edit` on the OpenAI form, which is the model after."""
    original = endpoint.answer

    def answer(handler, body):
        if "input" in body:
            endpoint.faults.append(edit(body))
        original(handler, body)

    endpoint.answer = answer


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"edit": lambda vs: [[0.0] * 8 for _ in vs]}, "zero"),
        ({"edit": lambda vs: [[float("nan")] * 8 for _ in vs]}, "not finite|NaN"),
        ({"edit": lambda vs: [[1.0, 2, 3, 4, 5, 6, 7, 8] for _ in vs]}, "collapsed"),
        ({"dimension": 5}, "8 numbers a picture, the model after 5"),
    ],
)
def test_broken_embeddings_are_reported_and_inconclusive(tmp_path, arms, endpoint, fault, words):
    switch(endpoint, lambda body: fault)
    audit = audit_endpoint(endpoint, arms, tmp_path / "r")
    assert audit.result.verdict is Verdict.INCONCLUSIVE
    page = (tmp_path / "r" / "report.html").read_text()
    told = " ".join([*audit.result.reasons, *audit.notes])
    assert re.search(words, told) and "INCONCLUSIVE" in page


def test_one_broken_picture_is_named_and_no_way_out(tmp_path, arms, endpoint):
    """Zeros for one view of one picture; the rest of the model is as it was."""
    seen = []

    def edit(body):
        seen.append(len(body["input"]))
        return {"edit": lambda vs: [*vs[:2], [0.0] * 8, *vs[3:]]} if len(seen) == 1 else {}

    switch(endpoint, edit)
    audit = audit_endpoint(endpoint, arms, tmp_path / "r")
    assert audit.result.verdict is Verdict.NO_MODEL_CHANGE
    (broken,) = [name for arm in audit.result.arms for name in arm.unusable]
    assert any(f"zero embeddings for 1 of 12 pictures ({broken})" in note for note in audit.notes)
    assert any("counted as remembered" in sentence and broken in sentence for sentence in audit.result.findings)


def test_an_endpoint_that_times_out_for_good_leaves_no_verdict(tmp_path, arms, endpoint):
    endpoint.faults += [{}, {}, {}, *({"hang": 0.3, "drop": True} for _ in range(3))]
    patient = AuditSettings(seed=0, view_count=3, view_side=16, endpoint=type(FAST)(8, 3, 0.1, 0.01))
    with pytest.raises(UserError, match=r"no answer within 0\.1 s.*run the same command again"):
        run_audit(endpoint.tei, endpoint.openai, output_dir=tmp_path / "r", settings=patient, **arms)
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [CACHE_FILE]
    answered = len(endpoint.asked)
    audit = run_audit(endpoint.tei, endpoint.openai, output_dir=tmp_path / "r", settings=SMALL, **arms)
    # Every question of both sides was answered once: views, held-back views, nudges and a repetition of 12 pictures.
    assert answered > 0 and len(endpoint.asked) == 2 * 12 * (3 + 3 + 3 + 1)
    assert audit.result.verdict is Verdict.NO_MODEL_CHANGE


def test_a_killed_run_resumes_where_it_stopped(tmp_path, arms, endpoint, monkeypatch, capfd):
    """A process is killed by SIGKILL between two answers; the second run asks the rest only."""
    words = ["audit", "--before", endpoint.tei, "--after", endpoint.openai, "--output_dir", tmp_path / "r"]
    words += ["--view_count", "3", "--most_views", "3", "--view_side", "16"]
    words += [part for name, folder in arms.items() for part in (f"--{name}", folder)]
    monkeypatch.setenv("HF_UNLEARN_TOKEN", SECRET)
    reached = threading.Event()
    halfway = threading.Event()

    def stop(count):
        if count == 4:
            reached.set()
            halfway.wait(60)

    endpoint.on_request = stop
    process = multiprocessing.get_context("fork").Process(target=ends, args=words)
    process.start()
    assert reached.wait(120), process.exitcode
    process.kill()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    endpoint.on_request = lambda count: None
    answered = len(endpoint.asked)
    halfway.set()
    assert answered == 48  # of before: batches of 16
    (seed,) = [json.loads(path.read_text())["seed"] for path in (tmp_path / "r").glob("secret_seed.json")]
    endpoint.asked.clear()
    capfd.readouterr()
    assert ends(*words) == 0
    told = capfd.readouterr()
    assert "NO MODEL CHANGE" in told.out
    killed_batch = 16  # the batch in flight when the process died may have been answered, but not to anyone
    total = 2 * 12 * (3 + 3 + 3 + 1)
    assert json.loads((tmp_path / "r" / "audit.json").read_text())["measurement"]["seed"] == seed
    assert not (tmp_path / "r" / "secret_seed.json").exists()
    assert total - answered <= len(endpoint.asked) <= total - answered + killed_batch
    assert {headers["Authorization"] for headers in endpoint.headers} == {f"Bearer {SECRET}"}
    written = b"".join(path.read_bytes() for path in (tmp_path / "r").iterdir())
    assert SECRET.encode() not in written and SECRET not in told.out + told.err


def test_a_recording_of_before_serves_the_audit_after(tmp_path, arms, endpoint):
    everything = tmp_path / "all"
    for folder in arms.values():
        shutil.copytree(folder, everything, dirs_exist_ok=True)
    recorded = record_embeddings(endpoint.tei, everything, tmp_path / "before.safetensors", settings=SMALL)
    endpoint.seed = 1  # the model behind the URL is exchanged
    audit = run_audit(recorded, endpoint.tei, output_dir=tmp_path / "r", settings=SMALL, **arms)
    assert all(row.change > 0.1 for row in audit.result.images)
    assert audit.result.noise == 0 and audit.result.images[0].held_back_before is not None
    other = AuditSettings(view_count=3, view_side=16, endpoint=FAST, seed=9)
    with pytest.raises(UserError, match="was recorded with"):
        run_audit(recorded, endpoint.tei, output_dir=tmp_path / "r2", settings=other, **arms)
    with pytest.raises(UserError, match="never replaced"):
        record_embeddings(endpoint.tei, everything, recorded, settings=SMALL)
