"""The screen of `account-pool status` on a terminal: keys, size, a proxy that comes and goes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from contextlib import asynccontextmanager

import pytest
from rich.text import Text

from account_pool.cli import status_app
from account_pool.cli.api import NoAnswer
from account_pool.cli.status_app import StatusApp
from account_pool.cli.status_screen import Change, PageKind, StatusScreen, Verb
from tests.cli.pools import DECISIONS, NOW, POOL, account, status
from tests.patience import PATIENCE_S


class Gone(NoAnswer):
    """The proxy does not answer."""


class FakeProxy:
    """What the screen asks, and what it has asked for."""

    def __init__(self) -> None:
        self.pool, self.changes, self.is_closed = POOL, [], False
        self.widths = []

    def accounts(self):
        if self.pool is None:
            raise Gone("no proxy answers")
        return self.pool

    def decisions(self):
        return DECISIONS

    def page(self, page, width):
        self.widths.append(width)
        if page.kind is PageKind.USAGE:
            raise Gone("no such page")
        return [Text(f"{page.kind} of {page.account}")]

    def change(self, change):
        if self.pool is None:
            raise Gone("no proxy answers")
        self.changes.append(change)
        return f"{change.key}: {change.verb}"

    def close(self):
        self.is_closed = True


@pytest.fixture
def proxy():
    return FakeProxy()


@asynccontextmanager
async def running(proxy, size=(80, 24)):
    """Run the screen without its own looks: tests say when."""
    app = StatusApp(proxy, StatusScreen(POOL, NOW), every_s=1e6)
    async with app.run_test(size=size) as pilot:
        yield app, pilot


def text_of(app) -> str:
    lines = app.query_one("_Lines")
    return "\n".join(lines.render_line(y).text.rstrip() for y in range(lines.size.height))


async def until(pilot, app, part: str) -> None:
    """Wait until *part* is on the screen."""
    async with asyncio.timeout(PATIENCE_S):
        while part not in text_of(app):
            await pilot.pause(0.01)


async def test_a_key_changes_an_account_and_says_so(proxy):
    async with running(proxy) as (app, pilot):
        await pilot.press("j", "down", "c")
        await until(pilot, app, "openai/work: clear")
    assert proxy.changes == [Change(Verb.CLEAR, "openai/work")]


async def test_what_is_typed_for_the_filter_does_nothing_else(proxy):
    async with running(proxy) as (app, pilot):
        await pilot.press("slash", "c", "o", "o", "l", "space", "d", "enter")
        assert "'cool d'" in text_of(app)
        await pilot.press("q")
    assert app.return_code == 0
    assert proxy.changes == []
    assert proxy.is_closed


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_it_is_left(proxy, key):
    async with running(proxy) as (app, pilot):
        await pilot.press(key)
        await pilot.pause()
        assert not app.is_running
    assert app.return_code == 0


async def test_it_follows_the_size(proxy):
    async with running(proxy) as (app, pilot):
        await pilot.resize_terminal(40, 20)
        await until(pilot, app, "back in")
        lines = text_of(app).splitlines()
        assert len(lines) == 20
        assert lines[-1] == "c clear  / filter  ? help  q quit"
        assert lines[0] == "3 of 7 available, 2 in flight"


async def test_a_page_is_read_when_it_is_opened_and_fits(proxy):
    async with running(proxy, size=(50, 20)) as (app, pilot):
        await pilot.press("l")
        await until(pilot, app, "decisions of None")
        await pilot.press("a")
        await until(pilot, app, "decisions of gemini/spare")
        await pilot.press("escape")
        assert "gemini/spare" in text_of(app)
    assert set(proxy.widths) == {50}


async def test_a_page_that_the_proxy_does_not_have(proxy):
    async with running(proxy) as (app, pilot):
        await pilot.press("u")
        await until(pilot, app, "no such page")
        assert "no answer since" not in text_of(app)


async def test_the_proxy_goes_away_and_comes_back(proxy):
    async with running(proxy) as (app, pilot):
        proxy.pool = None
        await app.look()
        assert "no answer since" in text_of(app)
        assert "openai/work" in text_of(app)
        await pilot.press("d")
        await until(pilot, app, "no proxy answers")
        proxy.pool = status([account("openai/new")])
        await app.look()
        assert "no answer since" not in text_of(app)
        assert "openai/new" in text_of(app)


async def test_a_proxy_that_hangs_delays_nothing(proxy, monkeypatch):
    asked, answer = threading.Event(), threading.Event()

    def accounts():
        asked.set()
        answer.wait(PATIENCE_S)
        return POOL

    monkeypatch.setattr(status_app, "SILENT_S", 0.0)
    monkeypatch.setattr(proxy, "accounts", accounts)
    try:
        async with running(proxy) as (app, pilot):
            await asyncio.to_thread(asked.wait, PATIENCE_S)
            await pilot.press("j")
            assert "> disabled" in text_of(app)
            assert "no answer since" in text_of(app)
            answer.set()
            await app.look()
            assert "no answer since" not in text_of(app)
    finally:
        answer.set()


def test_how_often_the_proxy_is_asked():
    assert status_app.pause_s(0.001, 1.0) == 1.0
    assert status_app.pause_s(0.5, 1.0) == 5.0
    assert status_app.pause_s(60.0, 1.0) == 30.0
    # A silence says nothing of how much there is to say.
    assert status_app.pause_s(None, 1.0) == 1.0


async def test_it_looks_again_by_itself(proxy):
    app = StatusApp(proxy, StatusScreen(POOL, NOW), every_s=0.01)
    async with app.run_test() as pilot:
        proxy.pool = status([account("openai/new")])
        await until(pilot, app, "openai/new")


async def test_only_lines_that_change_are_drawn_again(proxy, monkeypatch):
    async with running(proxy) as (app, pilot):
        await app.look()
        drawn = []
        lines = app.query_one("_Lines")
        monkeypatch.setattr(lines, "refresh", lambda *regions, **_: drawn.extend(regions))
        app.draw()
        before = len(drawn)
        await pilot.press("j")
        # Who is selected, who was, and the details.
        assert 0 < len(drawn) - before < 24 - 5


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
async def test_sigterm_leaves_the_terminal_as_it_was(proxy):
    async with running(proxy) as (app, pilot):
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            while app.is_running:
                await pilot.pause(0.01)
