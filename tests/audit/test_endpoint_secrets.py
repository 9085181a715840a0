"""What an endpoint is asked with: addresses, tokens and options; no secret is sent or shown where it should not."""

import logging

import pytest
from audit.test_endpoint import encoder, views

from hf_unlearn.audit.endpoint import EndpointOptions
from hf_unlearn.audit.endpoint_address import is_endpoint
from hf_unlearn.errors import UserError

SECRET = "sentinel-3f9c1a7e"


def test_a_token_goes_into_the_header_and_nowhere_else(endpoint, cache, waits, monkeypatch, caplog):
    monkeypatch.setenv("HF_UNLEARN_BEFORE_TOKEN", SECRET)
    caplog.set_level(logging.DEBUG)
    endpoint.faults += [{"status": 503}, {"status": 400, "body": f"bad token {SECRET}"}]
    one = encoder(endpoint.tei, cache, waits)
    with pytest.raises(UserError) as caught:
        one.embed_images(views(1))
    one.embed_images(views(1))
    assert {headers["Authorization"] for headers in endpoint.headers} == {f"Bearer {SECRET}"}
    assert SECRET not in str(caught.value) and "[token]" in str(caught.value)
    assert SECRET not in caplog.text and SECRET not in str(one.describe())
    assert SECRET.encode() not in cache.path.read_bytes()
    assert SECRET not in str(endpoint.bodies)


def test_a_line_break_behind_a_token_is_no_part_of_it(endpoint, cache, waits, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_BEFORE_TOKEN", " \n")
    monkeypatch.setenv("HF_UNLEARN_TOKEN", f"{SECRET}\n")
    encoder(endpoint.tei, cache, waits).embed_images(views(1))
    assert endpoint.headers[0]["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("token", [f"a\n{SECRET}", f"a\x7f{SECRET}", f"{SECRET} b", f"{SECRET}\u20ac"])
def test_what_can_be_no_token_is_refused_without_repeating_it(cache, waits, monkeypatch, token):
    monkeypatch.setenv("HF_UNLEARN_TOKEN", token)
    with pytest.raises(UserError, match="HF_UNLEARN_TOKEN holds a character that no token has") as caught:
        encoder("https://host/embed", cache, waits)
    assert SECRET not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url", ["http://[bad/embed", "http:///embed", "https://host:port/embed", "https://host:99999/e"]
)
def test_what_is_no_url_is_refused(cache, waits, url):
    with pytest.raises(UserError, match="for the model before is no URL"):
        encoder(url, cache, waits)


@pytest.mark.parametrize("options", [{"timeout": -1}, {"timeout": float("nan")}, {"timeout": 0}, {"batch_size": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match="endpoint"):
        EndpointOptions(**options)


def test_each_side_has_its_own_token(endpoint, cache, waits, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_AFTER_TOKEN", SECRET)
    encoder(endpoint.tei, cache, waits).embed_images(views(1))
    encoder(endpoint.tei, cache, waits, side="after").embed_images(views(1))
    assert [headers.get("Authorization") for headers in endpoint.headers] == [None, f"Bearer {SECRET}"]


def test_no_netrc_entry_is_sent(endpoint, cache, waits, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    encoder(endpoint.tei, cache, waits).embed_images(views(1))
    assert "Authorization" not in endpoint.headers[0]


@pytest.mark.parametrize("url", ["https://me:pw@host/embed", "https://host/embed?api_key=1"])
def test_a_secret_in_the_url_is_refused_without_repeating_it(cache, waits, url):
    with pytest.raises(UserError, match="HF_UNLEARN_BEFORE_TOKEN") as caught:
        encoder(url, cache, waits)
    assert "pw" not in str(caught.value) and "api_key" not in str(caught.value)


def test_a_token_is_not_sent_unencrypted(cache, waits, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_TOKEN", SECRET)
    with pytest.raises(UserError, match="unencrypted"):
        encoder("http://example.com/embed", cache, waits)


def test_names_that_are_endpoints():
    assert is_endpoint("https://host/x") and not is_endpoint("org/model") and not is_endpoint("/folder")
