"""Cases 19 to 22 for a whole run: killed at any moment, `--resume` ends with the files of the run never stopped."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from faults.conftest import TINY
from faults.killing import forked
from folders import folder_hash

from hf_unlearn.errors import UserError
from hf_unlearn.methods.gradient_ascent import GradientAscentTrainer
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.runs.builders import BUILDERS
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.unlearn import unlearn_and_compare

KILLS = 3  # at touches of files, and one more at a moment of the clock


@pytest.fixture(scope="session")
def rows(shapes, tmp_path_factory) -> Path:
    """The dataset on disk."""
    folder = tmp_path_factory.mktemp("rows")
    shapes.save_to_disk(folder)
    return folder


@pytest.fixture(scope="session")
def run(bases, rows, encoded):
    """Run a recipe's work in this process, with its results and its cache in a folder."""

    def unlearn(folder: Path, family: str, *argv: str, methods: tuple[str, ...] = ("fine_tune",)) -> None:
        given = ["--dataset_name", str(rows), "--output_dir", str(folder / "out"), "--methods", *methods]
        given += ["--num_train_epochs", "2", "--per_device_train_batch_size", "16"]
        given += [] if family == "clip" else ["--views", "light"]
        given += [] if any("--unlearn_" in word for word in argv) else ["--unlearn_fraction", "0.1"]
        given += ["--use_cpu", "true", "--disable_tqdm", "true", "--save_strategy", "steps", "--save_steps", "2"]
        given += ["--audit_samples", "3"]
        if "selective_synaptic_dampening" in methods:  # below |train| / |unlearn|, beyond which no weight can be
            given += ["--selective_synaptic_dampening.alpha", "5"]
        if family == "clip":
            given += ["--model_name_or_path", str(bases["clip"])]
        else:  # a base model that is pre-trained first
            given += ["--pretrain.num_train_epochs", "2"]
            given += ["--pretrain.save_strategy", "steps", "--pretrain.save_steps", "2"]
            shape = TINY if family == "simclr" else {**TINY, "queue_size": 24}
            given += [token for name, value in shape.items() for token in (f"--model.{name}", json.dumps(value))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_UNLEARN_CACHE", str(folder / "cache"))
            unlearn_and_compare(parse_run([*given, *argv]), build=BUILDERS[family])

    return unlearn


def results(folder: Path) -> dict:
    """Everything a run leaves that does not tell the time: weights as bytes, figures as numbers."""
    out = folder / "out"
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.safetensors")}
    rows = json.loads((out / "results.json").read_text())["rows"]
    for row in rows:
        row["metrics"].pop("run_time_minutes", None)
    return found | {"rows": rows, "files": sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())}


