import loss_oracle
import pytest

from hf_unlearn.errors import UserError
from hf_unlearn.methods.neg_grad import NegGradConfig

MIXED = [*range(3, 10), 41, 44, 47, 49]  # seven retain rows and four unlearn rows


@pytest.mark.parametrize("family", ["clip", "simclr", "moco"])
@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize("rows", [MIXED, [3, 4, 5], [43, 44]], ids=["mixed", "none", "all"])
def test_the_loss_is_retain_minus_unlearn(make_trainer, loss_of_batch, family, preset, rows):
    trainer = make_trainer("neg_grad", family, preset=preset)
    loss, quantities = loss_of_batch(trainer, rows)
    wanted = quantities(loss_oracle.neg_grad, quantities.unlearn, preset, 10 / 40)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_the_reference_is_the_sum_over_a_batch_with_the_datas_shares(make_trainer, loss_of_batch):
    """The published code divides (sum over R - sum over U) by the batch size."""
    trainer = make_trainer("neg_grad", "simclr", preset="reference")
    loss, quantities = loss_of_batch(trainer, [*range(8), 41, 42])  # 10 rows, 20% of them unlearn, as in the data
    partition = quantities(loss_oracle.log_partition)
    losses = partition - quantities.scale * (quantities.x * quantities.y).sum(1)
    assert loss.item() == pytest.approx((losses[:8].sum() - losses[8:].sum()) / 10, rel=1e-5)


def test_an_unknown_preset_is_refused(tmp_path):
    with pytest.raises(UserError, match="'exact' is unknown; choose paper or reference"):
        NegGradConfig(output_dir=str(tmp_path), preset="exact")
