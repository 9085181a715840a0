"""Earlier requests: their rows are found again in the next run's data, or the run is refused."""

import io
from dataclasses import replace

import pytest
from datasets import Dataset, DatasetDict

from hf_unlearn.data.fingerprint import combine_hashes, row_hashes
from hf_unlearn.data.splits import make_splits
from hf_unlearn.errors import UserError
from hf_unlearn.hub.past_requests import PastRequests
from hf_unlearn.hub.recorded_rows import PRIVATE_ROWS_NAME, RecordedRows
from hf_unlearn.records.file_names import is_published
from hf_unlearn.records.schemas import (
    BaseModel,
    DatasetRecord,
    HistoryEntry,
    RequestRecord,
    RequestStatus,
    UnlearningManifest,
)

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
    _, named, held_out = rows
    past = PastRequests()
    RecordedRows.of(request_for(named), {"unlearn": named, "validation": held_out}).save(tmp_path)
    again = replace(past, runs=(run_for(request_for(named)),), private=RecordedRows.load(tmp_path))
    # Other ids, another order, another column: the rows are the same pictures with the same captions.
    renamed = shapes.select(reversed(range(72))).map(lambda row: {"id": "new-" + row["id"]})
    found = again.find(renamed)
    assert found.requested["train"] == {f"new-{row}": 1 for row in named["id"]}
    assert found.held_out["validation"] == {f"new-{row}" for row in held_out["id"]}
    # A second request joins the first, and what was held out stays.
    second = shapes.select([11])
    later = RecordedRows.of(request_for(second), {"unlearn": second, "validation": shapes.select([60])})
    again.private.joined(later).save(tmp_path)
    both = replace(again, runs=(*again.runs, run_for(request_for(second))), private=RecordedRows.load(tmp_path))
    found = both.find(shapes)
    assert found.requested["train"] == {**dict.fromkeys(named["id"], 1), second["id"][0]: 2}
    assert both.private.held_out == again.private.held_out
    assert not is_published(PRIVATE_ROWS_NAME)


def edited(data, what):
    """The rows with other captions, or their pictures saved anew, or both."""

    def edit(row):
        row["captions"] = [f"{caption}!" for caption in row["captions"]] if "captions" in what else row["captions"]
        if "pictures" in what:
            file = io.BytesIO()
            row["image"].save(file, "PNG", compress_level=1, dpi=(72, 72))
            row["image"] = {"bytes": file.getvalue()}
        return row

    return Dataset.from_list([edit(row) for row in data], features=data.features)


def past_of(data, named, held_out, salt=None, parts=True):
    """A model that has been through one request."""
    request = request_for(named, salt)
    retain = data.select([number for number, row in enumerate(data["id"]) if row not in named["id"]])
    recorded = RecordedRows.of(request, {"retain": retain, "unlearn": named, "validation": held_out}, salt)
    recorded = recorded if parts else replace(recorded, parts={})
    return PastRequests((run_for(request),), **{"salted" if salt else "private": recorded})


@pytest.mark.parametrize("salt", [None, SALT])
@pytest.mark.parametrize("what", ["captions", "pictures"])
def test_a_row_with_one_part_edited_is_known_by_the_other(shapes, salt, what):
    # The captions of twelve rows that were held out are no other row's; those of two more are rows' of retain, too.
    data, named, held_out = shapes.select(range(40)), shapes.select([3, 8]), shapes.select(range(42, 56))
    everything = edited(Dataset.from_list([*data, *held_out], features=data.features), what)
    found = past_of(data, named, held_out, salt).find(everything, salt)
    told = held_out if what == "captions" else held_out.select(range(12))
    assert found.requested["train"] == dict.fromkeys(named["id"], 1)
    assert set(found.held_out["validation"]) == set(told["id"])
    assert f"{2 + len(told)} rows of earlier requests" in found.notes[-1]
    assert (what == "captions") != ("Of the 14 rows that the first run held out, 12 are in the data." in found.notes)
    # What earlier versions recorded tells no part.
    with pytest.raises(UserError, match=r"0 of the 2 rows of request 1, 0 of the 14 rows .*--earlier_requests"):
        past_of(data, named, held_out, salt, parts=False).find(everything, salt)


