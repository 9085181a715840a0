"""The user's own data: a Hub id, a folder of images, parquet files or a saved dataset, brought into one schema."""

import glob
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Image, List, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetsError
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_unlearn.data.caption_rows import join_captions
from hf_unlearn.data.columns import arrow_column, blank, captions_are_lists, id_texts, replace_column
from hf_unlearn.data.folders import list_folder
from hf_unlearn.data.labels import encode_labels
from hf_unlearn.data.picture_folders import load_pictures
from hf_unlearn.errors import LISTED, UserError, first_line, listed

T = TypeVar("T")
_MALFORMED = (TypeError, KeyError, AttributeError, RecursionError, OverflowError, NotImplementedError)
_FLAGS = {
    "image": "--image_column",
    "captions": "--caption_column",
    "label": "--label_column",
    "id": "--id_column",
}


def load_source(
    dataset_name: str | os.PathLike[str],
    *,
    dataset_config: str | None = None,
    revision: str | None = None,
    split: str | None = None,
    image_column: str = "image",
    caption_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
) -> Dataset | DatasetDict:
    """Load image data from anywhere and bring it into the library's schema, without decoding an image.

    Args:
        dataset_name: A folder written by `save_to_disk`, a folder of images (with captions in a `metadata.csv`), a
            parquet file or folder, a clone of a dataset on the Hub, or else the id of a dataset on the Hub. A local
            path wins; only a Hub id is ever fetched, and no code of a dataset is run. A folder's splits are its
            top-level folders, or its parquet files, called `train`, `validation`, `test`, `retain` or `unlearn`.
        dataset_config: Configuration of a Hub dataset, or of a clone of one.
        revision: Branch, tag or commit of a Hub dataset.
        split: Take this split alone.
        image_column: Column with the images (pictures, encoded bytes or paths); becomes `image`.
        caption_column: Column with one caption an image, or with a list of them; becomes `captions`, a list.
            By default the column `captions`, where there is one.
        label_column: Column with the classes (ClassLabel, strings or integers); becomes `label`, a ClassLabel.
            By default the column `label`, where there is one.
        id_column: Column with strings or integers that tell the rows apart; becomes `id`, a string. By default the
            column `id`; where there is none, a picture's path in its folder of images ("cat/7.png", without the
            "train/" before it), and elsewhere the row's number, "0", "1", ..., with the split before it in all splits
            but `train` ("test/0").

    Returns:
        The rows with `image`, `captions` and `label` where there are any, `id`, and every other column as it was; one
        that is in the way of these names is renamed `source_image` and so on. A `DatasetDict` unless there is a single
        split that was asked for or is called `train`.

    Raises:
        UserError: The data, its split or a column is missing or of another type, a caption is empty, an id repeated, or
            an option has no effect on this data.
    """
    columns = {"image": image_column, "captions": caption_column, "label": label_column, "id": id_column}
    return read_source(dataset_name, columns, dataset_config, revision, split)[0]


def read_source(
    dataset_name: str | os.PathLike[str],
    columns: Mapping[str, str | None],
    dataset_config: str | None = None,
    revision: str | None = None,
    split: str | None = None,
) -> tuple[Dataset | DatasetDict, str]:
    """As `load_source`, with a sentence on what was found: files, splits and where they come from, files left aside."""
    splits, told = _load(str(dataset_name), dataset_config, revision, columns)
    if split is not None:
        if split not in splits:
            raise UserError(f"{dataset_name} has no split {split!r}; it has {listed(splits)}")
        splits = DatasetDict({split: splits[split]})
    prefixes = {name: "" if name in ("train", split) else f"{name}/" for name in splits}
    name = str(dataset_name)
    with load_failures(name):  # what is damaged may show only when a column is read
        rows = DatasetDict(
            {n: to_schema(part, columns, name=name, prefix=prefixes[n], told=told) for n, part in splits.items()}
        )
        if any("label" in part.column_names for part in rows.values()):
            rows = encode_labels(rows, name)
    if rows.num_rows != splits.num_rows:
        joined = ", ".join(f"{name} {len(part):,}" for name, part in rows.items())
        told += f" Rows that repeat a picture are its captions: {joined} pictures."
    return (next(iter(rows.values())) if list(rows) in ([split], ["train"]) else rows), told


