"""The end of a connection reaches its layers although whoever tells it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.server import ConnectionHandler, ConnectionIO
from mitmproxy.test import taddons

from account_pool.proxy import client_handler
from account_pool.proxy.addon import AccountPool
from account_pool.proxy.client_handler import EventLock
from tests.patience import PATIENCE_S
from tests.proxy.helpers import client_connection, options_of


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
