import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, kstest
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as torchvision
from transformers import BitImageProcessor, SiglipImageProcessor

from hf_unlearn.data.views import VIEW_PRESETS, BatchedViews, ViewConfig
from hf_unlearn.errors import UserError

STILL = ViewConfig(
    crop_scale=(1.0, 1.0), flip=0.0, jitter_probability=0.0, grayscale=0.0, mean=(0.0,) * 3, std=(1.0,) * 3
)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("preset", VIEW_PRESETS)
def test_shape_and_normalisation(preset: str, images: torch.Tensor) -> None:
    config = replace(VIEW_PRESETS[preset], size=24)
    views = BatchedViews(config)(images, seed=1, count=3)
    assert views.shape == (6, 3, 3, 24, 24) and views.dtype == torch.float32
    pixels = views * torch.tensor(config.std).view(3, 1, 1) + torch.tensor(config.mean).view(3, 1, 1)
    assert -1e-5 < pixels.min() < 0.2 and 0.8 < pixels.max() < 1 + 1e-5


def test_a_seed_decides_the_views_and_the_global_state_is_untouched(images: torch.Tensor) -> None:
    views = BatchedViews(ViewConfig(blur=0.5))
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = views(images, seed=7)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1] and (np.random.get_state()[1] == before[2]).all()
    torch.manual_seed(2)
    assert torch.equal(views(images, seed=7), first)
    assert not torch.equal(views(images, seed=8), first)


def test_every_image_and_view_has_its_own_draw() -> None:
    picture = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(20, -1, -1, -1)
    views = BatchedViews(ViewConfig(jitter_probability=0.0, grayscale=0.0))(picture, seed=0, count=3).flatten(0, 1)
    assert len(views.flatten(1).unique(dim=0)) > 57  # of 60: two crops may coincide


def test_crops_are_distributed_as_torchvisions() -> None:
    # A picture whose channels are its coordinates tells which box a view shows: slopes give its size, centres its place
    ramp = torch.arange(32, dtype=torch.uint8) * 8
    picture = torch.stack(
        [ramp.expand(32, 32), ramp.view(32, 1).expand(32, 32), torch.zeros(32, 32, dtype=torch.uint8)]
    )
    views = BatchedViews(replace(STILL, crop_scale=(0.2, 1.0)))(picture.expand(1500, -1, -1, -1), seed=0)
    pixels = views.flatten(0, 1) * 255 / 8
    width = (pixels[:, 0, 16, 20] - pixels[:, 0, 16, 12]) * 4
    height = (pixels[:, 1, 20, 16] - pixels[:, 1, 12, 16]) * 4
    left = (pixels[:, 0, 16, 15] + pixels[:, 0, 16, 16] + 1 - width) / 2
    top = (pixels[:, 1, 15, 16] + pixels[:, 1, 16, 16] + 1 - height) / 2
    measured = torch.stack([top, left, height, width], dim=1)
    assert (measured - measured.round()).abs().max() < 1e-3  # whole pixels, resized with half-pixel centres
    torch.manual_seed(0)
    blank = torch.zeros(3, 32, 32)
    expected = torch.tensor([RandomResizedCrop.get_params(blank, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)])
    for ours, theirs in zip(measured.round().T, expected.T, strict=True):
        assert kstest(ours.numpy(), theirs.numpy()).pvalue > 1e-3
    area = [(boxes[:, 2] * boxes[:, 3]).numpy() for boxes in (measured.round(), expected)]
    ratio = [(boxes[:, 3] / boxes[:, 2]).numpy() for boxes in (measured.round(), expected)]
    assert kstest(*area).pvalue > 1e-3 and kstest(*ratio).pvalue > 1e-3


