"""Every lease comes back exactly once, whenever the client leaves; nobody is blamed."""

from __future__ import annotations

import random

import pytest
from mitmproxy.connection import ConnectionState

from account_pool.core.pool import Pool
from account_pool.core.steps import Limits
from account_pool.proxy import pooled_exchange
from tests.patience import tries
from tests.proxy.helpers import (
    CHUNKED,
    DELTA,
    DONE,
    EMPTY_CHOICES,
    JSON,
    LIMIT_BODY,
    LIMIT_EVENT,
    LIMITED,
    LIMITED_HEADERS,
    OK,
    OK_BODY,
    SSE,
    FakeClock,
    Rig,
    account,
    chunk,
    head1,
    http1,
    post1,
    secret,
    service_of,
    use_ready_tls,
)

ONE, TWO = secret("one"), secret("two")
EVENTS = head1(200, [SSE, CHUNKED])
LAST_CHUNK = b"0\r\n\r\n"
PATIENT = Limits(max_wait_s=60.0)


@pytest.fixture
def returned(monkeypatch):
    """Outcomes the leases were returned with; a second return raises in the pool."""
    outcomes = []
    real = Pool.release

    def release(self, lease, outcome, *, now):
        outcomes.append(outcome.cls if outcome else None)
        real(self, lease, outcome, now=now)

    monkeypatch.setattr(Pool, "release", release)
    return outcomes


def gone(rig, returned, expected) -> None:
    assert rig.in_flight() == 0
    assert returned == expected
    assert rig.cooling() == set()
    assert not rig.service.running


def test_while_connecting(rig_of, returned):
    rig = rig_of()
    rig.held.add("open")
    rig.send(post1())
    assert rig.in_flight() == 1
    rig.leave()
    # At once: the connection may take long.
    assert rig.in_flight() == 0
    rig.complete()
    gone(rig, returned, [None])
    assert rig.requests == []
    assert rig.hooks[-1] == "error"


def test_while_connecting_fails(rig_of, returned):
    rig = rig_of()
    rig.held.add("open")
    rig.send(post1())
    rig.leave()
    rig.complete("open", "refused")
    gone(rig, returned, [None])
    assert len(rig.opened) == 1


def test_while_nobody_can_serve(rig_of, returned):
    rig = rig_of("one", limits=PATIENT)
    rig.cool("one", 30)
    rig.held.add("pool_pause")
    rig.send(post1())
    rig.leave()
    assert rig.pauses[0].woken.is_set()
    rig.complete()
    assert returned == []
    assert rig.requests == []


def test_while_waiting_for_a_busy_account(rig_of, returned, clock):
    service = service_of(account("one", max_concurrent=1), clock=clock, limits=PATIENT)
    busy, rig = rig_of(service=service), rig_of(service=service)
    busy.send(post1())
    rig.held.add("pool_pause")
    rig.send(post1())
    assert rig.requests == []
    rig.leave()
    rig.complete()
    busy.server.send(OK)
    assert rig.in_flight() == 0
    assert returned == ["ok"]


def test_while_a_server_short_of_capacity_rests(rig_of, returned):
    rig = rig_of("one", limits=PATIENT)
    rig.held.add("pool_pause")
    rig.send(post1())
    rig.server.send(http1(529, b'{"error": {"message": "Overloaded"}}', [JSON]))
    assert rig.in_flight() == 1
    rig.leave()
    assert rig.in_flight() == 0
    rig.complete()
    gone(rig, returned, [None])


def test_while_a_credential_is_renewed(rig_of, returned):
    rig = rig_of("one")
    rig.held.add("pool_pause")
    rig.send(post1())
    rig.server.send(http1(401, b'{"error": {"code": "invalid_api_key"}}', [JSON]))
    rig.leave()
    # At once: the renewal may take twenty seconds, and goes on for others.
    assert rig.in_flight() == 0
    rig.refreshed = True
    rig.complete()
    gone(rig, returned, [None])
    assert rig.keys == [ONE]


