"""A client has as many connections to one address as it has requests."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import nullcontext

import pytest
from mitmproxy.connection import Server
from mitmproxy.proxy import commands, events

from account_pool.proxy import client_handler
from tests.patience import PATIENCE_S
from tests.proxy.test_event_lock import Handler, connected

#: More than mitmproxy opens.
MANY = 12


class Writer:
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
        return asyncio.StreamReader(), Writer()

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
