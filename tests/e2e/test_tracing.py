"""A real proxy and a scripted OpenTelemetry collector: a span a request, and no secret in it."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.e2e.harness import CLIENT, FIRST, SECOND, TWO, chat
from tests.patience import PATIENCE_S
from tests.scripts import openai
from tests.upstream.replies import by_credential

pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
GOOD = openai.chat_complete("Good morning")


class Collector:
    """Takes what is posted, in its packed form and as it is."""

    def __init__(self) -> None:
        self.url = ""
        self.received = b""
        self.heads: list[str] = []
        self.more = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        except asyncio.IncompleteReadError:
            return
        length = next(x for x in head.splitlines() if x.startswith("content-length"))
        body = await reader.readexactly(int(length.partition(":")[2]))
        self.heads.append(head)
        self.received += gzip.decompress(body) if "content-encoding: gzip" in head else body
        self.more.set()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while text not in self.received:
                await self.more.wait()
                self.more.clear()


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield made


async def test_a_failover_is_a_span(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: openai.rate_limited(), SECOND: GOOD}))
    async with collector() as collected:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collected.url,
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Basic%20fake",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            # Nobody is there.
            "HTTP_PROXY": "http://127.0.0.1:1",
            "http_proxy": "http://127.0.0.1:1",
        }
        proxy = await pool_proxy(TWO, provider=upstream, env=env)
        await proxy.until_printed("spans are sent to the collector in OTEL_EXPORTER_OTLP_ENDPOINT")
        async with proxy.client() as http:
            assert (await http.request(**chat("A secret prompt", stream=False))).status_code == 200
        await collected.until(b"chat gpt-5-nano")
    assert "post /v1/traces" in collected.heads[0]
    assert "authorization: basic fake" in collected.heads[0]
    for text in (b"gen_ai.usage.input_tokens", b"openai/second", b"rate_limit", b"account-pool"):
        assert text in collected.received
    for text in (FIRST, SECOND, CLIENT, "A secret prompt", "Good morning"):
        assert text.encode() not in collected.received


async def test_a_collector_that_hangs_keeps_nobody(provider, pool_proxy):
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        env = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{port}/v1/traces"}
        proxy = await pool_proxy(TWO, provider=await provider(lambda _request: GOOD), env=env)
        await proxy.until_printed("spans are sent to the collector in")
        async with proxy.client() as http:
            for _ in range(3):
                assert (await http.request(**chat(stream=False))).status_code == 200
        await proxy.stop()
        assert proxy.returncode == 0
