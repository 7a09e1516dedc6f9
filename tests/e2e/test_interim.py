"""Answers before the answer, from a peer that sends what few servers do."""

from __future__ import annotations

import json

import pytest
from h2.events import StreamEnded

from account_pool.proxy.http1 import MAX_HEAD_BYTES
from tests.e2e.harness import FIRST, SECOND, TWO, chat
from tests.e2e.peer import Line, Line2, Peer
from tests.scripts import openai

CHAT = openai.chat_stream(["Good", " morning"]).body
GOOD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(CHAT)
    + CHAT
)
LIMIT = b'{"error":{"code":"rate_limit_exceeded","message":"Rate limit reached"}}'
LIMITED = (
    b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 600\r\n"
    b"content-length: %d\r\n\r\n" % len(LIMIT) + LIMIT
)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n"


async def test_the_answer_follows_and_the_connection_is_kept(certificate, pool_proxy):
    async def talk(line: Line) -> None:
        while True:
            await line.request()
            for data in (CONTINUE[:9], CONTINUE[9:] + HINTS, HINTS[:-1], HINTS[-1:] + GOOD):
                await line.send(data)

    async with Peer(talk, certificate) as peer:
        proxy = await pool_proxy(TWO, provider=peer)
        async with proxy.client() as http:
            answers = [await http.request(**chat()) for _ in range(3)]
    assert [(a.status_code, a.content) for a in answers] == [(200, CHAT)] * 3
    assert peer.keys == [FIRST] * 3
    assert len(peer.lines) == 1


async def test_the_answer_follows_over_http2(certificate, pool_proxy):
    async def talk(line: Line) -> None:
        line2 = Line2(line)
        await line2.begin()
        while stream := await line2.until(StreamEnded):
            line2.h2.send_headers(stream, [(":status", "100")])
            line2.h2.send_headers(stream, [(":status", "103"), ("link", "</a.css>")])
            line2.h2.send_headers(
                stream, [(":status", "200"), ("content-type", "text/event-stream")]
            )
            line2.h2.send_data(stream, CHAT, end_stream=True)
            await line2.flush()

    async with Peer(talk, certificate, ["h2"]) as peer:
        proxy = await pool_proxy(TWO, provider=peer)
        async with proxy.client(http2=True) as http:
            answers = [await http.request(**chat()) for _ in range(3)]
    assert [(a.status_code, a.content) for a in answers] == [(200, CHAT)] * 3
    assert len(peer.lines) == 1


async def test_blank_lines_and_folded_fields(certificate, pool_proxy):
    async def talk(line: Line) -> None:
        while True:
            await line.request()
            await line.send(
                b"\r\n" + GOOD.replace(b"200 OK\r\n", b"200 OK\r\nx-a: one\r\n two\0\r\n")
            )

    async with Peer(talk, certificate) as peer:
        proxy = await pool_proxy(TWO, provider=peer)
        async with proxy.client() as http:
            answers = [await http.request(**chat()) for _ in range(2)]
    assert [(a.content, a.headers["x-a"].split()) for a in answers] == [(CHAT, ["one", "two"])] * 2
    assert len(peer.lines) == 1


async def test_the_refusal_that_follows_is_replayed(certificate, pool_proxy):
    async def talk(line: Line) -> None:
        while True:
            await line.request()
            await line.send(CONTINUE + HINTS + (LIMITED if line.keys[-1] == FIRST else GOOD))

    async with Peer(talk, certificate) as peer:
        proxy = await pool_proxy(TWO, provider=peer)
        async with proxy.client() as http:
            answer = await http.request(**chat())
    assert (answer.status_code, answer.content) == (200, CHAT)
    assert peer.keys == [FIRST, SECOND]


@pytest.mark.parametrize(
    "said",
    [
        CONTINUE,
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx y: 1\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD_BYTES + b"yy",
        *(b"HTTP/1.1 %03d X\r\ncontent-length: 0\r\n\r\n" % status for status in (0, 99, 600, 999)),
    ],
)
async def test_what_is_no_answer_breaks_the_attempt(certificate, pool_proxy, said):
    async def talk(line: Line) -> None:
        await line.request()
        if len(peer.lines) == 1:
            await line.send(said)
            if said == CONTINUE:
                return
            # The proxy ends it.
            assert await line.read() == b""
        await line.send(GOOD)

    async with Peer(talk, certificate) as peer:
        proxy = await pool_proxy(TWO, provider=peer)
        async with proxy.client() as http:
            answer = await http.request(**chat())
            assert answer.status_code == 502
            assert "openai" in json.loads(answer.content)["error"]["message"]
            assert (await http.request(**chat())).content == CHAT
    assert len(peer.lines) == 2
