"""A herd of clients whose account becomes limited does not throttle the next one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from account_pool.core.ramp import STEP_S
from account_pool.demo.exchange import Reply, Request
from account_pool.demo.scripts import openai
from tests.e2e.harness import FIRST, SECOND, TWO, chat

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
    proxy = await pool_proxy(TWO, provider=upstream)

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
