"""One experiment on tiny models of every family: what it measures, writes and leaves alone."""

import json
import logging

import numpy as np
import pytest
import torch
from folders import watched
from safetensors.torch import load_file
from trainers import BACKBONE
from transformers import SiglipConfig, SiglipModel, SiglipProcessor

from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.errors import UserError
from hf_unlearn.models.image_processor import image_processor_of
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.moco import MoCoConfig, MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel
from hf_unlearn.models.small_clip import train_tokenizer
from hf_unlearn.records.schemas import UnlearningManifest
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.experiment import Experiment
from hf_unlearn.runs.run_data import prepare_task

TINY = {"backbone_config": BACKBONE, "projection_dim": 16}
SMALL_VIEWS = VIEW_PRESETS["light"].__class__(size=16)


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tiny_clip, shapes):
    """A folder per family."""
    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    processor = image_processor_of(SMALL_VIEWS)
    models = {"simclr": SimCLRModel(SimCLRConfig(**TINY)), "moco": MoCoModel(MoCoConfig(**TINY, queue_size=24))}
    for name, model in models.items():
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    tokenizer = train_tokenizer(c for captions in shapes["captions"] for c in captions)
    tokenizer.model_input_names = ["input_ids"]  # as SigLIP's own
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    config = SiglipConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8})
    SiglipModel(config).save_pretrained(root / "siglip")
    SiglipProcessor(image_processor=image_processor_of(SMALL_VIEWS), tokenizer=tokenizer).save_pretrained(
        root / "siglip"
    )
    return {"clip": tiny_clip, **{name: watched(root / name) for name in ("simclr", "moco", "siglip")}}


@pytest.fixture
def experiment(bases, shapes, tmp_path, monkeypatch):
    """Build an experiment on 72 pictures for a family."""
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    shapes.save_to_disk(tmp_path / "data")

    def build(family: str, *argv: str, base=None) -> tuple[Experiment, dict]:
        given = ["--dataset_name", str(tmp_path / "data"), "--model_name_or_path", str(bases[family])]
        given += [
            "--output_dir",
            str(tmp_path / "out"),
            "--num_train_epochs",
            "1",
            "--per_device_train_batch_size",
            "16",
        ]
        given += [] if family in ("clip", "siglip") else ["--views", "light"]
        given += ["--use_cpu", "true", "--disable_tqdm", "true", "--unlearn_fraction", "0.1"]
        run = parse_run([*given, *argv])
        return Experiment(run, prepare_task(run.arguments), base or bases[family]), run.methods

    return build


@pytest.mark.parametrize("family", ["clip", "siglip", "simclr", "moco"])
def test_every_method_runs_on_every_family(family, experiment):
    ours, methods = experiment(family)
    for config in methods.values():
        ours.train_and_evaluate(config)
    assert all(np.isfinite(list(ours.before.metrics.values())))


def test_saved_checkpoint_measures_as_the_trained_model_did(experiment, tmp_path):
    ours, methods = experiment("moco")
    trained = ours.unlearn(methods["alignment_calibration"])
    reloaded = ours.evaluate(str(tmp_path / "out" / "alignment_calibration"))
    np.testing.assert_array_equal(trained.alignment, reloaded.alignment)
    np.testing.assert_array_equal(trained.x, reloaded.x)


def test_untouched_model_has_forgotten_nothing(experiment, bases):
    ours, _ = experiment("clip")
    again = ours.evaluate(str(bases["clip"]))
    assert again.metrics["forgetting_score"] == 0.0 and again.metrics["negative_alignment"] == pytest.approx(
        0, abs=1e-9
    )
    with pytest.raises(UserError, match="simclr embeds views of pictures, and the base model pictures and texts"):
        ours.evaluate(str(bases["simclr"]))


def test_missing_labels_turn_the_probe_off_with_a_sentence(experiment, shapes, tmp_path, caplog):
    shapes.remove_columns("label").save_to_disk(tmp_path / "unlabelled")
    with caplog.at_level(logging.WARNING):
        ours, _ = experiment("simclr", "--dataset_name", str(tmp_path / "unlabelled"))
    assert "No label column" in caplog.text
    assert ours.evaluator.gap_keys == ("emia",) and "retain_accuracy" not in ours.before.metrics


