import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from kernels import Kernels
from scipy.stats import binomtest, chisquare, kstest
from torchvision.transforms import (
    ColorJitter,
    Compose,
    RandomApply,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
)
from torchvision.transforms import functional as torchvision
from transformers import BitImageProcessor, SiglipImageProcessor

from hf_unlearn.data.crops import box_probabilities, box_table
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


def test_crops_are_torchvisions_to_the_rim() -> None:
    images = torch.randint(0, 256, (40, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    scale = (0.2, 0.7)
    views = BatchedViews(replace(STILL, crop_scale=scale, flip=0.5))
    draws = views.draw(40, images.device, seed=3)
    table = box_table(40, 50, scale, 0.5, 32, images.device)
    entries = torch.searchsorted(table.cumulated, draws[0], right=True)
    for view, image, geometry, place in zip(
        views.transform(images, draws)[:, 0], images / 255, table.geometry[entries], draws[1:3].T, strict=True
    ):
        width, height = (geometry[0].abs() * torch.tensor([50, 40])).round().int().tolist()
        left, top = (int(share * room) for share, room in zip(place.tolist(), (51 - width, 41 - height), strict=True))
        wanted = torchvision.resized_crop(image, top, left, height, width, [32, 32], antialias=False)
        wanted = wanted.flip(-1) if geometry[0, 0] < 0 else wanted
        torch.testing.assert_close(view, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(32, 32, (0.2, 1.0)), (9, 9, (0.5, 1.0)), (8, 20, (0.3, 0.9)), (7, 7, (0.5, 0.5))]
)
def test_probabilities_of_boxes_are_those_of_torchvisions_tries(height, width, scale) -> None:
    probabilities = box_probabilities(height, width, scale)
    assert probabilities.shape == (height, width) and probabilities.sum() == pytest.approx(1)
    torch.manual_seed(0)
    blank, seen = torch.zeros(3, height, width), np.zeros((height, width))
    for _ in range(5000):
        _, _, h, w = RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3])
        seen[h - 1, w - 1] += 1
    assert (seen[probabilities == 0] == 0).all()
    often = 5000 * probabilities > 5
    observed, expected = ([*counts[often], counts[~often].sum()] for counts in (seen, 5000 * probabilities))
    assert chisquare(np.array(observed) + 1e-9, np.array(expected) + 1e-9).pvalue > 1e-3


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


ADJUST = (
    torchvision.adjust_brightness,
    torchvision.adjust_contrast,
    torchvision.adjust_saturation,
    torchvision.adjust_hue,
)


def strengths_and_orders(config: ViewConfig, draws: torch.Tensor) -> Iterator[tuple[tuple[int, ...], list[float]]]:
    """What the draws of views that are all jittered and never grey stand for."""
    orders = list(permutations(range(4)))
    for order, *strengths in draws[3:8].T.tolist():
        low = [max(0.0, 1 - strength) for strength in config.jitter[:3]] + [-config.jitter[3]]
        high = [1 + strength for strength in config.jitter[:3]] + [config.jitter[3]]
        yield (
            orders[int(order * 24)],
            [a + (b - a) * share for a, b, share in zip(low, high, strengths, strict=True)],
        )


@pytest.mark.parametrize(("low", "high", "jitter"), [(90, 150, (0.2, 0.2, 0.2, 0.1)), (0, 256, (0.4, 0.4, 0.4, 0.1))])
def test_jitter_is_torchvisions_in_every_order(low, high, jitter) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(low, high, (300, 3, 8, 8), dtype=torch.uint8, generator=generator)
    config = replace(STILL, size=8, jitter=jitter, jitter_probability=1.0)
    views = BatchedViews(config)
    draws = views.draw(len(images), images.device, seed=1)
    jittered, orders, wanted = views.transform(images, draws)[:, 0], set(), []
    for image, (order, strengths) in zip(images / 255, strengths_and_orders(config, draws), strict=True):
        orders.add(order)
        for step in order:
            image = ADJUST[step](image, strengths[step])
        wanted.append(image)
    distance = (jittered - torch.stack(wanted)).abs()
    assert len(orders) == 24
    if high < 256:  # no clamp cuts a pixel
        assert distance.max() < 2e-5
    else:  # one that does so before the hue shift may move its middle channel
        assert (distance > 1 / 255).float().mean() < 0.08 and distance.mean() < 3e-3


