"""The user's own data where it does not fit: retain as a stream of shards, everything else resident."""

import hashlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from datasets import Dataset, DatasetDict, Image, IterableDataset, load_dataset_builder

from hf_unlearn.data.folders import list_folder
from hf_unlearn.data.images import check_images
from hf_unlearn.data.labels import encode_labels
from hf_unlearn.data.requests import RemovalRequest, read_entries
from hf_unlearn.data.shards import check_samples, is_tar, shards_digest, split_shards, stream_shards
from hf_unlearn.data.sources import load_failures, readable_rows, to_schema
from hf_unlearn.data.splits import HELD_OUT, measured_in
from hf_unlearn.data.streaming import SHUFFLE_BUFFER
from hf_unlearn.errors import UserError, listed

logger = logging.getLogger(__name__)

EVALUATED_ROWS = 10_000
_SHARDED = ("Parquet", "WebDataset")  # the builders whose files are shards of rows


@dataclass(frozen=True)
class StreamedRetain:
    """Retain rows that are read as they come.

    Args:
        stream: The rows in the library's schema.
        rows: How many there are.
        sha256: Hash of the shards (`shards_digest`), of the columns read and of the request, which together say what
            the rows are.
        skip_bad: Whether rows whose picture cannot be read are left out as they come.
    """

    stream: IterableDataset = field(repr=False)
    rows: int
    sha256: str
    skip_bad: bool = False


def stream_source(
    dataset_name: str | os.PathLike[str],
    unlearn_request: str | os.PathLike[str],
    *,
    dataset_config: str | None = None,
    revision: str | None = None,
    image_column: str = "image",
    caption_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    max_eval_samples: int = EVALUATED_ROWS,
    skip_bad_images: bool = False,
) -> tuple[StreamedRetain, DatasetDict, RemovalRequest]:
    """Split sharded data into a retain stream and resident splits, without reading more pictures than those.

    Args:
        dataset_name: A folder of parquet shards or WebDataset tar files, or the id of such a dataset on the Hub, with
            splits `train`, `validation` and `test` (as `datasets` finds them by the names of the files); those called
            `holdout_*` are measured, too.
        unlearn_request: File of the ids to be unlearned.
        dataset_config: Configuration of a Hub dataset.
        revision: Branch, tag or commit of a Hub dataset.
        image_column: Column (or extension, such as "jpg") of the pictures.
        caption_column: Column (or extension, such as "txt") of captions; by default `captions`, where there is one.
        label_column: Column (or extension, such as "cls") of classes; by default `label`, where there is one.
        id_column: Column of ids in parquet files, by default "id"; in tar files the key of a sample is its id.
        max_eval_samples: At most so many rows of retain, of validation and of test are taken to be measured on.
        skip_bad_images: Leave out rows whose picture cannot be read; never one that is to be unlearned.

    Returns:
        Retain, the resident splits `retain` (a sample, to be measured on), `unlearn`, `validation` and `test`, and the
        request.

    Raises:
        UserError: The data is not in shards or lacks a split or column, or the request names rows that are not there.
    """
    shards = _shards(str(dataset_name), dataset_config, revision)
    held_out = measured_in(shards)
    missing = [*({"train"} - set(shards)), *(name for name in HELD_OUT if name not in held_out)]
    if missing:
        raise UserError(
            f"--streaming needs splits train, validation and test, the last two of rows that the model never saw; "
            f"{dataset_name} lacks {listed(missing)}: name its shards train-*, validation-* and test-*."
        )
    if id_column is not None and is_tar(shards["train"][0]):
        raise UserError(
            "--id_column has no effect on tar files: a sample's id is its key, which is the path of its files without "
            "their extension; leave it out"
        )
    columns = {"image": image_column, "captions": caption_column, "label": label_column, "id": id_column or "id"}
    requested = read_entries(unlearn_request)
    retain, unlearn, rows = split_shards(
        shards["train"],
        requested,
        image_column=image_column,
        caption_column=caption_column,
        label_column=label_column,
        id_column=id_column or "id",
    )
    resident = {"retain": _sample(retain, max_eval_samples), "unlearn": unlearn}
    for name, alias in held_out.items():
        check_samples(shards[alias], columns)
        resident[name] = _sample(stream_shards(shards[alias], columns), max_eval_samples)
    named = dict.fromkeys(columns)  # by the schema's names already
    parts = {name: part.cast_column("image", Image()) for name, part in resident.items()}
    splits = DatasetDict(
        {name: to_schema(part, named, name=str(dataset_name), called=columns) for name, part in parts.items()}
    )
    if any("label" in part.column_names for part in splits.values()):
        splits = encode_labels(splits, str(dataset_name))
    if skip_bad_images:
        splits = cast("DatasetDict", check_images(splits, skip_bad=True))
    request = RemovalRequest("file", ids=tuple(sorted(map(str, requested))))
    read = f"{request.sha256} {sorted(columns.items())} {shards_digest(shards['train'])}"
    read += " without bad pictures" if skip_bad_images else ""
    sha256 = hashlib.sha256(read.encode()).hexdigest()
    return StreamedRetain(retain, rows, sha256, skip_bad_images), splits, request


def _shards(name: str, config: str | None, revision: str | None) -> dict[str, list[str]]:
    """The files of each split of a dataset that consists of shards."""
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UserError(
                f"--dataset_revision has no effect: {path} is on this machine, not on the Hub; leave it unset."
            )
        with load_failures(name):  # a README.md can hold patterns that are none
            content = list_folder(path.resolve(), config)
        if content.kind not in ("parquet", "tar"):
            raise UserError(f"--streaming reads parquet or WebDataset shards, which {name} does not consist of.")
        logger.info("%s", content.summary)
        return {split: list(map(str, files)) for split, files in content.splits.items()}
    with load_failures(name):
        builder = load_dataset_builder(name, config, revision=revision)
    if not any(kind.__name__ in _SHARDED for kind in type(builder).__mro__):
        raise UserError(f"--streaming reads parquet or WebDataset shards, which {name} does not consist of.")
    return {str(split): list(map(str, files)) for split, files in (builder.config.data_files or {}).items()}


def _sample(rows: IterableDataset, most: int) -> Dataset:
    """At most so many rows of a stream, mixed as far as a buffer reaches, as shards may be sorted."""
    mixed = rows.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER)
    return Dataset.from_list(list(readable_rows(mixed.take(most), "The stream")), features=rows.features)
