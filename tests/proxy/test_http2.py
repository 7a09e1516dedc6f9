"""HTTP/2 connections to a server: how they end, how they are known to live, who waits for them."""

from __future__ import annotations

import logging
import sys

import h2.connection
import h2.settings
import pytest
from h2.exceptions import ProtocolError
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import events
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers import http as http_layers

import account_pool.proxy
from account_pool.core.steps import TRIES, Broken, Limits
from account_pool.proxy import http2, http_layer
from account_pool.proxy.events import Pause, PoolPauseHook
from account_pool.proxy.http2 import DEAD_S, PROOF_S, QUIET_S, STUCK_S
from account_pool.proxy.http_layer import SWEEP_S
from tests.proxy.helpers import (
    DELTA,
    JSON,
    LIMIT_BODY,
    LIMITED_HEADERS,
    OK,
    OK_BODY,
    SSE,
    ReadyTls,
    post1,
    secret,
)

ONE, TWO = secret("one"), secret("two")
MAX_STREAMS = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
BROKE, INTERNAL_ERROR, REFUSED_STREAM = 502, 2, 7


@pytest.fixture
def rig(rig_of):
    return rig_of(client2=True, server2=True)


def goaway(server, last: int, code: int = 0) -> None:
    server.send(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())


def ok(server, *numbers: int) -> None:
    for number in numbers:
        server.answer(number, 200, OK_BODY, [JSON])


def statuses(rig) -> list[int]:
    return [answer.status for answer in sorted(rig.answers, key=lambda a: a.stream_id)]


def limit_streams(rig, most: int) -> None:
    """Ask once, so that there is a connection, and have it take *most* streams at a time."""
    rig.ask()
    rig.server.reader.h2.update_settings({MAX_STREAMS: most})
    rig.server.flush()
    ok(rig.server, 1)


# -- a server that goes away


def test_what_it_has_begun_is_answered_and_the_rest_is_sent_again(rig):
    for _ in range(4):
        rig.ask()
    goaway(rig.servers[0], 3)
    assert len(rig.servers) == 2
    ok(rig.servers[1], 1, 3)
    ok(rig.servers[0], 3, 1)
    assert statuses(rig) == [200] * 4
    assert rig.servers[0].closed == 1
    assert rig.keys == [ONE] * 6


def test_it_takes_no_new_requests(rig):
    rig.ask()
    goaway(rig.servers[0], 1)
    rig.ask()
    assert len(rig.servers) == 2
    assert [m.stream_id for m in rig.servers[0].requests] == [1]
    ok(rig.servers[1], 1)
    ok(rig.servers[0], 1)
    assert statuses(rig) == [200, 200]


def test_an_idle_one_is_closed(rig):
    rig.ask()
    ok(rig.server, 1)
    goaway(rig.server, 1)
    assert rig.server.closed == 1
    rig.ask()
    ok(rig.server, 1)
    assert statuses(rig) == [200, 200]


def test_announced_first_and_counted_later(rig):
    """Servers say 2^31-1 first, and a round trip later what they have really begun."""
    for _ in range(3):
        rig.ask()
    goaway(rig.servers[0], 2**31 - 1)
    assert len(rig.servers) == 1
    ok(rig.servers[0], 1)
    goaway(rig.servers[0], 3)
    ok(rig.servers[1], 1)
    ok(rig.servers[0], 3)
    assert statuses(rig) == [200] * 3
    assert rig.servers[0].closed == 1


def test_the_last_id_never_grows(rig):
    for _ in range(3):
        rig.ask()
    goaway(rig.servers[0], 1)
    goaway(rig.servers[0], 5)
    goaway(rig.servers[0], 1)
    assert len(rig.servers[1].requests) == 2
    ok(rig.servers[0], 1)
    ok(rig.servers[1], 1, 3)
    assert statuses(rig) == [200] * 3


