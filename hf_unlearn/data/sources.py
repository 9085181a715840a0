"""The user's own data: a Hub id, a folder of images, parquet files or a saved dataset, brought into one schema."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_unlearn.data.images import check_images, to_rgb
from hf_unlearn.errors import LISTED, UserError, listed

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

__all__ = ["check_images", "load_source", "normalise", "to_rgb", "with_ids"]

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
        dataset_name: A folder written by `save_to_disk`, a folder of images (`imagefolder`, with captions in a
            `metadata.csv`), a parquet file or folder, or else the id of a dataset on the Hub. A local path wins; only a
            Hub id is ever fetched, and no code of a dataset is run.
        dataset_config: Configuration of a Hub dataset.
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
        UserError: The data, its split or a column is missing or of another type, a caption is empty, or an id repeated.
    """
    from datasets import Dataset, DatasetDict

    loaded = _load(str(dataset_name), dataset_config, revision, name_files=id_column is None)
    splits = DatasetDict({"train": loaded}) if isinstance(loaded, Dataset) else loaded
    if split is not None:
        if split not in splits:
            raise UserError(f"{dataset_name} has no split {split!r} (--dataset_split); it has {listed(splits)}.")
        splits = DatasetDict({split: splits[split]})
    columns = {"image": image_column, "captions": caption_column, "label": label_column, "id": id_column}
    prefixes = {name: "" if name in ("train", split) else f"{name}/" for name in splits}
    rows = DatasetDict(
        {name: normalise(part, columns, name=str(dataset_name), prefix=prefixes[name]) for name, part in splits.items()}
    )
    if any("label" in part.column_names for part in rows.values()):
        rows = encode_labels(rows, str(dataset_name))
    return next(iter(rows.values())) if list(rows) in ([split], ["train"]) else rows


def _load(name: str, config: str | None, revision: str | None, name_files: bool) -> Dataset | DatasetDict:
    from datasets import DatasetDict, load_dataset, load_from_disk

    path = Path(name).expanduser()
    with load_failures(name):
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return load_from_disk(str(path))
        if path.is_file():
            if path.suffix != ".parquet":
                raise UserError(f"{path} is neither a folder nor a .parquet file (--dataset_name).")
            return load_dataset("parquet", data_files=str(path), split="train")
        if path.is_dir():
            if next(path.rglob("*.parquet"), None):
                loaded = load_dataset("parquet", data_dir=str(path))
            else:
                loaded = load_dataset("imagefolder", data_dir=str(path))
                loaded = _with_file_ids(loaded, path.resolve()) if name_files else loaded
        else:
            loaded = load_dataset(name, config, revision=revision)
    return loaded if isinstance(loaded, DatasetDict) else DatasetDict(loaded)


def _with_file_ids(splits: DatasetDict, folder: Path) -> DatasetDict:
    """Give the pictures of a folder their paths in it as ids, as their owners know them; in archives they have none."""
    from datasets import DatasetDict, Image, Value

    named = {}
    for name, rows in splits.items():
        if "id" not in rows.column_names:
            column = arrow_column(rows.cast_column("image", Image(decode=False)), "image")
            paths = [Path(file) for file in pc.struct_field(column, "path").to_pylist()]
            if all(path.is_relative_to(folder) for path in paths):
                ids = [path.relative_to(folder).as_posix().removeprefix("train/") for path in paths]
                rows = rows.add_column("id", ids, feature=Value("string"))
        named[name] = rows
    return DatasetDict(named)


@contextmanager
def load_failures(name: str) -> Iterator[None]:
    """Say in one sentence why `datasets` cannot load a dataset."""
    from datasets.exceptions import DatasetsError

    if not Path(name).expanduser().exists():
        _check_hub_id(name)
    try:
        yield
    except UserError:
        raise
    # A missing repository or file, an unknown configuration, damaged parquet, no connection.
    except (OSError, ValueError, DatasetsError, pa.ArrowException) as error:
        raise UserError(f"The dataset {name} cannot be loaded (--dataset_name): {_first_line(error)}") from error
    except IndexError as error:  # how `datasets` fails on a saved split without a row
        raise UserError(
            f"The dataset {name} has a split without rows (--dataset_name); save it with rows, or without that split."
        ) from error


