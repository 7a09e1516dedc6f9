"""Ids, cut-offs, timers and sockets of attempts: HTTP/2 and WebSockets."""

from __future__ import annotations

import importlib
import json

import pytest
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame, RstStreamFrame
from mitmproxy.proxy import events
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage
from wsproto.extensions import PerMessageDeflate

from account_pool.core.steps import Limits
from account_pool.core.usage import Tally
from account_pool.proxy import flow_view, pooled_exchange, refused_attempts
from tests.proxy.helpers import (
    DELTA,
    DONE,
    EMPTY_CHOICES,
    JSON,
    LIMIT_BODY,
    LIMIT_EVENT,
    LIMITED,
    LIMITED_HEADERS,
    OK_BODY,
    SSE,
    head1,
    http1,
    post1,
    secret,
)

ONE, TWO = secret("one"), secret("two")
CANCEL, REFUSED_STREAM, INTERNAL_ERROR = 8, 7, 2


@pytest.fixture
def h2(rig_of):
    def build(*accounts, **settings):
        return rig_of(*accounts, client2=True, server2=True, **settings)

    return build


def raw(rig, *frames) -> None:
    """Send frames that an orderly server would not send any more."""
    rig.server.send(b"".join(frame.serialize() for frame in frames))


def headers(rig, stream_id: int, pairs, *flags) -> HeadersFrame:
    block = rig.server.reader.h2.encoder.encode(pairs)
    return HeadersFrame(stream_id, data=block, flags=["END_HEADERS", *flags])


# -- HTTP/2 upstream


def test_each_attempt_is_a_stream_of_its_own(h2):
    rig = h2()
    rig.ask()
    rig.server.answer(1, 429, LIMIT_BODY, LIMITED_HEADERS)
    rig.server.answer(3, 200, OK_BODY, [JSON])
    assert rig.keys == [ONE, TWO]
    assert [m.stream_id for m in rig.requests] == [1, 3]
    assert len(rig.servers) == 1
    assert (rig.answers[0].status, rig.answers[0].body) == (200, OK_BODY)


def test_many_requests_at_once_keep_their_streams_apart(h2):
    rig = h2()
    asked = [rig.ask() for _ in range(5)]
    for number in (3, 1, 9, 5, 7):
        rig.server.answer(number, 429, LIMIT_BODY, LIMITED_HEADERS)
    again = [m.stream_id for m in rig.requests if m.key == TWO]
    for number in reversed(again):
        body = rig.server.reader.of(number).body
        rig.server.answer(number, 200, b'{"n": %d}' % number + body, [JSON])
    assert {m.stream_id: m.complete for m in rig.answers} == dict.fromkeys(asked, True)
    assert len({m.body for m in rig.answers}) == 5


def test_refusals_that_come_together_are_all_replayed(h2):
    rig = h2()
    for _ in range(3):
        rig.ask()
    for number in (1, 3, 5):
        raw = [(":status", "429"), *(tuple(h.split(": ", 1)) for h in LIMITED_HEADERS)]
        rig.server.reader.h2.send_headers(number, raw)
        rig.server.reader.h2.send_data(number, LIMIT_BODY, end_stream=True)
    rig.server.flush()
    assert rig.keys == [ONE] * 3 + [TWO] * 3


def test_http1_client_over_http2(rig_of):
    rig = rig_of(server2=True)
    rig.send(post1())
    rig.server.answer(1, 429, LIMIT_BODY, LIMITED_HEADERS)
    rig.server.answer(3, 200, OK_BODY, [JSON])
    assert (rig.answers[0].status, rig.answers[0].body) == (200, OK_BODY)


def test_http2_client_over_http1(rig_of):
    rig = rig_of(client2=True)
    stream_id = rig.ask()
    rig.server.send(LIMITED)
    assert len(rig.servers) == 2  # mitmproxy uses an HTTP/1 connection once for HTTP/2
    rig.server.send(http1(200, OK_BODY, [JSON]))
    assert rig.reader.of(stream_id).body == OK_BODY
    assert rig.keys == [ONE, TWO]


