"""Shrink and perturb under every method: what it moves, by how much, and that resuming does not do it again."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from transformers import TrainerCallback

from hf_unlearn.errors import UserError
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.fine_tune import FineTuneConfig
from hf_unlearn.methods.neg_grad import NegGradConfig
from hf_unlearn.methods.retrain import RetrainConfig
from hf_unlearn.training.shrink_perturb import shrink_and_perturb

FAMILIES = ["clip", "simclr", "moco"]
SHORT = {"per_device_train_batch_size": 12, "max_steps": 3, "learning_rate": 1e-3}
START = {**SHORT, "max_steps": 1}
TRAINED = [name for name, trainer in METHODS.items() if trainer.iterative and name != "retrain"]
LEARN_AGAIN = [name for name in TRAINED if "retain" in METHODS[name].uses]


class _Start(TrainerCallback):
    """The state that a training makes its first step from."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.state = state_of(kwargs["model"])


def state_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def first_state(trainer):
    start = _Start()
    trainer.add_callback(start)
    trainer.train()
    return start.state


def matrices(model):
    return {name for name, value in model.named_parameters() if value.ndim >= 2}


def other(encoder, family):
    """A model of other weights than the family's."""
    model, _ = encoder(family)
    torch.manual_seed(11)
    return type(model)(copy.deepcopy(model.config))


def same(first, second):
    return all(value.equal(second[name]) for name, value in first.items())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_every_matrix_is_mixed_with_a_new_initialisation_and_every_vector_stays(encoder, family, share):
    model, _ = encoder(family)
    with torch.no_grad():
        for parameter in model.parameters():  # as if trained: vectors, too, are no longer at their initial values
            parameter.mul_(3).add_(0.1)
    base = state_of(model)
    shrink_and_perturb(model, share, seed=5)
    others = [type(model)(copy.deepcopy(model.config)).state_dict() for _ in range(3)]
    for name, value in model.state_dict().items():
        if name not in matrices(model):
            assert value.equal(base[name]), name
            continue
        noise = (value.double() - (1 - share) * base[name].double()) / share
        drawn = [other[name].double() for other in others]
        spread = torch.stack([draw.std(correction=0) for draw in drawn])
        assert noise.std(correction=0) == pytest.approx(spread.mean().item(), rel=0.5), name  # on its own scale
        assert all((noise - draw).abs().max() > spread.mean() for draw in drawn), name
    if family == "moco":
        for key, query in zip(model.key_encoder.parameters(), model.encoder.parameters(), strict=True):
            torch.testing.assert_close(key, query)  # they were alike, and are
    kinds = {value.ndim for name, value in model.named_parameters() if name in matrices(model)}
    assert kinds == {2, 4}


def test_a_momentum_encoder_lags_behind_by_what_is_left(encoder):
    """Both move towards one draw, so their distance shrinks with them."""
    model, _ = encoder("moco")
    with torch.no_grad():
        for key in model.key_encoder.parameters():
            key.add_(0.2)
    shrink_and_perturb(model, 0.4, seed=1)
    for key, query in zip(model.key_encoder.parameters(), model.encoder.parameters(), strict=True):
        lag = 0.6 * 0.2 if key.ndim >= 2 else 0.2
        torch.testing.assert_close(key - query, torch.full_like(key, lag), rtol=1e-4, atol=1e-5)


def test_what_is_frozen_stays(encoder):
    model, _ = encoder("moco")
    frozen = {name: value for name, value in model.named_parameters() if name.startswith("encoder.backbone")}
    for value in frozen.values():
        value.requires_grad_(False)
    base = state_of(model)
    shrink_and_perturb(model, 0.5, seed=0)
    for name in frozen:
        assert model.state_dict()[name].equal(base[name]) and model.state_dict()[f"key_{name}"].equal(
            base[f"key_{name}"]
        )
    assert not model.encoder.projector[0].weight.equal(base["encoder.projector.0.weight"])


def test_a_base_model_of_the_same_seed_is_not_moved_back_to_its_start(make_trainer):
    """`Retrain` and base models draw their weights from the run's seed itself."""
    trainer = make_trainer("fine_tune", **START, shrink_perturb=1.0, seed=3)
    torch.manual_seed(3)
    start = type(trainer.model)(copy.deepcopy(trainer.model.config)).state_dict()
    weight = "visual_projection.weight"
    drawn = first_state(trainer)[weight]
    assert abs(torch.corrcoef(torch.stack([drawn.flatten(), start[weight].flatten()]))[0, 1]) < 0.2


