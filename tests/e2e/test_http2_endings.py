"""HTTP/2 connections that end with many requests on them: each request ends, too."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
import pytest
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, GoAwayFrame, WindowUpdateFrame
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.options import Options

from tests.e2e.harness import FIRST, TWO, chat
from tests.e2e.raw_http2 import BODY, Peer, RawHttp2

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


@pytest.mark.parametrize("announced", [False, True], ids=["at once", "announced"])
async def test_a_provider_that_restarts_in_good_order_costs_no_answer(
    certificate, pool_proxy, announced
):
    """It answers what it has begun, and takes what comes later on another connection."""
    asked, begun = 10, 6

    def script(peer: Peer, stream_id: int) -> None:
        if peer.number or len(peer.asked) == 1:
            peer.answer(stream_id)
        elif len(peer.asked) == asked + 1:
            last = peer.asked[begun][0]
            lasts = [2**31 - 1, last] if announced else [last]
            peer.send(*(GoAwayFrame(0, last_stream_id=number) for number in lasts))
            for number, _key in peer.asked[1 : begun + 1]:
                peer.answer(number)
            peer.close()

    async with RawHttp2(certificate, script) as upstream:
        proxy = await pool_proxy(TWO, provider=upstream)
        async with proxy.client(http2=True) as http:
            assert await outcome(http, "warm") == 200
            ended = await asyncio.gather(*(outcome(http, str(n)) for n in range(asked)))
            assert await outcome(http, "after") == 200
    assert ended == [200] * asked
    assert len(upstream.peers) == 2
    assert len(upstream.peers[1].asked) == asked - begun + 1
    assert {key for peer in upstream.peers for _, key in peer.asked} == {FIRST}


async def test_what_is_no_http2_costs_no_answer_that_came_before(certificate, pool_proxy):
    """And an answer that is malformed costs no other."""

    def script(peer: Peer, stream_id: int) -> None:
        if peer.number or len(peer.asked) == 1:
            peer.answer(stream_id)
        elif len(peer.asked) == 4:
            good, bad, last = (number for number, _key in peer.asked[1:])
            peer.h2.send_headers(bad, [(":status", "200"), ("content-length", "1000")])
            bad_end = DataFrame(bad, data=BODY, flags=["END_STREAM"]).serialize()
            data = peer.h2.data_to_send() + bad_end
            for number in (good, last):
                peer.h2.send_headers(number, [(":status", "200")])
                peer.h2.send_data(number, BODY, end_stream=True)
                data += peer.h2.data_to_send()
            # A window for a stream that there is not.
            peer.transport.write(data + WindowUpdateFrame(999, window_increment=1).serialize())

    async with RawHttp2(certificate, script) as upstream:
        proxy = await pool_proxy(TWO, provider=upstream)
        async with proxy.client(http2=True) as http:
            assert await outcome(http, "warm") == 200
            ended = await asyncio.gather(*(outcome(http, str(n)) for n in range(3)))
            assert await outcome(http, "after") == 200
    # An answer without a type may be an error, so nothing of it had reached the client yet.
    assert Counter(ended) == {200: 2, 502: 1}
    assert [len(peer.asked) for peer in upstream.peers] == [4, 1]


async def test_what_waits_for_a_stream_does_not_follow_what_is_no_http2(certificate, pool_proxy):
    """An answer that makes room for it comes in one piece with the end of the connection."""
    asked = 4

    async def end(peer: Peer, stream_id: int) -> None:
        async with httpx.AsyncClient() as http:
            in_flight = 0
            while in_flight < asked:
                page = await http.get(f"{proxy.url}/account-pool")
                in_flight = page.json()["summary"]["in_flight"]
        peer.h2.send_headers(stream_id, [(":status", "700")], end_stream=True)
        invalid, wrong = peer.h2.data_to_send(), WindowUpdateFrame(99, window_increment=1)
        peer.transport.write(invalid + wrong.serialize())

    def script(peer: Peer, stream_id: int) -> None:
        if not peer.number and len(peer.asked) == 1:
            peer.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
        if peer.number or len(peer.asked) == 1:
            peer.answer(stream_id)
        else:
            ending.append(asyncio.create_task(end(peer, stream_id)))

    ending: list[asyncio.Task[None]] = []
    async with RawHttp2(certificate, script) as upstream:
        proxy = await pool_proxy(TWO, provider=upstream)
        async with proxy.client(http2=True) as http:
            assert await outcome(http, "warm") == 200
            ended = await asyncio.gather(*(outcome(http, str(n)) for n in range(asked)))
            assert await outcome(http, "after") == 200
        await asyncio.gather(*ending)
    assert Counter(ended) == {200: 3, 502: 1}


def _has_timeout() -> bool:
    options = Options()
    Proxyserver().load(options)  # type: ignore[arg-type]  # it only adds options
    return "tcp_timeout" in options


@pytest.mark.skipif(not _has_timeout(), reason="this mitmproxy has no option for it")
async def test_a_provider_that_says_nothing_ends_in_its_envelope(certificate, pool_proxy):
    async with RawHttp2(certificate, lambda _peer, _stream_id: None) as upstream:
        proxy = await pool_proxy(TWO, provider=upstream, options={"tcp_timeout": 1})
        async with proxy.client(http2=True) as http:
            answer = await http.request(**chat())
    assert answer.status_code == 504
    assert "error" in answer.json()
