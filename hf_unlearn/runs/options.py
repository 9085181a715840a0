"""Options as names with their words, from a command line or from a YAML file."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from hf_unlearn.errors import UserError
from hf_unlearn.methods import METHODS
from hf_unlearn.parsing import parse_yaml, read_text

Option = tuple[str, list[str]]  # ("learning_rate", ["5e-4"])
PRETRAIN = "pretrain"  # the section of the base model's own training
INITIAL = "initial"  # the section of the training of what that starts from
MODEL = "model"  # the section of the architecture to pre-train


def section_options(section: str, setting: Mapping[str, object]) -> list[str]:
    """The words of a command line that set fields of one section, such as a method."""
    return [token for name, value in setting.items() for token in (f"--{section}.{name}", str(value))]


def grouped_options(tokens: Iterable[str]) -> list[Option]:
    """Group `--name value ...` and `--name=value` tokens."""
    options: list[Option] = []
    for token in underscored(tokens):
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            options.append((name, [value] if equals else []))
        elif options:
            options[-1][1].append(token)
        else:
            raise UserError(f"unexpected argument {token!r}; options start with --")
    return options


def underscored(tokens: Iterable[str]) -> list[str]:
    """The words of a command line with the names of options spelt as the fields are: `--a-b=c-d` is `--a_b=c-d`."""
    named = [token.partition("=") for token in tokens]
    return [
        (f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name) + equals + value
        for name, equals, value in named
    ]


def read_yaml(path: Path) -> tuple[list[Option], dict[str, list[Option]], dict[str, object]]:
    """A YAML config as general options, one list of options per method, and the model section."""
    content = parse_yaml(read_text(path, "mend it"), f"--config {path}")
    if not isinstance(content, dict):
        raise UserError(f"--config {path} must hold a mapping of fields, not {type(content).__name__}")
    model = content.pop(MODEL, None) or {}
    if not isinstance(model, dict):
        raise UserError(f"--config {path}: the section model must be a mapping, not {type(model).__name__}")
    sections = {k: _yaml_options(v) for k, v in content.items() if isinstance(v, dict)}
    unknown = [name for name in sections if name not in (*METHODS, PRETRAIN, INITIAL)]
    if unknown:
        raise UserError(f"--config {path} has a section {unknown[0]!r} that is no method; known: {', '.join(METHODS)}")
    return _yaml_options({k: v for k, v in content.items() if not isinstance(v, dict)}), sections, model


def yaml_value(name: str, words: list[str]) -> object:
    """What YAML makes of the words of an option."""
    return parse_yaml(" ".join(words), f"--{name} {' '.join(words)!r}")


def _yaml_options(content: dict[str, object]) -> list[Option]:
    return [
        (str(name), [str(item) for item in value] if isinstance(value, list) else [str(value)])
        for name, value in content.items()
        if value is not None
    ]
