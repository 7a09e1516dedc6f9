"""Answers before the answer, and what is no answer at all."""

from __future__ import annotations

import json

import pytest

from account_pool.core.steps import Limits
from account_pool.proxy import http_layer
from account_pool.proxy.http_layer import SWEEP_S, TCP_TIMEOUT_S
from tests.proxy.helpers import (
    CHUNKED,
    DELTA,
    JSON,
    LIMIT_BODY,
    LIMITED,
    OK,
    OK_BODY,
    SSE,
    chunk,
    head1,
    http1,
    options_of,
    post1,
    secret,
)

ONE, TWO = secret("one"), secret("two")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\ncontent-length: 7\r\n\r\n"
UPGRADE = ["connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13"]
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"


@pytest.mark.parametrize("size", [1, 3, 24, 25, 26, 27, 10_000])
@pytest.mark.parametrize(
    "before",
    [CONTINUE, PROCESSING, HINTS, b"HTTP/1.1 199\r\n\r\n", CONTINUE + PROCESSING * 9 + HINTS],
)
def test_the_answer_follows(rig_of, before, size):
    """However many there are, whatever they say, and wherever they are cut."""
    rig = rig_of()
    rig.send(post1())
    data = before + OK
    for start in range(0, len(data), size):
        rig.server.send(data[start : start + size])
    assert rig.received == OK
    rig.send(post1())
    rig.server.send(data)
    assert rig.received == OK + OK
    assert len(rig.servers) == 1


def test_nothing_is_sent_before_the_answer(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(CONTINUE)
    rig.server.send(HINTS)
    assert rig.received == b""
    rig.server.send(head1(200, [SSE, CHUNKED]) + chunk(DELTA))
    assert rig.answers[0].chunks == [DELTA]


def test_the_refusal_that_follows_is_replayed(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(CONTINUE + HINTS + LIMITED)
    assert rig.keys == [ONE, TWO]
    rig.server.send(CONTINUE + OK)
    assert rig.received == OK
    assert rig.cooling() == {"one"}


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\netag: 1\r\n\r\n", b""),
        (http1(200, OK_BODY), OK_BODY),
    ],
)
def test_answers_without_a_body(rig_of, method, answer, body):
    rig = rig_of()
    if method == "HEAD":
        answer = answer.removesuffix(OK_BODY)
    for _ in range(2):
        rig.send(post1("/v1/models", b"", method=method))
        rig.server.send(HINTS + answer)
    assert rig.received == answer * 2
    assert len(rig.servers) == 1


