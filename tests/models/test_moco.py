import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch._subclasses import FakeTensorMode

from hf_unlearn.models.moco import MoCoConfig, MoCoModel

SMALL = {"stem": "imagenet", "width": 4, "projection_dim": 8}


def moco(**settings: object) -> MoCoModel:
    torch.manual_seed(0)
    return MoCoModel(MoCoConfig(**SMALL, **settings))


def pixels(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_the_defaults_are_the_papers() -> None:
    config = MoCoConfig()
    assert (config.temperature, config.momentum, config.queue_size) == (0.1, 0.99, 4096)


def test_a_fresh_model_has_equal_encoders_and_a_queue_of_unit_vectors() -> None:
    model = moco(queue_size=20)
    for key, query in zip(model.key_encoder.parameters(), model.encoder.parameters(), strict=True):
        assert torch.equal(key, query) and not key.requires_grad and query.requires_grad
    torch.testing.assert_close(model.queue.norm(dim=1), torch.ones(20))
    assert model.queue_pointer == 0


def test_the_key_encoder_follows_the_encoder_before_keys_are_computed() -> None:
    model = moco(momentum=0.9).train()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    expected = copy.deepcopy(model.key_encoder)
    with torch.no_grad():
        for key, query in zip(expected.parameters(), model.encoder.parameters(), strict=True):
            key.copy_(0.9 * key + 0.1 * query)
        keys = F.normalize(expected(pixels()[:, 1]), dim=-1)
    outputs = model(pixels())
    torch.testing.assert_close(outputs.y_embeds, keys)
    for key, wanted in zip(model.key_encoder.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(key, wanted)


@pytest.mark.parametrize(("size", "count"), [(10, 4), (4, 4), (3, 4), (1, 2)])
def test_the_queue_is_a_ring_of_the_newest_keys(size: int, count: int) -> None:
    model = moco(queue_size=size).train()
    ring, pointer = list(model.queue.clone()), 0
    for step in range(4):
        outputs = model(pixels(count, seed=step))
        assert torch.equal(outputs.queue, torch.stack(ring))  # as it was before this batch
        for key in outputs.y_embeds[-size:]:
            ring[pointer] = key
            pointer = (pointer + 1) % size
    assert torch.equal(model.queue, torch.stack(ring)) and model.queue_pointer == pointer


def test_only_queries_carry_a_gradient_and_enqueueing_does_not_disturb_it() -> None:
    model = moco(queue_size=6).train()
    outputs = model(pixels())
    assert outputs.x_embeds.requires_grad and not outputs.y_embeds.requires_grad and not outputs.queue.requires_grad
    (outputs.x_embeds @ outputs.queue.T).logsumexp(dim=1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())
    assert all(parameter.grad is None for parameter in model.key_encoder.parameters())


def test_evaluation_and_key_features_change_no_state() -> None:
    model = moco(queue_size=6).train()
    model(pixels())
    model.eval()
    before = copy.deepcopy(model.state_dict())
    outputs = model(pixels())
    keys = model.get_key_features(pixels()[:, 1])
    torch.testing.assert_close(F.normalize(keys, dim=-1), outputs.y_embeds)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_queue_and_pointer_are_saved_and_keys_stay_frozen(tmp_path: Path) -> None:
    model = moco(queue_size=10).train()
    model(pixels(7))
    model.save_pretrained(tmp_path)
    again, info = MoCoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(again.queue, model.queue) and again.queue_pointer == 7
    assert not any(parameter.requires_grad for parameter in again.key_encoder.parameters())
    assert all(parameter.requires_grad for parameter in again.encoder.parameters())


def test_a_checkpoint_without_a_queue_gets_a_fresh_one(tmp_path: Path) -> None:
    model = moco(queue_size=10)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["queue"], weights["queue_pointer"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = MoCoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(again.queue.norm(dim=1), torch.ones(10))
    assert again.queue_pointer == 0
    assert torch.equal(again.key_encoder.projector[0].weight, model.key_encoder.projector[0].weight)


def test_shuffling_keys_for_split_batch_norms_gives_them_back_in_order() -> None:
    # One split normalises the whole batch, whose order then cannot matter.
    plain, shuffled = moco().train(), moco(batch_norm_splits=1).train()
    torch.testing.assert_close(shuffled(pixels(6)).y_embeds, plain(pixels(6)).y_embeds, atol=1e-5, rtol=1e-4)


def test_splits_change_the_statistics_in_training_only() -> None:
    plain, split = moco(), moco(batch_norm_splits=2)
    assert torch.equal(split.eval()(pixels()).x_embeds, plain.eval()(pixels()).x_embeds)
    assert not torch.allclose(split.train()(pixels()).x_embeds, plain.train()(pixels()).x_embeds, atol=1e-3)


def test_a_step_never_waits_for_the_device() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):  # where reading a value raises
        model = moco(queue_size=6).train()
        outputs = model(torch.randn(4, 2, 3, 32, 32))
        outputs.x_embeds.sum().backward()
    assert outputs.queue.shape == (6, 8)


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"queue_size": 0}, {"batch_norm_splits": -1}])
def test_numbers_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MoCoConfig(**wrong)
