"""Cases 19 to 21 for a trainer: killed at any moment, resumed, it ends with the weights of the run never stopped."""

import random
import signal

import pytest
from faults.conftest import FAMILIES
from faults.killing import forked
from safetensors.torch import load_file

from hf_unlearn.methods import METHODS
from hf_unlearn.methods.checkpoints import newest_checkpoint

KILLS = 3


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_killed_at_random_moments_it_ends_with_the_same_weights(family, method, trainer, tmp_path):
    never_stopped = trainer(family, method)
    never_stopped.train()
    out = tmp_path / "out"
    dice = random.Random(f"{family} {method}")

    def work() -> None:
        ours = trainer(family, method, save_strategy="steps", save_steps=dice.choice((1, 2, 3)), save_total_limit=2)
        ours.train(resume_from_checkpoint=str(newest_checkpoint(out) or "") or None)
        ours.model.save_pretrained(tmp_path / "end")

    for _ in range(KILLS):
        status, _ = forked(work, watch=out, kill_at=dice.randrange(1, 60))
        assert status in (0, -signal.SIGKILL)
    assert forked(work, watch=out)[0] == 0
    expected = never_stopped.model.state_dict()
    ended = load_file(tmp_path / "end" / "model.safetensors")
    assert ended.keys() <= expected.keys()
    assert all(value.equal(expected[name]) for name, value in ended.items())