@pytest.mark.parametrize("size", [1, 5, 16])
def test_in_pieces_between_the_frames_of_an_answer(rig, size):
    for _ in range(3):
        rig.ask()
    peer = rig.servers[0].reader.h2
    peer.send_headers(1, [(":status", "200"), ("content-type", "application/json")])
    peer.send_data(1, OK_BODY[:9])
    data = peer.data_to_send() + GoAwayFrame(0, last_stream_id=1).serialize()
    peer.send_data(1, OK_BODY[9:], end_stream=True)
    data += peer.data_to_send()
    server = rig.servers[0]
    for start in range(0, len(data), size):
        server.send(data[start : start + size])
    ok(rig.servers[1], 1, 3)
    assert statuses(rig) == [200] * 3
    assert rig.answers[0].body == OK_BODY
    assert server.closed == 1


def test_the_answer_and_the_end_come_together(rig):
    rig.ask()
    rig.ask()
    peer = rig.servers[0].reader.h2
    peer.send_headers(1, [(":status", "200"), ("content-type", "application/json")])
    peer.send_data(1, OK_BODY, end_stream=True)
    rig.servers[0].send(GoAwayFrame(0, last_stream_id=1).serialize() + peer.data_to_send())
    ok(rig.servers[1], 1)
    assert statuses(rig) == [200, 200]


def test_whoever_is_left_in_one_piece_with_other_answers_does_not_take_them_along(rig):
    """For h2 they are over, whose ends it has read."""
    for _ in range(3):
        rig.ask()
    goaway(rig.server, 2**31 - 1)
    peer = rig.server.reader.h2
    peer.send_headers(1, [(":status", "999")])
    for number in (3, 5):
        peer.send_headers(number, [(":status", "200"), ("content-type", "application/json")])
        peer.send_data(number, OK_BODY, end_stream=True)
    rig.server.send(peer.data_to_send())
    assert statuses(rig) == [BROKE, 200, 200]
    assert rig.server.closed == 1


def test_a_late_reset_of_what_did_not_run_changes_nothing(rig):
    rig.ask()
    rig.ask()
    frames = [GoAwayFrame(0, last_stream_id=1), RstStreamFrame(3, error_code=REFUSED_STREAM)]
    rig.servers[0].send(b"".join(frame.serialize() for frame in frames))
    ok(rig.servers[1], 1)
    ok(rig.servers[0], 1)
    assert statuses(rig) == [200, 200]


@pytest.mark.parametrize("code", [0, INTERNAL_ERROR], ids=["in order", "an error"])
def test_it_closes_with_answers_owed(rig, code):
    """What was begun may have run; what was not, did not."""
    rig.ask()
    ok(rig.server, 1)
    rig.ask()
    rig.ask()
    goaway(rig.servers[0], 3, code)
    rig.servers[0].close()
    ok(rig.servers[1], 1)
    assert statuses(rig) == [200, BROKE, 200]


def test_after_an_error_it_has_to_close(rig):
    rig.ask()
    goaway(rig.server, 1, INTERNAL_ERROR)
    rig.advance(DEAD_S)
    assert statuses(rig) == [BROKE]
    assert rig.server.closed == 1


def test_the_last_client_leaves_a_server_that_goes_away(rig):
    first = rig.ask()
    rig.server.head(1, 200, [SSE])
    goaway(rig.server, 1)
    rig.cancel(first)
    assert rig.server.closed == 1
    assert rig.in_flight() == 0


def test_an_answer_under_way_goes_on_after_an_error(rig):
    rig.ask()
    goaway(rig.server, 1, INTERNAL_ERROR)
    ok(rig.server, 1)
    assert statuses(rig) == [200]


def test_what_waits_for_a_free_stream_is_sent_elsewhere(rig):
    limit_streams(rig, 1)
    rig.ask()
    rig.ask()
    assert [m.stream_id for m in rig.servers[0].requests] == [1, 3]
    goaway(rig.servers[0], 3)
    ok(rig.servers[1], 1)
    ok(rig.servers[0], 3)
    assert statuses(rig) == [200] * 3


# -- what is no HTTP/2


def answered(server, number: int, status: int = 200, body: bytes = OK_BODY) -> bytes:
    """Return the bytes of an answer, not sent yet."""
    peer = server.reader.h2
    headers = [JSON] if status == 200 else LIMITED_HEADERS
    pairs = [(":status", str(status)), *(tuple(line.split(": ")) for line in headers)]
    peer.send_headers(number, pairs)
    peer.send_data(number, body, end_stream=True)
    return peer.data_to_send()


