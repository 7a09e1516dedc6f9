"""A laptop wakes up: its providers and NATs have forgotten what it kept open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest

from tests.e2e import asleep
from tests.e2e.harness import FIRST, TWO, chat, in_order
from tests.e2e.raw_http2 import Peer, RawHttp2
from tests.e2e.upstream_proxy import UpstreamProxy
from tests.patience import PATIENCE_S
from tests.scripts import openai
from tests.upstream.replies import by_credential

HOURS = 3 * 3600
CHAT = openai.chat_stream(["Good", " morning"])
SCRIPT = ["-s", asleep.__file__]
CLOSED = r"account-pool: woke up after 3 h( \d min)?: 1 kept connection closed"


def after_hours(text: str) -> dict:
    """Return the first request after a suspend: nobody has looked at a clock in between."""
    asked = chat(text)
    return {**asked, "headers": {**asked["headers"], asleep.HEADER: str(HOURS)}}


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not happened():
            await asyncio.sleep(0)


async def test_the_first_request_opens_a_fresh_connection_over_http1(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: CHAT}), alpn=["http/1.1"])
    proxy = await pool_proxy(TWO, provider=upstream, extra_args=SCRIPT)
    async with proxy.client() as http:
        for asked in (chat("1"), chat("2"), after_hours("3"), chat("4")):
            assert (await http.request(**asked)).content == CHAT.body
    places = [(r.connection, r.on_connection) for r in upstream.journal.requests]
    assert places == [(1, 1), (1, 2), (2, 1), (2, 2)]
    await proxy.until_printed(CLOSED)


async def test_the_first_request_opens_a_fresh_connection_over_http2(certificate, pool_proxy):
    def script(peer: Peer, stream_id: int) -> None:
        peer.answer(stream_id)
        if not peer.number:
            peer.deaf = True  # what is sent there vanishes

    async with RawHttp2(certificate, script) as upstream:
        proxy = await pool_proxy(TWO, provider=upstream, extra_args=SCRIPT)
        async with proxy.client(http2=True) as http:
            for asked in (chat("1"), after_hours("2"), chat("3")):
                assert (await http.request(**asked)).status_code == 200
            await until(lambda: upstream.peers[0].closed)  # nobody keeps it
    assert [len(peer.asked) for peer in upstream.peers] == [1, 2]
    await proxy.until_printed(CLOSED)


@pytest.mark.parametrize("strategy", ["eager", "lazy"])
async def test_through_a_proxy_it_is_the_tunnel_that_is_closed(certificate, pool_proxy, strategy):
    async with (
        RawHttp2(certificate, lambda peer, stream_id: peer.answer(stream_id)) as upstream,
        UpstreamProxy(upstream.port) as way,
    ):
        proxy = await pool_proxy(
            TWO,
            provider=upstream,
            extra_args=SCRIPT,
            options={"mode": way.mode, "connection_strategy": strategy},
        )
        async with proxy.client(http2=True) as http:
            for asked in (chat("1"), after_hours("2"), chat("3")):
                assert (await http.request(**asked)).status_code == 200
            await until(lambda: upstream.peers[0].closed)
    assert [len(peer.asked) for peer in upstream.peers] == [1, 2]
    assert len(way.connects) == 2
    await proxy.until_printed(CLOSED)


@pytest.mark.parametrize("through_a_proxy", [False, True])
async def test_a_stream_that_lives_goes_on(certificate, pool_proxy, through_a_proxy):
    async with (
        RawHttp2(certificate, begin_or_answer) as upstream,
        UpstreamProxy(upstream.port) as way,
    ):
        options: dict[str, object] = {"asleep_bound": PATIENCE_S}
        proxy = await pool_proxy(
            in_order("first"),
            provider=upstream,
            extra_args=SCRIPT,
            options=options | ({"mode": way.mode} if through_a_proxy else {}),
        )
        async with proxy.client(http2=True) as one, proxy.client(http2=True) as other:
            under_way = asyncio.create_task(one.request(**chat("long")))
            await until(lambda: upstream.peers and bool(upstream.peers[0].asked))
            assert (await other.request(**after_hours("short"))).status_code == 200
            peer = upstream.peers[0]
            await until(lambda: peer.pings > 0)
            peer.h2.send_data(peer.asked[0][0], b"the end", end_stream=True)
            peer.flush()
            assert (await under_way).content == b"the beginning, the end"
    assert [peer.pings for peer in upstream.peers if peer.pings] == [1]


async def test_a_stream_that_is_lost_is_cut_off(certificate, pool_proxy):
    async with RawHttp2(certificate, begin_or_answer) as upstream:
        proxy = await pool_proxy(
            in_order("first"),
            provider=upstream,
            extra_args=SCRIPT,
            options={"asleep_bound": 0.5},
        )
        async with proxy.client(http2=True) as one, proxy.client(http2=True) as other:
            under_way = asyncio.create_task(outcome(one))
            await until(lambda: upstream.peers and bool(upstream.peers[0].asked))
            upstream.peers[0].deaf = True
            assert (await other.request(**after_hours("short"))).status_code == 200
            assert await under_way == "RemoteProtocolError"
        async with httpx.AsyncClient() as http:
            page = await http.get(f"{proxy.url}/account-pool/openai")
    assert [account["in_flight"] for account in page.json()["accounts"]] == [0]


def begin_or_answer(peer: Peer, stream_id: int) -> None:
    """Begin the answer to the first request of all, and answer all others."""
    if peer.number:
        peer.answer(stream_id)
        return
    peer.h2.send_headers(stream_id, [(":status", "200"), ("content-type", "text/plain")])
    peer.h2.send_data(stream_id, b"the beginning, ")
    peer.flush()


async def outcome(http: httpx.AsyncClient) -> int | str:
    try:
        return (await http.request(**chat("long"))).status_code
    except httpx.RemoteProtocolError as e:
        return type(e).__name__
