"""Web pages in a real Chromium: what they try against a proxy of their user.

Needs Playwright (extra `browser`) and a Chromium on the path; skipped without them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from tests.e2e.harness import CHROMIUM, FIRST, OPENAI, TIMEOUT_S, account
from tests.scripts import openai
from tests.upstream.exchange import Reply, Request

playwright = pytest.importorskip("playwright.async_api", reason="needs the extra `browser`")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")

#: The page's own credential, which is nobody's here.
OWN_KEY = "sk-fake-page-000"
CORS = (
    ("access-control-allow-origin", "*"),
    ("access-control-allow-headers", "*"),
    ("access-control-allow-methods", "*"),
)
PAGE = b"<!doctype html><title>page</title>"

#: What a page can send without asking anybody, and with a preflight; each returns what it read.
ATTEMPTS = """async (base) => {
  const url = base + "/v1/chat/completions";
  const body = JSON.stringify({model: "gpt-5-nano", messages: []});
  const json = {"content-type": "application/json"};
  const read = async (asked) => {
    try { const answer = await asked; return [answer.type, answer.status, await answer.text()]; }
    catch (error) { return ["error", 0, String(error)]; }
  };
  const socket = new Promise((resolve) => {
    const one = new WebSocket(base.replace("http", "ws") + "/v1/realtime?model=x");
    one.onopen = () => resolve(["open", 101, ""]);
    one.onerror = () => resolve(["error", 0, ""]);
  });
  const frame = document.createElement("iframe");
  frame.name = "target";
  document.body.append(frame);
  const form = new Promise((resolve) => {
    frame.onload = () => resolve(["form", 0, ""]);
    const form = document.createElement("form");
    Object.assign(form, {method: "POST", action: url, enctype: "text/plain", target: "target"});
    const input = document.createElement("input");
    Object.assign(input, {name: body.slice(0, -1) + ', "x": "', value: '"}'});
    form.append(input);
    document.body.append(form);
    form.submit();
  });
  return {
    get: await read(fetch(base + "/v1/models")),
    plain: await read(fetch(url, {method: "POST", body})),
    opaque: await read(fetch(url, {method: "POST", mode: "no-cors", body})),
    preflight: await read(fetch(url, {method: "POST", headers: json, body})),
    socket: await socket,
    form: await form,
  };
}"""
ASK = """async ([url, headers]) => {
  const body = JSON.stringify({model: "gpt-5-nano", messages: []});
  try {
    const answer = await fetch(url, {method: "POST", headers, body});
    return [answer.status, await answer.text()];
  } catch (error) { return [0, String(error)]; }
}"""


@asynccontextmanager
async def browser(*args: str, proxy: str | None = None) -> AsyncIterator[playwright.Page]:
    """A page in a browser of its own."""
    async with playwright.async_playwright() as started:
        # Its own sandbox needs rights that containers do not give.
        one = await started.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", *args],
            proxy={"server": proxy} if proxy else None,
        )
        context = await one.new_context(ignore_https_errors=True)
        context.set_default_timeout(TIMEOUT_S * 1000)
        yield await context.new_page()
        await one.close()


@pytest.fixture
async def site() -> AsyncIterator[str]:
    """A web server of somebody else on this machine; returns its origin."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        length = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(PAGE)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n" + length + PAGE)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://localhost:{server.sockets[0].getsockname()[1]}"


def lenient(request: Request) -> Reply:
    """Answer as OpenAI does: any page may read it, whoever it is that pays."""
    if request.method == "OPTIONS":
        return Reply(status=204, headers=CORS)
    if request.host.startswith("www.example.com"):
        return Reply(headers=(("content-type", "text/html"),), steps=(PAGE,))
    good = openai.chat_complete(f"Good {request.credential[8:]}")
    return replace(good, headers=(*good.headers, *CORS))


REVERSE = ["--mode", f"reverse:{OPENAI}"]


async def test_a_page_spends_nothing_in_reverse_mode(provider, pool_proxy, site):
    upstream = await provider(lenient)
    proxy = await pool_proxy([account("first")], provider=upstream, extra_args=REVERSE)
    async with browser() as page:
        for address in (site, "data:text/html,<title>null</title>"):
            await page.goto(address)
            seen = await page.evaluate(ATTEMPTS, proxy.url)
            assert "Good" not in json.dumps(seen)
            assert {kind for kind, _, _ in seen.values()} <= {"error", "opaque", "form"}, seen
    assert upstream.journal.requests == []
    assert "was given no account (403)" in proxy.output


async def test_a_page_whose_name_is_bound_to_this_machine(provider, pool_proxy):
    """For the browser it is at home there: neither Origin nor Sec-Fetch-Site tells."""
    upstream = await provider(lenient)
    proxy = await pool_proxy([account("first")], provider=upstream, extra_args=REVERSE)
    base = f"http://evil.example:{proxy.port}"
    async with browser("--host-resolver-rules=MAP evil.example 127.0.0.1") as page:
        answer = await page.goto(f"{base}/v1/models")
        assert answer is not None and answer.status == 421
        status, text = await page.evaluate(ASK, [f"{base}/v1/chat/completions", {}])
        assert (status, "pool_allow_hosts" in text) == (421, True)
    assert upstream.journal.requests == []


async def test_a_page_that_its_user_has_named(provider, pool_proxy, site):
    upstream = await provider(lenient)
    proxy = await pool_proxy(
        [account("first")],
        provider=upstream,
        options={"pool_allow_origins": site},
        extra_args=REVERSE,
    )
    async with browser() as page:
        await page.goto(site)
        headers = {"content-type": "application/json"}
        status, text = await page.evaluate(ASK, [f"{proxy.url}/v1/chat/completions", headers])
    assert (status, "Good" in text) == (200, True), text
    assert upstream.journal.credentials[-1] == FIRST


async def test_a_page_in_a_tunnel_has_only_what_is_its_own(provider, pool_proxy):
    upstream = await provider(lenient)
    proxy = await pool_proxy([account("first")], provider=upstream)
    url = f"{OPENAI}/v1/chat/completions"
    async with browser(proxy=proxy.url) as page:
        await page.goto("https://www.example.com/")
        status, text = await page.evaluate(ASK, [url, {}])
        assert (status, "Good" in text) == (0, False)  # no CORS header: it may not read that
        status, text = await page.evaluate(ASK, [url, {"authorization": f"Bearer {OWN_KEY}"}])
        assert (status, "Good page-000" in text) == (200, True), text
    asked = [r for r in upstream.journal.requests if r.host.startswith("api.openai.com")]
    assert [r.credential for r in asked if r.method == "POST"] == [OWN_KEY]
    assert FIRST not in repr(upstream.journal.requests)