def test_crops_are_resized_as_torchvision_resizes_them() -> None:
    coarse = torch.randint(0, 256, (40, 3, 4, 5), dtype=torch.uint8)
    images = coarse.repeat_interleave(10, dim=2).repeat_interleave(10, dim=3)
    views = BatchedViews(replace(STILL, crop_scale=(0.2, 0.7)))
    torch.manual_seed(3)
    boxes = views._crop.forward_parameters(images.shape)["src"].long()
    cropped = views(images, seed=3, count=1)[:, 0]
    for view, image, box in zip(cropped, images / 255, boxes, strict=True):
        (left, top), (right, bottom) = box[0].tolist(), box[2].tolist()
        wanted = torchvision.resized_crop(
            image, top, left, bottom - top + 1, right - left + 1, [32, 32], antialias=False
        )
        # At the rim the pixels around the box show through by half a pixel, where torchvision repeats the box's own.
        torch.testing.assert_close(view[:, 1:-1, 1:-1], wanted[:, 1:-1, 1:-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["flip", "grayscale", "jitter_probability", "blur"])
def test_probabilities(name: str, images: torch.Tensor) -> None:
    views = BatchedViews(replace(STILL, **{name: 0.3}))(images[:1].expand(600, -1, -1, -1), seed=0, count=1)[:, 0]
    changed = (views - images[:1] / 255).abs().flatten(1).amax(1) > 1e-4
    assert binomtest(int(changed.sum()), 600, 0.3).pvalue > 1e-3


def test_flip_and_grayscale_are_torchvisions(images: torch.Tensor) -> None:
    flipped = BatchedViews(replace(STILL, flip=1.0))(images, seed=0, count=1)[:, 0]
    torch.testing.assert_close(flipped, images.flip(-1) / 255)
    gray = BatchedViews(replace(STILL, grayscale=1.0))(images, seed=0, count=1)[:, 0]
    torch.testing.assert_close(gray, torchvision.rgb_to_grayscale(images / 255, 3), atol=2e-4, rtol=0)


def test_jitter_is_torchvisions(images: torch.Tensor) -> None:
    views = BatchedViews(replace(STILL, jitter_probability=1.0))
    adjust = (
        torchvision.adjust_brightness,
        torchvision.adjust_contrast,
        torchvision.adjust_saturation,
        torchvision.adjust_hue,
    )
    orders = set()
    for seed in range(4):
        jittered = views(images, seed=seed, count=1)[:, 0]
        drawn = views._augment[-1]._params
        orders.add(tuple(drawn["order"].tolist()))
        for index, image in enumerate(images / 255):
            for step in drawn["order"].tolist():
                name = ("brightness", "contrast", "saturation", "hue")[step]
                image = adjust[step](image, drawn[f"{name}_factor"][index].item())
            torch.testing.assert_close(jittered[index], image, atol=1e-3, rtol=0)
    assert len(orders) > 1  # the order is drawn too


def test_jitter_strengths_are_torchvisions(images: torch.Tensor) -> None:
    views = BatchedViews(replace(STILL, jitter_probability=1.0))
    views(images[:1].expand(1000, -1, -1, -1), seed=0)
    drawn = views._augment[-1]._params
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.6, 1.4),
        ("hue", -0.1, 0.1),
    ):
        assert kstest(drawn[f"{name}_factor"].numpy(), "uniform", (low, high - low)).pvalue > 1e-3


def test_blur_is_torchvisions(images: torch.Tensor) -> None:
    views = BatchedViews(replace(STILL, blur=1.0, size=50))
    pictures = images.repeat(1, 1, 2, 2)[..., :50, :50]
    blurred = views(pictures, seed=0, count=1)[:, 0]
    for index, sigma in enumerate(views._augment[-1]._params["sigma"].tolist()):
        assert 0.1 <= sigma <= 2.0
        expected = torchvision.gaussian_blur(pictures[index] / 255, [5, 5], [sigma, sigma])
        torch.testing.assert_close(blurred[index], expected, atol=1e-4, rtol=0)


def test_plain_neither_crops_nor_jitters(images: torch.Tensor) -> None:
    config = VIEW_PRESETS["cifar"]
    expected = (images.numpy() / 255 - np.array(config.mean).reshape(3, 1, 1)) / np.array(config.std).reshape(3, 1, 1)
    np.testing.assert_allclose(BatchedViews(config).plain(images).numpy(), expected, atol=1e-5)
    assert BatchedViews(config).plain(images.repeat(1, 1, 2, 3)).shape == (6, 3, 32, 32)


def test_an_empty_batch_has_no_views(images: torch.Tensor) -> None:
    assert BatchedViews(ViewConfig())(images[:0], seed=0).shape == (0, 2, 3, 32, 32)


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8, dtype=torch.uint8)],
)
def test_only_uint8_rgb_batches_are_taken(wrong: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"uint8 RGB batches \[n, 3, H, W\]"):
        BatchedViews(ViewConfig())(wrong, seed=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", 0), ("crop_scale", (0.5, 0.2)), ("crop_scale", (0.0, 1.0)), ("flip", 1.5), ("blur", -0.1)],
)
def test_impossible_settings_are_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=field if field != "size" else "side"):
        ViewConfig(**{field: value})


def test_size_and_statistics_are_those_of_the_pictures_a_processor_prepares() -> None:
    crop = {"height": 24, "width": 24}
    views = ViewConfig(flip=0.1).matching(BitImageProcessor(size={"shortest_edge": 32}, crop_size=crop))
    assert (views.size, views.flip) == (24, 0.1)
    plain = SiglipImageProcessor(size=crop, do_normalize=False, image_mean=None, image_std=None)
    assert replace(ViewConfig().matching(plain), mean=(0.5,) * 3) == ViewConfig(
        size=24, mean=(0.5,) * 3, std=(1.0,) * 3
    )
    assert ViewConfig().matching(plain).mean == (0.0,) * 3


def test_oblong_pictures_have_no_views() -> None:
    oblong = SiglipImageProcessor(size={"height": 24, "width": 16})
    with pytest.raises(
        UserError, match="Views are square, but SiglipImageProcessor makes pictures of 24 x 16 pixels; "
    ):
        ViewConfig().matching(oblong)
