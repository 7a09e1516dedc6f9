"""Several workers on one port: `account-pool serve --workers N`."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from account_pool.admin.auth import TOKEN_FILE
from tests.e2e.harness import CONFDIR, FIRST, SECOND, TIMEOUT_S, TWO, Proxy, account, chat, in_order
from tests.scripts import openai
from tests.upstream.exchange import Reply, Request
from tests.upstream.replies import EVENT_STREAM, by_credential

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
        # Its own connection is lost, which a client may see before it sends the next request.
        with suppress(httpx.HTTPError):
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


class AtOnce:
    """A script that knows how many answers it owed at once at most.

    It answers nothing before it has owed as many as are *expected*; then each answer takes a
    moment.
    """

    def __init__(self) -> None:
        self.owed = self.most = 0
        self.expected = 1
        self._waiting = list[Callable[[], object]]()

    def __call__(self, _request: Request) -> Reply:
        self.owed += 1
        self.most = max(self.most, self.owed)
        go_on = asyncio.Event()

        def answer() -> None:
            self.owed -= 1
            go_on.set()

        self._waiting.append(answer)
        if self.most >= self.expected:
            for waiting in self._waiting:
                asyncio.get_running_loop().call_later(0.01, waiting)
            self._waiting.clear()
        return replace(GOOD, not_before=go_on)


@pytest.mark.parametrize("limit", [1, 3])
async def test_all_workers_together_keep_to_max_concurrent(provider, pool_proxy, limit):
    script = AtOnce()
    upstream = await provider(script)
    accounts = in_order("first", max_concurrent=limit)
    options = {"pool_max_wait": TIMEOUT_S}
    proxy = await pool_proxy(accounts, provider=upstream, workers=2, options=options)
    async with one_each(proxy) as clients:
        script.expected = limit
        asked = [client.request(**chat(stream=False)) for client in clients for _ in range(15)]
        answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} == {200}
    assert script.most == limit


async def test_a_conversation_has_one_account_in_all_workers(provider, pool_proxy):
    """Its second turn comes to the other worker, as soon as the first one is answered."""

    def answer(_request: Request) -> Reply:
        go_on = asyncio.Event()
        asyncio.get_running_loop().call_later(0.5, go_on.set)  # as a model would take at least
        return replace(GOOD, not_before=go_on)

    upstream = await provider(answer)
    proxy = await pool_proxy([account("first"), account("second")], provider=upstream, workers=2)
    async with one_each(proxy) as clients:
        for number in range(4):
            asked = chat(stream=False)
            asked["headers"]["x-session-id"] = f"session-{number}"
            before = len(upstream.journal.credentials)
            for client in clients if number % 2 else reversed(clients):
                assert (await client.request(**asked)).status_code == 200
            first, second = upstream.journal.credentials[before:]
            assert first == second


async def test_a_limit_is_known_to_all_workers(provider, pool_proxy):
    limited = openai.rate_limited(3000)
    upstream = await provider(by_credential({FIRST: [GOOD, GOOD, limited], SECOND: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream, workers=2)
    async with one_each(proxy) as (first, second):
        assert (await first.request(**chat(stream=False))).status_code == 200
        await proxy.until_printed(r"worker 2: .*openai/first.*cooldown")
        assert (await second.request(**chat(stream=False))).status_code == 200
    assert upstream.journal.credentials[2:] == [FIRST, SECOND, SECOND]


async def test_many_requests_at_a_limited_account_are_refused_few_times(provider, pool_proxy):
    limited = openai.rate_limited(3000)
    upstream = await provider(by_credential({FIRST: [*[GOOD] * 50, limited], SECOND: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream, workers=2)
    clients = [proxy.client() for _ in range(8)]

    async def ask(client: httpx.AsyncClient) -> set[int]:
        answers = [await client.request(**chat(stream=False)) for _ in range(50)]
        await client.aclose()
        return {answer.status_code for answer in answers}

    assert set().union(*await asyncio.gather(*map(ask, clients))) == {200}
    assert upstream.journal.credentials.count(FIRST) <= 50 + 8


def sample(text: str, name: str) -> float:
    """Return the sum of the samples *name* of metrics."""
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


async def test_the_admin_pages_speak_for_all_workers(provider, pool_proxy):
    finish = asyncio.Event()
    first, second, *rest = openai.chat_events(["Good", " morning"])
    slow = Reply(headers=EVENT_STREAM, steps=(first, second, finish, *rest))
    upstream = await provider(by_credential({FIRST: [GOOD, GOOD, slow, slow]}))
    accounts = in_order("first", max_concurrent=5)
    proxy = await pool_proxy(accounts, provider=upstream, workers=2)
    asked = chat()
    async with (
        one_each(proxy) as (one, other),
        one.stream(**asked) as here,
        other.stream(**asked) as there,
    ):
        pieces = [here.aiter_raw(), there.aiter_raw()]
        for body in pieces:
            await anext(body)
        seen = set()
        while len(seen) < 2:
            async with httpx.AsyncClient(base_url=proxy.url, timeout=TIMEOUT_S) as admin:
                health = (await admin.get("/health")).json()
                (state,) = (await admin.get("/account-pool")).json()["accounts"]
                metrics = (await admin.get("/metrics")).text
                await proxy.until(lambda: proxy.output.count("client connect") > 2 + len(seen))
                seen.add(connects(proxy)[-1])
            assert (health["size"], health["busy"], health["pid"]) == (1, 1, proxy.pid)
            assert {w["pid"] for w in health["workers"]} == set(pids(proxy).values())
            assert (state["in_flight"], state["state"]) == (2, "available")
            assert sample(metrics, "account_pool_in_flight") == 2
            assert sample(metrics, "account_pool_requests_total") == 2
        finish.set()
        for body in pieces:
            assert b"[DONE]" in b"".join([piece async for piece in body])
    # What a worker has counted is counted when it is gone.
    async with httpx.AsyncClient(base_url=proxy.url, timeout=TIMEOUT_S) as admin:
        assert sample((await admin.get("/metrics")).text, "account_pool_requests_total") == 4
        os.kill(pids(proxy)["worker 2"], signal.SIGKILL)
        await proxy.until_printed(r"worker 2 has ended")
    async with httpx.AsyncClient(base_url=proxy.url, timeout=TIMEOUT_S) as admin:
        assert sample((await admin.get("/metrics")).text, "account_pool_requests_total") == 4


async def test_what_is_changed_at_one_worker_is_changed_at_all(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: GOOD, SECOND: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream, workers=2)
    token = (proxy.folder / CONFDIR / TOKEN_FILE).read_text().strip()
    headers = {"authorization": f"Bearer {token}"}
    async with (
        one_each(proxy) as clients,
        httpx.AsyncClient(base_url=proxy.url, timeout=TIMEOUT_S, headers=headers) as admin,
    ):

        async def served_by() -> list[str]:
            before = len(upstream.journal.credentials)
            for client in clients:
                assert (await client.request(**chat(stream=False))).status_code == 200
            return upstream.journal.credentials[before:]

        async def do(what: str, label: str = "first", **more: str) -> None:
            body = {"provider": "openai", "label": label, **more}
            answer = await admin.post(f"/account-pool/{what}", json=body)
            assert answer.is_success, answer.text

        await do("disable")
        assert await served_by() == [SECOND, SECOND]
        decisions = (await admin.get("/decisions")).json()
        assert [(d["kind"], d["account"]) for d in decisions["decisions"]] == [
            ("disable", "openai/first")
        ]
        since = {"since": decisions["next"]}
        assert (await admin.get("/decisions", params=since)).json()["decisions"] == []
        await do("enable")
        assert await served_by() == [FIRST, FIRST]
        await do("remove")
        assert await served_by() == [SECOND, SECOND]
        await do("add", token=FIRST)
        await do("disable", "second")
        assert await served_by() == [FIRST, FIRST]


async def test_a_link_of_one_worker_is_redeemed_once_at_any(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: GOOD}))
    proxy = await pool_proxy(in_order("first"), provider=upstream, workers=2)
    token = (proxy.folder / CONFDIR / TOKEN_FILE).read_text().strip()
    async with one_each(proxy) as clients:
        for here, there in (clients, reversed(clients)):
            made = await here.post(
                f"{proxy.url}/link", json={}, headers={"authorization": f"Bearer {token}"}
            )
            code = {"code": made.json()["url"].partition("#code=")[2]}
            asked = [await there.post(f"{proxy.url}/link/redeem", json=code) for _ in range(2)]
            assert [response.status_code for response in asked] == [200, 401]
            assert asked[0].json() == {"token": token}
