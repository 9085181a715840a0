"""Case 18: out of memory is one sentence that names the remedies; the batch is never made smaller unasked."""

import resource
from pathlib import Path

import pytest
import torch
from faults.killing import forked

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.errors import UserError, is_out_of_memory


@pytest.fixture
def many(encoded):
    """768 retain rows: the same 40 over and over."""
    split = encoded["clip"]["retain"]
    return {"retain": EncodedSplit(split.dataset.select([i % 40 for i in range(768)]), split.preprocessor)}


def test_too_large_a_batch_is_told_with_its_remedies(trainer, many, tmp_path):
    ours = trainer("clip", "fine_tune", data=many, per_device_train_batch_size=768)

    def work() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2**26  # 64 MiB more than there is now
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            ours.train()
        except UserError as error:
            (tmp_path / "told").write_text(str(error))

    assert forked(work, watch=tmp_path)[0] == 0
    told = (tmp_path / "told").read_text()
    assert told.startswith("out of memory with batches of 768 samples")
    for remedy in ("forward_chunk_size", "bf16", "per_device_train_batch_size"):
        assert remedy in told
    assert ours.state.global_step == 0


def test_chunks_fit_where_the_batch_does_not(trainer, many, tmp_path):
    ours = trainer(
        "clip", "fine_tune", data=many, per_device_train_batch_size=768, forward_chunk_size=32, num_train_epochs=1
    )

    def work() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2**26
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        ours.train()
        (tmp_path / "steps").write_text(str(ours.state.global_step))

    assert forked(work, watch=tmp_path)[0] == 0
    assert (tmp_path / "steps").read_text() == "1"


def test_other_faults_are_not_taken_for_it():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes [2] and [3] do not match"))
    assert not is_out_of_memory(OSError("disk"))
