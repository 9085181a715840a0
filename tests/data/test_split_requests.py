"""Rows of a request are found among many, and those of earlier requests are kept out."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data.test_splits import assert_partition, ids_only, plan
from datasets import Dataset, DatasetDict, Image, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from hf_unlearn.data import splits
from hf_unlearn.data.earlier_rows import PastRows
from hf_unlearn.data.splits import make_splits, request_rows
from hf_unlearn.errors import UserError


@given(st.lists(st.text(min_size=1), min_size=1, unique=True), st.data())
@settings(deadline=None, max_examples=40)
def test_request_rows_finds_what_a_dictionary_finds(ids: list[str], data: st.DataObject) -> None:
    ids = [row for row in ids if row.strip()] or ["a"]
    wanted = data.draw(st.lists(st.sampled_from(ids), min_size=1, unique=True))
    place = {row: i for i, row in enumerate(ids)}
    for form in (
        ids,
        np.array(ids, dtype=object),
        pa.array(ids),
        pa.chunked_array([ids[:1], ids[1:]], pa.large_string()),
    ):
        assert request_rows(form, wanted).tolist() == sorted(place[row] for row in wanted)


def test_request_rows_takes_integers_and_cuts_long_lists() -> None:
    assert request_rows(["10", "11"], [11]).tolist() == [1]
    told = r"no training row has \(30\): 0, 1, .*, 19 and 10 more \(there are ids such as a\)\.$"
    with pytest.raises(UserError, match=told):
        request_rows(["a"], list(range(30)))


def planning_peak(n: int) -> int:
    """Peak of Arrow and Python memory while a tenth of n ids is planned, over what the ids themselves take."""
    ids = pa.array([f"sample-{i:09d}" for i in range(n)])
    wanted = [f"sample-{i:09d}" for i in range(0, n, 10)]
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    rows = request_rows(ids, wanted)
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(rows, np.arange(0, n, 10))
    assert pa.total_allocated_bytes() - before < 64 * n
    return python


def test_planning_memory_grows_linearly() -> None:
    small, large = planning_peak(20_000), planning_peak(80_000)
    assert large < 5 * small
    assert large < 200 * 80_000  # 200 bytes a row is 2 GB at ten million


def test_planning_touches_each_id_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    index_in = splits.pc.index_in
    monkeypatch.setattr(splits.pc, "index_in", lambda *a, **k: calls.append(len(a[0])) or index_in(*a, **k))
    request_rows([str(i) for i in range(1000)], [str(i) for i in range(0, 1000, 7)])
    assert calls == [1000]


def test_a_large_request_file(tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text(json.dumps([str(i) for i in range(0, 10_000, 3)]))
    ids, request = plan(ids_only(10_000), unlearn_request=str(tmp_path / "ids.json"))
    assert len(ids["unlearn"]) == request.count == 3_334
    assert_partition(ids, [str(i) for i in range(10_000)])


def test_rows_of_earlier_requests_are_in_no_split_but_their_own() -> None:
    data = DatasetDict(train=ids_only(60), test=ids_only(12, "t"))
    past = PastRows(
        {"train": {"3": 1, "7": 1, "12": 2, "t4": 1}, "test": {"t5": 2}}, {"validation": {"1", "2", "12", "40"}}
    )
    ids, _ = plan(data, unlearn_request=["7", "40"], past=past)
    assert ids["unlearn"] and set(ids["unlearn"]) == {"7", "40"}  # what is asked for now is unlearned now
    assert set(ids["earlier"]) == {"3", "12", "t5"}
    assert set(ids["validation"]) == {"1", "2"}  # as the first run held them out, not drawn anew
    assert set(ids["test"]) == {f"t{i}" for i in range(12)} - {"t5"}
    assert_partition(ids, [*map(str, range(60)), *(f"t{i}" for i in range(12))])


def test_held_out_rows_that_were_not_recorded_are_drawn_from_what_is_left() -> None:
    past = PastRows({"train": {str(i): 1 for i in range(10)}}, {"validation": {"nowhere"}})
    ids, _ = plan(ids_only(60), unlearn_fraction=0.2, past=past)
    assert set(ids["earlier"]) == {str(i) for i in range(10)}
    assert len(ids["validation"]) == len(ids["test"]) == 5 and len(ids["unlearn"]) == 8
    without, _ = plan(ids_only(60), unlearn_fraction=0.2)
    assert "earlier" not in without


def test_a_copy_of_an_earlier_row_is_refused_or_kept_out_along(tmp_path: Path) -> None:
    colours = ["red", "green", "blue", "white", "black", "yellow", "pink", "cyan", "red", "gray"]
    pictures = [PILImage.new("RGB", (8, 8), colour) for colour in colours]
    data = DatasetDict(
        train=Dataset.from_dict({"id": list("abcdefgh"), "image": pictures[:8]}).cast_column("image", Image()),
        validation=Dataset.from_dict({"id": ["v"], "image": pictures[8:9]}).cast_column("image", Image()),
        test=Dataset.from_dict({"id": ["w"], "image": pictures[9:]}).cast_column("image", Image()),
    )
    past = PastRows({"train": {"a": 1}})
    with pytest.raises(UserError, match="v in validation = a"):
        make_splits(data, unlearn_request=["b"], past=past)
    data["validation"] = concatenate_datasets(
        [data["validation"], data["train"].select([7]).map(lambda _: {"id": "x"})]
    )
    data["train"] = data["train"].select(range(7))
    made, _ = make_splits(data, unlearn_request=["b"], past=past, duplicates="move")
    assert made["earlier"]["id"] == ["a"] and set(made["unlearn"]["id"]) == {"b", "v"}