def test_a_refused_stream_that_does_not_end_is_reset(h2):
    rig = h2()
    rig.ask()
    rig.server.head(1, 200, [SSE])
    rig.server.data(1, EMPTY_CHOICES + LIMIT_EVENT)
    assert rig.keys == [ONE]
    rig.advance(refused_attempts.DRAIN_S)
    assert rig.requests[0].reset == CANCEL
    assert rig.keys == [ONE, TWO]
    assert len(rig.servers) == 1
    rig.server.answer(3, 200, OK_BODY, [JSON])
    assert rig.answers[0].body == OK_BODY


def test_a_refused_stream_that_says_too_much_is_reset(h2):
    rig = h2()
    rig.ask()
    rig.server.head(1, 200, [SSE])
    rig.server.data(1, LIMIT_EVENT)
    while rig.requests[0].reset is None:
        rig.server.data(1, b"x" * 16_000)
    assert rig.keys == [ONE, TWO]
    rig.server.answer(3, 200, OK_BODY, [JSON])
    assert rig.answers[0].body == OK_BODY


def test_late_frames_of_an_abandoned_attempt_are_dropped(h2):
    rig = h2()
    rig.ask()
    rig.server.head(1, 200, [SSE])
    rig.server.data(1, LIMIT_EVENT)
    rig.advance(refused_attempts.DRAIN_S)
    assert rig.keys == [ONE, TWO]
    raw(rig, DataFrame(1, data=b"late"))
    raw(rig, headers(rig, 1, [("x-late", "trailer")], "END_STREAM"))
    raw(rig, RstStreamFrame(1, error_code=INTERNAL_ERROR))
    rig.server.answer(3, 200, OK_BODY, [JSON])
    assert (rig.answers[0].status, rig.answers[0].body) == (200, OK_BODY)
    assert rig.cooling() == {"one"}


def test_late_events_never_reach_the_stream_of_another_attempt(h2):
    """Also those that mitmproxy's own HTTP/2 layer still hands on."""
    rig = h2()
    rig.ask()
    first = next(i for i in rig.layer.streams if i < 0)
    handled = rig.layer.streams[first]
    rig.server.answer(1, 429, LIMIT_BODY, LIMITED_HEADERS)
    assert first not in rig.layer.streams
    second = next(i for i in rig.layer.streams if i < 0)
    assert second != first
    from mitmproxy.proxy.layers.http import ResponseData, ResponseEndOfMessage

    for late in (ResponseData(first, b"late"), ResponseEndOfMessage(first)):
        assert list(handled.handle_event(late)) == []
    rig.server.answer(3, 200, OK_BODY, [JSON])
    assert rig.answers[0].body == OK_BODY


def test_a_limit_with_trailers(h2):
    rig = h2()
    rig.ask()
    rig.server.head(1, 429, LIMITED_HEADERS)
    rig.server.data(1, LIMIT_BODY)
    raw(rig, headers(rig, 1, [("grpc-status", "8")], "END_STREAM"))
    assert rig.keys == [ONE, TWO]
    rig.server.answer(3, 200, OK_BODY, [JSON])
    assert rig.answers[0].status == 200


def test_a_refusal_in_the_head_alone(h2):
    rig = h2()
    rig.ask()
    rig.server.head(1, 429, ["retry-after: 9"], end=True)
    assert rig.keys == [ONE, TWO]


def test_a_stream_the_server_did_not_process_is_sent_again(h2):
    """RFC 9113, 8.7: REFUSED_STREAM means that the request has not run."""
    rig = h2()
    rig.ask()
    rig.server.reset(1, REFUSED_STREAM)
    assert rig.keys == [ONE, ONE]
    rig.server.answer(1, 200, OK_BODY, [JSON])
    assert rig.answers[0].status == 200


def test_a_reset_stream_may_have_run(h2):
    rig = h2()
    rig.ask()
    rig.server.reset(1, INTERNAL_ERROR)
    assert rig.keys == [ONE]
    assert rig.answers[0].status == 502
    assert rig.cooling() == set()


def test_a_reset_after_the_commit_point(h2):
    rig = h2()
    stream_id = rig.ask()
    rig.server.head(1, 200, [SSE])
    rig.server.data(1, DELTA)
    rig.server.reset(1, INTERNAL_ERROR)
    assert rig.reader.of(stream_id).body == DELTA
    assert rig.reader.of(stream_id).reset is not None
    assert rig.keys == [ONE]


