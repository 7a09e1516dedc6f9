"""Hooks from the table run as mitmproxy's own walk runs them."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import weakref
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import exceptions
from mitmproxy.addonmanager import AddonManager
from mitmproxy.addons.maplocal import MapLocal
from mitmproxy.addons.onboarding import Onboarding
from mitmproxy.addons.script import ScriptLoader
from mitmproxy.proxy.layers.http import HttpRequestHook
from mitmproxy.proxy.server_hooks import ClientConnectedHook
from mitmproxy.test import taddons, tflow, tutils

from account_pool.proxy.fast import handler, known
from account_pool.proxy.fast.handler import _WALK, TABLE_S, HookTable
from tests.patience import PATIENCE_S
from tests.proxy.fast.known import needs_known

pytestmark = needs_known

EVENT = ClientConnectedHook(SimpleNamespace(id="client"))


class Addon:
    """Has the hook, or has not, and children."""

    def __init__(self, name: str, how: str, said: list[str], children=(), manager=None) -> None:
        self.name, self.addons, self._said = name, list(children), said
        self._manager, self._calls = manager, 0
        if how == "not callable":
            self.client_connected = "text"
        elif how == "module":
            self.client_connected = logging
        elif how == "callable":
            self.client_connected = functools.partial(Addon._now, self)
        elif how.startswith("async"):
            self.client_connected = self._later
        elif how.startswith("future"):
            self.client_connected = lambda client: asyncio.ensure_future(self._later(client))
        elif how not in ("none", "unreadable"):
            self.client_connected = self._now
        self._how = how.removeprefix("async ").removeprefix("future ")

    def __getattr__(self, name: str) -> object:
        if name == "client_connected" and vars(self).get("_how") == "unreadable":
            self._said.append(f"{self.name} is read")
            raise ValueError("unreadable")
        raise AttributeError(name)

    def _now(self, client) -> None:
        self._said.append(f"{self.name} {client.id}")
        self._calls += 1
        match self._how:
            case "raises":
                raise ValueError("no")
            case "halts":
                raise exceptions.AddonHalt
            case "is cancelled":
                raise asyncio.CancelledError
            case "misconfigures":
                raise exceptions.OptionsError("no")
            case "adds" if self._calls == 1:
                self._manager.add(Addon(f"{self.name} new", "now", self._said))
            case "leaves" if self in self._manager.chain:
                self._manager.remove(self)
            case "clears" if self._calls == 2:
                self._manager.clear()
            case "bears":
                self.addons.append(Addon(f"{self.name} child", "now", self._said))
            case "changes":
                self.client_connected = self._later
            case "stops":
                self.client_connected = None

    async def _later(self, client) -> None:
        self._said.append(f"{self.name} begins")
        await asyncio.sleep(0)
        self._now(client)


class Known(Addon):
    """As mitmproxy's own are: found in the table."""

    __module__ = "mitmproxy.addons.known"


#: What mitmproxy's own addons do, and those of others.
STEADY = """none, now, callable, raises, halts, is cancelled, misconfigures, leaves, adds, clears,
    not callable, module, unreadable, async now, async raises, async halts, async is cancelled,
    async adds, future now, future raises"""
STEADY = [how.strip() for how in STEADY.split(",")]
HOWS = st.tuples(st.just(Known), st.sampled_from(STEADY)) | st.tuples(
    st.just(Addon), st.sampled_from([*STEADY, "bears", "changes", "stops", "async stops"])
)
TREES = st.lists(st.tuples(HOWS, st.lists(HOWS, max_size=3)), max_size=5)


async def _said(tree, *, ours: bool) -> list[str]:
    """Return what the addons of *tree* say when the hook is triggered some times."""
    said: list[str] = []
    with taddons.context() as tctx:
        manager = tctx.master.addons
        manager.clear()
        for i, ((kind, how), children) in enumerate(tree):
            below = [k(f"{i}.{j}", h, said, (), manager) for j, (k, h) in enumerate(children)]
            manager.add(kind(f"{i}", how, said, below, manager))
        hooks = HookTable(manager)
        if ours:
            assert hooks.install()
        said.clear()
        for _ in range(4):
            try:
                await manager.trigger_event(EVENT)
            except BaseException as error:
                said.append(f"raises {type(error).__name__}")
        hooks.uninstall()
        manager.chain, manager.lookup = [], {}
    return said