@pytest.mark.parametrize("salt", [None, SALT])
def test_data_in_which_nothing_is_known_is_refused_until_it_is_said_why(rows, salt, tmp_path):
    data, named, held_out = rows
    past, known = past_of(data, named, held_out, salt), Dataset.from_list([*data, *held_out], features=data.features)
    unknown = edited(known, ("captions", "pictures"))
    with pytest.raises(UserError, match=r"0 of the 2 rows of request 1, .*--allow_unfound_rows true") as refused:
        past.find(unknown, salt)
    assert ("--request_salt" in str(refused.value)) == (salt is not None)
    assert past.find(unknown, salt, allow_unfound_rows=True).requested["train"] == {}
    # Their ids are as good, but the rows held out would still be drawn from those that the model was trained on.
    file = write_ids(tmp_path / "first.txt", named)
    if salt is not None:  # which may be another one
        with pytest.raises(UserError, match="--request_salt finds none of the rows that request 1 recorded"):
            past.find(unknown, salt, [file])
        past = past_of(data, named, held_out)
    with pytest.raises(UserError, match="0 are found in this data, and validation would be drawn"):
        past.find(unknown, None, [file])
    brought = DatasetDict(train=unknown, validation=edited(held_out, "captions and pictures"))
    assert past.find(brought, None, [file]).requested["train"] == dict.fromkeys(named["id"], 1)


def test_dropped_rows_are_told_from_edited_ones_by_those_that_are_still_there(rows, shapes):
    data, named, held_out = rows
    past, rest = past_of(data, named, held_out), [row for row in data if row["id"] not in named["id"]]
    there = Dataset.from_list([*rest, *held_out.select(range(5))], features=data.features)
    found = past.find(there)
    assert found.requested["train"] == {} and len(found.held_out["validation"]) == 5
    assert found.notes == ("Of the 10 rows that the first run held out, 5 are in the data.",)
    fewer = Dataset.from_list([*rest, *held_out.select(range(4))], features=data.features)
    with pytest.raises(UserError, match="0 of the 2 rows of request 1, 4 of the 10 rows"):
        past.find(fewer)
    brought = DatasetDict(train=fewer, validation=shapes.select(range(60, 72)))
    with pytest.raises(UserError, match="0 of the 2 rows of request 1"):
        past.find(brought)  # rows held out anew say nothing of the request's
    # That they were gone the last time is recorded.
    gone = replace(past, levels=(RequestStatus(1, "fine_tune", "2026-01-01", 2, 0),))
    assert gone.find(brought).requested["train"] == {}
    # One row of two is half of them.
    half = Dataset.from_list([*fewer, named[0]], features=data.features)
    with pytest.raises(UserError, match="4 are found in this data, and validation would be drawn"):
        past.find(half)
    assert past.find(DatasetDict(train=half, validation=brought["validation"])).requested["train"] == {
        named["id"][0]: 1
    }


def test_parts_tell_no_row_of_what_is_still_there(rows):
    data, named, held_out = rows
    past = past_of(data, named, held_out)
    # A picture of the request stands beside it with other captions, and another picture has its captions.
    copy = {**named[0], "captions": ["a copy"], "id": "copy"}
    likeness = {**data[20], "captions": named[1]["captions"], "id": "likeness"}
    with_both = Dataset.from_list([*data, *held_out, copy, likeness], features=data.features)
    assert past.find(with_both).requested["train"] == dict.fromkeys(named["id"], 1)


