"""Clients leave at any moment: the provider is told, nobody is blamed, nothing leaks.

One account that takes one request at a time shows what is in flight: the next request
is served only if the lease of the last one came back.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.harness import FIRST, SECOND, chat, in_order, leave
from tests.scripts import openai
from tests.upstream.exchange import Ending, Fault, Reply
from tests.upstream.replies import EVENT_STREAM, by_credential

CHAT = openai.chat_stream(["Good", " morning"])
ONE_AT_A_TIME = in_order("first", max_concurrent=1)
HTTP_VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])


async def ask(proxy, *, http2: bool = False) -> int:
    async with proxy.client(http2=http2) as http:
        return (await http.request(**chat())).status_code


def _said(proxy, what: str) -> int:
    """Count the lines that say *what* of a connection: others quote it."""
    return sum(line.endswith(f"] {what}") for line in proxy.lines)


@HTTP_VERSIONS
async def test_leaving_during_an_attempt(provider, pool_proxy, http2):
    upstream = await provider(by_credential({FIRST: [Reply(fault=Fault.SILENCE), CHAT]}))
    proxy = await pool_proxy(ONE_AT_A_TIME, provider=upstream)
    journal = upstream.journal
    asking = asyncio.create_task(ask(proxy, http2=http2))
    await journal.until(lambda: journal.requests and journal.requests[0].complete)
    await leave(asking)
    assert await journal.until_ended(0) is Ending.LEFT
    assert await ask(proxy, http2=http2) == 200
    assert journal.credentials == [FIRST, FIRST]


@HTTP_VERSIONS
async def test_leaving_in_the_middle_of_the_answer(provider, pool_proxy, http2):
    for_ever = asyncio.Event()
    endless = Reply(headers=EVENT_STREAM, steps=(*openai.chat_events(["Good"])[:2], for_ever))
    upstream = await provider(by_credential({FIRST: [endless, CHAT]}))
    proxy = await pool_proxy(ONE_AT_A_TIME, provider=upstream)
    async with proxy.client(http2=http2) as http, http.stream(**chat()) as response:
        # Held: a generator that is collected closes the answer.
        pieces = response.aiter_raw()
        await anext(pieces)
    assert await upstream.journal.until_ended(0) is Ending.LEFT
    assert await ask(proxy, http2=http2) == 200
    assert upstream.journal.credentials == [FIRST, FIRST]


async def test_leaving_during_the_second_attempt(provider, pool_proxy):
    upstream = await provider(
        by_credential({FIRST: openai.rate_limited(), SECOND: [Reply(fault=Fault.SILENCE), CHAT]})
    )
    proxy = await pool_proxy(in_order("first", "second", max_concurrent=1), provider=upstream)
    asking = asyncio.create_task(ask(proxy))
    journal = upstream.journal
    await journal.until(lambda: len(journal.requests) == 2 and journal.requests[1].complete)
    await leave(asking)
    assert await journal.until_ended(1) is Ending.LEFT
    assert await ask(proxy) == 200
    assert journal.credentials == [FIRST, SECOND, SECOND]


async def test_leaving_while_waiting_for_a_busy_account(provider, pool_proxy):
    finish = asyncio.Event()
    slow = Reply(headers=EVENT_STREAM, steps=(*openai.chat_events(["Good"])[:2], finish))
    upstream = await provider(by_credential({FIRST: [slow, CHAT]}))
    proxy = await pool_proxy(
        ONE_AT_A_TIME, provider=upstream, options={"termlog_verbosity": "debug"}
    )
    async with proxy.client() as http:
        async with http.stream(**chat()) as response:
            # Held: a generator that is collected closes the answer.
            pieces = response.aiter_raw()
            await anext(pieces)
            waiting = asyncio.create_task(ask(proxy))
            # Two clients are connected, and the second one's request is in the pool.
            await proxy.until(lambda: _said(proxy, "client connect") == 2)
            await leave(waiting)
            await proxy.until(lambda: _said(proxy, "client disconnect") == 1)
            finish.set()
        assert await ask(proxy) == 200
    # Who left while waiting never reached the provider.
    assert upstream.journal.credentials == [FIRST, FIRST]


async def test_leaving_while_everybody_rests(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: openai.rate_limited(20)}))
    proxy = await pool_proxy(
        ONE_AT_A_TIME,
        provider=upstream,
        options={"pool_max_wait": 60, "termlog_verbosity": "debug"},
    )
    asking = asyncio.create_task(ask(proxy))
    await upstream.journal.until_answered(1)
    await leave(asking)
    await proxy.until(lambda: "client disconnect" in proxy.output)
    assert upstream.journal.credentials == [FIRST]


async def test_hanging_up_after_the_last_event_is_a_success(provider, pool_proxy):
    """SDKs close as soon as they have [DONE]; the provider's connection is still open."""
    never = asyncio.Event()
    done = Reply(headers=EVENT_STREAM, steps=(*openai.chat_events(["Good"]), never))
    upstream = await provider(by_credential({FIRST: done}))
    proxy = await pool_proxy(in_order("first", "second"), provider=upstream)
    for _ in range(3):
        async with proxy.client() as http, http.stream(**chat()) as response:
            data = b""
            async for piece in response.aiter_raw():
                data += piece
                if b"[DONE]" in data:
                    break
    await upstream.journal.until_answered(3)
    assert upstream.journal.credentials == [FIRST] * 3
