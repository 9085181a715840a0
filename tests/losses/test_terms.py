"""The three quantities of every family, symmetric and one-sided, against double loops in float64."""

import loss_oracle
import numpy as np
import pytest
import torch
from loss_batches import FAMILIES, assert_value_and_gradient, batch

from hf_unlearn.losses import CrossModalTerms


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_quantities_equal_double_loops(family, seed):
    drawn = batch(family, seed)
    terms = drawn.terms(*drawn.leaves())
    x, y = loss_oracle.unit(drawn.x), loss_oracle.unit(drawn.y)
    cosine = [a @ b for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(terms.cosine.detach(), cosine, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(terms.positive_alignment.detach(), 7 * np.array(cosine), rtol=1e-5, atol=1e-5)
    partition = loss_oracle.log_partition(family, x, y, 7.0, drawn.queue)
    np.testing.assert_allclose(terms.log_partition.detach(), partition, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_of_the_log_partition(family):
    def oracle(name, x, y, scale, queue):
        return np.arange(1, 7) @ loss_oracle.log_partition(name, x, y, scale, queue)

    drawn = batch(family, seed=3)
    assert_value_and_gradient(
        lambda terms: torch.arange(1.0, 7.0) @ terms.log_partition, drawn, drawn.oracle(oracle), tolerance=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_one_has_no_other_candidates(family):
    drawn = batch(family, n=1, keys=0)
    leaves = drawn.leaves()
    terms = drawn.terms(*leaves)
    (terms.log_partition - terms.positive_alignment).sum().backward()
    torch.testing.assert_close(terms.log_partition, terms.positive_alignment)
    for leaf in leaves:
        torch.testing.assert_close(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("family", FAMILIES)
def test_elements_of_half_precision_are_compared_in_float32(family):
    drawn = batch(family)
    x, y, scale = (leaf.detach().to(torch.bfloat16) for leaf in drawn.leaves())
    terms = drawn.terms(x, y, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        partition = terms.log_partition
    wanted = loss_oracle.log_partition(
        family, *(loss_oracle.unit(element.float().numpy()) for element in (x, y)), 7.0, drawn.queue
    )
    assert partition.dtype == torch.float32
    np.testing.assert_allclose(partition, wanted, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_repairing_exchanges_second_elements(family):
    drawn = batch(family)
    order = [2, 0, 1, 3, 5, 4]
    repaired = drawn.terms(*drawn.leaves()).repair(torch.tensor(order))
    x, y = loss_oracle.unit(drawn.x), loss_oracle.unit(drawn.y)[order]
    wanted = loss_oracle.log_partition(family, x, y, 7.0, drawn.queue)
    np.testing.assert_allclose(repaired.log_partition.detach(), wanted, rtol=1e-5)
    np.testing.assert_allclose(repaired.cosine.detach(), (x * y).sum(1), rtol=1e-5, atol=1e-6)


def test_elements_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape.*\(3, 4\).*\(2, 4\)"):
        CrossModalTerms(torch.ones(3, 4), torch.ones(2, 4), torch.tensor(1.0))
