import re
import weakref

import pytest
import torch
from datasets import Dataset, DatasetDict, Image, Value
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoProcessor

from hf_unlearn.data.encoded import ENCODE_ROWS, EncodedSplit, EncodedSplits, as_batch, concatenate
from hf_unlearn.data.preprocessing import ImageTextPreprocessor, ImageViewPreprocessor
from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.errors import UserError
from hf_unlearn.models.image_processor import image_processor_of

LENGTH = 8


@pytest.fixture(scope="module")
def preprocessor(tiny_clip):
    return ImageTextPreprocessor(AutoProcessor.from_pretrained(tiny_clip), LENGTH)


@pytest.fixture(scope="module", params=["resident", "on the fly"])
def split(request, shapes, preprocessor):
    return EncodedSplit(shapes, preprocessor, resident_bytes=2**30 if request.param == "resident" else 0)


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_rows_are_those_of_the_dataset_in_the_order_asked_for(split, shapes, preprocessor):
    rows = split.rows([5, 0, 70])
    for place, index in enumerate((5, 0, 70)):
        alone = preprocessor.encode(shapes.select([index]).with_format(None)[:1])
        assert torch.equal(rows["pixels"][place], alone["pixels"][0])
        assert rows["caption_counts"][place] == len(shapes[index]["captions"])
        assert torch.equal(rows["input_ids"][place, 0], alone["input_ids"][0, 0])


def test_both_ways_give_the_same_rows(shapes, preprocessor):
    resident, fetched = (EncodedSplit(shapes, preprocessor, limit) for limit in (2**30, 0))
    assert resident.resident is not None and fetched.resident is None
    assert equal(resident.rows(range(72)), fetched.rows(range(72)))


def test_residency_is_decided_by_the_bytes_a_split_needs(shapes, preprocessor):
    needed = sum(value.nbytes for value in EncodedSplit(shapes, preprocessor).resident.values())
    one_row = sum(value.nbytes for value in preprocessor.encode(shapes[:1]).values())
    assert EncodedSplit(shapes, preprocessor, 72 * one_row).resident is not None
    assert EncodedSplit(shapes, preprocessor, 72 * one_row - 1).resident is None
    assert needed >= 72 * one_row  # rows with a second caption are wider than the first


@pytest.mark.parametrize("place", [0, 3, 71])
def test_one_row_of_many_captions_counts_for_every_row(shapes, preprocessor, place):
    captions = [row[:1] for row in shapes["captions"]]
    captions[place] = ["a red circle"] * 50
    skewed = shapes.remove_columns("captions").add_column("captions", captions)
    needed = EncodedSplit(skewed, preprocessor).nbytes
    assert needed > 72 * 50 * LENGTH * 4
    assert EncodedSplit(skewed, preprocessor, needed).nbytes == needed
    assert EncodedSplit(skewed, preprocessor, needed - 1).resident is None
    moved = skewed.select(reversed(range(72)))  # through an indices mapping
    assert EncodedSplit(moved, preprocessor, needed - 1).resident is None


def test_encoded_parts_are_let_go_while_a_split_is_filled(shapes, preprocessor, monkeypatch):
    pictures, most = [], 0

    def encode(rows):
        nonlocal most
        most = max(most, sum(len(tensor) for picture in pictures if (tensor := picture()) is not None))
        encoded = ImageTextPreprocessor.encode(preprocessor, rows)
        pictures.append(weakref.ref(encoded["pixels"]))
        return encoded

    monkeypatch.setattr(preprocessor, "encode", encode)
    assert EncodedSplit(shapes.select([i % 72 for i in range(3 * ENCODE_ROWS)]), preprocessor).resident is not None
    assert len(pictures) == 4 and most <= ENCODE_ROWS + 1  # the row that told the size, and the part before


def test_a_caption_without_a_list_is_one_caption(shapes, preprocessor):
    first = shapes.remove_columns("captions").add_column("captions", [row[0] for row in shapes["captions"]])
    listed = shapes.remove_columns("captions").add_column("captions", [row[:1] for row in shapes["captions"]])
    assert first.features["captions"] == Value("string")
    strings, lists = EncodedSplit(first, preprocessor), EncodedSplit(listed, preprocessor)
    assert strings.resident["caption_counts"].unique().tolist() == [1]
    assert equal(strings.resident, lists.resident)
    assert equal(EncodedSplit(first, preprocessor, resident_bytes=0).rows([3, 1]), lists.rows([3, 1]))


