"""What is mended in mitmproxy's handler of a client; what was not read: test_unread.py."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import pytest
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events, server_hooks
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.server import ConnectionHandler, ConnectionIO
from mitmproxy.test import taddons

from account_pool.proxy import client_handler
from account_pool.proxy.addon import AccountPool
from account_pool.proxy.client_handler import EventLock
from tests.patience import PATIENCE_S
from tests.proxy.helpers import client_connection, options_of

# -- the end of a connection reaches its layers although whoever reports it is cancelled


class Handler(ConnectionHandler):
    """mitmproxy's own, with layers that only note what they are told."""

    def __init__(self) -> None:
        super().__init__(Context(client_connection(), options_of()))
        self.told: list[events.Event] = []
        self.layer = self  # type: ignore[assignment]

    def handle_event(self, event: events.Event) -> list[commands.Command]:
        self.told.append(event)
        return []

    async def handle_hook(self, hook: commands.StartHook) -> None:
        pass


@contextmanager
def connected(handler: Handler) -> Iterator[None]:
    """*handler* is that of a client that has connected to a proxy with the addon."""
    proxyserver = Proxyserver()
    with taddons.context(proxyserver):
        proxyserver.connections[handler.client.id] = handler
        AccountPool().client_connected(handler.client)
        yield


class Writer:
    closed = False

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Case:
    """A server connection that is read while somebody else holds the lock."""

    def __init__(self) -> None:
        self.handler = Handler()
        assert client_handler.keep_events(self.handler)
        self.lock: Any = self.handler._server_event_lock
        self.server = Server(address=("api.openai.com", 443))
        self.server.state = ConnectionState.OPEN
        self.reader, self.writer = asyncio.StreamReader(), Writer()
        self.handler.transports[self.server] = ConnectionIO(
            reader=self.reader,
            writer=self.writer,  # type: ignore[arg-type]  # all of it that is needed
        )

    async def cancelled_while_it_waits(self) -> None:
        await self.lock.acquire()
        task = asyncio.create_task(self.handler.handle_connection(self.server))
        await turns()
        task.cancel("Error sending data")
        await turns()
        assert self.handler.told == []
        self.lock.release()
        async with asyncio.timeout(PATIENCE_S):
            with suppress(asyncio.CancelledError):
                await task


