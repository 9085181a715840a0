"""What was measured of image processors, against those processors themselves on pictures they were not measured on."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    EfficientNetImageProcessor,
    Siglip2ImageProcessor,
    SiglipImageProcessor,
)

from hf_unlearn.data.preprocessing import ImageViewPreprocessor
from hf_unlearn.data.resizing import Preparation
from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.errors import UserError
from hf_unlearn.models.image_processor import image_processor_of

SIDE = {"height": 24, "width": 24}
# As google's weights have it: pixels in [-1, 1], without mean and standard deviation.
ALIGN = {"size": SIDE, "crop_size": SIDE, "rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}
PROCESSORS = {
    "clip": CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=SIDE),
    "cropped": BitImageProcessor(size={"shortest_edge": 32}, crop_size=SIDE),
    "padded": CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SIDE),
    "siglip": SiglipImageProcessor(size=SIDE),
    "align": EfficientNetImageProcessor(**ALIGN, include_top=False),
    "efficientnet": EfficientNetImageProcessor(size=SIDE, crop_size=SIDE, include_top=True),
    "offset, divided twice": EfficientNetImageProcessor(**{**ALIGN, "do_normalize": True}, include_top=True),
    "rescaled alone": CLIPImageProcessor(size=SIDE, do_center_crop=False, do_normalize=False),
    "without statistics": SiglipImageProcessor(size=SIDE, do_normalize=False, image_mean=None, image_std=None),
    "normalised alone": CLIPImageProcessor(size=SIDE, do_center_crop=False, do_rescale=False),
    "neither": CLIPImageProcessor(size=SIDE, do_center_crop=False, do_rescale=False, do_normalize=False),
    "oblong": CLIPImageProcessor(size={"height": 24, "width": 16}, do_center_crop=False),
}


@pytest.fixture(scope="module")
def pictures():
    """Noise of several shapes, with whole black and white areas, where padding and clipping would show."""
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((24, 24), (50, 31), (20, 70))]
    for array in arrays:
        array[:10], array[10:13] = 255, 0
    return [Image.fromarray(array) for array in arrays]


@pytest.mark.parametrize("name", PROCESSORS)
def test_batches_hold_what_the_processor_gives(name, pictures, prepared):
    processor = PROCESSORS[name]
    wanted = processor(pictures, return_tensors="pt")["pixel_values"].float()
    found = prepared(processor, pictures)
    assert found.shape == wanted.shape and found.dtype == torch.float32
    level = (wanted.amax() - wanted.amin()) / 255
    torch.testing.assert_close(found, wanted, atol=1e-3 * level, rtol=1e-5)


@pytest.fixture(scope="module")
def prepared(tiny_clip):
    """A function from an image processor and pictures to the pixel values of a batch."""
    from transformers import AutoProcessor

    from hf_unlearn.data.preprocessing import ImageTextPreprocessor

    def build(image_processor, pictures):
        processor = AutoProcessor.from_pretrained(tiny_clip)
        processor.image_processor = image_processor
        preprocessor = ImageTextPreprocessor(processor, max_length=8)
        encoded = preprocessor.encode({"image": pictures, "captions": ["a red circle"] * len(pictures)})
        assert encoded["pixels"].dtype == torch.uint8
        return preprocessor.batch(encoded, None)["pixel_values"]

    return build


@pytest.mark.parametrize(
    "processor",
    [PROCESSORS["clip"], PROCESSORS["siglip"], *(image_processor_of(views) for views in VIEW_PRESETS.values())],
)
def test_a_processors_own_statistics_are_kept_to_the_last_bit(processor):
    found = Preparation.of(processor)
    assert (found.mean, found.std) == (tuple(processor.image_mean), tuple(processor.image_std))
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    views = ImageViewPreprocessor(processor, VIEW_PRESETS["light"])
    assert torch.equal(views.normalise(pixels), (pixels.float() * processor.rescale_factor - mean) / std)


def test_statistics_that_are_not_used_are_not_taken():
    processor = CLIPImageProcessor(size=SIDE, do_center_crop=False, do_normalize=False)
    found = Preparation.of(processor)
    assert processor.image_mean and (found.mean, found.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    "processor",
    [
        Siglip2ImageProcessor(),  # patches of a number that varies
        CLIPImageProcessor(do_resize=False, do_center_crop=False),
    ],
)
def test_processors_without_a_fixed_size_are_refused(processor):
    name = type(processor).__name__
    with pytest.raises(UserError, match=rf"{name} does not give pictures \[3, height, width\] of one fixed size.*; "):
        Preparation.of(processor)


class Gamma(CLIPImageProcessor):
    """Brightens what it prepares, which no scale and shift can do."""

    def rescale_and_normalize(self, images, do_rescale, *arguments):
        return (images / 255.0) ** 0.5 if do_rescale else images


class Standardised(CLIPImageProcessor):
    """Gives every picture a mean of zero, whatever it was."""

    def rescale_and_normalize(self, images, do_rescale, *arguments):
        return images.float() - images.float().mean() if do_rescale else images


@pytest.mark.parametrize("kind", [Gamma, Standardised])
def test_processors_that_do_more_than_scale_and_shift_are_refused(kind):
    with pytest.raises(UserError, match=f"{kind.__name__} does more to pixels than to scale and shift each channel.*;"):
        Preparation.of(kind(size=SIDE, do_center_crop=False))