@pytest.mark.parametrize("limit", [2**30, 0])
@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize(
    ("column", "value", "fault"),
    [
        ("captions", [], r"\[\] is neither a caption nor a list of captions; give it one, or leave the row out"),
        ("captions", None, "None is neither a caption"),
        ("captions", ["a", None], r"\['a', None\] is neither a caption"),
        ("image", None, "there is no image; give it one, or leave the row out"),
        ("image", {"bytes": b"no picture", "path": None}, "it cannot be read .*; mend it, or leave the row out"),
    ],
)
def test_a_row_that_cannot_be_encoded_is_named(shapes, preprocessor, column, value, fault, ids, limit):
    stored = shapes.cast_column("image", Image(decode=False)).select(range(9))
    values = [*stored[column][:7], value, *stored[column][8:]]
    bad = stored.remove_columns(column).add_column(column, values, feature=stored.features[column])
    name = bad["id"][7] if ids else "7"
    bad = bad if ids else bad.remove_columns("id")
    with pytest.raises(UserError, match=f"Column '{column}' of row {name}: {fault}"):
        EncodedSplit(bad, preprocessor, limit).rows([2, 7])


@pytest.mark.parametrize("rows", [9, 0])
def test_a_missing_column_is_named_with_those_there_are(shapes, preprocessor, rows):
    data = shapes.select(range(rows)).remove_columns("captions")
    with pytest.raises(UserError, match="The rows have no column 'captions', only image, label, owner, id; rename"):
        EncodedSplit(data, preprocessor)
    with pytest.raises(UserError, match="The rows have no column 'image', only label, owner, id; rename"):
        EncodedSplit(data.remove_columns("image"), preprocessor)
    views = ImageViewPreprocessor(image_processor_of(VIEW_PRESETS["light"]), VIEW_PRESETS["light"])
    assert len(EncodedSplit(data, views)) == rows  # which needs no captions


def test_columns_of_other_types_are_named(preprocessor):
    with pytest.raises(UserError, match=re.escape("The column 'image' holds Value('int64'), neither images nor")):
        EncodedSplit(Dataset.from_dict({"image": [1, 2], "captions": ["a", "b"]}), preprocessor)
    png = {"bytes": b"", "path": None}
    with pytest.raises(UserError, match="Column 'captions' of row 0: 5 is neither a caption nor a list of captions"):
        EncodedSplit(Dataset.from_dict({"image": [png, png], "captions": [5, 6]}), preprocessor)


def test_batches_cover_the_rows_in_order(split):
    parts = list(split.batches(30))
    assert [len(part["pixels"]) for part in parts] == [30, 30, 12]
    assert torch.equal(torch.cat([part["pixels"] for part in parts]), split.rows(range(72))["pixels"])
    (some,) = split.batches(30, indices=[4, 2])
    assert equal(some, split.rows([4, 2]))


def test_a_split_larger_than_one_encoding_batch(shapes, preprocessor):
    many = shapes.select([i % 72 for i in range(ENCODE_ROWS + 3)])
    split = EncodedSplit(many, preprocessor)
    assert len(split) == len(split.rows(range(len(split)))["pixels"]) == ENCODE_ROWS + 3
    assert equal(split.rows([ENCODE_ROWS + 1]), split.rows([(ENCODE_ROWS + 1) % 72]))


def test_an_empty_split(shapes, preprocessor):
    split = EncodedSplit(shapes.select([]), preprocessor)
    assert len(split) == 0 and list(split.batches(4)) == []


def test_narrow_captions_are_widened_by_their_first():
    first = {"tokens": torch.tensor([[[1, 2]]]), "pixels": torch.zeros(1, 3, 2, 2)}
    second = {"tokens": torch.tensor([[[3, 4], [5, 6]]]), "pixels": torch.ones(1, 3, 2, 2)}
    joined = concatenate([first, second])
    assert joined["tokens"].tolist() == [[[1, 2], [1, 2]], [[3, 4], [5, 6]]]
    assert joined["pixels"].shape == (2, 3, 2, 2)
    assert concatenate([]) == {}


