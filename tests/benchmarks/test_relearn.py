"""Few-shot relearning of a tiny CLIP on drawn shapes."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from hf_unlearn.benchmarks.attack_signals import relearn
from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.errors import UserError
from hf_unlearn.methods.fine_tune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.training.rows import make_preprocessor


@pytest.fixture(scope="module")
def parts(tiny_clip, shapes, tmp_path_factory):
    model, processor = load_encoder(str(tiny_clip))
    config = FineTuneConfig(
        output_dir=str(tmp_path_factory.mktemp("relearn")),
        use_cpu=True,
        disable_tqdm=True,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        report_to="none",
    )
    encoded = EncodedSplit(shapes.select(range(20)), make_preprocessor(model, processor, DataConfig()))
    return model, processor, config, encoded


def weight_sum(model) -> float:
    return sum(p.detach().double().sum().item() for p in model.parameters())


def test_measures_the_weights_that_fine_tune_passes_through(parts):
    model, processor, config, encoded = parts
    before = {name: value.clone() for name, value in model.state_dict().items()}
    curve = relearn(model, config, encoded, processor, weight_sum, steps=4)
    assert curve.shape == (5,) and curve[0] == weight_sum(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert config.max_steps == -1  # the caller's config is its own

    config.max_steps = 4
    trainer = FineTuneTrainer(deepcopy(model), config, {"retain": encoded}, processing_class=processor)
    trainer.train()
    config.max_steps = -1
    assert curve[-1] == pytest.approx(weight_sum(trainer.model), abs=1e-9)


def test_several_numbers_can_be_measured_every_few_updates(parts):
    model, processor, config, encoded = parts
    curve = relearn(model, config, encoded, processor, weight_sum, steps=4)
    pairs = relearn(model, config, encoded, processor, lambda m: (weight_sum(m), 1.0), steps=4, every=2)
    np.testing.assert_array_equal(pairs, np.stack([curve[::2], np.ones(3)], 1))


def test_every_model_sees_the_same_batches(parts):
    model, processor, config, encoded = parts
    first = relearn(model, config, encoded, processor, weight_sum, steps=2)
    torch.manual_seed(99)
    np.testing.assert_array_equal(first, relearn(model, config, encoded, processor, weight_sum, steps=2))


def test_no_steps_are_refused(parts):
    model, processor, config, encoded = parts
    with pytest.raises(UserError, match="at least one update, got 0"):
        relearn(model, config, encoded, processor, weight_sum, steps=0)
