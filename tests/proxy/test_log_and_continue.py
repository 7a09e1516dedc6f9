"""Whatever fails in an observer, the client gets its response and the lease comes back."""

from __future__ import annotations

import logging

import pytest

from account_pool.core import headroom_parsing, sessions, usage
from account_pool.core.instruments import Measured
from account_pool.proxy import flow_view, response_reader
from account_pool.proxy.flow_view import AttemptTrail
from account_pool.proxy.response_reader import ResponseReader
from account_pool.supervision import LogAndContinue
from tests.proxy.helpers import (
    CHUNKED,
    DELTA,
    DONE,
    LIMITED,
    OK,
    OK_BODY,
    SSE,
    chunk,
    head1,
    post1,
    service_of,
)

STREAM = head1(200, [SSE, CHUNKED]) + chunk(DELTA) + chunk(DONE) + b"0\r\n\r\n"
#: Every observer of a request, by owner and name.
OBSERVERS = [
    (response_reader.ResponseObserver, "_check_clock"),
    (response_reader.ResponseObserver, "_learn_owner"),
    (response_reader.ResponseObserver, "_learn_tokens"),
    (response_reader.ResponseObserver, "events"),
    (headroom_parsing, "from_headers"),
    (sessions.Pins, "remember"),
    (response_reader.Refusals, "remember"),
    (ResponseReader, "ended"),
    (usage.Usages, "count"),
    (Measured, "ended"),
    (AttemptTrail, "refused"),
    (AttemptTrail, "replayed"),
    (AttemptTrail, "delivered"),
    (AttemptTrail, "answered"),
    (AttemptTrail, "ended"),
    (flow_view, "comment"),
]


def fails(*_args, **_kwargs):
    raise ValueError("sk-fake-in-the-text")


@pytest.fixture(
    params=OBSERVERS, ids=lambda param: f"{param[0].__name__.split('.')[-1]}.{param[1]}"
)
def broken(request, monkeypatch, caplog):
    """One of them fails whenever it is called; the log must not quote the error."""
    monkeypatch.setattr(*request.param, fails)
    yield
    assert "sk-fake" not in caplog.text


def at_rest(rig):
    return all(state.in_flight == 0 for state in rig.service.pool.accounts)


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("good", [OK, STREAM], ids=["document", "stream"])
def test_a_replayed_request_is_answered(rig_of, good):
    rig = rig_of()
    rig.service.show = lambda make: make()
    rig.send(post1())
    rig.server.send(LIMITED)
    rig.server.send(good)
    (answer,) = rig.answers
    assert (answer.status, answer.complete) == (200, True)
    assert answer.body == (OK_BODY if good is OK else DELTA + DONE)
    assert at_rest(rig)


@pytest.mark.usefixtures("broken")
def test_a_refusal_is_delivered(rig_of):
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(LIMITED)
    rig.send(post1())
    assert [(answer.status, answer.complete) for answer in rig.answers] == [(429, True)] * 2
    assert at_rest(rig)


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("sent", [b"", STREAM[:20], STREAM[:-7], LIMITED[:-1]])
def test_a_client_may_leave(rig_of, sent):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(sent)
    rig.leave()
    assert at_rest(rig)


def test_a_listener_of_decisions_fails(rig_of, clock, caplog):
    served_by = service_of("one", "two", clock=clock)
    served_by.pool.decisions.subscribe(fails)
    rig = rig_of(service=served_by)
    for _ in range(2):
        rig.send(post1())
        rig.server.send(LIMITED if len(rig.requests) == 1 else OK)
    rig.server.send(OK)
    assert rig.answers[0].status == 200
    assert "ValueError at" in caplog.text
    assert "sk-fake" not in caplog.text


def test_each_place_is_told_once(caplog):
    log_and_continue = LogAndContinue()
    for _ in range(3):
        with log_and_continue:
            fails()
    with log_and_continue:
        int("x")
    assert [r.levelno for r in caplog.records] == [logging.ERROR] * 2


def test_what_ends_the_process_is_not_held_up():
    with pytest.raises(KeyboardInterrupt), LogAndContinue():
        raise KeyboardInterrupt
