"""Events of a client are handled as mitmproxy handles them: same events, same order, none lost."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import weakref
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import exceptions
from mitmproxy.addonmanager import AddonManager
from mitmproxy.proxy import commands, events, layer, server
from mitmproxy.proxy.layers.http import HttpRequestHook, HttpResponseHook
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server import ConnectionIO
from mitmproxy.test import taddons, tflow

from account_pool.proxy.fast.handler import _RUNNING, TURN, HookTable
from account_pool.proxy.fast.steps import Steps, put_into
from tests.patience import PATIENCE_S
from tests.proxy.fast.known import needs_known

pytestmark = [needs_known, pytest.mark.usefixtures("factory")]


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
            assert put_into(self.handler, self.table)

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


def unconnected():
    server = tflow.tserver_conn()
    server.timestamp_start = server.timestamp_end = None
    return server


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
        FLOW.intercepted, FLOW._resume_event = False, None
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

    server = unconnected()
    answers = {
        "Start": asks(lambda _client: commands.OpenConnection(server), data(b"after")),
        "open completed: Connection killed: refused": asks(data(b"told")),
    }
    with taddons.context() as tctx:
        client = Client(tctx, {"server_connect": refuse}, answers, ours=True)
        await client.handler.server_event(events.Start())
        await client.until(b"told")
        handled, told = client.said.index("Start handled"), client.said.index(b"told")
        assert client.said.index(b"after") < handled < told
        assert client.handler.transports[server].handler is not None


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


async def test_what_was_left_by_an_error_is_not_overtaken() -> None:
    """One that not even a crash of a layer is: it goes up, and the next event comes last."""

    class Ends(BaseException):
        pass

    def end(_client: Client):
        def answer():
            raise Ends
            yield

        return answer

    with taddons.context() as tctx:
        asked = asks(request, lambda _client: HttpResponseHook(FLOW))
        answers = {"Start": asked, "request completed": end}
        client = Client(tctx, {"request": now("request")}, answers, ours=True)
        with pytest.raises(Ends):
            await client.handler.server_event(events.Start())
        await client.handler.server_event(events.DataReceived(client.handler.client, b""))
    assert client.said[-4:] == [
        "response completed",
        "response completed handled",
        "DataReceived",
        "DataReceived handled",
    ]


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
        assert not put_into(other, hooks)
        assert "server_event" not in vars(other)


@dataclass
class TwoArguments(commands.StartHook):
    one: int
    two: int


LOST: dict[str, Any] = {
    "misconfigured": exceptions.OptionsError("no"),
    "cancelled": asyncio.CancelledError("no"),
    "of its own": type("Own", (BaseException,), {})("no"),
}


@pytest.mark.parametrize("way", [now, later], ids=["now", "later"])
@pytest.mark.parametrize("error", LOST.values(), ids=LOST.keys())
@pytest.mark.parametrize("where", ["request", "update"])
async def test_an_error_ends_its_hook_and_nothing_else(way, error, where: str) -> None:
    """Two streams of one connection: what ends one does not end the other."""
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)

    def failing(client: Client):
        hook = way(where)(client)

        def called(data):
            made = hook(data)
            if data is FLOW or data == [FLOW]:
                raise error
            return made

        async def awaited(data) -> None:
            await hook(data)
            if data is FLOW or data == [FLOW]:
                raise error

        return called if way is now else awaited

    other = tflow.tflow()
    answers = {
        "Start": asks(request, lambda _client: HttpResponseHook(other), data(b"after")),
        "response completed": asks(data(b"end")),
    }
    seen = []
    for ours in (False, True):
        with taddons.context() as tctx:
            client = Client(tctx, {where: failing}, answers, ours=ours)
            await client.handler.server_event(events.Start())
            await client.until(b"end")
            await client.until(where)
            async with asyncio.timeout(PATIENCE_S):
                await client.handler.timeout_watchdog.can_timeout.wait()
            seen.append(Counter(map(str, client.said)))
    assert seen[0] == seen[1]


async def test_a_hook_that_mitmproxy_cannot_call_costs_only_itself() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    answers = {"Start": asks(lambda _client: TwoArguments(1, 2), request, data(b"after"))}
    seen = []
    for ours in (False, True):
        with taddons.context() as tctx:
            client = Client(tctx, {"request": now("request")}, answers, ours=ours)
            await client.handler.server_event(events.Start())
            await client.until("request completed handled")
            seen.append(sorted(map(str, client.said)))
    assert seen[0] == seen[1]


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_context_variables_follow_what_a_hook_led_to() -> None:
    """Of two streams, what one leaves in a variable is not found by the other."""

    def remember(client: Client):
        def hook(flow) -> None:
            client.said.append(VARIABLE.get())
            VARIABLE.set(flow.request.path)

        return hook

    other = tflow.tflow()
    other.request.path = "/other"
    answers = {
        "Start": asks(request, lambda _client: HttpRequestHook(other)),
        "request completed": asks(lambda client: HttpResponseHook(FLOW)),
    }
    seen = []
    for ours in (False, True):
        with taddons.context() as tctx:
            hooks = {"request": remember, "response": remember}
            client = Client(tctx, hooks, answers, ours=ours)
            await client.handler.server_event(events.Start())
            async with asyncio.timeout(PATIENCE_S):
                while client.said.count("response completed handled") < 2:
                    await asyncio.sleep(0)
            seen.append([x for x in client.said if x in ("unset", "/path", "/other")])
    assert seen[0] == seen[1] == ["unset", "unset", "/path", "/other"]
    assert VARIABLE.get() == "unset"


async def test_a_long_chain_neither_recurses_nor_keeps_others_waiting() -> None:
    left, turns = 10_000, 0

    def more(client: Client):
        def answer():
            nonlocal left
            left -= 1
            if left:
                yield HttpRequestHook(FLOW)
            else:
                yield commands.SendData(client.handler.client, b"end")

        return answer

    with taddons.context() as tctx:
        answers = {"Start": asks(request), "request completed": more}
        client = Client(tctx, {"request": now("request")}, answers, ours=True)
        await client.handler.server_event(events.Start())
        async with asyncio.timeout(PATIENCE_S):
            while b"end" not in client.said[-2:]:
                turns += 1
                await asyncio.sleep(0)
    assert turns >= 10_000 // TURN


async def test_an_event_that_a_hook_brings_waits_for_its_turn() -> None:
    def poke(client: Client):
        def hook(_flow) -> None:
            event = events.DataReceived(client.handler.client, b"")
            with pytest.raises(StopIteration):
                client.handler.server_event(event).send(None)
            client.said.append("poked")

        return hook

    with taddons.context() as tctx:
        client = Client(tctx, {"request": poke}, ANSWERS, ours=True)
        await client.handler.server_event(events.Start())
    order = ["poked", b"after", "Start handled", "DataReceived", "request completed"]
    assert [x for x in client.said if x in order] == order


async def test_hooks_within_hooks() -> None:
    """An addon that triggers hooks by itself, at once and in its own time."""

    def again(client: Client):
        def hook(_flow) -> None:
            client.handler.master.addons.trigger(HttpResponseHook(FLOW))
            client.said.append("request")

        return hook

    def later_again(client: Client):
        async def hook(_flow) -> None:
            await client.handler.master.addons.trigger_event(HttpRequestHook(FLOW))
            client.said.append("response")

        return hook

    seen = []
    for ours in (False, True):
        with taddons.context() as tctx:
            hooks = {"request": now("request"), "response": later_again}
            client = Client(tctx, hooks, ANSWERS, ours=ours)
            await client.handler.server_event(events.Start())
            await client.until("response completed handled")
            seen.append([x for x in client.said if x in ("request", "response")])
    assert seen[0] == seen[1] == ["request", "request", "response"]


class Clock:
    """What mitmproxy's watchdog reads, moved by hand."""

    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(server, "time", SimpleNamespace(time=lambda: self.now))

    async def pass_by(self) -> None:
        """Let a watchdog look some times."""
        for _ in range(10):
            await asyncio.sleep(0)


