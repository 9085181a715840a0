import pytest
import torch
from datasets import DatasetDict
from peft import LoraConfig

from hf_unlearn.errors import UserError
from hf_unlearn.losses import info_nce
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.fine_tune import FineTuneConfig
from hf_unlearn.models.contrastive import contrastive_terms
from hf_unlearn.training import rows as training_rows

SHORT = {"per_device_train_batch_size": 12, "max_steps": 3, "learning_rate": 1e-3}
PARTLY = ("fine_tune", "gradient_ascent", "alignment_calibration", "npo", "scrub", "task_vector")


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}


def same(first, second):
    return all(value.equal(second[name]) for name, value in first.items())


def salient(trainer, share):
    """The mask by hand: one batch of all unlearn rows, a sort of all absolute gradients."""
    rows = trainer.saliency._unlearn.rows(range(10))
    terms = contrastive_terms(trainer.model.eval(), trainer.preprocessor.batch(rows, 0))
    info_nce(terms, torch.ones(10)).backward()
    sizes = {
        name: torch.zeros_like(value) if value.grad is None else value.grad.abs()
        for name, value in trainer.model.named_parameters()
        if value.requires_grad
    }
    every = torch.cat([size.flatten() for size in sizes.values()]).double().sort(descending=True).values
    threshold = every[round(share * len(every)) - 1]
    trainer.model.zero_grad()
    return {name: (size.double() >= threshold) & (size > 0) for name, size in sizes.items()}


@pytest.mark.parametrize("family", ["clip", "simclr", "moco"])
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_only_the_weights_with_the_largest_gradient_change_at_all(make_trainer, family, share):
    """Weight decay included, which moves weights without a gradient, too."""
    trainer = make_trainer("neg_grad", family, **SHORT, saliency_share=share, weight_decay=0.5)
    before, mask = weights(trainer), salient(trainer, share)
    trainer.train()
    total = chosen = 0
    for name, value in weights(trainer).items():
        assert value[~mask[name]].equal(before[name][~mask[name]]), name
        total, chosen = total + value.numel(), chosen + (value != before[name]).sum().item()
    # Ties pass together; some of the tiny encoders get no gradient from any of the ten rows for a weight: none passes.
    passing = sum(part.sum().item() for part in mask.values())
    assert 0.8 * passing < chosen <= passing <= share * total + 10 and passing > 0.02 * total


@pytest.mark.parametrize("method", PARTLY)
def test_a_share_of_one_is_no_mask(make_trainer, method):
    short = SHORT | {"learning_rate": 1e-4}  # at which no method's retain loss leaves its budget
    plain, masked = make_trainer(method, **short), make_trainer(method, **short, saliency_share=1.0)
    for trainer in (plain, masked):
        trainer.train()
    assert same(weights(plain), weights(masked))


@pytest.mark.parametrize("method", PARTLY)
def test_it_restricts_every_method(make_trainer, method):
    trainer = make_trainer(method, "moco", **SHORT, saliency_share=0.1)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    share = sum((after[n] != before[n]).sum() for n in before) / sum(value.numel() for value in before.values())
    assert 0.05 < share <= 0.101


def test_masked_out_gradients_are_not_clipped_for(make_trainer):
    norms = []
    for share in (None, 0.1):
        trainer = make_trainer("neg_grad", **SHORT, saliency_share=share, logging_strategy="steps", logging_steps=1)
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert 0 < norms[1] < norms[0]


@pytest.mark.parametrize("family", ["clip", "moco"])
def test_resuming_has_the_same_mask(make_trainer, family, tmp_path):
    options = {**SHORT, "saliency_share": 0.2, "gradient_accumulation_steps": 2}
    never_stopped = make_trainer("alignment_calibration", family, **options)
    never_stopped.train()
    saving = make_trainer("alignment_calibration", family, **options, save_strategy="steps", save_steps=1)
    saving.train()
    resumed = make_trainer("alignment_calibration", family, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert same(weights(never_stopped), weights(resumed)) and same(weights(never_stopped), weights(saving))


@pytest.mark.parametrize("method", ["l1_sparsity", "neg_grad"])  # neg_grad watches some retain rows, too: 16 of them
def test_every_split_is_encoded_once(make_trainer, splits, monkeypatch, tmp_path, method):
    made = []

    class Counted(training_rows.EncodedSplit):
        def __init__(self, dataset, *rest):
            super().__init__(dataset, *rest)
            made.append(len(dataset))

    monkeypatch.setattr(training_rows, "EncodedSplit", Counted)
    held_out = splits["validation"]
    trainer = make_trainer(method, saliency_share=0.5, per_device_train_batch_size=16, eval_dataset=held_out)
    trainer.save_model(tmp_path / "out")  # which measures once more where the request and held-out rows stand
    assert sorted(made) == [10, 16, len(held_out), 40] and len(trainer.saliency._unlearn) == 10


def test_methods_that_learn_from_retain_alone_need_the_unlearn_split_for_it(make_trainer, splits):
    with pytest.raises(UserError, match="saliency_share ranks weights by their gradient on the unlearn split"):
        make_trainer("fine_tune", train_dataset=DatasetDict(retain=splits["retain"]), saliency_share=0.5)


def test_what_cannot_be_masked_is_refused(make_trainer):
    with pytest.raises(UserError, match="and an adapter has none"):
        make_trainer("fine_tune", saliency_share=0.5, peft_config=LoraConfig(r=2))
    with pytest.raises(UserError, match="Retrain never sees the unlearn split"):
        make_trainer("retrain", saliency_share=0.5)


@pytest.mark.parametrize("value", [0, -0.5, 1.5])
def test_shares_that_are_none_are_refused(tmp_path, value):
    with pytest.raises(UserError, match=f"saliency_share={value} must be more than 0 and at most 1"):
        FineTuneConfig(output_dir=str(tmp_path), saliency_share=value)


def test_every_method_has_the_field(tmp_path):
    assert all(trainer.config_class(output_dir=str(tmp_path)).saliency_share is None for trainer in METHODS.values())
