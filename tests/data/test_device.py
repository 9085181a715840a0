from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_unlearn.data.device import per_channel, to_device
from hf_unlearn.data.preprocessing import ImageViewPreprocessor
from hf_unlearn.data.views import VIEW_PRESETS, BatchedViews
from hf_unlearn.models.image_processor import image_processor_of

META = torch.device("meta")  # stands for an accelerator: a device that is not the CPU


class Copies(TorchDispatchMode):
    """Counts what is brought from one device to another."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += function is torch.ops.aten._to_copy.default and args[0].device != result.device
        return result


class Waits(TorchDispatchMode):
    """Collects what would make the host wait for a device: reading a value there, or a size that depends on one."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if args and isinstance(args[0], torch.Tensor) and args[0].device == META:
            masked = name in ("index", "index_put", "index_put_") and any(
                index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
            )
            back = name == "_to_copy" and result.device != META
            if masked or back or name in ("_local_scalar_dense", "nonzero", "masked_select"):
                self.seen.append(name)
        return result


@pytest.mark.parametrize("preset", VIEW_PRESETS)
def test_drawing_views_does_not_wait_for_the_device(preset, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for this device
    views = BatchedViews(VIEW_PRESETS[preset])
    pixels = torch.zeros(8, 3, 32, 32, dtype=torch.uint8, device=META)
    draws = views.draw(16, torch.device("cpu"), seed=0).to(META)  # which has no generator
    views.transform(pixels, draws)  # the first time, the tables
    with Copies() as copies, Waits() as waits:
        assert views.transform(pixels, draws).device == META
    assert waits.seen == []
    assert copies.count == 0


def test_a_mask_that_the_host_must_wait_for_is_seen():
    with Waits() as waits:
        torch.zeros(3, 2, device=META)[torch.tensor([True, False, True])] = torch.zeros(2, 2, device=META)
    assert waits.seen


def test_a_step_brings_no_constant_to_the_device():
    preprocessor = ImageViewPreprocessor(image_processor_of(VIEW_PRESETS["light"]), VIEW_PRESETS["light"])
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8, device=META)
    preprocessor.normalise(pixels)  # the first time, the constants
    with Copies() as copies:
        preprocessor.normalise(pixels)
        preprocessor.views.plain(pixels)
    assert copies.count == 0


def test_constants_are_copied_to_a_device_once():
    values = (0.1, 0.2, 0.3)
    for device in (torch.device("cpu"), META):
        first = per_channel(values, device)
        assert first.shape == (3, 1, 1) and first.dtype == torch.float32 and first.device == device
        assert per_channel(values, device) is first
    assert torch.equal(per_channel(values, torch.device("cpu")).flatten(), torch.tensor(values))


def test_constants_first_asked_for_in_inference_mode_serve_training():
    with torch.inference_mode():
        constants = per_channel((0.7, 0.8, 0.9), torch.device("cpu"))
    picture = torch.ones(3, 2, 2, requires_grad=True)
    (picture * constants).sum().backward()
    assert torch.equal(picture.grad, constants.expand(3, 2, 2))


def test_values_arrive_unchanged():
    values = torch.arange(5)
    assert to_device(values, torch.device("cpu")) is values
    assert to_device(values, META).device == META