def test_between_two_attempts(rig_of, returned):
    rig = rig_of()
    rig.send(post1())
    rig.held.add("open")
    rig.server.send(http1(429, LIMIT_BODY, [*LIMITED_HEADERS, "Connection: close"]))
    rig.leave()
    rig.complete()
    assert rig.keys == [ONE]
    assert rig.in_flight() == 0
    assert returned == ["rate_limit", None]


def test_while_the_attempt_runs(rig_of, returned):
    rig = rig_of()
    rig.send(post1())
    rig.leave()
    gone(rig, returned, [None])
    assert rig.server.closed
    assert rig.hooks[-1] == "error"


def test_while_the_second_attempt_runs(rig_of, returned):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(LIMITED)
    rig.leave()
    assert rig.server.closed
    assert returned == ["rate_limit", None]
    assert rig.cooling() == {"one"}


@pytest.mark.parametrize("data", [EVENTS, EVENTS + chunk(EMPTY_CHOICES)])
def test_while_the_answer_is_held_back(rig_of, returned, data):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(data)
    rig.leave()
    gone(rig, returned, [None])
    assert rig.server.closed
    rig.advance(60)


def test_while_a_refusal_is_read(rig_of, returned):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(LIMITED[:-5])
    rig.leave()
    gone(rig, returned, [None])
    rig.advance(60)
    assert rig.keys == [ONE]


def test_while_a_refusal_is_drained(rig_of, returned):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(LIMIT_EVENT))
    rig.leave()
    rig.advance(60)
    assert rig.in_flight() == 0
    assert returned == ["rate_limit", None]
    assert rig.keys == [ONE]
    assert rig.server.closed


def test_in_the_hook_before_the_answer(rig_of, returned):
    rig = rig_of()
    rig.send(post1())
    rig.held.add("responseheaders")
    rig.server.send(EVENTS + chunk(DELTA))
    rig.leave()
    rig.held.clear()
    rig.complete()
    assert rig.in_flight() == 0
    assert len(returned) == 1
    assert rig.server.closed


def test_in_the_middle_of_the_answer(rig_of, returned):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA))
    rig.leave()
    gone(rig, returned, ["ok"])
    assert rig.server.closed
    assert rig.flows[0].response.raw_content == DELTA


def test_hanging_up_with_the_last_event_is_a_success(rig_of, returned):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA) + chunk(DONE))
    rig.leave()
    gone(rig, returned, ["ok"])
    assert next(iter(rig.service.pool.accounts)).served == 1


def test_after_the_last_byte(rig_of, returned):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA) + LAST_CHUNK)
    rig.leave()
    gone(rig, returned, ["ok"])
    assert rig.hooks[-1] == "response"


def test_in_the_last_hook(rig_of, returned):
    rig = rig_of()
    rig.send(post1())
    rig.held.add("response")
    rig.server.send(OK)
    rig.leave()
    rig.held.clear()
    rig.complete()
    gone(rig, returned, ["ok"])


def test_in_the_hook_before_a_refusal_is_delivered(rig_of, returned):
    rig = rig_of("one")
    rig.send(post1())
    rig.held.add("responseheaders")
    rig.server.send(LIMITED)
    rig.leave()
    rig.held.clear()
    rig.complete()
    assert rig.in_flight() == 0
    assert returned == ["rate_limit"]
    assert rig.hooks[-1] == "error"


def test_while_the_request_is_read(rig_of, returned):
    rig = rig_of()
    rig.send(post1()[:-3])
    rig.leave()
    gone(rig, returned, [])
    assert rig.hooks[-1] == "error"


def test_in_the_request_hook(rig_of, returned):
    rig = rig_of(manual_approve=True)
    rig.held.add("request")
    rig.send(post1())
    rig.leave()
    rig.complete()
    gone(rig, returned, [])
    assert rig.opened == []


