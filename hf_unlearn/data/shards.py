"""Removal requests against data in shards: found by reading ids alone, row group by row group or header by header."""

import glob
import hashlib
import os
import tarfile
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Image, IterableDataset, List, Value, load_dataset
from datasets.packaged_modules.webdataset.webdataset import base_plus_ext
from datasets.table import table_cast
from numpy.typing import NDArray

from hf_unlearn.data.columns import captions_are_lists, id_texts
from hf_unlearn.data.requests import checked_ids
from hf_unlearn.data.sources import load_failures, readable_rows
from hf_unlearn.errors import LISTED, UserError, listed

_CHUNK = 2**20  # ids at a time: the lookup table of the request is built anew for each
_END = 2**16  # bytes of a shard's beginning and end that stand for what is in it
_VERSIONS = ("blob_id", "lfs", "ETag", "etag", "md5Hash", "version_id")  # how stores tell what a file holds
_KEY = "__key__"  # what WebDataset calls the id of a sample

Shards = Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class RequestInShards:
    """Where the rows of a request are.

    Args:
        rows: Number of rows in all shards.
        places: For each shard that has any, the rows asked for, ascending.
    """

    rows: int
    places: dict[str, NDArray[np.int64]] = field(repr=False)

    @property
    def count(self) -> int:
        """How many rows were asked for."""
        return sum(map(len, self.places.values()))


def request_rows_in_shards(
    shards: Shards, requested: Sequence[object], id_column: str = "id", name: str = "The removal request"
) -> RequestInShards:
    """Find the rows that a request names, reading ids alone, a chunk at a time.

    Args:
        shards: Parquet files, of which only the column of ids is read, or WebDataset tar files, of which only the
            headers are; paths, or addresses that fsspec opens, such as hf://datasets/org/name/train-0.parquet.
        requested: The ids asked for; integers stand for their decimal digits.
        id_column: Column of ids in parquet files; in tar files the key of a sample is its id.
        name: How the message calls the request.

    Returns:
        The places of the rows.

    Raises:
        UserError: A shard cannot be read, or has no such column of strings or integers; an entry is no id, repeated or
            unknown; or several rows have the same id, asked for or not. All entries are listed at once.
    """
    wanted_ids, problems = checked_ids(requested)
    wanted = pa.array(dict.fromkeys(wanted_ids), pa.string())
    found = np.zeros(len(wanted), dtype=bool)
    places, total, hashes = {}, 0, array("q")
    for shard in _paths(shards):
        rows, first = [np.empty(0, np.int64)], 0
        for ids in _shard_ids(shard, id_column):
            place = np.asarray(pc.fill_null(pc.index_in(ids, value_set=wanted), -1))
            hits = np.flatnonzero(place >= 0)
            found[place[hits]] = True
            rows.append(first + hits)
            first += len(ids)
            hashes.extend(map(hash, ids.drop_null().to_pylist()))
        total += first
        if any(map(len, rows)):
            places[shard] = np.concatenate(rows)
    if not found.all():
        unknown = wanted.filter(pa.array(~found))
        shown = listed(unknown.slice(0, LISTED).to_pylist(), len(unknown))
        problems.append(f"ids that no row has ({len(unknown):,}): {shown}")
    sentences = [f"{name} has {'; '.join(problems)}."] if problems else []
    if repeated := _repeated_ids(shards, id_column, np.asarray(hashes)):
        remedy = (
            "give each sample a name of its own"
            if is_tar(shards[0])
            else "put all captions of a picture into one row, as a list, and each row there once; or leave --streaming "
            "out, as rows of one picture are joined where data is read whole; or name another column (--id_column)"
        )
        sentences.append(f"The shards have ids that several rows have {repeated}; {remedy}.")
    if sentences:
        raise UserError(" ".join(sentences))
    return RequestInShards(total, places)


def _repeated_ids(shards: Shards, id_column: str, hashes: NDArray[np.int64]) -> str:
    """How many ids several rows have, and the first of them; empty if none. Only then is anything read again.

    Args:
        shards: As in `request_rows_in_shards`.
        id_column: As there.
        hashes: Python's hash of each id, eight bytes a row where the ids themselves might not fit; sorted in place.
    """
    hashes.sort()
    repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    suspects = set(repeated[:LISTED].tolist())  # of which some may be the hash of two ids
    if not suspects:
        return ""
    chunks = (ids.drop_null().to_pylist() for shard in _paths(shards) for ids in _shard_ids(shard, id_column))
    rows = Counter(row_id for chunk in chunks for row_id in chunk if hash(row_id) in suspects)
    examples = [row_id for row_id, times in rows.items() if times > 1]
    count = len(repeated) - len(suspects) + len(examples)
    return f"({count:,}): {listed(examples, count)}" if examples else ""


