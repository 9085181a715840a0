import logging
from copy import deepcopy

import loss_oracle
import numpy as np
import pytest
import torch
from peft import LoraConfig

from hf_unlearn.errors import UserError
from hf_unlearn.methods.fine_tune import FineTuneTrainer
from hf_unlearn.methods.targeted_calibration import TargetedCalibrationConfig

FAMILIES = ["clip", "simclr", "moco"]
MIXED = [*range(3, 10), 41, 44, 47, 49]  # seven retain rows and four unlearn rows
WEIGHTS = {"unlearn_weight": 30.0, "retain_weight": 20.0, "negative_weight": 50.0, "similarity_weight": 40.0}
NO_WEIGHTS = dict.fromkeys(WEIGHTS, 0)


def disturb(trainer):
    """Move the model away from the base model, on which retain is at its targets."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def of_family(weights, family):
    """Those of these weights that the family's loss has; what has no effect is refused."""
    return weights if family == "clip" else {"unlearn_weight": weights["unlearn_weight"]}


def drawn(trainer, rows):
    """Which caption of each row the step with seed 7 takes; views have one second element."""
    batch = trainer.train_dataset.__getitems__(list(rows))
    if "input_ids" not in batch:
        return [0] * len(rows)
    tokens = trainer.preprocessor.batch(dict(batch), 7)["input_ids"].tolist()
    return [captions.index(taken) for captions, taken in zip(batch["input_ids"].tolist(), tokens, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [MIXED, [3, 4, 5], [43, 44], [1, 2, 3, 45]], ids=["mixed", "none", "all", "single"])
def test_the_loss_is_retain_info_nce_and_squared_distances_to_targets(make_trainer, loss_of_batch, family, rows):
    trainer = make_trainer("targeted_calibration", family, **of_family(WEIGHTS, family))
    base = loss_of_batch(trainer, rows)[1]
    disturb(trainer)
    loss, quantities = loss_of_batch(trainer, rows)
    targets = [
        trainer.targets.positive[row, column].item() for row, column in zip(rows, drawn(trainer, rows), strict=True)
    ]
    wanted = quantities(
        loss_oracle.targeted_calibration,
        quantities.unlearn,
        targets,
        trainer.targets.negative.item(),
        [half.astype(np.float16).astype(np.float64) for half in (base.x, base.y)],
        tuple(WEIGHTS.values()),
    )
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    loss.backward()
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_weights_it_is_retain_info_nce_alone(make_trainer, loss_of_batch, family):
    trainer = make_trainer("targeted_calibration", family, **of_family(NO_WEIGHTS, family))
    assert trainer.targets.first is None  # the base model's embeddings take memory only where they are used
    loss, quantities = loss_of_batch(trainer, MIXED)
    wanted = quantities(loss_oracle.info_nce, [not member for member in quantities.unlearn])
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("family", "below", "above"), [("clip", -1, 1), ("simclr", 0, 1), ("moco", 0, 1)])
def test_unlearn_alignments_are_pulled_to_their_target(make_trainer, family, below, above):
    """Gradient descent lowers what lies above the target; what lies below is raised with pairs, let be with views."""
    for target, wanted in ((2.0, below), (-2.0, above)):
        trainer = make_trainer("targeted_calibration", family, **of_family({**NO_WEIGHTS, "unlearn_weight": 1}, family))
        trainer.targets.positive[40:] = target
        trainer._step_seed = lambda: 7
        batch = trainer.train_dataset.__getitems__([41, 44, 47, 49])  # no retain sample, so no InfoNCE
        seen = []
        trainer.report = lambda total, *_, seen=seen, **parts: seen.append(parts) or total
        loss = trainer.compute_loss(trainer.model.train(), batch)
        loss.backward()
        with torch.no_grad():
            before = seen[0]["unlearn_distance"].item()
            slope = sum((p.grad**2).sum() for p in trainer.model.parameters() if p.grad is not None)
        assert (slope > 0) == (wanted != 0)
        assert (before > 0) == (wanted != 0)


