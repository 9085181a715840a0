"""Any bytes given as a record end in a record or in one sentence; what is written is read back."""

import json
import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unlearn.errors import UserError
from hf_unlearn.files import write_atomically
from hf_unlearn.parsing import MOST_LEVELS, parse_json, read_json
from hf_unlearn.records.codec import decode, encode, from_json, to_json
from hf_unlearn.records.schemas import BaseModel, EvaluationRecord, UnlearningManifest


class Kind(StrEnum):
    GOOD = "good"


@dataclass(frozen=True)
class Inner:
    pair: tuple[int, float]
    kind: Kind = Kind.GOOD

    DERIVED: ClassVar = ("total",)

    @property
    def total(self) -> float:
        return sum(self.pair)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    values: tuple[float | None, ...] = ()
    named: dict[str, Inner] = field(default_factory=dict)


RECORD = Outer(Inner((1, 0.5)), (0.25, None), {"a": Inner((2, 1.5))})


def test_a_record_is_read_back_with_its_types() -> None:
    assert from_json(Outer, to_json(RECORD), "it") == RECORD
    assert json.loads(to_json(RECORD))["named"]["a"] == {"pair": [2, 1.5], "kind": "good", "total": 3.5}


def test_what_is_not_finite_becomes_null_or_a_word_and_comes_back() -> None:
    record = Outer(Inner((1, math.inf)), (math.nan, -math.inf))
    assert encode(record)["values"] == [None, None] and encode(record)["inner"]["pair"] == [1, None]
    words = encode(record, words=True)
    assert (words["inner"]["pair"], words["values"]) == ([1, "inf"], ["nan", "-inf"])
    again = decode(Outer, json.loads(json.dumps(words, allow_nan=False)), "it", words=True)
    assert again.inner.pair == (1, math.inf) and math.isnan(again.values[0])
    with pytest.raises(UserError, match=r"it.inner.pair\[1\] should be float, but holds 'inf'"):
        decode(Outer, words, "it")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[" * 100_000, "levels deep"),
        ("[" * 101 + "]" * 101, "levels deep"),
        ('{"inner": NaN}', "NaN is no number"),
        ('{"inner": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"inner": {"pair": [1, 1e999]}}', "should be float"),
        ('{"inner": {"pair": [1, ' + "9" * 400 + "]}}", "should be float"),
        ('{"inner": {"pair": [1, 2, 3]}}', "it.inner.pair should be"),
        ('{"inner": {"pair": [true, 2]}}', "it.inner.pair[0] should be int"),
        ('{"inner": {"pair": [1, 2], "kind": "bad"}}', "it.inner.kind should be Kind"),
        ('{"inner": {"pair": [1, 2], "kind": []}}', "it.inner.kind should be Kind"),
        ('{"inner": null}', "it.inner should be a JSON object"),
        ("null", "it should be a JSON object"),
        ("", "not valid JSON"),
    ],
)
def test_what_is_no_such_record_is_one_sentence(text: str, named: str) -> None:
    with pytest.raises(UserError) as error:
        from_json(Outer, text, "it")
    assert named in str(error.value) and len(str(error.value)) < 400


def test_as_many_levels_as_allowed_are_read() -> None:
    text = "[" * MOST_LEVELS + "]" * MOST_LEVELS
    assert json.dumps(parse_json(text, "it")) == text


def test_a_name_in_another_encoding_survives(tmp_path: Path) -> None:
    record = BaseModel("caf\udce9")  # as Python reads a file name in Latin-1
    path = write_atomically(tmp_path / "record.json", to_json(record))
    assert from_json(BaseModel, path.read_text(encoding="utf-8"), "it") == record


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
MANIFEST = json.loads(
    UnlearningManifest.from_json(
        json.dumps(
            {
                **{"method": "x", "weights_sha256": "a", "created": "c", "library_version": "v"},
                **{"base_model": {"name_or_path": "b"}, "dataset": {"name": "d"}, "splits": {"retain": 1}},
                "request": {"kind": "file", "count": 1, "sha256": "s"},
            }
        )
    ).to_json()
)
EVALUATION = json.loads(EvaluationRecord("views", {"emia": 1.0}).to_json())


@settings(max_examples=150)
@given(st.sampled_from([(UnlearningManifest, MANIFEST), (EvaluationRecord, EVALUATION)]), st.data(), JSON)
def test_any_value_in_any_place_is_a_record_or_one_sentence(case, data, value) -> None:
    kind, good = case
    changed = {**good, data.draw(st.sampled_from(sorted(good))): value}
    try:
        record = kind.from_json(json.dumps(changed))
    except UserError:
        return
    assert kind.from_json(record.to_json()) == record


@settings(max_examples=100)
@given(st.binary(max_size=60))
def test_any_bytes_are_json_or_one_sentence(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.json"
        path.write_bytes(content)
        try:
            read_json(path)
        except UserError as error:
            assert "any.json" in str(error)
