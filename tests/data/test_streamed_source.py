"""Sharded data as one source: each row in its split, nothing beyond the bound read into memory, every lack named."""

import io
import os
import shutil
import tarfile

import pytest
from datasets import ClassLabel, Dataset, Image
from PIL import Image as PILImage

from hf_unlearn.data.shards import shards_digest
from hf_unlearn.data.streamed_source import stream_source
from hf_unlearn.errors import UserError

PARTS = {"train-0": range(25), "train-1": range(25, 50), "validation-0": range(50, 61), "test-0": range(61, 72)}
ASKED = (3, 30, 44)
TAR = {"image_column": "png", "caption_column": "txt", "label_column": "cls"}


def write_tar(path, rows: Dataset) -> None:
    with tarfile.open(path, "w") as tar:
        for row in rows:
            picture = io.BytesIO()
            row["image"].save(picture, format="PNG")
            texts = {"txt": row["captions"][0], "cls": str(row["label"])}
            for kind, content in {"png": picture.getvalue(), **{k: v.encode() for k, v in texts.items()}}.items():
                member = tarfile.TarInfo(f"{row['id']}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, shapes):
    """The same 72 rows as parquet and as tar shards, 50 of them to train on."""
    found = {kind: tmp_path_factory.mktemp(kind) for kind in ("parquet", "tar")}
    for name, rows in PARTS.items():
        shapes.select(rows).to_parquet(found["parquet"] / f"{name}.parquet")
        write_tar(found["tar"] / f"{name}.tar", shapes.select(rows))
    return found


@pytest.fixture
def request_file(tmp_path, shapes):
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(shapes["id"][row] for row in ASKED))
    return path


@pytest.mark.parametrize(("kind", "columns"), [("parquet", {}), ("tar", TAR)])
def test_every_row_is_in_its_split(folders, request_file, shapes, kind, columns):
    streamed, splits, request = stream_source(folders[kind], request_file, **columns)
    ids = shapes["id"]
    expected = {name: {ids[row] for part in rows for row in PARTS[part]} for name, rows in {
        "retain": ("train-0", "train-1"), "validation": ("validation-0",), "test": ("test-0",)
    }.items()}  # fmt: skip
    expected["unlearn"] = {ids[row] for row in ASKED}
    expected["retain"] -= expected["unlearn"]
    assert {name: set(split["id"]) for name, split in splits.items()} == expected
    assert [row["id"] for row in streamed.stream] == [i for i in ids[:50] if i in expected["retain"]]
    assert streamed.rows == 47 and request.ids == tuple(sorted(expected["unlearn"]))
    original = {row["id"]: row for row in shapes}
    for split in splits.values():
        assert isinstance(split.features["label"], ClassLabel)
        for row in split:
            source = original[row["id"]]
            assert isinstance(row["image"], PILImage.Image) and row["image"].tobytes() == source["image"].tobytes()
            assert row["captions"][0] == source["captions"][0] and row["label"] == source["label"]


def test_what_is_measured_on_is_bounded_and_mixed(folders, request_file, shapes):
    _, splits, _ = stream_source(folders["parquet"], request_file, max_eval_samples=5)
    assert {name: len(split) for name, split in splits.items()} == {
        "retain": 5, "unlearn": 3, "validation": 5, "test": 5,
    }  # fmt: skip
    firsts = {"retain": shapes["id"][:5], "validation": shapes["id"][50:55], "test": shapes["id"][61:66]}
    for name, first in firsts.items():  # shards may be sorted
        assert splits[name]["id"] != first
    again = stream_source(folders["parquet"], request_file, max_eval_samples=5)[1]
    assert [splits[name]["id"][:] for name in firsts] == [again[name]["id"][:] for name in firsts]


def test_a_holdout_is_read_beside_them(folders, request_file, shapes, tmp_path):
    for name in PARTS:
        (tmp_path / f"{name}.parquet").symlink_to(folders["parquet"] / f"{name}.parquet")
    (tmp_path / "holdout_near-0.parquet").symlink_to(folders["parquet"] / "test-0.parquet")
    _, splits, _ = stream_source(tmp_path, request_file)
    assert sorted(splits["holdout_near"]["id"]) == sorted(shapes["id"][61:72])


def test_a_missing_split_is_named(folders, request_file, tmp_path):
    for name in ("train-0", "train-1", "test-0"):
        (tmp_path / f"{name}.parquet").symlink_to(folders["parquet"] / f"{name}.parquet")
    with pytest.raises(UserError, match=r"lacks validation: name its shards train-\*, validation-\*"):
        stream_source(tmp_path, request_file)


def test_what_is_not_in_shards_is_refused(shapes, request_file, tmp_path):
    for name in ("train", "validation", "test"):
        (tmp_path / "images" / name).mkdir(parents=True)
        shapes[0]["image"].save(tmp_path / "images" / name / "a.png")
    with pytest.raises(UserError, match=r"parquet or WebDataset shards, which .*images does not consist of"):
        stream_source(tmp_path / "images", request_file)


def test_unknown_ids_and_columns_are_listed(folders, tmp_path):
    (tmp_path / "ids.txt").write_text("red-circle-3\nno-such-id\nanother\n")
    with pytest.raises(UserError, match=r"ids that no row has \(2\): no-such-id, another"):
        stream_source(folders["parquet"], tmp_path / "ids.txt")
    (tmp_path / "ids.txt").write_text("red-circle-3\n")
    with pytest.raises(UserError, match=r"no column 'text'; their columns: image, captions"):
        stream_source(folders["parquet"], tmp_path / "ids.txt", caption_column="text")