def test_a_connection_that_ends_after_one_is_no_answer(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(CONTINUE)
    rig.server.close()
    assert rig.answers[0].status == 502
    assert rig.keys == [ONE]


def test_a_kept_connection_that_ends_after_one_had_the_request(rig_of):
    """It was no stale one: the request may have run, and is not sent twice."""
    rig = rig_of()
    rig.send(post1())
    rig.server.send(OK)
    rig.send(post1())
    rig.server.send(PROCESSING)
    rig.server.close()
    assert [a.status for a in rig.answers] == [200, 502]
    assert rig.keys == [ONE, ONE]


def test_over_http2_upstream(rig_of):
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    rig.server.head(1, 103, ["link: </a.css>"])
    rig.server.head(1, 100)
    rig.server.answer(1, 200, OK_BODY, ["content-type: application/json"])
    assert [(a.status, a.body, a.complete) for a in rig.answers] == [(200, OK_BODY, True)]


def test_before_a_socket_opens(rig_of):
    rig = rig_of()
    rig.send(post1("/v1/responses", b"", [*UPGRADE, "sec-websocket-key: abc"], method="GET"))
    rig.server.send(HINTS)
    rig.server.send(SWITCHED)
    assert rig.answers[0].status == 101
    rig.leave()
    # mitmproxy forgets a WebSocket with its client connection, not before.
    rig.layer.streams.clear()


def test_a_path_that_is_not_pooled(rig_of):
    rig = rig_of()
    rig.send(post1("/v1/fine_tuning/jobs"))
    rig.server.send(CONTINUE + OK)
    assert rig.received == OK


def test_during_an_upload_that_streams(rig_of, monkeypatch):
    monkeypatch.setattr("account_pool.proxy.pooled_exchange.MAX_REPLAYABLE_BYTES", 1000)
    rig = rig_of()
    raw = post1(body=b" " * 2000)
    rig.send(raw[:-500])
    rig.server.send(CONTINUE)
    rig.send(raw[-500:])
    rig.server.send(OK)
    assert rig.received == OK
    assert rig.requests[0].complete


INVALID = [
    SWITCHED,
    head1(101),
    *(http1(status, OK_BODY) for status in (0, 99, 600, 999, 1000, -1)),
    b"HTTP/1.1 000 X\r\ncontent-length: 0\r\n\r\n",
]


@pytest.mark.parametrize("answer", INVALID)
def test_what_is_no_answer_breaks_the_attempt(rig_of, answer):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(answer)
    assert rig.answers[0].status == 502
    assert b"openai" in rig.answers[0].body
    assert rig.servers[0].closed
    assert rig.cooling() == set()
    # What was on its way there meets nobody.
    rig.servers[0].close()
    rig.send(post1())
    rig.server.send(OK)
    assert rig.answers[1].body == OK_BODY
    assert len(rig.servers) == 2


@pytest.mark.parametrize("answer", INVALID)
def test_it_is_sent_again_where_the_user_wants_that(rig_of, answer):
    rig = rig_of(limits=Limits(max_wait_s=0, retry_broken=True))
    rig.send(post1())
    rig.server.send(answer)
    rig.server.send(OK)
    assert rig.received == OK


@pytest.mark.parametrize("status", [0, 99, 600, 999])
def test_what_is_no_answer_over_http2(rig_of, status):
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    rig.server.head(1, status, [])
    assert rig.answers[0].status == 502
    assert rig.requests[0].reset is not None
    rig.ask()
    rig.server.answer(3, 200, OK_BODY, ["content-type: application/json"])
    assert rig.answers[1].body == OK_BODY


# -- heads that are not as they should be

#: What mitmproxy refuses by default.
REFUSED = {
    "two lengths": [CHUNKED, f"content-length: {len(OK_BODY)}"],
    "a name with a space": ["x y: 1"],
    "a name with a zero": ["x\0y: 1"],
    "a coding of HTTP/1.1": [CHUNKED],
}


WRONG = b'{"error":{"message":"no such field","type":"invalid_request_error"}}'


def answer(status: int, how: str) -> bytes:
    body = {200: OK_BODY, 422: WRONG, 429: LIMIT_BODY}[status]
    chunked = CHUNKED in REFUSED[how]
    said = head1(status, [JSON, "retry-after: 20", *REFUSED[how]])
    if how == "a coding of HTTP/1.1":
        said = said.replace(b"HTTP/1.1", b"HTTP/1.0")
    if not chunked:
        said = said[:-2] + b"content-length: %d\r\n\r\n" % len(body)
    return said + (chunk(body) + b"0\r\n\r\n" if chunked else body)


@pytest.mark.parametrize("client2", [False, True])
@pytest.mark.parametrize("how", REFUSED)
def test_a_head_that_mitmproxy_refuses_is_told_in_the_envelope(rig_of, how, client2):
    rig = rig_of(client2=client2)
    rig.ask() if client2 else rig.send(post1())
    rig.server.send(answer(200, how))
    said = json.loads(rig.answers[0].body)["error"]["message"]
    assert rig.answers[0].status == 502
    assert "no valid answer" in said and "validate_inbound_headers" in said
    assert rig.servers[0].closed
    rig.ask() if client2 else rig.send(post1())
    rig.server.send(OK)
    assert rig.answers[1].body == OK_BODY


@pytest.mark.parametrize("how", REFUSED)
def test_a_limit_with_such_a_head_is_one(rig_of, how):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(answer(429, how))
    assert rig.keys == [ONE, TWO]
    rig.server.send(OK)
    assert rig.answers[0].body == OK_BODY


@pytest.mark.parametrize("client2", [False, True])
@pytest.mark.parametrize("how", [how for how in REFUSED if how != "a coding of HTTP/1.1"])
def test_a_refusal_with_such_a_head_is_handed_on_without_what_is_wrong(rig_of, how, client2):
    rig = rig_of(client2=client2)
    rig.ask() if client2 else rig.send(post1())
    rig.server.send(answer(422, how))
    said = rig.answers[0]
    assert (said.status, said.body, said.complete) == (422, WRONG, True)
    names = {name.lower() for name, _ in said.headers}
    assert names.isdisjoint({"x y", "x\0y"})
    assert not {"transfer-encoding", "content-length"} <= names


@pytest.mark.parametrize("how", ["two lengths", "a name with a space"])
def test_the_user_can_have_it_as_it_is(rig_of, how):
    rig = rig_of(options=options_of(validate_inbound_headers=False), validates=False)
    rig.send(post1())
    rig.server.send(answer(200, how))
    assert (rig.answers[0].status, rig.answers[0].body) == (200, OK_BODY)


def test_such_a_head_ends_no_other_answer(rig_of):
    """mitmproxy takes fewer names than HTTP/2."""
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    rig.ask()
    rig.server.head(1, 200, [JSON, "x@y: 1"])
    rig.server.answer(3, 200, OK_BODY, [JSON])
    assert rig.server.closed == 0
    assert {a.stream_id: a.status for a in rig.answers} == {1: 502, 3: 200}


@pytest.mark.parametrize("status", [200, 422])
@pytest.mark.parametrize("client2", [False, True])
@pytest.mark.parametrize(
    "value",
    ["one\r\n two\0", "\0one\r\n two", "one\r\n\t \r\n two", "one\0two", "one\rtwo", "one\0\r two"],
)
def test_what_breaks_a_line_becomes_a_space(rig_of, value, client2, status):
    """A client ends the connection at it, over HTTP/2 with all that is on it."""
    rig = rig_of(client2=client2)
    rig.ask() if client2 else rig.send(post1())
    rig.server.send(http1(status, OK_BODY, [JSON, f"x-a: {value}", "x-b: kept"]))
    said = rig.answers[0]
    assert (said.status, said.body, said.complete) == (status, OK_BODY, True)
    assert (said.get("x-a").split(), said.get("x-b")) == (["one", "two"], "kept")


@pytest.mark.parametrize("more", [[f"x-{n}: y" for n in range(2000)], ["x-a: " + "y" * 66_000]])
def test_a_head_that_is_too_long_ends_no_other_answer(rig_of, more):
    """A client over HTTP/2 takes no more than 64 KiB."""
    rig = rig_of(client2=True)
    rig.ask()
    rig.ask()
    rig.servers[0].send(http1(200, OK_BODY, [JSON, *more]))
    rig.servers[1].send(OK)
    assert {a.stream_id: a.status for a in rig.answers} == {1: 502, 3: 200}
    assert b"its head is too long" in rig.answers[0].body


def test_a_long_head_is_handed_on(rig_of):
    for client2 in (True, False):
        rig = rig_of(client2=client2)
        rig.ask() if client2 else rig.send(post1())
        rig.server.send(
            http1(200, OK_BODY, [JSON, "x-a: " + "y" * (65_000 if client2 else 200_000)])
        )
        assert rig.answers[0].body == OK_BODY


def test_a_wait_that_is_folded_counts(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(http1(429, LIMIT_BODY, [JSON, "retry-after:\r\n 20"]))
    rig.server.send(OK)
    assert rig.keys == [ONE, TWO]
    rig.clock.advance(19)
    assert rig.cooling() == {"one"}
    rig.clock.advance(2)
    assert rig.cooling() == set()


def test_a_reason_in_one_line(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(OK.replace(b"200 OK", b"200 O\0K"))
    assert rig.received == OK.replace(b"200 OK", b"200 O K")


# -- silence


def test_interim_answers_do_not_break_a_silence(rig_of):
    rig = rig_of()
    rig.send(post1())
    for _ in range(int(TCP_TIMEOUT_S / SWEEP_S)):
        assert rig.answers == []
        rig.server.send(PROCESSING)
        rig.advance(SWEEP_S)
    assert [a.status for a in rig.answers] == [504]


def test_empty_frames_do_not_break_a_silence(rig_of):
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    rig.server.head(1, 200, [SSE])
    rig.server.data(1, DELTA)
    for _ in range(int(TCP_TIMEOUT_S / SWEEP_S)):
        rig.advance(SWEEP_S)
        assert rig.answers[0].reset is None
        rig.server.data(1, b"")
    rig.advance(SWEEP_S)
    assert rig.answers[0].reset is not None


def test_another_protocol_than_asked(rig_of):
    rig = rig_of()
    rig.send(post1("/v1/responses", b"", [*UPGRADE, "sec-websocket-key: abc"], method="GET"))
    rig.server.send(head1(101, ["connection: upgrade", "upgrade: h2c"]))
    assert rig.answers[0].status == 502


def test_where_mitmproxys_own_http1_is_used_one_is_never_taken_for_the_answer(rig_of, monkeypatch):
    monkeypatch.setattr(http_layer, "_QUICK", None)
    rig = rig_of()
    rig.send(post1())
    rig.server.send(CONTINUE + OK)
    assert rig.answers[0].status == 502
    rig.send(post1())
    rig.server.send(OK)
    assert rig.answers[1].body == OK_BODY
