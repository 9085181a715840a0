"""Where earlier requests stand: the rows measured now are compared with what the same rows were left at."""

from dataclasses import replace

import numpy as np
import pytest

from hf_unlearn.hub.drift import drift_notes
from hf_unlearn.hub.past_requests import PastRequests
from hf_unlearn.hub.recorded_rows import RecordedRows
from hf_unlearn.hub.request_levels import Levels, request_statuses
from hf_unlearn.records.schemas import HistoryEntry, RequestRecord, RequestStatus

HELD_OUT = np.array([0.1, 0.2])
LEFT = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])  # rows differ far more than they drift: a mean of 50
OWN = Levels(np.array([0.1, 0.3, 0.2]), HELD_OUT)


def past(runs=2):
    """A model that has been through some requests, the first of these rows, of which only the mean is recorded."""
    requests = tuple(RequestRecord("file", len(LEFT), str(number) * 64) for number in range(1, runs + 1))
    entries = tuple(HistoryEntry("fine_tune", f"2026-01-0{r.sha256[0]}", r, "0" * 64) for r in requests)
    then = 100 * LEFT.mean()
    level = RequestStatus(1, "fine_tune", "2026-01-01", 6, 6, 80.0, then, then, 30.0, 70.0, 15.0)
    return PastRequests(entries, levels=(replace(level, then_all=then, then_rows=6),))


def first_status(rows, rise=0.0, runs=2, left=None, base=None, of=None):
    """The first request's status where only some of its rows are measured."""
    numbers, now = np.ones(len(rows), np.int64), LEFT[rows] + rise
    before = replace(OWN, earlier=now if base is None else base)
    statuses = request_statuses(of or past(runs), numbers, before, replace(OWN, earlier=now), "fine_tune", 3, left)
    return statuses[0]


HIGH, LOW = [3, 4, 5], [0, 1, 2]


@pytest.mark.parametrize("rows", [HIGH, LOW, [0, 3], list(range(6))])
def test_a_model_that_did_not_move_has_not_drifted_back_whichever_rows_are_left(rows):
    status = first_status(rows, left=LEFT[rows])
    assert (status.then, status.measured) == (pytest.approx(100 * LEFT[rows].mean()), len(rows))
    assert not status.drifted and drift_notes((status,)) == ()
    assert (status.then_all, status.then_rows) == (100 * LEFT.mean(), 6)


def test_a_rise_of_the_rows_that_were_low_is_seen():
    status = first_status(LOW, rise=0.25, left=LEFT[LOW])  # to a mean of 45, still below that of all
    assert status.drifted and status.then == pytest.approx(20)
    (note,) = drift_notes((replace(status, created="2026-01-01"),))
    assert "The interval is too narrow, as it is read off 3 rows." in note


def test_only_rows_whose_own_level_is_known_are_compared():
    status = first_status([0, 4, 5], left=np.array([0.1, np.nan, 0.9]))
    assert (status.measured, status.then) == (2, pytest.approx(50)) and status.now == pytest.approx(50)


def test_without_levels_of_rows_there_is_no_verdict_and_a_sentence_says_why():
    status = first_status(HIGH, rise=0.05)
    assert status.then is None and status.now == pytest.approx(85) and not status.drifted
    (note,) = drift_notes((status,))
    assert "Whether the model has drifted back to request 1 cannot be told: of the 6 rows that its own run" in note
    assert "left at 50.0, 3 are measured, and what it left these at is not recorded. The mean alignment" in note
    # All of them are compared with the mean of all, this time and after a run that saw some.
    assert first_status(list(range(6))).then == 100 * LEFT.mean()
    again = replace(past(), levels=(status,))
    assert first_status(list(range(6)), of=again).then == 100 * LEFT.mean()


def test_what_the_last_run_left_is_what_this_one_started_from():
    status = first_status(HIGH, rise=0.05, runs=1, base=LEFT[HIGH])
    assert status.then == pytest.approx(80) and not status.drifted
    assert first_status(LOW, rise=0.4, runs=1, base=LEFT[LOW]).drifted
    # Measured there, it counts where nothing was recorded.
    status = first_status(HIGH, runs=1, base=LEFT[HIGH], left=np.array([np.nan, 0.8, 0.9]))
    assert (status.measured, status.then) == (3, pytest.approx(80))


def test_records_of_earlier_versions_tell_the_mean_of_all_rows():
    old = replace(past().levels[0], then_all=None, then_rows=None)
    of = replace(past(), levels=(old,))
    assert first_status(list(range(6)), of=of).then == old.then
    assert first_status(HIGH, of=of).then is None
    # Copies were unlearned along, which hashes of rows tell.
    hashes = tuple(f"{row:064x}" for row in range(8))
    of = replace(of, private=RecordedRows({of.runs[0].request.sha256: hashes}))
    assert first_status(list(range(6)), of=of).then is None
    never = replace(of, levels=())
    (note,) = drift_notes((first_status(HIGH, of=never),))
    assert "what its own run left its rows at was not measured" in note


def test_one_row_has_no_interval_and_no_verdict():
    status = first_status([0], rise=0.7, left=LEFT[[0]])
    assert (status.low, status.high, status.drifted) == (None, None, False) and status.then == pytest.approx(10)
    (note,) = drift_notes((status,))
    assert "cannot be told: one row is measured, which has no interval. The mean alignment measured is 80.0, " in note
    assert "after its own run it was 10.0, and held-out rows are at 15.0." in note
    alone = replace(OWN, unlearn=np.array([0.4]))
    (own,) = request_statuses(PastRequests(), np.empty(0, np.int64), alone, alone, "fine_tune", 1)
    assert own.low is None and drift_notes((own,)) == ()


def test_rows_that_are_gone_keep_what_they_were_left_at():
    status = first_status([], left=np.empty(0))
    assert (status.measured, status.now, status.then) == (0, None, 100 * LEFT.mean()) and drift_notes((status,)) == ()
