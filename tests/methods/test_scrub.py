import loss_oracle
import numpy as np
import pytest
import torch
from methods.test_npo import MIXED, disturb, gradient, teacher_terms

from hf_unlearn.errors import UserError
from hf_unlearn.losses import info_nce
from hf_unlearn.losses.functional import teacher_divergence
from hf_unlearn.methods.scrub import SCRUBConfig


@pytest.mark.parametrize("family", ["clip", "simclr", "moco"])
@pytest.mark.parametrize("rows", [MIXED, [3, 4, 5], [43, 44], [1, 2, 3, 45]], ids=["mixed", "none", "all", "single"])
@pytest.mark.parametrize("step", [2, 5])
def test_the_loss_obeys_on_retain_and_disobeys_on_unlearn_in_the_first_steps(
    make_trainer, loss_of_batch, family, rows, step
):
    trainer = make_trainer("scrub", family, alpha=0.3, gamma=0.6, ascent_share=0.5)
    trainer.state.global_step, trainer.state.max_steps = step, 10
    teacher = teacher_terms(trainer, rows)
    disturb(trainer)
    loss, quantities = loss_of_batch(trainer, rows)
    elements = [element.double().numpy() for element in (teacher.x, teacher.y)]
    kl = loss_oracle.teacher_divergence(quantities.x, quantities.y, quantities.scale, *elements, teacher.scale.item())
    unlearn = np.array(quantities.unlearn)
    wanted = 0.6 * quantities(loss_oracle.info_nce, ~unlearn)
    wanted += 0.3 * kl[~unlearn].mean() if (~unlearn).any() else 0.0
    wanted -= kl[unlearn].mean() if unlearn.any() and step < 5 else 0.0
    assert loss.item() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_a_student_that_is_its_teacher_learns_from_retain_alone(make_trainer):
    trainer, plain = make_trainer("scrub"), make_trainer("neg_grad")
    trainer.state.max_steps = 10
    terms = teacher_terms(trainer, MIXED)
    assert teacher_divergence(terms, terms).abs().max() < 1e-6
    plain.compute_loss = lambda model, inputs: info_nce((found := plain.contrast(model, inputs))[0], ~found[1])
    torch.testing.assert_close(gradient(trainer, MIXED), gradient(plain, MIXED), rtol=1e-4, atol=1e-5)


def test_a_descent_raises_the_divergence_on_unlearn(make_trainer):
    trainer = make_trainer(
        "scrub", num_train_epochs=6, ascent_share=1.0, learning_rate=1e-3, per_device_train_batch_size=16
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "divergence_unlearn" in entry]
    assert logs[-1]["divergence_unlearn"] > logs[0]["divergence_unlearn"] > 0
    assert logs[-1]["divergence_unlearn"] > logs[-1]["divergence_retain"]


@pytest.mark.parametrize(
    ("name", "value"), [("ascent_share", 0), ("ascent_share", 1.5), ("alpha", -1.0), ("gamma", -1.0)]
)
def test_settings_that_make_no_sense_are_refused(tmp_path, name, value):
    with pytest.raises(UserError, match=f"{name}={value} must"):
        SCRUBConfig(output_dir=str(tmp_path), **{name: value})
