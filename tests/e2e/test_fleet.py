"""Proxies on one state engine: what one learns all know, and no request waits for the engine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import engine_calls
from tests.e2e.harness import FIRST, SECOND, Proxy, chat, in_order, respond
from tests.patience import PATIENCE_S
from tests.scripts import openai
from tests.store.servers import KINDS, Server
from tests.tcp_proxy import TcpProxy
from tests.upstream.exchange import Reply
from tests.upstream.replies import JSON, json_reply

pytest.importorskip("redis")

GOOD = openai.chat_complete("Good morning")
LIMITED = openai.rate_limited(3000)
TWO = in_order("first", "second")
NEVER = 10 * PATIENCE_S
PERSISTENCE, BREAKER = "account_pool.proxy.persistence", "account_pool.store.fleet.engine"
#: Nobody looks by itself: what is known was pushed.
ONLY_PUSHED = {PERSISTENCE: {"LOOK_S": NEVER, "BEAT_S": NEVER}}
LOSS, RETURN = "this proxy is alone", r"\d can be written again"


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    server = Server(request.param, tmp_path / "engine").start()
    yield server
    server.go_on()
    server.kill()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    server = Server("redis", tmp_path / "engine").start()
    yield server
    server.kill()


class Member:
    """A proxy of a fleet, and what it says of itself."""

    def __init__(self, proxy: Proxy, calls: Path) -> None:
        self.proxy = proxy
        self._calls = calls
        self._at_start = len(self.calls("begin"))

    async def send(self, **request: Any) -> Any:
        async with self.proxy.client() as http:
            return await http.request(**(request or chat(stream=False)))

    async def ask(self, path: str) -> Any:
        async with self.proxy.client() as http:
            answer = await http.get(f"{self.proxy.url}{path}")
            answer.raise_for_status()
            return answer.json() if path != "/metrics" else answer.text

    async def until(self, path: str, is_so: Callable[[Any], Any]) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            while not is_so(said := await self.ask(path)):
                await asyncio.sleep(0.01)
        return said

    async def until_cooling(self, *labels: str) -> None:
        await self.until("/account-pool", lambda said: cooling(said) == {*labels})

    def calls(self, how: str) -> list[str]:
        """Return calls of the engine that began ("begin") or ended, by thread and function."""
        lines = self._calls.read_text("utf-8").splitlines() if self._calls.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{how} ")]

    def called_in_loop(self) -> list[str]:
        """Return the calls by the thread of the event loop since it was ready."""
        return [call for call in self.calls("begin")[self._at_start :] if "loop" in call]

    def waits(self) -> bool:
        return len(self.calls("begin")) > len(self.calls("end"))

    async def until_waiting(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not self.waits():
                await asyncio.sleep(0.01)

    def told(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.proxy.lines)


def cooling(said: Any) -> set[str]:
    return {one["key"].partition("/")[2] for one in said["accounts"] if one["cooldowns"]}


Join = Callable[..., Awaitable[Member]]


@pytest.fixture
def join(pool_proxy: Any, tmp_path: Path) -> Join:
    """Start proxies of a pool: `join(port, upstream)`."""
    members: list[Member] = []

    async def start(
        port: int,
        upstream: Any,
        sets: Any = None,
        *,
        options: Any = None,
        accounts: Any = TWO,
        env: Any = None,
    ) -> Member:
        calls = tmp_path / f"calls-{len(members)}"
        proxy = await pool_proxy(
            accounts,
            provider=upstream,
            workers=1,
            options={"pool_state": f"redis://127.0.0.1:{port}/0?pool=test", **(options or {})},
            extra_args=["-s", engine_calls.__file__],
            env={
                engine_calls.CALLS: str(calls),
                # What was away is tried again soon.
                engine_calls.SETS: json.dumps({BREAKER: {"MAX_PAUSE_S": 0.5}, **(sets or {})}),
                **(env or {}),
            },
        )
        members.append(Member(proxy, calls))
        return members[-1]

    return start


def limited(*credentials: str) -> Callable[[Any], Any]:
    """Return a script of a provider that refuses whoever is in *credentials* now."""
    return lambda request: LIMITED if request.credential in credentials else GOOD


async def test_what_one_proxy_learns_is_pushed_to_the_others(engine, provider, join):
    upstream = await provider(limited(FIRST))
    one, other = [await join(engine.port, upstream, ONLY_PUSHED) for _ in range(2)]
    assert (await one.send()).status_code == 200
    await other.until_cooling("first")
    before = len(upstream.journal.credentials)
    assert (await other.send()).status_code == 200
    assert upstream.journal.credentials[before:] == [SECOND]
    said = await other.ask("/metrics")
    assert re.search(r"account_pool_state_lag_seconds_count [1-9]", said)


async def test_no_request_waits_for_an_engine_that_hangs(engine, provider, join):
    refused = [FIRST]
    upstream = await provider(lambda request: LIMITED if request.credential in refused else GOOD)
    waits = {engine_calls.WAITS: "1"}
    one, other = [await join(engine.port, upstream, env=waits) for _ in range(2)]
    await one.send()
    await other.until_cooling("first")
    engine.pause()
    try:
        await asyncio.gather(one.until_waiting(), other.until_waiting())
        for member in (one, other):
            for request in (chat(), chat(stream=False), respond(stream=False)):
                assert (await member.send(**request)).status_code == 200
        refused[:] = [SECOND]  # what a proxy learns meanwhile counts, here
        assert (await one.send()).status_code == 429
        assert cooling(await one.ask("/account-pool")) == {"first", "second"}
        assert one.waits() and other.waits(), "all that time it did not answer"
        assert cooling(await other.ask("/account-pool")) == {"first"}
    finally:
        engine.go_on()
    await other.until_cooling("first", "second")
    for member in (one, other):
        assert not member.called_in_loop()


@pytest.mark.parametrize("kind", ["engine", "file"])
async def test_one_of_all_proxies_probes_an_account_that_is_due(
    redis, provider, join, tmp_path, kind
):
    upstream = await provider(limited(FIRST))
    # Due once, a second after it was limited.
    soon = {"PROBED_FROM_S": 0.0, "CONFIRMED_PROBE_S": 1.0, "CONFIRMED_EVERY_S": NEVER}
    sets = {"account_pool.core.cooldown": soon}
    with TcpProxy(redis.port) as link:
        # News take so long that all of them would have probed it before one hears of another.
        link.delay_s = 0.2
        state = f"redis://127.0.0.1:{link.port}/0?pool=test&timeout=10"
        options = {"pool_state": state if kind == "engine" else tmp_path / "pool.sqlite"}
        members = [await join(link.port, upstream, sets, options=options) for _ in range(3)]
        for member in members:
            await member.until("/proxies", lambda said: len(said["proxies"]) == len(members))
        await members[0].send()
        for member in members:
            await member.until_cooling("first")
        assert upstream.journal.credentials.count(FIRST) == 1

        async def all_send() -> None:
            answers = await asyncio.gather(*(member.send() for member in members))
            assert {answer.status_code for answer in answers} == {200}

        async with asyncio.timeout(PATIENCE_S):
            while upstream.journal.credentials.count(FIRST) == 1:
                await all_send()
        for member in members:
            await member.until("/decisions", probes)
            await all_send()
        assert upstream.journal.credentials.count(FIRST) == 2
        assert [len(probes(await member.ask("/decisions"))) for member in members] == [1] * 3


def probes(said: Any) -> list[Any]:
    return [decision for decision in said["decisions"] if decision["kind"] == "probe"]


def half_closed(link: TcpProxy) -> None:
    """As a server that ends each connection, and takes no other one."""
    link.cut_after = 0
    link.half_close()


#: What a network, or an engine, does to those that use it; `mend` undoes it.
FAULTS: dict[str, Callable[[TcpProxy], object]] = {
    "gone": lambda link: link.refuse(),
    "two seconds late": lambda link: setattr(link, "delay_s", 2.0),
    "half closed": half_closed,
    "silent": lambda link: setattr(link, "is_silent", True),
    "ends within an answer": lambda link: setattr(link, "cut_after", 11),
}


def mend(link: TcpProxy) -> None:
    link.delay_s, link.is_silent, link.cut_after = 0.0, False, None
    link.reset()
    link.listen()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_proxy_that_is_alone_serves_and_comes_back(redis, provider, join, fault):
    refused: list[str] = []
    upstream = await provider(lambda request: LIMITED if request.credential in refused else GOOD)
    with TcpProxy(redis.port) as link:
        alone, other = await join(link.port, upstream), await join(redis.port, upstream)
        await alone.until("/proxies", lambda said: len(said["proxies"]) == 2)
        assert (await alone.ask("/health"))["state_problem"] is None
        FAULTS[fault](link)
        await alone.until("/health", lambda said: said["state_problem"])
        problem = (await alone.ask("/account-pool"))["state_problem"]
        assert f"the state engine 127.0.0.1:{link.port} " in problem
        assert re.search(r"account_pool_state_in_memory 1", await alone.ask("/metrics"))
        refused[:] = [FIRST]
        assert (await alone.send()).status_code == 200
        refused[:] = [SECOND]
        assert (await other.send()).status_code == 200, "by the first one"
        assert (await other.send(**respond(stream=False))).status_code == 200
        refused[:] = []
        assert (await alone.send()).status_code == 200
        assert cooling(await other.ask("/account-pool")) == set()
        mend(link)
        await alone.until("/health", lambda said: said["state_problem"] is None)
        await other.until_cooling("first")
        assert not alone.called_in_loop()
        await alone.proxy.until_printed(RETURN)
        assert (alone.told(LOSS), alone.told(RETURN)) == (1, 1)
        assert other.told(LOSS) == 0
        # All that both have served is counted, once.
        said = await other.until("/usage", lambda said: requests(said) >= 4)
        assert requests(said) == 4


def requests(usage: Any) -> int:
    return sum(day["requests"] for day in usage["days"])


# -- an engine that has lost what it had


def emptied(engine: Server) -> None:
    engine.ask("FLUSHALL")


def started_without_data(engine: Server) -> None:
    engine.kill()
    engine.start()


def went_back(engine: Server) -> None:
    """As a replica that takes over without the last writes."""
    engine.kill()
    (engine.folder / "kept.rdb").replace(engine.folder / "dump.rdb")
    engine.start()


LOST = "was started again, has lost what it had, or another has taken over"
LOSSES = [emptied, started_without_data, went_back]


def made_by_its_account(request: Any) -> Any:
    made = f"resp_{request.credential.split('-')[2]}_{request.turn}"
    return json_reply({"id": made, "object": "response", "status": "completed", "output": []})


def turn(model: str, session: str = "", before: str = "") -> dict[str, Any]:
    request = respond(stream=False)
    request["json"] |= {"model": model}
    request["json"] |= {"prompt_cache_key": session} if session else {}
    request["json"] |= {"previous_response_id": before} if before else {}
    return request


#: Conversations, and their accounts.
KEPT = {"lost:openai:gpt-5-nano": "openai/second", "kept:openai": "openai/first"}


def by_account(said: Any) -> dict[str, int]:
    return {one["key"]: one["served"] for one in said["accounts"]}


def bound(said: Any) -> dict[str, str]:
    return {one["key"]: one["account"] for one in said["sessions"]}


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
async def test_what_an_engine_has_lost_is_written_again_once(redis, provider, join, lose):
    refused: list[str] = []
    upstream = await provider(
        lambda request: LIMITED if request.credential in refused else made_by_its_account(request)
    )
    # Of counts as much is kept as a slow machine needs.
    sets = {"account_pool.proxy.pending_writes": {"WRITTEN_KEPT_S": NEVER}}
    one, other = [await join(redis.port, upstream, sets) for _ in range(2)]
    await one.until("/proxies", lambda said: len(said["proxies"]) == 2)
    await one.send(**turn("gpt-5", "kept"))
    await other.until("/usage", lambda said: requests(said) == 1)
    redis.ask("SAVE")
    (redis.folder / "dump.rdb").replace(redis.folder / "kept.rdb")
    # What follows is not in that.
    refused[:] = [FIRST]
    made = (await one.send(**turn("gpt-5-nano", "lost"))).json()["id"]
    assert made.startswith("resp_second")
    refused[:] = []
    await other.send(**turn("gpt-5"))
    await other.until_cooling("first")
    await other.until("/usage", lambda said: requests(said) == 3)
    # What each has served the other has to know: a sum that went back tells no proxy's part.
    known = {"openai/first": 2, "openai/second": 1}
    for member in (one, other):
        await member.until("/account-pool", lambda said: by_account(said) == known)
    lose(redis)
    for member in (one, other):
        await member.proxy.until_printed(LOST)
        # Later counts come after those that are written again.
        await member.send(**turn("gpt-5"))
    third = await join(redis.port, upstream, sets)
    await third.until_cooling("first")
    said = await third.until("/usage", lambda said: requests(said) >= 5)
    assert requests(said) == 5
    served = {"openai/first": 4, "openai/second": 1}
    await third.until("/account-pool", lambda said: by_account(said) == served)
    await third.until("/sessions", lambda said: KEPT.items() <= bound(said).items())
    # Whoever begins a conversation with this model gets the first account.
    owner = await third.send(**turn("gpt-5", before=made))
    assert owner.json()["id"].startswith("resp_second")
    for member in (one, other):
        assert member.told(LOST) == 1
        assert not member.called_in_loop()


# -- the beginning and the end


async def test_a_proxy_starts_while_its_engine_is_away(redis, provider, join):
    upstream = await provider(limited(FIRST))
    redis.kill()
    one = await join(redis.port, upstream)
    assert (await one.send()).status_code == 200
    assert (await one.ask("/health"))["state_problem"]
    redis.start()
    await one.until("/health", lambda said: said["state_problem"] is None)
    assert (one.told(LOSS), one.told(RETURN)) == (1, 1)
    other = await join(redis.port, upstream)
    await other.until_cooling("first")


async def test_a_proxy_ends_while_its_engine_hangs(redis, provider, join):
    begun, goes_on = asyncio.Event(), asyncio.Event()

    def script(request: Any) -> Any:
        begun.set()
        return Reply(headers=JSON, steps=(b'{"object": "chat.completion", ', goes_on, b'"a": 1}'))

    upstream = await provider(script)
    one = await join(redis.port, upstream, options={"pool_drain": PATIENCE_S})
    redis.pause()
    sent = asyncio.create_task(one.send())
    await begun.wait()
    os.kill(one.proxy.pid, signal.SIGTERM)
    await one.proxy.until_printed("shutting down: 1 request")
    goes_on.set()
    assert (await sent).json()["a"] == 1
    async with asyncio.timeout(PATIENCE_S):
        assert await one.proxy._process.wait() == 0
    redis.go_on()
