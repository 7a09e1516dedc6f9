"""More clients than file descriptors: told in one line, and over when it is over."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from account_pool.proxy.process import LOG_S
from tests.e2e import few_descriptors
from tests.e2e.harness import FIRST, chat, in_order
from tests.scripts import openai
from tests.upstream.replies import by_credential

pytest.importorskip("resource")

GOOD = openai.chat_complete("Good morning")
CLIENTS = 60
OUT = f"account-pool: out of file descriptors (limit {few_descriptors.LIMIT})"
CAUSE = "openai/first: no connection to api.openai.com: [Errno 24] Too many open files; raise"


async def test_more_clients_than_descriptors(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: GOOD}))
    few = ["-s", few_descriptors.__file__]
    began_at = time.monotonic()
    proxy = await pool_proxy(in_order("first"), provider=upstream, extra_args=few)
    told = asyncio.Event()

    async def serves() -> bool:
        async with proxy.client() as http:
            answer = await http.request(**chat(stream=False))
        return (answer.status_code, answer.content) == (200, GOOD.body)

    # mitmproxy reads what it trusts with its first connection, and fails aloud if it cannot.
    assert await serves()

    async def ask() -> tuple[int, str]:
        async with proxy.client() as http:
            answer = await http.request(**chat(stream=False))
            # Its descriptor is its own until somebody had to wait.
            await told.wait()
            return answer.status_code, answer.text

    asking = [asyncio.create_task(ask()) for _ in range(CLIENTS)]
    line = await proxy.until_printed("out of file descriptors")
    told.set()
    answers = await asyncio.gather(*asking)
    assert line.split("] ", 1)[-1].startswith(OUT)
    assert "had to wait; raise it with ulimit -n" in line
    for status, text in answers:
        assert status == 200 or (status == 502 and CAUSE in text), (status, text)
    # It may be as slow as it likes: a line a minute.
    lines: Any = Counter("out of file descriptors" in line for line in proxy.lines)
    assert lines[True] <= 1 + (time.monotonic() - began_at) / LOG_S
    # mitmproxy has a few lines for each client; asyncio had a hundred tracebacks a second.
    assert lines.total() < 12 * CLIENTS
    assert not any("accept" in line for line in proxy.lines)
    assert await serves()
