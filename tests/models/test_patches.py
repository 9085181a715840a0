"""Patch embeddings as matrix products give what the convolution gives."""

import copy

import pytest
import torch
from torch import nn

from hf_unlearn.models.patches import PatchConv2d, as_matrix_products


@pytest.mark.parametrize("size", [(12, 8), (13, 11)], ids=["whole", "with a rim"])
def test_values_and_gradients_are_the_convolutions(size):
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 5, kernel_size=4, stride=4).double()
    ours = copy.deepcopy(plain)
    as_matrix_products(ours)
    assert type(ours) is PatchConv2d and ours.state_dict().keys() == plain.state_dict().keys()
    outputs = []
    for module in (plain, ours):
        pixels = torch.randn(
            2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        found = module(pixels)
        found.square().sum().backward()
        outputs.append((found.detach(), module.weight.grad, module.bias.grad, pixels.grad))
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "settings", [{"stride": 2}, {"stride": 4, "padding": 1}, {"stride": 4, "dilation": 2}, {"stride": 4, "groups": 3}]
)
def test_other_convolutions_stay(settings):
    module = nn.Conv2d(3, 6, kernel_size=4, **settings)
    as_matrix_products(module)
    assert type(module) is nn.Conv2d
