import logging

import loss_oracle
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_unlearn.errors import UserError
from hf_unlearn.losses.terms import QueueTerms
from hf_unlearn.methods import alignment_calibration
from hf_unlearn.methods.alignment_calibration import AlignmentCalibrationConfig
from hf_unlearn.models.contrastive import contrastive_terms
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.training import targets
from hf_unlearn.training.standing_excess import GAIN

FAMILIES = ["clip", "simclr", "moco"]
MIXED = [*range(3, 10), 41, 44, 47, 49]  # seven retain rows and four unlearn rows
EPSILON = 10 / 40  # of the whole splits, whatever a batch holds


class _AsGiven(QueueTerms):
    def __post_init__(self):
        """Halves stay as long as they are."""


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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("above", [0.5, 0.1, 0.0, -0.05, -0.5])
def test_the_preset_level_is_equation_5_with_a_push_that_ends_at_its_floor(make_trainer, loss_of_batch, family, above):
    trainer = make_trainer("alignment_calibration", family, preset="level", beta=0.3, gamma=0.5)
    assert trainer.args.alpha == 0.8
    _, quantities = loss_of_batch(trainer, MIXED)
    stands = np.mean((quantities.x * quantities.y).sum(1)[quantities.unlearn])
    trainer.floor = torch.tensor(stands - above)
    trainer.excess.begin()
    loss, quantities = loss_of_batch(trainer, MIXED)
    push = 0.3 * np.clip(above / 0.2, -1, 1)
    wanted = quantities(loss_oracle.alignment_calibration, quantities.unlearn, EPSILON, push + 0.5, push, 0.5)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_the_floor_is_where_held_out_pairs_are(make_trainer, splits, encoder):
    trainer = make_trainer("alignment_calibration", preset="level")
    model, processor = encoder("clip")
    cosines = []
    for row in splits["validation"]:
        pixels = processor(images=row["image"], return_tensors="pt")
        for caption in row["captions"]:
            words = processor(text=caption, padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                out = model.eval()(**pixels, **words)
            cosines.append((out.image_embeds * out.text_embeds).sum().item())
    assert trainer.floor.item() == pytest.approx(np.mean(cosines), abs=1e-4)
    assert make_trainer("alignment_calibration").floor is None


def test_the_floor_of_views_is_a_mean_over_seeded_views(make_trainer, splits, encoder):
    trainer = make_trainer("alignment_calibration", "simclr", preset="level")
    encoded = trainer.rows.encoded(splits["validation"]).rows(range(22))
    with torch.no_grad():
        batches = [trainer.preprocessor.batch(encoded, seed) for seed in range(targets.VIEW_PAIRS)]
        cosines = [contrastive_terms(encoder("simclr")[0].eval(), batch).cosine for batch in batches]
    assert trainer.floor.item() == pytest.approx(torch.stack(cosines).mean().item(), abs=1e-5)


def test_what_stands_above_the_floor_late_in_training_lowers_it(make_trainer):
    """Nothing is learned, so the same excess is added up, half of the training long: `exp`'s GAIN times half of it."""
    trainer = make_trainer("alignment_calibration", preset="level", num_train_epochs=20, learning_rate=1e-60)
    seen = []
    report = trainer.report
    trainer.report = lambda *a, **parts: seen.append(parts["unlearn_excess"].item()) or report(*a, **parts)
    trainer.train()
    steps, late = len(seen), len(seen) // 2 + 1
    lowered, wanted = 0.0, []
    for excess in seen:
        wanted.append(lowered)
        above = excess - lowered if abs(excess - lowered) < 0.2 else 0.0
        lowered += GAIN / steps * above if len(wanted) > late else 0.0
    assert trainer.excess.lowered["unlearn"].item() == pytest.approx(lowered, rel=1e-4) and lowered != 0


def test_the_preset_level_needs_held_out_samples(make_trainer, splits):
    with pytest.raises(UserError, match="pass them as split validation"):
        make_trainer("alignment_calibration", "clip", {k: splits[k] for k in ("retain", "unlearn")}, preset="level")


@pytest.mark.parametrize(("preset", "settings"), [("level", {}), ("level", {"gamma": 0.0}), ("paper", {"alpha": 0.5})])
def test_only_level_does_not_feel_a_constant_added_to_all_cosines_of_unlearn_samples(make_trainer, preset, settings):
    """The constant is a further coordinate: `c` of unlearn queries, 1 of every key, 0 of retain queries."""
    torch.manual_seed(0)
    queries, keys, queue = (F.normalize(torch.randn(count, 6), dim=-1) for count in (11, 11, 20))
    unlearn = torch.arange(11) >= 7
    settings = {"preset": preset, "beta": 0.3, "gamma": 0.5} | settings
    trainer = make_trainer("alignment_calibration", "moco", **settings)

    def loss(constant):
        first = torch.cat([queries, constant * unlearn[:, None]], 1)
        second, third = (torch.cat([half, torch.ones(len(half), 1)], 1) for half in (keys, queue))
        terms = _AsGiven(first, second, torch.tensor(10.0), third)
        floor = torch.tensor(-2.0)  # far below: the push is whole
        return trainer.batch_loss(terms, unlearn, *([floor] if preset == "level" else []))[0].item()

    scale, args = 10.0, trainer.args
    for constant in (-0.7, 0.4):
        wanted = EPSILON * (args.beta + args.gamma - args.alpha) * scale * constant
        assert loss(constant) - loss(0.0) == pytest.approx(wanted, abs=2e-6)
    assert (abs(args.beta + args.gamma - args.alpha) < 1e-9) == (preset == "level")


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


def test_level_ties_alpha_to_beta_and_gamma(tmp_path):
    def config(**settings):
        return AlignmentCalibrationConfig(output_dir=str(tmp_path), **settings)

    assert config(preset="level", beta=0.3, gamma=0.5, alpha=0.8).alpha == 0.8
    assert (config().alpha, config(preset="reference").alpha) == (1.0, 1.0)
    with pytest.raises(UserError, match=r"ties alpha to beta \+ gamma = 0\.8, and alpha is 0\.5; leave it unset"):
        config(preset="level", beta=0.3, gamma=0.5, alpha=0.5)
    assert set(config(preset="level").ranges("image-text")) == {"beta", "gamma"}
    assert set(config().ranges("image-text")) == {"alpha", "gamma", "beta"}


@pytest.mark.parametrize("config", ["simclr_openmoji", "moco_openmoji"])
def test_the_preset_level_needs_no_alpha_beside_a_config_of_views(config):
    words = ["--config", config, "--alignment_calibration.preset", "level", "--alignment_calibration.beta", "0.5"]
    level = parse_run([*words, "--methods", "alignment_calibration"]).methods["alignment_calibration"]
    assert (level.alpha, level.gamma) == (1.5, 1.0)


def test_an_unknown_preset_is_refused(tmp_path):
    with pytest.raises(UserError, match="'exact' is unknown; choose one of paper, level, reference"):
        AlignmentCalibrationConfig(output_dir=str(tmp_path), preset="exact")


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma"])
@pytest.mark.parametrize("value", [-0.3, float("nan"), float("inf")])
def test_a_weight_is_a_number_of_at_least_0(tmp_path, name, value):
    with pytest.raises(UserError, match=f"{name}=.* must be a number of at least 0"):
        AlignmentCalibrationConfig(output_dir=str(tmp_path), preset="level", **{name: value})


def test_few_held_out_samples_are_warned_of(make_trainer, splits, caplog):
    few = splits | {"validation": splits["validation"].select([0])}
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        (note,) = make_trainer("alignment_calibration", "clip", few, preset="level").notes
    assert "only 1 held-out samples stand" in note and caplog.text.count(note) == 1
