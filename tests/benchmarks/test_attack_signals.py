"""What attackers see of one model."""

import copy

import numpy as np
import pytest
import torch

from hf_unlearn.benchmarks.attack_signals import _PairSignals, _ViewSignals, drawn
from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.training.rows import make_preprocessor


def test_rows_are_a_draw_that_their_order_does_not_matter_to():
    """Rows may be sorted by class: the first ones would be of one class alone."""
    rows = drawn(1_000, 100)
    assert rows == sorted(set(rows)) == drawn(1_000, 100) and len(rows) == 100
    assert np.bincount(np.array(rows) // 100, minlength=10).min() >= 3
    assert drawn(5, 100) == [0, 1, 2, 3, 4]


def test_a_view_encoder_whose_features_collapse_knows_nothing(encoder, shapes):
    """Its alignments are all 1, as on the line between two basins: their mean would show no barrier."""
    model, processor = encoder("simclr")
    preprocessor = make_preprocessor(model, processor, DataConfig(views="light"))
    parts = {"retain": range(20), "test": range(20, 50)}
    splits = {name: EncodedSplit(shapes.select(rows), preprocessor) for name, rows in parts.items()}
    signals = _ViewSignals({}, preprocessor)
    collapsed = copy.deepcopy(model)
    with torch.no_grad():
        for weight in collapsed.parameters():
            weight.fill_(0 if weight.ndim > 1 else 1)  # features are those of the biases
    seen = {name: signals.alignment_and_images(collapsed, split)[0] for name, split in splits.items()}
    assert seen["retain"].min() == pytest.approx(1)
    assert signals.knowledge(seen.__getitem__) == pytest.approx(0.5, abs=0.1)
    assert signals.knowledge({"retain": np.array([0.9, 0.8]), "test": np.array([0.1, 0.2])}.__getitem__) == 1


def test_an_image_text_model_knows_retain_by_its_mean_alignment(encoder):
    model, processor = encoder("clip")
    signals = _PairSignals({}, make_preprocessor(model, processor, DataConfig()))
    assert signals.knowledge({"retain": np.array([0.9, 0.7])}.__getitem__) == pytest.approx(0.8)