def test_finished_run_holds_a_card_and_its_records(experiment, tmp_path):
    ours, methods = experiment("simclr", "--request_salt", "secret")
    ours.unlearn(methods["retrain"])
    ours.unlearn(methods["fine_tune"])
    ours.finish()
    folder = tmp_path / "out" / "fine_tune"
    audit = json.loads((folder / "evaluation.json").read_text())
    assert audit["avg_gap"] is not None and audit["retrain"]["emia"] >= 0
    assert len(audit["matrices"]["agm"]) == 6 and audit["matrices"]["shows_pictures"] is False
    gap = "{estimated_gap:.2f} [{low_estimated_gap:.2f}, {high_estimated_gap:.2f}]".format(**audit["metrics"])
    assert gap in (folder / "README.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert gap in (tmp_path / "out" / "results.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
    manifest = json.loads((folder / "unlearning.json").read_text())
    assert manifest["request"]["salted"] and len(manifest["request"]["row_hashes"]) == manifest["request"]["count"]
    assert "secret" not in (folder / "unlearning.json").read_text() + (folder / "README.md").read_text()


def test_the_order_of_methods_does_not_matter(experiment):
    """Agreement with Retrain and CKA are there for what was measured before it, too."""
    found = []
    for order in (("fine_tune", "retrain"), ("retrain", "fine_tune")):
        ours, methods = experiment("clip", "--methods", *order)
        for method in order:
            ours.evaluations[method] = ours.train_and_evaluate(methods[method])[1]
        rows = {row.method: dict(row.metrics) for row in ours.results().rows}
        found.append({(m, k): v for m, row in rows.items() for k, v in row.items() if k != "run_time_minutes"})
    assert found[0] == found[1]
    assert {("fine_tune", "agreement_pearson"), ("fine_tune", "cka_to_retrain")} <= found[0].keys()
    assert ("retrain", "cka_to_retrain") not in found[0]


@pytest.mark.parametrize(
    ("stored", "asked", "saved"),
    [("bfloat16", None, "bfloat16"), ("bfloat16", "float32", "float32"), ("float32", "float16", "float16")],
)
def test_a_checkpoint_keeps_its_type_unless_another_is_asked_for(experiment, bases, tmp_path, stored, asked, saved):
    model, processor = load_encoder(str(bases["clip"]))
    model.to(getattr(torch, stored)).save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    ours, methods = experiment("clip", *(["--save_dtype", asked] if asked else []), base=tmp_path / "base")
    evaluation = ours.unlearn(methods["fine_tune"])
    folder = tmp_path / "out" / "fine_tune"
    assert {str(value.dtype) for value in load_file(folder / "model.safetensors").values()} == {f"torch.{saved}"}
    again = ours.evaluate(str(folder))
    assert np.array_equal(again.alignment, evaluation.alignment)  # what is saved is what was measured
    assert (f"saved and measured in {saved}" in (folder / "README.md").read_text()) == (saved != "float32")


def test_a_model_in_which_nothing_moved_says_so_on_terminal_and_card(experiment, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        ours, methods = experiment("clip", "--learning_rate", "1e-60", "--methods", "fine_tune")
        ours.unlearn(methods["fine_tune"])
    card = (tmp_path / "out" / "fine_tune" / "README.md").read_text()
    for words in ("cosines of unlearn samples moved by 0.0000", "the weights are those of the base model, to the bit"):
        assert words in caplog.text and words in card


def test_what_is_of_another_kind_of_model_is_refused_and_on_no_card(experiment, tmp_path):
    with pytest.raises(UserError, match=r"the family moco, from --family or the config, is not .* a CLIPModel; leave"):
        experiment("clip", "--family", "moco")
    with pytest.raises(UserError, match=r"the family clip, from .*, is not that of the model, a SimCLRModel"):
        experiment("simclr", "--family", "clip")
    with pytest.raises(UserError, match="views=imagenet would have no effect on a model that embeds pairs of pictures"):
        experiment("clip", "--views", "imagenet")
    for option, value in (("max_length", "8"), ("flip_probability", "0.5")):
        with pytest.raises(UserError, match=f"{option}={value} would have no effect on a model that embeds views"):
            experiment("simclr", f"--{option}", value)
    for family, own, other in (("clip", "flip_probability", "views"), ("moco", "views", "flip_probability")):
        ours, methods = experiment(family, "--methods", "fine_tune", "--family", family, "--overwrite", "true")
        ours.unlearn(methods["fine_tune"])
        shown = UnlearningManifest.load(tmp_path / "out" / "fine_tune").hyper_parameters
        assert own in shown and other not in shown
