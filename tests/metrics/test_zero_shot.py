"""Zero-shot accuracy against loops in float64."""

import numpy as np
import pytest
import torch

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.zero_shot import zero_shot


def test_a_picture_is_of_the_class_whose_mean_prompt_direction_is_nearest():
    rng = np.random.default_rng(0)
    images, prompts, labels = rng.normal(size=(40, 6)), rng.normal(size=(3, 4, 6)), rng.integers(0, 3, 40)
    prompts[1] *= 50  # lengths do not count, neither a class's nor one prompt's
    hits = []
    for image, label in zip(images, labels, strict=True):
        scores = []
        for templates in prompts:
            mean = sum(p / np.sqrt(p @ p) for p in templates) / 4
            scores.append(image @ mean / np.sqrt(mean @ mean))
        hits.append(int(np.argmax(scores)) == label)
    found = zero_shot(torch.tensor(images), torch.tensor(prompts), labels)
    assert found.hits.tolist() == hits and found.accuracy == pytest.approx(100 * np.mean(hits))
    assert 0 < found.accuracy < 100


@pytest.mark.parametrize("labels", [[0, 2], [0], [-1, 0]])
def test_labels_that_name_no_class_are_refused(labels):
    with pytest.raises(UserError, match="a class from 0 to 1 for each of 2 pictures"):
        zero_shot(torch.eye(2), torch.eye(2)[:, None], np.array(labels))
    with pytest.raises(UserError, match="there are none"):
        zero_shot(torch.empty(0, 2), torch.eye(2)[:, None], np.array([], dtype=int))
