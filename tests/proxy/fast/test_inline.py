"""Events of a client are handled as mitmproxy handles them: same events, same order, none lost."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import HttpRequestHook, HttpResponseHook
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server import ConnectionIO
from mitmproxy.test import taddons, tflow

from account_pool.proxy.fast import inline
from account_pool.proxy.fast.table import HookTable
from tests.patience import PATIENCE_S


class Writer:
    """Takes what is written to a client."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.said.append(data)

    def write_eof(self) -> None:
        self.said.append("eof")


class Scripted(layer.Layer):
    """Answers each event as the test says, and notes it."""

    def __init__(self, context, answers, said: list[Any]) -> None:
        super().__init__(context)
        self._answers, self._said = answers, said

    def handle_event(self, event):
        match event:
            case events.HookCompleted(command=command):
                name = f"{command.name} completed"
            case events.OpenConnectionCompleted(reply=reply):
                name = f"open completed: {reply}"
            case _:
                name = type(event).__name__
        self._said.append(name)
        yield from self._answers.get(name, lambda: ())()
        self._said.append(f"{name} handled")


class Client:
    """A handler of a client, its layer and an addon, all scripted."""

    def __init__(self, tctx, hooks, answers, *, ours: bool) -> None:
        self.said: list[Any] = []
        self.writer = Writer()
        self.writer.said = self.said
        self.handler = ProxyConnectionHandler(
            tctx.master, None, self.writer, tctx.options, ProxyMode.parse("regular")
        )
        self.handler.transports[self.handler.client] = ConnectionIO(writer=self.writer)
        given = {name: answer(self) for name, answer in answers.items()}
        self.handler.layer = Scripted(self.handler.layer.context, given, self.said)
        addon = SimpleNamespace(name="scripted", **{n: hook(self) for n, hook in hooks.items()})
        tctx.master.addons.clear()
        tctx.master.addons.add(addon)
        self.table = HookTable(tctx.master.addons)
        if ours:
            assert self.table.install()
            assert inline.put_into(self.handler, self.table)

    async def until(self, name: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while name not in self.said:
                await asyncio.sleep(0)


def now(name: str, *, fails: bool = False, intercepts: bool = False):
    def of(client: Client):
        def hook(data) -> None:
            client.said.append(name)
            if intercepts:
                data.intercept()
                asyncio.get_running_loop().call_soon(resume, client, data)
            if fails:
                raise ValueError(name)

        return hook

    return of


def later(name: str, *, fails: bool = False):
    def of(client: Client):
        async def hook(data) -> None:
            client.said.append(f"{name} begins")
            await asyncio.sleep(0)
            client.said.append(name)
            if fails:
                raise ValueError(name)

        return hook

    return of


def resume(client: Client, flow) -> None:
    client.said.append("resumed")
    flow.resume()


FLOW = tflow.tflow()


def asks(*made):
    def of(client: Client):
        return lambda: [make(client) for make in made]

    return of


def request(_client: Client):
    return HttpRequestHook(FLOW)


def response(_client: Client):
    return HttpResponseHook(FLOW)


def data(text: bytes):
    return lambda client: commands.SendData(client.handler.client, text)


CASES = {
    "a hook that awaits nothing": {"request": now("request")},
    "a hook that awaits": {"request": later("request")},
    "one that fails": {"request": now("request", fails=True)},
    "one that awaits and fails": {"request": later("request", fails=True)},
    "one that intercepts": {"request": now("request", intercepts=True)},
    "no hook": {},
    "update awaits": {"request": now("request"), "update": later("update")},
    "both await": {"request": later("request"), "update": later("update")},
    "update is told": {"request": now("request"), "update": now("update")},
}
ANSWERS = {
    "Start": asks(data(b"before"), request, data(b"after")),
    "request completed": asks(data(b"then"), response),
    "response completed": asks(data(b"end")),
}


@pytest.mark.parametrize("name", CASES)
async def test_as_mitmproxy_does(name: str, caplog) -> None:
    caplog.set_level(logging.CRITICAL)
    seen = []
    for ours in (False, True):
        FLOW.intercepted = False
        with taddons.context() as tctx:
            client = Client(tctx, CASES[name], ANSWERS, ours=ours)
            await client.handler.server_event(events.Start())
            await client.until("response completed handled")
            # Tasks that are not eager begin a little later.
            seen.append([x for x in client.said if x != b"after" and "handled" not in str(x)])
            assert client.handler.timeout_watchdog.can_timeout.is_set()
    assert seen[0] == seen[1]


async def test_nothing_waits_where_nothing_awaits() -> None:
    with taddons.context() as tctx:
        client = Client(tctx, {"request": now("request")}, ANSWERS, ours=True)
        coroutine = client.handler.server_event(events.Start())
        with pytest.raises(StopIteration):
            coroutine.send(None)
    assert client.said == [
        "Start",
        b"before",
        "request",
        b"after",
        "Start handled",
        "request completed",
        b"then",
        "request completed handled",
        "response completed",
        b"end",
        "response completed handled",
    ]


async def test_an_event_that_comes_in_between_waits_for_its_turn() -> None:
    """A connection that is refused before it is tried is told of at once, with eager tasks."""

    def refuse(client: Client):
        def server_connect(hook_data) -> None:
            hook_data.server.error = "refused"

        return server_connect

    server = tflow.tserver_conn()
    server.timestamp_start = server.timestamp_end = None
    answers = {
        "Start": asks(lambda _client: commands.OpenConnection(server), data(b"after")),
        "open completed: Connection killed: refused": asks(data(b"told")),
    }
    for eager in {None, getattr(asyncio, "eager_task_factory", None)}:
        asyncio.get_running_loop().set_task_factory(eager)
        try:
            with taddons.context() as tctx:
                client = Client(tctx, {"server_connect": refuse}, answers, ours=True)
                await client.handler.server_event(events.Start())
                await client.until(b"told")
                handled, told = client.said.index("Start handled"), client.said.index(b"told")
                assert client.said.index(b"after") < handled < told
                assert client.handler.transports[server].handler is not None
        finally:
            asyncio.get_running_loop().set_task_factory(None)
        server.error = None


async def test_a_crash_of_a_layer_ends_neither_the_queue_nor_the_client(caplog) -> None:
    def crash(_client: Client):
        def answer():
            raise RuntimeError("broken layer")
            yield

        return answer

    with taddons.context() as tctx:
        answers = {"Start": asks(request), "request completed": crash}
        client = Client(tctx, {"request": now("request")}, answers, ours=True)
        await client.handler.server_event(events.Start())
        await client.handler.server_event(events.DataReceived(client.handler.client, b""))
    assert client.said[-1] == "DataReceived handled"
    assert "mitmproxy has crashed!" in caplog.text


async def test_commands_for_a_connection_that_has_gone_are_dropped() -> None:
    gone = tflow.tserver_conn()
    with taddons.context() as tctx:
        answers = {
            "Start": asks(
                lambda _client: commands.SendData(gone, b"lost"),
                lambda _client: commands.CloseConnection(gone),
                lambda client: commands.CloseTcpConnection(client.handler.client, half_close=True),
                lambda _client: commands.Log("said", logging.INFO),
            )
        }
        client = Client(tctx, {}, answers, ours=True)
        await client.handler.server_event(events.Start())
    assert client.said == ["Start", "eof", "Start handled"]


async def test_a_timer_comes_back() -> None:
    with taddons.context() as tctx:
        answers = {"Start": asks(lambda _client: commands.RequestWakeup(0))}
        client = Client(tctx, {}, answers, ours=True)
        await client.handler.server_event(events.Start())
        assert len(client.handler.wakeup_timer) == 1
        await client.until("Wakeup handled")
        assert not client.handler.wakeup_timer


async def test_only_clients_of_the_proxy_itself() -> None:
    class Other(ProxyConnectionHandler):
        pass

    with taddons.context() as tctx:
        hooks = HookTable(tctx.master.addons)
        other = Other(tctx.master, None, Writer(), tctx.options, ProxyMode.parse("regular"))
        assert not inline.put_into(other, hooks)
        assert "server_event" not in vars(other)
