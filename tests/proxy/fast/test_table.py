"""Hooks from the table run as mitmproxy's own walk runs them."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import exceptions
from mitmproxy.addonmanager import AddonManager
from mitmproxy.proxy.server_hooks import ClientConnectedHook
from mitmproxy.test import taddons

from account_pool.proxy.fast import table
from account_pool.proxy.fast.table import HookTable

EVENT = ClientConnectedHook(SimpleNamespace(id="client"))


class Addon:
    """Has the hook, or has not, and children."""

    def __init__(self, name: str, how: str, said: list[str], children=()) -> None:
        self.name, self.addons, self._said = name, list(children), said
        if how != "none":
            self.client_connected = self._later if how.startswith("async") else self._now
        self._how = how.removeprefix("async ")

    def _now(self, client) -> None:
        self._said.append(f"{self.name} {client.id}")
        if self._how == "raises":
            raise ValueError("no")
        if self._how == "halts":
            raise exceptions.AddonHalt

    async def _later(self, client) -> None:
        self._said.append(f"{self.name} begins")
        await asyncio.sleep(0)
        self._now(client)


HOWS = st.sampled_from(
    ["none", "now", "raises", "halts", "async now", "async raises", "async halts"]
)
TREES = st.lists(st.tuples(HOWS, st.lists(HOWS, max_size=3)), max_size=5)


def grown(tree, said: list[str]) -> list[Addon]:
    return [
        Addon(f"{i}", how, said, [Addon(f"{i}.{j}", h, said) for j, h in enumerate(children)])
        for i, (how, children) in enumerate(tree)
    ]


@given(tree=TREES)
def test_the_same_calls_in_the_same_order(tree) -> None:
    async def both() -> None:
        with taddons.context() as tctx:
            manager = tctx.master.addons
            said: list[str] = []
            manager.chain = grown(tree, said)
            await AddonManager.trigger_event(manager, EVENT)
            expected, said[:] = list(said), []
            hooks = HookTable(manager)
            assert hooks.install()
            for _ in range(2):  # built, and as it is
                await manager.trigger_event(EVENT)
                assert said == expected
                said.clear()
            hooks.uninstall()
            manager.chain = []

    logging.disable()
    try:
        asyncio.run(both())
    finally:
        logging.disable(logging.NOTSET)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(table, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


async def test_addons_come_and_go(clock) -> None:
    with taddons.context() as tctx:
        said: list[str] = []
        hooks = HookTable(tctx.master.addons)
        assert hooks.install() and hooks.install()
        first, second = Addon("first", "now", said), Addon("second", "async now", said)
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
        assert not {*vars(tctx.master.addons)} & {*table._CHANGES, "trigger_event"}


async def test_a_hook_that_is_set_late_is_found_within_a_second(clock) -> None:
    with taddons.context() as tctx:
        said: list[str] = []
        late = Addon("late", "none", said)
        tctx.master.addons.add(late)
        hooks = HookTable(tctx.master.addons)
        assert hooks.install()
        await tctx.master.addons.trigger_event(EVENT)
        late.client_connected = late._now
        await tctx.master.addons.trigger_event(EVENT)
        assert said == []
        clock.now += table.TABLE_S + 0.1
        await tctx.master.addons.trigger_event(EVENT)
        assert said == ["late client"]
        # Whoever still holds the table is told of every change.
        hooks.uninstall()
        del late.client_connected
        assert hooks.groups(EVENT) == ()


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
        monkeypatch.setattr(table, "KNOWN", frozenset())
        table.is_as_known.cache_clear()
        try:
            hooks = HookTable(tctx.master.addons)
            assert not hooks.install()
            assert "trigger_event" not in vars(tctx.master.addons)
        finally:
            table.is_as_known.cache_clear()