@pytest.mark.slow
@pytest.mark.usefixtures("finished_run", "finished_views_run")  # so that no fork imports what a run needs once more
@pytest.mark.parametrize(
    ("family", "methods"),
    [
        ("clip", ("retrain", "gradient_ascent")),
        ("clip", ("task_vector", "selective_synaptic_dampening", "slug")),
        ("simclr", ("retrain", "neg_grad")),
        ("moco", ("alignment_calibration", "selective_synaptic_dampening")),
    ],
)
def test_killed_at_random_moments_it_leaves_the_same_files(family, methods, run, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    status, touches = forked(lambda: run(whole, family, methods=methods), watch=whole)
    seconds = time.monotonic() - began
    assert status == 0 and touches > 100

    def again(**moment: float) -> int:
        return forked(lambda: run(killed, family, "--resume", methods=methods), watch=killed, **moment)[0]

    dice = random.Random(f"{family} {methods}")
    statuses = [again(kill_at=dice.randrange(1, touches // 2)) for _ in range(KILLS)]
    again(kill_after=dice.uniform(0, seconds / 2))  # which may come too late for what is left to do
    assert statuses.count(-signal.SIGKILL) >= 2 and set(statuses) <= {0, -signal.SIGKILL}
    assert again() == 0
    assert results(killed) == results(whole)
    assert not [path for path in (killed / "out").iterdir() if path.name.startswith(".")], "nothing is left over"
    assert not (killed / "out" / "checkpoints").exists()


@pytest.fixture(scope="session")
def finished_views_run(tmp_path_factory, run):
    """A finished run on a base model that was pre-trained for it."""
    folder = tmp_path_factory.mktemp("finished-views-run")
    run(folder, "simclr")
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, run, bases):
    """A finished run, and beside it another base model, and its own with another processor."""
    folder = tmp_path_factory.mktemp("finished-run")
    run(folder, "clip")
    model, processor = load_encoder(str(bases["clip"]))
    model.logit_scale.data += 0.1
    for part in (model, processor):
        part.save_pretrained(folder / "other")
    shutil.copytree(bases["clip"], folder / "brighter")
    processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    processor.save_pretrained(folder / "brighter")
    return folder


@pytest.fixture
def copied_run(finished_run, tmp_path):
    """A copy of the finished run, to go on with."""
    shutil.copytree(finished_run, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_finished_methods_are_left_as_they_are_and_others_added(run, copied_run):
    finished = copied_run / "out" / "fine_tune" / "model.safetensors"
    stamp = finished.stat().st_ino, finished.stat().st_mtime_ns
    # What tells nothing of the result may change.
    run(copied_run, "clip", "--resume", "--save_steps", "5", "--audit_samples", "2", methods=("fine_tune", "neg_grad"))
    assert (finished.stat().st_ino, finished.stat().st_mtime_ns) == stamp
    rows = json.loads((copied_run / "out" / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["before", "fine_tune", "neg_grad"]


def test_heatmaps_of_finished_methods_show_what_is_asked_for_now(run, copied_run):
    folder = copied_run / "out" / "fine_tune"

    def shown(*argv: str) -> tuple[bytes, dict]:
        run(copied_run, "clip", "--resume", *argv)
        matrices = json.loads((folder / "evaluation.json").read_text())["matrices"]
        return (folder / "assets" / "alignment_matrices.png").read_bytes(), matrices

    numbered = (folder / "assets" / "alignment_matrices.png").read_bytes()
    pictures, told = shown("--show_samples", "true")
    assert pictures != numbered and told["shows_pictures"] and told["labels"][0].startswith("a ")
    hidden, told = shown("--show_samples", "false")
    assert hidden == numbered and not told["shows_pictures"] and told["labels"][0] == "sample 1"
    fewer, told = shown("--show_samples", "false", "--audit_samples", "2")
    assert fewer != numbered and len(told["agm"]) == 2


def test_a_finished_folder_that_was_changed_is_made_again(run, copied_run, caplog):
    weights = copied_run / "out" / "fine_tune" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run(copied_run, "clip", "--resume")
    assert "fine_tune is not as the run left it; the method is run again" in caplog.text
    assert weights.read_bytes() == content


@pytest.mark.parametrize(("name", "content"), [("unlearning.json", "{"), ("config.json", "[]"), ("config.json", None)])
def test_a_finished_folder_that_cannot_be_read_is_made_again(name, content, run, copied_run, caplog):
    file = copied_run / "out" / "fine_tune" / name
    weights = (file.parent / "model.safetensors").read_bytes()
    file.unlink() if content is None else file.write_text(content)
    run(copied_run, "clip", "--resume")
    assert "fine_tune is not as the run left it; the method is run again" in caplog.text
    assert json.loads(file.read_text()) and (file.parent / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("argv", "difference"),
    [
        (["--learning_rate", "1e-3"], "fine_tune.learning_rate was 0.0005 and is 0.001"),
        (["--adam_beta2", ".9"], "fine_tune.adam_beta2 was 0.999 and is 0.9"),
        (["--seed", "7"], "fine_tune.seed was 0 and is 7"),
        (["--split_seed", "1"], "split_seed was 0 and is 1"),
        (["--unlearn_fraction", ".2"], "request was"),
        (["--unlearn_where", "owner=alice"], "request was"),
        (["--num_samples", "60"], "num_samples was None and is 60"),
        (["--model_name_or_path", "{run}/other"], "base_model.sha256 was"),
        (["--model_name_or_path", "{run}/brighter"], "processor was"),
    ],
)
def test_another_run_is_refused_with_the_difference(argv, difference, run, finished_run):
    before = folder_hash(finished_run / "out")
    with pytest.raises(UserError, match="is another one") as told:
        run(finished_run, "clip", "--resume", *(word.format(run=finished_run) for word in argv))
    assert difference in str(told.value) and "another --output_dir" in str(told.value)
    assert folder_hash(finished_run / "out") == before


@pytest.mark.parametrize(
    ("argv", "difference"),
    [
        (["--views", "cifar"], "fine_tune.views was 'light' and is 'cifar'"),
        (["--unlearn_where", "owner=alice"], "request was"),
        (["--pretrain.seed", "1"], "base_model.sha256 was"),
        (["--model.projection_dim", "4"], "base_model.sha256 was"),
    ],
)
def test_another_run_of_views_is_refused_with_the_difference(argv, difference, run, finished_views_run):
    before = folder_hash(finished_views_run / "out")
    with pytest.raises(UserError, match="is another one") as told:
        run(finished_views_run, "simclr", "--resume", *argv)
    assert difference in str(told.value) and folder_hash(finished_views_run / "out") == before


def test_a_method_whose_settings_failed_gets_others(run, tmp_path):
    """What was finished before it stays, and is not run again; what has left checkpoints keeps its settings."""
    methods = ("fine_tune", "task_vector")

    def subtract(rate: str, *argv: str) -> None:
        run(tmp_path, "clip", *argv, "--task_vector.learning_rate", rate, methods=methods)

    with pytest.raises(UserError, match="Task Vector diverged before anything was learned"):
        subtract("1e30")
    weights = tmp_path / "out" / "fine_tune" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    left = tmp_path / "out" / "checkpoints" / "task_vector" / "checkpoint-1"
    left.mkdir(parents=True)
    with pytest.raises(UserError, match=r"learning_rate was 1e\+30 and is 1e-05"):
        subtract("1e-5", "--resume")
    left.rmdir()
    subtract("1e-5", "--resume")
    assert weights.stat().st_mtime_ns == written
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["before", *methods]
    with pytest.raises(UserError, match="learning_rate was 1e-05 and is 2e-05"):
        subtract("2e-5", "--resume")


def test_what_a_method_cannot_do_is_refused_before_another_is_trained(run, tmp_path):
    methods = ("fine_tune", "selective_synaptic_dampening")
    with pytest.raises(UserError, match=r"SSD could select no weight: .* set alpha below"):
        run(tmp_path, "clip", "--selective_synaptic_dampening.alpha", "100", methods=methods)
    assert not (tmp_path / "out").exists()
    run(tmp_path, "clip", methods=methods)


def test_resuming_nothing_starts_the_run(run, tmp_path):
    run(tmp_path, "clip", "--resume")
    assert (tmp_path / "out" / "results.json").is_file()


def test_a_damaged_record_is_told_and_its_remedy_works(run, copied_run, caplog):
    (copied_run / "out" / "run.json").write_text("{")
    before = folder_hash(copied_run / "out")
    with pytest.raises(UserError, match=r"run.json cannot be read; give --overwrite instead of --resume"):
        run(copied_run, "clip", "--resume")
    with pytest.raises(UserError, match=r"holds a run already; give --resume .*--overwrite to replace it"):
        run(copied_run, "clip")
    assert folder_hash(copied_run / "out") == before
    run(copied_run, "clip", "--overwrite", "--seed", "1")
    assert "only what is run again is replaced" in caplog.text
    assert json.loads((copied_run / "out" / "fine_tune" / "unlearning.json").read_text())["seed"] == 1


def test_a_finished_run_is_replaced_when_asked_alone(run, copied_run):
    out = copied_run / "out"
    before = folder_hash(out)
    with pytest.raises(UserError, match=r"out holds a run already; give --resume to go on with it, --overwrite to"):
        run(copied_run, "clip", methods=("neg_grad",))
    assert folder_hash(out) == before
    (out / "notes").mkdir()
    run(copied_run, "clip", "--overwrite", methods=("neg_grad",))
    assert (out / "neg_grad" / "model.safetensors").is_file()
    assert not (out / "fine_tune").exists(), "no method of the run before is left"
    assert (out / "notes").is_dir(), "nor is anything else removed"


def test_folders_of_no_run_are_replaced_when_asked_alone(run, tmp_path):
    own = tmp_path / "out" / "fine_tune" / "thesis.tex"
    own.parent.mkdir(parents=True)
    own.touch()
    with pytest.raises(
        UserError, match=r"out holds no run, but fine_tune, which this run would replace; choose another"
    ):
        run(tmp_path, "clip")
    assert own.exists() and [path.name for path in (tmp_path / "out").iterdir()] == ["fine_tune"]
    run(tmp_path, "clip", "--overwrite")
    assert not own.exists() and (own.parent / "model.safetensors").is_file()


def test_starting_anew_forgets_checkpoints_and_the_record_names_no_secret(run, tmp_path, rows):
    (tmp_path / "out" / "checkpoints" / "fine_tune" / "checkpoint-99").mkdir(parents=True)
    run(tmp_path, "clip", "--request_salt", "a secret", "--hub_token", "hf_SENTINEL", "--unlearn_where", "owner=alice")
    assert not (tmp_path / "out" / "checkpoints").exists()
    text = (tmp_path / "out" / "run.json").read_text()
    assert not any(word in text for word in ("a secret", "SENTINEL", "alice", str(tmp_path), str(rows.parent)))


def test_a_training_stopped_by_its_budget_says_so_on_its_card(run, tmp_path):
    limits = ("--retain_loss_budget", "0.02", "--guard_steps", "1", "--num_train_epochs", "6")
    run(tmp_path, "clip", *limits, "--learning_rate", "2e-5", methods=("gradient_ascent",))
    folder = tmp_path / "out" / "gradient_ascent"
    card, manifest = (folder / "README.md").read_text(), json.loads((folder / "unlearning.json").read_text())
    note, *others = manifest["notes"]
    assert "beyond its budget" in note
    for words in ("Images that nearly equal an unlearn image", "Bring splits validation and test that the model never"):
        assert any(words in other for other in others), words
    assert all(each in card for each in manifest["notes"])
    assert manifest["hyper_parameters"]["retain_loss_budget"] == 0.02


def test_a_training_stopped_by_nan_ends_the_run_and_resuming_does_the_rest(run, tmp_path, monkeypatch, caplog):
    compute_loss = GradientAscentTrainer.compute_loss

    def spoiled(self, *arguments, **options):
        loss = compute_loss(self, *arguments, **options)
        return loss * float("nan") if self.state.global_step == 2 else loss

    monkeypatch.setattr(GradientAscentTrainer, "compute_loss", spoiled)
    methods, options = ("gradient_ascent", "fine_tune"), ("--num_train_epochs", "6", "--guard_steps", "1")
    with pytest.raises(UserError, match=r"Gradient Ascent: Training was stopped at step 3 .* not finite.*--resume"):
        run(tmp_path, "clip", *options, methods=methods)
    finished = tmp_path / "out" / "gradient_ascent"
    before = (finished / "model.safetensors").read_bytes()
    assert "Training was stopped at step 3 of 6" in (finished / "README.md").read_text()
    load_encoder(str(finished))
    caplog.clear()
    run(tmp_path, "clip", "--resume", *options, methods=methods)
    assert "Gradient Ascent: Training was stopped at step 3 of 6" in caplog.text, "a status of 0 must not hide it"
    assert (finished / "model.safetensors").read_bytes() == before
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["before", "gradient_ascent", "fine_tune"]
    assert "Training was stopped at step 3 of 6" in (finished / "README.md").read_text()
