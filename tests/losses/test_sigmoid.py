"""SigLIP's own loss against double loops in float64, and against transformers' SigLIP."""

import math

import numpy as np
import pytest
import torch
from transformers import SiglipConfig, SiglipModel

from hf_unlearn.losses import SigmoidTerms, info_nce
from hf_unlearn.losses.sigmoid import softplus_sums
from hf_unlearn.models.contrastive import contrastive_terms


def drawn(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, n, 4, generator=generator).unbind()
    return [value.requires_grad_() for value in (x, y, torch.tensor(7.0), torch.tensor(-3.0))]


def oracle(x, y, scale, bias):
    """`[n]` losses: each pair true or false, half of every false one on either side."""
    x, y = (half / np.linalg.norm(half, axis=1, keepdims=True) for half in (x, y))
    losses = []
    for i in range(len(x)):
        loss = math.log1p(math.exp(-(scale * (x[i] @ y[i]) + bias)))
        for j in range(len(x)):
            if j != i:
                for one, other in ((i, j), (j, i)):
                    loss += math.log1p(math.exp(scale * (x[one] @ y[other]) + bias)) / 2
        losses.append(loss)
    return np.array(losses)


@pytest.mark.parametrize("seed", range(3))
def test_log_partition_minus_alignment_is_the_sigmoid_loss(seed):
    leaves = drawn(seed=seed)
    terms = SigmoidTerms(*leaves)
    wanted = oracle(*(leaf.detach().double().numpy() for leaf in leaves))
    np.testing.assert_allclose((terms.log_partition - terms.positive_alignment).detach(), wanted, rtol=1e-5)
    mask = torch.tensor([True, False, True, True, False, True])
    assert info_nce(terms, mask).item() == pytest.approx(wanted[mask.numpy()].mean(), rel=1e-5)


def test_the_gradient_is_that_of_the_double_loops():
    leaves = drawn(seed=4)
    weights = torch.arange(1.0, 7.0)
    terms = SigmoidTerms(*leaves)
    (weights @ (terms.log_partition - terms.positive_alignment)).backward()
    values = [leaf.detach().double().numpy() for leaf in leaves]
    for place, leaf in enumerate(leaves):
        for index in np.ndindex(values[place].shape):
            moved = []
            for step in (1e-5, -1e-5):
                shifted = [value.copy() for value in values]
                shifted[place][index] += step
                moved.append(weights.double().numpy() @ oracle(*shifted))
            assert leaf.grad[index].item() == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-3, abs=2e-4)


@pytest.mark.parametrize("both", [True, False])
def test_blocks_give_what_the_whole_matrix_gives(both):
    results = []
    for elements in (1, 7, 10**6):
        leaves = drawn(n=9, seed=2)
        rows, columns = softplus_sums(*leaves, both=both, block_elements=elements)
        (rows.square().sum() + columns.square().sum()).backward()
        results.append([rows.detach(), columns.detach(), *(leaf.grad for leaf in leaves)])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-5)


def test_memory_is_linear_in_the_batch():
    n = 6000
    x = torch.randn(n, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        saved: list[int] = []
        softplus_sums(x, x, torch.tensor(1.0), torch.tensor(0.0))
    assert max(saved) == n * 4  # never [n, n]


def test_it_is_the_loss_that_transformers_trains_siglip_with():
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 20, "max_position_embeddings": 6, "projection_size": 8}
    config = SiglipConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8})
    torch.manual_seed(0)
    model = SiglipModel(config).eval()
    model.logit_scale.data.fill_(1.5), model.logit_bias.data.fill_(-2.0)
    inputs = {"pixel_values": torch.randn(5, 3, 16, 16), "input_ids": torch.randint(0, 20, (5, 6))}
    terms = contrastive_terms(model, inputs)
    loss = info_nce(terms, torch.ones(5))
    torch.testing.assert_close(loss, model(**inputs, return_loss=True).loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    assert model.logit_bias.grad.abs() > 0 and model.logit_scale.grad.abs() > 0
