"""A real Chromium that looks at the pages of a real proxy.

Needs the extra `browser` and a Chromium on the path. What imports this is skipped without
them, except where CI says that both are there (`POOL_NEEDS_BROWSER`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.e2e.harness import CHROMIUM, TIMEOUT_S, Proxy

#: Set by CI: what is missing then is a failure, not a reason to skip.
if os.environ.get("POOL_NEEDS_BROWSER"):
    assert CHROMIUM is not None, "CI has no Chromium"
    import axe_playwright_python.async_playwright as axe
    import playwright.async_api as playwright
else:
    playwright = pytest.importorskip("playwright.async_api", reason="needs the extra `browser`")
    axe = pytest.importorskip(
        "axe_playwright_python.async_playwright", reason="needs the extra `browser`"
    )

#: What the rules of WCAG 2.2, A and AA, and the good practice of axe find wrong.
AXE = {"resultTypes": ["violations"]}
expect = playwright.expect
expect.set_options(timeout=TIMEOUT_S * 1000)


@pytest.fixture
async def browser() -> AsyncIterator[playwright.Browser]:
    async with playwright.async_playwright() as started:
        # Its own sandbox needs rights that containers do not give.
        one = await started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        await one.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the console of a page has said; a test empties what it has expected."""
    return []


def listen(page: playwright.Page, complaints: list[str]) -> None:
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)


async def opened(
    browser: playwright.Browser, proxy: Proxy, complaints: list[str], path: str = "/", **how: Any
) -> playwright.Page:
    """A page of `proxy`'s at `path`, ready; `how` is of the browser's context."""
    context = await browser.new_context(**how)
    context.set_default_timeout(TIMEOUT_S * 1000)
    page = await context.new_page()
    listen(page, complaints)
    await page.goto(proxy.url + path)
    await page.wait_for_selector("body[data-ready]")
    return page
