import hashlib
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
from audit.conftest import FAST
from audit.embedding_server import embed

from hf_unlearn.audit.endpoint import EndpointEncoder, EndpointOptions, png_base64
from hf_unlearn.audit.endpoint_address import token_variable
from hf_unlearn.audit.endpoint_answers import parse_answer, retry_after
from hf_unlearn.audit.endpoint_cache import EmbeddingCache
from hf_unlearn.errors import UserError


def encoder(url, cache, waits, side="before", options=FAST):
    return EndpointEncoder(url, side, cache, options, sleep=waits.append)


def views(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)


def expected(pictures, **kwargs):
    return [embed(png_base64(picture), **kwargs) for picture in pictures]


@pytest.mark.parametrize("form", ["openai", "tei"])
def test_both_forms_answer_in_order_and_in_batches(endpoint, cache, waits, form):
    pictures = views(19)
    got = encoder(getattr(endpoint, form), cache, waits).embed_images(pictures)
    np.testing.assert_allclose(got, expected(pictures))
    assert [len(body.get("input", body.get("inputs"))) for body in endpoint.bodies] == [8, 8, 3]
    texts = encoder(getattr(endpoint, form), cache, waits).embed_texts(["a dog", "a cat"])
    np.testing.assert_allclose(texts, [embed("a dog"), embed("a cat")])


def test_openai_form_names_the_model_and_sends_data_uris(endpoint, cache, waits):
    encoder(endpoint.openai, cache, waits).embed_images(views(1))
    (body,) = endpoint.bodies
    assert body["model"] == "toy" and body["encoding_format"] == "float"
    assert body["input"][0].startswith("data:image/png;base64,")
    encoder(endpoint.openai, cache, waits).embed_texts(["a dog"])
    assert endpoint.bodies[-1]["input"] == ["a dog"] and "modality" not in endpoint.bodies[-1]


def test_equal_pictures_are_asked_once(endpoint, cache, waits):
    picture = views(1)
    got = encoder(endpoint.tei, cache, waits).embed_images(np.repeat(picture, 5, axis=0))
    assert got.shape == (5, 8) and len(endpoint.asked) == 1


def test_429_waits_as_long_as_the_endpoint_says_then_recovers(endpoint, cache, waits):
    endpoint.faults += [{"status": 429, "headers": {"Retry-After": "7"}}, {"status": 503}]
    pictures = views(2)
    got = encoder(endpoint.tei, cache, waits).embed_images(pictures)
    np.testing.assert_allclose(got, expected(pictures))
    assert waits == [7.0, 0.02]  # told, then the doubled backoff


def test_retry_after_may_be_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < retry_after(soon) <= 90
    assert 80 < retry_after(soon.replace("GMT", "-0000")) <= 90
    assert retry_after("Wed, 21 Oct 2015 07:28:00 -0000") == 0
    assert retry_after(format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)) == 0


def test_a_wait_of_an_hour_is_left_to_the_user(endpoint, cache, waits):
    endpoint.faults += [{"status": 429, "headers": {"Retry-After": "3600"}}]
    with pytest.raises(UserError, match=r"429.*run the same command again"):
        encoder(endpoint.tei, cache, waits).embed_images(views(1))
    assert waits == []


def test_time_outs_and_dropped_connections_are_tried_again(endpoint, cache, waits):
    endpoint.faults += [{"hang": 0.6}, {"drop": True}]
    options = EndpointOptions(batch_size=8, attempts=3, timeout=0.2, backoff=0.01)
    got = encoder(endpoint.tei, cache, waits, options=options).embed_images(views(1))
    assert got.shape == (1, 8) and len(waits) == 2


def test_an_endpoint_that_stays_down_gives_up_and_keeps_what_it_said(endpoint, cache, waits):
    endpoint.faults += [{}, *({"status": 500, "body": "out of order"} for _ in range(3))]
    pictures = views(16)
    with pytest.raises(UserError, match=r"500: out of order.*gave up after 3 tries.*kept in 'answers\.sqlite'"):
        encoder(endpoint.tei, cache, waits).embed_images(pictures)
    assert len(endpoint.asked) == 8
    got = encoder(endpoint.tei, cache, waits).embed_images(pictures)
    np.testing.assert_allclose(got, expected(pictures))
    assert len(endpoint.asked) == 16  # the first eight were not asked again


def test_nobody_listening_is_said(cache, waits):
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/embed could not be reached"):
        encoder("http://127.0.0.1:9/embed", cache, waits).embed_images(views(1))


def test_a_batch_too_large_is_halved(endpoint, cache, waits):
    endpoint.most = 3
    pictures = views(8)
    got = encoder(endpoint.tei, cache, waits).embed_images(pictures)
    np.testing.assert_allclose(got, expected(pictures))
    assert waits == []


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_repeated(endpoint, cache, waits, status):
    endpoint.faults += [{"status": status, "body": "never"}]
    words = token_variable("before") if status == 401 else "Check the URL"
    with pytest.raises(UserError, match=f"{status}: never.*{words}"):
        encoder(endpoint.tei, cache, waits).embed_images(views(1))
    assert len(endpoint.bodies) == 1