def split_shards(
    shards: Shards,
    requested: Sequence[object],
    *,
    image_column: str = "image",
    caption_column: str | None = None,
    label_column: str | None = None,
    id_column: str = "id",
) -> tuple[IterableDataset, Dataset, int]:
    """Split data in shards into a retain stream and a resident unlearn split.

    For the unlearn split only the row groups (of tar files, the files) that hold a requested row are read, and its
    pictures are kept as they are stored.

    Args:
        shards: Parquet files, or WebDataset tar files, whose `__key__` is the id.
        requested: The ids to be unlearned.
        image_column: Column (or extension, such as "jpg") of the pictures.
        caption_column: Column (or extension, such as "txt") of captions: strings or lists of them; by default
            `captions`, where there is one.
        label_column: Column (or extension, such as "cls") of classes, for the probes; by default `label`, where there
            is one.
        id_column: Column of ids in parquet files.

    Returns:
        `retain`, which leaves the requested rows out as it is read, `unlearn`, and the number of retain rows: what
        `{"retain": retain, "unlearn": unlearn}` and `retain_rows` of a trainer take.

    Raises:
        UserError: As `request_rows_in_shards` does, or a column is missing, or no row would be left.
    """
    columns = {"image": image_column, "captions": caption_column, "label": label_column, "id": id_column}
    plan = request_rows_in_shards(shards, requested, id_column)
    check_samples(shards, columns)
    if plan.count == plan.rows:
        raise UserError("The removal request names every row of the shards; leave some to retain.")
    ids = frozenset(map(str, requested))
    retain = stream_shards(shards, columns).filter(_InRequest(ids, wanted=False), input_columns=["id"])
    asked = stream_shards(list(plan.places), columns)
    if is_tar(shards[0]):
        asked = asked.filter(_InRequest(ids), input_columns=["id"])
        unlearn = Dataset.from_list(list(readable_rows(asked, "The shards")), features=asked.features)
    else:
        schema = asked.features.arrow_schema
        parts = [
            part
            for shard, rows in plan.places.items()
            for part in readable_rows(_parquet_rows(shard, rows, columns, schema), f"The shard {shard}")
        ]
        unlearn = Dataset(pa.concat_tables(parts))
    if len(unlearn) != plan.count:
        raise UserError(f"The shards gave {len(unlearn):,} of the {plan.count:,} rows asked for; write them anew.")
    return retain, unlearn, plan.rows - plan.count


@dataclass(frozen=True)
class _InRequest:
    """Whether a row is in the request, or is not; a class, so that it reaches other processes."""

    ids: Collection[str] = field(repr=False)
    wanted: bool = True

    def __call__(self, row_id: str | None) -> bool:
        return (row_id in self.ids) == self.wanted


def stream_shards(shards: Shards, columns: dict[str, str | None]) -> IterableDataset:
    """The rows of shards in the library's schema, their pictures not decoded.

    Args:
        shards: As in `request_rows_in_shards`.
        columns: The shards' own column for each name of the schema; None for the column of that very name, if any.

    Raises:
        UserError: A column is missing, or that of captions holds something else.
    """
    kind = "webdataset" if is_tar(shards[0]) else "parquet"
    files = [shard if "://" in shard else glob.escape(shard) for shard in _paths(shards)]
    with load_failures(os.fspath(shards[0])):
        rows = load_dataset(kind, data_files=files, split="train", streaming=True)
    wanted = {target: source or target for target, source in columns.items() if source or target in rows.column_names}
    if kind == "webdataset":
        wanted["id"] = _KEY
    missing = [source for source in wanted.values() if source not in rows.column_names]
    if missing:
        raise UserError(f"The shards have no column {missing[0]!r}; their columns: {', '.join(rows.column_names)}.")
    # Before any column is renamed, which passes through the rows: pictures would be decoded there, and encoded anew.
    rows = rows.select_columns(list(wanted.values())).cast_column(wanted["image"], Image(decode=False))
    rows = rows.rename_columns({source: target for target, source in wanted.items() if source != target})
    rows = rows.cast_column("id", Value("string"))
    if "captions" not in wanted:
        return rows
    lists = List(Value("string"))
    if captions_are_lists(rows.features.arrow_schema.field("captions").type, wanted["captions"], "the shards"):
        return rows if rows.features["captions"] == lists else rows.cast_column("captions", lists)
    features = type(rows.features)(rows.features | {"captions": lists})
    return rows.map(_as_list, input_columns=["captions"], features=features)


def check_samples(shards: Shards, columns: Mapping[str, str | None]) -> None:
    """Refuse tar files in which a sample lacks a part that is asked for, as their headers tell; parquet has none such.

    Args:
        shards: As in `request_rows_in_shards`.
        columns: The extension of each part, by its name in the schema; None for one that is not asked for.

    Raises:
        UserError: Samples lack a picture, caption or class; the first 20 are named.
    """
    wanted = {source for name, source in columns.items() if source is not None and name != "id"}
    for shard in filter(is_tar, _paths(shards)):
        with _readable(shard):
            parts = {key: set(kinds) for key, kinds in _tar_samples(shard)}
        for source in wanted & set().union(*parts.values()):  # one that no sample has is a wrong name, and told as such
            if keys := [key for key, kinds in parts.items() if source not in kinds]:
                raise UserError(
                    f"{len(keys):,} of {len(parts):,} samples of the shard {shard} have no .{source}: {listed(keys)}; "
                    "add it, or leave the samples out."
                )