@pytest.mark.parametrize("ours", [False, True], ids=["mitmproxy", "ours"])
async def test_nobody_is_timed_out_while_a_hook_waits(monkeypatch, ours: bool) -> None:
    clock, go_on = Clock(monkeypatch), asyncio.Event()

    def waiting(_client: Client):
        return lambda _flow: go_on.wait()

    with taddons.context() as tctx:
        client = Client(tctx, {"request": waiting}, ANSWERS, ours=ours)
        watchdog = client.handler.timeout_watchdog
        watchdog.timeout = 0
        timed_out = asyncio.Event()

        async def on_timeout() -> None:
            timed_out.set()

        watchdog.callback = on_timeout
        await client.handler.server_event(events.Start())
        await asyncio.sleep(0)
        watching = asyncio.create_task(watchdog.watch())
        clock.now += 1000
        await clock.pass_by()
        assert not timed_out.is_set()
        go_on.set()
        await client.until("response completed handled")
        assert not timed_out.is_set()
        # Until now it could not; now it can.
        async with asyncio.timeout(PATIENCE_S):
            while not timed_out.is_set():
                clock.now += 1
                await asyncio.sleep(0)
        await watching


@dataclass
class PassingHook(commands.StartHook):
    """Nobody waits for its end."""

    name = "passing"
    blocking = False
    data: object