#: The connection ends with each of these.
WRONG = {
    "an empty PING": b"\0\0\0\6\0\0\0\0\0",
    "settings there are not": SettingsFrame(0, settings={5: 1}).serialize(),
    "a window for nobody": WindowUpdateFrame(99, window_increment=1).serialize(),
    "a push": PushPromiseFrame(1, promised_stream_id=2, flags=["END_HEADERS"]).serialize(),
    "headers that cannot be unpacked": HeadersFrame(
        3, data=b"\xff" * 9, flags=["END_HEADERS"]
    ).serialize(),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_came_before_a_wrong_frame_counts(rig, wrong):
    """In one piece with it: an answer, a limit, and the beginning of another answer."""
    for _ in range(3):
        rig.ask()
    server = rig.server
    data = answered(server, 1) + answered(server, 3, 429, LIMIT_BODY)
    server.reader.h2.send_headers(5, [(":status", "200"), ("content-type", "text/plain")])
    server.reader.h2.send_data(5, b"begun")
    server.send(data + server.reader.h2.data_to_send() + wrong)
    assert server.closed == 1
    assert rig.keys == [ONE] * 3 + [TWO]
    ok(rig.servers[1], 1)
    assert statuses(rig) == [200] * 3
    assert [answer.complete for answer in sorted(rig.answers, key=lambda a: a.stream_id)] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("how", ["limit", "good", "gone", "invalid"])
def test_what_waits_for_a_free_stream_does_not_follow_a_wrong_frame(rig, wrong, how):
    """The answer before the frame makes room for it, on a connection that is at its end."""
    limit_streams(rig, 1)
    rig.ask()
    rig.ask()
    server = rig.server
    status = {"good": 200, "invalid": 700}.get(how, 429)
    data = answered(server, 3, status, OK_BODY if how == "good" else LIMIT_BODY)
    if how == "gone":
        data = RstStreamFrame(3, error_code=INTERNAL_ERROR).serialize()
    server.send(data + wrong)
    assert server.closed == 1
    for number in range(1, 2 + (how == "limit")):
        ok(rig.servers[1], 2 * number - 1)
    assert statuses(rig)[-1] == 200


@pytest.mark.parametrize("closed", [False, True])
def test_a_request_that_h2_does_not_take_goes_elsewhere(rig, monkeypatch, closed):
    """Whatever the reason is: nobody waits for ever on a connection that takes no more."""
    rig.ask()
    ok(rig.server, 1)
    rig.ask()
    ours = next(iter(rig.layer.http2.values())).h2_conn

    def refuses(*_, **__):
        if closed:
            ours.state_machine.state = h2.connection.ConnectionState.CLOSED
        raise ProtocolError("not now")

    monkeypatch.setattr(ours, "send_headers", refuses)
    rig.ask()
    assert rig.servers[0].closed == 1
    ok(rig.servers[1], 1)
    rig.ask()
    ok(rig.servers[1], 3)
    assert statuses(rig) == [200, BROKE, 200, 200]


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_was_begun_when_a_wrong_frame_came_is_not_sent_twice(rig, wrong):
    """The connection was kept, but it is not the server that closed it."""
    rig.ask()
    ok(rig.server, 1)
    rig.ask()
    rig.server.send(wrong)
    assert statuses(rig) == [200, BROKE]
    assert rig.keys == [ONE] * 2


#: h2 4.1 takes some of the others, and ends the connection for some.
MALFORMED = {
    "too short": ("content-length", "1000"),
    "too long": ("content-length", "1"),
    "connection": ("connection", "close"),
    "chunked": ("transfer-encoding", "chunked"),
    "upper case": ("X-Up", "1"),
    "no name": ("", "1"),
    "status twice": (":status", "200"),
}


def malformed(server, number: int, status: int, how: str) -> bytes:
    body = LIMIT_BODY if status == 429 else OK_BODY
    block = server.reader.h2.encoder.encode([(":status", str(status)), MALFORMED[how]])
    head = HeadersFrame(number, data=block, flags=["END_HEADERS"])
    return head.serialize() + DataFrame(number, data=body, flags=["END_STREAM"]).serialize()


@pytest.mark.parametrize("how", MALFORMED)
def test_a_malformed_answer_ends_no_other(rig, how):
    for _ in range(3):
        rig.ask()
    server = rig.server
    server.send(answered(server, 1) + malformed(server, 3, 200, how))
    ok(server, 5)
    rig.ask()
    ok(server, 7)
    assert server.closed == 0
    assert [a.status for a in rig.answers if a.stream_id != 3] == [200] * 3
    assert all(a.complete for a in rig.answers if a.stream_id != 3)
    broken = next(a for a in rig.answers if a.stream_id == 3)
    assert broken.status == BROKE or broken.reset is not None
    assert rig.keys == [ONE] * 4


@pytest.mark.parametrize("how", ["too short", "too long"])
def test_a_limit_of_another_length_than_announced_is_one(rig, how):
    rig.ask()
    rig.server.send(malformed(rig.server, 1, 429, how))
    assert rig.keys == [ONE, TWO]
    ok(rig.server, 3)
    assert statuses(rig) == [200]


# -- a server that refuses streams


def test_one_that_refuses_again_and_again_is_asked_on_a_fresh_connection_each_time(rig):
    rig.ask()
    for number in range(TRIES[Broken.STALE] - 1):
        assert len(rig.servers) == number + 1
        rig.server.reset(1, REFUSED_STREAM)
    ok(rig.server, 1)
    assert statuses(rig) == [200]
    assert rig.keys == [ONE] * TRIES[Broken.STALE]
    assert [server.closed for server in rig.servers] == [1] * 5 + [0]


def test_and_is_given_up(rig):
    rig.ask()
    for _ in range(TRIES[Broken.STALE]):
        rig.server.reset(1, REFUSED_STREAM)
    assert statuses(rig) == [BROKE]
    assert [server.closed for server in rig.servers] == [1] * TRIES[Broken.STALE]
    assert rig.in_flight() == 0


def test_what_runs_beside_it_goes_on_and_nothing_new_comes(rig):
    rig.ask()
    rig.ask()
    rig.servers[0].reset(3, REFUSED_STREAM)
    rig.ask()
    assert [m.stream_id for m in rig.servers[0].requests] == [1, 3]
    assert rig.servers[0].closed == 0
    ok(rig.servers[0], 1)
    assert rig.servers[0].closed == 1
    ok(rig.servers[1], 1, 3)
    assert statuses(rig) == [200] * 3


WRONG_BODY = b'{"error":{"message":"no such field","type":"invalid_request_error"}}'


def short(server, number: int, status: int, how: str) -> None:
    """Announce more than is sent, and end with a block of headers."""
    length = [("content-length", str(len(LIMIT_BODY)))]
    peer = server.reader.h2
    peer.send_headers(number, [(":status", str(status)), *length], end_stream=how == "no body")
    if how == "a part, and trailers":
        peer.send_data(number, LIMIT_BODY[:20])
        peer.send_headers(number, [("x-sum", "1")], end_stream=True)
    server.flush()


SHORT = pytest.mark.parametrize("how", ["no body", "a part, and trailers"])


@SHORT
@pytest.mark.parametrize("client2", [True, False])
def test_a_body_shorter_than_announced_is_not_waited_for(rig_of, client2, how):
    """A client over HTTP/1.1 would wait for the rest of it."""
    rig = rig_of(client2=client2, server2=True)
    rig.ask() if client2 else rig.send(post1())
    short(rig.server, 1, 200, how)
    said = rig.answers[0]
    assert said.status == BROKE or said.reset is not None or rig.client_closed
    assert rig.server.closed == 0


@SHORT
def test_a_limit_shorter_than_announced_is_one(rig, how):
    rig.ask()
    short(rig.server, 1, 429, how)
    assert rig.keys == [ONE, TWO]
    ok(rig.server, 3)
    assert statuses(rig) == [200]


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 304), ("HEAD", 304)])
def test_the_length_of_a_body_that_is_not_sent(rig_of, method, status):
    rig = rig_of(server2=True)
    rig.send(post1("/v1/models", b"", method=method))
    rig.server.head(1, status, ["content-length: 100"], end=True)
    assert (rig.answers[0].status, rig.answers[0].get("content-length")) == (status, "100")