def _load(
    name: str, config: str | None, revision: str | None, columns: Mapping[str, str | None]
) -> tuple[DatasetDict, str]:
    path = Path(name).expanduser()
    is_saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    unused = {"--dataset_config": config if is_saved or path.is_file() else None, "--dataset_revision": revision}
    if path.exists() and (given := [flag for flag, value in unused.items() if value is not None]):
        raise UserError(f"{given[0]} has no effect: {path} is on this machine, not on the Hub; leave it unset.")
    told = ""
    with load_failures(name):
        if is_saved:
            loaded = load_from_disk(str(path))
        elif path.is_file():
            if path.suffix != ".parquet":
                raise UserError(f"{path} is neither a folder nor a .parquet file (--dataset_name).")
            loaded = _parquet({"train": [path]})
        elif path.is_dir():
            content = list_folder(path.resolve(), config)
            told = content.summary
            if content.kind == "pictures":
                loaded = load_pictures(content, columns["captions"], name_files=columns["id"] is None)
            elif content.kind == "parquet":
                loaded = _parquet(content.splits)
            elif content.kind == "nothing":
                raise ValueError("it holds no pictures and no .parquet files")
            else:
                files = [file for files in content.splits.values() for file in files]
                raise UserError(
                    f"{path} holds {len(files):,} archives ({listed(file.name for file in files)}); unpack them, and "
                    "name that folder (--dataset_name), or read shards (.tar) with --streaming."
                )
        else:
            loaded = load_dataset(name, config, revision=revision)
    splits = DatasetDict({"train": loaded}) if isinstance(loaded, Dataset) else loaded
    counts = ", ".join(f"{split} {len(rows):,}" for split, rows in splits.items())
    return splits, f"{told} Rows read: {counts}.".strip()


def _parquet(splits: Mapping[str, Sequence[Path]]) -> DatasetDict:
    # Paths are taken for patterns.
    files = {split: [glob.escape(str(file)) for file in files] for split, files in splits.items()}
    return load_dataset("parquet", data_files=files)


@contextmanager
def load_failures(name: str) -> Iterator[None]:
    """Say in one sentence why `datasets` cannot load a dataset."""
    if not Path(name).expanduser().exists():
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise UserError(f"{name} is neither a path on this machine nor a Hub id (--dataset_name).") from error
    try:
        yield
    except UserError:
        raise
    # A missing repository or file, an unknown configuration, damaged parquet, no connection; or whatever the parsers of
    # `datasets` meet in a record that is not what it says.
    except (OSError, ValueError, DatasetsError, pa.ArrowException, *_MALFORMED) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None  # which says nothing itself
        reason = first_line(cause if isinstance(cause, Exception) else error)
        raise UserError(f"The dataset {name} cannot be loaded (--dataset_name): {reason}") from error
    except IndexError as error:  # how `datasets` fails on a saved split without a row
        raise UserError(
            f"The dataset {name} has a split without rows (--dataset_name); save it with rows, or without that split."
        ) from error


def readable_rows(rows: Iterable[T], what: str) -> Iterator[T]:
    """The rows of a stream; where one cannot be read, which may be long after the first, one sentence says so."""
    try:
        yield from rows
    except UserError:
        raise
    except (OSError, ValueError, EOFError, tarfile.TarError, DatasetsError, pa.ArrowException, *_MALFORMED) as error:
        raise UserError(f"{what} cannot be read on ({first_line(error)}); fetch the damaged shard anew") from error


def to_schema(
    dataset: Dataset,
    columns: Mapping[str, str | None],
    *,
    name: str = "The dataset",
    prefix: str = "",
    told: str = "",
    called: Mapping[str, str | None] | None = None,
) -> Dataset:
    """Bring one split into the schema `image`, `captions`, `label`, `id`, keeping every other column.

    Args:
        dataset: Any dataset with a column of images.
        columns: The dataset's own column for each name of the schema; None for the column of that very name, if any.
        name: How messages call the data.
        prefix: What precedes row numbers used as ids.
        told: What was found of the data, for the message about a column that is missing.
        called: What messages call the columns of a dataset whose own ones were renamed before.

    Returns:
        The dataset in the schema; labels keep their type.

    Raises:
        UserError: A column is missing or of another type, a caption is empty, or an id repeated or missing.
    """
    try:
        dataset.data.validate(full=True)  # else the text of a row is found to be none when it is first looked at
    except pa.ArrowInvalid as error:
        raise UserError(f"{name} is damaged ({first_line(error)}); save it again, its text as UTF-8") from error
    present = dataset.column_names
    for target, source in columns.items():
        if source is not None and source not in present:
            raise UserError(
                f"{name} has no column {source!r} ({_FLAGS[target]}); its columns: {', '.join(present)}. {told}".strip()
            )
    wanted = {target: source or target for target, source in columns.items() if source or target in present}
    repeated = [source for source, times in Counter(wanted.values()).items() if times > 1]
    if repeated:
        flags = listed(_FLAGS[target] for target, source in wanted.items() if source in repeated)
        raise UserError(f"The column {repeated[0]!r} of {name} cannot be two things at once ({flags}).")
    aside = {target: f"source_{target}" for target in wanted if target in present and target not in wanted.values()}
    dataset = dataset.rename_columns({**aside, **{source: target for target, source in wanted.items()}})
    dataset = _with_images(dataset, name)
    if {"captions", "id"} <= wanted.keys():
        dataset = join_captions(dataset)
    names = {target: (called or {}).get(target) or source for target, source in wanted.items()}
    dataset = with_ids(dataset, source=names.get("id", "id"), name=name, prefix=prefix)
    return _with_caption_lists(dataset, names["captions"], name) if "captions" in names else dataset


