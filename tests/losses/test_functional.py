"""The loss terms and the methods' losses against double loops in float64, values and gradients."""

import loss_oracle
import pytest
import torch
from loss_batches import FAMILIES, UNLEARN, assert_value_and_gradient, batch

from hf_unlearn.losses import info_nce, l1_norm, masked_mean, negative_alignment, similarity_drift
from hf_unlearn.losses.functional import derangement, shares, weighted_info_nce

EPSILON = 1 / 9  # of a 10% request


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unlearn", UNLEARN)
def test_info_nce_of_a_part_contrasts_with_the_whole_batch(family, unlearn):
    drawn = batch(family, seed=1)
    mask = UNLEARN[unlearn]
    oracle = drawn.oracle(loss_oracle.info_nce, mask)
    assert_value_and_gradient(lambda terms: info_nce(terms, torch.tensor(mask)), drawn, oracle)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unlearn", UNLEARN)
def test_negative_alignment_is_the_mean_over_ordered_pairs(family, unlearn):
    drawn = batch(family, seed=2)
    mask = UNLEARN[unlearn]

    def oracle(x, y, scale):
        return loss_oracle.negative_alignment(loss_oracle.unit(x), loss_oracle.unit(y), float(scale), mask)

    assert_value_and_gradient(lambda terms: negative_alignment(terms, torch.tensor(mask)), drawn, oracle)


@pytest.mark.parametrize("unlearn", UNLEARN)
def test_similarity_drift_is_the_mean_over_ordered_pairs(unlearn):
    drawn, kept = (batch("cross_modal", seed=seed) for seed in (3, 4))
    mask = UNLEARN[unlearn]
    elements = loss_oracle.unit(kept.x), loss_oracle.unit(kept.y)

    def oracle(x, y, scale):
        return loss_oracle.similarity_drift(loss_oracle.unit(x), loss_oracle.unit(y), *elements, mask)

    given = [torch.tensor(element, dtype=torch.float32) for element in elements]
    assert_value_and_gradient(lambda terms: similarity_drift(terms, *given, torch.tensor(mask)), drawn, oracle)
    if sum(mask) > 1:
        assert oracle(drawn.x, drawn.y, 1.0) > 0.01


def test_similarities_that_did_not_change_have_no_drift():
    drawn = batch("cross_modal", seed=5)
    terms = drawn.terms(*drawn.leaves())
    drift = similarity_drift(terms, terms.x.detach(), terms.y.detach(), torch.ones(6, dtype=torch.bool))
    drift.backward()
    assert abs(drift.item()) < 1e-6


@pytest.mark.parametrize("unlearn", UNLEARN)
def test_masked_mean_averages_members_only(unlearn):
    values = torch.arange(1.0, 7.0, requires_grad=True)
    mask = torch.tensor(UNLEARN[unlearn])
    mean = masked_mean(values, mask)
    mean.backward()
    count = max(1, int(mask.sum()))
    assert mean.item() == pytest.approx(sum(v for v, m in zip(range(1, 7), mask, strict=True) if m) / count)
    torch.testing.assert_close(values.grad, mask / count)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unlearn", ["none", "one"])
def test_terms_without_anything_to_average_are_zero_with_zero_gradient(family, unlearn):
    drawn = batch(family)
    mask = torch.tensor(UNLEARN[unlearn])
    nobody = torch.zeros(6, dtype=torch.bool)
    for term in (
        lambda terms: negative_alignment(terms, mask),
        lambda terms: masked_mean(terms.log_partition, nobody),
        lambda terms: info_nce(terms, nobody),
        lambda terms: weighted_info_nce(terms, torch.zeros(6)),
    ):
        leaves = drawn.leaves()
        loss = term(drawn.terms(*leaves))
        loss.backward()
        assert loss.item() == 0
        assert all(leaf.grad is None or leaf.grad.abs().max() == 0 for leaf in leaves)


@pytest.mark.parametrize("family", FAMILIES)
def test_weighted_info_nce_has_the_weights_sum_as_normaliser(family):
    drawn = batch(family, seed=4)
    weight = [1.0, 0.5, 1.0, 0.5, 0.5, 2.0]

    def oracle(name, x, y, scale, queue):
        partition = loss_oracle.log_partition(name, x, y, scale, queue)
        return sum(w * (p - scale * a @ b) for w, p, a, b in zip(weight, partition, x, y, strict=True)) / sum(weight)

    assert_value_and_gradient(lambda terms: weighted_info_nce(terms, torch.tensor(weight)), drawn, drawn.oracle(oracle))


def test_l1_norm_is_the_sum_of_absolute_values_over_parameters():
    parameters = [torch.tensor([[1.0, -2.0]], requires_grad=True), torch.tensor(-0.5, requires_grad=True)]
    norm = l1_norm(parameters)
    norm.backward()
    assert norm.item() == 3.5
    assert [parameter.grad.tolist() for parameter in parameters] == [[[1.0, -1.0]], -1.0]


