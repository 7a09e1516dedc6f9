"""Killed proxies, and two proxies on one store: what was learnt is there."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sqlite3
from contextlib import closing, suppress
from itertools import count
from pathlib import Path

import httpx
import pytest

from account_pool.demo.mitmdump import MitmdumpFailed
from tests.e2e import die_after_cooldown
from tests.e2e.harness import FIRST, SECOND, TIMEOUT_S, chat, in_order, secret
from tests.scripts import openai
from tests.upstream.exchange import Reply
from tests.upstream.replies import EVENT_STREAM, by_credential

GOOD = openai.chat_complete("Good morning")
LIMITED = openai.rate_limited(3000)
LABELS = ["one", "two", "three", "four"]


@pytest.fixture
def kept(tmp_path):
    """Arguments of proxies that keep their state in one file, and tell about it."""
    options = {"pool_state": tmp_path / "state" / "pool.sqlite"}
    return {"options": options, "extra_args": ["-s", die_after_cooldown.__file__]}


async def told(http: httpx.AsyncClient, command: str) -> str:
    answer = await http.get(f"http://{die_after_cooldown.HOST}/{command}")
    assert answer.status_code == 200, answer.text
    return answer.text


async def cooling(http: httpx.AsyncClient) -> list[str]:
    """Labels of the accounts that cool with their cause, as `pool.status` says."""
    status = await told(http, "pool.status")
    return re.findall(r"openai/(\w+) .* on cooldown for [45]\d min.*rate_limit_exceeded", status)


async def test_what_a_killed_proxy_had_learnt_is_there_again(provider, pool_proxy, kept):
    """Each round one account more is limited, and the proxy killed once that is written."""
    limited: set[str] = set()
    upstream = await provider(lambda request: LIMITED if request.credential in limited else GOOD)
    accounts = in_order(*LABELS)
    for round_, label in enumerate(LABELS[:3]):
        limited.add(secret(label))
        env = {die_after_cooldown.DIE: f"openai/{label}"}
        proxy = await pool_proxy(accounts, provider=upstream, env=env, **kept)
        async with proxy.client() as http:
            assert await cooling(http) == LABELS[:round_]
            with suppress(httpx.HTTPError):
                # It may be dead before its client is served.
                await http.request(**chat(stream=False))
        with pytest.raises(MitmdumpFailed):
            await proxy.until(lambda: False)
    proxy = await pool_proxy(accounts, provider=upstream, **kept)
    before = len(upstream.journal.credentials)
    async with proxy.client() as http:
        assert await cooling(http) == LABELS[:3]
        assert (await http.request(**chat(stream=False))).status_code == 200
    assert upstream.journal.credentials[before:] == [secret("four")]


def written(path: Path) -> list[str]:
    """Labels of the accounts of which a cooldown is in the file, in order."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute("SELECT DISTINCT account FROM cooldowns").fetchall()
    labels = {account.removeprefix("openai/") for (account,) in rows}
    return [label for label in LABELS if label in labels]


async def test_killed_at_any_moment_it_goes_on_with_what_was_written(provider, pool_proxy, kept):
    """Six clients at once, a limit somewhere, a kill somewhere; what was written once stays.

    Another proxy on the same file lives through all of it. POOL_KILLS kills more often.
    """
    chance = random.Random(4)
    limited: set[str] = set()
    upstream = await provider(lambda request: LIMITED if request.credential in limited else GOOD)
    steady = await pool_proxy(in_order(*LABELS), provider=upstream, **kept)
    before: list[str] = []
    for _ in range(int(os.environ.get("POOL_KILLS", "5"))):
        proxy = await pool_proxy(in_order(*LABELS), provider=upstream, **kept)
        async with proxy.client() as http:
            assert await cooling(http) == before
            limit_at, kill_at = sorted(chance.sample(range(1, 40), 2))
            replies = count(1)

            def on_reply(_exchange, pid=proxy.pid, limit_at=limit_at, kill_at=kill_at, n=replies):
                at = next(n)
                if at == limit_at:
                    limited.update(map(secret, LABELS[: min(len(limited) + 1, 3)]))
                elif at == kill_at:
                    os.kill(pid, signal.SIGKILL)

            upstream.journal.on_reply = on_reply

            async def ask(http=http) -> None:
                with suppress(httpx.HTTPError):
                    while True:
                        await http.request(**chat(stream=False))

            await asyncio.gather(*(ask() for _ in range(6)))
        with pytest.raises(MitmdumpFailed):
            await proxy.until(lambda: False)
        found = written(kept["options"]["pool_state"])
        assert set(before) <= set(found)
        before = found
    async with steady.client() as http:
        await until_it_cools(http, before)
        assert (await http.request(**chat(stream=False))).status_code == 200


