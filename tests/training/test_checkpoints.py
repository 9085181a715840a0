"""The fingerprint of a model, by which a checkpoint knows what it started from: every value at its place."""

import pytest
import torch
from torch import nn

from hf_unlearn.training.checkpoints import fingerprint


def reverse_rows(model):
    weight = next(value for value in model.parameters() if value.ndim > 1)
    weight.data = weight.data.flip(0).contiguous()


def swap_two_values(model):
    weight = next(value for value in model.parameters() if value.ndim > 1).data.view(-1)
    weight[[0, 1]] = weight[[1, 0]]


def flip_a_bit(model):
    next(value for value in model.parameters() if value.ndim > 1).data.view(torch.int32)[0, 0] ^= 1


def swap_two_tensors(model):
    one, other = [value for value in model.parameters() if value.shape == next(model.parameters()).shape][:2]
    one.data, other.data = other.data, one.data


def other_statistics(model):
    next(value for name, value in model.named_buffers() if "running_mean" in name).add_(1)


def other_queue(model):
    model.queue.copy_(model.queue.flip(0))


@pytest.mark.parametrize("change", [reverse_rows, swap_two_values, flip_a_bit, other_statistics, other_queue])
def test_moved_values_and_other_buffers_are_another_model(encoder, change):
    model, _ = encoder("moco")
    before = fingerprint(model)
    assert fingerprint(encoder("moco")[0]) == before
    change(model)
    assert fingerprint(model) != before


def test_tensors_that_changed_places_are_another_model():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    before = fingerprint(model)
    swap_two_tensors(model)
    assert fingerprint(model) != before


def test_how_values_lie_in_memory_is_nothing_of_a_model(encoder):
    model, _ = encoder("simclr")
    before = fingerprint(model)
    assert fingerprint(model.to(memory_format=torch.channels_last)) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_type_of_numbers_has_one(dtype):
    model = nn.Linear(700, 700).to(dtype)  # more than are hashed at a time
    before = fingerprint(model)
    model.weight.data[-1, [-2, -1]] = model.weight.data[-1, [-1, -2]]
    assert fingerprint(model) != before


def holding(value):
    model = nn.Module()
    model.register_buffer("held", value)
    return model


def test_shape_and_type_are_part_of_it_and_complex_numbers_have_one():
    like = [torch.ones(4, 4), torch.ones(2, 8), torch.ones(4, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.int64)]
    like += [torch.zeros(4, 4), torch.zeros(2, 2), torch.zeros(0), torch.zeros(0, 3)]
    like += [torch.ones(4, 4, dtype=kind) for kind in (torch.complex64, torch.complex128)]
    assert len({fingerprint(holding(value)) for value in like}) == len(like)
    turned = torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128)
    assert fingerprint(holding(turned)) != fingerprint(holding(turned.conj()))


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no accelerator here")
def test_it_is_the_same_on_every_device(encoder):
    model, _ = encoder("moco")
    before = fingerprint(model)
    assert fingerprint(model.to(torch.accelerator.current_accelerator())) == before