@pytest.mark.parametrize("unlearn", UNLEARN)
def test_a_derangement_moves_every_member_and_nobody_else(unlearn):
    mask = torch.tensor(UNLEARN[unlearn])
    for seed in range(20):
        torch.manual_seed(seed)
        order = derangement(mask)
        assert sorted(order.tolist()) == list(range(6))
        for i, other in enumerate(order.tolist()):
            assert mask[i] == mask[other]
            assert (other != i) == bool(mask[i] and mask.sum() > 1)


def test_a_derangement_gives_every_other_member_the_same_chance():
    torch.manual_seed(0)
    mask = torch.tensor([True, False, True, True, True])
    drawn = torch.stack([derangement(mask) for _ in range(3000)])
    shares = torch.stack([(drawn[:, 0] == other).float().mean() for other in (2, 3, 4)])
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.05, rtol=0)


def alignment_calibration(terms, unlearn, alpha, beta, gamma):
    """Eq. 5 from the library's parts, as the method composes them."""
    mask = torch.tensor(unlearn)
    return info_nce(terms, ~mask) + EPSILON * (
        -alpha * negative_alignment(terms, mask)
        + beta * masked_mean(terms.positive_alignment, mask)
        + gamma * masked_mean(terms.log_partition, mask)
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unlearn", UNLEARN)
def test_alignment_calibration_equals_double_loops(family, unlearn):
    drawn, mask = batch(family, seed=5), UNLEARN[unlearn]
    oracle = drawn.oracle(loss_oracle.alignment_calibration, mask, EPSILON, 0.8, 1.3, 0.6)
    assert_value_and_gradient(lambda terms: alignment_calibration(terms, mask, 0.8, 1.3, 0.6), drawn, oracle)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_calibration_only_retain_info_nce_is_left(family):
    drawn, mask = batch(family, seed=6), UNLEARN["several"]
    oracle = drawn.oracle(loss_oracle.info_nce, [not member for member in mask])
    assert_value_and_gradient(lambda terms: alignment_calibration(terms, mask, 0, 0, 0), drawn, oracle)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_against_betas_gradient_lowers_unlearn_alignment(family):
    drawn, mask = batch(family, seed=7), torch.tensor(UNLEARN["several"])
    leaves = drawn.leaves()
    before = drawn.terms(*leaves)
    masked_mean(before.positive_alignment, mask).backward()
    after = drawn.terms(*(leaf.detach() - 0.1 * leaf.grad for leaf in leaves[:2]), leaves[2])
    assert (after.cosine < before.cosine)[mask].all()
    torch.testing.assert_close(after.cosine[~mask], before.cosine[~mask])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_the_published_construction_equals_double_loops(family, alpha):
    drawn, mask = batch(family, seed=8), UNLEARN["several"]
    other = [0, 3, 2, 4, 1, 5]
    oracle = drawn.oracle(loss_oracle.reference_alignment_calibration, mask, EPSILON, alpha, 2.0, other)

    def loss(terms):
        unlearn = torch.tensor(mask)
        mixed = weighted_info_nce(terms.repair(torch.tensor(other)), ~unlearn + alpha * unlearn)
        return mixed + 2.0 * EPSILON / (1 + EPSILON) * masked_mean(terms.cosine, unlearn)

    assert_value_and_gradient(loss, drawn, oracle)


@pytest.mark.parametrize("family", ["cross_modal", "two_view"])  # a queue's candidates change with the partner
def test_the_published_loss_is_equation_5_times_the_retain_share(family):
    drawn, mask = batch(family, seed=9), UNLEARN["two"]  # two members: the only partner is the other one
    equation_5 = drawn.oracle(loss_oracle.alignment_calibration, mask, 2 / 4, 1.0, 0.0, 1.0)

    def published(terms):
        return weighted_info_nce(terms.repair(torch.tensor([4, 1, 2, 3, 0, 5])), torch.ones(6))

    assert_value_and_gradient(published, drawn, lambda *arrays: 4 / 6 * equation_5(*arrays))


@pytest.mark.parametrize("unlearn", UNLEARN)
def test_shares_are_those_of_means_and_of_partners(unlearn):
    mask = torch.tensor(UNLEARN[unlearn])
    count = int(mask.sum())
    counts = [6 - count, count, count - 1]
    wanted = [side / n if n > 0 else torch.zeros(6) for side, n in zip((~mask, mask, mask), counts, strict=True)]
    torch.testing.assert_close(shares(mask), torch.stack(wanted))
    assert shares(mask) is shares(mask)  # kept for a mask that comes again, and for no other
    torch.testing.assert_close(shares(~mask)[0], wanted[1])
