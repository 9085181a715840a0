"""Files that anybody may have written: any bytes end in what they hold or in one sentence, within bounds.

Every JSON, YAML and safetensors file that the library reads goes through here. What a parser makes of them is bounded
in bytes, in levels and, where a short text can stand for much more, in what it unfolds to.
"""

import json
import struct
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import yaml

from hf_unlearn.errors import UserError, first_line

if TYPE_CHECKING:
    from torch import Tensor

MOST_LEVELS = 100  # of lists and objects inside each other
MOST_BYTES = 2**28  # of a text file: a record of millions of rows has fewer
MOST_YAML = 2**21  # characters, which the parser takes half a minute for
MOST_VALUES = 100_000  # of YAML, each alias counted as what it stands for
MOST_DIGITS = 400  # of a number in YAML, whose parser takes the square of their number
# What an object of such a file holds, by name; who reads a field checks it.
Fields: TypeAlias = Mapping[str, Any]
RESTORE = "restore it from the run that wrote it"
# What PyYAML raises beside its own errors: on dates and numbers that are none, on tags on the wrong value.
_YAML_FAULTS = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
# What Pillow raises on damaged pictures, by format; UnidentifiedImageError is an OSError.
PICTURE_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def read_bytes(path: str | Path) -> bytes:
    """Read a file of any content.

    Raises:
        UserError: It is no regular file, which might never end, or has more than 256 MB.
        OSError: It is not there, or may not be read.
    """
    path = _regular(path)
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path.name} has more than {MOST_BYTES // 2**20} MB; no such file of ours has.")
    return path.read_bytes()


def read_text(path: str | Path, remedy: str = RESTORE) -> str:
    """Read a text file, without touching its line ends.

    Raises:
        UserError: It is not UTF-8, or `read_bytes` refuses it.
    """
    path = Path(path)
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is no UTF-8 text ({error}); {remedy}.") from error


def read_json(path: str | Path, remedy: str = RESTORE) -> Any:
    """Read a JSON file, whoever wrote it.

    Raises:
        UserError: It is not UTF-8, or `parse_json` refuses it.
    """
    return parse_json(read_text(path, remedy), Path(path).name, remedy)


def read_object(path: str | Path | None, source: str, remedy: str = RESTORE) -> Fields:
    """Read a JSON file that holds one object; there need be no file, and then the object is empty.

    Args:
        path: The file, or None where it was looked for in vain.
        source: What it is, for messages.
        remedy: What to do about it, for messages.

    Raises:
        UserError: It holds anything else, or `read_text` or `parse_json` refuses it.
    """
    if path is None or not Path(path).exists():
        return {}
    content = parse_json(read_text(path, remedy), source, remedy)
    if not isinstance(content, dict):
        raise UserError(f"{source} is no JSON object; {remedy}.")
    return content


def parse_json(text: str, source: str, remedy: str = RESTORE) -> Any:
    """Parse JSON as the standard has it: no NaN or Infinity, at most 100 levels, and no field of an object twice.

    Of a field that stands there twice, some readers take the first and others the last.

    Args:
        text: Any text at all.
        source: What the text is, for messages: a file name.
        remedy: What to do about it, for messages.

    Raises:
        UserError: It is no such JSON.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except RecursionError as error:
        raise _too_deep(source) from error
    except ValueError as error:  # a JSONDecodeError, or a number of more digits than Python reads
        raise UserError(f"{source} is not valid JSON ({error}); {remedy}.") from error
    return _bounded(data, source)


def read_yaml(path: str | Path, remedy: str = "mend it") -> Any:
    """Read a YAML file, whoever wrote it.

    Raises:
        UserError: It is not UTF-8, or `parse_yaml` refuses it.
    """
    return parse_yaml(read_text(path, remedy), Path(path).name, remedy)


def parse_yaml(text: str, source: str, remedy: str = "mend it", unique: bool = False) -> object:
    """Parse YAML of plain values; a few aliases are followed, merge keys (`<<`) are not.

    Args:
        text: Any text at all.
        source: What the text is, for messages: a file name.
        remedy: What to do about it, for messages.
        unique: Whether a key that stands twice in one mapping is refused; else the last one counts.

    Raises:
        UserError: It is no such YAML, or stands for more than 100,000 values or 100 levels.
    """
    if len(text) > MOST_YAML:
        raise UserError(f"{source} has more than {MOST_YAML // 2**20} million characters of YAML; shorten it.")
    try:
        data = yaml.load(text, Loader=_UniqueLoader if unique else _PlainLoader)
    except _YAML_FAULTS as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark is not None else ""
        what = getattr(error, "problem", None) or first_line(error)  # a scanner's first line is where it was
        raise UserError(f"{source} is not valid YAML{place}: {what}; {remedy}.") from error
    return _bounded(data, source, MOST_VALUES)


def read_tensors(path: str | Path, remedy: str = "save it again") -> "dict[str, Tensor]":
    """Read every tensor of a safetensors file.

    Raises:
        UserError: It is no such file, or is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _regular(path)
    try:
        tensors = load_file(path)
        for tensor in tensors.values():
            tensor.flatten()[:1].double()  # of which a type of half a byte has nothing
        return tensors
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise UserError(f"{path.name} is no whole safetensors file ({error}); {remedy}.") from error


def _regular(path: str | Path) -> Path:
    """Refuse what is there and is no regular file, which might never end."""
    if Path(path).exists() and not Path(path).is_file():
        raise UserError(f"{Path(path).name} is no regular file; put the file itself there.")
    return Path(path)


class _PlainLoader(yaml.SafeLoader):
    """Makes plain values, in time that grows with the text."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """A merge copies what it names, and merges of merges double it."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not read", node.start_mark)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """The text of a scalar, before it becomes a number."""
        if node.tag.endswith((":int", ":float")) and len(str(node.value)) > MOST_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number of more than {MOST_DIGITS} digits", node.start_mark
            )
        return super().construct_scalar(node)


class _UniqueLoader(_PlainLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As plain values; of a key that stands twice, YAML's own loaders drop the first one's value."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


def _bounded(data: object, source: str, most: int | None = None) -> object:
    """The same data, whose levels, and values where there is a limit, are few enough."""
    level, values = [data], 1
    for _ in range(MOST_LEVELS):
        values += sum(map(len, map(_items, level)))
        if most is not None and values > most:
            raise UserError(f"{source} stands for more than {most:,} values; no file of ours does.")
        level = [inner for item in level for inner in _items(item)]
    if level:
        raise _too_deep(source)
    return data


def _items(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple | set) else []


def _too_deep(source: str) -> UserError:
    return UserError(f"{source} is nested more than {MOST_LEVELS} levels deep; no file of ours is.")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"the field {twice!r} stands there twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
