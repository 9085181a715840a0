import loss_oracle
import pytest


@pytest.mark.parametrize("family", ["clip", "simclr", "moco"])
def test_the_loss_is_minus_info_nce_of_unlearn_alone(make_trainer, loss_of_batch, family):
    trainer = make_trainer("gradient_ascent", family)
    assert len(trainer.train_dataset) == 10
    loss, quantities = loss_of_batch(trainer, range(7))
    assert quantities.unlearn == [True] * 7
    assert loss.item() == pytest.approx(quantities(loss_oracle.gradient_ascent, [True] * 7), rel=1e-5)
    assert loss < 0