def _check_hub_id(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{name} is neither a path on this machine nor a Hub id (--dataset_name).") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def normalise(
    dataset: Dataset, columns: Mapping[str, str | None], *, name: str = "The dataset", prefix: str = ""
) -> Dataset:
    """Bring one split into the schema `image`, `captions`, `label`, `id`, keeping every other column.

    Args:
        dataset: Any dataset with a column of images.
        columns: The dataset's own column for each name of the schema; None for the column of that very name, if any.
        name: How messages call the data.
        prefix: What precedes row numbers used as ids.

    Returns:
        The dataset in the schema; labels keep their type.

    Raises:
        UserError: A column is missing or of another type, a caption is empty, or an id repeated or missing.
    """
    present = dataset.column_names
    for target, source in columns.items():
        if source is not None and source not in present:
            raise UserError(f"{name} has no column {source!r} ({_FLAGS[target]}); its columns: {', '.join(present)}.")
    wanted = {target: source or target for target, source in columns.items() if source or target in present}
    repeated = [source for source, times in Counter(wanted.values()).items() if times > 1]
    if repeated:
        flags = listed(_FLAGS[target] for target, source in wanted.items() if source in repeated)
        raise UserError(f"The column {repeated[0]!r} of {name} cannot be two things at once ({flags}).")
    aside = {target: f"source_{target}" for target in wanted if target in present and target not in wanted.values()}
    dataset = dataset.rename_columns({**aside, **{source: target for target, source in wanted.items()}})
    dataset = _with_images(dataset, name)
    dataset = with_ids(dataset, source=wanted.get("id", "id"), name=name, prefix=prefix)
    return _with_caption_lists(dataset, wanted["captions"], name) if "captions" in wanted else dataset


def _with_images(dataset: Dataset, name: str) -> Dataset:
    from datasets import Image

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
    from datasets import Value

    if "id" not in dataset.column_names:
        numbers = pc.cast(pa.array(np.arange(len(dataset))), pa.string())
        return dataset.add_column("id", pc.binary_join_element_wise(prefix, numbers, ""), feature=Value("string"))
    column = arrow_column(dataset, "id")
    if not (is_text(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        raise UserError(
            f"The id column {source!r} of {name} holds {column.type}, neither strings nor integers (--id_column)."
        )
    ids = pc.cast(column, pa.string())
    missing = np.flatnonzero(_blank(ids) | np.asarray(pc.fill_null(pc.match_substring(ids, "\n"), True), dtype=bool))
    if len(missing):
        raise UserError(
            f"The id column {source!r} of {name} is empty or holds a line break in {len(missing)} rows (--id_column): "
            f"{listed(missing)}."
        )
    if len(pc.unique(ids)) < len(ids):
        counts = pc.value_counts(ids)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        raise UserError(
            f"{len(repeated)} ids of {name} are repeated in the column {source!r} (--id_column): "
            f"{listed(repeated.slice(0, LISTED).to_pylist(), len(repeated))}."
        )
    return dataset if column.type == pa.string() else _replace(dataset, "id", ids, Value("string"))


def _with_caption_lists(dataset: Dataset, source: str, name: str) -> Dataset:
    from datasets import List, Value

    column = arrow_column(dataset, "captions")
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    text = kind.value_type if is_list else kind
    if not is_text(text):
        raise UserError(
            f"The caption column {source!r} of {name} holds {kind}, neither strings nor lists of strings "
            "(--caption_column)."
        )
    lists: list[pa.Array] = []
    empty: list[np.ndarray] = []
    for first, chunk in zip(np.cumsum([0, *map(len, column.chunks)]), column.chunks, strict=False):
        lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy() if is_list else np.ones(len(chunk), np.int64)
        texts = pc.cast(chunk.flatten() if is_list else chunk, pa.string())
        lists.append(pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), texts))
        blank_texts = np.repeat(np.arange(len(chunk)), lengths)[_blank(texts)]
        empty.append(first + np.union1d(np.flatnonzero(lengths == 0), blank_texts))
    if any(map(len, empty)):
        rows = np.concatenate(empty)
        ids = dataset.select_columns("id").select(rows[:LISTED])["id"]
        raise UserError(
            f"Captions in the column {source!r} of {name} are empty in {len(rows)} rows (--caption_column), "
            f"whose ids are {listed(ids, len(rows))}."
        )
    feature = List(Value("string"))
    if dataset.features["captions"] == feature:
        return dataset
    return _replace(dataset, "captions", pa.chunked_array(lists, pa.list_(pa.string())), feature)


