"""The dashboard in a real Chromium, on a real proxy.

Needs Playwright (extra `browser`) and a Chromium on the path; skipped without them. The
pictures in docs/ are made by `pictures.py`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from account_pool.admin.auth import TOKEN_FILE
from account_pool.demo.replies import by_credential
from tests.e2e.harness import CHROMIUM, CONFDIR, FIRST, SECOND, THIRD, TIMEOUT_S, TWO, chat
from tests.scripts import openai

playwright = pytest.importorskip("playwright.async_api", reason="needs the extra `browser`")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")

GOOD = openai.chat_complete("Good morning", model="gpt-5-nano")
SCRIPT = {FIRST: openai.insufficient_quota(), SECOND: GOOD, THIRD: GOOD}


@pytest.fixture
async def browser() -> AsyncIterator[playwright.Browser]:
    async with playwright.async_playwright() as started:
        # Its own sandbox needs rights that containers do not give.
        one = await started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        await one.close()


async def opened(browser, proxy, complaints: list[str], **how) -> playwright.Page:
    context = await browser.new_context(**how)
    context.set_default_timeout(TIMEOUT_S * 1000)
    page = await context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    await page.goto(proxy.url)
    await page.wait_for_selector("body[data-ready]")
    return page


async def test_see_a_failover_clear_it_and_add_an_account(provider, pool_proxy, browser):
    upstream = await provider(by_credential(SCRIPT))
    proxy = await pool_proxy(TWO, provider=upstream)
    token = (proxy.folder / CONFDIR / TOKEN_FILE).read_text().strip()
    complaints: list[str] = []
    page = await opened(browser, proxy, complaints, viewport={"width": 1200, "height": 900})
    text = playwright.expect
    first = page.get_by_role("article", name="openai/first")
    await text(first.get_by_text("available")).to_be_visible()

    # A failover arrives by itself.
    async with proxy.client() as client:
        assert (await client.request(**chat(stream=False))).status_code == 200
    await text(first.locator(".state")).to_have_text("on cooldown")
    await text(first.get_by_text(re.compile(r"^on cooldown .*insufficient_quota"))).to_be_visible()
    decisions = page.get_by_role("log")
    await text(decisions.get_by_text("openai/second").first).to_be_visible()
    await text(page.get_by_role("row", name="openai/second gpt-5-nano 1 9")).to_be_visible()

    # A wrong token is told; the right one ends the cooldown.
    await page.get_by_role("button", name="Clear openai/first").click()
    asked = page.get_by_role("dialog", name="Admin token").get_by_label("Token", exact=True)
    await asked.fill("x" * 40)
    await page.get_by_role("button", name="Use token").click()
    await text(page.locator("#token-error")).not_to_be_empty()
    assert len(complaints) == 1 and "401" in complaints.pop()
    await asked.fill(token)
    await page.get_by_role("button", name="Use token").click()
    await text(first.locator(".state")).to_have_text("available")

    # An account that is added serves, and stands in the file.
    await page.get_by_role("button", name="Add account").click()
    dialog = page.get_by_role("dialog", name="Add account")
    await dialog.get_by_label("Provider").fill("opnai")
    await dialog.get_by_label("Label").fill("third")
    await dialog.get_by_role("textbox", name="Token").fill(THIRD)
    await dialog.get_by_label("Priority").fill("-1")
    # What is wrong is told where it was typed.
    await dialog.get_by_role("button", name="Add").click()
    await text(dialog.get_by_role("alert")).to_contain_text("did you mean openai?")
    assert len(complaints) == 1 and "422" in complaints.pop()
    await dialog.get_by_label("Provider").fill("openai")
    await dialog.get_by_role("button", name="Add").click()
    await text(page.get_by_role("article", name="openai/third")).to_be_visible()
    assert "third" in (proxy.folder / "accounts.yaml").read_text()
    async with proxy.client() as client:
        assert (await client.request(**chat("Another one", stream=False))).status_code == 200
    assert upstream.journal.credentials[-1] == THIRD
    await page.get_by_role("button", name="Disable openai/second").click()
    second = page.get_by_role("article", name="openai/second").locator(".state")
    await text(second).to_have_text("disabled")
    await page.get_by_role("button", name="Enable openai/second").click()
    await text(second).to_have_text("available")

    assert token not in await page.content() and THIRD not in await page.content()
    assert complaints == []


async def test_on_a_phone_in_the_dark_by_keyboard(provider, pool_proxy, browser):
    upstream = await provider(by_credential(SCRIPT))
    proxy = await pool_proxy(TWO, provider=upstream)
    async with proxy.client() as client:
        assert (await client.request(**chat(stream=False))).status_code == 200
    complaints: list[str] = []
    page = await opened(
        browser, proxy, complaints, viewport={"width": 390, "height": 844}, color_scheme="dark"
    )
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390

    # Everything that can be done is reached by Tab and has a name.
    named = (
        "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
    )
    reached = set()
    for _ in range(40):
        await page.keyboard.press("Tab")
        reached.add((await page.evaluate(named)).strip())
    assert {"Add account", "Clear openai/first", "Disable openai/second"} <= reached

    # A wait is told when it begins, and how it ended.
    wait = {"number": 9_000, "kind": "wait", "at": "2026-11-01T00:00:00Z", "evidence": {}}
    later = {**wait, "number": 9_001, "kind": "move", "ended_at": None, "text": "another"}
    for told in (
        [{**wait, "text": "waits", "ended_at": None}, later],
        [{**wait, "text": "has waited", "ended_at": wait["at"]}],
    ):
        await page.evaluate("decisions => showDecisions({ decisions })", told)
    shown = page.get_by_role("log").get_by_role("listitem")
    await playwright.expect(shown.nth(0)).to_contain_text("another")
    await playwright.expect(shown.nth(1)).to_contain_text("has waited")

    # A refresh takes the focus from nobody.
    button = page.get_by_role("button", name="Disable openai/second")
    await button.focus()
    async with asyncio.timeout(TIMEOUT_S):
        async with page.expect_response(lambda answer: answer.url.endswith("/sessions")):
            pass
    await playwright.expect(button).to_be_focused()
    assert complaints == []
