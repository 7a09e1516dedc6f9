"""The dashboard in a real Chromium, on a real proxy.

The pictures in docs/ are made by `pictures.py` of the same scenes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re

import httpx
import pytest

from account_pool.admin.app import dashboard
from account_pool.admin.auth import TOKEN_FILE

# First: without a browser what comes next cannot be imported.
from tests.e2e.chromium import AXE, axe, browser, complaints, expect, listen, opened, playwright
from tests.e2e.harness import CHROMIUM, CONFDIR, FIRST, SECOND, THIRD, TIMEOUT_S, TWO, chat
from tests.scripts import openai
from tests.upstream.replies import by_credential

from tests.e2e import pictures  # isort: skip

__all__ = ["browser", "complaints"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")

GOOD = openai.chat_complete("Good morning", model="gpt-5-nano")
SCRIPT = {FIRST: openai.insufficient_quota(), SECOND: GOOD, THIRD: GOOD}
#: Of hundreds of rows alike some are enough; it looks at each for a second otherwise.
SOME_ROWS = {"include": ["html"], "exclude": ["#rows > tr:nth-child(n + 50)"]}
#: The page with its style and scripts; nothing else is loaded.
MAX_BYTES = 150_000


def admin_token(proxy) -> str:
    return (proxy.folder / CONFDIR / TOKEN_FILE).read_text().strip()


def row(page: playwright.Page, name: str) -> playwright.Locator:
    return page.locator(f'#rows > tr[data-key="{name}"]')


def state(page: playwright.Page, name: str) -> playwright.Locator:
    return row(page, name).locator("[data-part=standing]")


def test_the_page_is_small_and_loads_nothing_else():
    page = dashboard()
    assert len(page.body) < MAX_BYTES
    text = page.body.decode()
    assert not re.search(r"""(src|href)=["'](?!#|data:,)""", text)
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy


async def test_see_a_failover_clear_it_and_add_an_account(
    provider, pool_proxy, browser, complaints
):
    upstream = await provider(by_credential(SCRIPT))
    proxy = await pool_proxy(TWO, provider=upstream)
    token = admin_token(proxy)
    page = await opened(browser, proxy, complaints, viewport={"width": 1200, "height": 900})
    await expect(state(page, "openai/first")).to_have_text("available")
    await expect(page.locator("#live-text")).to_have_text("live")

    # A failover arrives by itself, and is told once.
    async with proxy.client() as client:
        assert (await client.request(**chat(stream=False))).status_code == 200
    await expect(state(page, "openai/first")).to_have_text("on cooldown")
    decisions = page.get_by_role("log").get_by_role("listitem")
    await expect(decisions).to_have_count(1)
    await expect(decisions).to_contain_text("→ openai/second")

    # The drawer says why. A wrong token is told; the right one ends the cooldown.
    await page.get_by_role("button", name="openai/first").click()
    drawer = page.get_by_role("dialog", name="openai/first")
    await expect(drawer.locator(".reason")).to_contain_text("insufficient_quota")
    await drawer.get_by_role("button", name="End cooldowns").click()
    asked = page.get_by_role("dialog", name="Admin token").get_by_label("Token", exact=True)
    await asked.fill("x" * 40)
    await page.get_by_role("button", name="Use token").click()
    await expect(page.locator("#token-error")).not_to_be_empty()
    assert len(complaints) == 1 and "401" in complaints.pop()
    await asked.fill(token)
    await page.get_by_role("button", name="Use token").click()
    await expect(drawer.locator("p.standing .state")).to_have_text("available")
    await page.keyboard.press("Escape")
    await expect(state(page, "openai/first")).to_have_text("available")

    assert token not in await page.content()
    assert complaints == []