@pytest.mark.parametrize("method", LEARN_AGAIN)
def test_every_method_starts_from_it_by_its_seed_and_learns_with_the_seed_it_had(make_trainer, method):
    starts = {}
    for seed in (1, 1, 2):
        trainer = make_trainer(method, "moco", **START, shrink_perturb=0.5, seed=seed)
        base = state_of(trainer.model)
        start = first_state(trainer)
        assert not start["encoder.projector.0.weight"].equal(base["encoder.projector.0.weight"])
        assert seed not in starts or same(starts[seed], start)
        starts[seed] = start
    assert not same(starts[1], starts[2])


@pytest.mark.parametrize("method", TRAINED)
def test_a_share_of_0_changes_nothing(make_trainer, method):
    plain, shrunk = make_trainer(method, "moco", **START), make_trainer(method, "moco", **START, shrink_perturb=0.0)
    plain.shrink_and_perturb = lambda: None  # Targeted Calibration has a share of its own by default
    for trainer in (plain, shrunk):
        trainer.train()
    assert same(state_of(plain.model), state_of(shrunk.model))


@pytest.mark.parametrize(("method", "family"), [("targeted_calibration", "clip"), ("scrub", "clip"), ("npo", "simclr")])
def test_what_is_compared_with_comes_from_the_base_model(make_trainer, method, family):
    plain, shrunk = make_trainer(method, family, **START), make_trainer(method, family, **START, shrink_perturb=0.5)
    base = state_of(plain.model)
    shrunk.train()
    if method == "targeted_calibration":
        assert shrunk.targets.positive.equal(plain.targets.positive) and shrunk.targets.first.equal(plain.targets.first)
    else:
        assert same(state_of(shrunk.teacher), base)