async def until_it_cools(http: httpx.AsyncClient, labels: list[str]) -> None:
    """Wait until a proxy knows what is in the file; it looks once a second."""
    async with asyncio.timeout(TIMEOUT_S):
        while not set(labels) <= set(await cooling(http)):
            pass


async def test_a_killed_proxy_leaves_nothing_in_the_way(provider, pool_proxy, kept):
    """It had an account's only place, which another proxy, and the next, may use.

    What it had served counts with what they serve.
    """
    for_ever = asyncio.Event()
    endless = Reply(headers=EVENT_STREAM, steps=(*openai.chat_events(["Good"])[:2], for_ever))
    upstream = await provider(by_credential({FIRST: [GOOD, endless, GOOD]}))
    accounts = in_order("first", max_concurrent=1)
    doomed = await pool_proxy(accounts, provider=upstream, **kept)
    other = await pool_proxy(accounts, provider=upstream, **kept)
    request = chat(stream=False)
    async with doomed.client() as http, other.client() as http_other:
        assert (await http.request(**request)).status_code == 200
        await until_counted(other, 1)
        async with http.stream(**chat()) as response:
            pieces = response.aiter_raw()
            await anext(pieces)
            await until_in_flight(kept["options"]["pool_state"], 1)
            await told(http_other, "pool.status")
            os.kill(doomed.pid, signal.SIGKILL)
            with pytest.raises(MitmdumpFailed):
                await doomed.until(lambda: False)
        again = await pool_proxy(accounts, provider=upstream, **kept)
        async with again.client() as http_again:
            assert (await http_again.request(**request)).status_code == 200
        assert (await http_other.request(**request)).status_code == 200
    await until_counted(other, 3)
    await until_counted(again, 3)
    assert upstream.journal.credentials == [FIRST] * 4


async def until_counted(proxy, requests: int) -> None:
    """Wait until *proxy* tells so many requests, with what each of them took."""
    async with asyncio.timeout(TIMEOUT_S), httpx.AsyncClient(trust_env=False) as http:
        days: list[dict] = []
        while [day["requests"] for day in days] != [requests]:
            await asyncio.sleep(0)
            days = (await http.get(f"{proxy.url}/usage")).json()["days"]
    assert days[0]["account"] == "openai/first"
    assert days[0]["output_tokens"] == 2 * requests


async def until_in_flight(path: Path, requests: int) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        found = None
        while found != requests:
            await asyncio.sleep(0)
            with closing(sqlite3.connect(path)) as connection:
                (found,) = connection.execute("SELECT sum(requests) FROM in_flight").fetchone()


async def test_two_proxies_share_what_they_learn(provider, pool_proxy, kept):
    upstream = await provider(by_credential({FIRST: LIMITED, SECOND: GOOD}))
    accounts = in_order("first", "second")
    one = await pool_proxy(accounts, provider=upstream, **kept)
    other = await pool_proxy(accounts, provider=upstream, **kept)
    async with one.client() as http, other.client() as http_other:
        assert (await http.request(**chat(stream=False))).status_code == 200
        await other.until_printed("restored openai/first with 1 cooldowns")
        assert await cooling(http_other) == ["first"]
        await told(http_other, "pool.clear/openai/first")
        # Those before: when it began.
        await one.until(lambda: "first with 0 cooldowns" in one.output.split("ready", 1)[1])
        assert await cooling(http) == []
        assert await cooling(http_other) == []
    assert upstream.journal.credentials == [FIRST, SECOND]


async def test_a_database_that_cannot_be_used_is_no_reason_not_to_serve(provider, pool_proxy, kept):
    path = kept["options"]["pool_state"]
    path.parent.mkdir()
    path.write_text("not a database\n" * 1000)
    upstream = await provider(by_credential({FIRST: GOOD}))
    proxy = await pool_proxy(in_order("first"), provider=upstream, **kept)
    assert f"is not a database: it was kept as {path}.damaged" in proxy.output
    async with proxy.client() as http:
        assert (await http.request(**chat(stream=False))).status_code == 200
    assert Path(f"{path}.damaged").read_text().startswith("not a database")
