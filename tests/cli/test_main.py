import json
import shutil
import sys
from contextlib import nullcontext
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from hf_unlearn import __version__
from hf_unlearn.cli import COMMANDS, main
from hf_unlearn.cli.evaluate import HONOURED
from hf_unlearn.cli.guard import guarded
from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.fingerprint import combine_hashes
from hf_unlearn.errors import UserError
from hf_unlearn.methods import METHODS
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.runs import comparable
from hf_unlearn.runs.help import GROUPS
from hf_unlearn.runs.run_arguments import RunArguments
from hf_unlearn.training.config import UnlearningConfig


def test_help_lists_every_command(cli):
    status, out, _ = cli("--help")
    assert status == 0 and all(name in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(cli, command):
    status, out, _ = cli(command, "--help")
    assert status == 0 and "Usage" in out


def test_methods_lists_all_and_shows_one(cli):
    _, out, _ = cli("methods")
    assert [line.split()[0] for line in out.splitlines()] == list(METHODS)
    _, out, _ = cli("methods", "alignment_calibration")
    assert "Eq. 5" in out and "--beta" in out


def test_methods_fit_eighty_columns_a_line_each(cli):
    _, out, _ = cli("methods")
    told = [trainer.config_class.description for trainer in METHODS.values()]
    for line, description in zip(out.splitlines(), told, strict=True):
        assert len(line) <= 80 and line.split(maxsplit=1)[1].startswith(description.title)
        assert line.endswith(" …") or line.endswith(description.summary)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_shows_its_summary_equations_source_and_settings(cli, method):
    _, out, _ = cli("methods", method)
    assert max(map(len, out.splitlines())) <= 80
    shown, config = "".join(out.split()), METHODS[method].config_class
    told = config.description
    assert out.startswith(f"{told.title}\n")
    assert all("".join(part.split()) in shown for part in (told.summary, *told.equations, told.citation))
    own = {f.name: f.default for f in fields(config)} | {f.name: None for f in fields(UnlearningConfig)}
    for name, default in own.items():
        if default is not None:
            assert f"  --{name} " in out and f"(default{default})".replace(" ", "") in shown


def test_bad_input_is_a_sentence_and_status_2(cli):
    status, out, err = cli("methods", "amnesia")
    assert (status, out) == (2, "") and err.startswith("error: unknown method amnesia") and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "named", "command"),
    [
        ("amnesia", "'amnesia'", "hf-unlearn"),
        ("--colour red", "--colour", "hf-unlearn"),
        ("card", "'run'", "hf-unlearn card"),
        ("card x y", "(y)", "hf-unlearn card"),
        ("audit plan --images x", "'--output_dir'", "hf-unlearn audit plan"),
        ("audit nonsense", "'nonsense'", "hf-unlearn audit"),
        ("tune --n_trials many", "'--n_trials'", "hf-unlearn tune"),
        (f"verify x --hf_{'x' * 34}", "--[secret]", "hf-unlearn verify"),
        (f"verify x hf_{'x' * 34}", "([secret])", "hf-unlearn verify"),
    ],
)
def test_what_cannot_be_parsed_is_a_sentence_without_secrets(cli, words, named, command):
    status, out, err = cli(*words.split())
    assert (status, out) == (2, "") and err.startswith("error: ") and named in err.replace("'RUN'", "'run'")
    assert err.endswith(f"; see '{command} --help'\n") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("embedded null byte"), "holds a character that none can have (embedded null byte)"),
        (RuntimeError("Symlink loop from '/a'"), "'/a': its links lead in a circle; name another path"),
        (type("PanicException", (BaseException,), {})("over\nstack"), "the tokenizer gave up on a text (over); save"),
    ],
)
def test_what_no_kind_of_exception_tells_is_a_sentence(error, words, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as ended:
        guarded(fail)
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_a_number_without_end_is_a_sentence(cli):
    status, _, err = cli("audit", "plan", "--images", "x", "--output_dir", "y", "--audits", "9" * 300)
    assert status == 2 and "at most 1000" in err


def test_without_words_it_explains_itself(cli):
    assert cli()[:2] == cli("--help")[:2]


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hf-unlearn", "methods", "amnesia", "--debug"])
    with pytest.raises(UserError):
        main()


def test_evaluate_measures_a_finished_checkpoint(cli, tiny_clip, shapes, tmp_path, monkeypatch):
    asked: list = []
    monkeypatch.setattr(comparable, "record_doubts", lambda *given: asked.extend(given) or ("What speaks against it.",))
    shapes.save_to_disk(tmp_path / "data")
    retrained = tmp_path / "retrained"
    model, processor = load_encoder(str(tiny_clip))
    model.logit_scale.data += 0.1
    for part in (model, processor):
        part.save_pretrained(retrained)
    argv = ["evaluate", str(retrained), "--base", str(tiny_clip), "--retrain", str(retrained)]
    argv += ["--dataset", str(tmp_path / "data"), "--unlearn_where", "owner=alice", "--use_cpu", "true"]
    status, out, _ = cli(*argv, "--output_dir", str(tmp_path / "out"))
    assert status == 0 and "Avg." in out and out.endswith("\nWhat speaks against it.\n")
    ids = [row for row, owner in zip(shapes["id"], shapes["owner"], strict=True) if owner == "alice"]
    assert asked[:2] == [str(retrained), weights_sha256(tiny_clip)] and asked[2].sha256 == combine_hashes(sorted(ids))
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert rows[-1]["avg_gap"] == 0 and rows[-1]["metrics"]["agreement_pearson"] == pytest.approx(1)
    monkeypatch.setattr("accelerate.PartialState.is_main_process", False)  # as another process of the launch sees it
    assert cli(*argv, "--output_dir", str(tmp_path / "other"))[:2] == (0, "")
    assert not (tmp_path / "other").exists()
    monkeypatch.setattr("hf_unlearn.benchmarks.oracles.load_oracle", lambda name: SimpleNamespace(score=str))
    assert cli("evaluate", str(retrained), "--oracle", "any")[:2] == (0, "")


def test_evaluate_measures_only_what_it_can_write_and_shows_what_it_could_not(
    cli, tiny_clip, shapes, tmp_path, monkeypatch
):
    shapes.save_to_disk(tmp_path / "data")
    (tmp_path / "taken" / "results.json").mkdir(parents=True)
    argv = ["evaluate", str(tiny_clip), "--base", str(tiny_clip), "--dataset", str(tmp_path / "data")]
    argv += ["--unlearn_where", "owner=alice", "--use_cpu", "true", "--output_dir"]
    status, out, err = cli(*argv, str(tmp_path / "taken"))
    assert status == 2 and "Tiny-Clip0" in out and "results.json" in err
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("hf_unlearn.runs.recorded_initial.measuring", lambda *_: pytest.fail("it was measured"))
    status, out, err = cli(*argv, str(tmp_path / "file" / "below"))
    assert (status, out) == (2, "") and "file/below cannot be written to (Not a directory); choose another" in err


def test_evaluate_refuses_a_checkpoint_that_lacks_weights(cli, tiny_clip, foreign_pairs, tmp_path):
    shutil.copytree(tiny_clip, tmp_path / "lacking")
    weights = load_file(tmp_path / "lacking" / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("text_projection")}
    save_file(kept, tmp_path / "lacking" / "model.safetensors", {"format": "pt"})
    for model, base in (("lacking", tiny_clip), (tiny_clip, "lacking")):
        argv = ["evaluate", str(tmp_path / model), "--base", str(tmp_path / base), "--dataset", str(foreign_pairs)]
        argv += ["--image_column", "photo", "--caption_column", "text", "--unlearn_fraction", "0.1"]
        status, _, err = cli(*argv, "--use_cpu", "true")
        assert status == 2 and "(text_projection.weight), which would be drawn at random" in err, err


@pytest.mark.parametrize(
    "words",
    [
        "--methods npo",
        "--methods=fine_tune",
        "--learning-rate 1",
        "--use_peft",
        "--retrain_model x",
        "--dataset_name x",
        "--resume",
    ],
)
def test_evaluate_refuses_what_it_cannot_honour(cli, tiny_clip, tmp_path, words):
    argv = ["evaluate", str(tiny_clip), "--base", str(tiny_clip), "--dataset", str(tmp_path), *words.split()]
    status, _, err = cli(*argv)
    name = words.split()[0].partition("=")[0].replace("--", "").replace("-", "_")
    assert status == 2 and err.startswith(f"error: evaluate takes no option --{name}, as it measures")


def test_evaluate_takes_a_recipes_yaml(cli, tiny_clip, foreign_pairs, tmp_path):
    (tmp_path / "task.yaml").write_text(
        "methods: [npo]\nimage_column: photo\ncaption_column: text\nuse_cpu: true\nlearning_rate: 1.0\n"
    )
    argv = ["evaluate", str(tiny_clip), "--base", str(tiny_clip), "--dataset", str(foreign_pairs)]
    argv += ["--unlearn_fraction", "0.1"]
    status, out, err = cli(*argv, "--config", str(tmp_path / "task.yaml"))
    assert status == 0 and out.count("Cosine,") == 3, err


@pytest.mark.parametrize(
    "words",
    [
        "publish {} --repo org/x --dry_run --show_samples --create_pr",
        "publish {} --repo org/x --dry-run --show-samples --create-pr",
        "card {} --copy_to x",
        "card {} --copy-to x",
        "evaluate {} --base {} --dataset {} --output-dir {}/x",
        "tune --n-trials 1 --output-dir {}/x --family clip --dataset-name {}/none --methods fine_tune",
        "audit --before {} --after {} --images {} --view_count 3 --fail_on inconclusive",
        "audit --before {} --after {} --images {} --view-count 3 --fail-on inconclusive",
        "audit plan --images {} --output-dir {}/x",
    ],
)
def test_either_spelling_is_understood(cli, tmp_path, words):
    status, _, err = cli(*words.replace("{}", str(tmp_path)).split())
    assert status == 2 and "error: " in err and "option" not in err.lower(), err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fails", [False, True])
def test_a_program_leaves_its_process_group_however_it_ends(fails):
    def program():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        if fails:
            raise UserError("no such picture")

    with pytest.raises(SystemExit) if fails else nullcontext():
        guarded(program)
    assert not dist.is_initialized()


HELPS = [*COMMANDS, "audit plan", "audit record", "audit app"]


@pytest.mark.parametrize("command", ["", *HELPS])
def test_help_fits_eighty_columns_and_cuts_no_option(cli, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = cli(*command.split(), "--help")
    assert status == 0 and max(map(len, out.splitlines())) <= 80
    assert "…" not in out and "..." not in out.replace("A B ...", "").replace("[ARGS]...", "").replace("DATA ...", "")


def test_helps_list_the_runs_options_in_groups(cli):
    own = {field.name for field in fields(UnlearningConfig)} - {field.name for field in fields(TrainingArguments)}
    run = {field.name for field in (*fields(RunArguments), *fields(DataConfig))} | own
    settings = {"per_device_train_batch_size", "num_train_epochs", "bf16", "views", "max_length", "report_to"}
    _, unlearn, _ = cli("unlearn", "--help")
    assert all(f"  --{name} " in unlearn for name in run | settings)
    assert all(f"\n{group}:\n" in unlearn for group in GROUPS)
    _, evaluate, _ = cli("evaluate", "--help")
    assert (
        all(f"  --{name} " in evaluate for name in HONOURED if name != "config") and "--learning_rate" not in evaluate
    )
    _, tune, _ = cli("tune", "--help")
    assert "[CONFIG]" in tune and "--methods A B" in tune and "--unlearn_request" in tune


def test_version(cli):
    assert cli("--version") == (0, f"hf-unlearn {__version__}\n", "")


def test_env_tells_versions_and_devices(cli, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/home/somebody")
    status, out, _ = cli("env")
    told = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert status == 0 and told["torch"] == torch.__version__.split("+")[0] and told["hf-unlearn"] == __version__
    assert told["HF_HOME"] == "set" and "somebody" not in out


def test_a_checkpoint_that_is_no_word_of_the_command_is_asked_for(cli, tmp_path):
    status, _, err = cli("evaluate", "--unlearn_fraction", ".1", "m", "--base", "b", "--dataset", "d")
    assert status == 2 and "name the checkpoint first: hf-unlearn evaluate MODEL" in err
