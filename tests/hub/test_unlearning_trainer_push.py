"""The public surface: `trainer.train(); trainer.push_to_hub()` with the library's own Trainers, loaded elsewhere."""

import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from hub.local_hub import LocalHub
from peft import LoraConfig
from PIL import Image as Picture
from transformers import CLIPModel

from hf_unlearn import (
    AlignmentCalibrationConfig,
    AlignmentCalibrationTrainer,
    FineTuneConfig,
    FineTuneTrainer,
    UserError,
    load_encoder,
)
from hf_unlearn.hub.card import render_card
from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.methods import alignment_calibration as direct
from hf_unlearn.methods.selective_synaptic_dampening import SSDConfig, SSDTrainer
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.records.schemas import BaseModel, UnlearningManifest

SENTINEL = "hf_sentinelSENTINELsentinelSENTINEL99"


@pytest.fixture
def trainer(base: Path, requested: Dataset, tmp_path: Path, hub: LocalHub) -> AlignmentCalibrationTrainer:
    model, processor = load_encoder(str(base))
    config = AlignmentCalibrationConfig(
        output_dir=str(tmp_path / "clip-unlearned"),
        hub_model_id="org/clip-unlearned",
        hub_token=SENTINEL,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        save_strategy="epoch",
        use_cpu=True,
        disable_tqdm=True,
    )
    splits = DatasetDict(retain=requested.select(range(4)), unlearn=requested.select((4, 5)))
    return AlignmentCalibrationTrainer(model, config, train_dataset=splits, processing_class=processor)


