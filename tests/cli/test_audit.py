import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from audit.conftest import folder_of
from safetensors import safe_open
from typer.testing import CliRunner

from hf_unlearn.audit.app_limits import Limits
from hf_unlearn.audit.plan import read_plan
from hf_unlearn.audit.verdict import run_tests
from hf_unlearn.cli.audit import app, summary
from hf_unlearn.errors import UserError
from hf_unlearn.records.audit_result import Arm, ImageRow, Verdict

pytestmark = pytest.mark.usefixtures("small_plots")
SMALL = ["--view-count", "3", "--view_side", "16", "--device", "cpu"]


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def folders(arms):
    return [word for name, folder in arms.items() for word in (f"--{name.replace('_', '-')}", folder)]


def test_one_command_answers_and_exits_0_whatever_the_verdict(tmp_path, arms, checkpoints):
    model = checkpoints["simclr_a"]
    done = call("--before", model, "--after", model, *folders(arms), "--output_dir", tmp_path / "r", *SMALL)
    assert done.exit_code == 0, done.output
    assert "NO MODEL CHANGE" in done.stdout and str(tmp_path / "r" / "report.html") in done.stdout
    assert (tmp_path / "r" / "report.html").exists()


@pytest.mark.parametrize(
    ("word", "status"), [("no-model-change", 1), ("NO_MODEL_CHANGE", 1), ("inconclusive", 0), ("overshoot", 0)]
)
def test_fail_on_is_for_scripts(tmp_path, checkpoints, word, status):
    model, mine = checkpoints["simclr_a"], folder_of(tmp_path / "mine", 2)
    output = tmp_path / "r"
    done = call(
        "--before", model, "--after", model, "--images", mine, "--output-dir", output, "--fail-on", word, *SMALL
    )
    assert done.exit_code == status
    assert (output / "audit.json").exists()


@pytest.fixture
def report(tmp_path, checkpoints):
    """The report of a model that never changed."""
    model, mine, folder = checkpoints["simclr_a"], folder_of(tmp_path / "mine", 2), tmp_path / "r"
    assert call("--before", model, "--after", model, "--images", mine, "--output_dir", folder, *SMALL).exit_code == 0
    return folder


def test_a_repeated_audit_honours_where_it_goes_and_what_a_script_asks(report, monkeypatch):
    again = report.parent / "r-repeated"
    assert call("--repeat", report).exit_code == 0 and (again / "report.html").is_file()
    assert "holds a finished audit" in str(call("--repeat", report).exception)
    asked = []
    monkeypatch.setattr("hf_unlearn.audit.encoders.usable_device", lambda device: asked.append(device) or "cpu")
    done = call("--repeat", report, "--overwrite", "--device", "cpu:0", "--fail_on", "no-model-change")
    assert done.exit_code == 1 and "The audits agree." in done.stdout and set(asked) == {"cpu:0"}
    assert call("--repeat", report, "--overwrite", "--fail-on", "overshoot").exit_code == 0
    monkeypatch.chdir(report.parent)
    monkeypatch.setattr("hf_unlearn.cli.audit._join_processes", lambda device: False)  # as another process of a launch
    done = call("--repeat", report, "--output_dir", "report")  # the default's own name, and yet given
    assert done.exit_code == 0 and done.stdout == "" and (report.parent / "report" / "report.html").is_file()


def test_beside_a_report_to_repeat_what_has_no_effect_is_refused(report):
    done = call("--repeat", report, "--plan", "plan.json", "--view-count", "10", "--fail_on", "overshoot")
    assert isinstance(done.exception, UserError) and "and --plan, --view_count would" in str(done.exception)
    done = call("--repeat", report, "--output_dir", report, "--overwrite")
    assert isinstance(done.exception, UserError) and "is the report to compare with" in str(done.exception)


