"""The stress test end to end on tiny models of two families: attacks, tables, going on where it stopped."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from trainers import BACKBONE

from hf_unlearn.benchmarks import attack_signals
from hf_unlearn.benchmarks import stress_test as stress

pytestmark = pytest.mark.slow
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shapes):
    folder = tmp_path_factory.mktemp("stress")
    shapes.save_to_disk(folder / "data")
    options = {
        "dataset_name": str(folder / "data"),
        "caption_column": "captions",
        "unlearn_fraction": 0.1,
        "test_fraction": 0.3,
        "use_cpu": True,
        "disable_tqdm": True,
        "per_device_train_batch_size": 16,
    }
    tiny = {"views": "light", "model": {"backbone_config": BACKBONE, "projection_dim": 16}}
    for family, more in (("clip", {}), ("simclr", tiny)):
        (folder / f"{family}-task.yaml").write_text(yaml.safe_dump(options | more))
        (folder / f"{family}.yaml").write_text(
            yaml.safe_dump({"family": family, "options": {"config": f"{family}-task.yaml"}})
        )
    return folder


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(attack_signals, "RETAIN_STEPS", 2)
    monkeypatch.setattr(attack_signals, "RETAIN_EVERY", 1)

    def call(*argv: str) -> str:
        script = str(RECIPES / "stress_test.py")
        monkeypatch.setattr(sys, "argv", [script, *argv])
        runpy.run_path(script, run_name="__main__")
        return capsys.readouterr().out

    return call


def test_clip_end_to_end_and_again(folder, run, tiny_clip, tmp_path, monkeypatch):
    out = tmp_path / "out"
    argv = [str(folder / "clip.yaml"), "--small", "--ensemble", "4", "--steps", "2", "--output_dir", str(out)]
    argv += ["--model_name_or_path", str(tiny_clip)]
    printed = run(*argv, "--methods", "fine_tune")
    names = [f"{name}-{k}" for name in ("retrain", "fine_tune") for k in range(4)] + ["before-0"]
    assert {p.name for p in out.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("json", "safetensors")} | {
        "results.json",
        "results.md",
    }
    results = json.loads((out / "results.json").read_text())
    rows = {row["attack"]: row for row in results["rows"]}
    for attack in ("alignment: AUC", "alignment, jpeg copies: TPR at 1% FPR", "relearning: area"):
        assert set(rows[attack]["values"]) == {"before", "fine_tune"} and rows[attack]["retrain_std"] >= 0
    for attack in ("KLoM, unlearn: mean", "KLoM, retain: 95th percentile", "likelihood ratio: AUC"):
        assert set(rows[attack]["values"]) == {"fine_tune"}
    assert rows["completeness by Retrains"]["values"]["before"] < 55
    assert "| Attack | Retrain | before unlearning | Fine-Tune |" in printed
    table = (out / "results.md").read_text()
    assert printed.strip().endswith(table.strip())
    seeds = {json.loads((out / f"fine_tune-{k}.json").read_text())["settings"]["seed"] for k in range(4)}
    assert seeds == {0, 1000, 2000, 3000}

    trained = []
    original = stress.Experiment.train_and_evaluate

    def train(self, config, name):
        trained.append(name)
        return original(self, config, name)

    monkeypatch.setattr(stress.Experiment, "train_and_evaluate", train)
    (out / "fine_tune-2.json").unlink()
    record = json.loads((out / "fine_tune-1.json").read_text())
    record["settings"]["learning_rate"] = 1.0  # made with other settings
    (out / "fine_tune-1.json").write_text(json.dumps(record))
    assert run(*argv, "--methods", "fine_tune").strip().endswith(table.strip())
    assert trained == ["fine_tune-1", "fine_tune-2"]


def test_simclr_with_planted_near_copies(folder, run, tmp_path):
    out = tmp_path / "out"
    printed = run(
        str(folder / "simclr.yaml"), "--small", "--ensemble", "2", "--steps", "1", "--near_copies", "3",
        "--methods", "gradient_ascent", "--output_dir", str(out),
    )  # fmt: skip
    assert "samples with near-copies in retain: mean alignment" in printed
    assert "KLoM" not in printed and "likelihood ratio" not in printed
    assert "within 2 points of Retrain's: before unlearning" in printed


def test_models_of_other_data_or_settings_are_not_taken(folder, tiny_clip, tmp_path, monkeypatch):
    def settings(*extra: str, **changed) -> list[dict]:
        """What each model's file must agree in to be used."""
        made: list[dict] = []
        monkeypatch.setattr(stress, "_signals_of", lambda *given: made.append(given[-1]))
        words = ("--model_name_or_path", str(tiny_clip), "--split_seed", "0", *extra)
        benchmark = stress.Benchmark.load(folder / "clip.yaml")
        stress._extract_all(stress.StressTest(benchmark, ensemble=2, extra=words, **changed), tmp_path)
        return made

    first = settings()
    assert len(first) == 1 + 3 * 2 and settings() == first
    for other in (
        settings("--unlearn_fraction", ".4"),
        settings("--split_seed", "1"),
        settings("--fine_tune.learning_rate", "1"),  # how everything relearns
        settings(steps=3),
        settings(near_copies=2),
    ):
        assert all(ours != theirs for ours, theirs in zip(first, other, strict=True))
    changed = settings("--alignment_calibration.beta", "7")
    assert [ours == theirs for ours, theirs in zip(first, changed, strict=True)] == [True] * 5 + [False] * 2


def test_a_small_test_is_of_trainings_that_learn():
    small = runpy.run_path(str(RECIPES / "stress_test.py"))["SMALL"]
    benchmark = stress.Benchmark.load(RECIPES / "benchmarks" / "clip_openmoji.yaml")
    run = stress.StressTest(benchmark, extra=tuple(small)).run(0)
    fractions = run.arguments.validation_fraction, run.arguments.test_fraction, run.arguments.unlearn_fraction
    retained = run.arguments.num_samples * (1 - sum(fractions))
    for config in (run.pretrain, *run.methods.values()):
        updates = int(config.num_train_epochs * retained / config.per_device_train_batch_size)
        assert updates - config.get_warmup_steps(updates) >= 4, config.title


def test_near_copies_and_a_stream_exclude_each_other(folder, run, tiny_clip, tmp_path, capsys):
    (tmp_path / "ids.txt").write_text("red-circle-3")
    stream = ["--streaming", "--model-name-or-path", str(tiny_clip), "--unlearn_request", str(tmp_path / "ids.txt")]
    with pytest.raises(SystemExit):
        run(str(folder / "clip.yaml"), "--near-copies", "3", "--output-dir", str(tmp_path / "out"), *stream)
    assert "--streaming never has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--ensemble", "1"], "at least 2 are needed"),
        (["--methods", "retrain"], "leave retrain out"),
        (["--methods", "fine_tun"], "unknown method"),
        (["--small", "--near_copies", "99"], "cannot be planted"),
    ],
)
def test_bad_arguments_end_with_a_sentence(folder, run, tmp_path, argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(str(folder / "clip.yaml"), "--output_dir", str(tmp_path / "out"), *argv)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
