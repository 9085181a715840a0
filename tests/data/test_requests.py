"""Removal requests: every file format, and every bad entry listed."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_unlearn.data.requests import RemovalRequest, checked_ids, parse_where, read_request
from hf_unlearn.errors import UserError

# What an id may be: no line breaks, nothing that cannot be encoded, no blanks around it, and no comment in a text file.
ID = (
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1)
    .map(str.strip)
    .filter(lambda text: text and text[0] not in "#\ufeff")
)
IDS = st.lists(ID, min_size=1, unique=True)


@given(IDS)
def test_text_round_trip(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    path = tmp_path_factory.mktemp("request") / "ids.txt"
    path.write_text("# a comment\n\n" + "\n  ".join(ids) + "\n", encoding="utf-8")
    assert read_request(path) == ids


@given(IDS, st.booleans())
def test_csv_round_trip(tmp_path_factory: pytest.TempPathFactory, ids: list[str], alone: bool) -> None:
    path = tmp_path_factory.mktemp("request") / "ids.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id"] if alone else ["owner", "id"])
        writer.writerows([row_id] if alone else ["alice, bob", row_id] for row_id in ids)
    assert read_request(path) == ids


@given(IDS, st.booleans())
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, ids: list[str], wrapped: bool) -> None:
    path = tmp_path_factory.mktemp("request") / "ids.json"
    path.write_text(json.dumps({"ids": ids} if wrapped else ids))
    assert read_request(path) == ids


@given(st.lists(st.one_of(ID, st.integers(), st.floats(), st.booleans(), st.none(), st.just(" "), st.lists(ID))))
def test_checked_ids_parts_good_from_bad(entries: list) -> None:
    ids, problems = checked_ids(entries)
    good = [entry for entry in entries if (isinstance(entry, str) and entry.strip()) or type(entry) is int]
    assert ids == [str(entry) for entry in good]
    has_repeats = len({str(entry) for entry in good}) < len(good)
    assert len(problems) == (not entries) + (len(good) < len(entries)) + has_repeats


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_everything_wrong_is_listed_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "ids.json", '["a", 7, 1.5, "b", "a", null, true, "", ["c"], "7"]')
    with pytest.raises(UserError) as caught:
        read_request(path)
    message = str(caught.value)
    assert "(5): 1.5 (entry 3), None (entry 6), True (entry 7), '' (entry 8), ['c'] (entry 9)" in message
    assert "repeated ids (2): a, 7" in message


def test_long_lists_are_cut(tmp_path: Path) -> None:
    path = write(
        tmp_path, "ids.txt", "\n".join(f"x{i}" for i in range(50)) * 1 + "\n" + "\n".join(f"x{i}" for i in range(50))
    )
    with pytest.raises(UserError, match=r"repeated ids \(50\): x0, .*x19 and 30 more\.$"):
        read_request(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ids.txt", "", "no id in it"),
        ("ids.txt", "# only a comment\n", "no id in it"),
        ("ids.csv", "", "no id in it"),
        ("ids.csv", "id\n", "no id in it"),
        ("ids.json", "[]", "no id in it"),
        ("ids.json", '["\\ud800"]', r"entries that are no id \(1\)"),
        ("ids.xlsx", "a", r"must be a \.txt, \.csv or \.json file \(--unlearn_request\)"),
        ("ids.txt", b"\xff\xfe\x00", r"not UTF-8 text \(byte 0\)"),
        ("ids.json", '["a", ', "not valid JSON"),
        ("ids.json", '{"id": ["a"]}', r"must be a JSON list of ids or \{"),
        ("ids.json", '"a"', "must be a JSON list"),
        ("ids.csv", "name,owner\na,b\n", "no column 'id'; its columns: name, owner"),
        ("ids.csv", "id,id\na,b\n", "no column 'id'"),
        ("ids.csv", "0017\n0018\n", "'0017', may be a header or an id"),
        ("ids.csv", "a7f3\n", "'a7f3', may be a header or an id"),
        ("ids.csv", "id;owner\n1;2\n", "'id;owner', may be a header or an id"),
        ("ids.csv", 'id\n"a\n', "not valid CSV"),
    ],
)
def test_bad_files(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_request(write(tmp_path, name, content))
    assert name in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ids\.txt cannot be read \(No such file"):
        read_request(tmp_path / "ids.txt")


def test_a_csv_row_of_another_width_is_no_id(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no id \(3\): '' \(entry 2\), \['d'\] \(entry 3\), \['e', 'f', 'g'\] \(entry 4\)"
    ):
        read_request(write(tmp_path, "ids.csv", "id,owner\na,b\n,c\nd\ne,f,g\n"))


def test_windows_files(tmp_path: Path) -> None:
    assert read_request(write(tmp_path, "ids.txt", b"\xef\xbb\xbfa\r\nb\r\n")) == ["a", "b"]
    assert read_request(write(tmp_path, "ids.csv", b"\xef\xbb\xbfid\r\na\r\n\r\nb\r\n")) == ["a", "b"]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("owner=alice", ("owner", ["alice"])),
        ("owner=alice,bob", ("owner", ["alice", "bob"])),
        (" owner = alice , bob ", ("owner", ["alice", "bob"])),
        ("formula=a=b", ("formula", ["a=b"])),
    ],
)
def test_parse_where(condition: str, expected: tuple[str, list[str]]) -> None:
    assert parse_where(condition) == expected


@pytest.mark.parametrize("condition", ["", "owner", "=alice", "owner=", "owner=alice,", "owner=alice,alice"])
def test_bad_conditions(condition: str) -> None:
    with pytest.raises(UserError, match="not of the form column=value"):
        parse_where(condition)


def test_the_hash_is_that_of_sort_and_sha256sum(tmp_path: Path) -> None:
    ids = ["b", "a", "ü", "Z", "\U0001f355", "\uffee"]
    path = write(tmp_path, "ids.txt", "".join(f"{row_id}\n" for row_id in ids))
    shell = subprocess.run(
        f"LC_ALL=C sort '{path}' | sha256sum", shell=True, capture_output=True, text=True, check=True
    )
    request = RemovalRequest("file", tuple(ids))
    assert request.sha256 == shell.stdout.split()[0]
    assert request.sha256 == RemovalRequest("split", tuple(reversed(ids))).sha256
    assert request.sha256 != hashlib.sha256(b"").hexdigest()
    assert request.count == 6


def test_a_request_is_frozen_and_shows_no_ids() -> None:
    request = RemovalRequest("where", ("secret",), where="owner=alice")
    with pytest.raises(AttributeError):
        request.kind = "file"  # type: ignore[misc]
    assert "secret" not in repr(request)
