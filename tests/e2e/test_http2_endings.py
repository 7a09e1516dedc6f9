"""HTTP/2 connections that end with many requests on them: each request ends, too."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx

from tests.e2e.harness import TWO, chat
from tests.e2e.raw_http2 import Peer, RawHttp2

#: Requests of one client at a time, and on which of them the connection is aborted.
BURST, LAST = 30, 12


async def outcome(http: httpx.AsyncClient, text: str) -> int | str:
    """Return the status of one request, or how it failed."""
    try:
        return (await http.request(**chat(text))).status_code
    except httpx.RemoteProtocolError as e:
        return type(e).__name__


async def test_requests_on_a_connection_that_is_reset_all_end(certificate, pool_proxy):
    """mitmproxy loses the news of the reset in every other of these clients."""

    def script(peer: Peer, stream_id: int) -> None:
        count = len(peer.asked)
        if count == LAST:
            peer.abort()
        elif count % 3 == 1:
            peer.answer(stream_id)
        else:
            # Where no reset comes: whoever is left, once nobody more does.
            asyncio.get_running_loop().call_later(0.1, answer_late, peer, stream_id)

    def answer_late(peer: Peer, stream_id: int) -> None:
        if not peer.closed:
            peer.answer(stream_id)

    async with RawHttp2(certificate, script) as upstream:
        proxy = await pool_proxy(TWO, provider=upstream)

        async def client(name: str) -> list[int | str]:
            async with proxy.client(http2=True) as http:
                # The first one alone: httpx then knows that the others can share.
                first = await outcome(http, f"{name} warm")
                rest = [outcome(http, f"{name} {n}" + "x" * 3000) for n in range(BURST)]
                return [first, *await asyncio.gather(*rest)]

        ended = Counter(x for got in await asyncio.gather(*map(client, "abcdef")) for x in got)
        async with httpx.AsyncClient() as http:
            page = await http.get(f"{proxy.url}/account-pool/openai")
    assert set(ended) == {200, 502}
    assert ended.total() == 6 * (BURST + 1)
    assert [account["in_flight"] for account in page.json()["accounts"]] == [0, 0]
