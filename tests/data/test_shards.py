"""Requests against parquet and tar shards: the right rows, nothing read beside ids, and every fault named."""

import io
import tarfile
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Image, List, Value
from PIL import Image as PILImage

from hf_unlearn.data import shards as module
from hf_unlearn.data.images import read_image
from hf_unlearn.data.shards import request_rows_in_shards, split_shards, stream_shards
from hf_unlearn.data.splits import request_rows
from hf_unlearn.errors import UserError

SIZES = (10, 1, 19)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory, shapes):
    folder, first, files = tmp_path_factory.mktemp("parquet"), 0, []
    for number, size in enumerate(SIZES):
        files.append(folder / f"{number}.parquet")
        shapes.select(range(first, first + size)).to_parquet(files[-1])
        first += size
    return files


@pytest.fixture(scope="module")
def tars(tmp_path_factory, shapes):
    folder, first, files = tmp_path_factory.mktemp("tars"), 0, []
    for number, size in enumerate(SIZES):
        files.append(folder / f"{number}.tar")
        with tarfile.open(files[-1], "w") as tar:
            for row in shapes.select(range(first, first + size)):
                buffer = io.BytesIO()
                row["image"].save(buffer, format="PNG")
                for kind, content in (("png", buffer.getvalue()), ("txt", row["captions"][0].encode())):
                    member = tarfile.TarInfo(f"{row['id']}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        first += size
    return files


@pytest.mark.parametrize("chunk", [3, 2**20])
@pytest.mark.parametrize("kind", ["parquet", "tars"])
def test_rows_are_found_as_in_one_table(request, shapes, monkeypatch, kind, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    files, ids = request.getfixturevalue(kind), shapes["id"][:30]
    wanted = [ids[row] for row in (29, 0, 12, 11, 5)]
    plan = request_rows_in_shards(files, wanted)
    starts = dict(zip(map(str, files), np.cumsum([0, *SIZES]), strict=False))
    rows = np.concatenate([starts[shard] + places for shard, places in plan.places.items()])
    assert rows.tolist() == request_rows(ids, wanted).tolist()
    assert (plan.rows, plan.count) == (30, 5) and len(plan.places) == 2


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_pictures_of_a_stream_are_the_bytes_that_lie_there(tmp_path, kind):
    """Under columns of other names than the schema's: a picture that is decoded and encoded again is another one."""
    pictures = {}
    for number, mode in enumerate(("RGB", "L", "CMYK")):
        noise = np.random.default_rng(number).integers(0, 256, (24, 24, {"RGB": 3, "L": 1, "CMYK": 4}[mode]), np.uint8)
        PILImage.fromarray(noise.squeeze(), mode).save(file := io.BytesIO(), "JPEG", quality=30 + number)
        pictures[f"p{number}"] = file.getvalue()
    if kind == "parquet":
        held = Dataset.from_dict({"jpg": [{"bytes": picture, "path": None} for picture in pictures.values()]})
        held = held.cast_column("jpg", Image()).add_column("id", list(pictures)).add_column("txt", ["a"] * 3)
        held.to_parquet(shard := tmp_path / "0.parquet")
    else:
        with tarfile.open(shard := tmp_path / "0.tar", "w") as tar:
            for name, picture in pictures.items():
                for extension, content in (("jpg", picture), ("txt", b"a")):
                    member = tarfile.TarInfo(f"{name}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    columns = {"image": "jpg", "captions": "txt", "label": None, "id": "id"}
    assert {row["id"]: row["image"]["bytes"] for row in stream_shards([str(shard)], columns)} == pictures
    retain, unlearn, _ = split_shards([str(shard)], ["p1"], image_column="jpg", caption_column="txt")
    found = {row["id"]: row["image"]["bytes"] for row in [*retain, *unlearn.cast_column("image", Image(decode=False))]}
    assert found == pictures


def test_everything_wrong_is_listed_at_once(tmp_path):
    pq.write_table(pa.table({"id": ["a", "b", "b"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError) as caught:
        request_rows_in_shards([tmp_path / "x.parquet"], ["a", "a", "b", "z", 1.5])
    for part in ("no id (1): 1.5", "repeated ids (1): a", "that no row has (1): z", "that several rows have (1): b"):
        assert part in str(caught.value)
    with pytest.raises(UserError, match=r"has no column 'key' .*; its columns: id\. Name the one that tells"):
        request_rows_in_shards([tmp_path / "x.parquet"], ["a"], "key")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"broken.parquet cannot be read"):
        request_rows_in_shards([tmp_path / "broken.parquet"], ["a"])


def test_numbers_are_ids_by_their_digits(tmp_path):
    pq.write_table(pa.table({"id": list(range(100))}), tmp_path / "x.parquet", row_group_size=7)
    plan = request_rows_in_shards([tmp_path / "x.parquet"], [17, "99"])
    assert next(iter(plan.places.values())).tolist() == [17, 99]


@pytest.mark.parametrize("kind", ["parquet", "tars"])
def test_retain_is_a_stream_without_the_request(request, shapes, kind):
    files, ids = request.getfixturevalue(kind), shapes["id"][:30]
    columns = {"image_column": "png", "caption_column": "txt"} if kind == "tars" else {"caption_column": "captions"}
    retain, unlearn, rows = split_shards(files, [ids[3], ids[25]], **columns)
    assert unlearn["id"] == [ids[3], ids[25]] and rows == 28
    seen = list(retain)
    assert [row["id"] for row in seen] == [name for name in ids if name not in unlearn["id"]]
    original = {row["id"]: row for row in shapes.select(range(30))}
    for row in [*islice(seen, 3), *unlearn]:
        assert read_image(row["image"]).tobytes() == original[row["id"]]["image"].tobytes()
        assert row["captions"][0] == original[row["id"]]["captions"][0]


@pytest.mark.parametrize("captions", ["captions", "title"])
def test_rows_read_by_place_are_those_that_a_filter_finds(tmp_path, shapes, monkeypatch, captions):
    """Row groups without a hit are left alone; numbers as ids and single captions become what the schema wants."""
    files, read = [tmp_path / f"{number}.parquet" for number in range(3)], []
    for number, file in enumerate(files):
        part = shapes.select(range(10 * number, 10 * number + 10)).with_format("arrow")[:]
        part = part.drop_columns("id").append_column("key", pa.array(range(10 * number, 10 * number + 10)))
        part = part.append_column("title", pa.array([None, *"bcdefghij"]))
        pq.write_table(part.select(part.column_names[::-1]), file, row_group_size=4)
    whole_group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda file, group, columns: read.append((group, sorted(columns))) or whole_group(file, group, columns=columns),
    )
    wanted = [29, 0, 3, 28, 7]
    columns = {"image_column": "image", "caption_column": captions, "id_column": "key"}
    _, unlearn, rows = split_shards(files, wanted, **columns)
    names = sorted(("image", captions, "key", "label"))
    assert read == [(0, names), (1, names), (2, names)] and rows == 25  # none of the second file
    schema = {"image": "image", "captions": captions, "label": None, "id": "key"}
    stream = stream_shards(files, schema).filter(lambda name: int(name) in wanted, input_columns=["id"])
    assert unlearn.features == stream.features
    assert list(unlearn) == list(stream)


@pytest.mark.parametrize(
    "captions",
    [pa.array([7, None, 9]), pa.array([[7, 8], [], [9]]), pa.array([["a"], ["b"], ["c"]], pa.large_list(pa.string()))],
    ids=lambda captions: str(captions.type),
)
def test_captions_are_read_as_they_are_in_memory(tmp_path, shapes, captions):
    rows = shapes.select(range(3)).select_columns(["image", "id"]).with_format("arrow")[:]
    pq.write_table(rows.append_column("text", captions), tmp_path / "x.parquet")
    ids = shapes["id"][:3]
    expected = [[str(text) for text in texts] if isinstance(texts, list) else [texts and str(texts)]
                for texts in captions.to_pylist()]  # fmt: skip
    for asked in range(2):
        retain, unlearn, _ = split_shards([tmp_path / "x.parquet"], [ids[asked]], caption_column="text")
        assert unlearn["captions"][:] == [expected[asked]]
        assert [row["captions"] for row in retain] == [expected[1 - asked], expected[2]]
        assert retain.features == unlearn.features and retain.features["captions"] == List(Value("string"))


@pytest.mark.parametrize(
    "captions", [pa.array([1.5, 2.5]), pa.array([[True], [False]])], ids=lambda captions: str(captions.type)
)
def test_captions_that_are_no_text_are_refused_by_their_own_column(tmp_path, shapes, captions):
    rows = shapes.select(range(2)).select_columns(["image", "id"]).with_format("arrow")[:]
    pq.write_table(rows.append_column("score", captions), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"The caption column 'score' of the shards holds .*, neither strings nor"):
        split_shards([tmp_path / "x.parquet"], [shapes["id"][0]], caption_column="score")


@pytest.mark.parametrize("asked", [0, 1])
def test_repeated_ids_are_refused_asked_for_or_not(tmp_path, shapes, asked):
    """Read whole they are joined; in a stream a picture's captions would be negatives of it."""
    rows = shapes.select(range(4)).with_format("arrow")[:]
    again = shapes.select([1, 2, 2]).with_format("arrow")[:]
    for number, part in enumerate((rows, again)):
        pq.write_table(part, tmp_path / f"{number}.parquet")
    ids = shapes["id"][:3]
    with pytest.raises(UserError) as caught:
        split_shards([tmp_path / "0.parquet", tmp_path / "1.parquet"], [ids[asked]])
    assert str(caught.value).startswith(f"The shards have ids that several rows have (2): {ids[1]}, {ids[2]}; put all")
    assert "as a list" in str(caught.value) and "leave --streaming out" in str(caught.value)
    pq.write_table(again.slice(0, 2), tmp_path / "1.parquet")
    assert split_shards([tmp_path / "1.parquet"], [ids[1]])[2] == 1


def test_repeated_keys_of_tar_files_are_refused(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", ["a", f"b{number}"])
    with pytest.raises(UserError, match=r"several rows have \(1\): a; give each sample a name of its own"):
        split_shards([tmp_path / "0.tar", tmp_path / "1.tar"], ["b0"], image_column="png")


def test_ids_of_one_hash_are_not_taken_for_one(tmp_path, shapes, monkeypatch):
    shapes.select(range(4)).to_parquet(tmp_path / "x.parquet")
    monkeypatch.setattr(module, "hash", lambda row_id: 7, raising=False)
    assert split_shards([tmp_path / "x.parquet"], shapes["id"][:1])[2] == 3


def test_a_column_that_only_other_shards_have_is_named(tmp_path):
    pq.write_table(pa.table({"id": ["a", "b"], "image": [b"", b""]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"id": ["c"], "picture": [b""]}), tmp_path / "1.parquet")
    with pytest.raises(UserError, match=r"1\.parquet has no column 'image'"):
        split_shards([tmp_path / "0.parquet", tmp_path / "1.parquet"], ["a", "c"])


def write_tar(path, names):
    picture = io.BytesIO()
    PILImage.new("RGB", (2, 2)).save(picture, "PNG")
    with tarfile.open(path, "w") as tar:
        for name in names:
            for kind, content in (("png", picture.getvalue()), ("txt", b"a square")):
                member = tarfile.TarInfo(f"{name}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("hidden", [".b", "x/.b"])
def test_hidden_files_are_no_samples_of_tar_files(tmp_path, hidden):
    """As `datasets` has it, which reads the samples."""
    write_tar(tmp_path / "x.tar", ["a", hidden, "x/c"])
    columns = {"image_column": "png", "caption_column": "txt"}
    retain, unlearn, rows = split_shards([tmp_path / "x.tar"], ["a"], **columns)
    assert (unlearn["id"][:], [row["id"] for row in retain], rows) == (["a"], ["x/c"], 1)


@pytest.mark.parametrize("name", ["__b", "x/__b"])
def test_samples_that_would_be_counted_and_not_read_are_refused(tmp_path, name):
    write_tar(tmp_path / "x.tar", ["a", name, "c"])
    with pytest.raises(UserError, match=rf"x\.tar holds '{name}\.png', .* two underscores"):
        split_shards([tmp_path / "x.tar"], ["a"], image_column="png")


def test_fewer_rows_than_were_asked_for_are_refused(tars, shapes, monkeypatch):
    monkeypatch.setattr(module, "readable_rows", lambda rows, what: list(rows)[1:])
    with pytest.raises(UserError, match="gave 1 of the 2 rows asked for"):
        split_shards(tars, shapes["id"][3:5], image_column="png")


def test_something_must_be_left(parquet, shapes):
    with pytest.raises(UserError, match="names every row"):
        split_shards(parquet, shapes["id"][:30])
    with pytest.raises(UserError, match="no column 'photo'"):
        split_shards(parquet, shapes["id"][:3], image_column="photo")


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([1.0, 2.0, 3.0]),
        pa.array([b"1", b"2", b"3"]),
        pa.array([True, False, None]),
        pa.array([1, 2, 3], pa.timestamp("us")),
        pa.array([1.0, 2.0, 3.0]).dictionary_encode(),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_that_are_written_in_more_than_one_way_are_refused(tmp_path, shapes, ids):
    """What reads ids would find "2" where the filter sees "2.0", and the requested row would stay in the stream."""
    rows = shapes.select(range(3)).with_format("arrow")[:].drop_columns("id").append_column("id", ids)
    pq.write_table(rows, tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"The id column 'id' of the shard .*x\.parquet holds .*, neither strings nor"):
        split_shards([tmp_path / "x.parquet"], ["2", "b'2'", "true"])


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.string(), pa.large_string()], ids=str)
@pytest.mark.parametrize("is_dictionary", [False, True])
def test_a_request_leaves_the_stream_whatever_type_its_ids_have(tmp_path, shapes, kind, is_dictionary):
    ids = pa.array([1, 2, None, 3]).cast(kind)
    rows = shapes.select(range(4)).with_format("arrow")[:].drop_columns("id")
    pq.write_table(rows.append_column("id", ids.dictionary_encode() if is_dictionary else ids), tmp_path / "x.parquet")
    retain, unlearn, count = split_shards([tmp_path / "x.parquet"], [2])
    assert (unlearn["id"][:], [row["id"] for row in retain], count) == (["2"], ["1", None, "3"], 3)
