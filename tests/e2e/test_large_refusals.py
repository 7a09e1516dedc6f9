"""Large, compressed and slow refusals on the wire: whole, or in the provider's envelope."""

from __future__ import annotations

import gzip
import json
import random

import pytest
from h2.events import StreamEnded, WindowUpdated

from tests.e2e.harness import FIRST, SECOND, TWO, chat
from tests.e2e.peer import Line, Line2, Peer
from tests.scripts import openai

MIB = 1 << 20
CHAT = openai.chat_stream(["Good", " morning"]).body
GOOD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(CHAT)
    + CHAT
)


def refusal(size: int, code: str) -> bytes:
    """A refusal that says what it is at its very end."""
    error = {"input": random.Random(size).randbytes(size // 2).hex(), "code": code, "message": "m"}
    return json.dumps({"error": error}).encode()


def answer(status: int, body: bytes, *more: str, chunked: bool = False) -> bytes:
    framing = "transfer-encoding: chunked" if chunked else f"content-length: {len(body)}"
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", framing, *more, "", ""]
    if chunked:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return "\r\n".join(lines).encode() + body


def saying(refused: bytes):
    """Refuse the first account with *refused*, and serve the second."""

    async def talk(line: Line) -> None:
        while True:
            await line.request()
            await line.send(refused if line.keys[-1] == FIRST else GOOD)

    return talk


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [544_000, 5 * MIB])
async def test_it_arrives_whole(certificate, pool_proxy, size, packed, chunked):
    body = refusal(size, "invalid_request_error")
    on_the_wire = gzip.compress(body) if packed else body
    how = ["content-encoding: gzip"] if packed else []
    async with Peer(saying(answer(422, on_the_wire, *how, chunked=chunked)), certificate) as peer:
        proxy = await pool_proxy(TWO, provider=peer)
        async with proxy.client() as http:
            request = http.build_request(**chat())
            got = await http.send(request, stream=True)
            raw = b"".join([piece async for piece in got.aiter_raw()])
    assert (got.status_code, raw) == (422, on_the_wire)
    assert got.headers.get("content-encoding") == ("gzip" if packed else None)
    assert peer.keys == [FIRST]


async def test_it_arrives_whole_over_http2(certificate, pool_proxy):
    body = refusal(2 * MIB, "invalid_request_error")

    async def talk(line: Line) -> None:
        line2 = Line2(line)
        line2.acknowledge = True
        await line2.begin()
        stream = await line2.until(StreamEnded)
        line2.h2.send_headers(stream, [(":status", "422"), ("content-type", "application/json")])
        for start in range(0, len(body), 16_000):
            while line2.h2.local_flow_control_window(stream) < 16_000:
                await line2.flush()
                await line2.until(WindowUpdated)
            line2.h2.send_data(stream, body[start : start + 16_000])
        line2.h2.end_stream(stream)
        await line2.flush()
        await line2.until(StreamEnded)

    async with Peer(talk, certificate, ["h2"]) as peer:
        proxy = await pool_proxy(TWO, provider=peer)
        async with proxy.client(http2=True) as http:
            got = await http.request(**chat())
    assert (got.status_code, got.content) == (422, body)


async def test_its_code_is_understood_at_its_end(certificate, pool_proxy):
    body = refusal(MIB, "insufficient_quota")
    async with Peer(saying(answer(429, body)), certificate) as peer:
        proxy = await pool_proxy(TWO, provider=peer)
        async with proxy.client() as http:
            assert (await http.request(**chat())).content == CHAT
            await proxy.until(lambda: "insufficient_quota" in proxy.output)
    assert peer.keys == [FIRST, SECOND]


@pytest.mark.parametrize("status", [422, 200])
async def test_a_bomb_is_bounded(certificate, pool_proxy, status):
    bomb = gzip.compress(bytes(160 * MIB))
    async with Peer(saying(answer(status, bomb, "content-encoding: gzip")), certificate) as peer:
        proxy = await pool_proxy(TWO, provider=peer)
        async with proxy.client() as http:
            got = await http.send(http.build_request(**chat()), stream=True)
            raw = b"".join([piece async for piece in got.aiter_raw()])
    assert got.status_code == status
    if status == 200:
        assert raw == bomb
    else:
        assert "cannot read" in json.loads(raw)["error"]["message"]


async def test_one_that_breaks_off_is_told_in_the_envelope(certificate, pool_proxy):
    body = refusal(200_000, "invalid_request_error")

    async def talk(line: Line) -> None:
        await line.request()
        await line.send(answer(422, body)[:100_000])

    async with Peer(talk, certificate) as peer:
        proxy = await pool_proxy(TWO, provider=peer)
        async with proxy.client() as http:
            got = await http.request(**chat())
    assert got.status_code == 422
    assert "broke off" in got.json()["error"]["message"]
