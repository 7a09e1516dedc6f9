"""Reverse mode, for tools that take a base URL instead of a proxy."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.harness import CLIENT, FIRST, OPENAI, SECOND, TWO, chat, client, leave
from tests.scripts import openai
from tests.upstream.exchange import Ending, Fault, Reply
from tests.upstream.replies import by_credential

CHAT = openai.chat_stream(["Good", " morning"])


@pytest.mark.parametrize("alpn", [["http/1.1"], ["h2", "http/1.1"]], ids=["http1", "http2"])
async def test_a_base_url_works_like_a_proxy(provider, pool_proxy, setting, alpn):
    upstream = await provider(
        by_credential({FIRST: openai.rate_limited(), SECOND: CHAT}), alpn=alpn
    )
    proxy = await pool_proxy(TWO, provider=upstream, extra_args=["--mode", f"reverse:{OPENAI}"])
    async with client(setting.trusted) as http:
        answers = [await http.request(**chat(base=proxy.url)) for _ in range(2)]
    assert [(a.status_code, a.content) for a in answers] == [(200, CHAT.body)] * 2
    assert upstream.journal.statuses == [(FIRST, 429), (SECOND, 200), (SECOND, 200)]
    assert {r.host for r in upstream.journal.requests} == {"api.openai.com"}
    assert CLIENT not in repr(upstream.journal.requests)


async def test_a_host_of_ones_own(provider, pool_proxy, setting):
    upstream = await provider(by_credential({FIRST: openai.insufficient_quota(), SECOND: CHAT}))
    proxy = await pool_proxy(
        TWO,
        providers={"openai": {"hosts": [f"localhost:{upstream.port}"]}},
        extra_args=["--mode", f"reverse:{upstream.url}"],
    )
    async with client(setting.trusted) as http:
        answer = await http.request(**chat(base=proxy.url))
    assert (answer.status_code, answer.content) == (200, CHAT.body)
    assert upstream.journal.statuses == [(FIRST, 429), (SECOND, 200)]


async def test_a_client_that_leaves(provider, pool_proxy, setting):
    upstream = await provider(by_credential({FIRST: [Reply(fault=Fault.SILENCE), CHAT]}))
    proxy = await pool_proxy(TWO, provider=upstream, extra_args=["--mode", f"reverse:{OPENAI}"])
    journal = upstream.journal
    async with client(setting.trusted) as http:
        asking = asyncio.create_task(http.request(**chat(base=proxy.url)))
        await journal.until(lambda: journal.requests and journal.requests[0].complete)
        await leave(asking)
    assert await upstream.journal.until_ended(0) is Ending.LEFT
    async with client(setting.trusted) as http:
        assert (await http.request(**chat(base=proxy.url))).status_code == 200
    assert upstream.journal.credentials == [FIRST, FIRST]
