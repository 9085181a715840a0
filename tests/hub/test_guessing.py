"""Requests that can be found from their hashes: told on the card, before a run and on publishing."""

import itertools
import logging
import math
import re
from dataclasses import replace

import pytest

from hf_unlearn.data.fingerprint import combine_hashes
from hf_unlearn.hub.card import render_card
from hf_unlearn.hub.guessing import guessing_note, has_few_lists
from hf_unlearn.hub.publishing import publish_run
from hf_unlearn.records.schemas import HistoryEntry, RequestRecord, UnlearningManifest
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.unlearn import unlearn_and_compare

FOUND = "There are so few lists of this length that whoever knows the ids of the data can try them all"


@pytest.mark.parametrize("rows", [2, 420, 10**6, 10**9])
def test_lists_are_counted(rows):
    for count in {1, 2, 5, 13, rows // 2, rows - 1, rows} - {0}:
        if count <= 20 or rows - count <= 20 or rows <= 420:
            lists = math.comb(rows, count) if count <= rows else 0
            assert has_few_lists(count, rows) == (0 < lists < 2**80), count
    assert not has_few_lists(rows + 1, rows) and not has_few_lists(0, rows) and not has_few_lists(-1, rows)


def test_numbers_that_no_data_has_are_no_few_lists():
    assert not has_few_lists(10**400, 10**401) and not has_few_lists(10**5, 10**6)


def manifest_of(run, request, rows=400, **changes):
    splits = {"retain": rows, "unlearn": 10, "validation": 5, "test": 5}
    return replace(UnlearningManifest.load(run), request=request, splits=splits, **changes)


def test_a_short_list_without_a_salt_is_found_and_the_card_says_so(run):
    ids = [f"{number}.png" for number in range(420)]
    request = RequestRecord("file", 2, combine_hashes([ids[7], ids[300]]))
    found = [pair for pair in itertools.combinations(ids, 2) if combine_hashes(pair) == request.sha256]
    assert found == [(ids[7], ids[300])]
    assert FOUND in render_card(manifest_of(run, request), None)
    assert FOUND not in render_card(manifest_of(run, replace(request, count=60)), None)
    salted = render_card(manifest_of(run, replace(request, salted=True), retain_sha256="d" * 64), None)
    assert FOUND not in salted
    assert "nobody else can tell without all of the data. Whoever holds that can try which 2 of its rows" in salted
    many = render_card(manifest_of(run, RequestRecord("file", 60, "e" * 64, salted=True), retain_sha256="d" * 64), None)
    assert re.search(r"nobody else can tell\.$", many, re.MULTILINE)


def test_earlier_requests_are_told_of_by_number(run):
    short, long = RequestRecord("file", 2, "a" * 64), RequestRecord("file", 60, "b" * 64)
    history = tuple(HistoryEntry("fine_tune", "2026-01-01", request, "c" * 64) for request in (short, long, short))
    card = render_card(manifest_of(run, long, history=history), None)
    assert "\n\nThe hash of request 1, 3 is not salted, and so few lists have its length that" in card
    assert FOUND not in card


def test_publishing_says_which_requests_everybody_can_find(run, hub, caplog):
    manifest = UnlearningManifest.load(run)
    publish_run(run, "org/clip", dry_run=True)
    assert "can try them all" not in caplog.text
    from hf_unlearn.hub.card import write_card

    replace(manifest, request=RequestRecord("file", manifest.request.count, "f" * 64)).save(run)
    write_card(run)
    publish_run(run, "org/clip", dry_run=True)
    assert "The hash of request 1 has no salt" in caplog.text and "org/clip tells everybody which rows" in caplog.text


def test_a_run_says_so_before_it_starts(shapes, tiny_clip, tmp_path, caplog):
    shapes.save_to_disk(tmp_path / "data")
    (tmp_path / "ids.txt").write_text("".join(f"{row}\n" for row in shapes["id"][3:5]))
    given = ["--model_name_or_path", tiny_clip, "--dataset_name", tmp_path / "data", "--methods", "fine_tune"]
    given += ["--unlearn_request", tmp_path / "ids.txt", "--max_steps", "1", "--use_cpu", "true"]
    for out, salt in (("salted", ["--request_salt", "a secret"]), ("plain", [])):
        with caplog.at_level(logging.WARNING):
            unlearn_and_compare(parse_run([*map(str, given), "--output_dir", str(tmp_path / out), *salt]), build=None)
        assert ("of 72 rows there are so few lists of 2 that whoever" in caplog.text) == (not salt)
    assert guessing_note(RequestRecord("file", 36, "a" * 64), 400) is None
