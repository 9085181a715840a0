import loss_oracle
import pytest
import torch

from hf_unlearn.errors import UserError
from hf_unlearn.methods import alignment_calibration
from hf_unlearn.methods.alignment_calibration import AlignmentCalibrationConfig

FAMILIES = ["clip", "simclr", "moco"]
MIXED = [*range(3, 10), 41, 44, 47, 49]  # seven retain rows and four unlearn rows
EPSILON = 10 / 40  # of the whole splits, whatever a batch holds


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [MIXED, [3, 41, 7], [3, 4, 5], [43, 44]], ids=["mixed", "one", "none", "all"])
def test_the_preset_paper_is_equation_5(make_trainer, loss_of_batch, family, rows):
    trainer = make_trainer("alignment_calibration", family, alpha=0.7, beta=1.4, gamma=0.9)
    loss, quantities = loss_of_batch(trainer, rows)
    wanted = quantities(loss_oracle.alignment_calibration, quantities.unlearn, EPSILON, 0.7, 1.4, 0.9)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    loss.backward()
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_calibration_it_is_retain_info_nce_alone(make_trainer, loss_of_batch, family):
    trainer = make_trainer("alignment_calibration", family, alpha=0.0, beta=0.0, gamma=0.0)
    loss, quantities = loss_of_batch(trainer, MIXED)
    wanted = quantities(loss_oracle.info_nce, [not member for member in quantities.unlearn])
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_the_preset_reference_is_the_published_construction(make_trainer, loss_of_batch, monkeypatch, family, alpha):
    drawn = []

    def remember(mask, draw=alignment_calibration.derangement):
        drawn.append(draw(mask))
        return drawn[-1]

    monkeypatch.setattr(alignment_calibration, "derangement", remember)
    trainer = make_trainer("alignment_calibration", family, preset="reference", alpha=alpha, gamma=alpha, beta=12.0)
    loss, quantities = loss_of_batch(trainer, MIXED)
    other = drawn[-1].tolist()
    assert sorted(other[7:]) == [7, 8, 9, 10] and all(other[i] != i for i in range(7, 11))
    wanted = quantities(loss_oracle.reference_alignment_calibration, quantities.unlearn, EPSILON, alpha, 12.0, other)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("rows", [[3, 41, 7], [3, 4, 5]], ids=["one", "none"])
def test_the_preset_reference_needs_two_unlearn_samples_for_a_pair(make_trainer, loss_of_batch, rows):
    trainer = make_trainer("alignment_calibration", "simclr", preset="reference", beta=12.0)
    loss, quantities = loss_of_batch(trainer, rows)
    wanted = quantities(loss_oracle.info_nce, [not member for member in quantities.unlearn])
    cosines = [x @ y for x, y, u in zip(quantities.x, quantities.y, quantities.unlearn, strict=True) if u]
    assert loss.item() == pytest.approx(wanted + 12 * 10 / 50 * sum(cosines), rel=1e-5)


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_a_step_lowers_unlearn_alignment_more_than_without_beta(make_trainer, loss_of_batch, preset):
    after = {}
    for beta in (0.0, 20.0):
        torch.manual_seed(0)
        trainer = make_trainer("alignment_calibration", preset=preset, beta=beta)
        loss, _ = loss_of_batch(trainer, MIXED)
        loss.backward()
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-3 * parameter.grad
        _, quantities = loss_of_batch(trainer, MIXED)
        after[beta] = (quantities.x * quantities.y)[quantities.unlearn].sum(1).mean()
    assert after[20.0] < after[0.0] - 1e-3


def test_the_reference_ties_gamma_to_alpha(tmp_path):
    with pytest.raises(UserError, match="ties gamma to alpha"):
        AlignmentCalibrationConfig(output_dir=str(tmp_path), preset="reference", alpha=1.0, gamma=0.5)


def test_an_unknown_preset_is_refused(tmp_path):
    with pytest.raises(UserError, match="'exact' is unknown; choose paper or reference"):
        AlignmentCalibrationConfig(output_dir=str(tmp_path), preset="exact")
