"""Chunks that are copied through: everybody gets and sees the same as where they are read."""

from __future__ import annotations

import gzip
import itertools
import random
from typing import Any

import pytest
from mitmproxy.proxy.layers.http._http1 import Http1Connection, Http1Server

from account_pool.proxy.fast import short
from account_pool.proxy.flow_view import MAX_COPY_BYTES
from tests.proxy.fast.known import needs_known
from tests.proxy.helpers import (
    CHUNKED,
    DELTA,
    DONE,
    JSON,
    LIMIT_EVENT,
    OK,
    SSE,
    chunk,
    event,
    head1,
    post1,
)

pytestmark = needs_known

USAGE = event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
END = b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (chunk(b"hello"), [b"hello"]),
        (chunk(b"hello") + chunk(b"x" * 300), [b"hello", b"x" * 300]),
        (chunk(b"\r\n0\r\n\r\n"), [b"\r\n0\r\n\r\n"]),
        (b"A\r\n0123456789\r\n", [b"0123456789"]),
        (chunk(b"hello")[:-1], None),
        (chunk(b"hello")[:-2], None),
        (chunk(b"hello")[:-3], None),
        (chunk(b"hello")[1:], None),
        (chunk(b"hello") + b"5", None),
        (chunk(b"hello") + b"5\r\n", None),
        (chunk(b"hello") + END, None),
        (END, None),
        (b"5;x=1\r\nhello\r\n", None),
        (b"5 \r\nhello\r\n", None),
        (b"05\r\nhello\r\n", None),
        (b"0x5\r\nhello\r\n", None),
        (b"-5\r\nhello\r\n", None),
        (b"5\nhello\n", None),
        (b"5\r\nhello\n\n", None),
        (b"g\r\nhello\r\n", None),
        (b"ffffffffff\r\nhello\r\n", None),
    ],
)
def test_whole_chunks(data: bytes, expected: list[bytes] | None) -> None:
    assert short.chunks(data) == expected


@pytest.fixture
def rigs(rig_of, monkeypatch):
    """Two that are told the same; chunks are read in the first, relayed in the other one."""
    count: list[bytes] = []
    chunks = short.chunks

    def counted(data: bytes) -> list[bytes] | None:
        found = chunks(data)
        count.append(data) if found else None
        return found

    monkeypatch.setattr(short, "chunks", counted)

    def build(**how: Any):
        off = rig_of(**how)
        on = rig_of(**how, fast=frozenset({"relay"}))
        on.relayed = count
        return off, on

    return build


def streams(*rigs, headers=(SSE, CHUNKED), first: bytes = DELTA) -> None:
    """Ask, and have a response begin that streams."""
    for rig in rigs:
        rig.send(post1())
        rig.server.send(head1(200, headers) + chunk(first))


def shown(rig) -> object:
    """What the client has got, what is kept for people, and what was counted."""
    (flow,) = rig.flows[-1:]
    sums = rig.service.counters["usage"].take()
    sums = {key: value for key, value in sums.items() if value}
    answers = [(m.status, m.body, m.complete, m.headers) for m in rig.answers]
    return answers, flow.response.raw_content, flow.comment, rig.hooks, sums


def same(off, on) -> None:
    assert shown(on) == shown(off)


PIECES = [
    [chunk(DELTA), chunk(DELTA), chunk(USAGE), chunk(DONE) + END],
    [chunk(DELTA) + chunk(DELTA), chunk(USAGE) + chunk(DONE), END],
    [chunk(DELTA)[:3], chunk(DELTA)[3:] + chunk(DELTA), chunk(DELTA), chunk(DONE) + END],
    [chunk(DELTA) + chunk(DELTA)[:9], chunk(DELTA)[9:], chunk(DELTA), chunk(DONE) + END],
    [chunk(DELTA), b"5;x=1\r\nhello\r\n", chunk(DELTA), b"00", b"0\r\n\r\n"],
    [chunk(DELTA), chunk(DONE) + b"0\r\nx-sum: 1\r\n\r\n"],
    [chunk(DELTA), chunk(LIMIT_EVENT), END],
    [chunk(DELTA), b"nonsense\r\n"],
    # What looks like a whole chunk is a part of one, or of a trailer.
    [chunk(DELTA), b"f\r\n{", chunk(b"hello"), b"\r\n}\n\r\n", END],
    [chunk(DELTA), b"1", b"5\r\nhello\r\nb\r\n01234567890\r\n", END],
    [chunk(DELTA), b"0\r\n", chunk(b"hello"), b"\r\n"],
]


@pytest.mark.parametrize("pieces", PIECES)
def test_a_stream(rigs, pieces) -> None:
    off, on = rigs()
    streams(off, on)
    for rig in (off, on):
        for piece in pieces:
            rig.server.send(piece)
    same(off, on)
    assert on.relayed
    assert off.received != b""