def test_goaway_on_a_kept_connection(h2):
    rig = h2()
    rig.ask()
    rig.server.answer(1, 200, OK_BODY, [JSON])
    rig.ask()
    raw(rig, GoAwayFrame(0, last_stream_id=1))
    assert len(rig.servers) == 2
    rig.server.answer(1, 200, OK_BODY, [JSON])
    assert rig.answers[1].body == OK_BODY


def test_one_client_stream_is_cancelled_and_the_others_go_on(h2):
    rig = h2()
    first, second = rig.ask(), rig.ask()
    rig.cancel(first)
    assert rig.requests[0].reset == CANCEL
    assert rig.requests[1].reset is None
    assert rig.in_flight() == 1
    rig.server.answer(3, 200, OK_BODY, [JSON])
    assert rig.reader.of(second).body == OK_BODY
    assert rig.cooling() == set()


def test_a_cancelled_stream_is_not_answered(h2):
    rig = h2()
    stream_id = rig.ask()
    rig.server.head(1, 200, [SSE])
    rig.server.data(1, DELTA)
    rig.cancel(stream_id)
    assert rig.requests[0].reset == CANCEL
    raw(rig, DataFrame(1, data=DONE))
    assert rig.layer.streams == {}
    assert rig.in_flight() == 0


def test_killed_before_the_answer_resets_the_stream(h2):
    rig = h2()
    rig.on["responseheaders"] = lambda flow: flow.kill()
    stream_id = rig.ask()
    rig.server.head(1, 200, [SSE])
    rig.server.data(1, DELTA)
    assert rig.requests[0].reset == CANCEL
    assert rig.in_flight() == 0
    assert all(m.stream_id != stream_id for m in rig.answers)


def test_refused_during_the_upload_resets_the_stream(h2, monkeypatch):
    """Else it would stay open, and count against the server's limit of streams."""
    monkeypatch.setattr(pooled_exchange, "MAX_REPLAYABLE_BYTES", 10)
    rig = h2("one")
    stream_id = rig.ask(b"x" * 50, end=False)
    rig.server.answer(1, 429, LIMIT_BODY, LIMITED_HEADERS)
    assert rig.reader.of(stream_id).status == 429
    assert rig.requests[0].reset == CANCEL


def test_copy_for_inspection_is_bounded(h2, monkeypatch):
    monkeypatch.setattr(flow_view, "MAX_COPY_BYTES", 100)
    rig = h2()
    rig.ask()
    rig.server.head(1, 200, [SSE])
    for _ in range(20):
        rig.server.data(1, DELTA)
    rig.server.data(1, DONE, end=True)
    assert rig.answers[0].body == DELTA * 20 + DONE
    flow = rig.flows[0]
    assert len(flow.response.raw_content) < 100 + len(DELTA)
    assert flow.metadata["pool.truncated"] is True


def test_timers_of_requests_that_are_over_hold_nothing(h2):
    rig = h2()
    rig.ask()
    rig.server.head(1, 200, [SSE])
    rig.server.data(1, DELTA + DONE, end=True)
    assert not any(hasattr(child, "flow") for child in rig.layer.command_sources.values())
    rig.advance(60)
    assert rig.layer.command_sources == {}


def test_a_timer_that_rings_while_a_hook_runs(h2):
    rig = h2()
    rig.ask()
    rig.server.head(1, 200, [SSE])
    rig.held.add("responseheaders")
    rig.server.data(1, DELTA)
    rig.advance(60)
    rig.server.data(1, DONE, end=True)
    rig.held.clear()
    rig.complete()
    assert rig.answers[0].body == DELTA + DONE


def test_body_and_head_of_an_attempt_leave_together(rig_of):
    """One write instead of three: fewer TLS records, the same bytes."""
    rig = rig_of()
    sent = []
    real = rig._sent

    def note(connection, data):
        if connection is not rig.client:
            sent.append(data)
        real(connection, data)

    rig._sent = note
    rig.send(post1())
    assert len(sent) == 1


# -- WebSockets

