"""Our HTTP/1 connections read heads as mitmproxy's do, whatever the bytes and the pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.net.http.http1 import read
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import (
    ReceiveHttp,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
)
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Server

from account_pool.proxy.events import WholeRequest, WholeResponse
from account_pool.proxy.http1 import MAX_HEAD_BYTES, QuickClient, QuickServer, _fields
from tests.proxy.helpers import client_connection, options_of

REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a:81/y HTTP/1.1\r\nX: 1\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\nHost: a\n\n",
    b"GET / HTTP/1.1\r\nHost: a\n\r\n",
    b"POST / HTTP/1.1\nHost: a\r\nContent-Length: 8\r\n\r\nabcd\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 8\n\nabcd\r\n\r\n",
    b"GET /\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: 1\r\n\tfolded: 2\r\nY:\r\nZ :  a:b \t\r\n\r\n",
    b"GET / HTTP/1.1\r\n X: 1\r\n\r\n",
    b"GET / HTTP/1.1\r\n: 1\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: odd\r\n\r\n",
    b"CONNECT nonsense HTTP/1.1\r\n\r\n",
]
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nContent-Length: 8\n\nabcd\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    b"HTTP/1.1 abc OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"nonsense\r\n\r\n",
]
PIECES = [1, 7, 1000]


def context() -> Context:
    made = Context(client_connection(), options_of())
    made.server = Server(address=("a", 443))
    made.server.state = ConnectionState.OPEN
    return made


def in_parts(said: Iterable[commands.Command]) -> Iterator[commands.Command]:
    """Yield what was *said*, a whole response as the events that it stands for."""
    for command in said:
        whole = isinstance(command, ReceiveHttp) and isinstance(command.event, WholeResponse)
        yield from map(ReceiveHttp, command.event.parts) if whole else (command,)


def told(layer: Any, data: bytes, size: int) -> list[str]:
    """Feed *data* in pieces of *size*; return what the layer said, without times."""
    said = []
    for at in range(0, len(data), size):
        event = events.DataReceived(layer.conn, data[at : at + size])
        for command in in_parts(layer.handle_event(event)):
            text = repr(command).split("Server({")[0].split("Client({")[0]
            if isinstance(command, ReceiveHttp):
                event = command.event
                message = getattr(event, "request", None) or getattr(event, "response", None)
                text = f"{type(event).__name__} {vars(event).keys()}"
                if message is not None:
                    message.timestamp_start = 0.0
                    type(message)(**vars(message.data))  # the checks that are left out pass
                    text += f"{message.get_state()} {getattr(event, 'end_stream', None)}"
                else:
                    text += repr(event)
            said.append(text)
    return [*said, layer.state.__name__, bytes(layer.buf)]


@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize("data", REQUESTS)
def test_requests(data: bytes, size: int) -> None:
    both = []
    for kind in (Http1Server, QuickServer):
        layer = kind(context())
        list(layer.handle_event(events.Start()))
        both.append(told(layer, data, size))
    assert both[0] == both[1]


@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("data", ANSWERS)
def test_answers(data: bytes, asked: bool, size: int) -> None:
    both = []
    for kind in (Http1Client, QuickClient):
        layer = kind(context())
        list(layer.handle_event(events.Start()))
        if asked:
            request = http.Request.make("GET", "https://a/")
            list(layer.handle_event(RequestHeaders(-1, request, True)))
            list(layer.handle_event(RequestEndOfMessage(-1)))
        both.append(told(layer, data, size))
    assert both[0] == both[1]


def heard_of(pieces: list[bytes], *, stream_id: int = -1, sent: bool = True) -> list[type[Any]]:
    """Return the events that *pieces* of a response lead to."""
    layer = QuickClient(context())
    list(layer.handle_event(events.Start()))
    list(
        layer.handle_event(RequestHeaders(stream_id, http.Request.make("GET", "https://a/"), True))
    )
    if sent:
        list(layer.handle_event(RequestEndOfMessage(stream_id)))
    said = [c for data in pieces for c in layer.handle_event(events.DataReceived(layer.conn, data))]
    return [type(command.event) for command in said if isinstance(command, ReceiveHttp)]


def test_a_response_that_is_all_here_is_one_event() -> None:
    parts = [ResponseHeaders, ResponseData, ResponseEndOfMessage]
    head, body = ANSWERS[0][:-2], ANSWERS[0][-2:]
    assert heard_of([head + body]) == [WholeResponse]
    assert heard_of([head, body]) == parts
    # Its request is still on its way, or it is none of an attempt.
    assert heard_of([head + body], sent=False) == parts
    assert heard_of([head + body], stream_id=1) == parts


@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize("kind", [QuickServer, QuickClient])
def test_trailers_end_a_message(kind: type[Any], size: int) -> None:
    """mitmproxy's own raise NotImplementedError, and leave who waits for the end waiting."""
    both = []
    for trailers in (b"x-sum: 1\r\nx-more: 2\r\n", b""):
        layer = kind(context())
        list(layer.handle_event(events.Start()))
        start = b"POST / HTTP/1.1\r\n"
        if kind is QuickClient:
            request = http.Request.make("GET", "https://a/")
            list(layer.handle_event(RequestHeaders(-1, request, True)))
            list(layer.handle_event(RequestEndOfMessage(-1)))
            start = b"HTTP/1.1 200 OK\r\n"
        body = b"2\r\nhi\r\n0\r\n" + trailers + b"\r\n"
        both.append(told(layer, start + b"transfer-encoding: chunked\r\n\r\n" + body, size))
    assert both[0] == both[1]
    assert any("EndOfMessage" in text for text in both[0][:-2])


