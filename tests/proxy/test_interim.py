"""Answers before the answer, and what is no answer at all."""

from __future__ import annotations

import pytest

from account_pool.core.attempts import Limits
from account_pool.proxy import layer
from tests.proxy.helpers import (
    CHUNKED,
    DELTA,
    LIMITED,
    OK,
    OK_BODY,
    SSE,
    chunk,
    head1,
    http1,
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
    monkeypatch.setattr("account_pool.proxy.stream.MAX_REPLAYABLE_BYTES", 1000)
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


def test_another_protocol_than_asked(rig_of):
    rig = rig_of()
    rig.send(post1("/v1/responses", b"", [*UPGRADE, "sec-websocket-key: abc"], method="GET"))
    rig.server.send(head1(101, ["connection: upgrade", "upgrade: h2c"]))
    assert rig.answers[0].status == 502


def test_where_mitmproxys_own_http1_is_used_one_is_never_taken_for_the_answer(rig_of, monkeypatch):
    monkeypatch.setattr(layer, "_QUICK", None)
    rig = rig_of()
    rig.send(post1())
    rig.server.send(CONTINUE + OK)
    assert rig.answers[0].status == 502
    rig.send(post1())
    rig.server.send(OK)
    assert rig.answers[1].body == OK_BODY
