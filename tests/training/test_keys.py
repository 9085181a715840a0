"""No key of a requested picture is in what is saved of a MoCo, whatever its method left in the queue."""

import pytest
import torch
import torch.nn.functional as F

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.models.contrastive import evaluation_mode
from hf_unlearn.models.loading import load_encoder


def keys_of(model, preprocessor, encoded, seed):
    with torch.no_grad(), evaluation_mode(model):
        return F.normalize(model.get_key_features(preprocessor.batch(encoded, seed)["pixel_values"][:, 1]), dim=-1)


@pytest.mark.parametrize("method", ["fine_tune", "gradient_ascent", "task_vector", "selective_synaptic_dampening"])
@pytest.mark.parametrize("size", [20, 90])  # of 40 retain rows
def test_a_saved_queue_holds_keys_of_retain(make_trainer, encoder, splits, method, size, tmp_path):
    model, _ = encoder("moco")
    model = type(model)(type(model.config)(**{**model.config.to_dict(), "queue_size": size, "batch_norm_splits": 0}))
    before = {name: value.clone() for name, value in model.named_buffers() if "queue" not in name}
    settings = {"alpha": 2.0} if method == "selective_synaptic_dampening" else {}
    trainer = make_trainer(method, "moco", given_model=model, **settings)
    queue = trainer.model.queue.clone()
    trainer.save_model(str(tmp_path / "saved"))
    saved, _ = load_encoder(str(tmp_path / "saved"))
    rows = EncodedSplit(splits["retain"], trainer.preprocessor).rows(range(min(size, 40)))
    passes = [keys_of(saved, trainer.preprocessor, rows, seed) for seed in range(3)]
    torch.testing.assert_close(saved.queue, torch.cat(passes)[:size], rtol=0, atol=1e-5)
    assert saved.queue_pointer.item() == 0
    assert trainer.model.queue.equal(queue)  # a training that goes on goes on with its own
    assert all(value.equal(before[name]) for name, value in saved.named_buffers() if "queue" not in name)


def test_a_stream_without_an_end_has_keys_of_retain_too_and_no_retain_is_said(make_trainer, splits, tmp_path, caplog):
    rows = {**splits, "retain": splits["retain"].to_iterable_dataset()}
    trainer = make_trainer("fine_tune", "moco", train_dataset=rows, max_steps=1)
    before = trainer.model.queue.clone()
    trainer.save_model(str(tmp_path / "streamed"))
    assert not load_encoder(str(tmp_path / "streamed"))[0].queue.isclose(before).any()
    assert "queue" not in caplog.text
    alone = make_trainer("gradient_ascent", "moco", train_dataset={"unlearn": splits["unlearn"]}, max_steps=1)
    alone.save_model(str(tmp_path / "alone"))
    assert "queue keeps keys of pictures that were unlearned" in caplog.text
