"""Makes the pictures in docs/: python -m tests.e2e.pictures docs

The dashboard: a pool of several providers in a real mitmdump, a morning's work, and a
Chromium that looks at it. mitmweb: one failover, its refused attempt selected. Not a test:
`test_dashboard.py` and `test_mitmweb.py` are.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mitmproxy.certs import CertStore
from playwright.async_api import Browser, FloatRect, async_playwright

from account_pool.cli.serve import COLUMNS
from account_pool.core.usage import Counted
from account_pool.demo.certificates import make_certificate
from account_pool.demo.exchange import Headers, Reply
from account_pool.demo.provider import Provider
from account_pool.demo.replies import by_credential, json_reply, stream_reply
from account_pool.store.sqlite_state import SqliteState
from tests.e2e import harness, redirect
from tests.e2e.harness import (
    ANTHROPIC,
    CHROMIUM,
    GEMINI,
    OPENAI,
    TWO,
    account,
    free_port,
    secret,
)
from tests.scripts import anthropic, codex, gemini, openai

PASSWORD = "open-sesame"

ACCOUNTS = [
    account("max", "claude-code", priority=0),
    account("second", "claude-code", priority=1),
    account("plus", "codex", priority=0, account_id="11111111-2222-4333-8444-555555555555"),
    account("team", "codex", priority=1, account_id="22222222-2222-4333-8444-555555555555"),
    account("project-a", "gemini", priority=0),
    account("project-b", "gemini", priority=1),
    account("work", "openai", priority=0),
    account("private", "openai", priority=1),
    account("spare", "openai", priority=2, enabled=False),
]
#: Model, tokens in and out of one request, and how much of the input comes from the cache.
WORK = {
    "claude-code/max": ("claude-opus-4-8", 61_000, 1_900, 0.86),
    "claude-code/second": ("claude-opus-4-8", 54_000, 1_700, 0.81),
    "codex/plus": ("gpt-5.5-codex", 38_000, 1_200, 0.74),
    "codex/team": ("gpt-5.5-codex", 35_000, 1_100, 0.7),
    "gemini/project-b": ("gemini-3-pro", 12_000, 700, 0.2),
    "openai/work": ("gpt-5", 4_000, 420, 0.35),
    "openai/private": ("gpt-5", 3_100, 380, 0.3),
}
DAYS = 14


class Picture(NamedTuple):
    """One picture: its file, its width, its colours, and what it ends with."""

    name: str
    width: int
    colours: Literal["light", "dark"]
    ends_with: str


PICTURES = (
    Picture("dashboard", 1100, "light", ".legend"),
    Picture("dashboard-phone", 390, "dark", "section[aria-label=gemini]"),
)


def history() -> Counted:
    """Return what was served in the two weeks before, seeded."""
    chance, counts = random.Random(5), Counted()
    today = datetime.now(UTC)
    for name, (model, into, out, cached) in WORK.items():
        for back in range(1, DAYS):
            day = today - timedelta(days=back)
            requests = int(chance.uniform(20, 90) * (0.15 if day.weekday() > 4 else 1))
            counts[day.date().isoformat(), name, model] = _amounts(requests, into, out, cached)
    return counts


def _amounts(requests: int, into: int, out: int, cached: float) -> dict[str, float]:
    return {
        "requests": requests,
        "input_tokens": requests * into,
        "cached_tokens": int(requests * into * cached),
        "output_tokens": requests * out,
    }


def script() -> dict[str, list[Reply]]:
    """Return what the providers say to each account, answer by answer."""
    return {
        secret("max"): [message(0.93, 0.58), anthropic.window_spent(5_400)],
        secret("second"): [message(0.22, 0.41)],
        secret("plus"): [with_headers(response(), codex.windows(71, 38, 6_300, 290_000))],
        secret("team"): [with_headers(response(), codex.windows(9, 12, 15_000, 500_000))],
        secret("project-a"): [gemini.per_day(model="gemini-3-pro")],
        secret("project-b"): [content()],
        secret("work"): [completion(), openai.rate_limited(95, model="gpt-5")],
        secret("private"): [completion()],
    }


def message(five_hours: float, week: float) -> Reply:
    """Return an answer of Anthropic, with how much of each window is used."""
    _model, into, out, cached = WORK["claude-code/max"]
    reply = json.loads(anthropic.message_complete("Done.", model=_model).body)
    from_cache = int(into * cached)
    reply["usage"] = {
        "input_tokens": into - from_cache,
        "cache_read_input_tokens": from_cache,
        "cache_creation_input_tokens": 0,
        "output_tokens": out,
    }
    told = {"5h": (five_hours, 5_400), "7d": (week, 300_000)}
    headers: Headers = (("anthropic-ratelimit-unified-status", "allowed"),)
    for window, (used, reset_s) in told.items():
        headers += (
            (f"anthropic-ratelimit-unified-{window}-utilization", f"{used}"),
            (f"anthropic-ratelimit-unified-{window}-reset", f"{time.time() + reset_s:.0f}"),
            (f"anthropic-ratelimit-unified-{window}-status", "allowed"),
        )
    return json_reply(reply, headers=anthropic.REQUEST_ID + headers)


def completion() -> Reply:
    model, into, out, cached = WORK["openai/work"]
    complete = openai.chat_complete("Done.", model=model)
    reply = json.loads(complete.body)
    reply["usage"] = {
        "prompt_tokens": into,
        "completion_tokens": out,
        "prompt_tokens_details": {"cached_tokens": int(into * cached)},
    }
    return json_reply(reply, headers=tuple(h for h in complete.headers if h[0] != "content-type"))


def response() -> Reply:
    model, into, out, cached = WORK["codex/plus"]
    events = openai.response_events(["Done."], model=model)
    for short, full in (("input", into), ("cached", int(into * cached)), ("output", out)):
        known = re.compile(rf'("{short}_tokens": )\d+'.encode())
        events = [known.sub(rf"\g<1>{full}".encode(), event) for event in events]
    return stream_reply(events)


def content() -> Reply:
    model, into, out, cached = WORK["gemini/project-b"]
    reply = json.loads(gemini.content_complete("Done.", model=model).body)
    reply["usageMetadata"] = {
        "promptTokenCount": into,
        "cachedContentTokenCount": int(into * cached),
        "candidatesTokenCount": out,
    }
    return json_reply(reply)


def with_headers(reply: Reply, headers: Headers) -> Reply:
    return replace(reply, headers=reply.headers + headers)


def claude(session: str) -> dict[str, Any]:
    return {
        "url": f"{ANTHROPIC}/v1/messages",
        "headers": {
            "authorization": "Bearer sk-ant-oat01-fake",
            "user-agent": "claude-cli/2.1.0 (external, cli)",
            "x-claude-code-session-id": session,
        },
        "json": {"model": WORK["claude-code/max"][0], "max_tokens": 100, "messages": [_user()]},
    }


def codex_turn(session: str) -> dict[str, Any]:
    return {
        "url": "https://chatgpt.com/backend-api/codex/responses",
        "headers": {"authorization": "Bearer fake-login", "originator": "codex_cli_rs"},
        "json": {
            "model": WORK["codex/plus"][0],
            "stream": True,
            "store": False,
            "input": [],
            "prompt_cache_key": session,
        },
    }


def gemini_turn() -> dict[str, Any]:
    return {
        "url": f"{GEMINI}/v1beta/models/{WORK['gemini/project-b'][0]}:generateContent",
        "headers": {"x-goog-api-key": "fake"},
        "json": {"contents": [{"role": "user", "parts": [{"text": "Hello?"}]}]},
    }


def chat(session: str) -> dict[str, Any]:
    return {
        "url": f"{OPENAI}/v1/chat/completions",
        "headers": {"authorization": "Bearer sk-fake", "x-session-id": session},
        "json": {"model": WORK["openai/work"][0], "messages": [_user()]},
    }


def _user() -> dict[str, str]:
    return {"role": "user", "content": "Hello?"}


def morning() -> list[dict[str, Any]]:
    """Return the requests, in their order."""
    return [
        *(claude("9b1f0c52-claude-code") for _ in range(3)),
        *(codex_turn("0199a7c2-codex") for _ in range(3)),
        gemini_turn(),
        *(chat("nightly-report") for _ in range(3)),
        chat("release-notes"),
    ]


async def make(folder: Path) -> None:
    """Write the pictures into *folder*."""
    async with AsyncExitStack() as stack:
        scene = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("certificate", "authority"):
            (scene / name).mkdir()
        certificate = make_certificate(scene / "certificate", redirect.HOSTS)
        CertStore.create_store(scene / "authority", "mitmproxy", 2048)
        state = SqliteState(scene / "pool.sqlite")
        state.exchange((), wall_now=time.time(), counts={"usage": history()})
        state.close()
        upstream = await stack.enter_async_context(
            Provider(by_credential(script()), certificate=certificate)
        )
        setting = harness.Setting(certificate, scene / "authority", scene)
        options = {"pool_state": scene / "pool.sqlite", "pool_patience": 0}
        proxy = await stack.enter_async_context(
            setting.prepare(ACCOUNTS, provider=upstream, options=options)
        )
        async with proxy.client() as client:
            for request in morning():
                answer = await client.post(**request)
                assert answer.status_code == 200, (request, answer.text)
        started = await stack.enter_async_context(async_playwright())
        browser = await started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for picture in PICTURES:
            await take(browser, proxy.url, folder, picture)
        await take_mitmweb(browser, stack, setting, folder)
        await browser.close()


async def take(browser: Browser, url: str, folder: Path, picture: Picture) -> None:
    page = await browser.new_page(
        viewport={"width": picture.width, "height": 900}, color_scheme=picture.colours
    )
    await page.goto(url)
    await page.wait_for_selector("body[data-ready]")
    await page.wait_for_selector("#usage tr")
    last = await page.locator(picture.ends_with).bounding_box()
    assert last is not None
    clip = FloatRect(x=0, y=0, width=picture.width, height=last["y"] + last["height"] + 16)
    await page.screenshot(path=folder / f"{picture.name}.png", full_page=True, clip=clip)
    await page.close()


async def take_mitmweb(
    browser: Browser, stack: AsyncExitStack, setting: harness.Setting, folder: Path
) -> None:
    """Take mitmweb after a failover, as `serve --web` starts it, with the comment open."""
    refusal = openai.rate_limited(39, model="gpt-5")
    replies = {secret("first"): [completion(), refusal], secret("second"): [completion()]}
    upstream = await stack.enter_async_context(
        Provider(by_credential(replies), certificate=setting.certificate)
    )
    port = free_port()
    options = {"web_open_browser": "false", "web_port": port, "web_password": PASSWORD}
    columns = [word for name in COLUMNS for word in ("--set", f"web_columns={name}")]
    proxy = await stack.enter_async_context(
        setting.prepare(
            TWO, provider=upstream, options=options, extra_args=columns, program="mitmweb"
        )
    )
    await proxy.until_printed("Web server listening")
    async with proxy.client() as client:
        for _ in range(2):
            assert (await client.post(**chat("nightly-report"))).status_code == 200
    page = await browser.new_page(viewport={"width": 1400, "height": 460})
    await page.goto(f"http://127.0.0.1:{port}/?token={PASSWORD}")
    await page.get_by_text("openai/second <- first 429").click()
    # The other one is the head of the column.
    await page.get_by_text("Comment", exact=True).last.click()
    await page.get_by_text("openai/second <- first 429").last.wait_for()
    await page.screenshot(path=folder / "mitmweb.png")
    await page.close()


if __name__ == "__main__":
    asyncio.run(make(Path(sys.argv[1])))