def test_captions_and_provenance_reach_the_report(tmp_path, arms, captions, checkpoints):
    done = call(
        *("--before", checkpoints["clip_a"], "--after", checkpoints["clip_b"], *folders(arms), "--captions", captions),
        *("--provenance", "never_trained=taken after the model came out", "--output_dir", tmp_path / "r", *SMALL),
    )
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "r" / "audit.json").read_text())
    assert told["family"] == "image-text"
    assert told["results"][0]["arms"][2]["provenance"] == "taken after the model came out"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--before", "a", "--images", "b"], "needs --after"),
        (
            ["--before", "a", "--after", "b", "--images", "c", "--fail-on", "guilty"],
            "no 'guilty'; choose among no-model",
        ),
        (["--before", "a", "--after", "b", "--images", "c", "--features", "all"], "choose among projection, backbone"),
        (["--before", "a", "--after", "b", "--images", "c", "--provenance", "mine=x"], "choose among requested"),
        (
            ["--before", "a", "--after", "b", "--images", "c", "--provenance", "requested"],
            "requested has no words; give them as requested=words",
        ),
        (["--before", "a", "--after", "b", "--images", "c", "--provenance", "requested= "], "requested=  has no words"),
        (["--before", "a", "--after", "b", "--images", "c", "--audit-number", "5"], "no effect without a plan"),
        (["record", "--model", "a", "--images", "c", "--output_file", "o", "--audit_number", "5"], "without a plan"),
        (
            [
                *("--before", "a.npy", "--after", "b.parquet", "--images", "c", "--view-count", "10"),
                *("--views", "light", "--features", "backbone", "--backend", "pil", "--endpoint_timeout", "9"),
            ],
            "and --views, --view_count, --features, --backend, --endpoint_timeout would have no effect",
        ),
        (["--before", "a", "--after", "b", "--images", "c", "--seed", "-1"], "at least 0, not -1"),
        (["--before", "a", "--after", "b", "--images", "c", "--endpoint_timeout", "-1"], "seconds above 0, not -1"),
        (["--before", "a", "--after", "b", "--images", "no-such-folder"], "'no-such-folder' does not exist"),
    ],
)
def test_bad_words_are_named(tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    done = call(*words)
    assert isinstance(done.exception, UserError) and says in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_two_files_of_embeddings_take_what_has_an_effect(tmp_path, arms):
    mine, decoys = arms["images"], folder_of(tmp_path / "decoys", 2, 40)
    for side in ("before", "after"):
        np.save(tmp_path / f"{side}.npy", np.random.default_rng(0).normal(size=(4, 3, 5)))
    files = ["--before", tmp_path / "before.npy", "--after", tmp_path / "after.npy", "--images", mine]
    done = call(*files, "--seed", "3", "--device", "cpu", "--audit_number", "1", "--output_dir", tmp_path / "r")
    assert done.exit_code == 0, done.output
    assert "both sides are files" in str(call(*files, "--decoys", decoys, "--output_dir", tmp_path / "r2").exception)


def test_decoys_that_a_recording_cannot_answer_about_are_told_of(tmp_path, arms, checkpoints):
    model, mine, recorded = checkpoints["simclr_a"], arms["images"], tmp_path / "a.safetensors"
    assert call("record", "--model", model, "--images", mine, "--output_file", recorded, *SMALL).exit_code == 0
    decoys = folder_of(tmp_path / "decoys", 2, 40)
    words = ["--before", recorded, "--after", model, "--images", mine, "--decoys", decoys, "--device", "cpu"]
    done = call(*words, "--output_dir", tmp_path / "r")
    assert done.exit_code == 0, done.output
    assert "Note: The decoys (--decoys) were left out" in done.stdout


def test_plan_then_audit(tmp_path, checkpoints):
    mine = folder_of(tmp_path / "mine", 6)
    done = call("plan", "--images", mine, "--seed", 5, "--output_dir", tmp_path / "plan")
    assert done.exit_code == 0, done.output
    plan = read_plan(tmp_path / "plan" / "plan.json")
    assert plan.sha256 in done.stdout and plan.seed == 5 and len(plan.requested) == 3
    assert (tmp_path / "plan" / "request.csv").read_text().count("\n") == 4
    model = checkpoints["simclr_a"]
    done = call(
        *("--before", model, "--after", model, "--images", mine, "--plan", tmp_path / "plan" / "plan.json"),
        *("--output_dir", tmp_path / "r", *SMALL),
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "r" / "audit.json").read_text())["results"][0]["plan_sha256"] == plan.sha256