@pytest.mark.parametrize("ours", [False, True], ids=["mitmproxy", "ours"])
@pytest.mark.parametrize("hook", [HttpRequestHook, PassingHook])
async def test_time_that_a_hook_took_is_not_the_clients(monkeypatch, hook, ours: bool) -> None:
    clock = Clock(monkeypatch)

    def slow(client: Client):
        def called(_data) -> None:
            clock.now += 1000
            client.said.append("slow")

        return called

    with taddons.context() as tctx:
        hooks = {"request": slow, "passing": slow}
        client = Client(tctx, hooks, {"Start": asks(lambda _client: hook(FLOW))}, ours=ours)
        await client.handler.server_event(events.Start())
        await client.until("slow")
        await clock.pass_by()
        assert client.handler.timeout_watchdog.last_activity == clock.now


async def test_nothing_is_left_of_a_client_that_has_gone() -> None:
    with taddons.context() as tctx:
        hooks = {"request": now("request"), "response": later("response")}
        client = Client(tctx, hooks, ANSWERS, ours=True)
        await client.handler.server_event(events.Start())
        await client.until("response completed handled")
        await asyncio.sleep(0)
        gone = weakref.ref(client.handler)
        tctx.master.addons.clear()
        await tctx.master.addons.trigger_event(HttpRequestHook(FLOW))
        del client
        gc.collect()
        assert gone() is None, gc.get_referrers(gone())
        assert not _RUNNING


async def test_a_hook_goes_on_when_nobody_knows_of_it() -> None:
    """Its client has gone, and what it waits for is held by nobody but itself."""
    said, waiting = [], []

    def alone(_client: Client):
        async def hook(_flow) -> None:
            future = asyncio.get_running_loop().create_future()
            waiting.append(weakref.ref(future))
            await future
            said.append("went on")

        return hook

    with taddons.context() as tctx:
        client = Client(tctx, {"request": alone}, ANSWERS, ours=True)
        await client.handler.server_event(events.Start())
        await asyncio.sleep(0)
        tctx.master.addons.clear()
        del client
        gc.collect()
        waiting[0]().set_result(None)
        async with asyncio.timeout(PATIENCE_S):
            while not said or _RUNNING:
                await asyncio.sleep(0)


async def test_a_connection_that_is_given_up_while_it_opens(monkeypatch) -> None:
    opening = asyncio.Event()

    async def never(*_address, **_how):
        opening.set()
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(asyncio, "open_connection", never)
    seen = []
    for ours in (False, True):
        opening.clear()
        peer = unconnected()
        answers = {
            "Start": asks(lambda _client, peer=peer: commands.OpenConnection(peer)),
            "DataReceived": asks(lambda _client, peer=peer: commands.CloseConnection(peer)),
        }
        with taddons.context() as tctx:
            hooks = {"server_connect_error": later("server_connect_error")}
            client = Client(tctx, hooks, answers, ours=ours)
            await client.handler.server_event(events.Start())
            await asyncio.wait_for(opening.wait(), PATIENCE_S)
            await client.handler.server_event(events.DataReceived(client.handler.client, b""))
            await client.until("open completed: closed by command handled")
            task = client.handler.transports[peer].handler
            await asyncio.wait([task])
            assert task.cancelled()
            seen.append([x for x in client.said if "Data" not in str(x)])
    assert seen[0] == seen[1]


async def test_another_addon_that_looks_at_each_event_goes_on_to(monkeypatch) -> None:
    """One that has put something of its own where events are handled."""

    async def watching(self, hook) -> None:
        pass

    with taddons.context() as tctx:
        steps = Steps(tctx.master.addons)
        steps.use(("table", "inline"))

        def connect() -> ProxyConnectionHandler:
            return Client(tctx, {}, {}, ours=False).handler

        assert steps.take(connect())
        patched = connect()
        patched.handle_hook = watching
        assert not steps.take(patched)
        with monkeypatch.context() as patch:
            patch.setattr(ProxyConnectionHandler, "handle_hook", watching)
            assert not steps.take(connect())
        with monkeypatch.context() as patch:
            patch.setattr(tctx.master.addons, "trigger_event", watching)
            assert not steps.take(connect())
        assert steps.take(connect())
        steps.use(())
        assert tctx.master.addons.trigger_event.__func__ is AddonManager.trigger_event
