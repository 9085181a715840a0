import loss_oracle
import pytest
import torch


@pytest.mark.parametrize("family", ["clip", "simclr", "moco"])
def test_the_loss_is_info_nce_of_retain_alone(make_trainer, loss_of_batch, family):
    trainer = make_trainer("retrain", family)
    assert len(trainer.train_dataset) == 40
    loss, quantities = loss_of_batch(trainer, range(9))
    assert loss.item() == pytest.approx(quantities(loss_oracle.info_nce, [True] * 9), rel=1e-5)


@pytest.mark.parametrize("family", ["clip", "simclr", "moco"])
def test_weights_are_drawn_anew_from_the_seed(make_trainer, encoder, family):
    base, _ = encoder(family)
    weights = {}
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        torch.manual_seed(len(weights))  # whatever ran before
        trainer = make_trainer("retrain", family, seed=seed)
        assert type(trainer.model) is type(base)
        weights[name] = [p.detach() for p in trainer.model.parameters() if p.ndim > 1]
    for first, again in zip(weights["first"], weights["again"], strict=True):
        assert torch.equal(first, again)
    for others in (weights["other"], [p.detach() for p in base.parameters() if p.ndim > 1]):
        assert not any(torch.equal(a, b) for a, b in zip(weights["first"], others, strict=True))
