"""Earlier requests: their rows are found again in the next run's data, or the run is refused."""

from dataclasses import replace

import pytest
from datasets import Dataset, DatasetDict

from hf_unlearn.data.fingerprint import combine_hashes, row_hashes
from hf_unlearn.data.splits import make_splits
from hf_unlearn.errors import UserError
from hf_unlearn.hub.history import PRIVATE_ROWS_NAME, PastRequests, PrivateRows
from hf_unlearn.records.file_names import is_published
from hf_unlearn.records.schemas import HistoryEntry, RequestRecord

SALT = "a secret of the owners"


def request_for(rows, salt=None):
    """What a run records of a request for these rows."""
    if salt is None:
        return RequestRecord("file", len(rows), combine_hashes(rows["id"]))
    hashes = tuple(sorted(row_hashes(rows, salt)))
    return RequestRecord("file", len(rows), combine_hashes(hashes), salted=True, row_hashes=hashes)


def run_for(request):
    return HistoryEntry("fine_tune", "2026-01-01T00:00:00+00:00", request, "0" * 64)


@pytest.fixture
def rows(shapes):
    """Fifty training rows, two of which the first request named, and ten that were held out."""
    return shapes.select(range(50)), shapes.select([3, 8]), shapes.select(range(50, 60))


def write_ids(path, rows):
    path.write_text("".join(f"{row}\n" for row in rows["id"]))
    return path


def test_rows_are_found_by_the_hashes_that_the_last_run_kept(rows, shapes, tmp_path):
    data, named, held_out = rows
    past = PastRequests()
    PrivateRows.of(request_for(named), named, {"validation": held_out}).save(tmp_path)
    again = replace(past, runs=(run_for(request_for(named)),), private=PrivateRows.load(tmp_path))
    # Other ids, another order, another column: the rows are the same pictures with the same captions.
    renamed = shapes.select(reversed(range(72))).map(lambda row: {"id": "new-" + row["id"]})
    found = again.find(renamed)
    assert found.requested["train"] == {f"new-{row}": 1 for row in named["id"]}
    assert found.held_out["validation"] == {f"new-{row}" for row in held_out["id"]}
    # A second request joins the first, and what was held out stays.
    second = shapes.select([11])
    later = PrivateRows.of(request_for(second), second, {"validation": shapes.select([60])})
    again.private.joined(later).save(tmp_path)
    both = replace(again, runs=(*again.runs, run_for(request_for(second))), private=PrivateRows.load(tmp_path))
    found = both.find(data)
    assert found.requested["train"] == {**dict.fromkeys(named["id"], 1), second["id"][0]: 2}
    assert both.private.held_out == again.private.held_out
    assert not is_published(PRIVATE_ROWS_NAME)


def test_a_row_among_the_held_out_ones_is_found_there(rows):
    data, named, _ = rows
    past = PastRequests((run_for(request_for(named, SALT)),))
    found = past.find(DatasetDict(train=data.select(range(5, 50)), test=data.select(range(5))), SALT)
    assert found.requested["train"] == {named["id"][1]: 1} and found.requested["test"] == {named["id"][0]: 1}


def test_salted_rows_need_the_salt_or_the_file(rows, tmp_path):
    data, named, held_out = rows
    past = PastRequests(
        (run_for(request_for(named, SALT)),), {"validation": tuple(row_hashes(held_out, SALT)), "test": ()}
    )
    assert past.find(data, SALT).requested["train"] == dict.fromkeys(named["id"], 1)
    with pytest.raises(UserError, match=r"request 1 .2 rows, 2026-01-01. cannot be told .* --earlier_requests"):
        past.find(data)
    with pytest.raises(UserError, match="--request_salt: none of the rows"):
        past.find(data, "another salt")
    file = write_ids(tmp_path / "first.txt", named)
    assert past.find(data, files=[file]).requested["train"] == dict.fromkeys(named["id"], 1)
    # With the salt a file is compared row by row.
    assert past.find(data, SALT, [file]).requested["train"] == dict.fromkeys(named["id"], 1)
    with pytest.raises(UserError, match="none of the requests"):
        past.find(data, SALT, [write_ids(tmp_path / "other.txt", data.select([1, 2]))])


def test_a_request_whose_hashes_are_gone_needs_its_file(rows, tmp_path):
    data, named, _ = rows
    past = PastRequests((run_for(request_for(named)),))
    with pytest.raises(UserError, match="name the files of these requests"):
        past.find(data)
    file = write_ids(tmp_path / "first.txt", named)
    assert past.find(data, files=[file]).requested["train"] == dict.fromkeys(named["id"], 1)
    with pytest.raises(UserError, match=r"other\.txt is none of the requests"):
        past.find(data, files=[file, write_ids(tmp_path / "other.txt", data.select([1]))])
    with pytest.raises(UserError, match="name no earlier request"):
        PastRequests().find(data, files=[file])
    assert PastRequests().find(data) is None


def test_what_was_found_stays_out_of_every_split(rows):
    data, named, held_out = rows
    past = PastRequests((run_for(request_for(named, SALT)),), {"validation": tuple(row_hashes(held_out, SALT))})
    everything = Dataset.from_list([*data, *held_out], features=data.features)
    splits, _ = make_splits(everything, unlearn_fraction=0.1, past=past.find(everything, SALT))
    assert splits["earlier"]["id"] == named["id"]
    assert set(splits["validation"]["id"]) == set(held_out["id"])
    for name in ("retain", "unlearn", "validation", "test"):
        assert not set(splits[name]["id"]) & set(named["id"]), name
