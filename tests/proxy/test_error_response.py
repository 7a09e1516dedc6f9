"""What a client gets when no account could serve."""

from __future__ import annotations

import gzip
import json

import pytest
from mitmproxy import http

from account_pool.providers import copilot, gemini, openai
from account_pool.providers.base import LocalResponse
from account_pool.proxy import error_response
from account_pool.proxy.response_reader import ResponseReader, StoredRefusal
from tests.proxy.helpers import LIMIT_BODY

SECRETS = frozenset({b"sk-one-1111", b"sk-two-1111"})
MASK = b"*" * len("sk-one-1111")
WALL_NOW = 1_800_000_000.0
TYPE = (b"content-type", b"application/json")


def refusal(body=LIMIT_BODY, *fields, provider=openai.PROVIDER, status=429) -> ResponseReader:
    response = http.Response.make(status, b"")
    response.headers = http.Headers([TYPE, *fields])
    reader = ResponseReader(response, provider)
    reader.feed(body)
    reader.end()
    return reader


def test_nothing_known_nothing_changed():
    given = refusal(LIMIT_BODY, (b"X-Id", b"1"), (b"Retry-After", b"7"))
    response = error_response.corrected(given, openai.PROVIDER, None, SECRETS, WALL_NOW)
    assert response.raw_content == LIMIT_BODY
    assert response.headers.fields == (TYPE, (b"X-Id", b"1"), (b"Retry-After", b"7"))


def test_the_wait_is_set_in_every_spelling():
    fields = [(b"Retry-After", b"7"), (b"retry-after-ms", b"7000"), (b"X-Should-Retry", b"true")]
    response = error_response.corrected(
        refusal(LIMIT_BODY, *fields), openai.PROVIDER, 90.2, SECRETS, WALL_NOW
    )
    assert response.headers["retry-after"] == "91"
    assert response.headers["retry-after-ms"] == "91000"
    assert response.headers["x-should-retry"] == "false"
    assert len(response.headers.get_all("retry-after")) == 1


def test_the_wait_of_a_body():
    body = json.dumps({"error": {"code": 429, "details": [{"retryDelay": "7s"}]}}).encode()
    given = refusal(body, (b"content-length", str(len(body)).encode()), provider=gemini.PROVIDER)
    response = error_response.corrected(given, gemini.PROVIDER, 120, frozenset(), WALL_NOW)
    assert b'"120s"' in response.raw_content
    assert response.headers["content-length"] == str(len(response.raw_content))


def test_a_compressed_body_stays_compressed_unless_it_changes():
    packed = gzip.compress(LIMIT_BODY)
    given = refusal(packed, (b"content-encoding", b"gzip"))
    response = error_response.corrected(given, openai.PROVIDER, 5, SECRETS, WALL_NOW)
    assert response.raw_content == packed
    echo = gzip.compress(b"your key sk-two-1111 is limited")
    response = error_response.corrected(
        refusal(echo, (b"content-encoding", b"gzip")), openai.PROVIDER, 5, SECRETS, WALL_NOW
    )
    assert response.raw_content == b"your key " + MASK + b" is limited"
    assert "content-encoding" not in response.headers


def test_echoed_credentials_are_masked():
    given = refusal(b"no: sk-one-1111, sk-two-1111", (b"x-key", b"sk-one-1111"))
    response = error_response.corrected(given, openai.PROVIDER, None, SECRETS, WALL_NOW)
    assert response.raw_content == b"no: " + MASK + b", " + MASK
    assert response.headers["x-key"] == MASK.decode()


def test_a_chunked_refusal_gets_no_second_length():
    given = refusal(b"sk-one-1111", (b"transfer-encoding", b"chunked"))
    response = error_response.corrected(given, openai.PROVIDER, None, SECRETS, WALL_NOW)
    assert "content-length" not in response.headers


def test_a_length_that_was_cut_off_is_corrected():
    given = refusal(b"half", (b"content-length", b"400"))
    assert (
        error_response.corrected(given, openai.PROVIDER, None, frozenset(), WALL_NOW).headers[
            "content-length"
        ]
        == "4"
    )


def test_repeated_has_the_wait_that_holds_now():
    fields = (
        TYPE,
        (b"date", b"x"),
        (b"retry-after", b"7"),
        (b"content-encoding", b"gzip"),
        (b"content-length", b"3"),
    )
    response = error_response.repeated(
        StoredRefusal(429, fields, LIMIT_BODY), openai.PROVIDER, 12.0, WALL_NOW
    )
    assert (response.status_code, response.raw_content) == (429, LIMIT_BODY)
    assert response.headers["retry-after"] == "12"
    assert response.headers["content-length"] == str(len(LIMIT_BODY))
    assert "date" not in response.headers
    assert "content-encoding" not in response.headers


def test_a_body_that_cannot_be_read_is_not_handed_on():
    """It may echo the credential; the status and the wait stay."""
    given = refusal(b"sk-one-1111", (b"content-encoding", b"gzip, gzip"))
    response = error_response.corrected(given, openai.PROVIDER, 5, SECRETS, WALL_NOW)
    assert response.status_code == 429
    assert b"sk-one" not in response.raw_content
    assert response.headers["retry-after"] == "5"


def test_an_error_inside_a_success_is_masked_as_well():
    body = b'{"error":{"message":"bad key sk-one-1111","code":"x"}}'
    given = refusal(body, status=200)
    response = error_response.corrected(given, openai.PROVIDER, 9, SECRETS, WALL_NOW)
    assert response.raw_content == body.replace(b"sk-one-1111", MASK)
    assert "retry-after" not in response.headers


@pytest.mark.parametrize("provider", [openai.PROVIDER, gemini.PROVIDER, copilot.PROVIDER])
def test_local(provider):
    answer = provider.refusal(503, "nobody", 3.0)
    response = error_response.local(answer)
    assert response.status_code == 503
    assert json.loads(response.raw_content)["error"]
    assert response.headers["retry-after"] == "3"
    assert response.headers["content-length"] == str(len(answer.body))


def test_local_without_a_body():
    response = error_response.local(LocalResponse(204, (), b""))
    assert (response.status_code, response.raw_content) == (204, b"")
