"""A proxy on a terminal that is closed ends by itself, in good order, and hears SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from tests.e2e.harness import FIRST, TIMEOUT_S
from tests.e2e.test_drain import CHAT, LONG, ONE, answering, bindings_in, slow
from tests.upstream.replies import by_credential

if sys.platform == "win32":
    pytest.skip("there are no such terminals", allow_module_level=True)

from tests.e2e.on_terminal import on_terminal

#: How it is started, whose the terminal is, and whether its user would have it stay.
WAYS = {
    "mitmproxy": ("mitmproxy", True, True),
    "serve --console": ("--console", True, True),
    "mitmproxy, SIGHUP ignored": ("mitmproxy", True, False),
    "mitmproxy, terminal of another": ("mitmproxy", False, True),
    "mitmdump": ("mitmdump", True, True),
}
PROGRAMS = pytest.mark.parametrize("program", ["mitmproxy", "mitmdump"])


@pytest.fixture
async def finish():
    return asyncio.Event()


@pytest.fixture
async def upstream(provider, finish):
    return await provider(by_credential({FIRST: slow(finish)}))


async def drains(proxy) -> None:
    """Wait until it listens no more."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            except OSError:
                return
            writer.close()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_a_closed_terminal_lets_requests_finish(setting, upstream, finish, way, tmp_path):
    program, own, hangups = way
    state = tmp_path / "pool.sqlite"
    options = {**LONG, "pool_state": state}
    proxy = on_terminal(setting, ONE, program=program, provider=upstream, options=options)
    proxy.own, proxy.hangups = own, hangups
    async with proxy:
        async with answering(proxy) as (_, rest):
            proxy.close_terminal()
            await drains(proxy)
            # As a shell says it once more.
            os.kill(proxy.pid, signal.SIGHUP)
            finish.set()
            assert await rest() == CHAT.body
        assert await proxy.ended() == 0
    assert bindings_in(state)


@PROGRAMS
async def test_sigterm_ends_it(setting, upstream, finish, program):
    proxy = on_terminal(setting, ONE, program=program, provider=upstream, options=LONG)
    async with proxy:
        async with answering(proxy) as (_, rest):
            os.kill(proxy.pid, signal.SIGTERM)
            await proxy.until_printed("shutting down: 1 request may")
            finish.set()
            assert await rest() == CHAT.body
        assert await proxy.ended() == 0


@PROGRAMS
async def test_sigterm_cuts_it_off_after_its_terminal_was_closed(setting, upstream, program):
    proxy = on_terminal(setting, ONE, program=program, provider=upstream, options=LONG)
    async with proxy, answering(proxy):
        proxy.close_terminal()
        await drains(proxy)
        os.kill(proxy.pid, signal.SIGTERM)
        assert await proxy.ended() == 0