@pytest.mark.parametrize("seed", range(20))
def test_a_stream_in_any_pieces(rigs, seed: int) -> None:
    chance = random.Random(seed)
    events = [event({"n": chance.randbytes(chance.randrange(1, 900)).hex()}) for _ in range(60)]
    data = b"".join(map(chunk, [*events, USAGE, DONE])) + END
    cuts = sorted(chance.sample(range(1, len(data)), 50))
    # Some reads bring whole chunks.
    ends = [len(b"".join(map(chunk, events[:n]))) for n in range(1, 60, 3)]
    cuts = sorted({0, *cuts[: chance.randrange(50)], *ends, len(data)})
    off, on = rigs()
    streams(off, on)
    for rig in (off, on):
        for at, to in itertools.pairwise(cuts):
            rig.server.send(data[at:to])
    same(off, on)
    assert on.relayed
    assert on.answers[0].body == DELTA + b"".join(events) + USAGE + DONE
    # Both connections go on.
    for rig in (off, on):
        rig.send(post1())
        rig.server.send(OK)
    same(off, on)
    assert [len(rig.servers) for rig in (off, on)] == [1, 1]


def test_a_long_stream(rigs) -> None:
    """Beyond its bound only the end is kept, which tells what it took."""
    off, on = rigs()
    streams(off, on)
    text = event({"choices": [{"delta": {"content": "x" * 60_000}}]})
    for rig in (off, on):
        for _ in range(MAX_COPY_BYTES // len(text) + 5):
            rig.server.send(chunk(text))
        rig.server.send(chunk(USAGE))
        rig.server.send(chunk(DONE) + END)
    same(off, on)
    assert len(on.relayed) > 10
    assert "only the beginning" in on.flows[-1].comment


def test_a_packed_stream(rigs) -> None:
    off, on = rigs()
    packed = gzip.compress(DELTA * 50 + USAGE + DONE)
    headers = (SSE, CHUNKED, "content-encoding: gzip")
    streams(off, on, headers=headers, first=packed[:60])
    for rig in (off, on):
        for at in range(60, len(packed), 7):
            rig.server.send(chunk(packed[at : at + 7]))
        rig.server.send(END)
    same(off, on)
    assert on.relayed


@pytest.mark.parametrize("who", ["client", "server"])
def test_whoever_leaves(rigs, who: str) -> None:
    off, on = rigs()
    streams(off, on)
    for rig in (off, on):
        rig.server.send(chunk(DELTA))
        rig.leave() if who == "client" else rig.server.close()
        if who == "client":
            rig.server.send(chunk(DELTA))
    same(off, on)
    assert on.relayed == [chunk(DELTA)]


def test_an_error_that_is_redacted_is_read(rigs) -> None:
    """A credential may be echoed in it, in two chunks."""
    off, on = rigs()
    for rig in (off, on):
        rig.send(post1())
        rig.server.send(head1(302, [JSON, CHUNKED, "location: https://example.com/"]))
        key = rig.keys[0].encode()
        for piece in (b"a" + key[:5], key[5:] + b"b", b"c"):
            rig.server.send(chunk(piece))
        rig.server.send(END)
        assert key not in rig.answers[0].body
    assert not on.relayed
    same(off, on)


@pytest.mark.parametrize("side", ["client2", "server2"])
def test_http2_is_read(rig_of, monkeypatch, side: str) -> None:
    def unused(data: bytes) -> None:
        raise AssertionError

    monkeypatch.setattr(short, "chunks", unused)
    rig = rig_of(**{side: True}, fast=frozenset({"relay"}))
    if side == "client2":
        rig.ask()
        rig.server.send(head1(200, [SSE, CHUNKED]) + chunk(DELTA))
        rig.server.send(chunk(DELTA))
        rig.server.send(END)
    else:
        rig.send(post1())
        rig.server.answer(1, 200, DELTA + DELTA, ["content-type: text/event-stream"])
    assert rig.answers[0].body == DELTA + DELTA


CHANGES = {
    "it is of another framing": lambda rig, s: s.flow.response.headers.pop("transfer-encoding"),
    "its stream waits": lambda rig, s: setattr(s, "_paused", object()),
    "it is no longer copied": lambda rig, s: setattr(s, "copy", None),
    "another response": lambda rig, s: setattr(s.flow, "response", s.flow.response.copy()),
    "an attempt that was given up": lambda rig, s: setattr(s, "attempt_id", -99),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_not_as_it_was_is_read(rigs, what: str) -> None:
    _, rig = rigs()
    streams(rig)
    (stream,) = {s for s in rig.layer.streams.values() if s.attempt_id is not None}
    (server,) = (c for c in rig.layer.connections.values() if hasattr(c, "child_layer"))
    while not isinstance(server, Http1Connection):
        server = server.child_layer
    assert server.relay(server, chunk(DELTA))
    kept = dict(vars(stream))
    CHANGES[what](rig, stream)
    assert not server.relay(server, chunk(DELTA))
    vars(stream).update(kept)


def test_a_mitmproxy_that_is_not_as_known(rig_of, monkeypatch) -> None:
    assert short.knows_chunks()
    monkeypatch.setattr(Http1Server, "send", lambda self, event: iter(()))
    assert not short.knows_chunks()
