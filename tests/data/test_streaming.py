"""Streams over real parquet and tar shards: what batches hold, how rows are dealt out, and in which order."""

import io
import json
import tarfile
from collections import Counter
from itertools import islice

import pytest
import torch
from datasets import Dataset, Features, Image, IterableDataset, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.preprocessing import ContrastivePreprocessor, ImageTextPreprocessor, ImageViewPreprocessor
from hf_unlearn.data.sampler import SplitSampler
from hf_unlearn.data.streaming import StreamedBatches, StreamedSplit, known_rows
from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.errors import UserError
from hf_unlearn.models.image_processor import image_processor_of
from hf_unlearn.models.loading import load_encoder

ROWS, SHARDS = 54, 4


@pytest.fixture(scope="module")
def preprocessor():
    return ImageViewPreprocessor(image_processor_of(VIEW_PRESETS["light"]), VIEW_PRESETS["light"])


@pytest.fixture(scope="module")
def parquet(tmp_path_factory, shapes):
    """54 pictures in four parquet shards of unequal size."""
    folder = tmp_path_factory.mktemp("parquet")
    for number in range(SHARDS):
        shapes.select(range(number**2, (number + 1) ** 2) if number < 3 else range(9, ROWS)).to_parquet(
            folder / f"part-{number}.parquet"
        )
    return load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", streaming=True)


@pytest.fixture
def stream(parquet, preprocessor):
    return StreamedSplit(parquet, preprocessor, rows=ROWS, shuffle_buffer=16)


@pytest.fixture
def unlearn(shapes, preprocessor):
    return EncodedSplit(shapes.select(range(ROWS, 65)), preprocessor)


@pytest.fixture(scope="module")
def names(shapes, preprocessor):
    """A function from a batch to the rows of `shapes` that its pictures are."""
    pixels = EncodedSplit(shapes, preprocessor).resident["pixels"]
    rows = {picture.numpy().tobytes(): row for row, picture in enumerate(pixels)}
    assert len(rows) == len(shapes)
    return lambda batch: [rows[picture.numpy().tobytes()] for picture in batch["pixels"]]


def test_every_batch_is_like_those_of_resident_splits(stream, unlearn, names):
    batches = list(StreamedBatches(stream, unlearn, batch_size=16))
    sampler = SplitSampler(ROWS, len(unlearn), 16)
    assert len(batches) == sampler.batches == 5
    for batch in batches:
        assert batch["pixels"].shape == (16, 3, 32, 32)
        assert batch["is_unlearn"].sum() == sampler.unlearn_per_batch == 3
        assert [row >= ROWS for row in names(batch)] == batch["is_unlearn"].tolist()
    seen = [row for batch in batches for row in names(batch)]
    assert set(seen) == set(range(65))  # all of retain within the epoch, and unlearn is cycled
    visits = Counter(row for row in seen if row >= ROWS)
    assert set(visits.values()) == {1, 2} and sum(visits.values()) == 15


def test_the_order_follows_from_seed_and_epoch(stream, unlearn, names):
    def order(seed, epoch):
        batches = StreamedBatches(stream, unlearn, 16, seed=seed)
        batches.set_epoch(epoch)
        return [names(batch) for batch in batches]

    first = order(0, 0)
    assert order(0, 0) == first
    assert order(0, 1) != first and order(1, 0) != first
    assert len({tuple(batch[13:]) for batch in order(0, 0) + order(0, 1)}) == 10  # unlearn rows, too


