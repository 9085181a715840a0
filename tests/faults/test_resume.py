"""Cases 19 to 21 for a trainer: however it was stopped, resumed it ends with the weights of the run never stopped."""

import copy
import json
import logging
import random
import re
import shutil
import signal
from itertools import cycle
from pathlib import Path

import pytest
import torch
from faults.conftest import FAMILIES, weights
from faults.killing import forked
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.errors import UserError
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.fine_tune import FineTuneTrainer
from hf_unlearn.training.checkpoints import CHECKSUMS_NAME, damage, newest_checkpoint

KILLS = 2
# What a method keeps and what a family keeps are written apart from each other: every method, the families in turn.
CASES = [*zip(cycle(FAMILIES), (name for name, trainer in METHODS.items() if trainer.iterative), strict=False)]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), CASES)
def test_killed_at_random_moments_it_ends_with_the_same_weights(family, method, trainer, tmp_path):
    never_stopped = trainer(family, method, num_train_epochs=3)
    never_stopped.train()
    out, dice, statuses = tmp_path / "out", random.Random(f"{family} {method}"), []

    def work() -> None:
        ours = trainer(family, method, num_train_epochs=3, save_strategy="steps", save_steps=1)
        ours.train(resume_from_checkpoint=str(newest_checkpoint(out) or "") or None)
        ours.model.save_pretrained(tmp_path / "end")

    for _ in range(KILLS):
        statuses.append(forked(work, watch=out, kill_at=dice.randrange(1, 60))[0])
    assert set(statuses) == {-signal.SIGKILL}
    assert forked(work, watch=out)[0] == 0
    expected = never_stopped.model.state_dict()
    ended = load_file(tmp_path / "end" / "model.safetensors")
    assert ended and all(value.equal(expected[name]) for name, value in ended.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_resuming_after_any_step_equals_the_uninterrupted_run(family, trainer, tmp_path):
    # The published construction also draws from the global random state.
    options = {"preset": "reference", "learning_rate": 1e-3, "gradient_accumulation_steps": 2}
    never_stopped = trainer(family, "alignment_calibration", **options)
    never_stopped.train()
    saving = trainer(
        family, "alignment_calibration", **options, save_strategy="steps", save_steps=1, save_total_limit=None
    )
    torch.rand(3)  # whatever happens between, the seed decides
    saving.train()
    assert weights(saving.model) == weights(never_stopped.model)
    steps = saving.state.max_steps
    assert steps == 4 and saving.state.num_train_epochs == 2  # so one of them lies within an epoch
    for step in range(1, steps):
        resumed = trainer(family, "alignment_calibration", **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
        assert weights(resumed.model) == weights(never_stopped.model), step


def damage_weights(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def escape(folder: Path) -> None:
    seal = json.loads((folder / CHECKSUMS_NAME).read_text())
    seal["files"]["../../secret"] = "0"
    (folder / CHECKSUMS_NAME).write_text(json.dumps(seal))


DAMAGES = {
    "one flipped bit": (damage_weights, "model.safetensors is not as it was written"),
    "no optimiser": (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "half a state": (lambda folder: (folder / "trainer_state.json").write_text("{"), "trainer_state.json is not"),
    "no seal": (lambda folder: (folder / CHECKSUMS_NAME).unlink(), f"no {CHECKSUMS_NAME}"),
    "half a seal": (lambda folder: (folder / CHECKSUMS_NAME).write_text('{"files": '), "cannot be read"),
    "a seal of another form": (lambda folder: (folder / CHECKSUMS_NAME).write_text("[]"), "cannot be read"),
    "a seal that leaves the folder": (escape, "../../secret, which is not inside"),
}


@pytest.fixture(scope="module")
def trained(trainer_in, tmp_path_factory):
    """Every family trained for 6 steps, with checkpoints after the third and the last: its folder and weights."""

    def train(family: str) -> tuple[Path, str]:
        out = tmp_path_factory.mktemp(f"trained-{family}")
        ours = trainer_in(out, family, "fine_tune", save_strategy="steps", save_steps=3)
        ours.train()
        assert sorted(path.name for path in out.iterdir()) == ["checkpoint-3", "checkpoint-6"]
        return out, weights(ours.model)

    return {family: train(family) for family in FAMILIES}


@pytest.fixture
def checkpoints(trained, tmp_path):
    """A copy of what a family's training left, where another of this test would write."""

    def copied(family: str) -> tuple[Path, str]:
        out, ended = trained[family]
        return Path(shutil.copytree(out, tmp_path / "out")), ended

    return copied


# Checksums know no families: one damage of each kind.
@pytest.mark.parametrize(("family", "kind"), zip(cycle(FAMILIES), DAMAGES, strict=False))
def test_a_damaged_newest_checkpoint_gives_way_to_the_last_valid_one(family, kind, checkpoints, trainer, caplog):
    out, expected = checkpoints(family)
    break_it, words = DAMAGES[kind]
    break_it(out / "checkpoint-6")
    with caplog.at_level(logging.WARNING):
        ours = trainer(family, "fine_tune", save_strategy="steps", save_steps=3)
        ours.train(resume_from_checkpoint=True)
    assert "checkpoint-6 is damaged" in caplog.text and words in caplog.text
    assert weights(ours.model) == expected
    assert damage(out / "checkpoint-6") is None  # written again on the way
    break_it(out / "checkpoint-3")
    with pytest.raises(UserError, match=r"checkpoint-3 cannot be resumed from .*" + re.escape(words)):
        trainer(family, "fine_tune").train(resume_from_checkpoint=str(out / "checkpoint-3"))


OTHER_TRAININGS = {
    "rate": ({"learning_rate": 0.1}, "learning_rate was 0.0005 and is 0.1"),
    "seed": ({"seed": 4}, "seed was 0 and is 4"),
    "batch": ({"per_device_train_batch_size": 12}, "per_device_train_batch_size was 16 and is 12"),
    "length": ({"num_train_epochs": 5}, "num_train_epochs was 2 and is 5"),
    "optimiser": ({"optim": "sgd", "optim_args": "momentum=0.9"}, "optim_args was None and is 'momentum=0.9'"),
    "schedule": ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type was 'constant' and is 'cosine'"),
    "mask": ({"saliency_share": 0.5}, "saliency_share was None and is 0.5"),
}


def test_a_checkpoint_of_another_training_is_refused_with_the_difference(checkpoints, trainer):
    out, _ = checkpoints("clip")
    for options, message in OTHER_TRAININGS.values():
        again = trainer("clip", "fine_tune", **options)
        before = weights(again.model)
        with pytest.raises(UserError, match=re.escape(message)):
            again.train(resume_from_checkpoint=str(out / "checkpoint-3"))
        assert weights(again.model) == before


def test_another_method_request_model_or_split_is_another_training(checkpoints, trainer, encoded, splits):
    out, _ = checkpoints("clip")
    newest = str(out / "checkpoint-3")
    with pytest.raises(UserError, match="method was 'fine_tune' and is 'l1_sparsity'"):
        trainer("clip", "l1_sparsity").train(resume_from_checkpoint=newest)
    preprocessor = encoded["clip"]["retain"].preprocessor
    fewer = {**encoded["clip"], "unlearn": EncodedSplit(splits["unlearn"].select(range(7)), preprocessor)}
    with pytest.raises(UserError, match=r"unlearn rows was '8, [0-9a-f]*' and is '7, "):
        trainer("clip", "fine_tune", fewer).train(resume_from_checkpoint=newest)
    turned = {**encoded["clip"], "retain": EncodedSplit(splits["retain"].select(range(39, -1, -1)), preprocessor)}
    with pytest.raises(UserError, match="retain rows was"):
        trainer("clip", "fine_tune", turned).train(resume_from_checkpoint=newest)
    model = trainer("clip", "fine_tune").model
    model.logit_scale.data.add_(0.1)
    config, processor = trainer("clip", "fine_tune").args, trainer("clip", "fine_tune").processing_class
    with pytest.raises(UserError, match="model was"):
        FineTuneTrainer(model, config, encoded["clip"], processing_class=processor).train(resume_from_checkpoint=newest)


EVERY_OTHER_STEP = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}


def test_another_adapter_is_another_training(trainer, encoded, tmp_path):
    """The weights of all of them begin alike."""
    plain = trainer("clip", "fine_tune")
    given = {"train_dataset": encoded["clip"], "processing_class": plain.processing_class}

    def adapted(peft_config, **options):
        shown = trainer("clip", "fine_tune", **options)
        return FineTuneTrainer(shown.model, shown.args, peft_config=peft_config, **given)

    adapted(LoraConfig(r=2, lora_alpha=4), **EVERY_OTHER_STEP).train()
    for other, message in (
        (LoraConfig(r=2, lora_alpha=64), "(adapter.lora_alpha was 4 and is 64)"),
        (LoraConfig(r=2, lora_alpha=4, lora_dropout=0.5), "(adapter.lora_dropout was 0.0 and is 0.5)"),
        (LoraConfig(r=2, lora_alpha=4, use_rslora=True), "(adapter.use_rslora was False and is True)"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            adapted(other).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    again, whole = adapted(LoraConfig(r=2, lora_alpha=4)), adapted(LoraConfig(r=2, lora_alpha=4))
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    whole.train()
    assert weights(again.model) == weights(whole.model)


@pytest.mark.parametrize(("method", "settings"), [("fine_tune", {"shrink_perturb": 0.5}), ("targeted_calibration", {})])
def test_another_initial_model_is_another_training(method, settings, loaded, trainer, encoded, tmp_path):
    def given(initial_model):
        shown = trainer("clip", method, **EVERY_OTHER_STEP, **settings)
        how = {"processing_class": shown.processing_class, "initial_model": initial_model}
        return METHODS[method](shown.model, shown.args, encoded["clip"], **how)

    one, other = (copy.deepcopy(loaded["clip"][0]) for _ in range(2))
    torch.manual_seed(0)
    for start in (one, other):
        for value in start.parameters():
            value.data += 0.01 * torch.randn_like(value)
    given(one).train()
    newest = str(tmp_path / "out" / "checkpoint-2")
    with pytest.raises(UserError, match=r"\(initial_model was '\w+' and is '\w+'\)"):
        given(other).train(resume_from_checkpoint=newest)
    given(one).train(resume_from_checkpoint=newest)


def test_another_processor_is_another_training(checkpoints, trainer, splits):
    out, _ = checkpoints("clip")
    shown = trainer("clip", "fine_tune")
    processor = copy.deepcopy(shown.processing_class)
    processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    other = FineTuneTrainer(shown.model, shown.args, splits, processing_class=processor)
    with pytest.raises(UserError, match=r"\(processor was '\w+' and is '\w+'\)"):
        other.train(resume_from_checkpoint=str(out / "checkpoint-3"))


def test_checkpoints_without_an_optimiser_are_neither_written_nor_gone_on_from(trainer, tmp_path, caplog):
    with pytest.raises(UserError, match=r"^save_only_model would leave checkpoints that no training can go on from; "):
        trainer("clip", "fine_tune", save_only_model=True)
    ours = trainer("clip", "fine_tune", **EVERY_OTHER_STEP)
    ours.args.save_only_model = True  # where nobody looks any more
    ours.train()
    with pytest.raises(UserError, match=r"checkpoint-2 cannot be resumed from \(it holds no state of the optimiser\)"):
        trainer("clip", "fine_tune").train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    with pytest.raises(UserError, match="no undamaged checkpoint to resume from"):
        trainer("clip", "fine_tune").train(resume_from_checkpoint=True)
    assert "it holds no state of the optimiser" in caplog.text


class StopAfterTwoSteps(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


class Steps(TrainerCallback):
    def __init__(self):
        self.made = []

    def on_step_end(self, args, state, control, **kwargs):
        self.made.append(state.global_step)


def test_checkpoints_of_an_earlier_training_with_higher_numbers_give_way(checkpoints, trainer):
    out, _ = checkpoints("clip")  # of steps 3 and 6
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 3, "learning_rate": 1e-4}
    stopped, resumed, whole = (trainer("clip", "fine_tune", **settings) for _ in range(3))
    stopped.add_callback(StopAfterTwoSteps())
    stopped.train()
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-1", "checkpoint-2", "checkpoint-6"]
    resumed.add_callback(steps := Steps())
    resumed.train(resume_from_checkpoint=True)
    assert steps.made == [3, 4, 5, 6]
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]
    whole.train()
    assert weights(resumed.model) == weights(whole.model)


def test_what_changes_no_weight_may_differ(checkpoints, trainer):
    out, ended = checkpoints("clip")
    options = {"logging_strategy": "no", "save_strategy": "no", "per_device_eval_batch_size": 3, "run_name": "again"}
    again = trainer("clip", "fine_tune", **options)
    again.train(resume_from_checkpoint=str(out / "checkpoint-3"))
    assert weights(again.model) == ended


def test_nothing_to_resume_from_is_said(trainer, tmp_path):
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        trainer("clip", "fine_tune").train(resume_from_checkpoint=True)
    with pytest.raises(UserError, match="no such folder"):
        trainer("clip", "fine_tune").train(resume_from_checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"argument of trainer.train"):
        trainer("clip", "fine_tune", resume_from_checkpoint="somewhere")


def test_checkpoints_hold_no_pickled_arguments_and_load_as_models(checkpoints):
    from transformers import CLIPModel

    out, expected = checkpoints("clip")
    assert not list(out.rglob("training_args.bin"))
    assert weights(CLIPModel.from_pretrained(out / "checkpoint-6")) == expected


def test_time_writes_checkpoints_and_counts_on_after_resuming(trainer, tmp_path):
    ours = trainer("clip", "gradient_ascent", num_train_epochs=4, checkpoint_minutes=1e-9)
    seconds = ours.train().metrics["train_runtime"]
    newest = newest_checkpoint(tmp_path / "out")
    assert newest is not None and newest.name == "checkpoint-4"
    again = trainer("clip", "gradient_ascent", num_train_epochs=4, checkpoint_minutes=1e-9)
    resumed = again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3")).metrics["train_runtime"]
    assert resumed > json.loads((tmp_path / "out" / "checkpoint-3" / CHECKSUMS_NAME).read_text())["seconds"] > 0
    assert seconds > 0 and weights(again.model) == weights(ours.model)


def test_the_best_checkpoint_is_kept_and_found_again(trainer, tmp_path, encoded):
    ours = trainer(
        "clip", "fine_tune", evaluated=encoded["clip"]["unlearn"], num_train_epochs=3, learning_rate=1e-2,
        save_strategy="epoch", eval_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="loss",
        greater_is_better=True, save_total_limit=1,
    )  # fmt: skip
    ours.train()
    best = Path(ours.state.best_model_checkpoint)
    assert best.parent == tmp_path / "out" and damage(best) is None
    state = json.loads((newest_checkpoint(tmp_path / "out") / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)
    assert all(value.equal(ours.model.state_dict()[n]) for n, value in load_file(best / "model.safetensors").items())
