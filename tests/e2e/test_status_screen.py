"""`account-pool status` on a terminal, at a real proxy."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from contextlib import asynccontextmanager

import pytest

from account_pool.admin.auth import TOKEN_FILE
from tests.e2e.harness import CONFDIR, FIRST, PATH_OF_PACKAGE, SECOND, TIMEOUT_S, chat, in_order
from tests.scripts import openai
from tests.upstream.replies import by_credential

if sys.platform == "win32":
    pytest.skip("there are no such terminals", allow_module_level=True)

from tests.e2e.screen import on_screen

COMMAND = [sys.executable, "-c", "from account_pool.cli import main; main()", "status", "-p"]
TWO = in_order("first", "second")


def environment(home, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH",) if name in os.environ}
    return {**kept, "HOME": str(home), "LANG": "C.UTF-8", **PATH_OF_PACKAGE, **more}


@pytest.fixture
async def proxy(provider, pool_proxy):
    """A proxy whose first account is on cooldown."""
    script = {FIRST: openai.rate_limited(600), SECOND: openai.chat_complete("Good morning")}
    proxy = await pool_proxy(TWO, provider=await provider(by_credential(script)))
    async with proxy.client() as client:
        assert (await client.request(**chat(stream=False))).status_code == 200
    return proxy


@pytest.fixture
def home(proxy, tmp_path):
    """A home with the admin token of the proxy."""
    kept = tmp_path / "home" / ".mitmproxy"
    kept.mkdir(parents=True)
    shutil.copy(proxy.folder / CONFDIR / TOKEN_FILE, kept)
    return tmp_path / "home"


@asynccontextmanager
async def status(port, home, columns=80, rows=24, *, words=(), **env: str):
    """Run `account-pool status` on a screen, which must be left by then."""
    async with asyncio.timeout(TIMEOUT_S):
        screen = await on_screen(
            columns, rows, *COMMAND, str(port), *words, env=environment(home, **env)
        )
        try:
            yield screen
        finally:
            if screen.returncode is None:
                screen.kill()
                await screen.wait()
            screen.throw_away()


async def test_a_day_with_it(proxy, home):
    async with status(proxy.port, home) as screen:
        await screen.until("2 of 2 available", "partly", "429 rate_limit")
        # The one that needs attention is on top and selected: its details are below.
        await screen.until("> partly", "on cooldown for", "── decisions")
        screen.press("c")
        await screen.until("openai/first: no longer on cooldown")
        screen.press("jd")
        await screen.until("openai/second: disabled until it is enabled again", "> disabled")
        screen.press("e")
        await screen.until("openai/second: enabled")
        screen.press("n")
        await screen.until("next: openai/")
        screen.press("l")
        await screen.until("newest first", "disabled, by hand", "openai/first: 429 rate_limit")
        screen.press("u")
        await screen.until("usage of 30 days", "requests", "openai/second")
        screen.resize(40, 20)
        await screen.until("usage of 30 days", "openai/second: 1 request")
        screen.press("q\r")
        await screen.until("conversations", "requests")
        screen.press("q?")
        await screen.until("help")
        screen.press("G")
        token = (home / ".mitmproxy" / TOKEN_FILE).read_text().strip()
        await screen.until("admin token", token[:20])
        screen.press("qq")
        assert await screen.wait() == 0
    # The screen before it is back, and the cursor.
    assert screen.sent.rstrip().endswith((b"\x1b[?25h", b"\x1b[?1004l"))
    # One connection is kept: two lines in the proxy's log, not two a second.
    assert proxy.output.count("client connect") < 12


async def test_the_proxy_goes_away_and_comes_back(proxy, home, setting, pool_proxy):
    port = proxy.port
    async with status(port, home) as screen:
        await screen.until("openai/first")
        await proxy.stop()
        await screen.until("no answer since", "openai/first")
        screen.press("d")
        await screen.until("no proxy answers at")
        again = setting.prepare(in_order("other"), extra_args=["--listen-port", str(port)])
        async with again:
            await screen.until("openai/other")
            assert "no answer" not in screen.text
            screen.press("q")
            assert await screen.wait() == 0


async def test_where_proxyauth_is_set_the_admin_token_is_sent(pool_proxy, tmp_path):
    guarded = await pool_proxy(TWO, options={"proxyauth": "user:secret", "pool_state": "state"})
    home = tmp_path / "home"
    (home / ".mitmproxy").mkdir(parents=True)
    kept = home / ".mitmproxy" / TOKEN_FILE
    async with status(guarded.port, home) as screen:
        assert await screen.wait() == 1
        await screen.until("requires its admin token")
    kept.write_text("wrong")
    async with status(guarded.port, home) as screen:
        assert await screen.wait() == 1
        await screen.until("does not accept the admin token")
    shutil.copy(guarded.folder / CONFDIR / TOKEN_FILE, kept)
    async with status(guarded.port, home) as screen:
        await screen.until("> available openai/first")
        screen.press("u")
        await screen.until("nothing was served")
        screen.press("qq")
        assert await screen.wait() == 0


async def test_without_colours(proxy, home):
    async with status(proxy.port, home, 40, 20, NO_COLOR="1") as screen:
        await screen.until("> openai/first", "partly, 10 min")
        screen.press("q")
        assert await screen.wait() == 0
    colours = [b"\x1b[3%dm" % n for n in range(1, 8)] + [b"38;5;", b"38;2;", b"48;"]
    assert not [colour for colour in colours if colour in screen.sent]


@pytest.mark.parametrize(
    ("words", "env"), [((), {"TERM": "dumb"}), (("--once",), {})], ids=["dumb", "once"]
)
async def test_lines_on_a_terminal(proxy, home, words, env):
    async with status(proxy.port, home, words=words, **env) as screen:
        assert await screen.wait() == 0
        await screen.until("openai/first", "admin token")
    assert b"\x1b[?1049h" not in screen.sent


async def test_watching(proxy, home):
    """Lines, again and again; JSON is one a line."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        str(proxy.port),
        "--watch",
        "--json",
        env=environment(home),
        stdout=asyncio.subprocess.PIPE,
        limit=2**20,
    )
    async with asyncio.timeout(TIMEOUT_S):
        for _ in range(2):
            value = json.loads(await process.stdout.readline())
            assert [one["key"] for one in value["accounts"]] == ["openai/first", "openai/second"]
        process.send_signal(2)
        assert await process.wait() == 0


async def test_without_a_proxy(home, proxy):
    port = proxy.port
    await proxy.stop()
    async with status(port, home) as screen:
        assert await screen.wait() == 1
        assert "no proxy answers" in screen.text
