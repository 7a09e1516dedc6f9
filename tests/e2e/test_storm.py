"""A herd of clients whose account becomes limited does not throttle the next one."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

from tests.e2e import constants, status
from tests.e2e.harness import FIRST, SECOND, THIRD, TIMEOUT_S, TWO, Proxy, account, chat
from tests.scripts import openai
from tests.upstream.exchange import Journal, Reply, Request

CLIENTS = 50
WORDS = [" good"]
GOOD = openai.chat_stream(WORDS)


class Herd:
    """All of it is refused at once; the next account answers each one when it is let go."""

    def __init__(self) -> None:
        self.is_here = asyncio.Event()
        #: of the next account, in order of arrival
        self.answers = [asyncio.Event() for _ in range(CLIENTS)]
        self.arrived = 0

    def __call__(self, request: Request) -> Reply:
        if request.credential == FIRST:
            if request.turn == CLIENTS:
                self.is_here.set()
            # Not even a head before: what is left of an account is known from that.
            return replace(openai.rate_limited(3600), not_before=self.is_here)
        self.arrived += 1
        # Nothing is known of the account before its first event.
        return replace(GOOD, steps=(self.answers[self.arrived - 1], *GOOD.steps))

    @asynccontextmanager
    async def running(self, provider, pool_proxy, **settings) -> AsyncIterator[Proxy]:
        """Yield the proxy while the herd asks; then it has been served, each after one refusal."""
        upstream = await provider(self)
        # However long it takes on a busy machine until all are here, none gives up.
        proxy = await pool_proxy(TWO, provider=upstream, options={"pool_max_wait": 600}, **settings)

        async def one() -> tuple[int, bytes]:
            async with proxy.client() as http:
                answer = await http.request(**chat())
                return answer.status_code, answer.content

        asking = asyncio.gather(*(one() for _ in range(CLIENTS)))
        yield proxy
        for answer in self.answers:
            answer.set()
        assert await asking == [(200, GOOD.body)] * CLIENTS
        statuses = upstream.journal.statuses
        assert [s for credential, s in statuses if credential == FIRST] == [429] * CLIENTS
        assert [s for credential, s in statuses if credential == SECOND] == [200] * CLIENTS


async def until_waiting(proxy: Proxy, count: int) -> None:
    """Wait until so many requests, or fewer, are held by the pool once it has refused all."""
    async with proxy.client() as http, asyncio.timeout(TIMEOUT_S):
        waiting = CLIENTS
        while waiting > count:
            text = (await http.get(f"http://{status.HOST}/")).text
            found = re.search(r"(\d+) waiting now:", text)
            waiting = int(found[1]) if found else CLIENTS


async def test_where_the_herd_goes_it_starts_with_one(provider, pool_proxy):
    """Time adds nobody here: a good answer lets two go, itself and one more."""
    endless = [f"set_constant=account_pool.core.state:{name}=1e6" for name in ("STEP_S", "RAMP_S")]
    scripts = ["-s", constants.__file__, "-s", status.__file__]
    herd = Herd()
    async with herd.running(
        provider, pool_proxy, extra_args=[*scripts, *(arg for x in endless for arg in ("--set", x))]
    ) as proxy:
        await until_waiting(proxy, CLIENTS - 1)
        assert herd.arrived == 1
        herd.answers[0].set()
        await until_waiting(proxy, CLIENTS - 3)
        assert herd.arrived == 3


async def test_time_lets_the_herd_go_on_where_nobody_answers(provider, pool_proxy):
    herd = Herd()
    async with herd.running(provider, pool_proxy, extra_args=["-s", status.__file__]) as proxy:
        await until_waiting(proxy, CLIENTS - 3)


AGENTS, TURNS = 50, 4
#: What an account takes at once, after how many it is limited, and for how many seconds.
AT_ONCE, ALLOWANCE, PAUSE_S = 10, 15, 0.5


@dataclass
class Windows:
    """Accounts that refuse for a while after so many requests."""

    journal: Journal | None = None
    limits: int = 0
    taken: Counter[str] = field(default_factory=Counter)
    limited_until: dict[str, float] = field(default_factory=dict)
    most_at_once: Counter[str] = field(default_factory=Counter)

    def __call__(self, request: Request) -> Reply:
        now, account = time.monotonic(), request.credential
        assert self.journal is not None
        at_once = sum(
            e.request.credential == account and e.ending is None for e in self.journal.exchanges
        )
        self.most_at_once[account] = max(self.most_at_once[account], at_once)
        if (left_s := self.limited_until.get(account, now) - now) > 0:
            return openai.rate_limited(left_s)
        self.taken[account] += 1
        if self.taken[account] % ALLOWANCE == 0:
            self.limits += 1
            self.limited_until[account] = now + PAUSE_S
        return openai.chat_stream(WORDS * 3, pause_s=0.01)


async def test_many_agents_are_served_through_the_limits_of_all_accounts(provider, pool_proxy):
    windows = Windows()
    upstream = await provider(windows)
    windows.journal = upstream.journal
    labels = ("first", "second", "third")
    accounts = [account(label, max_concurrent=AT_ONCE) for label in labels]
    # Nobody gives up, or leaves the account of a conversation, because the machine is slow.
    patient = {"pool_max_wait": 600, "pool_patience": 600}
    proxy = await pool_proxy(accounts, provider=upstream, options=patient)

    async def agent(number: int) -> list[int]:
        request = chat(f"agent {number}")
        request["headers"]["x-session-id"] = f"agent-{number}"
        async with proxy.client() as http:
            answers = [await http.request(**request) for _ in range(TURNS)]
        assert all(answer.content.endswith(b"data: [DONE]\n\n") for answer in answers)
        return [answer.status_code for answer in answers]

    seen = await asyncio.gather(*(agent(n) for n in range(AGENTS)))
    assert seen == [[200] * TURNS] * AGENTS
    refused = sum(status == 429 for _, status in upstream.journal.statuses)
    homes: dict[str | None, list[str]] = {}
    for exchange in upstream.journal.exchanges:
        if exchange.reply and exchange.reply.status == 200:
            session = exchange.request.header("x-session-id")
            homes.setdefault(session, []).append(exchange.request.credential)
    moves = sum(a != b for home in homes.values() for a, b in pairwise(home))
    assert set(windows.most_at_once) == {FIRST, SECOND, THIRD}
    assert max(windows.most_at_once.values()) <= AT_ONCE
    # What is under way when an account becomes limited is refused; nobody follows.
    assert 0 < refused <= AT_ONCE * windows.limits
    assert moves < AGENTS // 2
