"""After a suspend: who is not used again, who is asked, and who is left alone."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from types import SimpleNamespace

import pytest
from mitmproxy import ctx
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.server import ConnectionIO

from account_pool.core.steps import Limits
from account_pool.proxy import addon, client_handler, http_layer
from account_pool.proxy.http2 import DEAD_S, QUIET_S
from account_pool.proxy.http_layer import SWEEP_S, TCP_TIMEOUT_S
from account_pool.proxy.service import CLOCKS, GAP_S
from tests.patience import PATIENCE_S
from tests.proxy.helpers import (
    JSON,
    OK,
    OK_BODY,
    SSE,
    FakeClock,
    Peer2,
    Upstream,
    client_connection,
    options_of,
    post1,
    service_of,
)
from tests.proxy.test_client_handler import Handler

HOURS = 3 * 3600.0


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def sleep(rig, seconds: float = HOURS, *, noticed: bool = False) -> None:
    """Let the machine sleep. *noticed*: by the periodic look, before anything else."""
    rig.clock.asleep += seconds
    if noticed:
        rig.service.suspends.look()


def ok(server, *numbers: int) -> None:
    for number in numbers:
        server.answer(number, 200, OK_BODY, [JSON])


def count_pings(server) -> None:
    """Count in `server.pings` what PINGs come."""
    feed, server.pings = server.reader.feed, 0

    def counted(data: bytes) -> None:
        server.pings += data.count(b"\0\0\x08\6\0\0\0\0\0")
        feed(data)

    server.reader.feed = counted


NOTICED = pytest.mark.parametrize("noticed", [False, True], ids=["at the request", "before"])


# -- what is idle


@NOTICED
def test_http1_is_not_used_again(rig_of, noticed, log):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(OK)
    sleep(rig, noticed=noticed)
    rig.send(post1())
    assert [len(server.requests) for server in rig.servers] == [1, 1]
    rig.server.send(OK)
    assert [answer.status for answer in rig.answers] == [200, 200]
    assert [server.closed for server in rig.servers] == [1, 0]
    assert log.messages == ["account-pool: woke up after 3 h: 1 kept connection closed"]


@NOTICED
def test_http2_is_not_used_again(rig_of, noticed, log):
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    ok(rig.server, 1)
    count_pings(rig.server)
    sleep(rig, noticed=noticed)
    rig.ask()
    assert [len(server.requests) for server in rig.servers] == [1, 1]
    ok(rig.server, 1)
    assert [answer.status for answer in rig.answers] == [200, 200]
    assert rig.servers[0].closed and not rig.servers[1].closed
    assert rig.servers[0].pings == 0
    assert log.messages == ["account-pool: woke up after 3 h: 1 kept connection closed"]


@pytest.mark.parametrize("http2", [True, False], ids=["h2", "h1"])
def test_what_comes_late_on_it_does_not_bring_it_back(rig_of, http2):
    rig = rig_of(client2=http2, server2=http2)
    rig.service.suspends.attend = lambda _layer, _idle: None  # mitmproxy has no way to close it
    rig.ask() if http2 else rig.send(post1())
    ok(rig.server, 1) if http2 else rig.server.send(OK)
    sleep(rig, noticed=True)
    if http2:
        rig.server.reader.h2.ping(b"are you?")
        rig.server.flush()
    rig.ask() if http2 else rig.send(post1())
    assert len(rig.servers) == 2
    ok(rig.server, 1) if http2 else rig.server.send(OK)
    assert [answer.status for answer in rig.answers] == [200, 200]


@pytest.mark.parametrize("http2", [True, False], ids=["h2", "h1"])
def test_without_a_suspend_it_is_used_again(rig_of, http2, log):
    rig = rig_of(client2=http2, server2=http2)
    for number in (1, 3, 5):
        rig.ask() if http2 else rig.send(post1())
        ok(rig.server, number) if http2 else rig.server.send(OK)
        sleep(rig, GAP_S - 1, noticed=True)
    assert len(rig.servers) == 1
    assert log.messages == []


def test_a_request_that_waits_for_a_sign_of_life_is_sent_elsewhere(rig_of):
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    ok(rig.server, 1)
    rig.server.reader.feed = lambda _data: None
    rig.clock.advance(QUIET_S + 1)
    rig.ask()
    assert len(rig.servers) == 1
    sleep(rig, noticed=True)
    ok(rig.servers[1], 1)
    assert [answer.status for answer in rig.answers] == [200, 200]


@pytest.mark.parametrize("http2", [True, False], ids=["h2", "h1"])
def test_the_fresh_one_is_kept(rig_of, http2):
    rig = rig_of(client2=http2, server2=http2)
    for number in (1, 1, 3, 5):
        rig.ask() if http2 else rig.send(post1())
        ok(rig.server, number) if http2 else rig.server.send(OK)
        if len(rig.answers) == 1:
            sleep(rig)
    assert len(rig.servers) == 2


def test_one_of_another_client_is_closed_too(rig_of, log):
    first = rig_of()
    other = rig_of(service=first.service)
    for rig in (first, other):
        rig.send(post1())
        rig.server.send(OK)
    sleep(first)
    first.send(post1())
    assert [other.server.closed, first.servers[0].closed] == [1, 1]
    first.server.send(OK)
    assert log.messages == ["account-pool: woke up after 3 h: 2 kept connections closed"]


def opened_early(rig) -> Server:
    """A connection that mitmproxy opened before there was a request."""
    server = rig.layer.context.server
    server.state = ConnectionState.OPEN
    server.timestamp_start = server.timestamp_tcp_setup = rig.clock.wall_now()
    return server


@NOTICED
def test_one_that_was_opened_early_is_not_used(rig_of, noticed):
    rig = rig_of()
    early = opened_early(rig)
    attended = []
    rig.service.suspends.attend = lambda _layer, idle: attended.extend(idle)
    sleep(rig, noticed=noticed)
    rig.send(post1())
    rig.server.send(OK)
    assert rig.server.connection is not early
    assert attended == [early]


@NOTICED
def test_nor_where_its_server_has_spoken_first(rig_of, noticed):
    rig = rig_of(client2=True, server2=True)
    early = opened_early(rig)
    early.alpn = b"h2"
    rig.servers.append(Upstream(rig, early, http2=True, reader=Peer2(client_side=False)))
    rig.server.flush()
    sleep(rig, noticed=noticed)
    rig.ask()
    ok(rig.servers[1], 1)
    assert rig.servers[0].closed
    assert [answer.status for answer in rig.answers] == [200]


@pytest.mark.parametrize("asleep", [True, False])
def test_nor_where_the_client_says_only_afterwards_what_it_wants(rig_of, asleep):
    """Then there was no HTTP yet when the machine woke up."""
    rig = rig_of()
    early = opened_early(rig)
    if asleep:
        sleep(rig, noticed=True)
    early.state = ConnectionState.OPEN
    attended = []
    rig.service.suspends.attend = lambda _layer, idle: attended.extend(idle)
    http_layer.PoolHttpLayer(rig.context, rig.layer.mode, rig.service)
    assert attended == ([early] if asleep else [])
    assert early.connected is not asleep


def test_a_clock_that_was_only_set_costs_a_handshake_and_no_more(rig_of, log):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(OK)
    rig.service.suspends.clocks = (rig.clock.look, lambda: rig.clock.asleep + HOURS)
    rig.send(post1())
    rig.server.send(OK)
    assert [answer.status for answer in rig.answers] == [200, 200]
    assert log.messages == [
        "account-pool: the clock went ahead, as after a suspend, by 3 h: 1 kept connection closed"
    ]


# -- what is in use


@NOTICED
def test_a_stream_goes_on_that_is_still_there(rig_of, noticed):
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    rig.server.head(1, 200, [SSE])
    count_pings(rig.server)
    sleep(rig, noticed=noticed)
    if not noticed:
        rig.ask()
        ok(rig.servers[1], 1)
    assert rig.servers[0].pings == 1
    rig.advance(DEAD_S)
    rig.servers[0].data(1, b"data: hello\n\n", end=True)
    assert rig.answers[0].complete
    assert rig.servers[0].closed == 0
    rig.ask()
    assert len(rig.servers[0].requests) == 2  # it is used again
    ok(rig.servers[0], 3)


@NOTICED
def test_a_stream_that_is_lost_ends_soon(rig_of, noticed):
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    rig.server.reader.feed = lambda _data: None
    sleep(rig, noticed=noticed)
    if not noticed:
        rig.ask()
        ok(rig.servers[1], 1)
    rig.advance(DEAD_S - 1)
    assert len(rig.answers) == (0 if noticed else 1)
    rig.advance(1)
    assert sorted(a.status for a in rig.answers) == ([504] if noticed else [200, 504])
    assert rig.servers[0].closed == 1


def test_it_is_tried_again_where_the_user_wants_that(rig_of):
    rig = rig_of(client2=True, server2=True, limits=Limits(max_wait_s=0.0, retry_broken=True))
    rig.ask()
    rig.server.reader.feed = lambda _data: None
    sleep(rig, noticed=True)
    rig.advance(DEAD_S)
    ok(rig.server, 1)
    assert [a.status for a in rig.answers] == [200]


def test_a_ping_from_before_does_not_count(rig_of):
    """Where clocks go on in a suspend, the time to answer it is over at once."""
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    feed, rig.server.reader.feed = rig.server.reader.feed, lambda _data: None
    other = rig.ask()
    rig.cancel(other)  # it had to wait in vain: a PING is sent
    rig.server.reader.feed = feed
    rig.clock.asleep += HOURS
    rig.advance(HOURS)
    assert rig.answers == [m for m in rig.answers if m.reset]
    rig.server.head(1, 200, [SSE])
    rig.server.data(1, b"data: hello\n\n", end=True)
    assert rig.answers[0].complete


def test_the_time_asleep_is_no_silence(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.clock.asleep += HOURS
    rig.advance(HOURS)  # where clocks go on
    assert rig.answers == []
    rig.server.send(OK)
    assert [a.status for a in rig.answers] == [200]


def test_a_request_over_http1_is_left_alone(rig_of):
    rig = rig_of()
    rig.send(post1())
    sleep(rig, noticed=True)
    rig.server.send(OK)
    assert [a.status for a in rig.answers] == [200]
    rig.send(post1())  # it has proved that it lives
    rig.server.send(OK)
    assert len(rig.servers) == 1


def test_and_is_still_given_up_after_a_silence(rig_of):
    rig = rig_of()
    rig.send(post1())
    sleep(rig, noticed=True)
    for _ in range(int(TCP_TIMEOUT_S / SWEEP_S) + 1):
        rig.advance(SWEEP_S)
    assert [a.status for a in rig.answers] == [504]


def test_http2_of_mitmproxy_alone_takes_nothing_new(rig_of, monkeypatch):
    monkeypatch.setattr(http_layer, "_HTTP2", None)
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    sleep(rig)
    rig.ask()
    assert len(rig.servers) == 2
    for server in rig.servers:
        ok(server, 1)
    assert [a.status for a in rig.answers] == [200, 200]


def test_one_that_opens_is_left_alone(rig_of):
    rig = rig_of()
    rig.held.add("open")
    rig.send(post1())
    rig.opened[0].state = ConnectionState.OPEN  # TLS is still to come
    sleep(rig, noticed=True)
    rig.complete("open")
    rig.server.send(OK)
    assert [a.status for a in rig.answers] == [200]
    assert len(rig.servers) == 1


# -- who looks


async def test_somebody_looks_without_a_request(monkeypatch):
    monkeypatch.setattr(addon, "LOOK_S", 0.0)
    clock = FakeClock()
    service = service_of("one", clock=clock)
    clock.asleep += HOURS
    task = asyncio.create_task(addon.housekeeping(service))
    async with asyncio.timeout(PATIENCE_S):
        while service.suspends.woke_at < 0:
            await asyncio.sleep(0)
    task.cancel()


def test_the_clocks_go_on():
    before, after = ([clock() for clock in CLOCKS] for _ in range(2))
    assert before[0] <= after[0]
    assert abs(after[1] - time.time()) < PATIENCE_S


# -- what mitmproxy is told


def proxy_with(monkeypatch, *handlers: object) -> None:
    connections = {h.client.id: h for h in handlers}
    addons = {"proxyserver": SimpleNamespace(connections=connections)}
    monkeypatch.setattr(ctx, "master", SimpleNamespace(addons=addons), raising=False)


def in_use(server: Server) -> dict:
    """The connections of a layer with a request over HTTP/1 on one."""
    context = Context(client_connection(), options_of())
    context.server = server
    return {server: http_layers.Http1Client(context)}


async def test_what_is_in_use_is_probed_by_the_system(monkeypatch):
    """There is no PING in HTTP/1: a dead peer would be waited for as long as `tcp_timeout`."""
    served = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await served.wait()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    handler, writers = Handler(), []
    ours, tunnel_of_others = (Server(address=("a", 443)) for _ in range(2))
    for connection in (ours, tunnel_of_others):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        handler.transports[connection] = ConnectionIO(reader=reader, writer=writer)
        writers.append(writer)
    proxy_with(monkeypatch, handler)
    others = http_layer.HttpLayer(Context(handler.client, options_of()), HTTPMode.regular)
    connections = {**in_use(ours), tunnel_of_others: others}
    http = SimpleNamespace(
        context=SimpleNamespace(client=handler.client), timer=None, connections=connections
    )
    client_handler.attend(http, [])

    def options(writer: asyncio.StreamWriter) -> list[bool]:
        sock = writer.get_extra_info("socket")
        names = [name for name in client_handler.PROBES if hasattr(socket, name)]
        found = {n: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, n)) for n in names}
        kept_alive = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        return [kept_alive, found == {name: client_handler.PROBES[name] for name in names}]

    assert [options(writer) for writer in writers] == [[True, True], [False, False]]
    served.set()
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    listening.close()


async def test_it_closes_the_sockets_and_wakes_the_layer(monkeypatch):
    handler = Handler()
    idle, other = (Server(address=("a", 443)) for _ in range(2))
    for connection in (idle, other):
        connection.state = ConnectionState.OPEN
        task = asyncio.create_task(handler.handle_connection(connection))
        writer = SimpleNamespace(close=lambda: None)
        io = ConnectionIO(handler=task, reader=asyncio.StreamReader(), writer=writer)
        handler.transports[connection] = io
    proxy_with(monkeypatch, handler)
    timer = commands.RequestWakeup(5.0)
    http = SimpleNamespace(
        context=SimpleNamespace(client=handler.client), timer=timer, connections={}
    )
    await asyncio.sleep(0)
    client_handler.attend(http, [idle, Server(address=("gone", 443))])
    async with asyncio.timeout(PATIENCE_S):
        while len(handler.told) < 2:
            await asyncio.sleep(0)
    told = {type(event): event for event in handler.told}
    assert told[events.ConnectionClosed].connection is idle
    assert told[events.Wakeup].command is timer
    assert list(handler.transports) == [other]
    handler.transports[other].handler.cancel()


def test_one_that_cannot_be_closed_keeps_no_other_open(monkeypatch, log):
    odd, idle = (Server(address=("a", 443)) for _ in range(2))
    closed = []

    def close(connection: Server) -> None:
        if connection is odd:
            raise KeyError
        closed.append(connection)

    handler = SimpleNamespace(
        client=client_connection(), transports={odd: None, idle: None}, close_connection=close
    )
    proxy_with(monkeypatch, handler)
    http = SimpleNamespace(
        context=SimpleNamespace(client=handler.client), timer=None, connections={}
    )
    client_handler.attend(http, [odd, idle])
    assert closed == [idle]
    assert "KeyError" in log.text


@pytest.mark.parametrize("handler", [None, object()], ids=["no handler", "another one"])
def test_without_the_private_parts_nothing_happens(monkeypatch, handler):
    client = client_connection()
    proxyserver = SimpleNamespace(connections={client.id: handler} if handler else None)
    master = SimpleNamespace(addons={"proxyserver": proxyserver})
    monkeypatch.setattr(ctx, "master", master, raising=False)
    http = SimpleNamespace(
        context=SimpleNamespace(client=client),
        timer=commands.RequestWakeup(1),
        connections=in_use(Server(address=("a", 443))),
    )
    client_handler.attend(http, [Server(address=("a", 443))])


def test_the_socket_of_a_connection_through_a_proxy_is_the_one_to_it():
    context = Context(client_connection(), options_of())
    to_proxy = Server(address=("proxy", 3128))
    tunnel.TunnelLayer(context, to_proxy, context.server)
    tunnel.TunnelLayer(context, context.server, context.server)  # TLS
    assert client_handler.carrier(context.server, context.layers) is to_proxy
    assert client_handler.carrier(to_proxy, context.layers) is to_proxy
