"""Many streams at once while accounts fail: no client notices."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.harness import FIRST, THIRD, account, chat, secret
from tests.patience import PATIENCE_S
from tests.scripts import openai
from tests.upstream.exchange import Pause, Reply, Request
from tests.upstream.replies import EVENT_STREAM, by_credential

STREAMS = 200
WORDS = [f" word{n}" for n in range(10)]
GOOD = openai.chat_stream(WORDS, pause_s=0.005)
FOURTH = secret("fourth")
#: More than mitmproxy has connections to one address for a client.
MANY = 8


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
async def test_no_client_sees_an_account_fail(provider, pool_proxy, http2):
    def script(request: Request) -> Reply:
        """Let two of four accounts run dry on the way, one of them in three spellings."""
        if request.credential == secret("first") and request.turn > 10:
            return openai.rate_limited(3600)
        if request.credential == secret("second") and request.turn > 20:
            spellings = (
                openai.insufficient_quota(),
                openai.limit_in_chat_stream(3600),
                Reply(
                    status=429,
                    headers=openai.rate_limited(3600).headers,
                    steps=(Pause(0.01), openai.rate_limited(3600).body),
                ),
            )
            return spellings[request.turn % len(spellings)]
        return GOOD

    upstream = await provider(script)
    labels = ("first", "second", "third", "fourth")
    proxy = await pool_proxy([account(label) for label in labels], provider=upstream)

    async def one(http, n: int) -> tuple[int, bytes]:
        answer = await http.request(**chat(f"I am number {n}."))
        return answer.status_code, answer.content

    # Each client its own connection, as separate tools have; on HTTP/2 ten share one.
    clients = [proxy.client(http2=http2) for _ in range(STREAMS // 10)]
    seen = await asyncio.gather(*(one(clients[n // 10], n) for n in range(STREAMS)))
    for http in clients:
        await http.aclose()

    assert seen == [(200, GOOD.body)] * STREAMS
    assert {THIRD, FOURTH} <= set(upstream.journal.credentials)
    good = [1 for _, status in upstream.journal.statuses if status == 200]
    assert len(good) >= STREAMS


async def test_no_answer_waits_for_the_end_of_five_others(provider, pool_proxy):
    """One client over HTTP/2, a provider of HTTP/1: each answer has a connection of its own."""
    together = asyncio.Event()

    def script(_request: Request) -> Reply:
        asked = len(upstream.journal.requests)
        if asked == 1:
            return GOOD
        if asked == 1 + MANY:
            together.set()
        return Reply(headers=EVENT_STREAM, steps=(together, GOOD.body))

    upstream = await provider(script, alpn=["http/1.1"])
    # Eager, it would speak HTTP/1 with its client as well.
    lazy = {"connection_strategy": "lazy"}
    proxy = await pool_proxy([account("first")], provider=upstream, options=lazy)
    async with proxy.client(http2=True) as http, asyncio.timeout(PATIENCE_S):
        await http.request(**chat())  # from here on it knows that one connection will do
        answers = await asyncio.gather(*(http.request(**chat()) for _ in range(MANY)))
    assert [(a.status_code, a.content) for a in answers] == [(200, GOOD.body)] * MANY


async def test_an_account_that_trips_costs_no_more_refusals_than_were_in_flight(
    provider, pool_proxy
):
    at_once, in_all, good_for = 16, 400, 50

    def script(request: Request) -> Reply:
        tripped = request.credential == secret("first") and request.turn > good_for
        return openai.rate_limited(3600) if tripped else openai.chat_complete("Good")

    upstream = await provider(script)
    proxy = await pool_proxy([account("first"), account("second")], provider=upstream)
    tickets = iter(range(in_all))
    statuses: list[int] = []

    async def worker() -> None:
        async with proxy.client() as http:
            for _ in tickets:
                answer = await http.request(**chat(stream=False))
                statuses.append(answer.status_code)

    await asyncio.gather(*(worker() for _ in range(at_once)))
    assert statuses == [200] * in_all
    refused = [1 for _, status in upstream.journal.statuses if status == 429]
    assert 1 <= len(refused) <= at_once


async def test_no_more_requests_are_held_than_may_wait(provider, pool_proxy):
    finish = asyncio.Event()
    slow = Reply(headers=GOOD.headers, steps=(*openai.chat_events(["Good"])[:2], finish))
    upstream = await provider(by_credential({FIRST: [slow, GOOD]}))
    proxy = await pool_proxy(
        [account("first", max_concurrent=1)],
        provider=upstream,
        options={"pool_max_waiting": 2, "pool_max_wait": 600},
    )
    async with proxy.client() as http, http.stream(**chat()) as response:
        await anext(pieces := response.aiter_raw())
        asking = [asyncio.create_task(http.request(**chat(f"number {n}"))) for n in range(3)]
        # The account is busy until we say so: whoever is answered now was not held.
        done, held = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = [task.result() for task in done]
        finish.set()
        served = await asyncio.gather(*held)
        await pieces.aclose()
    assert refused.status_code == 503
    assert "pool_max_waiting" in refused.json()["error"]["message"]
    assert [answer.status_code for answer in served] == [200, 200]
