"""`trainer.push_to_hub()` sends the model, its records and its card, and nothing of the training or its secrets."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from hub.local_hub import LocalHub
from transformers import CLIPModel, CLIPProcessor, Trainer, TrainingArguments

from hf_unlearn.data.fingerprint import dataset_sha256
from hf_unlearn.data.splits import make_splits
from hf_unlearn.hub.publishing import PublishResult
from hf_unlearn.hub.trainer_push import push_trainer, trainer_record
from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.methods import description_of
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.records.schemas import UnlearningManifest

SENTINEL = "hf_sentinelSENTINELsentinelSENTINEL99"


class PushingTrainer(Trainer):
    """A Trainer on `CLIPModel`'s own loss that pushes as the library's trainers do."""

    splits: DatasetDict

    def compute_loss(self, model: Any, inputs: dict, *arguments: Any, **options: Any) -> torch.Tensor:
        return model(**inputs, return_loss=True).loss

    def push_to_hub(self, **options: Any) -> PublishResult | None:
        record = trainer_record(self, "fine_tune", self.splits, description=description_of("fine_tune"))
        return push_trainer(self, record, **options)


@pytest.fixture
def trainer(
    base: Path, requested: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: LocalHub
) -> PushingTrainer:
    for variable in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(variable, SENTINEL)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "clip-trained"),
        hub_model_id="org/clip-trained",
        hub_token=SENTINEL,
        hub_private_repo=True,
        run_name=SENTINEL,
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [
        {
            "pixel_values": torch.rand(3, 32, 32),
            "input_ids": torch.tensor([1, 5 + i, 2]),
            "attention_mask": torch.ones(3),
        }
        for i in range(4)
    ]
    model, processor = CLIPModel.from_pretrained(base), CLIPProcessor.from_pretrained(base)
    trainer = PushingTrainer(model, arguments, train_dataset=rows, processing_class=processor)  # type: ignore[arg-type]
    trainer.splits = DatasetDict(retain=requested.select(range(4)), unlearn=requested.select((4, 5)))
    return trainer


def test_a_trained_model_arrives_without_a_trace_of_the_token(
    trainer: PushingTrainer, base: Path, requested: Dataset, hub: LocalHub
) -> None:
    trainer.train()
    output = Path(str(trainer.args.output_dir))
    result = trainer.push_to_hub(token=SENTINEL)
    assert result is not None
    assert SENTINEL.encode() in (output / "training_args.bin").read_bytes()  # what the Trainer itself would send
    assert (output / "checkpoint-2" / "optimizer.pt").is_file()
    files = hub.files("org/clip-trained")
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name]
    assert hub.tokens == {SENTINEL}  # it was used to log in,
    assert SENTINEL.encode() not in hub.everything_received()  # and never sent as content
    assert hub.log("org/clip-trained") == ["initial commit", "Unlearned with Fine-Tune"]
    assert hub.repos["org/clip-trained"].private
    manifest = UnlearningManifest.from_json(files["unlearning.json"].decode())
    assert manifest.hyper_parameters["max_steps"] == 2
    assert manifest.base_model.sha256 == weights_sha256(base) != manifest.weights_sha256
    assert manifest.request.sha256 == hashlib.sha256(b"a small boat\na tall tree\n").hexdigest()
    assert manifest.dataset.sha256 == dataset_sha256(requested)
    assert manifest.splits == {"retain": 4, "unlearn": 2, "validation": 0, "test": 0}
    assert manifest.run_time_seconds is not None
    assert verify_repo("org/clip-trained", base=base).ok
    assert SENTINEL not in str(manifest)


def test_a_dry_run_of_a_trainer_sends_nothing(trainer: PushingTrainer, hub: LocalHub) -> None:
    trainer.train()
    result = trainer.push_to_hub(dry_run=True)
    assert result is not None
    assert "model.safetensors" in {file.name for file in result.files}
    assert not hub.repos


def test_the_repository_is_called_like_the_output_folder_by_default(trainer: PushingTrainer, hub: LocalHub) -> None:
    trainer.train()
    trainer.args.hub_model_id = None
    result = trainer.push_to_hub()
    assert result is not None
    assert result.repo_id == "me/clip-trained"


def test_other_processes_only_take_part_in_saving(
    trainer: PushingTrainer, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    assert trainer.push_to_hub() is None
    assert not hub.repos


def test_a_model_from_nowhere_and_rows_without_ids(trainer: PushingTrainer, hub: LocalHub) -> None:
    trainer.model.config._name_or_path = ""
    result = trainer.push_to_hub()
    assert result is not None
    assert b"This is `unnamed model`" in hub.files(result.repo_id)["README.md"]
    request = UnlearningManifest.from_json(hub.files(result.repo_id)["unlearning.json"].decode()).request
    trainer.splits = trainer.splits.remove_columns("id")
    result = trainer.push_to_hub()
    assert result is not None
    unnamed = UnlearningManifest.from_json(hub.files(result.repo_id)["unlearning.json"].decode()).request
    assert unnamed.count == request.count
    numbered = make_splits(trainer.splits, duplicates="keep")[1]
    assert unnamed.sha256 == numbered.sha256 != request.sha256
