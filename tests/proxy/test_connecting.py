"""A connection that cannot be opened is told to who waits for it, whatever was in the way."""

from __future__ import annotations

import asyncio
import logging

import pytest
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events, server_hooks

from account_pool.proxy import client_handler
from tests.patience import PATIENCE_S
from tests.proxy.test_event_lock import Handler, connected


class Writer:
    """Of a connection whose peer is known, or was gone before anybody asked."""

    def __init__(self, peer: tuple[str, int] | None) -> None:
        self.peer, self.closed = peer, False

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        return self.peer if name == "peername" else ("192.0.2.2", 50000)

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Case:
    def __init__(self, monkeypatch, peer: tuple[str, int] | None) -> None:
        self.handler, self.writer = Handler(), Writer(peer)
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
    case = Case(monkeypatch, None)
    assert await case.open() == ["connection closed"]
    assert case.server.state is ConnectionState.CLOSED
    assert case.server.error == "connection closed"
    assert case.server not in case.handler.transports
    assert case.writer.closed


async def test_one_that_opens_is_told_once(monkeypatch):
    case = Case(monkeypatch, ("192.0.2.1", 443))
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
    case = Case(monkeypatch, ("192.0.2.1", 443))
    failing(case.handler, hook)
    caplog.set_level(logging.INFO)
    assert await case.open() == ["internal error"]
    assert "ValueError at" in caplog.text
    assert "sk-secret" not in caplog.text


async def test_an_error_at_the_end_is_not_told_as_one_of_opening(monkeypatch):
    case = Case(monkeypatch, ("192.0.2.1", 443))
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
