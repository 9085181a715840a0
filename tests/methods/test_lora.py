"""LoRA under every method: what it trains, what it leaves alone, and that its checkpoints resume bit for bit."""

import copy

import pytest
import torch
from folders import folder_hash
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from hf_unlearn.errors import UserError
from hf_unlearn.losses import l1_norm
from hf_unlearn.methods import METHODS
from hf_unlearn.models.adapters import check_adapter
from hf_unlearn.models.contrastive import contrastive_terms
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.weights import ADAPTER_NAME

FAMILIES = ("clip", "simclr")
WHOLE = ("retrain", "task_vector")  # they work on the model's own weights
TRAINED_BY = [name for name, trainer in METHODS.items() if trainer.iterative and name not in WHOLE]


@pytest.fixture
def with_lora(make_trainer):
    """A function from a method and a family to a Trainer with an adapter of rank 4."""

    def make(method="fine_tune", family="clip", lora=None, **settings):
        settings = {"per_device_train_batch_size": 12, "max_steps": 2, "learning_rate": 1e-2} | settings
        return make_trainer(method, family, peft_config=lora or LoraConfig(r=4, lora_alpha=8), **settings)

    return make


def tensors(model: torch.nn.Module, trainable: bool | None = None) -> dict[str, torch.Tensor]:
    """Copies of parameters (trainable ones, frozen ones) or, by default, of everything in the state."""
    if trainable is None:
        return {name: value.clone() for name, value in model.state_dict().items()}
    named = model.named_parameters()
    return {name: value.detach().clone() for name, value in named if value.requires_grad == trainable}


def in_adapter(name: str) -> bool:
    return "lora_" in name or "modules_to_save" in name


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("method", TRAINED_BY)
@pytest.mark.parametrize("family", FAMILIES)
def test_training_changes_the_adapter_and_leaves_the_base_as_it_is(family, method, with_lora):
    trainer = with_lora(method, family)
    assert isinstance(trainer.model, PeftModel)
    assert tensors(trainer.model, True) and all(in_adapter(name) for name in tensors(trainer.model, True))
    before = tensors(trainer.model)
    trainer.train()
    differing = changed(before, tensors(trainer.model))
    assert differing and all(in_adapter(name) for name in differing)  # not even a batch norm's running mean
    assert any(in_adapter(name) and "lora_B" in name for name in differing)