@given(tree=TREES)
def test_the_same_calls_in_the_same_order(tree) -> None:
    logging.disable()
    try:
        expected, said = (asyncio.run(_said(tree, ours=ours)) for ours in (False, True))
    finally:
        logging.disable(logging.NOTSET)
    # A table asks a known one more often than mitmproxy whether it can be read.
    assert [x for x in said if "read" not in x] == [x for x in expected if "read" not in x]


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(handler, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


async def test_addons_come_and_go(clock) -> None:
    with taddons.context() as tctx:
        said: list[str] = []
        hooks = HookTable(tctx.master.addons)
        assert hooks.install() and hooks.install()
        first, second = Known("first", "now", said), Known("second", "async now", said)
        for change, expected in (
            (lambda: tctx.master.addons.add(first), ["first client"]),
            (
                lambda: tctx.master.addons.add(second),
                ["first client", "second begins", "second client"],
            ),
            (lambda: tctx.master.addons.remove(first), ["second begins", "second client"]),
            (tctx.master.addons.clear, []),
        ):
            change()
            await tctx.master.addons.trigger_event(EVENT)
            assert said == expected
            said.clear()
        hooks.uninstall()
        assert not {*vars(tctx.master.addons)} & {*_WALK}


@pytest.mark.parametrize("kind", [Addon, Known])
async def test_a_hook_that_is_set_late_is_found(clock, kind: type[Addon]) -> None:
    """At once in an addon of somebody else, within a second in one of mitmproxy's own."""
    with taddons.context() as tctx:
        said: list[str] = []
        late = kind("late", "none", said)
        tctx.master.addons.add(late)
        hooks = HookTable(tctx.master.addons)
        assert hooks.install()
        await tctx.master.addons.trigger_event(EVENT)
        late.client_connected = late._now
        await tctx.master.addons.trigger_event(EVENT)
        assert said == ([] if kind is Known else ["late client"])
        said.clear()
        clock.now += TABLE_S + 0.1
        await tctx.master.addons.trigger_event(EVENT)
        assert said == ["late client"]
        # Whoever still holds the table is told of every change.
        hooks.uninstall()
        tctx.master.addons.remove(late)
        await hooks.trigger_event(EVENT)
        assert said == ["late client"]


async def test_a_table_keeps_no_flow_alive() -> None:
    with taddons.context() as tctx:
        tctx.master.addons.add(Addon("other", "now", []))
        hooks = HookTable(tctx.master.addons)
        about = tflow.tflow()
        await hooks.trigger_event(HttpRequestHook(about))
        gone = weakref.ref(about)
        del about
        gc.collect()
        assert gone() is None


SCRIPT = """
from mitmproxy.script import concurrent
class Class:
    @classmethod
    def client_connected(cls, client): client.said.append("class VERSION")
    def request(self, client): pass
class Static:
    @staticmethod
    async def client_connected(client): client.said.append("static VERSION")
class Thread:
    @concurrent
    def client_connected(self, client): client.said.append("thread VERSION")
def client_connected(client): client.said.append("module VERSION")
addons = [Class, Static(), Thread()]
"""


async def test_a_script_is_reloaded(tmp_path) -> None:
    path = tmp_path / "other.py"
    said: list[str] = []
    event = ClientConnectedHook(SimpleNamespace(said=said))
    parts = ("module", "class", "static", "thread")
    loader = ScriptLoader()
    with taddons.context(loader) as tctx:
        assert HookTable(tctx.master.addons).install()
        await tctx.master.addons.trigger_event(event)
        path.write_text(SCRIPT.replace("VERSION", "1"))
        tctx.configure(loader, scripts=[str(path)])
        async with asyncio.timeout(PATIENCE_S):
            while not loader.addons[0].addons:
                await asyncio.sleep(0)
        for version in ("1", "2"):
            await tctx.master.addons.trigger_event(event)
            assert said == [f"{part} {version}" for part in parts]
            said.clear()
            path.write_text(SCRIPT.replace("VERSION", "2"))
            os.utime(path, (9, 9))
            loader.addons[0].loadscript()
        tctx.configure(loader, scripts=[])
        await tctx.master.addons.trigger_event(event)
        assert said == []


async def test_another_addon_that_looks_at_each_hook_goes_on_to(caplog) -> None:
    """One that has put something of its own in the place of mitmproxy's walk, before or after."""
    with taddons.context() as tctx:
        manager, said = tctx.master.addons, []

        async def watching(event) -> None:
            said.append(event.name)

        manager.trigger_event = watching
        hooks = HookTable(manager)
        assert not hooks.install()
        del manager.trigger_event
        assert hooks.install() and hooks.is_installed
        for name in _WALK:
            ours = vars(manager).get(name)
            setattr(manager, name, watching)
            assert not hooks.is_installed
            hooks.uninstall()
            assert name == "trigger_event" or "trigger_event" not in vars(manager)
            assert vars(manager)[name] is watching
            delattr(manager, name)
            manager.trigger_event = hooks.trigger_event if ours is None else ours
        hooks.uninstall()


async def test_an_error_of_options_ends_all(caplog) -> None:
    def client_connected(_client) -> None:
        raise exceptions.OptionsError("wrong")

    with taddons.context() as tctx:
        tctx.master.addons.add(SimpleNamespace(name="a", client_connected=client_connected))
        HookTable(tctx.master.addons).install()
        with pytest.raises(exceptions.OptionsError):
            await tctx.master.addons.trigger_event(EVENT)


async def test_an_error_is_logged_with_its_place(caplog) -> None:
    with taddons.context() as tctx:
        tctx.master.addons.add(Addon("a", "raises", []))
        HookTable(tctx.master.addons).install()
        await tctx.master.addons.trigger_event(EVENT)
    (record,) = caplog.records
    assert record.getMessage() == "Addon error: no"
    assert record.name == "mitmproxy.addonmanager"
    assert "in _now" in caplog.text and "in start" not in caplog.text


async def test_what_is_not_known_is_left_alone(monkeypatch) -> None:
    class Changed(AddonManager):
        pass

    with taddons.context() as tctx:
        assert not HookTable(Changed(tctx.master)).install()
        # As another addon may have changed it, or a version to come.
        monkeypatch.setattr(AddonManager, "invoke_addon", Addon._later)
        hooks = HookTable(tctx.master.addons)
        assert not hooks.install()
        assert "trigger_event" not in vars(tctx.master.addons)


def request_for(host: str, host_header: str | None) -> HttpRequestHook:
    flow = tflow.tflow(req=tutils.treq(host=host), live=True)
    flow.request.headers.pop("host", None)
    if host_header is not None:
        flow.request.headers["host"] = host_header
    return HttpRequestHook(flow)


async def answered(hooks: HookTable, event: HttpRequestHook) -> bool:
    """Trigger *event*; say whether mitmproxy's page for clients was served."""
    await hooks.trigger_event(event)
    return event.flow.response is not None


async def test_a_request_that_no_addon_wants_awaits_nothing() -> None:
    onboarding, files = Onboarding(), MapLocal()
    with taddons.context(onboarding, files) as tctx:
        hooks = HookTable(tctx.master.addons)
        event = request_for("address", "api.example.com")
        assert handler.start(hooks.walk(event), event.args()) is None


@pytest.mark.parametrize(
    ("host", "host_header"),
    [("mitm.it", None), ("198.51.100.1", "mitm.it"), ("address", "mitm.it:80")],
)
async def test_the_page_for_clients_is_served(host: str, host_header: str | None) -> None:
    onboarding = Onboarding()
    with taddons.context(onboarding) as tctx:
        hooks = HookTable(tctx.master.addons)
        assert await answered(hooks, request_for(host, host_header))
        assert not await answered(hooks, request_for(host, "api.example.com"))
        tctx.configure(onboarding, onboarding_host="page.example")
        assert not await answered(hooks, request_for(host, host_header))
        assert await answered(hooks, request_for(host, "page.example"))
        tctx.configure(onboarding, onboarding=False)
        assert not await answered(hooks, request_for(host, "page.example"))


async def test_a_file_answers_from_the_request_on_that_follows_its_option(tmp_path) -> None:
    path, files = tmp_path / "answer", MapLocal()
    path.write_text("from a file")
    with taddons.context(files) as tctx:
        hooks = HookTable(tctx.master.addons)
        assert not await answered(hooks, request_for("api.example.com", None))
        tctx.configure(files, map_local=[f"|api.example.com|{path}"])
        event = request_for("api.example.com", None)
        assert await answered(hooks, event) and event.flow.response.text == "from a file"


@pytest.mark.parametrize("where", ["instance", "class"])
async def test_hooks_in_the_place_of_mitmproxys_are_called(where: str, monkeypatch) -> None:
    said: list[object] = []
    addons = Onboarding(), MapLocal()
    for addon in addons:
        kind = addon if where == "instance" else type(addon)
        monkeypatch.setattr(kind, "request", lambda *args: said.append(args[-1]))
    with taddons.context(*addons) as tctx:
        event = request_for("address", "api.example.com")
        await HookTable(tctx.master.addons).trigger_event(event)
        assert said == [event.flow, event.flow]


@pytest.mark.parametrize("where", ["instance", "class"])
async def test_another_judgement_of_who_gets_the_page_counts(where: str, monkeypatch) -> None:
    onboarding = Onboarding()
    kind = onboarding if where == "instance" else Onboarding
    monkeypatch.setattr(kind, "should_serve", lambda *_args: True)
    with taddons.context(onboarding) as tctx:
        hooks = HookTable(tctx.master.addons)
        assert await answered(hooks, request_for("address", "api.example.com"))


def test_what_is_left_out_is_known_here() -> None:
    """Where it is not, each request is slower, and nobody would notice."""
    onboarding, files = Onboarding(), MapLocal()
    assert known.is_onboarding(onboarding, onboarding.request)
    assert known.is_map_local(files, files.request)
    assert not known.is_onboarding(onboarding, onboarding.configure)
    assert not known.is_map_local(files, files.configure)