def test_each_caption_has_a_target_of_its_own(make_trainer, splits, loss_of_batch):
    """The caption drawn at a step decides, also where a picture has several."""
    rows = splits["unlearn"].map(lambda row: {"captions": [row["captions"][0], f"also {row['captions'][0]}"]})
    trainer = make_trainer("targeted_calibration", "clip", {**splits, "unlearn": rows}, **WEIGHTS)
    assert trainer.targets.positive.shape == (50, 2)
    trainer.targets.positive[40:, 1] = -5.0  # far away: the distance tells which one was taken
    drawn = []
    for seed in range(6):
        batch = trainer.train_dataset.__getitems__(MIXED)
        trainer._step_seed = lambda seed=seed: seed
        tokens = trainer.preprocessor.batch(dict(batch), seed)["input_ids"]
        second = sum(bool((tokens[i] == batch["input_ids"][i, 1]).all()) for i in range(7, 11))
        seen = []
        trainer.report = lambda total, *_, seen=seen, **parts: seen.append(parts) or total
        trainer.compute_loss(trainer.model.train(), batch)
        drawn.append(second)
        assert seen[0]["unlearn_distance"].item() == pytest.approx(second * 25 / 4, abs=second * 3.0 + 1.1)
    assert 0 < np.mean(drawn) < 4


def test_an_initial_model_that_is_the_model_itself_is_refused(make_trainer, encoder):
    own, _ = encoder("clip")
    for same in (own, deepcopy(own).to(torch.bfloat16).float()):  # as one that was saved in 16 bits is read
        with pytest.raises(UserError, match="initial_model has the model's own weights, which remember the requested"):
            make_trainer("targeted_calibration", "clip", initial_model=same)


def test_it_needs_held_out_samples(make_trainer, splits):
    without = {name: split for name, split in splits.items() if name != "validation"}
    with pytest.raises(UserError, match="pass them as split validation"):
        make_trainer("targeted_calibration", "clip", without)


@pytest.mark.parametrize(
    ("name", "value"),
    [("retain_weight", 100.0), ("negative_weight", 0.0), ("similarity_weight", 7.0), ("target_features", "some/clip")],
)
def test_what_views_make_no_use_of_is_refused(make_trainer, name, value):
    with pytest.raises(UserError, match=f"{name}={value} would have no effect on a model that embeds views; leave it"):
        make_trainer("targeted_calibration", "simclr", **{name: value})


def test_targets_are_not_predicted_from_the_models_own_memory(make_trainer, tiny_clip):
    with pytest.raises(UserError, match=r"target_features=\S+ has the model's own weights, which remember"):
        make_trainer("targeted_calibration", target_features=str(tiny_clip))


@pytest.mark.parametrize(
    ("family", "settings", "initial", "told"),
    [
        ("clip", {"target_epochs": 7.0}, False, ["target_epochs has no effect, as no initial model is named (initial"]),
        (
            "clip",
            {"target_epochs": 7.0, "target_learning_rate": 1e-3},
            False,
            ["target_epochs and target_learning_rate have no effect, as no initial model is named"],
        ),
        ("clip", {"target_epochs": 0}, True, ["(target_epochs is 0): its own embeddings order targets, too."]),
        (
            "simclr",
            {"target_epochs": 0, "target_learning_rate": 1e-3},
            True,
            [
                "(target_epochs is 0): the model's own alignments order targets.",
                "target_learning_rate has no effect, as target_epochs is 0.",
            ],
        ),
        ("simclr", {"target_epochs": 1}, True, []),
    ],
)
def test_what_is_set_of_the_copy_and_makes_none_is_said_on_terminal_and_card(
    make_trainer, encoder, caplog, family, settings, initial, told
):
    if initial:
        model, _ = encoder(family)
        torch.manual_seed(3)
        settings = settings | {"initial_model": type(model)(model.config)}
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        trainer = make_trainer("targeted_calibration", family, per_device_train_batch_size=12, **settings)
    of_copy = [note for note in trainer.notes if "target_" in note]
    assert len(of_copy) == len(told)
    for note, words in zip(of_copy, told, strict=True):
        assert words in note and f"Targeted Calibration: {note}" in caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_noisy_targets_differ_by_seed_and_only_in_who_gets_which(make_trainer, family):
    def unlearn_targets(**settings):
        return make_trainer("targeted_calibration", family, **settings).targets.positive[40:].flatten().tolist()

    fixed, drawn, again = (unlearn_targets(**{"seed": 1, "target_noise": noise}) for noise in (None, 0.5, 0.5))
    assert unlearn_targets(seed=2) == fixed
    assert drawn == again != fixed
    assert unlearn_targets(seed=2, target_noise=0.5) not in (drawn, fixed)
    assert sorted(drawn) == pytest.approx(sorted(fixed), abs=1e-6)