def test_pushed_model_loads_in_a_fresh_process_and_verifies(
    trainer: AlignmentCalibrationTrainer, base: Path, hub: LocalHub, tmp_path: Path
) -> None:
    trainer.train()
    trainer.push_to_hub(commit_message="Unlearned")
    files = hub.files("org/clip-unlearned")
    assert {"config.json", "model.safetensors", "README.md", "unlearning.json", "tokenizer.json"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name]
    assert SENTINEL.encode() not in hub.everything_received()
    assert verify_repo("org/clip-unlearned", base=base).ok
    script = (
        "import torch\nfrom transformers import AutoModel, CLIPModel\n"
        "for cls in (AutoModel, CLIPModel):\n"
        "    model = cls.from_pretrained('org/clip-unlearned')\n"
        "    print(float(model.text_projection.weight.detach().double().sum()))\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = float(trainer.model.text_projection.weight.detach().double().sum())
    assert {float(line) for line in done.stdout.split()} == {expected}


def test_a_model_of_the_hub_is_asked_for_its_records(trainer: AlignmentCalibrationTrainer, hub: LocalHub) -> None:
    trainer.train()
    trainer.push_to_hub()
    model, processor = load_encoder("org/clip-unlearned")
    assert trainer.source_splits is not None
    with pytest.raises(UserError, match=r"the model has been through earlier requests, and a Trainer cannot tell"):
        AlignmentCalibrationTrainer(
            model, trainer.args, train_dataset=trainer.source_splits, processing_class=processor
        )


def test_records_name_method_settings_and_sizes(trainer: AlignmentCalibrationTrainer, hub: LocalHub) -> None:
    trainer.train()
    result = trainer.push_to_hub(dry_run=True)
    assert result is not None and not hub.repos
    card = (Path(str(trainer.args.output_dir)) / "README.md").read_text()
    assert "Alignment Calibration" in card and "remove 2 of its training samples" in card


def test_saving_leaves_the_record_and_the_card_beside_the_weights(
    trainer: AlignmentCalibrationTrainer, base: Path, tmp_path: Path
) -> None:
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    record = UnlearningManifest.load(tmp_path / "saved")
    assert (record.method, record.splits["unlearn"], record.base_model.name_or_path) == (
        "alignment_calibration",
        2,
        "small-clip",
    )
    assert record.weights_sha256 == weights_sha256(tmp_path / "saved")
    assert {"alpha", "flip_probability", "learning_rate"} <= record.hyper_parameters.keys()
    assert "views" not in record.hyper_parameters  # it embeds pairs
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "Alignment Calibration" in card and "This model was not evaluated." in card
    assert verify_repo(str(tmp_path / "saved"), base=base).ok
    assert not list((tmp_path / "clip-unlearned").glob("checkpoint-*/README.md"))


@pytest.mark.parametrize("loaded", [True, False])
def test_a_trainers_initial_model_is_recorded(
    trainer: AlignmentCalibrationTrainer, base: Path, tmp_path: Path, loaded: bool
) -> None:
    torch.manual_seed(7)
    model = CLIPModel(trainer.model.config)
    model.save_pretrained(tmp_path / "public")
    trainer.initial_model = CLIPModel.from_pretrained(tmp_path / "public") if loaded else CLIPModel(model.config)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    known = BaseModel("public", None, weights_sha256(tmp_path / "public")) if loaded else BaseModel("unnamed model")
    assert UnlearningManifest.load(tmp_path / "saved").initial_model == known
    assert f"| Initial model | `{known.name_or_path}`, local |" in (tmp_path / "saved" / "README.md").read_text()
    assert verify_repo(str(tmp_path / "saved"), base=base).ok


def test_weights_that_were_trained_twice_are_said_to_be(trainer: AlignmentCalibrationTrainer, tmp_path: Path) -> None:
    trainer.train()
    assert not trainer.notes
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    (note,) = UnlearningManifest.load(tmp_path / "saved").notes
    assert note.startswith("The weights were trained 2 times with these settings, each time from where they were;")
    assert note in (tmp_path / "saved" / "README.md").read_text()
    trainer.train(resume_from_checkpoint=True)  # at its end, so that nothing is trained
    assert trainer.trainings == 2


def loaded_as_the_card_says(folder: Path, base: Path) -> dict[str, Any]:
    """What the names of its lines stand for, once they ran."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = code.replace("path/to/this/folder", str(folder)).replace(f'"{base.name}"', f'"{base}"')
    namespace = {"picture": Picture.new("RGB", (40, 40), "red")}
    exec(code, namespace)
    return namespace


@pytest.mark.parametrize(("family", "adapted"), [("simclr", False), ("moco", False), ("simclr", True), ("clip", False)])
def test_the_lines_of_a_card_load_a_model_that_was_never_evaluated(
    family: str, adapted: bool, encoder: Any, splits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    base, saved = tmp_path / "base", tmp_path / "saved"
    for part in encoder(family):
        part.save_pretrained(base)
    model, processor = load_encoder(str(base))
    config = FineTuneConfig(str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
    lora = LoraConfig(r=2) if adapted else None
    FineTuneTrainer(model, config, splits, processing_class=processor, peft_config=lora).save_model(str(saved))
    card = (saved / "README.md").read_text()
    assert "This model was not evaluated." in card
    found = loaded_as_the_card_says(saved, base)
    manifest = UnlearningManifest.load(saved)
    salted = render_card(replace(manifest, request=replace(manifest.request, salted=True)), None)
    if family == "clip":
        assert "pipeline_tag: zero-shot-image-classification\n" in card and found["similarity"].shape == (1, 1)
        assert '--image mine.png --caption "its caption"\n' in salted
    else:
        assert "pipeline_tag: image-feature-extraction\n" in card and found["features"].shape == (1, 8)
        assert "--image mine.png\n" in salted


def test_measurements_of_earlier_weights_do_not_stay_beside_new_ones(
    trainer: AlignmentCalibrationTrainer, run: Path
) -> None:
    assert (run / "evaluation.json").is_file() and (run / "assets").is_dir()
    trainer.train()
    trainer.save_model(str(run))
    assert not (run / "evaluation.json").exists() and not (run / "assets").exists()
    assert "This model was not evaluated." in (run / "README.md").read_text()


def test_rows_that_cannot_be_described_leave_the_weights_and_a_sentence(
    trainer: AlignmentCalibrationTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer.source_splits = None  # as when they came encoded
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "model.safetensors").is_file() and not (tmp_path / "saved" / "README.md").exists()
    assert "pass train_dataset as a DatasetDict" in caplog.text


def test_a_trainer_pushes_wherever_it_was_imported_from_and_whatever_it_is_called(
    trainer: AlignmentCalibrationTrainer, hub: LocalHub
) -> None:
    class Unlearner(direct.AlignmentCalibrationTrainer):
        """A subclass of somebody's own."""

    trainer.__class__ = Unlearner
    trainer.train()
    trainer.push_to_hub()
    assert "README.md" in hub.files("org/clip-unlearned")


def test_a_training_that_was_stopped_says_so_on_its_card(trainer: AlignmentCalibrationTrainer, hub: LocalHub) -> None:
    trainer.args.num_train_epochs, trainer.args.guard_steps = 3, 1
    compute_loss = trainer.compute_loss

    def spoiled(*arguments: Any, **options: Any) -> Any:
        loss = compute_loss(*arguments, **options)
        return loss * float("nan") if trainer.state.global_step == 1 else loss

    trainer.compute_loss = spoiled  # type: ignore[method-assign]
    trainer.train()
    trainer.push_to_hub()
    files = hub.files("org/clip-unlearned")
    (note,) = UnlearningManifest.from_json(files["unlearning.json"].decode()).notes
    assert "the loss of step 2 was not finite" in note and "those of step 1" in note
    assert note in files["README.md"].decode()


def test_checkpoints_are_never_pushed_while_training(trainer: AlignmentCalibrationTrainer, hub: LocalHub) -> None:
    trainer.args.push_to_hub = True
    with pytest.raises(UserError, match="optimiser pickles"):
        trainer.train()
    assert not any("checkpoint" in name for repo in hub.repos for name in hub.files(repo))


def test_a_model_is_never_pushed_or_edited_from_the_folder_it_came_from(
    base: Path, requested: Dataset, hub: LocalHub
) -> None:
    before = {path: path.read_bytes() for path in base.iterdir()}
    model, processor = load_encoder(str(base))
    config = SSDConfig(output_dir=str(base), alpha=2.0, use_cpu=True, hub_model_id="org/ssd", disable_tqdm=True)
    splits = DatasetDict(retain=requested.select(range(4)), unlearn=requested.select((4, 5)))
    trainer = SSDTrainer(model, config, splits, processing_class=processor)
    with pytest.raises(UserError, match="output_dir"):
        trainer.train()
    with pytest.raises(UserError, match="push_to_hub from"):
        trainer.push_to_hub(dry_run=True)
    assert {path: path.read_bytes() for path in base.iterdir()} == before
