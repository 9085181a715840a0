"""What attackers see of one model."""

import copy

import numpy as np
import pytest
import torch

from hf_unlearn.benchmarks.attack_signals import _PairSignals, _ViewSignals, drawn
from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.training.preprocessor import make_preprocessor


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
    retain, test = (EncodedSplit(shapes.select(rows), preprocessor) for rows in (range(20), range(20, 50)))
    signals = _ViewSignals({}, preprocessor)
    collapsed = copy.deepcopy(model)
    with torch.no_grad():
        for weight in collapsed.parameters():
            weight.fill_(0 if weight.ndim > 1 else 1)  # features are those of the biases
    assert signals.alignment_and_images(collapsed, retain)[0].min() == pytest.approx(1)
    assert signals.knowledge(collapsed, retain, test) == pytest.approx(0.5, abs=0.1)
    assert 0 <= signals.knowledge(model, retain, test) <= 1


def test_an_image_text_model_knows_retain_by_its_mean_alignment(encoder, shapes):
    model, processor = encoder("clip")
    preprocessor = make_preprocessor(model, processor, DataConfig())
    retain, test = (EncodedSplit(shapes.select(rows), preprocessor) for rows in (range(20), range(20, 50)))
    signals = _PairSignals({}, preprocessor)
    assert signals.knowledge(model, retain, test) == pytest.approx(
        signals.alignment_and_images(model, retain)[0].mean()
    )