def test_a_changed_dimension_is_tried_again_then_refused(endpoint, cache, waits):
    endpoint.faults += [{}, {"dimension": 5}]
    pictures = views(16)
    np.testing.assert_allclose(encoder(endpoint.tei, cache, waits).embed_images(pictures), expected(pictures))
    endpoint.faults += [{"dimension": 5} for _ in range(3)]
    one = encoder(endpoint.tei, cache, waits)
    one.embed_images(pictures)
    with pytest.raises(UserError, match="answered 5 numbers where it gave 8 before, so its model has changed"):
        one.embed_images(views(2, seed=1))


def test_a_cache_of_another_dimension_is_refused(endpoint, cache, waits):
    encoder(endpoint.tei, cache, waits).embed_images(views(2))
    endpoint.faults += [{"dimension": 5}]
    later = encoder(endpoint.tei, cache, waits)
    later.embed_images(views(2, seed=1))
    with pytest.raises(UserError, match=r"8 numbers where it gave 5.*delete that file"):
        later.embed_images(views(2))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"edit": lambda vectors: vectors[:-1]}, "one embedding an item"),
        ({"edit": lambda vectors: {"error": "x"}}, "no form known"),
        ({"edit": lambda vectors: [[v, v] for v in vectors]}, "one embedding an item"),
        ({"edit": lambda vectors: [vectors[0], vectors[1][:3]]}, "no form known"),
    ],
)
def test_an_unknown_answer_is_shown(endpoint, cache, waits, fault, words):
    endpoint.faults.append(fault)
    with pytest.raises(UserError, match=words):
        encoder(endpoint.tei, cache, waits).embed_images(views(2))


def test_vectors_wrapped_once_more_are_taken(endpoint, cache, waits):
    endpoint.faults.append({"edit": lambda vectors: [[vector] for vector in vectors]})
    pictures = views(2)
    np.testing.assert_allclose(encoder(endpoint.tei, cache, waits).embed_images(pictures), expected(pictures))


def test_null_becomes_nan(endpoint, cache, waits):
    endpoint.faults += [{"edit": lambda vectors: [[None] * 8 for _ in vectors]}] * FAST.attempts
    assert np.isnan(encoder(endpoint.tei, cache, waits).embed_images(views(1))).all()


def test_a_repetition_is_asked_although_it_is_known(endpoint, cache, waits):
    one, pictures = encoder(endpoint.tei, cache, waits), views(2)
    one.embed_images(pictures)
    one.embed_images(pictures, repeat=1)
    assert len(endpoint.asked) == 4
    one.embed_images(pictures, repeat=1)
    assert len(endpoint.asked) == 4


def test_one_url_on_both_sides_is_asked_twice(endpoint, cache, waits):
    """An API whose model was exchanged keeps its URL: answers of before must not be served for after."""
    before = encoder(endpoint.tei, cache, waits).embed_images(views(2))
    endpoint.seed = 1
    after = encoder(endpoint.tei, cache, waits, side="after").embed_images(views(2))
    assert not np.allclose(before, after)


def test_description_tells_form_and_times(endpoint, cache, waits):
    one = encoder(endpoint.openai, cache, waits)
    one.embed_images(views(1))
    told = one.describe()
    assert told["form"] == "openai" and told["name"] == endpoint.openai
    assert told["first_asked"] <= told["last_asked"] <= datetime.now(UTC).isoformat()


def test_cache_holds_whole_batches_only(tmp_path):
    with EmbeddingCache(tmp_path / "c.sqlite") as cache:
        with pytest.raises(AttributeError):
            cache.put({"a": np.zeros(2), "b": None})
        assert cache.get("a") is None
        cache.put({"a": np.arange(3.0)})
    with EmbeddingCache(tmp_path / "c.sqlite") as cache:
        assert cache.get("a")[0].tolist() == [0, 1, 2]


def test_a_damaged_cache_is_named(tmp_path):
    path = tmp_path / "answers.sqlite"
    path.write_bytes(hashlib.sha256(b"x").digest() * 100)
    with pytest.raises(UserError, match=r"answers\.sqlite.*delete it"):
        EmbeddingCache(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [2.0]}]}',
        '{"data": [{"index": 1, "embedding": [1.0]}, {"index": 2, "embedding": [2.0]}]}',
        '{"data": [{"index": true, "embedding": [1.0]}, {"index": 0, "embedding": [2.0]}]}',
        '{"data": [{"index": 0.0, "embedding": [1.0]}, {"index": 1, "embedding": [2.0]}]}',
        '{"data": [{"index": 0, "embedding": [1.0]}]}',
        '{"data": null}',
        "[" * 100_000,
        '{"data": ' + "[" * 20 + "]" * 20 + "}",
        "\ud800",
        "",
    ],
)
def test_answers_in_no_order_or_form_are_refused(text):
    with pytest.raises((ValueError, KeyError, TypeError, RecursionError, OverflowError)):
        parse_answer(text, 2, openai=True)


