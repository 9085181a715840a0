"""Cases 16 and 17: a training that diverges ends at its last good state, says why, and its card says so."""

import logging
import math
import re

import numpy as np
import pytest
import torch
from faults.conftest import FAMILIES, weights
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_unlearn.errors import DivergenceError, UserError
from hf_unlearn.methods import METHODS
from hf_unlearn.training.checkpoints import newest_checkpoint


def trained(model) -> str:
    """Hash of what the optimiser updates; running statistics and queues move with every forward pass."""
    return weights(torch.nn.ParameterList(p for p in model.parameters() if p.requires_grad))


def spoil(trainer, step: int, value: float, where: str) -> list[str]:
    """Put `value` into the loss or one gradient of a step (1 is the first); gives the weights before each step."""
    seen: list[str] = []
    trainer.seen_trained = []
    compute_loss = trainer.compute_loss

    def spoiled(model, inputs, **kwargs):
        seen.append(weights(model))
        trainer.seen_trained.append(trained(model))
        loss = compute_loss(model, inputs, **kwargs)
        if trainer.state.global_step + 1 != step:
            return loss
        if where == "loss":
            return loss * value
        parameter = next(p for p in model.parameters() if p.requires_grad)
        handle = parameter.register_hook(lambda gradient: (handle.remove(), gradient.index_fill(0, zero, value))[1])
        return loss

    zero = torch.zeros(1, dtype=torch.long)
    trainer.compute_loss = spoiled
    return seen


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize(
    ("family", "optimiser"),
    [("clip", "adamw_torch_fused"), ("clip", "sgd"), ("simclr", "adamw_torch_fused"), ("moco", "sgd")],
)
def test_numbers_that_are_not_finite_never_reach_the_weights(value, where, family, optimiser, trainer, caplog):
    ours = trainer(family, "alignment_calibration", guard_steps=3, optim=optimiser, learning_rate=1e-3)
    before = spoil(ours, 5, value, where)
    with caplog.at_level(logging.ERROR):
        ours.train()
    assert ours.state.max_steps == 8 and len(before) == 6, "stops at the check after the fifth step"
    assert ours.seen_trained[5] == ours.seen_trained[4], "the fifth update was not made"
    assert weights(ours.model) == before[3], "goes back to the state of the last check"
    assert all(value.isfinite().all() for value in ours.model.parameters())
    assert ours.guard.failed and re.search(f"step 6 of 8: the {where} of step 5 was not finite", ours.notes[0])
    assert "those of step 3" in ours.notes[0] and ours.notes[0] in caplog.text
    if where == "loss":  # and the logs show it, where the Trainer would hide it
        assert not all(math.isfinite(entry["loss"]) for entry in ours.state.log_history if "loss" in entry)


@pytest.mark.parametrize("family", FAMILIES)
def test_queues_and_statistics_go_back_as_well(family, trainer):
    ours = trainer(family, "fine_tune", guard_steps=2, learning_rate=1e-3)
    before = spoil(ours, 5, math.nan, "loss")
    ours.train()
    assert weights(ours.model) == before[4] != before[2]


def test_a_bad_micro_batch_spoils_its_update(trainer):
    ours = trainer("clip", "fine_tune", gradient_accumulation_steps=2, num_train_epochs=4, guard_steps=1)
    spoil(ours, 3, math.nan, "gradient")
    ours.train()
    assert ours.guard.good_step == 2 and ours.state.global_step == 3


def test_nothing_learned_is_an_error(trainer):
    ours = trainer("clip", "fine_tune")
    spoil(ours, 1, math.nan, "loss")
    with pytest.raises(UserError, match=r"Fine-Tune diverged before anything was learned \(the loss of step 1"):
        ours.train()


