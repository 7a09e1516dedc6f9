"""How far an answer is read."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http

from account_pool.core.sse import Verdict
from account_pool.core.usage import END_BYTES
from account_pool.providers import anthropic, gemini, openai
from account_pool.providers.base import RequestHead
from account_pool.providers.registry import BUILT_IN
from account_pool.proxy.decoding import End
from account_pool.proxy.response_reader import (
    MAX_GATE_BYTES,
    MAX_REFUSAL_BYTES,
    ResponseReader,
)
from tests.proxy.helpers import DELTA, DONE, EMPTY_CHOICES, LIMIT_BODY, LIMIT_EVENT, OK_BODY, event

JSON_TYPE = {"content-type": "application/json; charset=utf-8"}
SSE_TYPE = {"content-type": "text/event-stream"}


def reader(status=200, headers=None, provider=openai.PROVIDER) -> ResponseReader:
    response = http.Response.make(status, b"")
    response.headers = http.Headers(
        [(k.encode(), v.encode()) for k, v in (headers or JSON_TYPE).items()]
        if not isinstance(headers, http.Headers)
        else headers.fields
    )
    return ResponseReader(response, provider)


@pytest.mark.parametrize(
    ("status", "headers", "first"),
    [
        (200, JSON_TYPE, Verdict.CONTINUE),
        (200, SSE_TYPE, Verdict.CONTINUE),
        (201, JSON_TYPE, Verdict.CONTINUE),
        (200, {"content-type": "audio/mpeg"}, Verdict.COMMIT),
        (200, {"x": "1"}, Verdict.COMMIT),
        (101, SSE_TYPE, Verdict.COMMIT),
        (302, JSON_TYPE, Verdict.COMMIT),
        (400, {"x": "1"}, Verdict.CONTINUE),
        (429, {"content-type": "text/html"}, Verdict.CONTINUE),
        (200, {**SSE_TYPE, "content-encoding": "x-own"}, Verdict.COMMIT),
        (429, {**JSON_TYPE, "content-encoding": "x-own"}, Verdict.CONTINUE),
    ],
)
def test_what_the_head_tells(status, headers, first):
    assert reader(status, headers).first is first


@given(cuts=st.lists(st.integers(1, 60), max_size=12))
def test_any_split_of_a_stream_with_a_limit(cuts):
    body = b": hi\n\n" + EMPTY_CHOICES + LIMIT_EVENT
    read = reader(headers=SSE_TYPE)
    at, readings = 0, []
    for size in [*cuts, len(body)]:
        if at < len(body):
            readings.append(read.feed(body[at : at + size]))
            at += size
        if readings[-1] is Verdict.REFUSE:
            break
    assert readings[-1] is Verdict.REFUSE
    assert set(readings[:-1]) <= {Verdict.CONTINUE}
    assert read.in_stream
    assert read.upstream_response("m", 0.0).payload["error"]["code"] == "rate_limit_exceeded"


def test_committing_event():
    read = reader(headers=SSE_TYPE)
    assert read.feed(EMPTY_CHOICES) is Verdict.CONTINUE
    assert read.feed(DELTA) is Verdict.COMMIT
    assert b"".join(read.held) == EMPTY_CHOICES + DELTA


@pytest.mark.parametrize("headers", [{"x": "1"}, {"content-type": "text/plain"}, SSE_TYPE])
@pytest.mark.parametrize("asks", [True, False])
def test_an_error_without_its_type_is_one_where_data_is_waited_for(headers, asks):
    """Where text may be what was asked for, such as a transcript, it is handed over."""
    asked = RequestHead(
        method="POST" if asks else "GET",
        host="api.openai.com",
        port=443,
        path="/v1/x",
        headers={"accept": "application/json"},
    )
    response = http.Response.make(200, b"")
    response.headers = http.Headers([(k.encode(), v.encode()) for k, v in headers.items()])
    read = ResponseReader(response, openai.PROVIDER, asked)
    if read.first is Verdict.COMMIT:
        assert not asks
        return
    assert asks or headers is SSE_TYPE
    assert read.feed(LIMIT_BODY[:20]) is Verdict.CONTINUE
    assert read.feed(LIMIT_BODY[20:]) is Verdict.REFUSE
    assert read.upstream_response("m", 0.0).payload["error"]["code"] == "rate_limit_exceeded"


def test_compressed_stream_is_judged_before_it_ends():
    import zlib

    packer = zlib.compressobj(wbits=31)
    read = reader(headers={**SSE_TYPE, "content-encoding": "gzip"})
    first = packer.compress(EMPTY_CHOICES) + packer.flush(zlib.Z_SYNC_FLUSH)
    assert read.feed(first) is Verdict.CONTINUE
    then = packer.compress(LIMIT_EVENT) + packer.flush(zlib.Z_SYNC_FLUSH)
    assert read.feed(then) is Verdict.REFUSE


def test_damaged_compression_of_a_success_is_handed_over():
    read = reader(headers={**SSE_TYPE, "content-encoding": "gzip"})
    assert read.feed(b"no gzip at all") is Verdict.COMMIT


def test_json_is_judged_when_it_is_whole():
    read = reader()
    assert read.feed(LIMIT_BODY[:20]) is Verdict.CONTINUE
    assert read.feed(LIMIT_BODY[20:]) is Verdict.REFUSE
    good = reader()
    assert good.feed(OK_BODY) is Verdict.COMMIT


@pytest.mark.parametrize(
    ("body", "gated"),
    [
        (OK_BODY, False),
        (b'{"error": null, "status": "completed"}', False),
        (b"{", False),
        (b'{"text": "' + b"x" * MAX_GATE_BYTES, False),
        (LIMIT_BODY, True),
        (b"\n " + OK_BODY, True),
        (b"\n " + LIMIT_BODY, True),
        (b'[{"candidates": []}]', True),
        (b"[" + LIMIT_BODY + b"]", True),
        (b"nothing", True),
    ],
)
def test_a_response_in_one_piece_is_judged_as_one_in_two(body, gated):
    """An object in which no error is marked needs no gate."""
    whole, pieces = reader(), reader()
    pieces.feed(body[:1])
    assert whole.end(body) is pieces.end(body[1:])
    assert b"".join(whole.held) == b"".join(pieces.held) == body
    assert ("_gate" in vars(whole)) is gated


@pytest.mark.parametrize("body", [b"", b"{", b"nothing"])
def test_the_end_of_a_success_that_says_nothing(body):
    read = reader()
    if body:
        read.feed(body)
    assert read.end() is Verdict.COMMIT
    assert read.complete


def test_refusals_are_read_to_their_end_or_bound():
    read = reader(429)
    assert read.feed(LIMIT_BODY) is Verdict.CONTINUE
    assert not read.complete
    assert read.end() is Verdict.REFUSE
    assert (read.complete, read.in_stream) == (True, False)
    assert read.plain() == LIMIT_BODY
    large = reader(429)
    assert large.feed(b"x" * MAX_REFUSAL_BYTES) is Verdict.CONTINUE
    assert large.feed(b"x") is Verdict.REFUSE


def test_gate_bound():
    read = reader(headers=SSE_TYPE)
    assert read.feed(b":" + b"x" * MAX_GATE_BYTES) is Verdict.COMMIT


def test_time_is_over():
    assert reader(429).expired() is Verdict.REFUSE
    assert reader(200).expired() is Verdict.COMMIT


def test_answer_as_values():
    headers = http.Headers([(b"X-A", b"1"), (b"x-a", b"2"), (b"Content-Type", b"application/json")])
    read = reader(429, headers)
    read.feed(LIMIT_BODY)
    read.end()
    answer = read.upstream_response("gpt-5", 12.5)
    assert answer.headers["x-a"] == "1, 2"
    assert (answer.status, answer.model, answer.wall_now) == (429, "gpt-5", 12.5)
    assert answer.payload == json.loads(LIMIT_BODY)
    assert not answer.in_stream


@pytest.mark.parametrize("body", [b"<html>", b"", b"[[[", b'{"a":', b"[" * 50_000, b"\xff\xfe{}"])
def test_a_body_that_is_no_json_has_no_payload(body):
    read = reader(500)
    if body:
        read.feed(body)
    read.end()
    assert read.upstream_response(None, 0.0).payload is None


def test_gzip_refusal_text():
    read = reader(429, {**JSON_TYPE, "content-encoding": "gzip"})
    read.feed(packed := gzip.compress(LIMIT_BODY))
    read.end()
    assert read.plain() == LIMIT_BODY
    assert b"".join(read.held) == packed


def test_anthropic_overloaded_after_message_start():
    read = reader(headers=SSE_TYPE, provider=anthropic.PROVIDER)
    start = b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n'
    assert read.feed(start) is Verdict.CONTINUE
    error = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n'
    assert read.feed(error) is Verdict.REFUSE
    assert read.upstream_response(None, 0.0).event == "error"


def test_gemini_array_with_an_error():
    read = reader(provider=gemini.PROVIDER)
    body = b'[{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "q"}}\n]'
    assert read.feed(body) is Verdict.REFUSE


FAILED = {"type": "response.failed", "response": {"error": {"code": "insufficient_quota"}}}


def late(read: ResponseReader, whole: bytes, *, kept: int | None = None):
    """What is read of an answer when it has ended; *kept* bytes of it were copied."""
    end = End(read.encoding, keep_bytes=END_BYTES)
    if kept is not None:
        end.feed(whole)
    _usage, decision = read.ended(whole[:kept], end.kept)
    return decision and decision.payload


@pytest.mark.parametrize("kept", [None, 200], ids=["all of it was kept", "the end was kept"])
@pytest.mark.parametrize("padding", [0, 20_000, 50_000])
def test_an_error_at_the_end_of_a_stream(padding, kept):
    """`response.failed` repeats instructions and tools, which are long."""
    failed = {**FAILED, "instructions": "x" * padding}
    read = reader(headers=SSE_TYPE)
    read.feed(DELTA)
    assert late(read, DELTA * 40 + event(failed), kept=kept) == failed
    assert late(read, (DELTA * 40 + event(failed)).replace(b"\n", b"\r\n"), kept=kept) == failed
    assert late(read, event(failed) + DELTA * 40, kept=kept) is None
    assert late(read, DELTA * 40 + DONE, kept=kept) is None


@pytest.mark.parametrize("encode", [gzip.compress, lambda text: text], ids=["gzip", "plain"])
def test_an_error_at_the_end_of_a_stream_that_unpacks_to_much(encode):
    encoding = "gzip" if encode is gzip.compress else ""
    read = reader(headers={**SSE_TYPE, "content-encoding": encoding})
    whole = encode(DELTA * 400_000 + event(FAILED) + DONE)
    read.feed(whole[:50])
    assert late(read, whole) == FAILED


def test_a_service_that_fails_with_a_code_at_the_end_of_a_stream():
    failed = {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}
    read = reader(headers=SSE_TYPE, provider=BUILT_IN["minimax"])
    read.feed(DELTA)
    assert late(read, DELTA * 3 + event(failed)) == failed


def test_an_array_that_ends_in_an_error():
    read = reader(provider=gemini.PROVIDER)
    said = b'[{"candidates":[{"content":{"parts":[{"text":"hi, \\"error\\": {"}]}}]}'
    error = (
        b',\r\n{\n  "error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "q"}\n}\n]\n'
    )
    read.feed(said)
    assert late(read, said + error)["error"]["code"] == 429
    assert late(read, said + error.rstrip(b"]\n"))["error"]["code"] == 429
    assert late(read, said + b"]") is None
