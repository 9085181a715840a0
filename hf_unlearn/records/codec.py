"""Frozen dataclasses to and from JSON files, checked on reading and written in one atomic step."""

import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hf_unlearn.errors import UserError

Record = TypeVar("Record")


def read_text(path: str | Path) -> str:
    """Read a text file of a run, without touching its line ends.

    Raises:
        UserError: It is not UTF-8.
    """
    path = Path(path)
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is no UTF-8 text ({error}); restore it from the run that wrote it.") from error


def to_json(record: Any) -> str:
    """Render a frozen dataclass as indented JSON; numbers that are not finite become null, which JSON can hold."""
    return json.dumps(_finite(asdict(record)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(kind: type[Record], text: str, source: str) -> Record:
    """Rebuild a frozen dataclass from the JSON that `to_json` wrote.

    Args:
        kind: The dataclass to build.
        text: The JSON.
        source: What the text is, for messages: a file name.

    Raises:
        UserError: The text is no JSON object, or a field is unknown, missing or of another type.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source} is not valid JSON ({error}); restore it from the run that wrote it.") from error
    return _build(kind, data, source)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _build(kind: Any, data: Any, where: str) -> Any:
    """Check `data` against the annotation `kind`, turning objects into dataclasses and lists into tuples."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if is_dataclass(kind):
        return _build_dataclass(kind, data, where)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        return _build(next(option for option in arguments if option is not type(None)), data, where)
    if origin is tuple and isinstance(data, list):
        return tuple(_build(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(data))
    if origin is dict and isinstance(data, dict):
        return {key: _build(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if isinstance(kind, type) and isinstance(data, kind) and isinstance(data, bool) == (kind is bool):
        return data
    raise UserError(f"{where} should be {kind}, but holds {data!r}; restore the file from the run that wrote it.")


def _build_dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise UserError(f"{where} should be a JSON object, but is a {type(data).__name__}.")
    hints = get_type_hints(kind)
    if unknown := sorted(set(data) - set(hints)):
        raise UserError(f"{where} has unknown fields {unknown}; a newer hf_unlearn may have written it: upgrade.")
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(required - set(data)):
        raise UserError(f"{where} lacks the fields {missing}; restore the file from the run that wrote it.")
    return kind(**{name: _build(hints[name], value, f"{where}.{name}") for name, value in data.items()})
