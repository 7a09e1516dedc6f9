"""The scripted provider and the harness themselves, with a mitmdump that is not ours."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from account_pool.demo.mitmdump import MitmdumpFailed
from tests.e2e.harness import CLIENT, chat, client, leave
from tests.scripts import always, framed, openai
from tests.upstream.exchange import Ending, Fault, Framing, Reply

HTTP_VERSIONS = pytest.mark.parametrize(
    ("http2", "version"), [(False, "1.1"), (True, "2")], ids=["http1", "http2"]
)


@HTTP_VERSIONS
@pytest.mark.parametrize("framing", list(Framing))
async def test_bare_mitmdump_passes_the_script_through(
    provider, pool_proxy, framing, http2, version
):
    upstream = await provider(always(framed(openai.chat_complete("Good morning"), framing)))
    proxy = await pool_proxy(None, provider=upstream, addon=False)
    async with proxy.client(http2=http2) as http:
        answers = [await http.request(**chat(stream=False)) for _ in range(2)]
    texts = [a.json()["choices"][0]["message"]["content"] for a in answers]
    assert texts == ["Good morning"] * 2
    assert upstream.journal.statuses == [(CLIENT, 200)] * 2
    assert [r.turn for r in upstream.journal.requests] == [1, 2]
    assert {r.http_version for r in upstream.journal.requests} == {version}
    assert [e.ending for e in upstream.journal.exchanges] == [Ending.ANSWERED] * 2


@HTTP_VERSIONS
@pytest.mark.parametrize("fault", list(Fault))
async def test_every_fault_ends_the_exchange(provider, setting, fault, http2, version):
    upstream = await provider(always(Reply(steps=(b"half",), fault=fault)))
    journal = upstream.journal
    async with client(setting.certificate.authority, http2=http2) as http:
        asking = asyncio.create_task(http.request(**chat(base=upstream.url)))
        await journal.until(lambda: journal.requests and journal.requests[0].complete)
        if fault is Fault.SILENCE:
            await leave(asking)
        else:
            with pytest.raises(httpx.TransportError):
                await asking
    expected = Ending.LEFT if fault is Fault.SILENCE else Ending.FAULT
    assert await upstream.journal.until_ended(0) is expected
    assert upstream.journal.requests[0].http_version == version


async def test_a_mitmdump_that_does_not_start_says_why(pool_proxy):
    with pytest.raises(MitmdumpFailed, match=r"missing\.py"):
        await pool_proxy(None, extra_args=["-s", "missing.py"], addon=False)
