"""A folder of pictures as rows: classes from folders, captions and other columns from metadata files, text as text."""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value

from hf_unlearn.data.folders import FolderContent
from hf_unlearn.errors import UserError, first_line, listed
from hf_unlearn.parsing import parse_json, read_bytes

FILE_NAME = "file_name"
Row = dict[str, Any]


def load_pictures(content: FolderContent, caption_column: str | None, name_files: bool) -> DatasetDict:
    """Make rows of the pictures of a folder, one a picture, without opening any.

    A picture's class is the folder it lies in, where the pictures of a split all lie equally deep in folders and the
    folders have several names; splits without such folders have no classes (-1). With metadata files
    (`metadata.csv`, `.jsonl` or `.parquet`, whose column `file_name` is relative to the file) their columns take the
    place of classes. What is written in a csv file stays text. Several rows for one picture are its captions: they may
    differ in the caption column, which becomes a list, and in others, which become lists, too.

    Args:
        content: The folder's pictures by split, and its metadata files.
        caption_column: The column of captions.
        name_files: Whether pictures are called by their paths in the folder, without "train/", in a column `id`.

    Returns:
        Splits with `image`, `label` or the metadata's columns, and `id`.

    Raises:
        UserError: A metadata file cannot be read, names a picture that is not there, or leaves one out.
    """
    _refuse_names(content)
    columns = _described(content, caption_column, name_files) if content.metadata else _classes(content)
    splits = {}
    for split, files in content.splits.items():
        images = [{"bytes": None, "path": str(file)} for file in files]
        table: dict[str, pa.Array] = {"image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
        rows = Dataset(pa.table(table)).cast_column("image", Image())
        for name, values in columns[split].items():
            rows = rows.add_column("source_image" if name == "image" else name, values)
        if "label" in rows.column_names and not content.metadata:
            rows = rows.cast_column("label", ClassLabel(names=_class_names(content)))
        if name_files and "id" not in rows.column_names:
            paths = (file.relative_to(content.root) for file in files)
            first = 1 if content.by_folder and split == "train" else 0
            ids = [Path(*path.parts[first:]).as_posix() for path in paths]
            rows = rows.add_column("id", pa.array(ids, pa.string()), feature=Value("string"))
        splits[split] = rows
    return DatasetDict(splits)


def _refuse_names(content: FolderContent) -> None:
    """Paths of pictures are ids, one a line of a request."""
    paths = [file.relative_to(content.root).as_posix() for files in content.splits.values() for file in files]
    strange = [p for p in paths if len(p.splitlines()) > 1 or p.encode(errors="replace").decode() != p]
    if strange:
        raise UserError(
            f"{len(strange):,} pictures of {content.root} have names with line breaks, or that are not UTF-8: "
            f"{listed(ascii(path) for path in strange)}; rename them."
        )


def _folders_of(content: FolderContent, split: str) -> list[str] | None:
    """The folder that each picture of a split lies in; None where they lie unequally deep, or in no folder of it."""
    first = 1 if content.by_folder else 0
    paths = [file.relative_to(content.root).parts[first:-1] for file in content.splits[split]]
    depths = {len(path) for path in paths}
    return None if len(depths) != 1 or depths == {0} else [path[-1] for path in paths]


def _class_names(content: FolderContent) -> list[str]:
    return sorted({name for split in content.splits for name in _folders_of(content, split) or ()})


def _classes(content: FolderContent) -> dict[str, dict[str, pa.Array]]:
    numbers = {name: number for number, name in enumerate(_class_names(content))}
    if len(numbers) < 2:
        return {split: {} for split in content.splits}
    return {
        split: {
            "label": pa.array(
                [numbers[folder] for folder in _folders_of(content, split) or ()] or [-1] * len(files), pa.int64()
            )
        }
        for split, files in content.splits.items()
    }


def _described(content: FolderContent, caption_column: str | None, name_files: bool) -> dict[str, dict[str, pa.Array]]:
    """The columns of metadata files, one value a picture, by split."""
    of_picture: dict[Path, list[Row]] = defaultdict(list)
    pictures = {os.path.normpath(file): file for files in content.splits.values() for file in files}
    absent: list[str] = []
    for file in content.metadata:
        for row in _read(file):
            place = str(row.pop(FILE_NAME))
            picture = pictures.get(os.path.normpath(file.parent / place))
            absent += [place] if picture is None else []
            if picture is not None and row not in of_picture[picture]:
                of_picture[picture].append(row)
    if absent:
        raise UserError(
            f"Metadata of {content.root} names {len(absent):,} pictures that are not there: {listed(absent)}."
        )
    without = [file.relative_to(content.root).as_posix() for file in pictures.values() if file not in of_picture]
    if without:
        raise UserError(
            f"{len(without):,} of {len(pictures):,} pictures of {content.root} have no row in its metadata "
            f"({listed(file.name for file in content.metadata)}): {listed(without)}; add them, or move them away."
        )
    names = list(dict.fromkeys(name for rows in of_picture.values() for row in rows for name in row))
    several = {
        name
        for name in names
        for rows in of_picture.values()
        if any(row.get(name) != rows[0].get(name) for row in rows[1:])
    }
    if several:
        several |= {caption_column or "captions"} & set(names)
    # An `id` of each caption does not tell pictures apart; their paths do.
    called = {name: "source_id" if name == "id" and name in several and name_files else name for name in names}
    return {
        split: {
            called[name]: _column(content, [of_picture[file] for file in files], name, name in several)
            for name in names
        }
        for split, files in content.splits.items()
    }


def _column(content: FolderContent, pictures: Iterable[Sequence[Row]], name: str, several: bool) -> pa.Array:
    try:
        if several:
            found = ([row.get(name) for row in rows] for rows in pictures)
            lists = ([value if isinstance(value, list) else [value] for value in values] for values in found)
            return pa.array([list(dict.fromkeys(chain.from_iterable(values))) for values in lists])
        return pa.array([rows[0].get(name) for rows in pictures])
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"The column {name!r} in the metadata of {content.root} holds values of several types, or too large ones "
            f"({first_line(error)}); write them alike, say all as text."
        ) from error


