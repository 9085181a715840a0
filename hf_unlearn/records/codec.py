"""Frozen dataclasses to and from JSON: one codec for every record, checked on reading."""

import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hf_unlearn.errors import UserError
from hf_unlearn.parsing import parse_json

Record = TypeVar("Record")


def to_json(record: object) -> str:
    """Render a frozen dataclass as indented JSON; numbers that are not finite become null, which JSON can hold."""
    return json.dumps(encode(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(kind: type[Record], text: str, source: str) -> Record:
    """Rebuild a frozen dataclass from the JSON that `to_json` wrote.

    Args:
        kind: The dataclass to build.
        text: The JSON.
        source: What the text is, for messages: a file name.

    Raises:
        UserError: The text is no JSON object, or a field is unknown, missing or of another type.
    """
    return decode(kind, parse_json(text, source), source)


def encode(value: object, *, words: bool = False) -> Any:
    """Turn a record into values that JSON holds: dataclasses to objects, tuples to lists.

    A dataclass may name properties in `DERIVED`, which are written along with its fields.

    Args:
        value: A record, or a part of one.
        words: Whether numbers that are not finite become the strings "inf", "-inf" and "nan", and not null.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value) if words else None
    if isinstance(value, StrEnum):
        return value.value
    if is_dataclass(value):
        names = [item.name for item in fields(value)] + list(getattr(value, "DERIVED", ()))
        return {name: encode(getattr(value, name), words=words) for name in names}
    if isinstance(value, Mapping):
        return {key: encode(item, words=words) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, words=words) for item in value]
    return value


def decode(kind: Any, data: Any, where: str, *, words: bool = False) -> Any:
    """Check what `encode` gave against the annotation `kind`, and build a value of that type.

    Args:
        kind: A dataclass, or any annotation that its fields have.
        data: Parsed JSON.
        where: What the data is, for messages.
        words: As `encode` was given.

    Raises:
        UserError: A field is unknown, missing or of another type; the message names it.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (Any, object):
        return data
    if is_dataclass(kind):
        return _decode_dataclass(kind, data, where, words)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        return decode(next(option for option in arguments if option is not type(None)), data, where, words=words)
    if origin is tuple and isinstance(data, list):
        kinds = arguments[:1] * len(data) if arguments[1:] == (...,) else arguments
        if len(kinds) == len(data):
            items = enumerate(zip(kinds, data, strict=True))
            return tuple(decode(one, item, f"{where}[{index}]", words=words) for index, (one, item) in items)
    if origin is dict and isinstance(data, dict) and all(isinstance(key, str) for key in data):
        return {key: decode(arguments[1], item, f"{where}.{key}", words=words) for key, item in data.items()}
    if kind is float and (number := _number(data, words)) is not None:
        return number
    if isinstance(kind, type) and issubclass(kind, StrEnum) and data in list(kind):
        return kind(data)
    if kind in (str, int, bool) and type(data) is kind:
        return data
    shown = repr(data) if len(repr(data)) <= 80 else f"{repr(data)[:80]}…"
    raise UserError(
        f"{where} should be {_named(kind)}, but holds {shown}; restore the file from the run that wrote it."
    )


def _number(data: object, words: bool) -> float | None:
    """A finite number, or one of the words for one that is not; None for anything else."""
    if words and data in ("inf", "-inf", "nan"):
        return float(data)
    if not isinstance(data, int | float) or isinstance(data, bool):
        return None
    try:
        return float(data) if math.isfinite(data) else None
    except OverflowError:
        return None


def _named(kind: object) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _decode_dataclass(kind: Any, data: object, where: str, words: bool) -> Any:
    if not isinstance(data, dict):
        raise UserError(f"{where} should be a JSON object, but is a {type(data).__name__}.")
    hints, names = get_type_hints(kind), [item.name for item in fields(kind)]
    derived = getattr(kind, "DERIVED", ())
    if unknown := sorted(map(str, set(data) - {*names, *derived})):
        raise UserError(f"{where} has unknown fields {unknown}; a newer hf_unlearn may have written it: upgrade.")
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(required - set(data)):
        raise UserError(f"{where} lacks the fields {missing}; restore the file from the run that wrote it.")
    given = {name: item for name, item in data.items() if name in names}
    return kind(**{name: decode(hints[name], item, f"{where}.{name}", words=words) for name, item in given.items()})
