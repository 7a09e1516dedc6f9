"""Several proxies on one state file: each tells of all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from account_pool import __version__
from tests.e2e.harness import TIMEOUT_S, TWO, chat, run_command
from tests.scripts import openai
from tests.store.servers import KINDS, Server
from tests.tcp_proxy import TcpProxy
from tests.upstream.exchange import Reply
from tests.upstream.replies import EVENT_STREAM

Json = dict[str, Any]


async def until(proxy: Any, happened: Callable[[list[Json]], bool]) -> list[Json]:
    """Return what GET /proxies lists as soon as that *happened*."""
    async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(TIMEOUT_S):
        while True:
            proxies = (await http.get(f"{proxy.url}/proxies")).json()["proxies"]
            if happened(proxies):
                return proxies
            await asyncio.sleep(0.05)


def states(proxies: list[Json]) -> list[str]:
    return [one["state"] for one in proxies]


async def command(proxy: Any, home: Path, *words: str) -> tuple[int, str, str]:
    """Run `account-pool status --fleet` on a pipe."""
    return await run_command(home, "status", "--fleet", *words, "-p", str(proxy.port))


@pytest.fixture
def kept(tmp_path: Path) -> Json:
    return {"options": {"pool_state": tmp_path / "pool.sqlite"}, "workers": 1}


def kill(proxy: Any, state: Path) -> None:
    """End *proxy* as a machine does that loses its power, half a minute ago."""
    os.kill(proxy.pid, signal.SIGKILL)
    with closing(sqlite3.connect(state, timeout=TIMEOUT_S)) as connection:
        for table in ("proxies", "proxy_reports"):
            connection.execute(
                f"UPDATE {table} SET seen_at = seen_at - 30 WHERE proxy LIKE ?",
                (f'%"pid": {proxy.pid},%',),
            )
        connection.commit()


async def test_two_proxies_know_of_each_other(provider, pool_proxy, kept, tmp_path):
    finish = asyncio.Event()
    first, *rest = openai.chat_events(["Good", " morning"])
    slow = Reply(headers=EVENT_STREAM, steps=(first, finish, *rest))
    upstream = await provider(lambda _request: slow)
    one = await pool_proxy(TWO, provider=upstream, **kept)
    two = await pool_proxy(TWO, provider=upstream, **kept)
    for here, there in ((one, two), (two, one)):
        mine, theirs = await until(
            here, lambda p, there=there: len(p) == 2 and p[1]["name"].endswith(f":{there.port}")
        )
        assert mine["this"] and mine["name"].endswith(f":{here.port}")
        assert not theirs["this"] and theirs["version"] == __version__
        assert {mine["state"], theirs["state"]} == {"running"}

    # What one of them does, the other tells.
    async with two.client() as client, client.stream(**chat(stream=True)) as response:
        assert response.status_code == 200
        await until(one, lambda p: p[1]["in_flight"] == 1)
        code, out, err = await command(one, tmp_path)
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[0].split()[:3] == ["proxy", "state", "version"]
        assert [line.split()[1:3] for line in lines[1:3]] == [["running", __version__]] * 2
        assert lines[-1] == "2 running, 1 request in flight; state: file"
        finish.set()
        await response.aread()
    code, out, _ = await command(one, tmp_path, "--json")
    assert (code, json.loads(out)["summary"]["running"]) == (0, 2)
    async with httpx.AsyncClient(trust_env=False) as http:
        scraped = (await http.get(f"{one.url}/metrics")).text
    assert 'account_pool_proxies{state="running"} 2.0' in scraped
    assert scraped.count("account_pool_proxy_info{") == 2

    # One that ends in good order is no loss.
    await two.stop()
    await until(one, lambda p: states(p) == ["running"])
    code, out, err = await command(two, tmp_path)
    assert (code, out) == (1, "") and "no proxy answers" in err


async def test_one_that_was_killed_is_missed_until_it_is_back(pool_proxy, kept):
    state = kept["options"]["pool_state"]
    one = await pool_proxy(TWO, **kept)
    two = await pool_proxy(TWO, **kept)
    await until(one, lambda p: states(p) == ["running", "running"])
    kill(two, state)
    proxies = await until(one, lambda p: states(p) == ["running", "gone"])
    assert proxies[1]["seen_s"] > 25 and proxies[1]["in_flight"] == 0
    # The same place is taken again: nothing is missed any more.
    again = await pool_proxy(TWO, **kept, extra_args=["--listen-port", str(two.port)])
    await until(one, lambda p: states(p) == ["running", "running"])
    await until(again, lambda p: states(p) == ["running", "running"])
    await again.stop()
    await until(one, lambda p: states(p) == ["running"])


async def test_workers_are_one_proxy(pool_proxy, kept):
    many = await pool_proxy(TWO, **{**kept, "workers": 2})
    one = await pool_proxy(TWO, **kept)
    proxies = await until(one, lambda p: len(p) == 2 and p[1]["workers"] == 2)
    assert proxies[1]["name"].endswith(f":{many.port}")
    # Whichever worker is asked: both are this one.
    proxies = await until(many, lambda p: len(p) == 2 and p[0]["workers"] == 2)
    assert [p["this"] for p in proxies] == [True, False]


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("redis")
    server = Server(request.param, tmp_path / "engine").start()
    yield server
    server.kill()


async def test_on_an_engine_and_while_that_is_away(pool_proxy, engine, tmp_path):
    with TcpProxy(engine.port) as way:
        one, two = [
            await pool_proxy(
                TWO,
                workers=1,
                options={"pool_state": f"redis://127.0.0.1:{port}/0?pool=test"},
            )
            for port in (way.port, engine.port)
        ]
        for proxy in (one, two):
            await until(proxy, lambda p: states(p) == ["running", "running"])
        way.refuse()
        proxies = await until(one, lambda p: states(p) == ["running", "unknown"])
        assert f"127.0.0.1:{way.port}" in proxies[0]["problem"]
        code, out, _ = await command(one, tmp_path)
        assert code == 0
        assert (
            f"1 running, 1 unknown, 0 requests in flight; state: engine 127.0.0.1:{way.port}" in out
        )
        assert "what the others do is not known" in out
        way.listen()
        await until(one, lambda p: states(p) == ["running", "running"])
        # It was taken for dead, or not: it is the same all the same.
        await until(two, lambda p: states(p) == ["running", "running"])
