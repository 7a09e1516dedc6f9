"""Connections that end when they should not: who is asked again, and who is not."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from tests.e2e.harness import FIRST, SECOND, TWO, chat, in_order
from tests.scripts import openai
from tests.upstream.exchange import Ending, Fault, Reply
from tests.upstream.replies import by_credential

CHAT = openai.chat_stream(["Good", " morning"])


@pytest.mark.parametrize("fault", [Fault.HANG_UP, Fault.RESET], ids=["hang up", "reset"])
async def test_a_kept_connection_that_dies_is_replaced_by_a_fresh_one(provider, pool_proxy, fault):
    """The server had closed it already: the request cannot have run."""

    def script(request) -> Reply:
        stale = request.connection == 1 and request.on_connection == 2
        return Reply(fault=fault) if stale else CHAT

    upstream = await provider(script, alpn=["http/1.1"])
    proxy = await pool_proxy(TWO, provider=upstream)
    async with proxy.client() as http:
        answers = [await http.request(**chat()) for _ in range(3)]
    assert [(a.status_code, a.content) for a in answers] == [(200, CHAT.body)] * 3
    places = [(r.connection, r.on_connection) for r in upstream.journal.requests]
    assert places[:3] == [(1, 1), (1, 2), (2, 1)]
    assert set(upstream.journal.credentials) == {FIRST}


async def test_a_connection_closed_while_idle_is_not_used_again(provider, pool_proxy):
    upstream = await provider(
        by_credential({FIRST: replace(CHAT, hang_up=True)}), alpn=["http/1.1"]
    )
    proxy = await pool_proxy(TWO, provider=upstream)
    async with proxy.client() as http:
        answers = [await http.request(**chat()) for _ in range(5)]
    assert [a.status_code for a in answers] == [200] * 5
    assert set(upstream.journal.credentials) == {FIRST}


async def test_a_refused_stream_is_sent_again(provider, pool_proxy):
    """HTTP/2 says with REFUSED_STREAM that nothing was processed (RFC 9113, section 8.7)."""
    upstream = await provider(
        by_credential({FIRST: [CHAT, Reply(fault=Fault.REFUSED), CHAT]}), alpn=["h2"]
    )
    proxy = await pool_proxy(TWO, provider=upstream)
    async with proxy.client(http2=True) as http:
        answers = [await http.request(**chat()) for _ in range(2)]
    assert [a.status_code for a in answers] == [200, 200]
    assert upstream.journal.credentials == [FIRST] * 3


@pytest.mark.parametrize("fault", [Fault.HANG_UP, Fault.RESET], ids=["hang up", "reset"])
async def test_a_fresh_connection_that_breaks_is_reported_once_and_cools_nobody(
    provider, pool_proxy, fault
):
    """The request may have run: it is not sent twice unless the user says so."""
    script = by_credential({FIRST: [Reply(fault=fault), CHAT], SECOND: CHAT})
    upstream = await provider(script, alpn=["http/1.1"])
    proxy = await pool_proxy(TWO, provider=upstream)
    async with proxy.client() as http:
        broken = await http.request(**chat())
        asked = list(upstream.journal.credentials)
        good = [await http.request(**chat()) for _ in range(2)]
    assert broken.status_code == 502
    assert asked == [FIRST]
    assert [answer.status_code for answer in good] == [200, 200]
    # The next request begins elsewhere; once that was answered, nothing speaks against the first.
    assert upstream.journal.credentials == [FIRST, SECOND, FIRST]


async def test_an_answer_that_breaks_after_its_beginning_is_not_repeated(provider, pool_proxy):
    broken = replace(CHAT, fault=Fault.BREAK, steps=CHAT.steps[:2])
    upstream = await provider(by_credential({FIRST: [broken, CHAT]}), alpn=["http/1.1"])
    proxy = await pool_proxy(TWO, provider=upstream)
    async with proxy.client() as http:
        received = b""
        with pytest.raises(httpx.TransportError):
            async with http.stream(**chat()) as response:
                async for piece in response.aiter_raw():
                    received += piece
        assert received == broken.body
        assert (await http.request(**chat())).status_code == 200
    assert upstream.journal.credentials == [FIRST, FIRST]
    assert [e.ending for e in upstream.journal.exchanges] == [Ending.FAULT, Ending.ANSWERED]


async def test_nobody_listens(provider, pool_proxy):
    """A connection that cannot be made is a local answer, not a request somewhere else."""
    upstream = await provider(by_credential({FIRST: CHAT}))
    port = upstream.port
    await upstream.__aexit__(None, None, None)
    proxy = await pool_proxy(
        in_order("first"), provider=upstream_at(port), options={"connection_strategy": "lazy"}
    )
    async with proxy.client() as http:
        answer = await http.request(**chat())
    assert answer.status_code == 502
    assert upstream.journal.requests == []


def upstream_at(port: int):
    """Return something with a port, for a provider that is gone."""

    class Gone:
        pass

    gone = Gone()
    gone.port = port
    return gone
