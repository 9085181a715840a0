import loss_oracle
import pytest
import torch

from hf_unlearn.errors import UserError
from hf_unlearn.methods.npo import NPOConfig

MIXED = [*range(3, 10), 41, 44, 47, 49]  # seven retain rows and four unlearn rows


def teacher_losses(trainer, rows):
    """InfoNCE of each sample under the teacher, in float64."""
    terms = teacher_terms(trainer, rows)
    return (terms.log_partition - terms.positive_alignment).double().numpy()


def teacher_terms(trainer, rows):
    trainer._step_seed = lambda: 7
    with torch.no_grad():
        batch = trainer.model_batch(trainer.model.train(), trainer.train_dataset.__getitems__(list(rows)))
        return trainer.beside(trainer.model, batch)[0]


def disturb(trainer):
    """Move the model away from its teacher."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


def gradient(trainer, rows):
    trainer.model.zero_grad()
    trainer._step_seed = lambda: 7
    trainer.compute_loss(trainer.model.train(), trainer.train_dataset.__getitems__(list(rows))).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", ["clip", "simclr", "moco"])
@pytest.mark.parametrize("rows", [MIXED, [3, 4, 5], [43, 44], [1, 2, 3, 45]], ids=["mixed", "none", "all", "single"])
def test_the_loss_is_the_bounded_ascent_plus_retain(make_trainer, loss_of_batch, family, rows):
    trainer = make_trainer("npo", family, beta=0.7, retain_weight=0.5)
    reference = teacher_losses(trainer, rows)
    disturb(trainer)
    loss, quantities = loss_of_batch(trainer, rows)
    wanted = quantities(loss_oracle.npo, quantities.unlearn, reference, 0.7, 0.5)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_towards_beta_zero_its_gradient_is_that_of_ascent_on_unlearn(make_trainer):
    bounded = make_trainer("npo", beta=1e-4)
    ascent = make_trainer("neg_grad")
    for trainer in (bounded, ascent):
        disturb(trainer)
    torch.testing.assert_close(gradient(bounded, MIXED), gradient(ascent, MIXED), rtol=1e-3, atol=1e-5)


def test_at_the_base_model_it_is_ascent_for_every_beta(make_trainer):
    for beta in (0.1, 5.0):
        torch.testing.assert_close(
            gradient(make_trainer("npo", beta=beta), MIXED), gradient(make_trainer("neg_grad"), MIXED)
        )


def test_a_sample_that_fell_far_behind_is_pushed_no_more(make_trainer):
    trainer = make_trainer("npo", beta=20.0, retain_weight=0.0)
    start = gradient(trainer, MIXED).norm()
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.05)
    for _ in range(60):
        gradient(trainer, MIXED)
        optimizer.step()
    assert gradient(trainer, MIXED).norm() < 0.1 * start


@pytest.mark.parametrize("family", ["simclr", "moco"])
def test_the_teacher_sees_the_same_views_and_stays_as_it_is(make_trainer, family):
    unwatched = {"retain_loss_budget": None, "collapse_floor": None}
    trainer = make_trainer("npo", family, max_steps=3, per_device_train_batch_size=12, **unwatched)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    seen = []

    def see(model, _, inputs):
        if model.training or model is trainer.teacher:  # the guard's looks at the model are no steps
            seen.append(inputs["pixel_values"])

    for model in (trainer.model, trainer.teacher):
        model.register_forward_pre_hook(see, with_kwargs=True)
    trainer.train()
    assert len(seen) == 6 and not trainer.teacher.training
    assert all(seen[i].equal(seen[i + 1]) for i in (0, 2, 4)) and not seen[0].equal(seen[2])
    assert all(value.equal(before[name]) for name, value in trainer.teacher.state_dict().items())
    assert not all(value.equal(before[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize(("name", "value"), [("beta", 0), ("beta", -1.0), ("retain_weight", -1.0)])
def test_settings_that_make_no_sense_are_refused(tmp_path, name, value):
    with pytest.raises(UserError, match=f"{name}={value} must"):
        NPOConfig(output_dir=str(tmp_path), **{name: value})
