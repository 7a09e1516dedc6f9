"""Attempts whose connection has gone end, although nobody told that it had."""

from __future__ import annotations

import pytest
from mitmproxy.connection import ConnectionState

from account_pool.core.steps import Limits
from account_pool.proxy.http_layer import OPENING_S, SWEEP_S, TCP_TIMEOUT_S
from tests.proxy.helpers import JSON, OK, OK_BODY, http1, post1

RETRY = Limits(max_wait_s=0.0, retry_broken=True)


def lost(rig, how: str) -> None:
    """What mitmproxy notes of a connection that ended, without the event that tells it."""
    connection = rig.server.connection
    if how != "half closed":
        connection.timestamp_end = rig.clock.wall_now()
    if how != "open":
        connection.state = {
            "half closed": ConnectionState.CAN_WRITE,
            "closed": ConnectionState.CLOSED,
        }[how]


ALL = pytest.mark.parametrize("how", ["open", "half closed", "closed"])


@ALL
@pytest.mark.parametrize("http2", [True, False], ids=["h2", "h1"])
def test_an_attempt_on_it_ends(rig_of, how, http2):
    rig = rig_of(client2=http2, server2=http2)
    rig.ask() if http2 else rig.send(post1())
    lost(rig, how)
    assert rig.in_flight() == 1
    rig.advance(SWEEP_S)
    assert [answer.status for answer in rig.answers] == [502]
    assert rig.in_flight() == 0


@ALL
def test_the_next_request_does_not_go_there(rig_of, how):
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    rig.server.answer(1, 200, OK_BODY, [JSON])
    lost(rig, how)
    rig.ask()
    assert len(rig.servers) == 2
    rig.server.answer(1, 200, OK_BODY, [JSON])
    assert [answer.status for answer in rig.answers] == [200, 200]


def test_an_answer_under_way_is_cut_off(rig_of):
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    rig.server.head(1, 200, ["content-type: text/plain"])
    rig.server.data(1, b"the beginning")
    lost(rig, "half closed")
    rig.advance(SWEEP_S)
    assert rig.answers[0].reset is not None and not rig.answers[0].complete
    assert rig.in_flight() == 0


def test_a_connection_that_does_not_open_is_given_up(rig_of):
    rig = rig_of(client2=True)
    rig.held.add("open")
    rig.ask()
    rig.ask()
    for _ in range(int(OPENING_S / SWEEP_S)):
        rig.advance(SWEEP_S)
    assert rig.answers == []
    rig.advance(SWEEP_S)
    while rig.waiting:  # each is tried once more
        rig.advance(SWEEP_S)
    assert [answer.status for answer in rig.answers] == [502, 502]
    assert rig.in_flight() == 0


def test_nor_does_anybody_wait_for_one_that_nobody_begins_to_open(rig_of):
    """mitmproxy has it wait for its turn."""
    rig = rig_of(client2=True)
    rig.held.add("open")
    rig.ask()
    rig.opened[-1].timestamp_start = None
    for _ in range(int(OPENING_S / SWEEP_S) + 2):
        assert len(rig.opened) == 1
        rig.advance(SWEEP_S)
    assert len(rig.opened) == 2
    rig.held.clear()
    rig.complete("open")
    rig.server.send(OK)
    assert [answer.status for answer in rig.answers] == [200]


def test_an_open_one_is_left_alone(rig_of):
    rig = rig_of()
    rig.send(post1())
    for _ in range(20):
        rig.advance(SWEEP_S)
    rig.server.send(OK)
    assert [answer.status for answer in rig.answers] == [200]


def test_one_timer_at_a_time_and_none_without_attempts(rig_of):
    rig = rig_of(client2=True, server2=True, gate_s=SWEEP_S / 2)
    for number in (1, 3, 5):
        rig.ask()
        rig.server.answer(number, 200, OK_BODY, [JSON])
    assert [timer.delay for _, timer in rig.timers if timer.delay == SWEEP_S] == [SWEEP_S]
    rig.advance(SWEEP_S)
    assert rig.timers == []


def test_streams_that_broke_together_share_a_fresh_connection(rig_of):
    """mitmproxy opens five at most: who needs a sixth would wait for as long as they live."""
    rig = rig_of(client2=True, server2=True, limits=RETRY)
    asked = [rig.ask() for _ in range(9)]
    rig.server.close()
    assert len(rig.servers) == 2
    for message in list(rig.server.requests):
        rig.server.answer(message.stream_id, 200, OK_BODY, [JSON])
    assert {m.stream_id: m.status for m in rig.answers} == dict.fromkeys(asked, 200)


def test_a_request_that_broke_on_the_fresh_one_too_gets_another(rig_of):
    rig = rig_of(limits=RETRY)
    rig.send(post1())
    rig.server.send(OK)
    rig.send(post1())
    rig.server.close()
    rig.server.close()
    rig.server.send(http1(200, OK_BODY, [JSON]))
    assert len(rig.servers) == 3
    assert [answer.status for answer in rig.answers] == [200, 200]


@pytest.mark.parametrize("http2", [True, False], ids=["h2", "h1"])
def test_silence_ends_in_a_504(rig_of, http2):
    rig = rig_of(client2=http2, server2=http2)
    rig.ask() if http2 else rig.send(post1())
    for _ in range(int(TCP_TIMEOUT_S / SWEEP_S) - 1):
        rig.advance(SWEEP_S)
    assert rig.answers == []
    rig.advance(SWEEP_S)
    assert [answer.status for answer in rig.answers] == [504]
    assert rig.in_flight() == 0
    assert rig.server.closed == 1 or rig.requests[0].reset is not None


def test_an_answer_that_comes_slowly_is_not_silent(rig_of):
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    rig.server.head(1, 200, ["content-type: text/plain"])
    for _ in range(int(TCP_TIMEOUT_S / 100) * 3):
        for _ in range(int(100 / SWEEP_S)):
            rig.advance(SWEEP_S)
        rig.server.data(1, b"more")
    rig.server.data(1, b"", end=True)
    assert rig.answers[0].complete
