"""What verification says of a model's requests: every one is accounted for, and one that came back fails."""

from dataclasses import replace

import pytest

from hf_unlearn.hub.figures_check import verify_requests
from hf_unlearn.hub.manifest_check import OwnedSample, verify_named_request, verify_request_file, verify_samples
from hf_unlearn.hub.verification_report import Outcome
from hf_unlearn.records.schemas import (
    BaseModel,
    DatasetRecord,
    EvaluationRecord,
    HistoryEntry,
    RequestRecord,
    RequestStatus,
    UnlearningManifest,
)

FIRST = RequestStatus(1, "fine_tune", "2026-01-01", 40, 40, 80.0, 24.8, 26.0, 20.0, 33.0, 34.0)
OWN = RequestStatus(2, "fine_tune", None, 30, 30, 80.0, 30.0, 30.0, 25.0, 36.0, 34.0)


def statements(*statuses, counts=(40, 30)):
    requests = [RequestRecord("file", count, str(count) * 32) for count in counts]
    manifest = UnlearningManifest(
        method="fine_tune",
        base_model=BaseModel("base"),
        weights_sha256="a" * 64,
        dataset=DatasetRecord("data"),
        request=requests[-1],
        splits={"retain": 100, "unlearn": 30},
        created="2026-01-08",
        library_version="0.1.0",
        history=tuple(HistoryEntry("fine_tune", "2026-01-01", request, "b" * 64) for request in requests[:-1]),
    )
    return list(verify_requests(EvaluationRecord("image-text", {}, requests=statuses), manifest))


def outcomes(*statuses, **options):
    return [statement.outcome for statement in statements(*statuses, **options)]


def test_requests_that_stay_where_they_were_are_the_publishers_word():
    assert outcomes(FIRST, OWN) == [Outcome.HOLDS, Outcome.UNCHECKED, Outcome.UNCHECKED]


def test_a_request_that_came_back_fails():
    came_back = replace(FIRST, now=79.9, low=72.0, high=86.0, drifted=True)
    told = statements(came_back, OWN)
    assert told[1].outcome is Outcome.FAILS and "drifted back" in str(told[1])


@pytest.mark.parametrize(
    "changed",
    [
        replace(FIRST, now=79.9, low=72.0, high=86.0),  # came back, and is called as it was
        replace(FIRST, drifted=True),
        replace(FIRST, now=50.0),  # outside its own interval
        replace(FIRST, low=None),
        replace(FIRST, high=float("nan")),
    ],
)
def test_figures_that_do_not_follow_fail(changed):
    assert outcomes(changed, OWN)[1] is Outcome.FAILS


@pytest.mark.parametrize(
    "status",
    [
        replace(FIRST, measured=1, now=79.9, low=None, high=None, then_all=24.8, then_rows=40),
        replace(FIRST, measured=3, now=79.9, low=70.0, high=86.0, then=None, then_all=24.8, then_rows=40),
        # Earlier versions judged one row, and some rows by the mean of all.
        replace(FIRST, count=1, measured=1, now=79.9, low=79.9, high=79.9, drifted=True),
        replace(FIRST, measured=30, now=79.9, low=72.0, high=86.0, drifted=True),
    ],
)
def test_what_its_figures_cannot_tell_is_no_drift(status):
    told = statements(status, OWN, counts=(status.count, 30))[1]
    assert told.outcome is Outcome.UNCHECKED and "whether it came back cannot be told: " in told.detail
    assert "mean alignment 79.9" in told.detail


def test_a_verdict_without_an_interval_or_a_level_of_then_does_not_follow():
    one = replace(FIRST, measured=1, now=79.9, low=None, high=None, then_all=24.8, then_rows=40, drifted=True)
    assert outcomes(one, OWN)[1] is Outcome.FAILS
    untold = replace(FIRST, now=79.9, low=72.0, high=86.0, then=None, then_all=24.8, then_rows=41, drifted=True)
    assert outcomes(untold, OWN)[1] is Outcome.FAILS


def test_few_rows_that_came_back_fail_with_a_caveat():
    few = replace(FIRST, measured=3, now=79.9, low=72.0, high=86.0, then_all=30.0, then_rows=40, drifted=True)
    told = statements(few, OWN)[1]
    assert told.outcome is Outcome.FAILS and "too narrow, as it is read off 3 rows" in told.detail


def test_a_request_that_is_left_out_or_made_smaller_fails():
    assert outcomes(OWN)[0] is Outcome.FAILS
    assert outcomes(replace(FIRST, count=4), OWN)[0] is Outcome.FAILS
    assert outcomes(FIRST, OWN, counts=(40, 40, 30))[0] is Outcome.FAILS