async def test_add_an_account_and_remove_one(provider, pool_proxy, browser, complaints):
    upstream = await provider(by_credential(SCRIPT))
    proxy = await pool_proxy(TWO, provider=upstream)
    page = await opened(browser, proxy, complaints)
    await page.evaluate("token => sessionStorage.setItem(TOKEN, token)", admin_token(proxy))
    # An account that is added serves, and stands in the file with all that was said of it.
    await page.get_by_role("button", name="Add account").click()
    dialog = page.get_by_role("dialog", name="Add account")
    await dialog.get_by_label("Provider").select_option("openai")
    await expect(dialog.locator("#add-hint")).to_contain_text("platform.openai.com")
    await dialog.get_by_label("Label").fill("third")
    await dialog.get_by_role("textbox", name="Token").fill(THIRD)
    await dialog.get_by_text("More settings").click()
    await dialog.get_by_label("Priority").fill("-1")
    await dialog.get_by_label("Models").fill("gpt-*, !gpt-5-pro*")
    await dialog.get_by_label("Reserve").fill("no window: 15%")
    # What is wrong is told where it was typed.
    await dialog.get_by_role("button", name="Add").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("window")
    assert len(complaints) == 1 and "422" in complaints.pop()
    await dialog.get_by_label("Reserve").fill("")
    await dialog.get_by_role("button", name="Add").click()
    await expect(row(page, "openai/third")).to_be_visible()
    written = (proxy.folder / "accounts.yaml").read_text()
    assert "third" in written and "!gpt-5-pro*" in written
    async with proxy.client() as client:
        assert (await client.request(**chat("Another one", stream=False))).status_code == 200
    assert upstream.journal.credentials[-1] == THIRD

    # What needs somebody stands first.
    await page.get_by_role("button", name="openai/second").click()
    await page.get_by_role("button", name="Disable").click()
    await page.keyboard.press("Escape")
    await expect(page.locator("#attention")).to_contain_text("openai/second is disabled")
    await page.get_by_role("button", name="Show: openai/second is disabled").click()
    await page.get_by_role("button", name="Enable").click()
    await expect(page.locator("#attention-section")).to_be_hidden()

    # Removing is asked about, and is not the first thing.
    await page.get_by_role("button", name="Remove this account").click()
    await page.get_by_role("dialog", name="Remove openai/second?").get_by_text("Cancel").click()
    await page.get_by_role("button", name="Remove this account").click()
    await (
        page.get_by_role("dialog", name="Remove openai/second?").get_by_text("Remove").last.click()
    )
    await expect(row(page, "openai/second")).to_have_count(0)
    assert "second" not in (proxy.folder / "accounts.yaml").read_text()

    assert THIRD not in await page.content()
    assert complaints == []


async def test_by_keyboard(provider, pool_proxy, browser, complaints):
    upstream = await provider(by_credential(SCRIPT))
    proxy = await pool_proxy(TWO, provider=upstream)
    async with proxy.client() as client:
        assert (await client.request(**chat(stream=False))).status_code == 200
    page = await opened(browser, proxy, complaints, viewport={"width": 390, "height": 844})
    await expect(state(page, "openai/first")).to_have_text("on cooldown")
    named = (
        "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
    )
    reached = set()
    for _ in range(40):
        await page.keyboard.press("Tab")
        reached.add((await page.evaluate(named)).strip())
    assert {"Skip to the content", "Add account", "openai/first", "State", "Usage"} <= reached

    # "/" searches, Escape shows all again, Enter opens, Escape returns to where one was.
    await page.keyboard.press("/")
    await page.keyboard.type("first")
    await expect(row(page, "openai/second")).to_have_count(0)
    await page.keyboard.press("Escape")
    await expect(row(page, "openai/second")).to_have_count(1)
    button = page.get_by_role("button", name="openai/second")
    await button.focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog", name="openai/second")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(button).to_be_focused()

    # What arrives takes the focus from nobody, though its row moves.
    first = page.get_by_role("button", name="openai/first")
    await first.focus()
    async with httpx.AsyncClient(trust_env=False) as client:
        headers = {"authorization": f"Bearer {admin_token(proxy)}"}
        for label in ("first", "second"):
            asked = {"provider": "openai", "label": label}
            url = f"{proxy.url}/account-pool/"
            what = "clear-cooldown" if label == "first" else "disable"
            assert (await client.post(url + what, json=asked, headers=headers)).is_success
    await expect(page.locator("#rows > tr").first).to_contain_text("second")
    await expect(first).to_be_focused()
    assert complaints == []


async def test_tabs_share_one_stream(pool_proxy, browser, complaints):
    proxy = await pool_proxy(TWO)
    context = await browser.new_context()
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url.removeprefix(proxy.url)))
    pages = []
    for _ in range(3):
        page = await context.new_page()
        listen(page, complaints)
        await page.goto(proxy.url)
        await page.wait_for_selector("body[data-live=live]")
        pages.append(page)
    assert asked.count("/events") == 1
    assert not {"/account-pool", "/decisions?limit=200"} & {*asked}
    # The tab that had it goes, and another goes on.
    await pages[0].close()
    async with httpx.AsyncClient(trust_env=False) as client:
        headers = {"authorization": f"Bearer {admin_token(proxy)}"}
        asked_for = {"provider": "openai", "label": "first"}
        url = f"{proxy.url}/account-pool/disable"
        assert (await client.post(url, json=asked_for, headers=headers)).is_success
    for page in pages[1:]:
        await expect(state(page, "openai/first")).to_have_text("disabled")
    assert complaints == []


