import loss_oracle
import pytest


@pytest.mark.parametrize("family", ["clip", "simclr", "moco"])
def test_the_loss_is_info_nce_of_retain_alone(make_trainer, loss_of_batch, family):
    trainer = make_trainer("fine_tune", family)
    assert len(trainer.train_dataset) == 40  # unlearn rows are not even loaded
    loss, quantities = loss_of_batch(trainer, range(9))
    assert loss.item() == pytest.approx(quantities(loss_oracle.info_nce, [True] * 9), rel=1e-5)
    loss.backward()
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    reached = {name for name, parameter in trainer.model.named_parameters() if parameter.grad is not None}
    assert reached == trained
