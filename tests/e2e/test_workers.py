"""Several workers on one port: `account-pool serve --workers N`."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest

from account_pool.demo.exchange import Reply
from account_pool.demo.replies import EVENT_STREAM, by_credential
from tests.e2e.harness import FIRST, SECOND, TIMEOUT_S, TWO, Proxy, chat
from tests.scripts import openai

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are for Linux")

GOOD = openai.chat_complete("Good morning")
CHAT = openai.chat_stream(["Good", " morning"])


@asynccontextmanager
async def one_each(proxy: Proxy) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Give a client to each worker, in the order of their names: a connection stays."""
    clients = [proxy.client() for _ in range(proxy.workers)]
    try:
        names = []
        for client in clients:
            await client.request(**chat(stream=False))
            await proxy.until(lambda: len(connects(proxy)) > len(names))
            names.append(connects(proxy)[-1])
        assert sorted(names) == sorted(proxy.ready_workers())
        yield [client for _, client in sorted(zip(names, clients, strict=True))]
    finally:
        for client in clients:
            await client.aclose()


def connects(proxy: Proxy) -> list[str]:
    """Return which worker each connection went to, in order."""
    found = (re.match(r"(worker \d+): .* client connect$", line) for line in proxy.lines)
    return [one[1] for one in found if one]


def pids(proxy: Proxy) -> dict[str, int]:
    """Return the process ids of the workers by their names."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError):
            # proc(5): the name, in parentheses, may hold anything; the parent is the fourth.
            parent = int(stat.read_text("utf-8", "replace").rpartition(")")[2].split()[1])
            if parent == proxy.pid:
                about = (stat.parent / "environ").read_text("utf-8")
                number = re.search(r'"number": (\d+)', about)
                assert number is not None
                found[f"worker {number[1]}"] = int(stat.parent.name)
    return found


async def test_all_workers_serve(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: GOOD, SECOND: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream, workers=2)
    async with one_each(proxy) as clients:
        for client in clients:
            assert (await client.request(**chat())).status_code == 200
    assert "worker 1: " in proxy.output and "worker 2: " in proxy.output


async def test_what_is_killed_takes_nothing_of_others_along(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: GOOD, SECOND: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream, workers=2)
    async with one_each(proxy) as (first, second):
        os.kill(pids(proxy)["worker 2"], signal.SIGKILL)
        with pytest.raises(httpx.HTTPError):
            for _ in range(100):
                await second.request(**chat(stream=False))
        assert (await first.request(**chat(stream=False))).status_code == 200
        for _ in range(10):
            async with proxy.client() as fresh:
                assert (await fresh.request(**chat(stream=False))).status_code == 200
        await proxy.until_printed(r"worker 2 has ended \(SIGKILL\); it is started anew")
        await proxy.until(lambda: len(re.findall(r"worker 2: .*ready with", proxy.output)) == 2)


async def test_the_end_waits_for_what_is_under_way(provider, pool_proxy):
    finish = asyncio.Event()
    first, second, *rest = CHAT.steps
    slow = Reply(headers=EVENT_STREAM, steps=(first, second, finish, *rest))
    upstream = await provider(by_credential({FIRST: slow}))
    proxy = await pool_proxy(TWO, provider=upstream, workers=2, options={"pool_drain": TIMEOUT_S})
    async with proxy.client() as client, client.stream(**chat()) as response:
        pieces = response.aiter_raw()
        await anext(pieces)
        # As a service manager does it that asks each process.
        for pid in pids(proxy).values():
            os.kill(pid, signal.SIGTERM)
        os.kill(proxy.pid, signal.SIGTERM)
        await proxy.until_printed("shutting down: 1 request")
        finish.set()
        assert b"[DONE]" in b"".join([piece async for piece in pieces])
    assert proxy._process is not None
    assert await proxy._process.wait() == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pool_state": "memory:"}, "they share a file; set pool_state to a path"),
        ({"save_stream_file": "flows"}, "save_stream_file is for a single process"),
        ({"mode": "wireguard"}, "mode wireguard cannot be shared"),
    ],
)
async def test_what_several_workers_cannot_do_is_an_error(setting, options, said):
    proxy = setting.prepare(TWO, workers=2, options=options)
    assert await proxy.run_to_end() == 1
    assert "worker 1: " in proxy.output and said in proxy.output
    assert "worker 2: " not in proxy.output


async def test_a_mistake_in_the_accounts_is_said_once(setting):
    proxy = setting.prepare("accounts: [{provider: nobody}]", workers=2)
    assert await proxy.run_to_end() == 1
    assert proxy.output.count("nobody") == 1
    assert "worker 2: " not in proxy.output