def test_retain_comes_first_and_a_batch_keeps_the_order_asked_for(shapes, preprocessor):
    splits = DatasetDict(retain=shapes.select(range(60)), unlearn=shapes.select(range(60, 72)))
    data = EncodedSplits(*(EncodedSplit(part, preprocessor) for part in splits.values()))
    whole = EncodedSplit(shapes, preprocessor).rows(range(72))
    assert len(data) == 72
    order = [71, 3, 60, 59, 3]
    batch = as_batch(data.__getitems__(order))
    assert batch["index"].tolist() == order
    assert batch["is_unlearn"].tolist() == [True, False, True, False, False]
    assert torch.equal(batch["pixels"], whole["pixels"][order])
    single = data[61]
    assert torch.equal(single["pixels"], whole["pixels"][61]) and bool(single["is_unlearn"])


@pytest.mark.parametrize("limits", [(2**30, 2**30), (0, 0), (2**30, 0)])
def test_a_batch_is_put_together_from_splits_of_different_widths(shapes, preprocessor, limits):
    narrow = [row for row, captions in enumerate(shapes["captions"]) if len(captions) == 1]
    wide = [row for row, captions in enumerate(shapes["captions"]) if len(captions) == 2]
    parts = [
        EncodedSplit(shapes.select(rows), preprocessor, most) for rows, most in zip((narrow, wide), limits, strict=True)
    ]
    data, whole = EncodedSplits(*parts), EncodedSplit(shapes, preprocessor)
    for order in ([0, 5, 1, 40, 71, 40], [71, 0, 40, 3]):  # as `SplitSampler` has them, and otherwise
        batch, rows = data.__getitems__(order), whole.rows([(narrow + wide)[place] for place in order])
        assert batch["index"].tolist() == order
        counts = batch["caption_counts"]
        assert torch.equal(counts, rows["caption_counts"]) and torch.equal(batch["pixels"], rows["pixels"])
        assert batch["input_ids"].shape == (len(order), 2, LENGTH)
        found, _ = preprocessor.captions(batch)
        wanted, _ = preprocessor.captions(rows)
        assert equal(found, wanted)


class Log(TorchDispatchMode):
    """Notes what makes or fills tensors of pixels, and how often something is brought to another device."""

    def __init__(self):
        super().__init__()
        self.pictures, self.brought = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        moved = function is torch.ops.aten._to_copy.default and args[0].device != result.device
        self.brought += moved
        if not function.is_view and isinstance(result, torch.Tensor) and result.dtype == torch.uint8:
            self.pictures.append(function.overloadpacket.__name__)
        return result


def test_pictures_of_a_batch_are_copied_once(shapes, preprocessor):
    data = EncodedSplits(
        EncodedSplit(shapes.select(range(60)), preprocessor), EncodedSplit(shapes.select([60, 61]), preprocessor)
    )
    with Log() as log:
        data.__getitems__([3, 1, 60, 61])
    assert log.pictures == ["new_empty", "index_select", "index_select"]  # room, and each split's rows into it


def test_a_batch_on_a_device_is_asked_for_with_one_copy(shapes, preprocessor):
    split = EncodedSplit(shapes, preprocessor)
    moved = EncodedSplits(split, split).on(torch.device("meta"))
    with Log() as log:
        batch = moved.__getitems__([3, 1, 80])
    assert log.brought == 1 and {value.device.type for value in batch.values()} == {"meta"}
    with Log() as log:
        moved.splits[0].rows([3, 1])
    assert log.brought == 1


@pytest.mark.parametrize("missing", ["retain", "unlearn"])
def test_either_split_may_be_missing(shapes, preprocessor, missing):
    part = EncodedSplit(shapes, preprocessor)
    data = EncodedSplits(None, part) if missing == "retain" else EncodedSplits(part, None)
    batch = data.__getitems__([1, 0])
    assert batch["is_unlearn"].tolist() == [missing == "retain"] * 2
    assert torch.equal(batch["pixels"], part.rows([1, 0])["pixels"])


def test_rows_can_be_kept_on_another_device(shapes, preprocessor):
    split = EncodedSplit(shapes, preprocessor)
    both = EncodedSplits(split, split)
    device = torch.device("meta")  # stands for an accelerator: a device that is not the CPU
    moved = both.on(device)
    assert {value.device for value in moved.splits[0].resident.values()} == {device}
    assert {value.device for value in split.resident.values()} == {torch.device("cpu")}
    assert both.nbytes == moved.nbytes == 2 * split.nbytes
    assert moved.__getitems__([3, 80])["pixels"].device == device
    on_the_fly = EncodedSplit(shapes, preprocessor, resident_bytes=0)
    assert on_the_fly.nbytes is None and EncodedSplits(split, on_the_fly).nbytes is None
    assert equal(on_the_fly.on(device).rows([3]), split.rows([3]))
