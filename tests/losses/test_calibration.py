"""The squared distances of Targeted Calibration against double loops in float64, in both ways they are computed."""

import loss_oracle
import numpy as np
import pytest
import torch
from loss_batches import UNLEARN, assert_value_and_gradient, batch

from hf_unlearn.losses import calibration, calibration_distances
from hf_unlearn.losses.calibration import elements_at_once

TARGETS = np.array([0.3, -0.2, 0.9, 0.0, -0.6, 0.4])
NEGATIVE = 0.05
WEIGHTS = [3.0, 2.0, 50.0, 4.0]


def distances(x, y, mask, base):
    """`[4]`, or `[3]` without a base model's elements."""
    own = [x[i] @ y[i] - TARGETS[i] for i in range(len(x))]
    above = [own[i] ** 2 for i in range(len(x)) if mask[i]]
    below = [min(0.0, own[i]) ** 2 for i in range(len(x)) if not mask[i]]
    negative = loss_oracle.negative_alignment(x, y, 1.0, [True] * len(x))
    found = [np.mean(part) if part else 0.0 for part in (above, below)] + [(negative - NEGATIVE) ** 2]
    kept = [loss_oracle.similarity_drift(x, y, *base, [not m for m in mask])] if base is not None else []
    return np.array(found + kept)


@pytest.mark.parametrize("whole", [True, False], ids=["matrix", "written out"])
@pytest.mark.parametrize("held", [True, False], ids=["similarities", "none"])
@pytest.mark.parametrize("unlearn", UNLEARN)
def test_distances_and_their_gradients(unlearn, held, whole, monkeypatch):
    monkeypatch.setattr(calibration, "elements_at_once", elements_at_once if whole else lambda *_: 0)
    drawn, other, mask = batch("cross_modal", seed=6), batch("cross_modal", seed=7), UNLEARN[unlearn]
    base = (loss_oracle.unit(other.x), loss_oracle.unit(other.y)) if held else None
    given = None if base is None else tuple(torch.tensor(half, dtype=torch.float16) for half in base)
    base = None if given is None else tuple(half.double().numpy() for half in given)

    def ours(terms):
        targets = torch.tensor(TARGETS, dtype=torch.float32)
        return calibration_distances(terms, torch.tensor(mask), targets, torch.tensor(NEGATIVE), given)

    def oracle(x, y, scale):
        found = distances(loss_oracle.unit(x), loss_oracle.unit(y), mask, base)
        return float(found @ WEIGHTS[: len(found)])

    def loss(terms):
        found, _ = ours(terms)
        return found @ torch.tensor(WEIGHTS[: len(found)])

    assert_value_and_gradient(loss, drawn, oracle)
    found, excess = ours(drawn.terms(*drawn.leaves()))
    x, y = loss_oracle.unit(drawn.x), loss_oracle.unit(drawn.y)
    np.testing.assert_allclose(found.detach(), distances(x, y, mask, base), rtol=1e-5, atol=1e-6)
    members = [x[i] @ y[i] - TARGETS[i] for i in range(len(x)) if mask[i]]
    assert excess.item() == pytest.approx(np.mean(members) if members else 0.0, abs=1e-6) and not excess.requires_grad


def test_a_batch_of_one_pair_has_no_other_pairs():
    drawn = batch("cross_modal", n=1)
    terms = drawn.terms(*(leaf.detach() for leaf in drawn.leaves()))
    for half in (terms.x, terms.y):
        half.requires_grad_()
    given = torch.tensor([False]), torch.tensor([2.0]), torch.tensor(0.5)
    found, _ = calibration_distances(terms, *given, (terms.x.detach(), terms.y.detach()))
    found.sum().backward()
    wanted = [0.0, (2 - terms.cosine.item()) ** 2, 0.25, 0.0]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)
    found, _ = calibration_distances(terms, *given)
    found.sum().backward()
    assert found.tolist() == pytest.approx(wanted[:3], rel=1e-5)


def test_a_matrix_in_memory_is_as_exact_under_autocast():
    drawn, mask = batch("cross_modal", seed=8, n=6, d=4), torch.tensor(UNLEARN["two"])
    terms = drawn.terms(*drawn.leaves())
    given = mask, torch.tensor(TARGETS, dtype=torch.float32), torch.tensor(NEGATIVE)
    plain, _ = calibration_distances(terms, *given)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = calibration_distances(terms, *given)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, plain)