UPGRADE = [
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
]
ACCEPTED = head1(101, ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: x"])


def frame(text: bytes, *, masked: bool = False, opcode: int = 1) -> bytes:
    head = bytes([0x80 | opcode, len(text) | (0x80 if masked else 0)])
    return head + (b"\x00\x00\x00\x00" if masked else b"") + text


@pytest.fixture
def socket(rig_of):
    def open_(*accounts, **settings):
        rig = rig_of(*accounts, **settings)
        rig.send(post1("/v1/responses", b"", UPGRADE, method="GET"))
        return rig

    yield open_


def opened(rig):
    rig.server.send(ACCEPTED)
    assert rig.answers[-1].status == 101
    return rig


def closed(rig) -> None:
    """mitmproxy forgets a WebSocket with its client connection, not before."""
    rig.leave()
    rig.layer.streams.clear()


def test_a_refused_handshake_is_opened_on_another_account(socket):
    rig = socket()
    rig.server.send(LIMITED)
    assert rig.keys == [ONE, TWO]
    opened(rig)
    rig.send(frame(b"hello", masked=True))
    rig.server.send(frame(b"good day"))
    assert rig.answers[0].body == frame(b"good day")
    # mitmproxy masks what it sends to the server anew.
    assert len(rig.requests[1].body) == len(frame(b"hello", masked=True))
    assert [m.content for m in rig.flows[0].websocket.messages] == [b"hello", b"good day"]
    assert rig.in_flight() == 1
    closed(rig)
    assert rig.in_flight() == 0
    assert rig.servers[-1].closed


def test_the_lease_of_a_socket_ends_when_the_server_closes(socket):
    rig = opened(socket())
    assert rig.in_flight() == 1
    rig.server.close()
    assert rig.in_flight() == 0
    assert rig.client_closed
    closed(rig)


def test_the_lease_of_a_socket_ends_with_its_closing_handshake(socket):
    rig = opened(socket())
    rig.send(frame(b"\x03\xe8", masked=True, opcode=8))
    assert rig.in_flight() == 0
    assert rig.servers[-1].closed
    closed(rig)


def test_messages_can_be_injected(socket):
    from mitmproxy.proxy.layers.websocket import WebSocketMessageInjected
    from mitmproxy.websocket import WebSocketMessage

    rig = opened(socket())
    message = WebSocketMessage(1, False, b"injected", injected=True)
    rig.feed(WebSocketMessageInjected(rig.flows[0], message))
    assert rig.answers[0].body == frame(b"injected")
    closed(rig)


LIMIT_MESSAGE = frame(LIMIT_EVENT.removeprefix(b"data: ").strip())
AGAIN = (1013).to_bytes(2, "big")
CREATE = frame(b'{"type":"response.create"}', masked=True)
CREATED = frame(b'{"type":"response.created"}')
SAID = frame(b'{"type":"response.output_text.delta"}')


def in_its_second_turn(rig):
    """A socket that has answered once stays with its account."""
    rig.send(CREATE)
    rig.server.send(SAID)
    rig.send(CREATE)
    return rig


def test_a_limit_in_the_first_turn_is_replayed_inside_the_socket(socket):
    rig = opened(socket())
    rig.send(CREATE)
    rig.server.send(CREATED)
    # Held until it is known what comes.
    assert rig.answers[0].body == b""
    rig.server.send(LIMIT_MESSAGE + frame(b"\x03\xe9", opcode=8))
    assert rig.keys == [ONE, TWO]
    assert rig.servers[0].closed
    assert rig.in_flight() == 1
    rig.server.send(ACCEPTED)
    rig.server.send(CREATED + SAID)
    assert rig.answers[0].body == CREATED + SAID
    messages = [m.content for m in rig.flows[0].websocket.messages]
    assert messages == [b'{"type":"response.create"}', CREATED[2:], SAID[2:]]
    assert rig.cooling() == {"one"}
    rig.send(frame(b"more", masked=True))
    assert len(rig.requests[1].body) == len(CREATE) + len(frame(b"more", masked=True))
    closed(rig)
    assert rig.in_flight() == 0


def test_an_interim_answer_to_the_handshake_of_a_socket_that_moves(socket):
    rig = opened(socket())
    rig.send(CREATE)
    rig.server.send(LIMIT_MESSAGE)
    rig.server.send(head1(103, ["link: </a.css>"]))
    rig.server.send(ACCEPTED)
    rig.server.send(CREATED + SAID)
    assert rig.answers[0].body == CREATED + SAID
    closed(rig)


def side(kind: ConnectionType) -> Connection:
    deflate = PerMessageDeflate()
    deflate.finalize("permessage-deflate")
    return Connection(kind, [deflate])


def test_each_server_of_a_compressed_socket_has_a_history_of_its_own(rig_of):
    offered = [*UPGRADE, "Sec-WebSocket-Extensions: permessage-deflate"]
    rig = rig_of()
    rig.send(post1("/v1/responses", b"", offered, method="GET"))
    granted = ["Upgrade: websocket", "Connection: Upgrade",
               "Sec-WebSocket-Extensions: permessage-deflate"]  # fmt: skip
    rig.server.send(head1(101, granted))
    client, first, second = (
        side(kind) for kind in (ConnectionType.CLIENT, ConnectionType.SERVER, ConnectionType.SERVER)
    )
    create = '{"type":"response.create","input":"' + "again and again " * 20 + '"}'
    created = '{"type":"response.created","response":{"id":"resp_1"}}'
    limit = LIMIT_MESSAGE[4:] if LIMIT_MESSAGE[1] == 126 else LIMIT_MESSAGE[2:]
    rig.send(client.send(TextMessage(create)))
    first.receive_data(rig.requests[0].body)
    assert [event.data for event in first.events()] == [create]
    rig.server.send(first.send(TextMessage(created)) + first.send(TextMessage(limit.decode())))
    rig.server.send(head1(101, granted))
    second.receive_data(rig.requests[1].body)
    assert [event.data for event in second.events()] == [create]
    delta = '{"type":"response.output_text.delta"}'
    rig.server.send(second.send(TextMessage(created)) + second.send(TextMessage(delta)))
    client.receive_data(rig.answers[0].body)
    assert [event.data for event in client.events()] == [created, delta]
    said = len(rig.requests[1].body)
    rig.send(client.send(TextMessage(create)))
    second.receive_data(rig.requests[1].body[said:])
    assert [event.data for event in second.events()] == [create]
    closed(rig)


def test_what_the_client_says_meanwhile_comes_after(socket):
    rig = opened(socket())
    rig.send(CREATE)
    rig.server.send(LIMIT_MESSAGE)
    rig.send(frame(b"more", masked=True))
    assert rig.requests[1].body == b""
    rig.server.send(ACCEPTED)
    assert len(rig.requests[1].body) == len(CREATE) + len(frame(b"more", masked=True))
    closed(rig)


@pytest.mark.parametrize(
    "handshake",
    [
        http1(503, b"{}", [JSON]),
        LIMITED,
        # Compression that was not promised to the client.
        head1(
            101,
            [
                "Upgrade: websocket",
                "Connection: Upgrade",
                "Sec-WebSocket-Extensions: permessage-deflate",
            ],
        ),
    ],
    ids=["503", "429", "another extension"],
)
def test_a_limit_nobody_takes_over_reaches_the_client_before_the_close(socket, handshake):
    rig = opened(socket())
    rig.send(CREATE)
    rig.server.send(CREATED + LIMIT_MESSAGE)
    rig.server.send(handshake)
    assert rig.answers[0].body == CREATED + LIMIT_MESSAGE + frame(AGAIN, opcode=8)
    assert rig.client_closed
    assert rig.in_flight() == 0
    assert rig.flows[0].websocket.close_code == 1013
    closed(rig)


def test_another_account_that_cannot_be_reached(socket):
    rig = opened(socket())
    rig.send(CREATE)
    rig.server.send(LIMIT_MESSAGE)
    rig.server.close()
    assert rig.answers[0].body == LIMIT_MESSAGE + frame(AGAIN, opcode=8)
    assert rig.in_flight() == 0
    closed(rig)


@pytest.mark.parametrize(
    "what",
    [
        "account_pool.core.websocket_moves:move",
        "account_pool.core.websocket_moves:_another",
        "account_pool.core.websocket_moves:_bench",
        "account_pool.core.decisions:RequestEvents.sent",
        "account_pool.proxy.pooled_exchange:PooledExchange.outgoing",
        "account_pool.proxy.pooled_exchange:PooledExchange.connect",
        "account_pool.proxy.pooled_exchange:PooledExchange.send_attempt",
        "account_pool.proxy.websocket_exchange:WebsocketReplay._side",
        "account_pool.proxy.websocket_exchange:WebsocketReplay._is_accepted",
        "account_pool.proxy.response_reader:ResponseObserver.head",
        "account_pool.core.attempts:Attempts.committed",
    ],
)
def test_an_error_of_ours_while_a_socket_moves(socket, monkeypatch, caplog, what):
    """The provider's refusal reaches the client, the socket ends, and nobody is held."""
    rig = opened(socket())
    rig.send(CREATE)
    rig.server.send(CREATED)
    break_(monkeypatch, what)
    rig.server.send(LIMIT_MESSAGE)
    if not rig.client_closed:
        rig.server.send(ACCEPTED)
    assert rig.answers[0].body == CREATED + LIMIT_MESSAGE + frame(AGAIN, opcode=8)
    assert rig.client_closed
    assert rig.in_flight() == 0
    assert rig.servers[0].closed
    assert "internal error in a WebSocket: RuntimeError at" in caplog.text
    closed(rig)


def test_an_error_of_ours_while_an_answer_is_held(socket, monkeypatch, caplog):
    rig = opened(socket())
    rig.send(CREATE)
    rig.server.send(CREATED)
    break_(monkeypatch, "account_pool.proxy.websocket:WebsocketReader.server_said")
    rig.server.send(SAID)
    # What is held has reached the client.
    assert rig.answers[0].body == CREATED + SAID + frame(AGAIN, opcode=8)
    assert rig.in_flight() == 0
    assert "internal error in a WebSocket: RuntimeError at" in caplog.text
    closed(rig)


def test_an_error_of_ours_in_a_later_turn(socket, monkeypatch, caplog):
    rig = in_its_second_turn(opened(socket()))
    break_(monkeypatch, "account_pool.proxy.http_stream:AttemptStream.to_attempt")
    rig.send(CREATE)
    assert rig.in_flight() == 0
    assert "internal error in a WebSocket: RuntimeError at" in caplog.text
    closed(rig)


def break_(monkeypatch, what: str) -> None:
    """Have a function of ours fail from here on."""
    module, _, path = what.partition(":")
    owner, _, name = path.rpartition(".")

    def broken(*_args, **_kwargs):
        raise RuntimeError("on purpose")

    holder = importlib.import_module(module)
    monkeypatch.setattr(getattr(holder, owner) if owner else holder, name, broken)


def test_the_client_leaves_while_another_account_is_asked(socket):
    rig = opened(socket())
    rig.send(CREATE)
    rig.server.send(LIMIT_MESSAGE)
    assert rig.in_flight() == 1
    rig.leave()
    assert rig.in_flight() == 0
    assert all(server.closed for server in rig.servers)
    closed(rig)


@pytest.mark.parametrize(
    "message",
    [
        b'{"type":"response.create","previous_response_id":"resp_1"}',
        b'{"type":"response.create","conversation":"conv_1"}',
        b'{"type":"session.update"}',
    ],
)
def test_what_cannot_be_said_elsewhere_is_told(socket, message):
    rig = opened(socket())
    rig.send(frame(message, masked=True))
    rig.server.send(LIMIT_MESSAGE)
    assert rig.keys == [ONE]
    assert rig.answers[0].body.startswith(LIMIT_MESSAGE)
    closed(rig)


OTHER_ERROR = frame(b'{"type":"error","status":400,"error":{"type":"invalid_request_error"}}')
NAMED = frame(b'{"type":"response.create","previous_response_id":"resp_1"}', masked=True)


@pytest.mark.parametrize("last", [OTHER_ERROR, frame(b'{"type":"response.incomplete"}')])
def test_a_turn_that_fails_for_other_reasons_is_handed_on_at_once(socket, last):
    rig = opened(socket())
    rig.send(CREATE)
    rig.server.send(CREATED + last)
    assert rig.answers[0].body == CREATED + last
    assert not rig.cooling()
    closed(rig)


def limited_late(rig):
    """A socket whose first turn was answered, and failed then: its account is limited."""
    rig.send(CREATE)
    rig.server.send(SAID + LIMIT_MESSAGE)
    assert rig.answers[0].body == SAID + LIMIT_MESSAGE
    assert rig.cooling() == {"one"}
    assert not rig.client_closed
    return rig


def test_a_limit_after_the_first_delta_sends_the_next_turn_elsewhere(socket):
    rig = limited_late(opened(socket()))
    rig.send(CREATE)
    assert rig.keys == [ONE, TWO]
    assert rig.servers[0].closed
    assert len(rig.requests[0].body) == len(CREATE)
    assert rig.in_flight() == 1
    rig.send(frame(b"more", masked=True))
    rig.server.send(ACCEPTED)
    assert len(rig.requests[1].body) == len(CREATE) + len(frame(b"more", masked=True))
    rig.server.send(CREATED + SAID)
    assert rig.answers[0].body == SAID + LIMIT_MESSAGE + CREATED + SAID
    closed(rig)
    assert rig.in_flight() == 0


def test_what_comes_with_the_next_turn_goes_with_it(socket):
    rig = limited_late(opened(socket()))
    more = frame(b"more", masked=True)
    rig.send(CREATE + more)
    rig.server.send(ACCEPTED)
    assert len(rig.requests[0].body) == len(CREATE)
    assert len(rig.requests[1].body) == len(CREATE + more)
    closed(rig)


def test_a_socket_that_closes_as_its_next_turn_begins(socket):
    rig = limited_late(opened(socket()))
    rig.send(CREATE + frame(b"\x03\xe8", masked=True, opcode=8))
    assert rig.in_flight() == 0
    assert rig.keys == [ONE]
    closed(rig)


def test_a_next_turn_that_nobody_takes_over_closes_the_socket(socket):
    rig = limited_late(opened(socket()))
    rig.send(CREATE)
    rig.server.send(LIMITED)
    assert rig.answers[0].body == SAID + LIMIT_MESSAGE + frame(AGAIN, opcode=8)
    assert rig.in_flight() == 0
    closed(rig)


@pytest.mark.parametrize(
    ("before", "turn"),
    [(b"", NAMED), (frame(b'{"type":"session.update"}', masked=True), CREATE)],
    ids=["names an answer", "the session was changed"],
)
def test_what_only_its_account_knows_stays_there(socket, before, turn):
    rig = limited_late(opened(socket()))
    rig.send(before + turn)
    assert rig.keys == [ONE]
    assert len(rig.requests[0].body) == len(CREATE + before + turn)
    closed(rig)


def test_a_turn_beside_another_that_runs_stays_there(socket):
    rig = opened(socket())
    rig.send(CREATE)
    rig.server.send(SAID)
    rig.cool("one", 600.0)
    rig.send(CREATE)
    assert rig.keys == [ONE]
    closed(rig)


def test_a_first_turn_that_says_nothing_is_held_for_so_long(socket):
    rig = opened(socket())
    rig.send(CREATE)
    rig.server.send(CREATED)
    assert rig.answers[0].body == b""
    rig.advance(5)
    assert rig.answers[0].body == CREATED
    rig.server.send(SAID)
    assert rig.answers[0].body == CREATED + SAID
    closed(rig)


def test_a_socket_that_ends_in_its_first_turn(socket):
    rig = opened(socket())
    rig.send(CREATE)
    rig.server.send(CREATED + frame(b"\x03\xe9", opcode=8))
    assert rig.answers[0].body == CREATED + frame(b"\x03\xe9", opcode=8)
    assert rig.in_flight() == 0
    closed(rig)


@pytest.mark.parametrize("held", [False, True], ids=["at once", "after a hook"])
@pytest.mark.parametrize("more", [b"", b"\x81", b"\x81\x0a", b"\x81\x0ahalf", b"\x01\x04half"])
def test_a_limit_closes_a_socket_also_in_the_middle_of_a_frame(socket, more, held):
    rig = in_its_second_turn(opened(socket()))
    before = len(rig.requests[0].body)
    if held:
        rig.held.add("websocket_message")
    rig.server.send(LIMIT_MESSAGE + more)
    if held:
        assert not rig.client_closed
        rig.server.send(b"whatever")
        rig.held.clear()
        rig.complete()
    # The provider's own words come before the close.
    assert rig.answers[0].body == SAID + LIMIT_MESSAGE + frame(AGAIN, opcode=8)
    mask, code = rig.requests[0].body[before + 2 :][:4], rig.requests[0].body[before + 6 :]
    assert bytes(a ^ b for a, b in zip(mask, code, strict=False)) == AGAIN
    assert rig.client_closed
    assert rig.servers[0].closed
    flow = rig.flows[0]
    assert flow.live is False
    assert (flow.websocket.close_code, flow.websocket.closed_by_client) == (1013, False)
    assert rig.hooks.count("websocket_end") == 1
    assert rig.in_flight() == 0
    assert rig.cooling() == {"one"}
    closed(rig)


def test_a_socket_that_closes_after_a_limit_closes_once(socket):
    rig = in_its_second_turn(opened(socket()))
    rig.server.send(LIMIT_MESSAGE + LIMIT_MESSAGE + frame(b"\x03\xe9", opcode=8))
    told = SAID + LIMIT_MESSAGE + LIMIT_MESSAGE
    assert rig.answers[0].body == told + frame(b"\x03\xe9", opcode=8)
    assert rig.flows[0].websocket.close_code == 1001
    assert rig.hooks.count("websocket_end") == 1
    closed(rig)


def test_each_turn_of_a_socket_counts_with_what_it_took(socket):
    rig = opened(socket("one", websockets="pin"))
    create = frame(b'{"type":"response.create","model":"gpt-6"}', masked=True)
    usage = b'{"input_tokens":12,"output_tokens":3}'
    for _ in range(2):
        rig.send(create)
        rig.server.send(frame(b'{"type":"response.created","response":{"usage":null}}'))
        rig.server.send(frame(b'{"type":"response.output_text.delta","delta":"hi"}'))
        completed = b'{"type":"response.completed","response":{"usage":%s}}' % usage
        rig.server.send(frame(completed))
    rig.send(create)
    closed(rig)
    assert rig.service.usages.totals == {("openai/one", "gpt-6"): Tally(3, 24, 0, 6)}


def test_the_client_leaves_during_the_handshake(socket):
    rig = socket()
    rig.leave()
    assert rig.in_flight() == 0
    assert rig.servers[-1].closed
    assert rig.cooling() == set()


def test_a_handshake_nobody_may_make_is_delivered(socket):
    rig = socket()
    rig.server.send(http1(404, b"{}", [JSON]))
    assert rig.answers[0].status == 404


def test_a_socket_mitmproxy_cannot_serve_gives_its_lease_back(rig_of):
    from tests.proxy.helpers import options_of

    rig = rig_of(options=options_of(websocket=False, rawtcp=False))
    rig.send(post1("/v1/responses", b"", UPGRADE, method="GET"))
    rig.server.send(ACCEPTED)
    assert rig.client_closed
    assert rig.in_flight() == 0


def test_a_raw_tunnel_after_a_101(rig_of):
    from tests.proxy.helpers import options_of

    rig = rig_of(options=options_of(websocket=False, rawtcp=True))
    rig.send(post1("/v1/responses", b"", UPGRADE, method="GET"))
    rig.server.send(ACCEPTED)
    rig.server.send(b"anything")
    rig.send(b"goes")
    assert rig.answers[0].body == b"anything"
    assert rig.requests[0].body == b"goes"
    rig.server.close()
    assert rig.in_flight() == 0
    closed(rig)


# -- mechanics


def test_wakeups_of_others_are_ignored(rig_of):
    from mitmproxy.proxy import commands

    rig = rig_of()
    rig.send(post1())
    handled = rig.layer.streams[1]
    assert list(handled.handle_event(events.Wakeup(commands.RequestWakeup(1)))) == []


def test_a_paused_stream_hears_of_its_client_once(rig_of):
    rig = rig_of("one", limits=Limits(max_wait_s=30))
    rig.cool("one", 20)
    rig.held.add("pool_pause")
    rig.send(post1())
    (pause,) = rig.pauses
    assert not pause.woken.is_set()
    rig.leave()
    assert pause.woken.is_set()
    assert "handle_event" in vars(rig.layer.streams[1])
    rig.complete()
    assert rig.layer.streams == {}
    assert rig.requests == []
    assert rig.hooks[-1] == "error"


def test_json_body_of_every_local_error_is_json(h2):
    rig = h2(peer="192.0.2.1")
    rig.ask()
    assert "error" in json.loads(rig.answers[0].body)
