import numpy as np
import pytest
import torch
from peft import LoraConfig

from hf_unlearn.errors import UserError
from hf_unlearn.methods.selective_synaptic_dampening import SSDConfig
from hf_unlearn.models.contrastive import contrastive_terms

FAMILIES = ("clip", "simclr", "moco")


def state(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def squared_norms(trainer, inputs):
    """`[n]`: of what each family projects a row to, by hand."""
    model = trainer.model
    if hasattr(model, "get_text_features"):
        image = model.visual_projection(model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output)
        texts = {name: value for name, value in inputs.items() if name != "pixel_values"}
        text = model.text_projection(model.text_model(**texts).pooler_output)
        return image.square().sum(1) + text.square().sum(1)
    views = inputs["pixel_values"]
    return (model.encoder(views[:, 0]).square().sum(1) + model.encoder(views[:, 1]).square().sum(1)) / 2


def importances(trainer, split, importance, batch):
    """Float64 means over batches, one parameter after the other."""
    weights = {name: value for name, value in trainer.model.eval().named_parameters() if value.requires_grad}
    totals = {name: np.zeros(value.shape) for name, value in weights.items()}
    starts = range(0, len(split), batch)
    for start in starts:
        rows = split.rows([row % len(split) for row in range(start, start + batch)])
        inputs = trainer.preprocessor.batch(rows, start)
        if importance == "output_norm":
            value = squared_norms(trainer, inputs).mean()
        else:
            terms = contrastive_terms(trainer.model, inputs)
            value = (terms.log_partition - terms.positive_alignment).mean()
        trainer.model.zero_grad()
        value.backward()
        for name, weight in weights.items():
            gradient = 0 if weight.grad is None else weight.grad.double().numpy()
            totals[name] += abs(gradient) if importance == "output_norm" else np.square(gradient)
    trainer.model.zero_grad()
    return {name: value / len(starts) for name, value in totals.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("importance", ["output_norm", "info_nce"])
def test_weights_that_matter_more_to_unlearn_are_dampened_by_the_ratio(make_trainer, family, importance):
    trainer = make_trainer(
        "selective_synaptic_dampening", family, alpha=1.2, dampening=0.9, importance=importance,
        per_device_train_batch_size=4,
    )  # fmt: skip
    unlearn, retain = (importances(trainer, split, importance, 4) for split in (trainer._unlearn, trainer._retain))
    before = state(trainer)
    trainer.train()
    dampened = close = 0
    for name, value in trainer.model.state_dict().items():
        if name not in unlearn:
            assert value.equal(before[name]), name
            continue
        every = 0.2 * unlearn[name] + 0.8 * retain[name]
        with np.errstate(divide="ignore", invalid="ignore"):
            kept = np.where(unlearn[name] > 1.2 * every, np.minimum(0.9 * every / unlearn[name], 1), 1)
        wanted = before[name].double().numpy() * kept
        close += np.isclose(value.double().numpy(), wanted, rtol=1e-3, atol=1e-7).sum()
        dampened += (kept < 1).sum()
    total = sum(value.size for value in unlearn.values())
    assert close > 0.999 * total  # but for weights at the threshold
    assert 0 < dampened < total
    assert trainer.state.log_history[-1]["dampened_share"] == pytest.approx(dampened / total, rel=1e-2)


@pytest.mark.parametrize(("alpha", "message"), [(5.0, r"= 5 \* 0.2 is"), (1e9, r"= 1e\+09 \* 0.2 is")])
def test_an_alpha_that_nothing_can_reach_is_refused_with_the_arithmetic(make_trainer, alpha, message):
    """All of train holds unlearn, 10 of 50 rows: no weight is five times as important to it as to all."""
    with pytest.raises(UserError, match=message + " at least 1, .* set alpha below 5"):
        make_trainer("selective_synaptic_dampening", "moco", alpha=alpha)
    output = make_trainer("selective_synaptic_dampening", "moco", alpha=4.99).train()
    assert output.metrics["train_runtime"] > 0


def test_a_single_unlearn_sample_will_do(make_trainer, splits):
    few = {"retain": splits["retain"], "unlearn": splits["unlearn"].select([0])}
    trainer = make_trainer("selective_synaptic_dampening", train_dataset=type(splits)(few), alpha=2.0)
    before = state(trainer)
    trainer.train()
    assert not all(value.equal(before[name]) for name, value in state(trainer).items())


def test_what_cannot_work_is_refused(make_trainer, tmp_path):
    method = "selective_synaptic_dampening"
    with pytest.raises(UserError, match="SSD edits whole weights"):
        make_trainer(method, peft_config=LoraConfig(r=2), alpha=2.0)
    with pytest.raises(UserError, match="SSD chooses its weights itself"):
        SSDConfig(output_dir=str(tmp_path), saliency_share=0.5)
    with pytest.raises(UserError, match=r"SSD trains nothing.*set it for others alone"):
        SSDConfig(output_dir=str(tmp_path), shrink_perturb=0.3)
    for checkpoint in (True, str(tmp_path / "checkpoint-5")):
        with pytest.raises(UserError, match="SSD writes no checkpoints that it could go on from"):
            make_trainer(method, alpha=2.0).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(UserError, match="alpha=0 must be more than 0"):
        SSDConfig(output_dir=str(tmp_path), alpha=0)
    with pytest.raises(UserError, match="importance='size' is unknown; choose output_norm or info_nce"):
        SSDConfig(output_dir=str(tmp_path), importance="size")


def test_training_leaves_no_gradients_and_the_mode_as_it_was(make_trainer):
    trainer = make_trainer("selective_synaptic_dampening", "simclr", alpha=2.0)
    trainer.model.train()
    trainer.train()
    assert trainer.model.training and all(p.grad is None for p in trainer.model.parameters())
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