def _read(file: Path) -> list[Row]:
    """The rows of a metadata file."""
    readers: Mapping[str, Callable[[bytes], list[Row]]] = {
        ".csv": _csv_rows,
        ".jsonl": _json_rows,
        ".parquet": _parquet_rows,
    }
    try:
        rows = readers[file.suffix](read_bytes(file))
    except (OSError, ValueError, csv.Error, RecursionError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or ["it is damaged"])[0]
        if isinstance(error, UnicodeDecodeError):
            reason = "it is not UTF-8; save it so."
        raise UserError(f"The metadata {file} cannot be read: {reason}") from error
    for number, row in enumerate(rows):
        if not isinstance(row.get(FILE_NAME), str):
            raise UserError(
                f"The metadata {file} has no text in the column {FILE_NAME!r}, which names the picture, in row "
                f"{number}; its columns: {listed(row)}."
            )
    return rows


def _csv_rows(content: bytes) -> list[Row]:
    lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    header = next(lines, [])
    if len(set(header)) < len(header):
        raise ValueError(f"its header repeats a column: {', '.join(header)}")
    rows = []
    for cells in lines:
        if cells and len(cells) != len(header):
            raise ValueError(
                f"line {lines.line_num} has {len(cells)} cells instead of {len(header)}; put quotes around text with "
                "commas"
            )
        if cells:
            rows.append(dict(zip(header, cells, strict=True)))
    return rows


def _json_rows(content: bytes) -> list[Row]:
    rows = []
    for number, line in enumerate(content.decode("utf-8-sig").split("\n"), start=1):
        row = parse_json(line, f"line {number}", "mend it") if line.strip() else {}
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no JSON object")
        rows += [row] if row else []
    return rows


def _parquet_rows(content: bytes) -> list[Row]:
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(content)).to_pylist()
