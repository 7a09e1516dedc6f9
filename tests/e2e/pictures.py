"""Makes the pictures in docs/: python -m tests.e2e.pictures docs

The dashboard: pools of several sizes in a real mitmdump, a day of rows, and a Chromium that
looks at them. mitmweb: one failover, its refused attempt selected. `test_dashboard.py` looks
at the same scenes.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mitmproxy.certs import CertStore
from playwright.async_api import Browser, Page, async_playwright

from account_pool.cli.serve import COLUMNS
from account_pool.core.request_rows import RequestRow
from account_pool.core.usage import Counted
from account_pool.demo.mitmdump import LISTENING
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
from tests.upstream.certificates import make_certificate
from tests.upstream.exchange import Headers, Reply
from tests.upstream.provider import Provider
from tests.upstream.replies import by_credential, json_reply, stream_reply

PASSWORD = "open-sesame"
ACCOUNTS_FILE = "~/.config/account-pool/accounts.yaml"

#: By provider: model, tokens in and out of one request, the share from the cache, its tool, US
#: dollars of a request.
WORK = {
    "claude-code": ("claude-opus-4-8", 61_000, 1_900, 0.86, "claude-code", 0.21),
    "codex": ("gpt-5.5-codex", 38_000, 1_200, 0.74, "codex", 0.09),
    "gemini": ("gemini-3-pro", 12_000, 700, 0.2, "python-httpx", 0.03),
    "openai": ("gpt-5", 4_000, 420, 0.35, "python-httpx", 0.012),
}
SUBSCRIPTIONS = ("claude-code", "codex")
LABELS = ("work", "private", "team", "lab", "night", "build", "spare", "max")
DAYS = 30


@dataclass(slots=True)
class Scene:
    """A pool and what happens to it.

    Attributes:
        accounts: of accounts.yaml.
        replies: what the providers say to each account, reply by reply.
        requests: sent one after the other.
        disabled: disabled by hand afterwards, as (provider, label).
    """

    accounts: list[dict[str, Any]] = field(default_factory=list)
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)


def scene(count: int, seed: int = 7) -> Scene:
    """Return a pool of *count* accounts, in which a few things have gone wrong."""
    chance, made = random.Random(seed), Scene()
    providers = ["claude-code", "claude-code", "openai"] if count == 3 else list(WORK)
    for number in range(count):
        provider = providers[number % len(providers)]
        label = f"{LABELS[number // len(providers) % len(LABELS)]}"
        if count > len(LABELS) * len(providers):
            label += f"-{number // (len(providers) * len(LABELS)) + 1:02}"
        if count == 3:
            label = ("max", "second", "work")[number]
        name = f"{provider}-{label}"
        # A few of many go wrong; of three the first is spent.
        fate = number % 13 if count > 3 else (1, 99, 99)[number]
        entry = account(label, provider, token=secret(name))
        if provider == "codex":
            entry["account_id"] = f"11111111-2222-4333-8444-{number:012}"
        if fate == 12:
            entry["enabled"] = False
        if fate == 11:
            entry["token"] = {"env": f"{provider}_{label}_KEY".upper().replace("-", "_")}
        made.accounts.append(entry)
        made.replies[secret(name)] = [reply_of(provider, fate, chance)]
        made.requests.append(request_of(provider, f"conversation-{number}"))
    # What was refused moves on, so that all have been asked.
    made.requests += made.requests[: max(len(made.requests) // 4, 3)]
    return made


def reply_of(provider: str, fate: int, chance: random.Random) -> Reply:
    """Return what *provider* says to an account of this *fate*: 1 spent, 5 little left ..."""
    short, long = chance.betavariate(2, 2), chance.betavariate(3, 2)
    if fate == 5:
        short = 0.97
    match provider:
        case "claude-code":
            if fate == 1:
                return anthropic.window_spent(5_400)
            return message(short, long)
        case "codex":
            if fate == 1:
                return codex.usage_limit()
            used = codex.windows(short * 100, long * 100, chance.uniform(900, 17_000), 290_000)
            return with_headers(response(), used)
        case "gemini":
            return gemini.per_day(model=WORK["gemini"][0]) if fate in (1, 2) else content()
        case _:
            if fate == 1:
                return openai.rate_limited(1_900, model=WORK["openai"][0])
            if fate == 3:
                return openai.invalid_key()
            left = (
                ("x-ratelimit-limit-tokens", "2000000"),
                ("x-ratelimit-remaining-tokens", f"{int(2_000_000 * (1 - short))}"),
                ("x-ratelimit-reset-tokens", f"{chance.uniform(1_000, 3_000):.0f}s"),
            )
            return with_headers(completion(), left)


def request_of(provider: str, session: str) -> dict[str, Any]:
    make = {"claude-code": claude, "codex": codex_turn, "openai": chat}.get(provider)
    return gemini_turn() if make is None else make(session)


def history(accounts: list[dict[str, Any]]) -> Counted:
    """Return what was served in the month before, seeded."""
    chance, counts = random.Random(5), Counted()
    today = datetime.now(UTC)
    for entry in accounts[:40]:
        model, into, out, cached, *_ = WORK[entry["provider"]]
        busy = chance.uniform(0.2, 1.5)
        for back in range(DAYS):
            day = today - timedelta(days=back)
            requests = int(busy * chance.uniform(20, 90) * (0.15 if day.weekday() > 4 else 1))
            name = f"{entry['provider']}/{entry['label']}"
            amounts = _amounts(requests, into, out, cached)
            saved = entry["provider"] in SUBSCRIPTIONS
            amounts["saved_usd" if saved else "cost_usd"] = requests * WORK[entry["provider"]][5]
            counts[day.date().isoformat(), name, model] = amounts
    return counts


def _amounts(requests: int, into: int, out: int, cached: float) -> dict[str, float]:
    return {
        "requests": requests,
        "priced_requests": requests,
        "input_tokens": requests * into,
        "cached_tokens": int(requests * into * cached),
        "output_tokens": requests * out,
    }


def day(accounts: list[dict[str, Any]], now: float) -> list[RequestRow]:
    """Return rows of the last 24 hours and, fewer, of the month before, seeded."""
    chance, rows = random.Random(3), []
    for back in (*range(0, 86_400, 70), *range(86_400, DAYS * 86_400, 3_000)):
        at = now - back - chance.uniform(0, 60)
        hour = datetime.fromtimestamp(at, UTC).hour
        # Busy by day, with a dip at noon.
        if chance.random() > 0.15 + 0.85 * math.sin(math.pi * max(hour - 6, 0) / 17) ** 2:
            continue
        entry = chance.choice(accounts)
        provider = entry["provider"]
        model, into, out, cached, tool, usd = WORK[provider]
        size = chance.lognormvariate(0, 0.6)
        outcome = chance.random()
        status = "refused" if outcome < 0.008 else "aborted" if outcome < 0.02 else "ok"
        failovers = int(chance.random() < 0.05) + int(chance.random() < 0.01)
        first, whole = chance.lognormvariate(0.1, 0.5), chance.lognormvariate(2, 0.8)
        good = status == "ok"
        rows.append(
            RequestRow(
                wall_at=at, provider=provider, account=f"{provider}/{entry['label']}", model=model,
                endpoint="/v1/messages", tool=tool, session=f"{int(at) // 4_000:08x}",
                status=status, http_status=200 if good else 429, attempts=1 + failovers,
                failovers=failovers, wait_s=chance.uniform(1, 20) if outcome > 0.99 else 0.0,
                first_byte_s=first if good else None, duration_s=first + whole, counted=int(good),
                input_tokens=int(into * size) if good else None,
                cached_tokens=int(into * size * cached) if good else None,
                output_tokens=int(out * size) if good else None,
                cost_usd=usd * size if good else None, covered=int(provider in SUBSCRIPTIONS),
            )
        )  # fmt: skip
    rows.reverse()
    return rows


def message(five_hours: float, week: float) -> Reply:
    """Return an answer of Anthropic, with how much of each window is used."""
    _model, into, out, cached, *_ = WORK["claude-code"]
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
            (f"anthropic-ratelimit-unified-{window}-utilization", f"{used:.2f}"),
            (f"anthropic-ratelimit-unified-{window}-reset", f"{time.time() + reset_s:.0f}"),
            (f"anthropic-ratelimit-unified-{window}-status", "allowed"),
        )
    return json_reply(reply, headers=anthropic.REQUEST_ID + headers)


def completion() -> Reply:
    model, into, out, cached, *_ = WORK["openai"]
    complete = openai.chat_complete("Done.", model=model)
    reply = json.loads(complete.body)
    reply["usage"] = {
        "prompt_tokens": into,
        "completion_tokens": out,
        "prompt_tokens_details": {"cached_tokens": int(into * cached)},
    }
    return json_reply(reply, headers=tuple(h for h in complete.headers if h[0] != "content-type"))


def response() -> Reply:
    model, into, out, cached, *_ = WORK["codex"]
    events = openai.response_events(["Done."], model=model)
    for short, full in (("input", into), ("cached", int(into * cached)), ("output", out)):
        known = re.compile(rf'("{short}_tokens": )\d+'.encode())
        events = [known.sub(rf"\g<1>{full}".encode(), event) for event in events]
    return stream_reply(events)


def content() -> Reply:
    model, into, out, cached, *_ = WORK["gemini"]
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
        "json": {"model": WORK["claude-code"][0], "max_tokens": 100, "messages": [_user()]},
    }


def codex_turn(session: str) -> dict[str, Any]:
    return {
        "url": "https://chatgpt.com/backend-api/codex/responses",
        "headers": {
            "authorization": "Bearer fake-login",
            "originator": "codex_cli_rs",
            "user-agent": "codex_cli_rs/0.60.0 (Linux; x86_64)",
        },
        "json": {
            "model": WORK["codex"][0],
            "stream": True,
            "store": False,
            "input": [],
            "prompt_cache_key": session,
        },
    }


def gemini_turn() -> dict[str, Any]:
    return {
        "url": f"{GEMINI}/v1beta/models/{WORK['gemini'][0]}:generateContent",
        "headers": {"x-goog-api-key": "fake"},
        "json": {"contents": [{"role": "user", "parts": [{"text": "Hello?"}]}]},
    }


def chat(session: str) -> dict[str, Any]:
    return {
        "url": f"{OPENAI}/v1/chat/completions",
        "headers": {"authorization": "Bearer sk-fake", "x-session-id": session},
        "json": {"model": WORK["openai"][0], "messages": [_user()]},
    }


def _user() -> dict[str, str]:
    return {"role": "user", "content": "Hello?"}


class Picture(NamedTuple):
    """One picture: its file, sizes of the pool and the window, colours, what is seen."""

    name: str
    accounts: int
    size: tuple[int, int]
    colours: Literal["light", "dark"] = "light"
    view: str = "accounts"
    drawer: str = ""
    order: str = ""


PICTURES = (
    Picture("dashboard-0", 0, (1280, 560)),
    Picture("dashboard-3", 3, (1280, 560)),
    Picture("dashboard", 60, (1280, 860)),
    Picture("dashboard-activity", 60, (1280, 900), "dark", "activity"),
    Picture("dashboard-usage", 60, (1280, 1000), view="usage"),
    Picture("dashboard-drawer", 60, (1280, 860), drawer="claude-code/team-02"),
    Picture("dashboard-phone", 60, (375, 812), "dark"),
    Picture("dashboard-phone-drawer", 60, (375, 812), drawer="openai/spare-01"),
    Picture("dashboard-300", 300, (1280, 860), "dark"),
    Picture("dashboard-wide", 300, (2560, 1200), order="Headroom"),
)


class Stage:
    """Where pools of any size are started, one certificate for all."""

    def __init__(self, setting: harness.Setting) -> None:
        self.setting = setting

    @asynccontextmanager
    async def pool(self, count: int) -> AsyncIterator[harness.Proxy]:
        """Run a proxy with *count* accounts, once all of `scene(count)` has happened."""
        shown = scene(count)
        path = self.setting.folder / f"pool-{count}.sqlite"
        if shown.accounts:
            state, now = SqliteState(path), time.time()
            counts = {"usage": history(shown.accounts)}
            state.exchange((), wall_now=now, counts=counts, requests=day(shown.accounts, now))
            state.close()
        options = {"pool_state": path, "pool_patience": 0, "pool_strategy": "round-robin"}
        async with AsyncExitStack() as stack:
            replies = by_credential(shown.replies)
            upstream = await stack.enter_async_context(
                Provider(replies, certificate=self.setting.certificate)
            )
            # Without accounts there is no pool to be ready.
            ready: dict[str, Any] = {} if shown.accounts else {"ready": LISTENING}
            proxy = await stack.enter_async_context(
                self.setting.prepare(
                    shown.accounts or None, provider=upstream, options=options, **ready
                )
            )
            async with proxy.client() as client:
                for request in shown.requests:
                    answer = await client.post(**request)
                    assert answer.status_code in (200, 429), (request, answer.text)
            yield proxy


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    for name in ("certificate", "authority"):
        (folder / name).mkdir()
    certificate = make_certificate(folder / "certificate", redirect.HOSTS)
    CertStore.create_store(folder / "authority", "mitmproxy", 2048)
    yield Stage(harness.Setting(certificate, folder / "authority", folder))


async def opened(browser: Browser, url: str, picture: Picture) -> Page:
    """Return a page that shows what *picture* does."""
    width, height = picture.size
    page = await browser.new_page(
        viewport={"width": width, "height": height}, color_scheme=picture.colours, locale="en-GB"
    )
    await page.goto(f"{url}/#{picture.view}")
    await page.wait_for_selector("body[data-ready]")
    # Where it lies for a user, not here.
    await page.evaluate("path => { pool.summary.accounts_file = path; draw(); }", ACCOUNTS_FILE)
    if picture.view != "accounts":
        await page.wait_for_selector(f"body[data-slow={picture.view}]")
    if picture.order:
        await page.get_by_role("button", name=picture.order, exact=True).click()
    if picture.drawer:
        await page.get_by_role("button", name=picture.drawer, exact=True).click()
        await page.wait_for_selector("#drawer[open] .latest")
    return page


async def make(folder: Path) -> None:
    """Write the pictures into *folder*."""
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = await stack.enter_async_context(stage(scratch))
        started = await stack.enter_async_context(async_playwright())
        browser = await started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for count in sorted({picture.accounts for picture in PICTURES}):
            async with ours.pool(count) as proxy:
                for picture in PICTURES:
                    if picture.accounts == count:
                        page = await opened(browser, proxy.url, picture)
                        await page.screenshot(path=folder / f"{picture.name}.png")
                        await page.close()
        await take_mitmweb(browser, stack, ours.setting, folder)
        await browser.close()


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