def test_answers_come_in_the_order_of_their_indices():
    text = '{"data": [{"index": 1, "embedding": [1.0]}, {"index": 0, "embedding": [null]}]}'
    assert parse_answer(text, 2, openai=True)[1] == 1 and np.isnan(parse_answer(text, 2, openai=True)[0])


def test_one_refused_item_counts_as_not_answered(endpoint, cache):
    views = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), dtype=np.uint8)
    bad = png_base64(views[3])
    original = endpoint.answer

    def answer(handler, body):
        endpoint.faults.append({"status": 422} if bad in body["inputs"] else {})
        original(handler, body)

    endpoint.answer = answer
    encoder = EndpointEncoder(endpoint.tei, "before", cache, EndpointOptions(batch_size=2, attempts=2, backoff=0.01))
    got = encoder.embed_images(views)
    assert np.isnan(got).all(1).tolist() == [False, False, False, True, False]
    endpoint.answer = original
    endpoint.faults.clear()
    endpoint.bodies.clear()
    with EmbeddingCache(cache.path) as reopened:  # as the next audit does, which asks about that item alone
        again = EndpointEncoder(endpoint.tei, "before", reopened).embed_images(views)
    np.testing.assert_allclose(again, expected(views))
    assert [body["inputs"] for body in endpoint.bodies] == [[bad]]


def test_a_refusal_that_an_earlier_version_kept_is_asked_again(cache):
    cache._connection.execute("INSERT INTO answers VALUES ('q', X'', '2025-01-01T00:00:00+00:00')")
    assert cache.get("q") is None


def test_numbers_that_are_not_finite_are_asked_again_and_never_kept(endpoint, cache):
    endpoint.faults += [{"edit": lambda vectors: [[float("nan")] * 8 for _ in vectors]}]
    views = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    encoder = EndpointEncoder(endpoint.tei, "before", cache, EndpointOptions(attempts=2, backoff=0.01))
    assert np.isfinite(encoder.embed_images(views)).all() and len(endpoint.asked) == 2
    cache.put({"q": np.array([np.inf])})
    assert cache.get("q") is None


def test_an_answer_that_drips_or_swells_ends(endpoint, cache, monkeypatch):
    views = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    slow = EndpointOptions(attempts=1, backoff=0.01, deadline=1e-9)
    with pytest.raises(UserError, match="had not finished its answer"):
        EndpointEncoder(endpoint.tei, "before", cache, slow).embed_images(views)
    monkeypatch.setattr("hf_unlearn.audit.endpoint.LARGEST_ANSWER", 10)
    with pytest.raises(UserError, match="answers more than"):
        EndpointEncoder(endpoint.tei, "before", cache, EndpointOptions(attempts=1)).embed_images(views)


@pytest.mark.parametrize("begun", [b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-"])
def test_an_answer_that_drips_byte_by_byte_ends_at_the_deadline(cache, begun):
    """Each byte is in time for the socket, of a header as of an answer."""
    ended = threading.Event()

    def drip(listening):
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.sendall(begun)
            while not ended.wait(0.05):
                connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=drip, args=(listening,), daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/embed"
        patience = EndpointOptions(attempts=1, timeout=5, deadline=0.5)
        start = time.monotonic()
        with pytest.raises(UserError, match=r"had not finished its answer within 0\.5 s"):
            EndpointEncoder(url, "before", cache, patience).embed_images(views(1))
        assert time.monotonic() - start < 5
        ended.set()


def test_an_answer_of_brackets_alone_is_refused_before_it_is_taken_apart():
    with pytest.raises(ValueError, match="brackets an item"):
        parse_answer("[]" * 10**6, 2, openai=False)


@pytest.mark.parametrize("tokens", [2, 200, 1_370])
def test_an_embedding_a_token_is_told_to_be_pooled(endpoint, cache, waits, tokens):
    """Up to the tokens of a picture of 518 pixels in patches of 14."""
    endpoint.faults += [{"edit": lambda vectors: [[vector] * tokens for vector in vectors]}]
    with pytest.raises(UserError, match=rf"shape \[2, {tokens}, 8\] to 2 items; it must give one embedding .* pooled"):
        encoder(endpoint.tei, cache, waits).embed_images(views(2))


def test_a_date_beyond_all_dates_is_none():
    assert retry_after("Mon, 01 Jan 99999999999999999999 00:00:00 GMT") is None


def test_a_locked_cache_is_not_called_damaged(tmp_path):
    import sqlite3

    with EmbeddingCache(tmp_path / "cache.sqlite") as cache:
        other = sqlite3.connect(tmp_path / "cache.sqlite")
        other.execute("BEGIN EXCLUSIVE")
        cache._connection.execute("PRAGMA busy_timeout = 10")
        with pytest.raises(UserError, match="in use by another audit"):
            cache.put({"q": np.zeros(2)})
        other.close()
    (tmp_path / "bad.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="is damaged"):
        EmbeddingCache(tmp_path / "bad.sqlite")
