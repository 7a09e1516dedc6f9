"""The proxies that share a state, on the dashboard of one of them, in a real Chromium."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from account_pool import __version__
from account_pool.core.fleet import AboutProxy
from account_pool.store.sqlite_state import SqliteState
from account_pool.store.store import BEAT_S
from tests.e2e.chromium import AXE, axe, browser, complaints, expect, opened
from tests.e2e.harness import CHROMIUM, TIMEOUT_S, TWO
from tests.e2e.test_proxies import kept, kill

__all__ = ["browser", "complaints", "kept"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")


async def test_a_proxy_that_is_alone_shows_no_fleet(pool_proxy, kept, browser, complaints):
    one = await pool_proxy(TWO, **kept)
    page = await opened(browser, one, complaints)
    await expect(page.locator("#proxies > li")).to_have_count(0)
    await expect(page.locator("#fleet-section")).to_be_hidden()
    await expect(page.locator("#here")).to_be_hidden()
    assert complaints == []


async def test_proxies_come_and_go(pool_proxy, kept, browser, complaints):
    one = await pool_proxy(TWO, **kept)
    page = await opened(browser, one, complaints)
    # Another one arrives by itself. The page says which one it is of.
    two = await pool_proxy(TWO, **kept)
    cards = page.locator("#proxies > li")
    await expect(cards).to_have_count(2)
    await expect(page.locator("#here")).to_contain_text(f":{one.port}")
    await expect(cards.first).to_contain_text("this one")
    await expect(cards.last).to_contain_text(f":{two.port}")
    await expect(cards.last).to_contain_text(f"version {__version__}")
    await expect(cards.last).to_contain_text("running")
    await expect(page.locator("#fleet-summary")).to_have_text("2 running · 0 requests in flight")
    # One that dies is missed, at the top of the page.
    kill(two, kept["options"]["pool_state"])
    await expect(cards.last.locator("[data-part=state]")).to_have_text("gone")
    await expect(cards.last).to_contain_text("last heard of")
    attention = page.locator("#attention")
    await expect(attention).to_contain_text(f":{two.port} is gone")
    # Back in its place nothing is missed; in good order it goes without a word.
    again = await pool_proxy(TWO, **kept, extra_args=["--listen-port", str(two.port)])
    await expect(cards.last.locator("[data-part=state]")).to_have_text("running")
    await expect(page.locator("#attention-section")).to_be_hidden()
    await again.stop()
    await expect(page.locator("#fleet-section")).to_be_hidden()
    assert complaints == []


#: Sixteen, of which some are not as they should be.
ODD: dict[int, dict[str, Any]] = {
    3: {"version": "0.1.9"},
    5: {"problem": "the state database /srv/pool/state.sqlite cannot be written: the disk is full"},
    7: {"name": "a-host-with-a-rather-long-name.build.internal.example.com:8080"},
    9: {"stopping": True},
    11: {"version": "", "mitmproxy": ""},
}


class Others:
    """Fifteen proxies more on a state file, for as long as it is entered."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stores = [SqliteState(path) for _ in range(15)]
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._beating = asyncio.create_task(self._beat_on())

    async def __aexit__(self, *_: object) -> None:
        assert self._beating is not None
        self._beating.cancel()
        await asyncio.wait([self._beating])
        for store in self._stores:
            store.close()

    async def _beat_on(self) -> None:
        while True:
            self._beat()
            await asyncio.sleep(BEAT_S)

    def _beat(self) -> None:
        versions = {"version": __version__, "mitmproxy": "12.3.1"}
        for number, store in enumerate(self._stores):
            name = f"build-{number:02}:8080"
            usual = {"name": name, "instance": str(number), "uptime_s": 86_400.0, **versions}
            about = AboutProxy(**{**usual, **ODD.get(number, {})})
            store.beat({}, wall_now=store.now() or 0.0, about=about)
        with closing(sqlite3.connect(self._path, timeout=TIMEOUT_S)) as connection:
            # The heartbeat of one has stopped, and another is of another program.
            gone, other = (f"about LIKE '%build-{number}:8080%'" for number in (14, 13))
            which = f"(SELECT proxy FROM proxy_reports WHERE {gone})"
            for table in ("proxies", "proxy_reports"):
                connection.execute(
                    f"UPDATE {table} SET seen_at = seen_at - 30 WHERE proxy IN {which}"
                )
            connection.execute(f"UPDATE proxy_reports SET about = 'nonsense' WHERE {other}")
            connection.commit()


SCENES = [
    ("light", (1280, 900)), ("dark", (1280, 900)), ("light", (390, 844)), ("dark", (390, 844)),
    ("light", (2560, 1200)),
]  # fmt: skip


async def test_sixteen_fit_any_screen(pool_proxy, kept, browser, complaints):
    one = await pool_proxy(TWO, **kept)
    async with Others(kept["options"]["pool_state"]):
        for colours, size in SCENES:
            await look(browser, one, complaints, colours, size)
    page = await opened(browser, one, complaints)
    await expect(page.locator("#fleet-section")).to_be_hidden()
    assert complaints == []


async def look(browser, proxy, complaints, colours: str, size: tuple[int, int]) -> None:
    width, height = size
    screen = {"viewport": {"width": width, "height": height}, "color_scheme": colours}
    page = await opened(browser, proxy, complaints, locale="en-GB", **screen)
    cards, summary = page.locator("#proxies"), page.locator("#fleet > summary")
    await expect(cards.locator("> li")).to_have_count(16)
    # So many are closed to begin with.
    await expect(cards).to_be_hidden()
    await summary.focus()
    await page.keyboard.press("Enter")
    await expect(cards).to_be_visible()
    for text in ("this one", "version 0.1.9", "version unknown", "the disk is full", "stopping"):
        await expect(cards).to_contain_text(text)
    await expect(summary).to_contain_text("14 running · 1 stopping · 1 gone")
    attention = page.locator("#attention")
    await expect(attention).to_contain_text("build-05:8080 has a problem")
    await expect(attention).to_contain_text("build-14:8080 is gone")
    await expect(attention).to_contain_text(f"different versions 0.1.9, {__version__}, unknown")
    await expect(cards.locator(".differs")).to_have_count(3)
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    if pictures := os.environ.get("POOL_PICTURES"):
        await page.screenshot(path=f"{pictures}/fleet-{colours}-{width}.png", full_page=True)
    result = await axe.Axe().run(page, options=AXE)
    found = result.response["violations"]
    assert [json.dumps(violation, indent=1)[:1500] for violation in found] == []
    # Who has closed it wants it closed, whatever comes.
    await summary.click()
    await page.evaluate("draw()")
    await expect(cards).to_be_hidden()
    await page.close()