def _with_images(dataset: Dataset, name: str) -> Dataset:
    if "image" not in dataset.column_names:
        present = ", ".join(dataset.column_names)
        raise UserError(f"{name} has no column 'image' (--image_column); its columns: {present}.")
    feature = dataset.features["image"]
    if isinstance(feature, Image):
        return dataset
    kind = dataset.data.schema.field("image").type
    is_file = pa.types.is_struct(kind) and {"bytes", "path"} >= set(kind.names)
    if not (is_file or kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())):
        raise UserError(f"The image column of {name} holds {kind}, neither images nor encoded bytes nor paths.")
    return dataset.cast_column("image", Image())


def with_ids(dataset: Dataset, *, source: str = "id", name: str = "The dataset", prefix: str = "") -> Dataset:
    """Give every row a string `id`: the column of that name, or where there is none the prefix and the row's number.

    Args:
        dataset: Any dataset.
        source: What the column `id` was called in the dataset, for messages.
        name: How messages call the dataset.
        prefix: What precedes row numbers used as ids.

    Returns:
        The dataset with unique ids.

    Raises:
        UserError: Ids are neither strings nor integers, missing, or repeated.
    """
    if "id" not in dataset.column_names:
        numbers = pc.cast(pa.array(np.arange(len(dataset))), pa.string())
        return dataset.add_column("id", pc.binary_join_element_wise(prefix, numbers, ""), feature=Value("string"))
    column = arrow_column(dataset, "id")
    ids = id_texts(column, source, name)
    missing = np.flatnonzero(blank(ids) | np.asarray(pc.fill_null(pc.match_substring(ids, "\n"), True), dtype=bool))
    if len(missing):
        raise UserError(
            f"The id column {source!r} of {name} is empty or holds a line break in these rows, counted from "
            f"0: {listed(missing)}; mend these ids, or name another column (--id_column)."
        )
    if len(pc.unique(ids)) < len(ids):
        counts = pc.value_counts(ids)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        raise UserError(
            f"In the column {source!r} of {name} several rows have the same id: "
            f"{listed(repeated.slice(0, LISTED).to_pylist(), len(repeated))}; give each row its own, or name another "
            "column (--id_column)."
        )
    return dataset if column.type == pa.string() else replace_column(dataset, "id", ids, Value("string"))


def _with_caption_lists(dataset: Dataset, source: str, name: str) -> Dataset:
    column = arrow_column(dataset, "captions")
    is_list = captions_are_lists(column.type, source, name)
    lists: list[pa.Array] = []
    empty: list[np.ndarray] = []
    for first, chunk in zip(np.cumsum([0, *map(len, column.chunks)]), column.chunks, strict=False):
        lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy() if is_list else np.ones(len(chunk), np.int64)
        texts = pc.cast(chunk.flatten() if is_list else chunk, pa.string())
        lists.append(pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), texts))
        blank_texts = np.repeat(np.arange(len(chunk)), lengths)[blank(texts)]
        empty.append(first + np.union1d(np.flatnonzero(lengths == 0), blank_texts))
    if any(map(len, empty)):
        rows = np.concatenate(empty)
        ids = dataset.select_columns("id").select(rows[:LISTED])["id"]
        raise UserError(
            f"Captions in the column {source!r} of {name} are empty in the rows with these ids: "
            f"{listed(ids, len(rows))}; give them a caption, leave them out, or name another column (--caption_column)."
        )
    feature = List(Value("string"))
    if dataset.features["captions"] == feature:
        return dataset
    return replace_column(dataset, "captions", pa.chunked_array(lists, pa.list_(pa.string())), feature)