class Numbers(ContrastivePreprocessor):
    """Rows whose stored picture is a number, which need no decoding."""

    def __init__(self) -> None: ...

    @staticmethod
    def rows(*numbers):
        stored = [{"bytes": str(number).encode(), "path": None} for number in range(*numbers)]
        return Dataset.from_dict({"image": stored}, features=Features(image=Image()))

    def encode(self, rows):
        return {"pixels": torch.tensor([int(stored["bytes"]) for stored in rows["image"]])}

    def batch(self, encoded, seed):
        return encoded


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whatever_the_sizes_an_epoch_is_one_pass_in_batches_of_one_shape(data):
    draw = lambda least, most: data.draw(st.integers(least, most))  # noqa: E731
    processes, shards, size, seed = draw(1, 3), draw(1, 4), draw(2, 12), draw(0, 5)
    rows, members = draw(max(processes, shards), 40), draw(0, 9)
    stream = Numbers.rows(rows).to_iterable_dataset(num_shards=shards)
    retain = StreamedSplit(stream, Numbers(), rows=rows, shuffle_buffer=draw(1, 10))
    unlearn = EncodedSplit(Numbers.rows(100, 100 + members), Numbers()) if members else None
    sampler = SplitSampler(rows, members, size)
    shares = [list(StreamedBatches(retain, unlearn, size, seed, process, processes)) for process in range(processes)]
    assert {len(share) for share in shares} == {-(-rows // (processes * sampler.retain_per_batch))}
    retained, again = Counter(), Counter()
    for batch in (batch for share in shares for batch in share):
        counts = Counter(batch["pixels"].tolist())
        own = {row: count for row, count in counts.items() if row < 100}
        assert [row >= 100 for row in batch["pixels"].tolist()] == batch["is_unlearn"].tolist()
        assert len(batch["pixels"]) == sampler.retain_per_batch + sampler.unlearn_per_batch
        assert batch["is_unlearn"].sum() == sampler.unlearn_per_batch
        retained.update(own)
        again.update({row: count for row, count in counts.items() if row >= 100})
    assert set(retained) <= set(range(rows))
    if processes == 1:
        assert set(retained) == set(
            range(rows)
        )  # of several, one that has fewer rows begins again before the others end
    seen = [again[row] for row in range(100, 100 + members)]
    assert not seen or max(seen) - min(seen) <= 1  # cycled evenly


@pytest.mark.parametrize("processes", [2, 3])  # whole shards, and single rows
@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_dealt_out_without_copies(stream, unlearn, names, processes, workers):
    shares = []
    for process in range(processes):
        rows = stream.shuffled((0, 0, 0), process, processes)
        loader = DataLoader(_Rows(rows), batch_size=None, num_workers=workers)
        shares.append([row for row in loader])
    dealt = [name for share in shares for name in share]
    assert all(shares) and len(dealt) == ROWS and len(set(dealt)) == ROWS
    epochs = [
        list(DataLoader(StreamedBatches(stream, unlearn, 16, 0, p, processes), batch_size=None, num_workers=workers))
        for p in range(processes)
    ]
    assert {len(epoch) for epoch in epochs} == {-(-5 // processes)}  # or processes would wait for each other
    unlearned = [names(batch)[13:] for step in zip(*epochs, strict=True) for batch in step]
    alone = StreamedBatches(stream, unlearn, 16)
    assert [row for part in unlearned for row in part][:15] == [row for batch in alone for row in names(batch)[13:]]


class _Rows(torch.utils.data.IterableDataset):
    """The ids of a stream's rows."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return (row["id"] for row in self.rows)


def test_workers_share_an_epoch(stream, unlearn, names):
    batches = StreamedBatches(stream, unlearn, 16)
    assert batches.shards == SHARDS
    loaded = list(DataLoader(batches, batch_size=None, num_workers=2))
    assert len(loaded) == len(batches) == 5
    assert [names(batch)[13:] for batch in loaded] == [names(batch)[13:] for batch in batches]
    assert [names(b) for b in DataLoader(batches, batch_size=None, num_workers=2)] == [names(b) for b in loaded]


def test_without_a_number_of_rows_it_has_no_end(parquet, preprocessor, names):
    assert known_rows(parquet) is None
    batches = StreamedBatches(StreamedSplit(parquet, preprocessor), None, 16)
    with pytest.raises(TypeError, match="no length"):
        len(batches)
    seen = [row for batch in islice(batches, 7) for row in names(batch)]
    assert set(seen[:ROWS]) == set(seen[ROWS : 2 * ROWS]) == set(range(ROWS))  # one pass, then the next
    assert seen[:ROWS] != seen[ROWS : 2 * ROWS]


def test_the_number_of_rows_comes_from_the_info(tmp_path, shapes):
    shapes.save_to_disk(tmp_path / "saved")
    shapes.to_parquet(tmp_path / "data" / "train.parquet")
    (tmp_path / "data" / "README.md").write_text(
        "---\ndataset_info:\n  splits:\n  - name: train\n    num_bytes: 1\n    num_examples: 72\n---\n"
    )
    assert known_rows(load_dataset(str(tmp_path / "data"), split="train", streaming=True)) == 72


def test_captions_come_along(parquet, shapes, tiny_clip, names):
    _, processor = load_encoder(str(tiny_clip))
    preprocessor = ImageTextPreprocessor(processor, max_length=12)
    ours = StreamedSplit(parquet, preprocessor, shuffle_buffer=4)
    rows = EncodedSplit(shapes.select(range(ROWS)), preprocessor).resident
    first = ours.first(ROWS + 1)
    assert first.keys() == rows.keys()
    assert all(first[name].equal(rows[name]) for name in rows)
    ours.rows = ROWS
    batch = next(iter(StreamedBatches(ours, EncodedSplit(shapes.select([70, 71]), preprocessor), 8)))
    assert batch["is_unlearn"].tolist() == [False] * 6 + [True] * 2
    assert batch["input_ids"].shape == (8, 2, 12) and batch["caption_counts"].max() == 2


def test_tar_shards(tmp_path, shapes, preprocessor, names):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for row in shapes.select(range(shard * 10, shard * 10 + 10)):
                buffer = io.BytesIO()
                row["image"].save(buffer, format="PNG")
                parts = {"png": buffer.getvalue(), "json": json.dumps({"owner": row["owner"]}).encode()}
                for kind, content in parts.items():
                    member = tarfile.TarInfo(f"{row['id']}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    rows = load_dataset("webdataset", data_files=str(tmp_path / "*.tar"), split="train", streaming=True)
    rows = rows.rename_columns({"png": "image", "__key__": "id"})
    batches = StreamedBatches(StreamedSplit(rows, preprocessor, rows=20), None, 5)
    assert sorted(row for batch in batches for row in names(batch)) == list(range(20))
    assert batches.shards == 2


def test_a_bad_picture_is_named(preprocessor, shapes):
    good = shapes.cast_column("image", shapes.features["image"]).select(range(3))
    rows = [{"image": {"bytes": b"no picture", "path": None}, "id": "the-bad-one"}]
    rows += [{"image": {"bytes": _png(row["image"]), "path": None}, "id": row["id"]} for row in good]
    stream = Dataset.from_list(rows).to_iterable_dataset()
    with pytest.raises(UserError, match="row the-bad-one of the retain stream: it cannot be read"):
        list(StreamedBatches(StreamedSplit(stream, preprocessor, rows=4), None, 4))


def test_a_caption_without_a_list_is_one_caption(shapes, pairs):
    data = shapes.select(range(6)).remove_columns("captions").add_column("captions", ["a red circle"] * 6)
    stream = StreamedSplit(data.to_iterable_dataset(), pairs)
    listed = data.remove_columns("captions").add_column("captions", [["a red circle"]] * 6)
    first, wanted = stream.first(6), EncodedSplit(listed, pairs).resident
    assert first.keys() == wanted.keys() and all(first[name].equal(wanted[name]) for name in first)


@pytest.fixture(scope="module")
def pairs(tiny_clip):
    return ImageTextPreprocessor(load_encoder(str(tiny_clip))[1], max_length=12)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"captions": []}, r"'captions' of row the-bad-one of the retain stream: \[\] is neither a caption nor a list"),
        ({"captions": None}, "'captions' of row the-bad-one of the retain stream: None is neither"),
        ({"image": None}, "'image' of row the-bad-one of the retain stream: there is no image; give it one"),
        (
            {"image": b"raw"},
            "'image' of row the-bad-one of the retain stream: it holds bytes, no picture; use cast_col",
        ),
    ],
)
def test_a_row_that_cannot_be_encoded_is_named(pairs, shapes, change, fault):
    good = {"image": shapes[0]["image"], "captions": ["a red circle"], "id": "good"}
    stream = IterableDataset.from_generator(lambda: iter([good, {**good, "id": "the-bad-one", **change}]))
    with pytest.raises(UserError, match=f"Column {fault}"):
        StreamedSplit(stream, pairs).first(2)


def test_a_missing_column_is_named_with_those_there_are(pairs, shapes):
    stream = StreamedSplit(shapes.remove_columns("captions").to_iterable_dataset(), pairs, rows=72)
    with pytest.raises(UserError, match="The rows have no column 'captions', only image, label, owner, id; rename"):
        next(iter(StreamedBatches(stream, None, 4)))


def test_a_stream_without_rows_is_refused(preprocessor, parquet):
    nothing = parquet.filter(lambda row: False)
    with pytest.raises(UserError, match="The retain stream has no row for process 0 of 1"):
        next(iter(StreamedBatches(StreamedSplit(nothing, preprocessor), None, 4)))


def _png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def spoilt(parquet):
    """The same stream with three pictures that cannot be read."""
    rows = [{**row, "image": {"bytes": b"damaged", "path": None}} if number in (3, 20, 21) else row
            for number, row in enumerate(parquet.cast_column("image", Image(decode=False)))]  # fmt: skip
    return Dataset.from_list(rows, features=parquet.features).to_iterable_dataset(num_shards=4)


def test_bad_pictures_of_a_stream_are_left_out_on_request(spoilt, preprocessor, unlearn, names, caplog):
    batches = StreamedBatches(
        StreamedSplit(spoilt, preprocessor, rows=ROWS, shuffle_buffer=16, skip_bad=True), unlearn, 16
    )
    found = [batch for batch in batches]
    assert all(batch["pixels"].shape == (16, 3, 32, 32) for batch in found)
    retain = [row for batch in found for row in names({"pixels": batch["pixels"][~batch["is_unlearn"]]})]
    assert not {3, 20, 21} & set(retain) and set(retain) == set(range(ROWS)) - {3, 20, 21}
    assert caplog.text.count("Left out: Column 'image' of row") >= 3
    again = [batch["pixels"] for batch in batches]
    assert all(torch.equal(one["pixels"], other) for one, other in zip(found, again, strict=True))
    assert len(StreamedSplit(spoilt, preprocessor, rows=ROWS, skip_bad=True).sample(ROWS)) == ROWS - 3


def test_bad_pictures_of_a_stream_are_refused_otherwise_and_where_none_is_good(spoilt, preprocessor):
    with pytest.raises(UserError, match="of the retain stream: it cannot be read"):
        list(StreamedBatches(StreamedSplit(spoilt, preprocessor, rows=ROWS), None, 16))
    nothing = Dataset.from_list([{"image": {"bytes": b"x", "path": None}}] * 5, features=Features(image=Image()))
    nothing = StreamedSplit(nothing.to_iterable_dataset(), preprocessor, rows=5, skip_bad=True)
    with pytest.raises(UserError, match="no row left that can be used"):
        next(iter(StreamedBatches(nothing, None, 4)))


def test_a_row_without_captions_is_no_bad_picture(shapes, tiny_clip):
    preprocessor = ImageTextPreprocessor(load_encoder(str(tiny_clip))[1], 8)
    rows = shapes.select(range(4)).map(
        lambda row, n: {"captions": [] if n == 2 else row["captions"]}, with_indices=True
    )
    with pytest.raises(UserError, match="Column 'captions' of row"):
        StreamedSplit(rows.to_iterable_dataset(), preprocessor, rows=4, skip_bad=True).first(4)