def test_many_streams_at_once(rig_of, returned):
    rig = rig_of(client2=True, server2=True)
    for _ in range(8):
        rig.ask()
    rig.server.head(1, 200, [SSE])
    rig.server.data(1, DELTA)
    rig.server.head(3, 200, [SSE])
    rig.server.answer(5, 429, LIMIT_BODY, LIMITED_HEADERS)
    rig.server.answer(7, 200, OK_BODY, [JSON])
    assert rig.in_flight() == 7
    rig.leave()
    assert rig.in_flight() == 0
    assert sorted(returned, key=str) == [None] * 6 + ["ok", "ok", "rate_limit"]
    assert all(m.reset is not None or m.stream_id in (5, 7) for m in rig.requests)


def test_disconnected_is_a_safety_net(rig_of, returned):
    """Should a stream ever lose its client's departure, the addon's hook knows."""
    rig = rig_of()
    rig.send(post1())
    rig.service.client_gone(rig.client)
    gone(rig, returned, [None])
    rig.service.client_gone(rig.client)
    rig.leave()
    gone(rig, returned, [None])


# -- by chance

LABELS = ("a", "b", "c", "d")


class Play:
    """Thousands of requests over many client connections, with everything going wrong."""

    def __init__(self, seed: int, rigs: int) -> None:
        self.chance = random.Random(seed)
        self.clock = FakeClock()
        accounts = [
            account("a", max_concurrent=2),
            account("b"),
            account("c", max_concurrent=3, min_interval_s=0.5),
            account("d", priority=1),
        ]
        limits = Limits(max_attempts=5, max_wait_s=20.0, retry_broken=True)
        self.service = service_of(*accounts, clock=self.clock, limits=limits)
        self.service.chance = self.chance.random
        self.asked = 0
        self.hooks_seen = 0
        self.statuses: set[int] = set()
        self.rigs = [self.fresh() for _ in range(rigs)]

    def fresh(self) -> Rig:
        rig = Rig(
            self.service,
            self.clock,
            client2=self.chance.random() < 0.5,
            server2=self.chance.random() < 0.5,
        )
        rig.held = set(self.chance.sample(["open", "pool_pause", "request", "responseheaders"], 2))
        return rig

    def step(self) -> None:
        rig = self.chance.choice(self.rigs)
        act = self.chance.choices(
            [self.ask, self.answer, self.go_on, self.time, self.leave, self.cancel, self.broken],
            [6, 12, 10, 2, 0.5, 0.5, 0.7],
        )[0]
        act(rig)

    def ask(self, rig: Rig) -> None:
        big = self.chance.random() < 0.1
        body = b'{"model":"m%d"}' % self.chance.randrange(2) + b" " * (300 if big else 0)
        if rig.client2:
            if sum(not m.complete for m in rig.answers) < 12:
                self.asked += 1
                rig.ask(body)
        elif not any(i > 0 for i in rig.layer.streams):
            self.asked += 1
            rig.send(post1(body=body))

    def open_requests(self, rig: Rig):
        for server in rig.servers:
            if server.connection.state is not ConnectionState.OPEN:
                continue
            for number, request in enumerate(server.requests):
                if not getattr(request, "over", False) and request.reset is None:
                    yield server, request, number

    def answer(self, rig: Rig) -> None:
        waiting = list(self.open_requests(rig))
        if not waiting:
            return
        server, request, _ = self.chance.choice(waiting)
        if getattr(request, "begun", False):
            self.more(server, request)
        else:
            self.begin(server, request)

    def begin(self, server, request) -> None:
        kind = self.chance.choice(["ok", "limit", "limit", "sse", "sse_limit", "slow", "error"])
        kind = kind if request.complete else self.chance.choice(["limit", "error"])
        request.over = kind not in ("sse", "slow")
        request.begun = True
        status, headers, body = {
            "ok": (200, [JSON], OK_BODY),
            "limit": (429, [JSON, f"retry-after: {self.chance.randrange(1, 9)}"], LIMIT_BODY),
            "sse": (200, [SSE], EMPTY_CHOICES),
            "sse_limit": (200, [SSE], EMPTY_CHOICES + LIMIT_EVENT),
            "slow": (429, [*LIMITED_HEADERS], LIMIT_BODY),
            "error": (self.chance.choice([400, 401, 500, 529]), [JSON], b'{"error":{}}'),
        }[kind]
        if server.http2:
            server.head(request.stream_id, status, headers)
            if self.alive(server, request):
                server.data(request.stream_id, body, end=request.over)
        elif request.over:
            close = ["Connection: close"] if self.chance.random() < 0.1 else []
            server.send(http1(status, body, [*headers, *close], chunked=self.chance.random() < 0.5))
        else:
            server.send(head1(status, [*headers, CHUNKED]) + chunk(body))

    def alive(self, server, request) -> bool:
        return server.connection.state is ConnectionState.OPEN and request.reset is None

    def more(self, server, request) -> None:
        ends = self.chance.random() < 0.4
        data = self.chance.choice([DELTA, LIMIT_EVENT, DONE, b": quiet\n\n"])
        request.over = ends
        if server.http2:
            server.data(request.stream_id, data, end=ends)
        else:
            server.send(chunk(data) + (LAST_CHUNK if ends else b""))

    def go_on(self, rig: Rig) -> None:
        if rig.waiting:
            rig.complete(error="refused" if self.chance.random() < 0.1 else None)

    def time(self, rig: Rig) -> None:
        for state in self.service.pool.accounts:
            # Else everybody would rest for most of the play.
            if self.chance.random() < 0.2:
                self.service.pool.accounts.clear_cooldown(state.key, now=self.clock.now())
        seconds = self.chance.choice([0.1, 0.3, 1.0, 6.0])
        self.clock.advance(seconds)
        for each in self.rigs:
            each.advance(0)

    def broken(self, rig: Rig) -> None:
        waiting = list(self.open_requests(rig))
        if waiting:
            server, request, _ = self.chance.choice(waiting)
            if server.http2 and self.chance.random() < 0.7:
                server.reset(request.stream_id, self.chance.choice([2, 7, 8]))
                request.over = True
            else:
                server.close()
        elif rig.servers:
            rig.servers[-1].close()

    def cancel(self, rig: Rig) -> None:
        if rig.client2:
            open_ = [m for m in rig.answers if not m.complete and m.reset is None]
            if open_:
                rig.cancel(self.chance.choice(open_).stream_id)

    def leave(self, rig: Rig) -> None:
        self.end(rig)
        self.rigs[self.rigs.index(rig)] = self.fresh()

    def end(self, rig: Rig) -> None:
        rig.leave()
        rig.held.clear()
        while rig.waiting:
            rig.complete()
        self.service.client_gone(rig.client)
        assert rig.layer.streams == {}, rig.layer.streams
        assert all(rig.ended[flow.id] == 1 for flow in rig.flows), rig.ended
        self.hooks_seen += len(rig.flows)
        self.statuses |= {message.status for message in rig.answers}


@pytest.mark.parametrize("seed", range(tries(2)))
def test_by_chance(monkeypatch, caplog, seed):
    use_ready_tls(monkeypatch)
    monkeypatch.setattr(pooled_exchange, "MAX_REPLAYABLE_BYTES", 200)
    play = Play(seed, rigs=6)
    for _ in range(6000):
        play.step()
    for rig in play.rigs:
        play.end(rig)
    assert play.asked > 500
    assert {200, 429} <= play.statuses
    assert [s.in_flight for s in play.service.pool.accounts] == [0] * 4
    assert not play.service.running
    assert "internal error" not in caplog.text
