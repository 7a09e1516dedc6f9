"""A refusal that comes while the request is still being sent, before the connection is reset."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from h2.errors import ErrorCodes
from h2.events import RequestReceived, StreamEnded

from tests.e2e.harness import CLIENT, FIRST, OPENAI, SECOND, TWO, chat, in_order, leave
from tests.e2e.peer import Line, Line2, Peer
from tests.scripts import openai

MIB = 1 << 20
CHAT = openai.chat_stream(["Good", " morning"]).body
SSE = ("content-type", "text/event-stream")
GOOD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(CHAT)
    + CHAT
)
LIMIT = b'{"error":{"code":"rate_limit_exceeded","message":"Rate limit reached"}}'
HEADERS = [
    ("content-type", "application/json"),
    ("content-length", str(len(LIMIT))),
    ("retry-after", "3600"),
]
BODIES = {"whole": LIMIT, "part": LIMIT[:20], "head": b""}


def large() -> dict[str, Any]:
    """More than what both systems buffer."""
    return chat("x" * (8 * MIB))


def refusal(status: int, body: bytes) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in HEADERS), "", ""]
    return "\r\n".join(lines).encode() + body


def refusing(said: bytes) -> Callable[[Line], Awaitable[None]]:
    """Refuse the first account at the head of its request, and reset; serve the second."""

    async def talk(line: Line) -> None:
        while True:
            length = int((await line.head())["content-length"])
            if line.keys[-1] == FIRST:
                await line.send(said)
                line.reset()
                return
            await line.body(length)
            await line.send(GOOD)

    return talk


@pytest.mark.parametrize("said", BODIES)
@pytest.mark.parametrize("status", [429, 403])
async def test_it_counts_and_is_replayed(certificate, pool_proxy, said, status):
    async with Peer(refusing(refusal(status, BODIES[said])), certificate) as peer:
        proxy = await pool_proxy(TWO, provider=peer)
        async with proxy.client() as http:
            answer = await http.request(**large())
            assert (answer.status_code, answer.content) == (200, CHAT)
            # What it said is known: a limit until its reset, or a credential that is refused.
            assert (await http.request(**chat())).content == CHAT
    assert peer.keys == [FIRST, SECOND, SECOND]


async def test_a_server_that_neither_reads_on_nor_ends(certificate, pool_proxy):
    """Nothing can follow on that connection: the replay takes another."""

    async def talk(line: Line) -> None:
        length = int((await line.head())["content-length"])
        if line.keys[-1] == FIRST:
            await line.send(refusal(429, LIMIT))
            await asyncio.Event().wait()
        await line.body(length)
        await line.send(GOOD)

    async with Peer(talk, certificate) as peer:
        proxy = await pool_proxy(TWO, provider=peer)
        async with proxy.client() as http:
            answer = await http.request(**large())
    assert (answer.status_code, answer.content) == (200, CHAT)
    assert peer.keys == [FIRST, SECOND]
    assert len(peer.lines) == 2


async def test_a_client_that_leaves_while_its_request_is_not_read(certificate, pool_proxy):
    """Its account is free at once, which takes one request at a time here."""

    async def talk(line: Line) -> None:
        line.take_little()
        await line.head()
        if len(peer.lines) == 1:
            asked.set()
            await asyncio.Event().wait()
        await line.send(GOOD)

    asked = asyncio.Event()
    async with Peer(talk, certificate) as peer:
        proxy = await pool_proxy(in_order("first", max_concurrent=1), provider=peer)
        async with proxy.client() as http:
            asking = asyncio.create_task(http.request(**large()))
            await asked.wait()
            await leave(asking)
            answer = await http.request(**chat())
    assert (answer.status_code, answer.content) == (200, CHAT)


async def test_it_is_told_where_the_body_was_not_kept(certificate, pool_proxy):
    async def blocks():
        for _ in range(65):
            yield b" " * MIB

    async with Peer(refusing(refusal(429, LIMIT)), certificate) as peer:
        proxy = await pool_proxy(TWO, provider=peer)
        headers = {"authorization": f"Bearer {CLIENT}", "content-length": str(65 * MIB)}
        async with proxy.client() as http:
            answer = await http.post(
                f"{OPENAI}/v1/chat/completions", content=blocks(), headers=headers
            )
            assert (answer.status_code, answer.content) == (429, LIMIT)
            assert (await http.request(**chat())).content == CHAT
    assert peer.keys == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        *((said, code) for said in BODIES for code in (ErrorCodes.NO_ERROR, ErrorCodes.CANCEL)),
        ("part", None),
        ("head", None),
    ],
)
async def test_over_http2(certificate, pool_proxy, said, code):
    """A stream is reset, or (None) the whole connection."""
    keys = []

    async def talk(line: Line) -> None:
        line2 = Line2(line)
        await line2.begin()
        while stream := await line2.until(RequestReceived):
            keys.append(line2.keys[stream])
            if keys[-1] == FIRST:
                line2.h2.send_headers(stream, [(":status", "429"), *HEADERS])
                line2.h2.send_data(stream, BODIES[said], end_stream=said == "whole")
                if code is None:
                    await line2.flush()
                    line.reset()
                    return
                line2.h2.reset_stream(stream, code)
            else:
                line2.acknowledge = True
                line2.h2.increment_flow_control_window(1 << 30)
                line2.h2.increment_flow_control_window(1 << 30, stream)
                await line2.flush()
                assert await line2.until(StreamEnded) == stream
                line2.h2.send_headers(stream, [(":status", "200"), SSE])
                line2.h2.send_data(stream, CHAT, end_stream=True)
            await line2.flush()

    async with Peer(talk, certificate, ["h2"]) as peer:
        proxy = await pool_proxy(TWO, provider=peer)
        async with proxy.client(http2=True) as http:
            answer = await http.request(**large())
    assert (answer.status_code, answer.content) == (200, CHAT)
    assert keys == [FIRST, SECOND]
