import loss_oracle
import pytest
import torch

from hf_unlearn.errors import UserError
from hf_unlearn.methods.l1_sparsity import L1SparsityConfig


@pytest.mark.parametrize("family", ["clip", "simclr", "moco"])
def test_the_loss_adds_the_l1_norm_of_every_trainable_parameter(make_trainer, loss_of_batch, family):
    trainer = make_trainer("l1_sparsity", family, l1_lambda=1e-3)
    loss, quantities = loss_of_batch(trainer, range(9))
    norm = sum(p.detach().double().abs().sum().item() for p in trainer.model.parameters() if p.requires_grad)
    assert loss.item() == pytest.approx(quantities(loss_oracle.info_nce, [True] * 9) + 1e-3 * norm, rel=1e-5)


def test_its_gradient_is_fine_tunes_plus_lambda_times_the_sign(make_trainer, loss_of_batch):
    gradients = []
    for method, settings in (("fine_tune", {}), ("l1_sparsity", {"l1_lambda": 1e-2})):
        trainer = make_trainer(method, "simclr", **settings)
        loss_of_batch(trainer, range(9))[0].backward()
        gradients.append([parameter.grad for parameter in trainer.model.parameters()])
    for plain, sparse, parameter in zip(*gradients, trainer.model.parameters(), strict=True):
        torch.testing.assert_close(sparse, plain + 1e-2 * parameter.sign(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf")])
def test_its_coefficient_is_a_number_of_at_least_0(tmp_path, value):
    with pytest.raises(UserError, match=f"l1_lambda={value} must be a number of at least 0"):
        L1SparsityConfig(output_dir=str(tmp_path), l1_lambda=value)