@pytest.mark.parametrize("without", ["locks", "channel"])
async def test_an_older_or_insecure_page_does_without(pool_proxy, browser, complaints, without):
    proxy = await pool_proxy(TWO)
    context = await browser.new_context()
    gone = {
        "locks": "Object.defineProperty(navigator, 'locks', { value: undefined })",
        "channel": "delete window.BroadcastChannel;"
        "Object.defineProperty(navigator, 'locks', { value: undefined })",
    }
    await context.add_init_script(gone[without])
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url.removeprefix(proxy.url)))
    for number in range(2):
        page = await context.new_page()
        listen(page, complaints)
        await page.goto(proxy.url)
        await page.wait_for_selector("body[data-live=live]")
        assert asked.count("/events") == (1 if without == "locks" else number + 1)
    assert complaints == []


async def test_without_a_stream_it_polls(pool_proxy, browser, complaints):
    proxy = await pool_proxy(TWO)
    context = await browser.new_context()
    await context.route("**/events", lambda route: route.fulfill(status=404, body="{}"))
    page = await context.new_page()
    await page.goto(proxy.url)
    await page.wait_for_selector("body[data-live=polling]")
    await expect(state(page, "openai/first")).to_have_text("available")


async def test_a_proxy_that_ends(pool_proxy, browser, complaints):
    proxy = await pool_proxy(TWO)
    page = await opened(browser, proxy, complaints)
    await proxy.stop()
    await expect(page.locator("#live-text")).to_have_text("disconnected")
    await expect(row(page, "openai/first")).to_be_visible()


async def test_one_time_link(pool_proxy, browser, complaints):
    proxy = await pool_proxy(TWO)
    async with httpx.AsyncClient(trust_env=False) as client:
        headers = {"authorization": f"Bearer {admin_token(proxy)}"}
        made = await client.post(f"{proxy.url}/link", json={}, headers=headers)
    path = made.json()["url"].removeprefix(proxy.url)
    page = await opened(browser, proxy, complaints, path)
    assert "code" not in page.url
    # It is logged in: nothing is asked.
    await page.get_by_role("button", name="openai/first").click()
    await page.get_by_role("button", name="Disable").click()
    await expect(page.locator("p.standing .state")).to_have_text("disabled")
    assert complaints == []
    # It works once.
    again = await opened(browser, proxy, complaints, path)
    await expect(again.get_by_role("alert")).to_contain_text("account-pool dashboard")
    assert len(complaints) == 1 and "401" in complaints.pop()


async def test_reading_with_the_token(pool_proxy, browser, complaints):
    """As from another machine, or with proxyauth: the page asks for the token first."""
    proxy = await pool_proxy(TWO, options={"proxyauth": "user:password"})
    context = await browser.new_context()
    context.set_default_timeout(TIMEOUT_S * 1000)
    page = await context.new_page()
    await page.goto(proxy.url)
    dialog = page.get_by_role("dialog", name="Admin token")
    # Who closes it is asked no more; the button does.
    await dialog.get_by_role("button", name="Cancel").click()
    await expect(page.locator("#live-text")).to_have_text("needs the admin token")
    await expect(dialog).to_be_hidden()
    await page.get_by_role("button", name="Admin token").click()
    await dialog.get_by_label("Token", exact=True).fill(admin_token(proxy))
    await page.get_by_role("button", name="Use token").click()
    await expect(state(page, "openai/first")).to_have_text("available")
    await expect(page.locator("#live-text")).to_have_text("live")