@pytest.mark.parametrize("server2", [True, False])
@pytest.mark.parametrize("streamed", [True, False])
def test_trailers_of_a_request_go_where_they_can(rig_of, monkeypatch, server2, streamed):
    if streamed:
        monkeypatch.setattr("account_pool.proxy.pooled_exchange.MAX_REPLAYABLE_BYTES", 10)
    rig = rig_of(client2=True, server2=server2)
    number = rig.ask(end=False)
    rig.reader.h2.send_headers(number, [("x-sum", "1")], end_stream=True)
    rig.flush()
    assert rig.requests[0].complete
    ok(rig.server, 1) if server2 else rig.server.send(OK)
    assert rig.answers[0].body == OK_BODY


@pytest.mark.parametrize("client2", [True, False])
@pytest.mark.parametrize(("status", "kind"), [(200, JSON), (200, SSE), (200, "x: y"), (422, JSON)])
def test_trailers_of_an_answer_go_where_they_can(rig_of, client2, status, kind):
    rig = rig_of(client2=client2, server2=True)
    rig.ask() if client2 else rig.send(post1())
    body = DELTA if kind == SSE else WRONG_BODY if status == 422 else OK_BODY
    rig.server.head(1, status, [kind, f"content-length: {len(body)}"])
    rig.server.data(1, body)
    rig.server.reader.h2.send_headers(1, [("x-sum", "1")], end_stream=True)
    rig.server.flush()
    said = rig.answers[0]
    assert (said.status, said.body, said.complete) == (status, body, True)


