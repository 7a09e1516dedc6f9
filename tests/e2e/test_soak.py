"""Every lease comes back: after a storm of everything that can happen nothing is in flight.

1,000 requests by default; `POOL_SOAK=10000` for the long run, which also looks at memory.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx

from tests.e2e import status
from tests.e2e.harness import TIMEOUT_S, account, chat
from tests.scripts import openai
from tests.upstream.exchange import Fault, Pause, Reply, Request
from tests.upstream.replies import EVENT_STREAM

REQUESTS = int(os.environ.get("POOL_SOAK", "1000"))
#: mitmproxy without us fills its own caches (certificates, connections) for so long.
MEMORY_SETTLES = 4000
WORKERS = 16
LABELS = ("a", "b", "c", "d", "e", "f")
GOOD = openai.chat_stream([f" word{n}" for n in range(8)], pause_s=0.001)
LARGE = Reply(
    headers=EVENT_STREAM,
    steps=(*openai.chat_events(["Good"])[:2], *[b": " + b"x" * 65000 + b"\n\n"] * 8),
)

#: reply and how often it is given, of a hundred
REPLIES = [
    (GOOD, 55),
    (LARGE, 6),
    (openai.chat_complete("Good"), 6),
    (openai.rate_limited(0.05), 6),
    (openai.limit_in_chat_stream(0.05), 4),
    (replace(openai.rate_limited(0.05), hang_up=True), 3),
    (openai.overloaded(), 1),
    (openai.bad_request(), 3),
    (Reply(fault=Fault.HANG_UP), 3),
    (Reply(fault=Fault.RESET), 3),
    (Reply(fault=Fault.REFUSED), 2),
    (replace(GOOD, fault=Fault.BREAK, steps=GOOD.steps[:5]), 4),
    (replace(GOOD, steps=(Pause(0.2), *GOOD.steps)), 4),
]


async def ask(http: httpx.AsyncClient, chance: random.Random) -> None:
    """Send one request as some client would: to the end, slowly, or not for long."""
    patience = chance.choice([None, None, None, None, 0, 1, 3])
    timeout = httpx.Timeout(TIMEOUT_S, read=0.05 if patience == 0 else TIMEOUT_S)
    request = chat(stream=chance.random() < 0.8)
    with suppress(httpx.TransportError):
        async with http.stream(**request, timeout=timeout) as response:
            chunks = 0
            async for _ in response.aiter_raw():
                chunks += 1
                if patience and chunks == patience:
                    return
                if chance.random() < 0.02:
                    await asyncio.sleep(0.02)


def resident_kib(pid: int) -> int | None:
    """Return how much memory a process uses, None where that cannot be read."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1])


async def test_nothing_is_left_in_flight(provider, pool_proxy):
    chance = random.Random(1)
    replies, weights = zip(*REPLIES, strict=True)

    def script(_request: Request) -> Reply:
        return chance.choices(replies, weights)[0]

    upstream = await provider(script)
    proxy = await pool_proxy(
        [account(label, max_concurrent=6) for label in LABELS],
        provider=upstream,
        options={"pool_max_wait": 5, "pool_gate": 0.1},
        extra_args=["-s", status.__file__],
    )
    tickets = iter(range(REQUESTS))
    memory: list[int | None] = []

    async def worker(number: int) -> None:
        http = proxy.client(http2=number % 2 == 1)
        for ticket in tickets:
            await ask(http, chance)
            if ticket % (REQUESTS // 4) == 0:
                memory.append(resident_kib(proxy.pid))
            if chance.random() < 0.1:
                await http.aclose()
                http = proxy.client(http2=number % 2 == 1)
        await http.aclose()

    await asyncio.gather(*(worker(number) for number in range(WORKERS)))
    memory.append(resident_kib(proxy.pid))

    async with proxy.client() as http:

        async def in_flight() -> int:
            text = (await http.get(f"http://{status.HOST}/")).text
            head, *rows = [re.split("  +", line) for line in text.splitlines()[: len(LABELS) + 1]]
            assert len(rows) == len(LABELS), text
            return sum(int(row[head.index("in flight")]) for row in rows)

        # A client that has left is noticed in the next turns of the proxy's loop.
        async with asyncio.timeout(TIMEOUT_S):
            while await in_flight():
                await asyncio.sleep(0.01)
    assert len(upstream.journal.requests) >= REQUESTS // 2
    if REQUESTS >= MEMORY_SETTLES and all(memory):
        # Over the second half; mitmproxy alone grows as much in the first.
        assert memory[-1] - memory[-3] < 8 * 1024, memory
