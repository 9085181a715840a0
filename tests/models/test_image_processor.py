from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor

from hf_unlearn.data.views import VIEW_PRESETS, BatchedViews, ViewConfig
from hf_unlearn.models.image_processor import image_processor_of


@pytest.mark.parametrize("preset", VIEW_PRESETS)
def test_the_saved_processor_prepares_what_plain_views_prepare(preset: str, tmp_path: Path) -> None:
    views = VIEW_PRESETS[preset]
    image_processor_of(views).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    for height, width in ((views.size, views.size), (90, 61)):
        images = torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8)
        prepared = processor(list(images), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(BatchedViews(views).plain(images), prepared, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("preset", VIEW_PRESETS)
def test_views_take_size_and_normalisation_from_a_processor(preset: str) -> None:
    processor = image_processor_of(VIEW_PRESETS[preset])
    views = ViewConfig(size=9, flip=0.1).matching(processor)
    assert (views.size, views.mean, views.std) == tuple(
        getattr(VIEW_PRESETS[preset], n) for n in ("size", "mean", "std")
    )
    assert views.flip == 0.1
    processor.size = {"shortest_edge": 17}
    assert views.matching(processor).size == 17