async def turns() -> None:
    """Let everybody go on as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def case() -> Case:
    return Case()


async def test_the_end_is_told(case):
    case.reader.feed_eof()
    await case.cancelled_while_it_waits()
    assert [type(event) for event in case.handler.told] == [events.ConnectionClosed]
    assert case.writer.closed and case.server not in case.handler.transports


async def test_what_came_last_is_told_and_then_the_end(case):
    case.reader.feed_data(b"last words")
    await case.cancelled_while_it_waits()
    told = [type(event) for event in case.handler.told]
    assert told == [events.DataReceived, events.ConnectionClosed]
    assert case.server.state is ConnectionState.CLOSED


async def test_it_is_still_a_lock():
    lock, order = EventLock(), []

    async def work(name: str) -> None:
        async with lock:
            order.append(name)
            await asyncio.sleep(0)
            order.append(name)

    await asyncio.gather(*(work(name) for name in "abc"))
    assert "".join(order) == "aabbcc"
    assert not lock.locked()


async def test_a_holder_that_nobody_cancelled_goes_on():
    lock = EventLock()
    await lock.acquire()
    waiter = asyncio.create_task(lock.acquire())
    await turns()
    lock.release()
    assert await waiter is True


@pytest.mark.parametrize("lock", [None, "another kind", EventLock])
async def test_a_mitmproxy_without_that_lock_is_left_alone(lock):
    handler = Handler()
    other = lock() if lock is EventLock else lock
    handler._server_event_lock = other
    assert not client_handler.keep_events(handler)
    assert handler._server_event_lock is other
    del handler._server_event_lock
    assert not client_handler.keep_events(handler)
    with taddons.context():
        assert not client_handler.keep_events(client_handler.handler_of(client_connection()))


async def test_each_client_gets_one():
    handler = Handler()
    with connected(handler):
        assert isinstance(handler._server_event_lock, EventLock)
        # One that mitmproxy does not list (a replay) is served all the same.
        AccountPool().client_connected(client_connection())


# -- a client has as many connections to one address as it has requests


#: More than mitmproxy opens.
MANY = 12


class OpenWriter:
    def get_extra_info(self, _name: str) -> tuple[str, int]:
        return "192.0.2.1", 443

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


class Opens(Handler):
    """Connections that open at once, and stay."""

    def __init__(self) -> None:
        super().__init__()
        self.all_open = asyncio.Event()

    def handle_event(self, event: events.Event) -> list[commands.Command]:
        super().handle_event(event)
        if sum(isinstance(told, events.OpenConnectionCompleted) for told in self.told) == MANY:
            self.all_open.set()
        return []


async def test_more_than_five(monkeypatch):
    async def open_connection(*_where: object, **_how: object):
        return asyncio.StreamReader(), OpenWriter()

    monkeypatch.setattr(asyncio, "open_connection", open_connection)
    handler = Opens()
    assert client_handler.lift_connection_bound(handler)
    servers = [Server(address=("api.openai.com", 443)) for _ in range(MANY)]
    opening = [
        asyncio.create_task(handler.open_connection(commands.OpenConnection(server)))
        for server in servers
    ]
    async with asyncio.timeout(PATIENCE_S):
        await handler.all_open.wait()
    for task in opening:
        task.cancel()
    await asyncio.gather(*opening, return_exceptions=True)


@pytest.mark.parametrize("bounds", [None, {}, defaultdict(int, {"in use": 1})])
async def test_a_mitmproxy_without_that_bound_is_left_alone(bounds):
    handler = Handler()
    handler.max_conns = bounds
    assert not client_handler.lift_connection_bound(handler)
    assert handler.max_conns is bounds
    del handler.max_conns
    assert not client_handler.lift_connection_bound(handler)
    assert not client_handler.lift_connection_bound(None)


async def test_each_client_is_free_of_it():
    handler = Handler()
    with connected(handler):
        pass
    assert isinstance(handler.max_conns["any"], nullcontext)


# -- a connection that cannot be opened is told to who waits for it, whatever was in the way


class OpeningWriter:
    """Of a connection whose peer is known, or was gone before anybody asked."""

    def __init__(self, peer: tuple[str, int] | None) -> None:
        self.peer, self.closed = peer, False

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        return self.peer if name == "peername" else ("192.0.2.2", 50000)

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Opening:
    def __init__(self, monkeypatch, peer: tuple[str, int] | None) -> None:
        self.handler, self.writer = Handler(), OpeningWriter(peer)
        self.reader = asyncio.StreamReader()
        self.server = Server(address=("api.openai.com", 443))
        self.command = commands.OpenConnection(self.server)

        async def open_connection(*_where: object, **_how: object):
            return self.reader, self.writer

        monkeypatch.setattr(asyncio, "open_connection", open_connection)
        assert client_handler.watch_opening(self.handler)

    async def open(self) -> list[str | None]:
        """Open it, to its end; return with which words that was told."""
        await self.handler.open_connection(self.command)
        told = [e for e in self.handler.told if isinstance(e, events.OpenConnectionCompleted)]
        assert all(event.command is self.command for event in told)
        return [event.reply for event in told]

    async def open_and_end(self) -> asyncio.Task[list[str | None]]:
        """Open it, and let its peer end it."""
        self.reader.feed_eof()
        opening = asyncio.create_task(self.open())
        async with asyncio.timeout(PATIENCE_S):
            while not any(isinstance(e, events.ConnectionClosed) for e in self.handler.told):
                await asyncio.sleep(0)
        return opening


async def test_a_peer_that_is_gone_before_it_is_asked_its_name(monkeypatch):
    case = Opening(monkeypatch, None)
    assert await case.open() == ["connection closed"]
    assert case.server.state is ConnectionState.CLOSED
    assert case.server.error == "connection closed"
    assert case.server not in case.handler.transports
    assert case.writer.closed


async def test_one_that_opens_is_told_once(monkeypatch):
    case = Opening(monkeypatch, ("192.0.2.1", 443))
    opening = await case.open_and_end()
    opening.cancel()  # its other half is still open
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert [type(event) for event in case.handler.told] == [
        events.OpenConnectionCompleted,
        events.ConnectionClosed,
    ]


def failing(handler: Handler, hook: type) -> None:
    async def handle_hook(fired: commands.StartHook) -> None:
        if isinstance(fired, hook):
            raise ValueError("sk-secret-1111")

    handler.handle_hook = handle_hook  # type: ignore[method-assign]


@pytest.mark.parametrize("hook", [server_hooks.ServerConnectHook, server_hooks.ServerConnectedHook])
async def test_any_other_error_is_told_too_and_logged_with_its_place(monkeypatch, caplog, hook):
    case = Opening(monkeypatch, ("192.0.2.1", 443))
    failing(case.handler, hook)
    caplog.set_level(logging.INFO)
    assert await case.open() == ["internal error"]
    assert "ValueError at" in caplog.text
    assert "sk-secret" not in caplog.text


async def test_an_error_at_the_end_is_not_told_as_one_of_opening(monkeypatch):
    case = Opening(monkeypatch, ("192.0.2.1", 443))
    failing(case.handler, server_hooks.ServerDisconnectedHook)
    opening = await case.open_and_end()
    opening.cancel()
    with pytest.raises(ValueError, match="sk-secret"):
        await opening
    assert [type(event) for event in case.handler.told] == [
        events.OpenConnectionCompleted,
        events.ConnectionClosed,
    ]


async def test_a_mitmproxy_that_opens_them_otherwise_is_left_alone():
    assert not client_handler.watch_opening(None)
    handler = Handler()
    handler.open_connection = None  # type: ignore[assignment,method-assign]
    assert not client_handler.watch_opening(handler)


async def test_each_client_is_watched():
    handler = Handler()
    with connected(handler):
        pass
    assert "open_connection" in vars(handler)