def test_a_row_among_the_held_out_ones_is_found_there(rows):
    data, named, _ = rows
    past = past_of(data, named, data.select([]), SALT)
    found = past.find(DatasetDict(train=data.select(range(5, 50)), test=data.select(range(5))), SALT)
    assert found.requested["train"] == {named["id"][1]: 1} and found.requested["test"] == {named["id"][0]: 1}


def test_salted_rows_need_the_salt_or_the_file(rows, tmp_path):
    data, named, held_out = rows
    past, data = past_of(data, named, held_out, SALT), DatasetDict(train=data, validation=held_out)
    assert past.find(data, SALT).requested["train"] == dict.fromkeys(named["id"], 1)
    with pytest.raises(UserError, match=r"request 1 .2 rows, 2026-01-01. cannot be told .* --earlier_requests"):
        past.find(data)
    with pytest.raises(UserError, match=r"0 of the 2 rows of request 1, .* as --request_salt"):
        past.find(data, "another salt")
    file = write_ids(tmp_path / "first.txt", named)
    assert past.find(data, files=[file]).requested["train"] == dict.fromkeys(named["id"], 1)
    # With the salt a file is compared row by row.
    assert past.find(data, SALT, [file]).requested["train"] == dict.fromkeys(named["id"], 1)
    with pytest.raises(UserError, match="none of the requests"):
        past.find(data, SALT, [write_ids(tmp_path / "other.txt", data["train"].select([1, 2]))])


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
    past = past_of(data, named, held_out, SALT)
    everything = Dataset.from_list([*data, *held_out], features=data.features)
    splits, _ = make_splits(everything, unlearn_fraction=0.1, past=past.find(everything, SALT))
    assert splits["earlier"]["id"] == named["id"]
    assert set(splits["validation"]["id"]) == set(held_out["id"])
    for name in ("retain", "unlearn", "validation", "test"):
        assert not set(splits[name]["id"]) & set(named["id"]), name


@pytest.mark.parametrize("again", [True, False], ids=["asked for again", "dropped"])
def test_no_row_of_an_earlier_request_need_be_left(rows, again):
    """As documented, both ways; a folder of pictures is a table of two parts, whose empty choice is special."""
    data, named, held_out = rows
    there = Dataset.from_list([*data, *held_out], features=data.features)
    there = there if again else there.select([row for row, of in enumerate(there["id"]) if of not in named["id"]])
    there = there.remove_columns("owner").add_column("owner", ["bob"] * len(there))
    past = past_of(data, named, held_out)
    asked = list(named["id"]) if again else ["red-circle-3"]
    splits, _ = make_splits(there, unlearn_request=asked, past=past.find(there))
    assert len(splits["earlier"]) == 0 and splits["earlier"].column_names[-1] == "request"
    assert sum(map(len, splits.values())) == len(there) and set(splits["unlearn"]["id"]) == set(asked)


def test_what_was_held_out_first_is_not_trained_on_beside_splits_that_the_data_brings(rows, shapes):
    data, named, held_out = rows
    train = Dataset.from_list([*data, *held_out], features=data.features)
    brought = DatasetDict(train=train, validation=shapes.select(range(60, 66)), test=shapes.select(range(66, 72)))
    found = past_of(data, named, held_out).find(brought)
    assert any("10 rows that the first run held out are in train" in note for note in found.notes)
    splits, _ = make_splits(brought, unlearn_fraction=0.1, past=found)
    assert set(splits["validation"]["id"]) == {*held_out["id"], *brought["validation"]["id"]}
    assert not set(splits["retain"]["id"]) & set(held_out["id"]) and len(splits["test"]) == 6


