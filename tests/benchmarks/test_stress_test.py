"""The comparison behind the stress test on simulated ensembles: what it must see, and what it must not."""

from dataclasses import replace
from statistics import stdev

import numpy as np
import pytest

from hf_unlearn.benchmarks.attack_signals import AttackSignals
from hf_unlearn.benchmarks.attacks import NATS, POINTS, AttackRow, attack_models
from hf_unlearn.benchmarks.benchmark import Benchmark
from hf_unlearn.benchmarks.stress_test import TOLERANCE, StressTest, has_power, table
from hf_unlearn.data.transformed_copies import TRANSFORMS
from hf_unlearn.errors import UserError
from hf_unlearn.metrics.attacks import roc_auc

SAMPLES, HELD_OUT, KEPT = 120, 130, 60


class World:
    """Models whose samples have places and alignments of their own; seeds add noise."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.places = {name: self.rng.normal(size=(n, 16)) for name, n in (("unlearn", SAMPLES), ("test", HELD_OUT))}
        self.places["anchors"] = self.rng.normal(size=(80, 16))
        self.centres = {"unlearn": self.rng.normal(0.2, 0.1, SAMPLES), "test": self.rng.normal(0.2, 0.1, HELD_OUT)}
        self.centres["retain"] = self.rng.normal(0.85, 0.05, KEPT)

    def model(
        self, remembered: float = 0.0, moved: float = 0.0, recovery: float = 0.1, latent: float | None = None
    ) -> AttackSignals:
        """A model that still remembers unlearn samples by so much, has moved them, or has them in its weights."""
        alignment = {n: c + self.rng.normal(0, 0.02, len(c)) for n, c in self.centres.items()}
        alignment["unlearn"] = (1 - remembered) * alignment["unlearn"] + remembered * 0.85
        for kind in TRANSFORMS:
            alignment |= {
                f"{n}/{kind}": alignment[n] + self.rng.normal(0, 0.02, len(alignment[n]))
                for n in self.places
                if n != "anchors"
            }
        alignment |= {f"{n}/int{b}": alignment[n] for n in ("unlearn", "test") for b in (8, 4)}
        images = {n: p + 0.1 * self.rng.normal(size=p.shape) for n, p in self.places.items()}
        images["unlearn"] = images["unlearn"] + moved * self.rng.normal(size=images["unlearn"].shape)
        hidden = 0.0 if latent is None else latent
        gradients = {
            n: 1 - c + self.rng.normal(0, 0.02, len(c)) for n, c in alignment.items() if n in ("unlearn", "test")
        }
        weights = {
            "retain_only": np.array([[0.2, 0.2, 0.5], [0.2 + hidden, 0.2, 0.5 + hidden]]),
            "line": np.array([0.85, 0.85 if remembered or latent else 0.1, 0.85]),
            "distance": np.array([0.0 if remembered == 1 else 1.0]),
        }
        return AttackSignals(alignment, images, np.linspace(0.2, 0.2 + recovery, 11), {}, gradients, weights)

    def ensemble(self, count: int = 4, **properties: float) -> list[AttackSignals]:
        return [self.model(**properties) for _ in range(count)]


def rows_of(world: World, near_copies: int = 0, **entrants: dict[str, float]) -> dict[str, AttackRow]:
    retrains = world.ensemble()
    models = {name: world.ensemble(**properties) for name, properties in entrants.items()}
    rows = attack_models(retrains, models, world.model(remembered=1.0), near_copies)
    return {row.attack: row for row in rows}


def test_exact_unlearning_stays_near_retrain_in_every_attack():
    worlds = [rows_of(World(seed), exact={}) for seed in range(6)]
    for attack, row in worlds[0].items():
        if row.unit == POINTS and "TPR" not in attack:
            mean = np.mean([rows[attack].differences["exact"] for rows in worlds])
            # The likelihood ratio of one ensemble varies by 2.5 points by itself; its own test averages over forty.
            assert abs(mean) < (4 if attack.startswith("likelihood") else TOLERANCE), attack


def test_each_residual_is_seen_by_the_attack_made_for_it():
    rows = rows_of(
        World(1),
        exact={},
        remembering={"remembered": 0.3},
        displaced={"moved": 1.0},
        resurfacing={"recovery": 0.4},
        latent={"latent": 0.2},
        before={"remembered": 1.0},
    )
    assert rows["alignment: AUC"].differences["remembering"] > 20
    assert rows["alignment, flip copies: AUC"].differences["remembering"] > 20
    assert rows["likelihood ratio: AUC"].differences["remembering"] > 30
    assert rows["KLoM, unlearn: mean"].differences["remembering"] > 10
    assert rows["KLoM, unlearn: mean"].unit == NATS
    assert abs(rows["KLoM, retain: mean"].differences["remembering"]) < 3
    assert rows["completeness by Retrains"].differences["remembering"] < -15
    assert rows["completeness by Retrains"].values["before"] < 10
    assert rows["relearning: area"].differences["resurfacing"] == pytest.approx(15)
    assert rows["position among anchors: agreement"].differences["displaced"] < -10
    assert rows["fine-tuned on retain alone: unlearn above test"].differences["latent"] == pytest.approx(20)
    assert rows["fine-tuned on retain alone: AUC"].differences["latent"] == pytest.approx(20)
    assert rows["barrier to the base model"].differences["latent"] < -50
    assert rows["white box, gradient norm: AUC"].differences["remembering"] > 20
    assert rows["weights rounded to INT4: AUC"].differences["remembering"] > 20
    assert rows["forgetting rate"].values["before"] == 0 and rows["forgetting rate"].values["exact"] > 90
    assert rows["distance of weights from the base model"].unit == "share"
    assert rows["distance of weights from the base model"].values["before"] == 0
    # Position says nothing of what only alignment shows, and the other way round.
    assert abs(rows["position among anchors: agreement"].differences["remembering"]) < 2
    assert abs(rows["alignment: AUC"].differences["displaced"]) < 2


def test_what_is_undefined_where_retrain_is_the_base_model_is_left_out():
    world = World(5)
    base = world.model(remembered=1.0)
    models = {"before": [base], "fine_tune": world.ensemble(2)}
    rows = attack_models([base, base], models, base)
    assert [row.attack for row in rows if row.attack.startswith("three") and not row.is_defined]
    assert "| three samples: nearer to the base model | – | – | – | – |" in table(rows)


def test_near_copies_are_compared_with_what_retrain_keeps():
    world = World(2)
    world.centres["unlearn"][:20] = 0.8  # retained near-copies keep these aligned, in Retrain, too
    rows = rows_of(world, near_copies=20, exact={}, zealous={"remembered": -0.5})
    kept = rows["samples with near-copies in retain: mean alignment"]
    assert kept.retrain == pytest.approx(80, abs=1) and abs(kept.differences["exact"]) < 1
    assert rows["samples without near-copies: mean alignment"].retrain == pytest.approx(20, abs=3)
    assert rows["samples with near-copies in retain: AUC"].retrain > 95  # a non-member's 50 would be the wrong aim


def test_values_are_means_over_leave_one_out():
    from hf_unlearn.metrics.agreement import agreement

    world = World(3)
    retrains, models = world.ensemble(3), world.ensemble(3)
    rows = {row.attack: row for row in attack_models(retrains, {"m": models}, world.model(remembered=1.0))}
    row = rows["alignment per sample: Pearson"]

    def mean(tested) -> float:
        side = [o.alignment["unlearn"] for o in tested], [o.alignment["unlearn"] for o in retrains]
        return 100 * np.mean([agreement(side[0][k], side[1][j]).pearson for k in range(3) for j in range(3) if j != k])

    assert row.retrain == pytest.approx(mean(retrains)) and row.values["m"] == pytest.approx(mean(models))
    assert "KLoM, unlearn: mean" not in rows and rows["likelihood ratio: AUC"].retrain == 50


def test_every_spread_is_that_of_a_sample_of_retrains():
    world, distances = World(4), [1.0, 2.0, 4.0]
    retrains = [
        replace(model, weights={**model.weights, "distance": np.array([distance])})
        for model, distance in zip(world.ensemble(3), distances, strict=True)
    ]
    rows = {row.attack: row for row in attack_models(retrains, {}, world.model(remembered=1.0))}
    aucs = [100 * roc_auc(model.alignment["unlearn"], model.alignment["test"]) for model in retrains]
    assert rows["distance of weights from the base model"].retrain_std == pytest.approx(stdev(distances))
    assert rows["alignment: AUC"].retrain_std == pytest.approx(stdev(aucs))


def test_signals_survive_their_file(tmp_path):
    signals = World(4).model()
    signals.save(tmp_path / "o.safetensors")
    loaded = AttackSignals.load(tmp_path / "o.safetensors")
    for part in ("alignment", "images", "texts", "gradients", "weights"):
        ours, theirs = getattr(signals, part), getattr(loaded, part)
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert np.array_equal(signals.recovery, loaded.recovery)
    assert [path.name for path in tmp_path.iterdir()] == ["o.safetensors"]


def test_the_table_marks_what_lies_beyond_the_tolerance():
    rows = [
        AttackRow("a", POINTS, 50.0, 1.0, {"before": 90.0, "fine_tune": 51.5}),
        AttackRow("b", NATS, 1.0, None, {"fine_tune": 9.0}),
        AttackRow("c", POINTS, 10.0, 0.5, {"before": float("nan"), "fine_tune": 7.0}),
        AttackRow("d", POINTS, float("nan"), float("nan"), {"before": float("nan"), "fine_tune": float("nan")}),
    ]
    text = table(rows)
    assert "| a | 50.00 ± 1.00 | **90.00 (+40.00)** | 51.50 (+1.50) |" in text
    assert "| b (nats) | 1.00 | – | 9.00 (+8.00) |" in text
    assert "before unlearning 0 of 2; Fine-Tune 1 of 2. Of those with power: " in text
    assert text.count("| yes |") == 2 and text.count("| no |") == 0 and "| – |\n" in text
    assert "**7.00 (-3.00)**" in text
    assert "| d | – | – | – | – |" in text


def test_an_attack_has_power_if_it_finds_the_untouched_model_beyond_what_retrains_vary():
    assert has_power(AttackRow("a", POINTS, 50.0, 1.0, {"before": 53.0}))
    assert not has_power(AttackRow("a", POINTS, 50.0, 1.0, {"before": 51.9}))
    assert not has_power(AttackRow("a", POINTS, 50.0, 2.5, {"before": 54.0}))
    assert has_power(AttackRow("a", NATS, 50.0, None, {"before": 90.0})) is None
    assert has_power(AttackRow("a", POINTS, 50.0, None, {"fine_tune": 90.0})) is None


def test_bad_tests_are_refused():
    benchmark = Benchmark("clip", {})
    with pytest.raises(UserError, match="at least 2"):
        StressTest(benchmark, ensemble=1)
    with pytest.raises(UserError, match="once"):
        StressTest(benchmark, methods=("fine_tune", "fine_tune"))
