"""Texts that a parser would unfold, or take for ever about, are refused; and no file of others' is read past it."""

import ast
import os
from pathlib import Path

import pytest

from hf_unlearn import parsing
from hf_unlearn.errors import UserError, first_line
from hf_unlearn.parsing import parse_json, parse_yaml, read_json, read_object, read_tensors, read_text

PACKAGE = Path(parsing.__file__).parent
# An answer of an endpoint, which may say NaN and is asked again then, has stricter bounds of its own.
OTHERWISE = {("audit/endpoint_answers.py", "loads")}
PARSERS = {("json", "load"), ("json", "loads"), ("yaml", "safe_load"), ("yaml", "load"), ("yaml", "full_load")}

BILLION_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_a_few_aliases_are_followed() -> None:
    assert parse_yaml("a: &x [1, 2]\nb: *x\nc: 0x10", "it") == {"a": [1, 2], "b": [1, 2], "c": 16}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BILLION_LAUGHS, "stands for more than 100,000 values"),
        ("&a [*a]", "nested more than 100 levels deep"),
        ("a: &a {x: 1}\nb: {<<: *a}", r"merge keys \(<<\) are not read"),
        ("a: 0x" + "f" * 5000, "a number of more than 400 digits"),
        ("1:" * 300 + "1", "a number of more than 400 digits"),
        ("a: !!timestamp no", "not valid YAML"),
        ("a: !!int ''", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("x" * (parsing.MOST_YAML + 1), "more than 2 million characters"),
    ],
)
def test_yaml_that_stands_for_more_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_yaml(text, "it")


def test_a_key_that_stands_twice_is_refused_where_the_last_one_would_count() -> None:
    twice = "data:\n  name: a\n  name: b\n"
    assert parse_yaml(twice, "card.md") == {"data": {"name": "b"}}
    with pytest.raises(UserError, match=r"c.yaml is not valid YAML \(line 3\): 'name' stands twice; mend it"):
        parse_yaml(twice, "c.yaml", unique=True)
    assert parse_yaml("1: a\n'1': b\nc: {1: d}\n", "c.yaml", unique=True) == {1: "a", "1": "b", "c": {1: "d"}}


def test_a_tab_is_named() -> None:
    with pytest.raises(UserError, match=r"\(line 2\): found character '\\t' that cannot start any token; mend it"):
        parse_yaml("a:\n\tb: 1\n", "c.yaml")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "it.json")
    for read in (read_text, read_json, read_tensors):
        with pytest.raises(UserError, match=r"it\.json is no regular file"):
            read(tmp_path / "it.json")


def test_a_file_beyond_all_measure_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "it.json").open("wb") as file:
        file.truncate(parsing.MOST_BYTES + 1)
    with pytest.raises(UserError, match="more than 256 MB"):
        read_json(tmp_path / "it.json")


def test_the_remedy_is_the_callers() -> None:
    with pytest.raises(UserError, match=r"^it is not valid JSON .*; mend it\.$"):
        parse_json("{", "it", "mend it")


def test_an_object_is_read_where_there_is_one_and_anything_else_refused(tmp_path: Path) -> None:
    path = tmp_path / "it.json"
    assert read_object(path, "it") == read_object(None, "it") == {}
    path.write_text('{"a": 1}')
    assert read_object(path, "it") == {"a": 1}
    for text, words in (("[]", "it is no JSON object; mend it."), ("{", "it is not valid JSON")):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            read_object(path, "it", "mend it")


def test_an_error_of_many_lines_or_none_is_told_in_one() -> None:
    assert first_line(OSError("\nit is damaged\nat byte 7")) == "it is damaged"
    assert first_line(OSError()) == "OSError"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_of_others_are_parsed_in_one_place(path: Path) -> None:
    """A copy by way of `json.dumps` is no file of others'."""
    if path == PACKAGE / "parsing.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        module, name = getattr(node.func.value, "id", ""), node.func.attr
        own = node.args and isinstance(node.args[0], ast.Call) and getattr(node.args[0].func, "attr", "") == "dumps"
        if (module, name) in PARSERS and not own:
            assert (str(path.relative_to(PACKAGE)), name) in OTHERWISE, f"{path}:{node.lineno} reads past parsing.py"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_loader_says_whether_foreign_code_may_run(path: Path) -> None:
    """Without a word, transformers asks on the terminal. Loaders of our own classes and of peft run none."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = ast.unparse(node.func.value)
        if node.func.attr in ("from_pretrained", "from_config") and not owner.endswith(
            ("super()", "PeftConfig", "PeftModel")
        ):
            given = {word.arg for word in node.keywords}
            options = [ast.unparse(word.value) for word in node.keywords if word.arg is None]
            assert "trust_remote_code" in given or any("trust_remote_code" in _made(path, name) for name in options), (
                f"{path}:{node.lineno} {owner}.{node.func.attr}"
            )


def _made(path: Path, name: str) -> str:
    """The text that makes a dictionary of options."""
    made = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign | ast.AnnAssign) and name in ast.unparse(node).split("=")[0]
    ]
    return " ".join(made)