# -- who waits for MAX_CONCURRENT_STREAMS


def test_a_connection_that_ends_tells_who_waits(rig):
    limit_streams(rig, 1)
    rig.clock.advance(1)
    rig.ask()
    rig.clock.advance(1)
    rig.ask()
    rig.servers[0].close()
    ok(rig.servers[1], 1)
    assert statuses(rig) == [200, BROKE, 200]


def test_whoever_waits_behind_a_silent_one_goes_elsewhere(rig):
    limit_streams(rig, 1)
    for _ in range(3):
        rig.ask()
    rig.advance(STUCK_S + SWEEP_S)
    stuck, other = rig.servers
    ok(other, 1, 3)
    rig.ask()
    ok(other, 5)
    ok(stuck, 3)
    rig.ask()  # it lives again
    ok(stuck, 5)
    assert statuses(rig) == [200] * 6


def test_whoever_waits_behind_one_that_speaks_waits(rig):
    limit_streams(rig, 1)
    rig.ask()
    rig.ask()
    rig.server.head(3, 200, [SSE])
    for _ in range(5):
        rig.advance(SWEEP_S)
        rig.server.data(3, DELTA)
    rig.server.data(3, b"", end=True)
    ok(rig.server, 5)
    assert len(rig.servers) == 1
    assert statuses(rig) == [200] * 3


def test_a_client_that_left_is_not_sent(rig):
    limit_streams(rig, 1)
    rig.ask()
    waits = rig.ask()
    rig.cancel(waits)
    ok(rig.server, 3)
    assert [m.stream_id for m in rig.server.requests] == [1, 3]
    assert rig.in_flight() == 0


def test_an_account_that_was_refused_gets_no_more_of_them(rig):
    limit_streams(rig, 2)
    for _ in range(4):
        rig.ask()
    rig.server.answer(3, 429, LIMIT_BODY, LIMITED_HEADERS)
    assert rig.keys == [ONE] * 3 + [TWO]
    for number in (5, 7, 9, 11):
        ok(rig.server, number)
    assert statuses(rig) == [200] * 5
    assert rig.keys == [ONE] * 3 + [TWO] * 3