STEPS = {
    "brightness": {"jitter": (0.4, 0.0, 0.0, 0.0), "jitter_probability": 0.8},
    "contrast": {"jitter": (0.0, 0.4, 0.0, 0.0), "jitter_probability": 0.8},
    "saturation": {"jitter": (0.0, 0.0, 0.4, 0.0), "jitter_probability": 0.8},
    "hue": {"jitter": (0.0, 0.0, 0.0, 0.1), "jitter_probability": 0.8},
    "grayscale": {"grayscale": 0.3},
    "crop and flip": {"crop_scale": (0.2, 1.0), "flip": 0.5},
    "all": {
        "crop_scale": (0.2, 1.0), "flip": 0.5, "jitter": (0.4, 0.4, 0.4, 0.1), "jitter_probability": 0.8,
        "grayscale": 0.2,
    },
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_views_are_distributed_as_torchvisions(step: str) -> None:
    # A picture of few pixels, so that thousands of draws take a second; its colours reach the rim of the cube.
    picture = torch.randint(0, 256, (1, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    config, count = replace(STILL, size=12, **STEPS[step]), 2000
    drawn = BatchedViews(config)(picture, seed=5, count=count)[0]
    torch.manual_seed(6)
    theirs = Compose(
        [
            RandomResizedCrop(12, scale=config.crop_scale, antialias=False)
            if config.crop_scale[0] < 1
            else torch.nn.Identity(),
            RandomHorizontalFlip(config.flip),
            RandomApply([ColorJitter(*config.jitter)], config.jitter_probability),
            RandomGrayscale(config.grayscale),
        ]
    )
    expected = torch.stack([theirs(picture[0] / 255) for _ in range(count)])
    for ours, wanted in zip(statistics(drawn), statistics(expected), strict=True):
        assert kstest(ours, wanted).pvalue > 1e-3  # quantiles
        spread = max(float(wanted.std()), 1e-3)
        assert abs(ours.mean() - wanted.mean()) < 0.12 * spread  # moments: 3.8 standard errors of the difference
        assert ours.std() == pytest.approx(wanted.std(), rel=0.1, abs=1e-3)


def statistics(views: torch.Tensor) -> list[np.ndarray]:
    """`[n]` numbers of every view: means of the channels, contrast, saturation, one pixel and left against right."""
    flat = views.flatten(2)
    grey = torchvision.rgb_to_grayscale(views).flatten(1)
    saturation = (flat.amax(1) - flat.amin(1)).mean(1)
    halves = grey.unflatten(1, (12, 12))
    difference = (halves[..., :6] - halves[..., 6:]).mean((1, 2))
    parts = [*flat.mean(2).unbind(1), grey.std(1), saturation, flat[:, 0, 70], difference]
    return [(part * 4096).round().numpy() / 4096 for part in parts]  # ties, where a step leaves a number as it is


def test_blur_is_torchvisions(images: torch.Tensor) -> None:
    views = BatchedViews(replace(STILL, blur=1.0, size=50))
    pictures = images.repeat(1, 1, 2, 2)[..., :50, :50]
    draws = views.draw(len(pictures), pictures.device, seed=0)
    for view, picture, share in zip(views.transform(pictures, draws)[:, 0], pictures, draws[9].tolist(), strict=True):
        sigma = 0.1 + 1.9 * share
        expected = torchvision.gaussian_blur(picture / 255, [5, 5], [sigma, sigma])
        torch.testing.assert_close(view, expected, atol=1e-4, rtol=0)


def test_views_cost_few_operations_and_no_read_on_the_host(images: torch.Tensor) -> None:
    for name, most in (("cifar", 40), ("imagenet", 55)):
        views = BatchedViews(replace(VIEW_PRESETS[name], size=32))
        views(images, seed=0)  # the first time, the tables
        with Kernels() as kernels:
            views(images, seed=1)
        assert kernels.count <= most and not kernels.waits


def test_bfloat16_autocast_leaves_views_as_they_are(images: torch.Tensor) -> None:
    views = BatchedViews(ViewConfig())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(views(images, seed=0), BatchedViews(ViewConfig())(images, seed=0))
    assert torch.equal(views(images, seed=0), views(images, seed=0))


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
