"""A provider that does what a script says: TLS on loopback, HTTP/1.1 and HTTP/2.

The demo shows the pool with it, the tests judge the pool by it. It records what it
received, byte for byte, and never interprets it: what a request means is the
script's business.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

import h11

from account_pool.demo.certificates import Certificate
from account_pool.demo.exchange import Journal, Script
from account_pool.demo.http1 import Http1Connection
from account_pool.demo.http2 import Http2Connection


class Provider:
    """Serves a script for as long as its `async with` block runs.

    Args:
        script: says what is answered.
        certificate: of the TLS server; None for plain HTTP.
        alpn: protocols offered, in order of preference.
    """

    def __init__(
        self,
        script: Script,
        certificate: Certificate | None = None,
        alpn: Sequence[str] = ("h2", "http/1.1"),
    ) -> None:
        self.journal = Journal(script)
        self._tls = certificate.server_context(alpn) if certificate else None
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None, "the provider is not running"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}"

    async def __aenter__(self) -> Provider:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        chosen = tls.selected_alpn_protocol() if tls else None
        connection_class = Http2Connection if chosen == "h2" else Http1Connection
        # The client may go away, or talk nonsense, at any moment: both end the connection.
        try:
            with suppress(OSError, h11.RemoteProtocolError):
                await connection_class(self.journal, reader, writer).run()
        finally:
            writer.close()