def test_record_then_audit(tmp_path, arms, checkpoints):
    model, recorded = checkpoints["simclr_a"], tmp_path / "before.safetensors"
    settings = ["--view_count", "3", "--view_side", "16"]
    assert (
        call("record", "--model", model, "--images", arms["images"], "--output_file", recorded, *settings).exit_code
        == 0
    )
    done = call(
        "--before", recorded, "--after", model, "--images", arms["images"], "--output_dir", tmp_path / "r", *settings
    )
    assert done.exit_code == 0, done.output
    assert "NO MODEL CHANGE" in done.stdout


def test_record_takes_what_an_audit_takes(tmp_path, arms, endpoint, checkpoints):
    output = tmp_path / "endpoint.safetensors"
    words = ["record", "--model", endpoint.tei, "--images", arms["images"], "--output_file", output, *SMALL[:-2]]
    assert call(*words, "--endpoint-batch-size", 5, "--endpoint_timeout", 9).exit_code == 0
    assert max(len(body["inputs"]) for body in endpoint.bodies) == 5
    output = tmp_path / "checkpoint.safetensors"
    words = ["record", "--model", checkpoints["simclr_a"], "--images", arms["images"], "--output_file", output, *SMALL]
    assert call(*words, "--features", "backbone", "--backend", "pil").exit_code == 0
    with safe_open(output, "np") as file:
        source = json.loads(file.metadata()["hf_unlearn"])["source"]
    assert source["features"] == "backbone" and source["processor_backend"] == "pil"
    assert "choose among projection" in str(call(*words, "--features", "all").exception)


def test_app_opens_the_page(monkeypatch):
    opened = []
    monkeypatch.setattr("gradio.Blocks.launch", lambda self, **how: opened.append((self.title, how)))
    assert call("app", "--port", 7999).exit_code == 0
    ((title, how),) = opened
    assert title == "Unlearning audit" and how["server_port"] == 7999
    assert how["max_file_size"] == Limits().file_bytes


def test_the_program_prints_one_sentence_and_exits_2(tmp_path):
    """Through the real entry point, whose guard turns a UserError into a sentence."""
    command = [sys.executable, "-c", "from hf_unlearn.cli import main; main()", "audit"]
    command += ["--before", "a", "--after", "b", "--images", str(tmp_path / "gone")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "gone' does not exist; give a folder" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_summary_tells_arms_and_footer():
    rows = [ImageRow(f"{arm}{i}", f"{arm}{i}", arm, 0.9, 0.8 - i / 100) for arm in Arm for i in range(3)]
    result = run_tests(rows)
    text = summary(result, "ann")
    assert text.startswith(f"ann: {result.headline}\n") and f"\n{result.verdict.value}\n" in text
    assert " ".join(result.explanation.split()) in " ".join(text.split())
    assert result.footer.split(".")[0] in text and max(map(len, text.splitlines())) <= 100
    assert "still trained" in text and "+0.1100" in text
    for share, told in ((0.9, "90% of redraws of the views give this verdict."), (0.05, "Only 5% of redraws")):
        text = " ".join(summary(replace(result, stability=share)).split())
        assert told in text and ("read it as undecided between neighbouring verdicts" in text) == (share < 0.9)


def test_every_verdict_can_be_named():
    assert {verdict.slug for verdict in Verdict} >= {"no-model-change", "within-band", "residual-signal"}