def test_what_was_not_measured_is_said():
    gone = replace(FIRST, measured=0, now=None, low=None, high=None, non_member=None)
    assert outcomes(gone, OWN) == [Outcome.HOLDS, Outcome.UNCHECKED, Outcome.UNCHECKED]
    assert outcomes() == [Outcome.UNCHECKED]


def test_an_estimated_gap_follows_from_the_first_runs_held_out_samples():
    first = replace(FIRST, unseen=21.0, estimated_gap=5.0)  # now at 26.0
    assert Outcome.FAILS not in outcomes(first, replace(OWN, estimated_gap=9.0))
    assert outcomes(first, replace(OWN, estimated_gap=1.0)).count(Outcome.FAILS) == 1


def test_then_and_held_out_samples_are_told_apart():
    told = str(statements(replace(FIRST, now=79.9, low=72.0, high=86.0, drifted=True), OWN)[1])
    assert "79.9 (72.0 to 86.0), 24.8 after its own run, held-out samples 34.0" in told
    assert "30.0 (25.0 to 36.0), held-out samples 34.0" in str(statements(FIRST, OWN)[2])


@pytest.fixture
def both_kinds(shapes, tmp_path):
    """A function that asks about a week: the first request's ids are hashed, the second's rows are salted."""
    from hf_unlearn.data.fingerprint import combine_hashes, row_hashes

    weeks = {week: shapes.select(rows) for week, rows in {1: [3, 8], 2: [11, 12], 3: [20, 21]}.items()}
    salted = tuple(sorted(row_hashes(weeks[2], "secret")))
    requests = [
        RequestRecord("file", 2, combine_hashes(weeks[1]["id"])),
        RequestRecord("file", 2, combine_hashes(salted), salted=True, row_hashes=salted),
    ]

    def ask(week, again=False):
        manifest = UnlearningManifest(
            method="fine_tune",
            base_model=BaseModel("base"),
            weights_sha256="a" * 64,
            dataset=DatasetRecord("data"),
            request=requests[0] if again else requests[1],
            splits={"retain": 100, "unlearn": 2},
            created="2026-01-08",
            library_version="0.1.0",
            history=tuple(HistoryEntry("fine_tune", "2026-01-01", request, "b" * 64) for request in requests),
        )
        row = weeks[week].select([0])
        picture, file = tmp_path / f"{week}.png", tmp_path / f"{week}.txt"
        picture.write_bytes(row.with_format("arrow")[0]["image"][0].as_py()["bytes"])
        file.write_text("".join(f"{name}\n" for name in weeks[week]["id"]))
        (sample,) = verify_samples(manifest, "secret", [OwnedSample(picture, tuple(row["captions"][0]))])
        return verify_request_file(manifest, file), sample

    return ask


def test_what_one_kind_of_request_cannot_tell_is_not_denied(both_kinds):
    file, sample = both_kinds(1)
    assert file.outcome is Outcome.HOLDS and "request 1 of 3" in file.detail
    assert sample.outcome is Outcome.UNCHECKED and "the row hashes of request 1 of 3 are not" in sample.detail
    file, sample = both_kinds(2)
    assert file.outcome is Outcome.UNCHECKED and "the hash of requests 2 and 3 of 3 is of salted rows" in file.detail
    assert sample.outcome is Outcome.HOLDS and "requests 2 and 3 of 3" in sample.detail
    file, sample = both_kinds(3)
    assert file.outcome is sample.outcome is Outcome.UNCHECKED
    file, _ = both_kinds(1, again=True)
    assert file.detail == "these are its ids of requests 1 and 3 of 3"


def test_an_earlier_request_in_place_of_the_last_is_told_by_its_number():
    requests = [RequestRecord("file", count, str(count) * 32) for count in (40, 30)]
    manifest = UnlearningManifest(
        method="fine_tune",
        base_model=BaseModel("base"),
        weights_sha256="a" * 64,
        dataset=DatasetRecord("data"),
        request=requests[1],
        splits={"retain": 100, "unlearn": 30},
        created="2026-01-08",
        library_version="0.1.0",
        history=(HistoryEntry("fine_tune", "2026-01-01", requests[0], "b" * 64),),
    )
    found = verify_named_request(manifest, requests[0], "week1.csv", same_rows=True)
    assert found.fails and found.detail.endswith("; it is request 1 of 2, and the figures are of the last")
    assert not verify_named_request(manifest, requests[1], None, same_rows=True).fails
    assert verify_named_request(manifest, requests[0], None, same_rows=False) is None  # drawn of other rows
