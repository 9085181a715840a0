"""Retain, unlearn, validation and test: which row goes where, planned on ids alone before an image is read."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, concatenate_datasets
from numpy.typing import NDArray

from hf_unlearn.data.columns import arrow_column, is_text
from hf_unlearn.data.duplicates import resolve_duplicates
from hf_unlearn.data.earlier_rows import EARLIER, REQUEST_COLUMN, PastRows, marked
from hf_unlearn.data.folders import HOLDOUT
from hf_unlearn.data.images import check_images
from hf_unlearn.data.labels import align_classes
from hf_unlearn.data.requests import RemovalRequest, RequestKind, checked_ids, parse_where, read_entries
from hf_unlearn.data.sources import with_ids
from hf_unlearn.errors import LISTED, UserError, listed

logger = logging.getLogger(__name__)

ROLES = {"retain_synth": "retain", "forget": "unlearn"}  # what SALMUBench calls them
HELD_OUT = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}

Indices = NDArray[np.int64]
Ids: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[str] | NDArray[np.str_]


def make_splits(
    data: Dataset | DatasetDict,
    *,
    unlearn_fraction: float | None = None,
    split_seed: int = 0,
    unlearn_request: str | os.PathLike[str] | Sequence[str] | None = None,
    unlearn_where: str | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    duplicates: Literal["refuse", "move", "keep"] = "refuse",
    skip_bad_images: bool = False,
    past: PastRows | None = None,
) -> tuple[DatasetDict, RemovalRequest]:
    """Split a dataset into `retain`, `unlearn`, `validation` and `test`, in that order of the dictionary.

    The rows that can be unlearned are those of a plain dataset, or the split `train` of a dictionary. They are permuted
    by `numpy.random.RandomState(split_seed)`; held-out splits that the dictionary does not bring are cut off first, so
    that they always remain and, for a fraction, do not depend on its size:

        permutation = [validation | test | unlearn | retain]

    With a test split of the dataset's own this is the split of the paper's reference code: 5,000, 4,500 and 40,500 of
    CIFAR's 50,000. Rows asked for by id or condition are always unlearned; held-out rows are then drawn from the
    others. A dictionary that has `retain` and `unlearn` (or `retain_synth` and `forget`) already is used as it is,
    missing held-out splits being drawn from `retain`. Further splits called `holdout_*` stay as they are.

    Rows of earlier requests (`past`) go into no split but a fifth, `earlier`, and what the first run held out is held
    out again. A row that this request names is unlearned, whatever it was before.

    Everything is planned, and every error but those of duplicates and bad images raised, before an image is read. Then
    each image is decoded once, to look for both; `duplicates="keep"` reads none, but for bad ones to be skipped (see
    `check_images`).

    Args:
        data: Rows in the library's schema (`load_source`); without a column `id` the row numbers are taken.
        unlearn_fraction: Fraction of the rows left after the held-out ones, in (0, 1), drawn at random.
        split_seed: Seed of the permutation.
        unlearn_request: Ids to be unlearned, or the file that lists them (`read_request`).
        unlearn_where: Condition on a column, such as "owner=alice" (`parse_where`).
        validation_fraction: Fraction of the rows drawn for validation, in (0, 1).
        test_fraction: Fraction of the rows drawn for the test, in (0, 1).
        duplicates: What to do with exact copies of unlearn images elsewhere: refuse, move them into `unlearn`, or keep.
        skip_bad_images: Leave out rows whose image cannot be read; never one that is to be unlearned.
        past: What earlier runs on the same model unlearned and held out.

    Returns:
        The four splits, in the order of the permutation, with `past` the split `earlier`, whose column `request` is the
        number of the request that named a row, and the request.

    Raises:
        UserError: Nothing says what to unlearn, or several arguments do, a fraction outside (0, 1), an empty split,
            unknown, repeated or wrongly typed ids, an unknown column or value, an id in both `retain` and `unlearn`, a
            column of other types in splits whose rows are put together, exact duplicates, or a bad image.
    """
    if duplicates not in ("refuse", "move", "keep"):
        raise UserError(f"--duplicates must be refuse, move or keep, not {duplicates!r}.")
    if isinstance(split_seed, bool) or not isinstance(split_seed, int) or not 0 <= split_seed < 2**32:
        raise UserError(f"--split_seed must be an integer from 0 to 2**32 - 1, not {split_seed!r}.")
    choices = {"fraction": unlearn_fraction, "request": unlearn_request, "where": unlearn_where}
    chosen = [f"--unlearn_{name}" for name, value in choices.items() if value is not None]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} exclude each other: give one of them.")
    if isinstance(data, DatasetDict):
        data = align_classes(named_by_role(data))
    pool, ready, held_out = rows_by_role(data)
    if ready is not None and chosen:
        raise UserError(f"The dataset has splits retain and unlearn: leave out {chosen[0]}.")
    if ready is None and not chosen:
        raise UserError(
            "Nothing says what is to be unlearned: give --unlearn_request FILE, --unlearn_where COLUMN=VALUE or "
            "--unlearn_fraction F, or data with splits retain and unlearn."
        )
    fractions = {"validation": validation_fraction, "test": test_fraction}
    fractions = {name: fraction for name, fraction in fractions.items() if name not in held_out}
    for name, fraction in fractions.items():
        _check_fraction(fraction, f"--{name}_fraction")

    # A base model is trained on both.
    together = {"train": pool} if ready is None else {"retain": pool, "unlearn": ready}
    if duplicates == "move" or past is not None:  # rows of any split may be put with these
        together |= held_out
    _refuse_other_types(together)

    ids = arrow_column(pool, "id")
    kind: RequestKind
    if ready is not None:
        kind, asked = "split", np.empty(0, np.int64)
        _refuse_shared_ids(ids, arrow_column(ready, "id"))
    elif unlearn_request is not None:
        kind, asked = "file", _requested(ids, unlearn_request)
    elif unlearn_where is not None:
        kind, asked = "where", rows_where(pool, unlearn_where)
    else:
        assert unlearn_fraction is not None  # it is what was chosen
        kind, asked = "fraction", np.empty(0, np.int64)
        _check_fraction(unlearn_fraction, "--unlearn_fraction")

    permutation = np.random.RandomState(split_seed).permutation(len(pool))
    is_asked = np.zeros(len(pool), dtype=bool)
    is_asked[asked] = True
    requested, recorded = (past.requested, past.held_out) if past is not None else ({}, {})
    is_earlier = marked(ids, requested.get("train", ())) & ~is_asked
    kept = {name: marked(ids, recorded.get(name, ())) & ~is_asked & ~is_earlier for name in HELD_OUT}
    kept = {name: marked for name, marked in kept.items() if marked.any()}
    fractions = {name: fraction for name, fraction in fractions.items() if name not in kept}
    is_free = ~np.any([is_asked, is_earlier, *kept.values()], axis=0)
    unlearn, retain = permutation[is_asked[permutation]], permutation[is_free[permutation]]
    *drawn, retain = _cut(retain, list(fractions.values()), least=1)
    if unlearn_fraction is not None:
        unlearn, retain = _cut(retain, [unlearn_fraction])
    if ready is not None:
        retain = np.sort(retain)
    rows = {"retain": retain, "unlearn": unlearn, **dict(zip(fractions, drawn, strict=True))}
    kept_rows = {name: permutation[is_kept[permutation]] for name, is_kept in kept.items()}
    rows |= {name: part for name, part in kept_rows.items() if name not in held_out}
    held_out |= {  # what the data brings, and what of train was held out before
        name: concatenate_datasets([held_out[name], pool.select(part)])
        for name, part in kept_rows.items()
        if name in held_out
    }
    sizes = {name: len(part) for name, part in {**rows, **held_out}.items()}
    _refuse_empty(sizes if ready is None else {**sizes, "unlearn": len(ready)})

    parts = {name: pool.select(part) for name, part in rows.items()}
    parts = {name: parts[name] for name in ("retain", "unlearn", *HELD_OUT) if name in parts}
    if ready is not None:
        parts["unlearn"] = ready
    request = RemovalRequest(
        kind,
        ids=tuple(sorted(arrow_column(parts["unlearn"], "id").to_pylist())),
        fraction=unlearn_fraction,
        where=unlearn_where,
    )
    earlier = pool.select(np.flatnonzero(is_earlier))
    numbers = [requested["train"][row] for row in earlier["id"]]
    for name, split in held_out.items():
        is_mixed_in = marked(arrow_column(split, "id"), requested.get(name, ()))
        mixed_in = split.select(np.flatnonzero(is_mixed_in))
        numbers += [requested[name][row] for row in mixed_in["id"]]
        earlier = concatenate_datasets([earlier, mixed_in])
        held_out[name] = split.select(np.flatnonzero(~is_mixed_in))
    splits = DatasetDict({**parts, **held_out})
    if duplicates != "keep":  # copies of what earlier requests named would teach it again
        asked_for = concatenate_datasets([splits["unlearn"], earlier]) if len(earlier) else splits["unlearn"]
        splits, notes = resolve_duplicates(
            DatasetDict({**splits, "unlearn": asked_for}), action=duplicates, skip_bad_images=skip_bad_images
        )
        request = replace(request, notes=notes)
        if len(earlier):
            named, past_rows = splits["unlearn"], range(len(parts["unlearn"]), len(asked_for))
            earlier = named.select(past_rows)
            splits["unlearn"] = named.select([row for row in range(len(named)) if row not in past_rows])
    elif skip_bad_images:
        splits = cast("DatasetDict", check_images(splits, skip_bad=True))
    _refuse_empty({name: len(part) for name, part in splits.items()})
    if past is not None:
        splits[EARLIER] = _numbered(earlier, numbers)
    return splits, request


def request_rows(ids: Ids, requested: Sequence[object], name: str = "The removal request") -> Indices:
    """Find the rows that a request names, in time and memory linear in both.

    Args:
        ids: The id of every training row, `[n]`.
        requested: The ids asked for; integers stand for their decimal digits.
        name: How the message calls the request.

    Returns:
        The rows, ascending.

    Raises:
        UserError: An entry is no id, repeated or unknown, or there is none; all are listed at once.

    Example:
        >>> request_rows(["a", "b", "c"], ["c", "a"])
        array([0, 2])
    """
    wanted_ids, problems = checked_ids(requested)
    column = ids if isinstance(ids, (pa.Array, pa.ChunkedArray)) else pa.array(ids, pa.string())
    wanted = pa.array(list(dict.fromkeys(wanted_ids)), column.type)
    # Hashing the request, not the data, keeps the table small; the data only streams past it.
    place = np.asarray(pc.fill_null(pc.index_in(column, value_set=wanted), -1))
    rows = np.flatnonzero(place >= 0)
    is_known = np.zeros(len(wanted), dtype=bool)
    is_known[place[rows]] = True
    if not is_known.all():
        unknown = wanted.filter(pa.array(~is_known))
        shown = listed(unknown.slice(0, LISTED).to_pylist(), len(unknown))
        known = listed(column.slice(0, 2).to_pylist())
        problems.append(f"ids that no training row has ({len(unknown):,}): {shown} (there are ids such as {known})")
    if problems:
        raise UserError(f"{name} must be corrected; it has {'; '.join(problems)}.")
    return rows


def _requested(ids: Ids, request: str | os.PathLike[str] | Sequence[object]) -> Indices:
    if isinstance(request, (str, os.PathLike)):
        return request_rows(ids, read_entries(request), f"The removal request {os.fspath(request)}")
    return request_rows(ids, request)


def rows_where(dataset: Dataset, condition: str, option: str = "--unlearn_where") -> Indices:
    """Find the rows where a column has one of the values of `column=value,value`, compared as strings.

    Raises:
        UserError: The condition of this option has another form, or names a column or a value that there is not.
    """
    name, values = parse_where(condition, option)
    if name not in dataset.column_names:
        raise UserError(
            f"{option} {condition!r}: there is no column {name!r}; there are {', '.join(dataset.column_names)}."
        )
    column, feature = arrow_column(dataset, name), dataset.features[name]
    if isinstance(feature, ClassLabel):  # -1 stands for no class
        column = pa.array(feature.names).take(pc.if_else(pc.less(column, 0), pa.scalar(None, column.type), column))
    elif not (is_text(column.type) or pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        raise UserError(f"{option} {condition!r}: the column {name!r} holds {column.type}, no texts or integers.")
    texts = pc.cast(column, pa.string())
    absent = set(values) - set(pc.unique(texts.filter(pc.is_in(texts, value_set=pa.array(values)))).to_pylist())
    if absent:
        present = pc.unique(texts).drop_null()
        raise UserError(
            f"{option} {condition!r}: no training row has {listed(sorted(absent))}; "
            f"there are {listed(present.slice(0, LISTED).to_pylist(), len(present))}."
        )
    return np.flatnonzero(pc.is_in(texts, value_set=pa.array(values)))


def named_by_role(data: DatasetDict) -> DatasetDict:
    """The same splits, those that another benchmark names in its own way called as here."""
    if set(data) & set(ROLES.values()) or not set(data) >= set(ROLES):
        return data
    return DatasetDict({ROLES.get(name, name): split for name, split in data.items()})


def held_out_in(data: Collection[str]) -> dict[str, str]:
    """What the splits for validation and for the test are called among these names, as far as there are any."""
    found = {name: [alias for alias in aliases if alias in data] for name, aliases in HELD_OUT.items()}
    return {name: aliases[0] for name, aliases in found.items() if aliases}


def measured_in(data: Collection[str]) -> dict[str, str]:
    """As `held_out_in`, and the splits `holdout_*`, which are called as they are."""
    return held_out_in(data) | {name: name for name in data if name.startswith(HOLDOUT)}


def rows_by_role(data: Dataset | DatasetDict) -> tuple[Dataset, Dataset | None, dict[str, Dataset]]:
    """Return the rows to be split, the ready unlearn split if there is one, and the held-out splits; each has ids."""
    if isinstance(data, Dataset):
        return with_ids(data), None, {}
    is_ready = "retain" in data and "unlearn" in data
    if not is_ready and ("train" not in data or "retain" in data or "unlearn" in data):
        raise UserError(f"The dataset needs a split train, or both retain and unlearn; it has {listed(data)}.")
    held_out = measured_in(data)
    used = {"retain", "unlearn"} if is_ready else {"train"}
    if unused := set(data) - used - set(held_out.values()):
        logger.warning("Splits of the dataset that are not used: %s.", listed(sorted(unused)))
    found = {name: with_ids(data[alias], prefix=f"{alias}/") for name, alias in held_out.items()}
    if is_ready:
        return with_ids(data["retain"], prefix="retain/"), with_ids(data["unlearn"], prefix="unlearn/"), found
    return with_ids(data["train"]), None, found


def _cut(rows: Indices, fractions: Sequence[float], least: int = 0) -> list[Indices]:
    """Cut off fractions of the rows from the front, each at least so many; the last part is what is left."""
    sizes = [max(least, round(fraction * len(rows))) for fraction in fractions]
    return np.split(rows, np.cumsum(sizes))


def _numbered(earlier: Dataset, numbers: Sequence[int]) -> Dataset:
    """Rows of earlier requests with the number of the request that named each; there may be none."""
    if not numbers:  # a column cannot be added to a table of no rows that was selected from one with some
        features = Features({**earlier.features, REQUEST_COLUMN: Value("int64")})
        return Dataset.from_dict({name: [] for name in features}, features=features)
    return earlier.add_column(REQUEST_COLUMN, np.asarray(numbers, dtype=np.int64))  # type: ignore[call-arg]


def _check_fraction(fraction: float, flag: str) -> None:
    if not 0 < fraction < 1:
        raise UserError(f"{flag} must be above 0 and below 1, not {fraction}.")


def _refuse_empty(sizes: Mapping[str, int]) -> None:
    empty = [name for name, size in sizes.items() if size == 0]
    if empty:
        counts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        raise UserError(f"No row is left for {listed(empty)} ({counts}): change the request or the fractions.")


def _refuse_other_types(splits: Mapping[str, Dataset]) -> None:
    """Refuse splits whose rows cannot be put together: a column holds something else in one of them."""
    first: dict[str, str] = {}
    for name, split in splits.items():
        for column, kind in split.features.items():
            if "'null'" in repr(kind):  # no row has a value, which goes with any type
                continue
            other = first.setdefault(column, name)
            if splits[other].features[column] != kind:
                raise UserError(
                    f"The column {column!r} holds {splits[other].features[column]} in {other} and {kind} in {name}, so "
                    "that their rows cannot be put together; give it one type in all splits, or leave it out."
                )


def _refuse_shared_ids(retain: pa.ChunkedArray, unlearn: pa.ChunkedArray) -> None:
    shared = retain.filter(pc.is_in(retain, value_set=unlearn.cast(retain.type)))
    if len(shared):
        shown = listed(shared.slice(0, LISTED).to_pylist(), len(shared))
        raise UserError(f"{len(shared):,} ids are in both splits, retain and unlearn; leave each in one: {shown}.")