def _as_list(caption: str | int | None) -> dict[str, list[str | None]]:
    return {"captions": [None if caption is None else str(caption)]}


def _paths(shards: Shards) -> list[str]:
    return [os.fspath(shard) for shard in shards]


def is_tar(shard: str | os.PathLike[str]) -> bool:
    """Whether a shard is a tar file, in which the key of a sample is its id, and no parquet file."""
    return Path(shard).suffix == ".tar"


def _shard_ids(shard: str, column: str) -> Iterator[pa.Array]:
    """The ids of a shard in order, some at a time; nothing else of it is read."""
    with _readable(shard):
        yield from _tar_ids(shard) if is_tar(shard) else _parquet_ids(shard, column)


@contextmanager
def _readable(shard: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, tarfile.TarError, ValueError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"The shard {shard} cannot be read: {(str(error).splitlines() or ['damaged'])[0]}") from error


def _parquet_ids(shard: str, column: str) -> Iterator[pa.Array]:
    with fsspec.open(shard) as opened, pq.ParquetFile(opened) as file:
        if column not in file.schema_arrow.names:
            raise UserError(
                f"The shard {shard} has no column {column!r} (--id_column); its columns: "
                f"{', '.join(file.schema_arrow.names)}. Name the one that tells its rows apart, or add one: rows of a "
                "stream have no numbers"
            )
        for batch in file.iter_batches(_CHUNK, columns=[column]):
            yield id_texts(batch.column(0), column, f"the shard {shard}")


def _parquet_rows(
    shard: str, places: NDArray[np.int64], columns: dict[str, str | None], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Rows of a shard by their ascending places, as `stream_shards` gives them; other row groups are not read."""
    sources = [columns[name] or name for name in schema.names]
    with fsspec.open(shard) as opened, pq.ParquetFile(opened) as file:
        if missing := [source for source in sources if source not in file.schema_arrow.names]:
            raise UserError(f"The shard {shard} has no column {missing[0]!r}, which other shards have.")
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            here = places[slice(*np.searchsorted(places, (first, end)))] - first
            first = end
            if len(here):
                table = file.read_row_group(group, columns=sources).take(here).select(sources)
                table = table.rename_columns(schema.names)
                if "captions" in schema.names and not pa.types.is_nested(table.schema.field("captions").type):
                    single = table["captions"].combine_chunks()
                    lists = pa.ListArray.from_arrays(np.arange(len(single) + 1, dtype=np.int32), single)
                    table = table.set_column(schema.names.index("captions"), "captions", lists)
                yield table_cast(table, schema)


def _tar_ids(shard: str) -> Iterator[pa.Array]:
    keys = (key for key, _ in _tar_samples(shard))
    while chunk := list(islice(keys, _CHUNK)):
        yield pa.array(chunk, pa.string())


def _tar_samples(shard: str) -> Iterator[tuple[str, list[str]]]:
    """The key of each sample of a tar file and the extensions of its parts, in order, from the headers alone."""

    def parts(file: tarfile.TarFile) -> Iterator[tuple[str, str]]:
        for member in file:
            file.members = []  # type: ignore[attr-defined]  # or all headers would be kept
            name = member.name.rpartition("/")[2]
            if not member.isfile() or name.startswith("."):  # hidden
                continue
            if name.startswith("__"):  # which `datasets` skips: it would be counted, and never read
                raise UserError(
                    f"The shard {shard} holds {member.name!r}, and what is called so is not read; rename it to begin "
                    "with something else than two underscores, or leave it out."
                )
            key, extension = base_plus_ext(member.name)
            if key is not None and extension is not None:
                yield key, extension.lower()

    with fsspec.open(shard) as opened, tarfile.open(fileobj=opened, mode="r:") as file:
        for key, sample in groupby(parts(file), key=itemgetter(0)):
            yield key, [extension for _, extension in sample]


def shards_digest(shards: Shards) -> str:
    """Hash that changes when shards do, without reading them whole: names, sizes, times of change, both ends.

    Where a store tells a hash or version of a file, as the Hub does, that takes the place of time and ends.
    """
    digest = hashlib.sha256()
    for shard in sorted(_paths(shards)):
        opened = fsspec.open(shard)
        info = opened.fs.info(opened.path)
        told = [f"{key} {info[key]}" for key in _VERSIONS if info.get(key) is not None]
        digest.update(f"{Path(shard).name} {info['size']} {told or info.get('mtime')}\n".encode())
        if not told:
            with opened as file:
                digest.update(file.read(_END))
                file.seek(max(0, info["size"] - _END))
                digest.update(file.read(_END))
    return digest.hexdigest()
