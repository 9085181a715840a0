import pytest
import torch
from datasets import DatasetDict
from transformers import AutoProcessor

from hf_unlearn.data.encoded import ENCODE_ROWS, EncodedSplit, EncodedSplits, as_batch, concatenate
from hf_unlearn.data.inputs import ImageTextInputs

LENGTH = 8


@pytest.fixture(scope="module")
def inputs(tiny_clip):
    return ImageTextInputs(AutoProcessor.from_pretrained(tiny_clip), LENGTH)


@pytest.fixture(scope="module", params=["resident", "on the fly"])
def split(request, shapes, inputs):
    return EncodedSplit(shapes, inputs, resident_bytes=2**30 if request.param == "resident" else 0)


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_rows_are_those_of_the_dataset_in_the_order_asked_for(split, shapes, inputs):
    rows = split.rows([5, 0, 70])
    for place, index in enumerate((5, 0, 70)):
        alone = inputs.encode(shapes.select([index]).with_format(None)[:1])
        assert torch.equal(rows["pixels"][place], alone["pixels"][0])
        assert rows["caption_counts"][place] == len(shapes[index]["captions"])
        assert torch.equal(rows["input_ids"][place, 0], alone["input_ids"][0, 0])


def test_both_ways_give_the_same_rows(shapes, inputs):
    resident, fetched = (EncodedSplit(shapes, inputs, limit) for limit in (2**30, 0))
    assert resident.resident is not None and fetched.resident is None
    assert equal(resident.rows(range(72)), fetched.rows(range(72)))


def test_residency_is_decided_by_the_bytes_a_split_needs(shapes, inputs):
    needed = sum(value.nbytes for value in EncodedSplit(shapes, inputs).resident.values())
    one_row = sum(value.nbytes for value in inputs.encode(shapes[:1]).values())
    assert EncodedSplit(shapes, inputs, 72 * one_row).resident is not None
    assert EncodedSplit(shapes, inputs, 72 * one_row - 1).resident is None
    assert needed >= 72 * one_row  # rows with a second caption are wider than the first


def test_batches_cover_the_rows_in_order(split):
    parts = list(split.batches(30))
    assert [len(part["pixels"]) for part in parts] == [30, 30, 12]
    assert torch.equal(torch.cat([part["pixels"] for part in parts]), split.rows(range(72))["pixels"])
    (some,) = split.batches(30, indices=[4, 2])
    assert equal(some, split.rows([4, 2]))


def test_a_split_larger_than_one_encoding_batch(shapes, inputs):
    many = shapes.select([i % 72 for i in range(ENCODE_ROWS + 3)])
    split = EncodedSplit(many, inputs)
    assert len(split) == len(split.rows(range(len(split)))["pixels"]) == ENCODE_ROWS + 3
    assert equal(split.rows([ENCODE_ROWS + 1]), split.rows([(ENCODE_ROWS + 1) % 72]))


def test_an_empty_split(shapes, inputs):
    split = EncodedSplit(shapes.select([]), inputs)
    assert len(split) == 0 and list(split.batches(4)) == []


def test_narrow_captions_are_widened_by_their_first():
    first = {"tokens": torch.tensor([[[1, 2]]]), "pixels": torch.zeros(1, 3, 2, 2)}
    second = {"tokens": torch.tensor([[[3, 4], [5, 6]]]), "pixels": torch.ones(1, 3, 2, 2)}
    joined = concatenate([first, second])
    assert joined["tokens"].tolist() == [[[1, 2], [1, 2]], [[3, 4], [5, 6]]]
    assert joined["pixels"].shape == (2, 3, 2, 2)
    assert concatenate([]) == {}


def test_retain_comes_first_and_a_batch_keeps_the_order_asked_for(shapes, inputs):
    splits = DatasetDict(retain=shapes.select(range(60)), unlearn=shapes.select(range(60, 72)))
    data = EncodedSplits(*(EncodedSplit(part, inputs) for part in splits.values()))
    whole = EncodedSplit(shapes, inputs).rows(range(72))
    assert len(data) == 72
    order = [71, 3, 60, 59, 3]
    batch = as_batch(data.__getitems__(order))
    assert batch["index"].tolist() == order
    assert batch["is_unlearn"].tolist() == [True, False, True, False, False]
    assert torch.equal(batch["pixels"], whole["pixels"][order])
    single = data[61]
    assert torch.equal(single["pixels"], whole["pixels"][61]) and bool(single["is_unlearn"])


@pytest.mark.parametrize("missing", ["retain", "unlearn"])
def test_either_split_may_be_missing(shapes, inputs, missing):
    part = EncodedSplit(shapes, inputs)
    data = EncodedSplits(None, part) if missing == "retain" else EncodedSplits(part, None)
    batch = data.__getitems__([1, 0])
    assert batch["is_unlearn"].tolist() == [missing == "retain"] * 2
    assert torch.equal(batch["pixels"], part.rows([1, 0])["pixels"])


def test_rows_can_be_kept_on_another_device(shapes, inputs):
    split = EncodedSplit(shapes, inputs)
    both = EncodedSplits(split, split)
    device = torch.device("meta")  # stands for an accelerator: a device that is not the CPU
    moved = both.on(device)
    assert {value.device for value in moved.splits[0].resident.values()} == {device}
    assert {value.device for value in split.resident.values()} == {torch.device("cpu")}
    assert both.nbytes == moved.nbytes == 2 * split.nbytes
    assert moved.__getitems__([3, 80])["pixels"].device == device
    on_the_fly = EncodedSplit(shapes, inputs, resident_bytes=0)
    assert on_the_fly.nbytes is None and EncodedSplits(split, on_the_fly).nbytes is None
    assert equal(on_the_fly.on(device).rows([3]), split.rows([3]))