async def test_filters_and_order(browser, pool_proxy, complaints):
    accounts = [*TWO, {"provider": "anthropic", "label": "other", "token": "sk-ant-api03-fake-000"}]
    proxy = await pool_proxy(accounts)
    page = await opened(browser, proxy, complaints)
    names = page.locator("#rows .name")
    await expect(names).to_have_text(["anthropic/other", "openai/first", "openai/second"])
    await page.get_by_role("button", name="Account", exact=True).click()
    await page.get_by_role("button", name="Account", exact=True).click()
    await expect(names).to_have_text(["openai/second", "openai/first", "anthropic/other"])
    heading = page.get_by_role("columnheader", name="Account")
    await expect(heading).to_have_attribute("aria-sort", "descending")
    await page.locator("#provider").select_option("openai")
    await expect(names).to_have_count(2)
    await expect(page.get_by_role("button", name="Next account")).to_be_visible()
    await page.get_by_label("Search accounts").fill("nothing like it")
    await expect(page.get_by_text("No account matches.")).to_be_visible()
    await page.get_by_role("button", name="Show all").click()
    await expect(names).to_have_count(3)
    assert complaints == []


# -- what is worked out in the page, by values


async def worked_out(browser, pool_proxy, expression: str, value):
    proxy = await pool_proxy(TWO)
    page = await opened(browser, proxy, [])
    return await page.evaluate(f"value => {expression}", value)


ACCOUNT = {
    "key": "openai/a", "provider": "openai", "state": "available", "reason": "", "cooldowns": [],
    "asked_last": [], "disabled": None, "problem": None, "headroom": [], "tightest": None,
}  # fmt: skip


def cooldown(model: str | None = None) -> dict[str, object]:
    until = "2100-01-01T00:00:00Z"
    return {"model": model, "class": "quota", "signal": "429", "evidence": {}, "until_at": until}


async def test_an_account_of_which_models_cool_is_not_simply_available(browser, pool_proxy):
    values = [
        {**ACCOUNT, "cooldowns": [cooldown("a"), cooldown("b"), cooldown("c")]},
        {**ACCOUNT, "state": "cooling", "cooldowns": [cooldown(), cooldown("a")]},
        {**ACCOUNT, "state": "something new"},
    ]
    told = await worked_out(browser, pool_proxy, "value.map(standingOf)", values)
    assert [one["text"] for one in told] == [
        "partly on cooldown (3 models)", "on cooldown", "something new",
    ]  # fmt: skip


async def test_one_line_says_once_what_two_decisions_say(browser, pool_proxy):
    usual = {"account": "openai/a", "to": None, "signal": "429", "covers": None, "reason": None,
             "effect": None, "at": "2026-11-01T00:00:00Z"}  # fmt: skip
    rows = [
        {**usual, "number": 1, "kind": "cooldown"},
        {**usual, "number": 2, "kind": "move", "to": "openai/b", "effect": "cooldown"},
        {**usual, "number": 3, "kind": "cooldown", "account": "openai/b"},
        *({**usual, "number": n, "kind": "retry", "to": "openai/a"} for n in (4, 5, 6)),
    ]
    work = "(pool.decisions = new Map(value.map((row) => [row.number, row])), mergedDecisions())"
    told = await worked_out(browser, pool_proxy, work, rows)
    assert [(one["row"]["number"], one["times"]) for one in told] == [(6, 3), (3, 1), (2, 1)]


# -- every scene: nothing beside the window, nothing that axe finds wrong


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


@pytest.mark.parametrize("count", sorted({p.accounts for p in pictures.PICTURES}))
async def test_scenes(browser, folder, complaints, count):
    """Set POOL_PICTURES=docs to keep the pictures."""
    scratch = folder / str(count)
    scratch.mkdir()
    kept = os.environ.get("POOL_PICTURES")
    async with pictures.stage(scratch) as stage, stage.pool(count) as proxy:
        for picture in pictures.PICTURES:
            if picture.accounts != count:
                continue
            async with asyncio.timeout(TIMEOUT_S):
                page = await pictures.opened(browser, proxy.url, picture)
            listen(page, complaints)
            wide = await page.evaluate("document.documentElement.scrollWidth")
            assert wide <= picture.size[0], picture.name
            if kept:
                await page.screenshot(path=f"{kept}/{picture.name}.png")
            result = await axe.Axe().run(page, context=SOME_ROWS, options=AXE)
            found = result.response["violations"]
            assert [json.dumps(one, indent=1)[:1500] for one in found] == [], picture.name
            narrow = "[...document.querySelectorAll('#rows .bar')].map(b => b.offsetWidth)"
            widths = [width for width in await page.evaluate(narrow) if width]
            assert all(width >= 128 for width in widths), picture.name
            await page.close()
    assert complaints == []