def test_no_checkpoint_is_written_of_a_bad_state(trainer, tmp_path):
    ours = trainer("clip", "fine_tune", save_strategy="epoch", num_train_epochs=3, guard_steps=100)
    spoil(ours, 4, math.nan, "gradient")
    ours.train()
    assert newest_checkpoint(tmp_path / "out").name == "checkpoint-3"
    assert ours.guard.good_step == 3 and ours.state.global_step == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_that_gives_no_finite_embeddings_is_not_called_good(family, trainer, tmp_path):
    """Without budgets, too: the loss and the gradient of the step that leads there are finite."""
    ours = trainer(family, "fine_tune", learning_rate=1e10, guard_steps=1, save_strategy="steps", save_steps=1)
    before = weights(ours.model)
    with pytest.raises(
        DivergenceError, match=r"before anything was learned \(the embeddings of retain samples are not"
    ):
        ours.train()
    assert ours.guard.failed and ours.state.global_step == 1
    assert weights(ours.model) == before
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_checkpoint_is_written_of_a_state_that_gives_no_finite_embeddings(family, trainer, tmp_path):
    ours = trainer(family, "alignment_calibration", save_strategy="steps", save_steps=1, guard_steps=100)
    compute_loss = ours.compute_loss

    def leap(model, inputs, **kwargs):
        if ours.state.global_step == 2:
            ours.optimizer.param_groups[0]["lr"] = ours.optimizer.param_groups[1]["lr"] = 1e10
        return compute_loss(model, inputs, **kwargs)

    ours.compute_loss = leap
    ours.train()
    assert ours.guard.failed and ours.state.global_step == 3 and "embeddings of retain" in ours.notes[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["checkpoint-1", "checkpoint-2"]
    sealed = load_file(tmp_path / "out" / "checkpoint-2" / "model.safetensors")
    assert all(value.equal(ours.model.state_dict()[name]) for name, value in sealed.items()), "and it goes back there"


class Recorder(TrainerCallback):
    """Probes the retain loss after every step, on its own."""

    def __init__(self, trainer) -> None:
        self.trainer, self.losses, self.weights = trainer, [], []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.losses.append(self.trainer.probe_retain()[0].item())
        self.weights.append(weights(self.trainer.model))


@pytest.mark.parametrize("method", ["gradient_ascent", "neg_grad"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_retain_budget_keeps_the_last_state_within_it(family, method, trainer):
    rate, budget = {"clip": (5e-5, 0.1), "simclr": (6e-3, 0.02), "moco": (3e-4, 0.5)}[family]
    ours = trainer(family, method, num_train_epochs=30, learning_rate=rate, guard_steps=1, retain_loss_budget=budget)
    recorder = Recorder(ours)
    start, chance, _ = ours.probe_retain().tolist()
    ours.callback_handler.callbacks.insert(0, recorder)
    ours.train()
    limit = start + budget * chance
    first_beyond = next(i for i, loss in enumerate(recorder.losses) if loss > limit)
    assert len(recorder.losses) == first_beyond + 1 > 1, "stops at the first state beyond"
    assert weights(ours.model) == recorder.weights[first_beyond - 1]
    assert not ours.guard.failed and "beyond its budget of" in ours.notes[0]


def test_the_probe_is_info_nce_of_retain_rows_by_hand(trainer):
    ours = trainer("clip", "gradient_ascent")
    loss, chance, spread = ours.probe_retain().tolist()
    rows = {name: value.clone() for name, value in ours._probe.items()}
    with torch.no_grad():
        outputs = ours.model.eval()(**ours.preprocessor.batch(rows, ours.args.seed))
    x, y = (value.double().numpy() for value in (outputs.image_embeds, outputs.text_embeds))
    similarities = min(100, math.exp(ours.model.logit_scale.item())) * x @ y.T
    expected = np.mean(
        [
            (math.log(np.exp(similarities[i]).sum()) + math.log(np.exp(similarities[:, i]).sum())) / 2
            - similarities[i, i]
            for i in range(len(x))
        ]
    )
    assert len(x) == 16 and loss == pytest.approx(expected, rel=1e-4) and chance == pytest.approx(math.log(16))
    assert spread == pytest.approx(min(np.square(h - h.mean(0)).sum(1).mean() for h in (x, y)), rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_watching_changes_no_weight(family, trainer):
    watched = trainer(family, "neg_grad", guard_steps=1, learning_rate=1e-4)
    unwatched = trainer(family, "neg_grad", retain_loss_budget=None, collapse_floor=None, learning_rate=1e-4)
    for ours in (watched, unwatched):
        ours.train()
    assert watched.notes == unwatched.notes == []
    assert weights(watched.model) == weights(unwatched.model)


def test_collapsed_embeddings_stop_the_run(trainer):
    ours = trainer("clip", "neg_grad", guard_steps=1, learning_rate=1e-5, retain_loss_budget=None)
    compute_loss = ours.compute_loss

    def collapsing(model, inputs, **kwargs):
        if ours.state.global_step == 2:
            with torch.no_grad():
                model.vision_model.post_layernorm.weight.zero_()
                model.vision_model.post_layernorm.bias.fill_(1)
        return compute_loss(model, inputs, **kwargs)

    ours.compute_loss = collapsing
    ours.train()
    assert ours.state.global_step == 3 and ours.guard.good_step == 2
    assert re.search(r"retain embeddings collapsed to \S+% of their spread", ours.notes[0])


def test_guards_are_on_by_default_where_a_loss_is_climbed():
    configs = {name: trainer.config_class(output_dir="unused", use_cpu=True) for name, trainer in METHODS.items()}
    guarded = {name for name, config in configs.items() if config.retain_loss_budget and config.collapse_floor}
    assert guarded == {"gradient_ascent", "neg_grad", "npo", "scrub"}


@pytest.mark.parametrize("name", ["guard_steps", "retain_loss_budget", "collapse_floor"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_limits_that_cannot_be_kept_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name}=.* must be more than 0, or unset"):
        METHODS["neg_grad"].config_class(output_dir="unused", use_cpu=True, **{name: value})


def test_without_retain_samples_the_budgets_are_off_and_this_is_said(trainer, encoded, caplog):
    with caplog.at_level(logging.WARNING):
        ours = trainer("clip", "gradient_ascent", data={"unlearn": encoded["clip"]["unlearn"]})
    assert "too few retain samples to watch" in caplog.text
    ours.train()
    assert ours.state.global_step == 2 and ours.notes == []
