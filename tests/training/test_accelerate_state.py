"""accelerate's state is one for the process; a trainer trains as its own config says, whatever was built since."""

import pytest
import torch
from accelerate import PartialState

from hf_unlearn.errors import UserError
from hf_unlearn.methods.fine_tune import FineTuneConfig
from hf_unlearn.methods.neg_grad import NegGradConfig
from hf_unlearn.training.accelerate_state import refuse_lone_processes

SETTINGS = {"max_steps": 2, "per_device_train_batch_size": 12, "logging_strategy": "steps", "logging_steps": 1}


def losses(trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("first", [False, True])
def test_precision_is_that_of_the_trainers_own_config(make_trainer, first):
    """Half precision is neither lost nor caught from another trainer."""
    trainer = make_trainer("fine_tune", bf16=first)
    other = make_trainer("fine_tune", bf16=not first)
    assert [each.accelerator.mixed_precision == "bf16" for each in (trainer, other)] == [first, not first]
    assert [each.accelerator.state.mixed_precision == "bf16" for each in (trainer, other)] == [first, not first]


def test_a_config_built_later_takes_nothing_from_a_trainer(make_trainer, splits, tmp_path):
    trainer = make_trainer("fine_tune", **SETTINGS)
    NegGradConfig(output_dir=str(tmp_path / "later"), use_cpu=True)
    assert len(losses(trainer)) == 2
    assert trainer.evaluate(splits["validation"])["eval_loss"] > 0
    trainer.save_model(str(tmp_path / "saved"))


def test_a_trainer_has_the_devices_of_its_config(make_trainer, encoder, splits, tmp_path, monkeypatch):
    """As on a machine with a GPU, where a config without use_cpu that is built last has put the state there."""
    config = FineTuneConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    NegGradConfig(output_dir=str(tmp_path / "later"))
    assert PartialState().device == torch.device("meta")
    model, processor = encoder("clip")
    trainer = make_trainer("fine_tune").__class__(model, config, splits, processing_class=processor)
    assert trainer.accelerator.device == PartialState().device == torch.device("cpu")


def test_processes_that_would_train_alone_are_refused(monkeypatch):
    PartialState(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a cluster may, which launches nothing
    refuse_lone_processes()
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match=r"2 processes were launched, .* use_cpu"):
        refuse_lone_processes()