def test_a_column_of_ids_is_refused_for_tar_files_whose_keys_are_ids(folders, request_file):
    stream_source(folders["parquet"], request_file, id_column="id")
    with pytest.raises(UserError, match="--id_column has no effect on tar files: a sample's id is its key"):
        stream_source(folders["tar"], request_file, id_column="id", **TAR)


def test_the_hash_tells_shards_columns_and_request(folders, request_file, shapes, tmp_path):
    def digest(folder=folders["parquet"], **columns: str) -> str:
        return stream_source(folder, request_file, **columns)[0].sha256

    first = digest()
    assert digest() == first != digest(folders["tar"], **TAR)
    assert digest(caption_column="owner") != first  # other captions make another Retrain
    request_file.write_text("\n".join(reversed(request_file.read_text().split())))
    assert digest() == first
    request_file.write_text(shapes["id"][3])
    assert digest() != first


def test_labels_in_train_alone_leave_no_labels_to_probe(folders, shapes, request_file, tmp_path):
    for name, rows in PARTS.items():
        part = shapes.select(rows) if name.startswith("train") else shapes.select(rows).remove_columns("label")
        part.to_parquet(tmp_path / f"{name}.parquet")
    splits = stream_source(tmp_path, request_file)[1]
    assert "label" in splits["unlearn"].column_names and "label" not in splits["test"].column_names
    with pytest.raises(UserError, match="no column 'label'"):
        stream_source(tmp_path, request_file, label_column="label")


def test_shards_that_changed_are_others_though_names_and_sizes_stay(folders, tmp_path):
    shards = [shutil.copy2(file, tmp_path) for file in sorted(folders["parquet"].glob("*.parquet"))]
    first = shards_digest(shards)
    assert shards_digest(shards) == first == shards_digest(shards[::-1])
    content = bytearray((tmp_path / "train-0.parquet").read_bytes())
    file, times = tmp_path / "train-0.parquet", (tmp_path / "train-0.parquet").stat()
    for place in (5, -5):
        content[place] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert shards_digest(shards) != first, "another content at either end"
        content[place] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert shards_digest(shards) == first
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    assert shards_digest(shards) != first, "written anew since"


@pytest.mark.parametrize("row", [0, 3, 30])
def test_samples_without_a_caption_are_named_wherever_they_are(folders, request_file, shapes, tmp_path, row):
    for name, rows in PARTS.items():
        write_tar(tmp_path / f"{name}.tar", shapes.select(rows))
    shard = "train-0" if row < 25 else "train-1"
    with tarfile.open(tmp_path / f"{shard}.tar") as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    lost = f"{shapes['id'][row]}.txt"
    with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
        for member, content in members:
            if member.name != lost:
                tar.addfile(member, io.BytesIO(content))
    with pytest.raises(
        UserError, match=rf"1 of 25 samples of the shard .*{shard}.tar have no \.txt: {shapes['id'][row]};"
    ):
        stream_source(tmp_path, request_file, **TAR)


@pytest.mark.parametrize(("column", "said"), [("text", "Captions in the column"), ("key", "The id column")])
def test_columns_are_called_as_the_data_calls_them(folders, request_file, shapes, tmp_path, column, said):
    for name, rows in PARTS.items():
        part = shapes.select(rows).rename_columns({"captions": "text", "id": "key"})
        if name == "test-0":
            part = part.map(lambda row: {column: [""] if column == "text" else " "})
        part.to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(UserError, match=f"{said} '{column}' of "):
        stream_source(tmp_path, request_file, caption_column="text", id_column="key")


def test_bad_pictures_are_left_out_on_request_and_never_unlearn_ones(folders, request_file, shapes, tmp_path):
    bad = shapes.cast_column("image", Image(decode=False))

    def spoil(*rows):
        spoilt = {shapes["id"][row] for row in rows}
        columns = {"image": {"bytes": b"damaged", "path": None}}
        changed = bad.map(lambda row: columns if row["id"] in spoilt else {}, features=bad.features)
        for name, part in PARTS.items():
            changed.select(part).to_parquet(tmp_path / f"{name}.parquet")

    spoil(1, 52, 62)
    streamed, splits, _ = stream_source(tmp_path, request_file, skip_bad_images=True)
    assert streamed.skip_bad and {name: len(split) for name, split in splits.items()} == {
        "retain": 46, "unlearn": 3, "validation": 10, "test": 10,
    }  # fmt: skip
    assert streamed.sha256 != stream_source(tmp_path, request_file)[0].sha256
    spoil(ASKED[0])
    with pytest.raises(UserError, match="an image to be unlearned is never skipped"):
        stream_source(tmp_path, request_file, skip_bad_images=True)


@pytest.mark.parametrize("pattern", ["", "**foo.parquet"])
def test_a_pattern_that_is_none_is_told(folders, request_file, tmp_path, pattern):
    """As it is without streaming; glob raises one error for the first and another for the second."""
    root = tmp_path / "data"
    shutil.copytree(folders["parquet"], root)
    files = f'[{{split: train, path: "{pattern}"}}]'
    (root / "README.md").write_text(f"---\nconfigs: [{{config_name: default, data_files: {files}}}]\n---\n")
    with pytest.raises(UserError, match=r"data cannot be loaded \(--dataset_name\): "):
        stream_source(root, request_file)


def test_local_shards_are_found_by_whole_names_and_listed(folders, request_file, tmp_path, caplog):
    root = tmp_path / "my [test] data"
    shutil.copytree(folders["parquet"], root)
    (root / "ids.txt").write_text("x")
    with caplog.at_level("INFO"):
        streamed, _, _ = stream_source(root, request_file)
    assert streamed.rows == 47
    assert "Files (.parquet) found: train 2, validation 1, test 1" in caplog.text and "1 .txt" in caplog.text
    with pytest.raises(UserError, match="--dataset_revision has no effect"):
        stream_source(root, request_file, revision="main")