def test_one_refused_elsewhere_meanwhile_is_noticed_when_its_turn_comes(rig):
    limit_streams(rig, 1)
    rig.ask()
    rig.ask()
    rig.cool("one", 60)
    ok(rig.server, 3)
    assert rig.keys == [ONE, ONE, TWO]
    ok(rig.server, 5)
    assert statuses(rig) == [200] * 3


def test_those_behind_one_that_does_not_go_have_their_turn(rig_of):
    rig = rig_of("one", client2=True, server2=True)
    limit_streams(rig, 1)
    for _ in range(3):
        rig.ask()
    rig.cool("one", 60)
    ok(rig.server, 3)
    assert statuses(rig) == [200, 200, 429, 429]


def test_all_that_there_is_room_for_go_at_once(rig):
    limit_streams(rig, 1)
    for _ in range(4):
        rig.ask()
    assert [m.stream_id for m in rig.server.requests] == [1, 3]
    rig.server.reader.h2.update_settings({MAX_STREAMS: 3})
    rig.server.flush()
    assert [m.stream_id for m in rig.server.requests] == [1, 3, 5, 7]
    ok(rig.server, 3, 5, 7, 9)
    assert statuses(rig) == [200] * 5


# -- a client that leaves


def test_one_that_leaves_in_one_go_with_its_request_has_left(rig, monkeypatch):
    with monkeypatch.context() as held:
        held.setattr(rig, "flush", lambda: None)
        rig.reader.h2.reset_stream(rig.ask(), 8)
    rig.flush()
    assert rig.requests == []
    assert rig.in_flight() == 0
    rig.ask()
    ok(rig.server, 1)
    assert statuses(rig) == [200]


def test_one_that_leaves_what_is_over_changes_nothing(rig):
    stream = rig.ask()
    peer = rig.server.reader.h2
    peer.send_headers(1, [(":status", "200"), ("content-type", "application/json")])
    peer.send_data(1, OK_BODY, end_stream=True)
    rig.server.send(peer.data_to_send())
    rig.send(RstStreamFrame(stream, error_code=8).serialize())
    rig.ask()
    ok(rig.server, 3)
    assert statuses(rig) == [200, 200]


# -- is it alive?


def idle(rig) -> None:
    rig.ask()
    ok(rig.server, 1)
    rig.clock.advance(QUIET_S + 1)


def deaf(rig) -> None:
    """Nothing gets through to the server any more, nor back."""
    rig.server.reader.feed = lambda _data: None


def test_a_quiet_one_is_asked_first(rig):
    idle(rig)
    rig.ask()
    assert len(rig.servers) == 1
    ok(rig.server, 3)
    assert statuses(rig) == [200, 200]


def test_a_dead_one_is_left_before_the_request_does(rig):
    idle(rig)
    deaf(rig)
    rig.ask()
    rig.advance(PROOF_S)
    assert len(rig.servers) == 2
    assert rig.servers[0].closed == 1
    ok(rig.servers[1], 1)
    assert statuses(rig) == [200, 200]
    assert rig.keys == [ONE, ONE]


def test_after_an_attempt_without_a_byte_the_next_one_opens_another(rig):
    rig.ask()
    ok(rig.server, 1)
    deaf(rig)
    second = rig.ask()
    rig.cancel(second)
    rig.ask()
    assert len(rig.servers) == 2
    ok(rig.servers[1], 1)
    assert statuses(rig)[-1] == 200
    rig.advance(DEAD_S)
    assert rig.servers[0].closed == 1


def test_one_that_answers_the_ping_is_used_again(rig):
    rig.ask()
    ok(rig.server, 1)
    second = rig.ask()
    rig.cancel(second)
    rig.ask()
    assert len(rig.servers) == 1
    ok(rig.server, 5)
    assert rig.answers[-1].status == 200


def test_a_client_that_had_its_first_bytes_is_no_reason_to_doubt(rig):
    rig.ask()
    rig.server.head(1, 200, [SSE])
    deaf(rig)
    rig.cancel(1)
    assert rig.server.connection.state is ConnectionState.OPEN


def test_requests_on_a_dead_one_end(rig):
    rig.ask()
    ok(rig.server, 1)
    deaf(rig)
    rig.ask()
    third = rig.ask()
    rig.cancel(third)
    rig.advance(DEAD_S)
    assert [a.status for a in rig.answers] == [200, 504]
    assert rig.in_flight() == 0