@pytest.mark.parametrize("family", FAMILIES)
def test_at_first_the_loss_is_the_models_own_and_its_gradient_reaches_every_adapter(
    family, with_lora, make_trainer, loss_of_batch
):
    plain, adapted = make_trainer("alignment_calibration", family), with_lora("alignment_calibration", family)
    rows = [0, 1, 2, 3, 4, 40, 41, 42]
    wanted, _ = loss_of_batch(plain, rows)
    loss, _ = loss_of_batch(adapted, rows)
    assert torch.equal(loss, wanted)
    loss.backward()
    gradients = {n: p.grad for n, p in adapted.model.named_parameters() if p.requires_grad and "lora_A" not in n}
    assert gradients and all(gradient.abs().max() > 0 for gradient in gradients.values())
    # B = 0 hides A from the loss at first.
    assert all(p.grad is None for n, p in adapted.model.named_parameters() if not p.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_adapter_gives_the_same_embeddings_on_its_base(family, with_lora, encoder, tmp_path):
    trainer = with_lora("fine_tune", family)
    base, processor = encoder(family)
    if family != "clip":  # that one is in a folder already
        base.save_pretrained(tmp_path / "base")
        trainer.model.get_base_model().name_or_path = str(tmp_path / "base")
    source = trainer.model.get_base_model().name_or_path
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= names
    assert not names & {"model.safetensors", "config.json", "training_args.bin"}
    loaded, _ = load_encoder(str(tmp_path / "adapter"), base=source)
    pixels = torch.rand(3, 3, processor_side(processor), processor_side(processor))
    wanted = trainer.model.eval().get_image_features(pixel_values=pixels).pooler_output
    unlike = base.eval().get_image_features(pixel_values=pixels).pooler_output
    assert torch.equal(loaded.eval().get_image_features(pixel_values=pixels).pooler_output, wanted)
    assert not torch.allclose(unlike, wanted, atol=1e-4)
    merged = loaded.merge_and_unload()
    assert type(merged) is type(base)
    torch.testing.assert_close(merged.get_image_features(pixel_values=pixels).pooler_output, wanted)


def processor_side(processor) -> int:
    return getattr(processor, "image_processor", processor).crop_size["height"]


@pytest.mark.parametrize("family", FAMILIES)
def test_resuming_an_adapter_equals_the_uninterrupted_run(family, with_lora, tmp_path):
    options = {"preset": "reference", "max_steps": 3, "gradient_accumulation_steps": 2}
    never_stopped = with_lora("alignment_calibration", family, **options)
    never_stopped.train()
    saving = with_lora("alignment_calibration", family, **options, save_strategy="steps", save_steps=1)
    saving.train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").is_file() and not (checkpoint / "model.safetensors").exists()
    assert all(".lora_" in name or "norm" in name or "projector.1" in name for name in load_file(
        checkpoint / "adapter_model.safetensors"
    ))  # fmt: skip
    resumed = with_lora("alignment_calibration", family, **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert not changed(tensors(never_stopped.model), tensors(resumed.model))


def test_the_same_seed_gives_the_same_adapter_whatever_ran_before(with_lora):
    first = with_lora()
    torch.rand(5)
    assert not changed(tensors(first.model), tensors(with_lora().model))
    assert changed(tensors(first.model), tensors(with_lora(seed=1).model))


def test_the_l1_norm_is_that_of_what_is_trained(with_lora):
    trainer = with_lora("l1_sparsity", max_steps=1, logging_strategy="steps", logging_steps=1)
    wanted = l1_norm(tensors(trainer.model, True).values()).item()
    trainer.train()
    assert trainer.state.log_history[0]["l1_norm"] == pytest.approx(wanted, rel=1e-6)


def test_chunks_have_the_same_gradients(with_lora, loss_of_batch):
    gradients = []
    for chunk in (None, 3):
        trainer = with_lora("alignment_calibration", forward_chunk_size=chunk)
        loss_of_batch(trainer, range(35, 45))[0].backward()
        gradients.append({n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"channels_last": True}, {"bf16": True}], ids=["channels_last", "bf16"])
def test_options_for_speed_serve_adapters_too(with_lora, options):
    plain, fast = (with_lora("fine_tune", "simclr", max_steps=1, **extra) for extra in ({}, options))
    losses = []
    for trainer in (plain, fast):
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_training_that_diverges_goes_back_to_the_last_good_adapter(with_lora):
    diverged = with_lora("gradient_ascent", max_steps=8, learning_rate=5.0, guard_steps=1)
    diverged.train()
    assert diverged.guard.stopped and diverged.guard.good_step < 8
    short = with_lora("gradient_ascent", max_steps=diverged.guard.good_step, learning_rate=5.0)
    short.train()
    assert not changed(tensors(short.model), tensors(diverged.model))


def test_targets_may_be_chosen(with_lora):
    trainer = with_lora(lora=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    assert {name.split(".")[-4] for name in tensors(trainer.model, True)} == {"q_proj", "v_proj"}


def test_one_config_serves_several_trainers(with_lora):
    config = LoraConfig(r=2)
    before = copy.deepcopy(config)
    with_lora("fine_tune", "clip", lora=config)
    with_lora("fine_tune", "simclr", lora=config)
    assert config == before


def test_an_adapter_made_with_peft_is_trained_as_it_is(with_lora, make_trainer, encoder):
    trainer = with_lora()
    again = make_trainer("fine_tune", given_model=trainer.model, max_steps=1, per_device_train_batch_size=12)
    assert again.model is trainer.model
    again.train()


@pytest.mark.parametrize(
    ("method", "family", "lora", "message"),
    [
        ("retrain", "clip", LoraConfig(), "Retrain draws every weight anew"),
        ("fine_tune", "moco", LoraConfig(), "MoCo cannot be trained through an adapter: its momentum encoder"),
        ("fine_tune", "clip", LoraConfig(target_modules=["nowhere"]), "nowhere.* does not fit CLIPModel: "),
        ("fine_tune", "clip", LoraConfig(r=0), "the adapter .* does not fit CLIPModel: .*r"),
        ("fine_tune", "clip", "lora", "peft_config is a str; pass a peft.LoraConfig"),
    ],
)
def test_what_cannot_work_is_refused(with_lora, method, family, lora, message):
    with pytest.raises(UserError, match=message):
        with_lora(method, family, lora=lora)


def test_a_model_and_an_adapter_are_not_saved_into_one_folder(with_lora, make_trainer, tmp_path):
    adapter, whole = with_lora(), make_trainer("fine_tune")
    adapter.save_model(str(tmp_path / "adapter"))
    whole.save_model(str(tmp_path / "whole"))
    for trainer, name, held in ((whole, "adapter", ADAPTER_NAME), (adapter, "whole", "model.safetensors")):
        before = folder_hash(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} holds {held}, and of .* name another folder, or remove that file"):
            trainer.save_model(str(tmp_path / name))
        assert folder_hash(tmp_path / name) == before
    adapter.save_model(str(tmp_path / "adapter"))  # again


def test_a_second_adapter_and_a_frozen_one_are_refused(with_lora, make_trainer):
    model = with_lora().model
    with pytest.raises(UserError, match="has an adapter already"):
        make_trainer("fine_tune", given_model=model, peft_config=LoraConfig())
    model.requires_grad_(False)
    with pytest.raises(UserError, match="no trainable weights"):
        make_trainer("fine_tune", given_model=model)


@pytest.mark.parametrize("family", FAMILIES)
def test_asking_whether_an_adapter_fits_leaves_the_model_as_it_is(encoder, family):
    model, _ = encoder(family)
    before = tensors(model)
    check_adapter(model, LoraConfig(r=2))
    assert not changed(before, tensors(model)) and all(value.requires_grad for value in model.parameters())


def test_terms_see_through_the_wrapper(with_lora):
    trainer = with_lora()
    batch = trainer.train_dataset.__getitems__([0, 1, 2])
    inputs = trainer.preprocessor.batch({k: v for k, v in batch.items() if k not in ("index", "is_unlearn")}, None)
    with torch.no_grad():
        adapted, plain = (contrastive_terms(m, inputs) for m in (trainer.model, trainer.model.get_base_model()))
    assert type(adapted) is type(plain) and torch.equal(adapted.x, plain.x)


@pytest.mark.parametrize("method", [name for name, trainer in METHODS.items() if not trainer.adaptable])
def test_methods_that_say_so_take_no_adapter(with_lora, method):
    possible = {"alpha": 2.0} if method == "selective_synaptic_dampening" else {}
    with pytest.raises(UserError, match=r"no shards and no adapters; leave peft_config \(--use_peft\) unset"):
        with_lora(method, **possible)


@pytest.mark.parametrize("method", [name for name, trainer in METHODS.items() if not trainer.adaptable])
def test_a_refused_adapter_leaves_no_layers_in_the_model(make_trainer, encoder, method):
    possible = {"alpha": 2.0} if method == "selective_synaptic_dampening" else {}
    model, _ = encoder("clip")
    before = list(model.state_dict())
    with pytest.raises(UserError, match="no shards and no adapters"):
        make_trainer(method, given_model=model, peft_config=LoraConfig(r=2), **possible)
    assert list(model.state_dict()) == before and all(weight.requires_grad for weight in model.parameters())


def test_a_model_with_layers_of_an_adapter_that_is_no_peft_model_is_refused(make_trainer, encoder):
    model, _ = encoder("clip")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(UserError, match=r"model has the layers of an adapter and is no PeftModel.*load the model anew"):
        make_trainer("fine_tune", given_model=model)
    make_trainer("fine_tune", given_model=adapted)
    make_trainer("fine_tune", given_model=adapted.unload().requires_grad_(True))
