"""A herd of clients whose account becomes limited does not throttle the next one."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise

from account_pool.core.ramp import STEP_S
from account_pool.demo.exchange import Reply, Request
from account_pool.demo.journal import Journal
from account_pool.demo.scripts import openai
from tests.e2e.harness import FIRST, SECOND, THIRD, TWO, account, chat

CLIENTS = 50
WORDS = [" good"]
GOOD = openai.chat_stream(WORDS)


async def test_where_the_herd_goes_it_starts_with_one(provider, pool_proxy):
    herd_is_here, go_on = asyncio.Event(), asyncio.Event()
    arrivals: list[float] = []

    def script(request: Request) -> Reply:
        if request.credential == FIRST:
            # All are refused in the same moment.
            if request.turn == CLIENTS:
                herd_is_here.set()
            limited = openai.rate_limited(3600)
            return replace(limited, steps=(herd_is_here, *limited.steps))
        arrivals.append(time.monotonic())
        if len(arrivals) == 3:
            go_on.set()
        # Nothing is known of the account before its first event.
        return replace(GOOD, steps=(go_on, *GOOD.steps))

    upstream = await provider(script)
    # However long it takes on a busy machine until all are here: no refusal is read earlier.
    proxy = await pool_proxy(TWO, provider=upstream, options={"pool_gate": 25})

    async def one() -> tuple[int, bytes]:
        async with proxy.client() as http:
            answer = await http.request(**chat())
            return answer.status_code, answer.content

    seen = await asyncio.gather(*(one() for _ in range(CLIENTS)))
    assert seen == [(200, GOOD.body)] * CLIENTS
    statuses = upstream.journal.statuses
    assert [status for credential, status in statuses if credential == FIRST] == [429] * CLIENTS
    assert [status for credential, status in statuses if credential == SECOND] == [200] * CLIENTS
    # One at first, one more per step: the third comes two steps after the first, less what
    # the first connection takes longer than the third.
    assert arrivals[2] - arrivals[0] > STEP_S


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
    proxy = await pool_proxy(accounts, provider=upstream)

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