def test_noise_is_a_share(make_trainer):
    with pytest.raises(UserError, match=r"target_noise=1\.5 must be from 0 to 1"):
        make_trainer("targeted_calibration", target_noise=1.5)


@pytest.mark.parametrize(("chosen", "rate"), [({}, 1e-3), ({"target_learning_rate": 3e-4}, 3e-4)])
def test_the_copy_that_orders_targets_has_a_rate_of_its_own(make_trainer, encoder, monkeypatch, chosen, rate):
    initial, _ = encoder("clip")
    torch.manual_seed(3)
    rates = []

    class Watched(FineTuneTrainer):
        def train(self, *positional, **kwargs):
            rates.append(self.args.learning_rate)
            return super().train(*positional, **kwargs)

    monkeypatch.setattr("hf_unlearn.methods.targeted_calibration.FineTuneTrainer", Watched)
    settings = {"initial_model": type(initial)(initial.config), "target_epochs": 1, "max_steps": 1}
    trainer = make_trainer("targeted_calibration", "clip", learning_rate=2e-3, **settings, **chosen)
    trainer.begin()
    assert rates == [rate] and trainer.args.learning_rate == 2e-3


@pytest.mark.parametrize("family", ["clip", "simclr"])
def test_the_copy_of_a_model_with_an_adapter_is_led_back_whole_and_trains_one_too(
    make_trainer, encoder, monkeypatch, capsys, family
):
    (base, _), (initial, _) = encoder(family), encoder(family)
    torch.manual_seed(3)
    initial, made = type(initial)(initial.config), []

    class Watched(FineTuneTrainer):
        def __init__(self, model, *positional, **kwargs):
            made.append({name: value.clone() for name, value in model.named_parameters()})
            super().__init__(model, *positional, **kwargs)
            made.append(sum(value.requires_grad for value in self.model.parameters()))

    monkeypatch.setattr("hf_unlearn.methods.targeted_calibration.FineTuneTrainer", Watched)
    settings = {"initial_model": initial, "target_epochs": 1, "max_steps": 1, "peft_config": LoraConfig(r=2)}
    if family == "clip":
        settings["freeze"] = "text"
    trainer = make_trainer("targeted_calibration", family, per_device_train_batch_size=12, **settings)
    trainer.begin()
    start, theirs = made[0], dict(initial.named_parameters())
    for name, own in base.named_parameters():
        kept = family == "clip" and name.startswith("text_")
        wanted = own if kept else torch.lerp(own, theirs[name], 0.7)
        torch.testing.assert_close(start[name], wanted)
    assert made[1] == sum(value.requires_grad for value in trainer.model.parameters())
    assert "train_runtime" not in capsys.readouterr().out
    trainer.train()


@pytest.mark.parametrize("rate", [0, -1e-3, float("nan"), float("inf")])
def test_a_rate_that_teaches_the_copy_nothing_is_refused(rate):
    with pytest.raises(UserError, match=r"target_learning_rate=\S+ must be a number above 0"):
        TargetedCalibrationConfig(target_learning_rate=rate)
