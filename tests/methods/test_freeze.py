"""`--freeze` keeps one encoder of an image-text model to the last bit, whatever the method."""

import logging

import pytest
from peft import LoraConfig

from hf_unlearn.errors import UserError
from hf_unlearn.models.loading import load_encoder


def state(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("method", ["fine_tune", "alignment_calibration", "targeted_calibration", "task_vector"])
@pytest.mark.parametrize(("tower", "prefixes"), [("vision", ("vision_", "visual_")), ("text", ("text_",))])
def test_the_frozen_encoder_stays_and_the_other_moves(method, tower, prefixes, make_trainer):
    share = None if method == "task_vector" else 0.3  # it would need an initial model
    trainer = make_trainer(method, freeze=tower, max_steps=2, learning_rate=1e-2, warmup_steps=0, shrink_perturb=share)
    before = state(trainer)
    trainer.train()
    moved = {name for name, value in trainer.model.state_dict().items() if not value.equal(before[name])}
    assert moved and not [name for name in moved if name.startswith(prefixes)]
    assert [name for name in moved if not name.startswith(prefixes) and name.endswith("projection.weight")]


def test_an_adapter_is_frozen_with_its_encoder(make_trainer):
    adapter = LoraConfig(r=2, target_modules=["q_proj"])
    trainer = make_trainer("fine_tune", freeze="text", peft_config=adapter, max_steps=1)
    trained = [name for name, value in trainer.model.named_parameters() if value.requires_grad]
    assert trained and all("vision_model" in name for name in trained)


@pytest.mark.parametrize(("tower", "others"), [("vision", "text_"), ("text", "vi")])
@pytest.mark.parametrize("lora", [{}, {"exclude_modules": ["q_proj"]}, {"exclude_modules": r".*\.q_proj"}])
def test_a_frozen_encoder_has_no_adapter_of_its_own(make_trainer, tower, others, lora, tmp_path):
    trainer = make_trainer("fine_tune", freeze=tower, peft_config=LoraConfig(r=2, **lora), max_steps=1)
    names = [name.split("base_model.model.")[1] for name, _ in trainer.model.named_parameters() if "lora_" in name]
    assert names and all(name.startswith(others) for name in names)
    assert any("q_proj" in name for name in names) is (not lora)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    load_encoder(str(tmp_path / "adapter"), base=trainer.model.get_base_model().name_or_path)


def test_an_adapter_of_the_frozen_encoder_alone_is_refused_by_its_cause(make_trainer):
    adapter = LoraConfig(r=2, target_modules=["vision_model.encoder.layers.0.mlp.fc1"])
    with pytest.raises(UserError, match=r"freeze=vision keeps that encoder as it is, and the adapter .* fits no layer"):
        make_trainer("fine_tune", freeze="vision", peft_config=adapter)
    model = make_trainer("fine_tune", peft_config=adapter).model
    with pytest.raises(UserError, match="freeze=vision keeps that encoder as it is, and the model's adapter has lay"):
        make_trainer("fine_tune", freeze="vision", given_model=model)


def test_what_cannot_be_frozen_is_refused(make_trainer):
    with pytest.raises(UserError, match="freeze='head' is unknown; choose vision or text"):
        make_trainer("fine_tune", freeze="head")
    with pytest.raises(UserError, match="a SimCLRModel has none"):
        make_trainer("fine_tune", "simclr", freeze="vision")
    with pytest.raises(UserError, match="a frozen encoder would stay random; name --initial_model"):
        make_trainer("retrain", freeze="vision")


def test_what_another_trainer_froze_is_told_of_by_the_next(make_trainer, encoder, caplog):
    model, _ = encoder("clip")
    assert not [note for note in make_trainer("fine_tune", given_model=model).notes if "frozen" in note]
    trainer = make_trainer("fine_tune", given_model=model, freeze="vision")
    assert not [note for note in trainer.notes if "frozen" in note]  # its settings say so
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        (note,) = [note for note in make_trainer("fine_tune", given_model=model).notes if "frozen" in note]
    kept = sum(p.numel() for name, p in model.named_parameters() if name.startswith("vi"))
    total = sum(p.numel() for p in model.parameters())
    assert note.startswith(f"{kept:,} of {total:,} weights came frozen and are not trained (vision_model.")
    assert note in caplog.text


@pytest.mark.parametrize("family", ["simclr", "moco"])
def test_what_a_view_encoder_never_trains_is_not_called_frozen(make_trainer, family):
    assert not [note for note in make_trainer("fine_tune", family).notes if "frozen" in note]