@pytest.mark.parametrize("size", [20, 7, 100])  # the retain split has 40 rows
def test_the_queue_holds_keys_of_the_shrunken_encoder(make_trainer, encoder, size):
    model, _ = encoder("moco")
    model = type(model)(type(model.config)(**{**model.config.to_dict(), "queue_size": size, "batch_norm_splits": 0}))
    trainer = make_trainer("fine_tune", "moco", given_model=model, **START, shrink_perturb=0.5)
    start = first_state(trainer)
    model.load_state_dict(start)
    views = [batch["pixel_values"][:, 1] for batch in trainer.split_batches(trainer.train_dataset.splits[0])]
    with torch.no_grad():
        keys = torch.cat([F.normalize(model.train().get_key_features(view), dim=-1) for view in views])
    nearest = (start["queue"] @ keys.T).max(1).values
    torch.testing.assert_close(nearest, torch.ones(size), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "family"), [("alignment_calibration", "clip"), ("scrub", "moco"), ("task_vector", "simclr")]
)
def test_resuming_does_not_shrink_again(make_trainer, encoder, method, family, tmp_path):
    # Untrained and shrunken, its batch norms move the probe's loss by more than a budget within a step of any size.
    options = {**SHORT, "shrink_perturb": 0.4, "retain_loss_budget": None, "initial_model": other(encoder, family)}
    never_stopped = make_trainer(method, family, **options)
    never_stopped.train()
    make_trainer(method, family, **options, save_strategy="steps", save_steps=1).train()
    resumed = make_trainer(method, family, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert same(state_of(never_stopped.model), state_of(resumed.model))


def test_training_on_does_not_shrink_again(make_trainer):
    trainer = make_trainer("fine_tune", **{**SHORT, "learning_rate": 1e-60}, shrink_perturb=0.4)
    trainer.train()
    once = state_of(trainer.model)
    trainer.train()
    assert same(once, state_of(trainer.model))


def test_a_task_vector_is_taken_off_what_is_left(make_trainer, encoder):
    initial = other(encoder, "clip")
    trainer = make_trainer("task_vector", **SHORT, shrink_perturb=0.4, initial_model=initial)
    trainer.args.scale = 0.0  # which a config refuses
    start = first_state(trainer)
    assert same(start, state_of(trainer.model))


def test_weights_that_a_saliency_mask_holds_back_are_not_shrunk(make_trainer):
    trainer = make_trainer("neg_grad", **SHORT, shrink_perturb=0.5, saliency_share=0.1)
    base, start = state_of(trainer.model), first_state(trainer)
    moved = sum((start[name] != base[name]).sum().item() for name in matrices(trainer.model))
    total = sum(value.numel() for value in trainer.model.parameters())
    assert 0.02 * total < moved <= 0.101 * total


def test_an_adapter_leaves_the_base_as_it_is_and_a_default_share_is_said_to(make_trainer, caplog):
    lora = LoraConfig(r=2)
    trainer = make_trainer("targeted_calibration", peft_config=lora, **SHORT)
    frozen = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    assert all(value.equal(dict(trainer.model.named_parameters())[name]) for name, value in frozen.items())
    assert "shrink_perturb moved none" in caplog.text and "shrink_perturb moved none" in trainer.notes[0]
    assert make_trainer("fine_tune", peft_config=lora, **SHORT).notes == []
    assert make_trainer("targeted_calibration", peft_config=lora, **SHORT, shrink_perturb=0).notes[1:] == []
    for method in ("fine_tune", "targeted_calibration"):
        with pytest.raises(UserError, match=r"shrink_perturb=0.5 would have no effect on an adapter, .* set it to 0"):
            make_trainer(method, peft_config=lora, **SHORT, shrink_perturb=0.5)


def test_what_it_would_do_nothing_for_is_refused(make_trainer, tmp_path):
    with pytest.raises(UserError, match="Retrain draws every weight anew"):
        RetrainConfig(output_dir=str(tmp_path), shrink_perturb=0.3)
    with pytest.raises(UserError, match="SSD trains nothing"):
        make_trainer("selective_synaptic_dampening", shrink_perturb=0.3)


@pytest.mark.parametrize("method", ["fine_tune", "retrain"])
def test_an_initial_model_whose_weights_compute_something_else_is_refused(make_trainer, encoder, method):
    initial = other(encoder, "clip")
    initial.config.vision_config.hidden_act = "relu"
    with pytest.raises(UserError, match=r"of its weights than the model \(vision_config.hidden_act is relu, the"):
        make_trainer(method, "clip", initial_model=initial)
    with pytest.raises(UserError, match="initial_model is a str, no model; load it with load_encoder"):
        make_trainer(method, "clip", initial_model="org/public")


@pytest.mark.parametrize(("method", "title"), [("gradient_ascent", "Gradient Ascent"), ("task_vector", "Task Vector")])
def test_what_never_sees_retain_is_led_back_to_an_initial_model_alone(make_trainer, encoder, method, title):
    with pytest.raises(UserError, match=f"{title} never sees retain, so what shrink_perturb takes would not be"):
        make_trainer(method, "simclr", shrink_perturb=0.3)
    make_trainer(method, "simclr", shrink_perturb=0.3, initial_model=other(encoder, "simclr"))


@pytest.mark.parametrize(
    ("named", "share", "words"),
    [
        (False, None, "When training began, 40% of every weight was new"),
        (True, 0.25, "When training began, every weight was moved 25% of the way back to the initial model"),
        (False, 0.0, ""),
    ],
)
def test_the_card_says_what_was_done_to_the_weights(make_trainer, encoder, named, share, words):
    settings = {} if share is None else {"shrink_perturb": share}
    initial = {"initial_model": other(encoder, "clip"), "target_epochs": 0} if named else {}
    trainer = make_trainer("targeted_calibration", **SHORT | {"max_steps": 1}, **settings, **initial)
    assert "shrink_perturb" not in "".join(trainer.notes)  # nothing was done yet
    trainer.train()
    told = [note.partition(" (shrink_perturb)")[0] for note in trainer.notes if "shrink_perturb" in note]
    assert told == ([words] if words else [])
    assert "ixes the weights" not in trainer.args.description.summary


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_that_are_none_are_refused(tmp_path, share):
    with pytest.raises(UserError, match=r"shrink_perturb=\S+ must be from 0 to 1"):
        FineTuneConfig(output_dir=str(tmp_path), shrink_perturb=share)


def test_it_is_recorded(tmp_path):
    from hf_unlearn.hub.manifest import public_hyper_parameters

    config = NegGradConfig(output_dir=str(tmp_path), shrink_perturb=0.25)
    assert public_hyper_parameters(config)["shrink_perturb"] == 0.25