def align_classes(splits: Mapping[str, Dataset], column: str = "label", name: str = "the data") -> DatasetDict:
    """Number the classes of a column of ClassLabels alike in all splits: by their names, sorted where they differ.

    Args:
        splits: Rows; splits whose column holds no ClassLabel, or that lack it, are left alone.
        column: The column.
        name: How messages call the data.

    Returns:
        The splits, the same ones where their classes are numbered alike already.

    Raises:
        UserError: Two splits have no class in common, so that their names cannot mean the same.
    """
    from datasets import ClassLabel, DatasetDict

    kinds = {split: rows.features.get(column) for split, rows in splits.items()}
    named = {split: kind.names for split, kind in kinds.items() if isinstance(kind, ClassLabel)}
    if len(set(map(tuple, named.values()))) <= 1:
        return DatasetDict(splits)
    first, *others = named
    strange = [split for split in others if not set(named[split]) & set(named[first])]
    if strange:
        raise UserError(
            f"The column {column!r} of {name} has classes {listed(named[first])} in {first} and "
            f"{listed(named[strange[0]])} in {strange[0]}, none of them the same; name them alike in all splits."
        )
    feature = ClassLabel(names=sorted(set().union(*named.values())))
    aligned = dict(splits)
    for split, names in named.items():
        places = pa.array([feature.str2int(label) for label in names], pa.int64())
        old = arrow_column(splits[split], column)
        known = pc.take(places, pc.if_else(pc.less(old, 0), pa.scalar(None, old.type), old))
        aligned[split] = _replace(splits[split], column, pc.fill_null(known, -1), feature)
    return DatasetDict(aligned)


def encode_labels(splits: DatasetDict, name: str) -> DatasetDict:
    """Make `label` one ClassLabel over all splits: names sorted, integers by value.

    Raises:
        UserError: Labels are missing, or neither strings nor integers, or two splits have no class in common.
    """
    from datasets import ClassLabel, DatasetDict

    if all(isinstance(dataset.features.get("label"), ClassLabel) for dataset in splits.values()):
        return align_classes(splits, name=name)
    labelled = {split: dataset for split, dataset in splits.items() if "label" in dataset.features}
    columns = {split: arrow_column(dataset, "label") for split, dataset in labelled.items()}
    kinds = {column.type for column in columns.values()}
    usable = len(kinds) == 1 and all(is_text(kind) or pa.types.is_integer(kind) for kind in kinds)
    if not usable or any(column.null_count for column in columns.values()):
        raise UserError(
            f"The labels of {name} hold {listed(kinds)}: give strings or integers in all splits, none missing "
            "(--label_column)."
        )
    classes = pc.unique(pa.chunked_array([chunk for column in columns.values() for chunk in column.chunks]))
    classes = classes.take(pc.sort_indices(classes))
    feature = ClassLabel(names=[str(value) for value in classes.to_pylist()])
    encoded = {
        split: _replace(splits[split], "label", pc.cast(pc.index_in(column, classes), pa.int64()), feature)
        for split, column in columns.items()
    }
    return DatasetDict({**splits, **encoded})


def is_text(kind: pa.DataType) -> bool:
    """Tell whether an Arrow type holds strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _blank(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Mark the texts that are null or nothing but white space."""
    return np.asarray(pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), True), dtype=bool)


def arrow_column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """Return a column as Arrow holds it, without touching the others."""
    return dataset.select_columns(name).with_format("arrow")[:].column(name)


def _replace(dataset: Dataset, name: str, column: pa.ChunkedArray, feature: object) -> Dataset:
    added = dataset.add_column(f"new_{name}", column, feature=feature)
    return added.remove_columns(name).rename_column(f"new_{name}", name)