@pytest.mark.parametrize("size", [*PIECES, 2, 3, 18])
@pytest.mark.parametrize("blank", [b"\r\n", b"\n", b"\r\n\r\n", b"\n\r\n\n"])
@pytest.mark.parametrize("kind", [QuickServer, QuickClient])
def test_blank_lines_before_a_message(kind: type[Any], blank: bytes, size: int) -> None:
    """mitmproxy's own wait for more, if all came in one piece."""
    data = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    if kind is QuickClient:
        data = b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n"
    both = []
    for before in (blank, b""):
        layer = kind(context())
        list(layer.handle_event(events.Start()))
        if kind is QuickClient:
            request = http.Request.make("GET", "https://a/")
            list(layer.handle_event(RequestHeaders(-1, request, True)))
            list(layer.handle_event(RequestEndOfMessage(-1)))
        both.append([text for text in told(layer, before + data, size) if text])
    assert both[0] == both[1]
    assert any("EndOfMessage" in text for text in both[0][:-1])


def endless(start: bytes, piece: bytes, *, most: int) -> bytes:
    """Return more than *most* bytes of what has no end."""
    return start + piece * (most // len(piece) + 2)


@pytest.mark.parametrize("status", [200, 429])
@pytest.mark.parametrize(
    "data",
    [
        endless(b"HTTP/1.1 %d ", b"x" * 1000, most=MAX_HEAD_BYTES),
        endless(b"HTTP/1.1 %d X\r\n", b"x-a: " + b"y" * 1000 + b"\r\n", most=MAX_HEAD_BYTES),
        endless(b"HTTP/1.1 %d X\r\nx-a:", b"\r\n " + b"y" * 1000, most=MAX_HEAD_BYTES),
    ],
    ids=["status line", "fields", "one field"],
)
def test_a_head_without_end_breaks_the_attempt(rig_of, data: bytes, status: int) -> None:
    from tests.proxy.helpers import OK, post1

    rig = rig_of()
    rig.send(post1())
    data = data.replace(b"%d", b"%d" % status)
    for at in range(0, len(data), 65536):
        rig.server.send(data[at : at + 65536])
    assert rig.servers[0].closed
    assert rig.answers[0].status == 502
    assert b"the head of the answer is too long" in rig.answers[0].body
    rig.send(post1())
    rig.server.send(OK)
    assert rig.answers[1].complete


@pytest.mark.parametrize(
    "rest",
    [
        endless(b"2;", b"x" * 1000, most=MAX_HEAD_BYTES),
        endless(b"0\r\n", b"x-a: " + b"y" * 1000 + b"\r\n", most=MAX_HEAD_BYTES),
    ],
    ids=["chunk extension", "trailers"],
)
def test_a_line_without_end_between_chunks_breaks_the_answer(rig_of, rest: bytes) -> None:
    from tests.proxy.helpers import CHUNKED, DELTA, LIMIT_BODY, OK, SSE, chunk, head1, post1

    rig = rig_of()
    for head, body in (head1(429, [CHUNKED]), LIMIT_BODY), (head1(200, [CHUNKED, SSE]), DELTA):
        rig.send(post1())
        rig.server.send(head + chunk(body))
        server = rig.server
        for at in range(0, len(rest), 65536):
            server.send(rest[at : at + 65536])
        assert server.closed
        if body is LIMIT_BODY:
            rig.server.send(OK)  # the other account's
    assert [(m.status, m.complete) for m in rig.answers] == [(200, True), (200, False)]


def test_long_heads_and_lines_are_taken(rig_of) -> None:
    from tests.proxy.helpers import CHUNKED, chunk, head1, post1

    rig = rig_of()
    rig.send(post1())
    field = "x-a: " + "y" * (MAX_HEAD_BYTES - 1000)
    rig.server.send(head1(200, [field, CHUNKED]) + chunk(b"{}") + b"0;" + b"x" * 200_000)
    rig.server.send(b"\r\n\r\n")
    assert (rig.answers[0].body, rig.answers[0].complete) == (b"{}", True)


def test_a_message_after_trailers(rig_of) -> None:
    from tests.proxy.helpers import CHUNKED, OK, chunk, head1, post1

    rig = rig_of()
    rig.send(post1())
    rig.server.send(head1(200, [CHUNKED]) + chunk(b"{}") + b"0\r\nx-sum: 1\r\n\r\n")
    rig.send(post1())
    rig.server.send(OK)
    assert [(m.status, m.complete) for m in rig.answers] == [(200, True), (200, True)]
    assert rig.answers[0].body == b"{}"
    assert len(rig.servers) == 1


def test_ours_are_used(rig_of) -> None:
    from tests.proxy.helpers import OK, post1

    rig = rig_of()
    rig.send(post1())
    rig.server.send(OK)
    kinds = {type(layer.context.layers[-1]) for layer in rig.layer.connections.values()}
    assert kinds == {QuickServer, QuickClient}


WHOLE = [(), ((b"content-length", b"2"),), ((b"transfer-encoding", b"chunked"),)]


@pytest.mark.parametrize("fields", WHOLE)
@pytest.mark.parametrize("body", [b"", b"hi"])
def test_a_whole_request_is_sent_as_its_parts_are(fields, body) -> None:
    request = http.Request.make("POST", "http://a/x", headers=fields)
    whole = WholeRequest(-1, request, not body, content=body)
    parts: list[Any] = [RequestHeaders(-1, request, not body), RequestEndOfMessage(-1)]
    if body:
        parts.insert(1, RequestData(-1, body))
    sent = []
    for events_of in ([whole], parts):
        client = QuickClient(context())
        client.state = client.read_headers
        commands_of = [c for event in events_of for c in client.handle_event(event)]
        sent.append(([c.data for c in commands_of], client.request_done, client.stream_id))
    assert sent[0] == sent[1]
    assert sent[0][1:] == (True, -1)


ASKED = [
    http.Request.make("POST", "http://a/x", headers=headers)
    for headers in ({}, {"connection": "keep-alive"}, {"connection": "Close"})
]
ASKED += [http.Request.make(method, "http://a/x") for method in ("HEAD", "CONNECT")]
SAID = [
    http.Response.make(status, headers=headers)
    for status, headers in [
        (200, {"content-length": "2"}),
        (200, {"transfer-encoding": "chunked"}),
        (200, {"transfer-encoding": "gzip"}),
        (200, {"transfer-encoding": "gzip", "content-length": "2"}),
        (200, {"content-length": "x"}),
        (200, {"content-length": "2", "connection": "close"}),
        (200, {"content-length": "2", "connection": "x, close"}),
        (200, {"content-length": "2", "connection": "Keep-Alive"}),
        (204, {}),
        (200, {}),
        (304, {}),
    ]
]
for _answer in SAID:
    if _answer.headers.get("content-length") == "0":
        del _answer.headers["content-length"]  # which `make` adds


@pytest.mark.parametrize("kinds", [(Http1Server, QuickServer), (Http1Client, QuickClient)])
@pytest.mark.parametrize("first", ["request", "response"])
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0"])
@pytest.mark.parametrize("rest", [b"", b"GET"])
def test_a_message_ends_as_in_mitmproxy(kinds, first, version, rest) -> None:
    second = "response" if first == "request" else "request"
    for asked, answer in product(ASKED, SAID):
        found = []
        for kind in kinds:
            side = kind(context())
            side.request, side.response, side.stream_id = asked.copy(), answer.copy(), 1
            side.request.data.http_version = version
            side.buf += rest
            commands = []
            for end in (first, second):
                commands += [type(command) for command in side.mark_done(**{end: True})]
                commands.append(side.state.__func__.__name__)
            flags = side.request_done, side.response_done
            kept = side.request is None, side.response is None
            found.append((commands, flags, kept, side.stream_id, bytes(side.buf)))
        assert found[0] == found[1], (asked, answer.headers.fields)


LINES = st.lists(st.text("a: \t\r\x00\xe4", min_size=1, max_size=6).map(str.encode), max_size=4)


@given(LINES)
def test_fields_are_read_as_mitmproxy_reads_them(lines: list[bytes]) -> None:
    try:
        expected = read._read_headers(lines).fields
    except ValueError as error:
        with pytest.raises(ValueError) as raised:
            _fields(lines)
        assert str(raised.value) == str(error)
    else:
        assert _fields(lines) == expected


def test_mitmproxy_checks_no_types_of_plain_fields(monkeypatch) -> None:
    monkeypatch.delattr(read, "_read_headers")
    assert _fields([b"Host: a", b"x:  b ", b"y:"]) == (
        (b"Host", b"a"), (b"x", b"b"), (b"y", b""),
    )  # fmt: skip
