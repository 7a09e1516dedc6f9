"""Request bodies: kept for a replay up to 64 MiB, streamed through once beyond it."""

from __future__ import annotations

import gzip
import hashlib
import json

import pytest

from tests.e2e.harness import CLIENT, FIRST, OPENAI, SECOND, TWO, chat
from tests.scripts import openai
from tests.upstream.replies import by_credential

CHAT = openai.chat_stream(["Good", " morning"])
MIB = 1 << 20
LIMIT = 64 * MIB
BLOCK = b'" ' * (MIB // 2)
URL = f"{OPENAI}/v1/chat/completions"
HEADERS = {"authorization": f"Bearer {CLIENT}", "content-type": "application/json"}

HTTP_VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])


async def blocks(count: int):
    for _ in range(count):
        yield BLOCK


def sha256(count: int) -> str:
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(BLOCK)
    return digest.hexdigest()


@HTTP_VERSIONS
@pytest.mark.parametrize("announced", [True, False], ids=["content-length", "chunked"])
async def test_a_body_is_the_same_on_every_attempt(provider, pool_proxy, http2, announced):
    upstream = await provider(by_credential({FIRST: openai.rate_limited(), SECOND: CHAT}))
    proxy = await pool_proxy(TWO, provider=upstream)
    headers = HEADERS | ({"content-length": str(3 * MIB)} if announced else {})
    async with proxy.client(http2=http2) as http:
        answer = await http.post(URL, content=blocks(3), headers=headers)
    assert answer.status_code == 200
    assert upstream.journal.credentials == [FIRST, SECOND]
    assert [r.body_sha256 for r in upstream.journal.requests] == [sha256(3)] * 2


async def test_a_compressed_body_is_left_as_it_is(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: openai.rate_limited(), SECOND: CHAT}))
    proxy = await pool_proxy(TWO, provider=upstream)
    body = gzip.compress(json.dumps(chat()["json"]).encode())
    async with proxy.client() as http:
        answer = await http.post(URL, content=body, headers=HEADERS | {"content-encoding": "gzip"})
    assert answer.status_code == 200
    assert [r.body for r in upstream.journal.requests] == [body] * 2
    assert {r.header("content-encoding") for r in upstream.journal.requests} == {"gzip"}


@HTTP_VERSIONS
async def test_a_larger_body_is_streamed_through(provider, pool_proxy, http2):
    """The client sends the rest only after the provider has the beginning."""
    upstream = await provider(by_credential({FIRST: CHAT}))
    proxy = await pool_proxy(TWO, provider=upstream)
    count = LIMIT // MIB + 1
    journal = upstream.journal

    async def body():
        yield BLOCK
        await journal.until(lambda: journal.requests and journal.requests[0].body_size > 0)
        for _ in range(count - 1):
            yield BLOCK

    headers = HEADERS | {"content-length": str(count * MIB)}
    async with proxy.client(http2=http2) as http:
        answer = await http.post(URL, content=body(), headers=headers)
    assert (answer.status_code, answer.content) == (200, CHAT.body)
    assert [r.body_sha256 for r in journal.requests] == [sha256(count)]
    assert journal.credentials == [FIRST]


async def test_a_body_that_turns_out_larger_is_sent_once(provider, pool_proxy):
    """Its size was not announced: what was kept goes first, the rest follows."""
    upstream = await provider(by_credential({FIRST: CHAT}))
    proxy = await pool_proxy(TWO, provider=upstream)
    count = LIMIT // MIB + 2
    async with proxy.client() as http:
        answer = await http.post(URL, content=blocks(count), headers=HEADERS)
    assert (answer.status_code, answer.content) == (200, CHAT.body)
    assert [r.body_sha256 for r in upstream.journal.requests] == [sha256(count)]


async def test_a_larger_body_is_not_replayed(provider, pool_proxy):
    refusal = openai.rate_limited(3600)
    upstream = await provider(by_credential({FIRST: refusal, SECOND: CHAT}))
    proxy = await pool_proxy(TWO, provider=upstream)
    count = LIMIT // MIB + 1
    headers = HEADERS | {"content-length": str(count * MIB)}
    async with proxy.client() as http:
        answer = await http.post(URL, content=blocks(count), headers=headers)
        error = json.loads(refusal.body)["error"]
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, error["code"])
        assert upstream.journal.credentials == [FIRST]
        # But what it said is believed: the next request goes to the other account.
        assert (await http.request(**chat())).status_code == 200
    assert upstream.journal.credentials == [FIRST, SECOND]


async def test_a_client_that_waits_for_100_continue(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: openai.rate_limited(), SECOND: CHAT}))
    proxy = await pool_proxy(TWO, provider=upstream)
    async with proxy.client() as http:
        answer = await http.post(
            URL,
            content=BLOCK,
            headers=HEADERS | {"expect": "100-continue"},
        )
    assert answer.status_code == 200
    assert [r.body_sha256 for r in upstream.journal.requests] == [sha256(1)] * 2