def test_a_keepalive_ping_of_mitmproxy_must_be_answered(rig_of):
    rig = rig_of(client2=True, server2=True)
    rig.context.options.update(http2_ping_keepalive=58)
    rig.ask()
    client = rig.layer.http2[rig.server.connection]
    deaf(rig)
    rig.clock.advance(1)
    client.last_activity -= 100
    rig.layer.command_sources[timer := http_layer.commands.RequestWakeup(58)] = (
        rig.layer.connections[rig.server.connection]
    )
    rig.feed(events.Wakeup(timer))
    rig.advance(DEAD_S)
    assert statuses(rig) == [504]


def test_timers_that_are_over_are_not_taken_for_those_of_mitmproxy(rig):
    """mitmproxy asks for another one at each: they would grow in number for ever."""
    for number in (1, 3, 5):
        rig.ask()
        ok(rig.server, number)
        rig.clock.advance(QUIET_S + 1)
    for _ in range(3):
        rig.advance(DEAD_S)
    assert rig.timers == []


def test_silence_is_tried_again_where_the_user_wants_that(rig_of):
    rig = rig_of(client2=True, server2=True, limits=Limits(max_wait_s=0.0, retry_broken=True))
    rig.ask()
    other = rig.ask()
    deaf(rig)
    rig.cancel(other)
    rig.advance(DEAD_S)
    ok(rig.servers[1], 1)
    assert [a.status for a in rig.answers] == [200]


# -- from the beginning


class Agreed(ReadyTls):
    """A handshake that has agreed on a protocol, and still waits for a hook."""

    def start_handshake(self) -> CommandGenerator[None]:
        self.conn.alpn = b"h2"
        self.hook = PoolPauseHook(Pause("handshake"))
        yield self.hook
        yield from super().start_handshake()


def test_a_request_that_comes_while_the_connection_opens_changes_nothing(rig_of, monkeypatch):
    monkeypatch.setattr(http_layers.tls, "ServerTLSLayer", Agreed)
    rig = rig_of(client2=True, server2=True)
    rig.held.add("pool_pause")
    rig.ask()
    rig.ask()
    rig.held.clear()
    rig.complete("pool_pause")
    assert len(rig.server.requests) == 2
    goaway(rig.servers[0], 1)
    ok(rig.servers[1], 1)
    ok(rig.servers[0], 1)
    assert statuses(rig) == [200, 200]


def test_a_table_of_headers_that_shrinks_twice_before_the_next_request(rig):
    """The server ends a connection that goes on with the larger one (RFC 7541, section 4.2)."""
    rig.ask()
    ok(rig.server, 1)
    for _ in range(2):
        rig.server.reader.h2.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0})
        rig.server.flush()
    rig.ask()
    ok(rig.server, 3)
    assert statuses(rig) == [200, 200]


# -- where it stands on private parts


def test_ours_is_used_here():
    assert http_layer.own_http(2) is http2
    assert http_layer._HTTP2 is http2


def test_a_private_part_is_gone(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.delitem(sys.modules, "account_pool.proxy.http2")
    monkeypatch.delattr(account_pool.proxy, "http2")
    monkeypatch.setitem(sys.modules, "mitmproxy.proxy.layers.http._http2", None)
    assert http_layer.own_http(2) is None
    assert "mitmproxy's own HTTP/2 is used (ModuleNotFoundError)" in caplog.text


@pytest.mark.parametrize("name", ["goaway", "_going_away", "_outgoing", "receive_frame"])
def test_a_private_part_behaves_otherwise(monkeypatch, name):
    def broken(*_args: object) -> None:
        raise TypeError("takes another argument now")

    monkeypatch.setattr(http2.PoolHttp2Client, name, broken)
    assert http_layer.own_http(2) is None


def test_requests_are_served_without_it(rig_of, monkeypatch):
    monkeypatch.setattr(http_layer, "_HTTP2", None)
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    ok(rig.server, 1)
    assert statuses(rig) == [200]
    assert rig.layer.http2 == {}