def test_a_file_takes_nothing_from_what_the_hashes_tell(rows, shapes, tmp_path):
    data, named, held_out = rows
    past, file = past_of(data, named, held_out), write_ids(tmp_path / "first.txt", named)
    everything = Dataset.from_list([*data, *held_out], features=data.features)
    assert past.find(everything, files=[file]).requested["train"] == dict.fromkeys(named["id"], 1)
    # Ids that are gone tell nothing; the hashes still do.
    renamed = everything.map(lambda row: {"id": "new-" + row["id"]})
    found = past.find(renamed, files=[file])
    assert found.requested["train"] == {f"new-{row}": 1 for row in named["id"]}
    # Ids that other rows have now would keep these out, and teach those of the request again.
    shifted = everything.remove_columns("id").add_column("id", [*everything["id"][7:], *everything["id"][:7]])
    with pytest.raises(UserError, match=r"the ids of request 1 are other rows' .* leave the file out"):
        past.find(shifted, files=[file])


def test_a_file_of_ids_that_the_data_has_not_is_no_sign_that_rows_were_dropped(rows, tmp_path):
    data, named, held_out = rows
    renamed = DatasetDict(train=data.map(lambda row: {"id": "new-" + row["id"]}), validation=held_out)
    past, file = past_of(data, named, held_out, SALT), write_ids(tmp_path / "first.txt", named)
    with pytest.raises(UserError, match=r"0 of the 2 rows of request 1, .* or the ids that a file names"):
        past.find(renamed, files=[file])
    assert past.find(renamed, files=[file], allow_unfound_rows=True).requested["train"] == {}


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("no unlearning.json", r"it holds private_rows\.json and no unlearning\.json"),
        ("no history", r"has rows of 1 requests that unlearning\.json does not name"),
        ("fewer hashes", r"private_rows\.json has 1 of the 2 rows of request 1"),
        ("fewer salted", r"unlearning\.json has 1 of the 2 rows of request 1"),
    ],
)
def test_records_from_which_something_was_taken_are_refused(rows, shapes, tmp_path, damage, told):
    _, named, held_out = rows
    second = shapes.select([11])
    request = request_for(named, SALT if damage == "fewer salted" else None)
    private = RecordedRows.of(request_for(named), {"unlearn": named, "validation": held_out})
    private = private.joined(RecordedRows.of(request_for(second), {"unlearn": second}))
    history = [run_for(request)]
    if damage == "no history":
        history = []
    elif damage == "fewer hashes":
        sha256 = request.sha256
        private = replace(private, requests={**private.requests, sha256: private.requests[sha256][:1]})
    elif damage == "fewer salted":
        history = [run_for(replace(request, row_hashes=request.row_hashes[:1]))]
        private = RecordedRows()
    private.save(tmp_path)
    if damage != "no unlearning.json":
        base, data = BaseModel("base"), DatasetRecord("data")
        sizes = {"retain": 40, "unlearn": 1}
        made = dict.fromkeys(("created", "library_version"), "2026-01-01T00:00:00+00:00")
        manifest = UnlearningManifest(
            "fine_tune", base, "0" * 64, data, request_for(second), sizes, **made, history=tuple(history)
        )
        manifest.save(tmp_path)
    with pytest.raises(UserError, match=told + "; restore the file"):
        PastRequests.read(tmp_path)


def test_a_second_salt_is_refused_before_it_hides_the_rows_of_the_first(rows, shapes, tmp_path):
    data, named, held_out = rows
    past, file = past_of(data, named, held_out, SALT), write_ids(tmp_path / "first.txt", named)
    brought = DatasetDict(train=data, validation=held_out)
    with pytest.raises(UserError, match="--request_salt finds none of the rows that request 1 recorded with a salt"):
        past.find(brought, "another salt", [file])
    # Rows of a second request, recorded without a salt, are there: they say nothing of the first one's.
    second = shapes.select([11])
    own = RecordedRows.of(request_for(second), {"unlearn": second})
    both = replace(past, runs=(*past.runs, run_for(request_for(second))), private=own)
    with pytest.raises(UserError, match="0 of the 2 rows of request 1"):
        both.find(brought, "another salt")
    assert both.find(brought, SALT).requested["train"] == {**dict.fromkeys(named["id"], 1), second["id"][0]: 2}
