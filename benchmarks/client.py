"""One client connection: HTTP/1.1 over TLS, through a proxy's CONNECT or straight, kept alive."""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
import time
from dataclasses import dataclass

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach the provider.

    Attributes:
        port: of the provider, on localhost.
        proxy_port: of the proxy, on 127.0.0.1; None to go straight.
        authority: file of the certificate authority to trust.
    """

    port: int
    proxy_port: int | None
    authority: str


@dataclass(slots=True)
class Reply:
    """One answer as the client got it; times in seconds since its request was sent."""

    status: int = 0
    first_byte_s: float = 0.0
    total_s: float = 0.0
    digest: str = ""


class Client(asyncio.Protocol):
    """A kept-alive connection that has at most one request open."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._reply = Reply()
        self._waiting: asyncio.Future[Reply] | None = None
        self._sent_at = 0.0
        self._hash = hashlib.sha256()
        #: bytes of the body still to come; -1 for chunked, None before the head
        self._left: int | None = None

    @classmethod
    async def connect(cls, route: Route) -> Client:
        """Open a connection to the provider of *route*, TLS included."""
        loop = asyncio.get_running_loop()
        client = cls()
        port = route.proxy_port or route.port
        transport, _ = await loop.create_connection(lambda: client, "127.0.0.1", port)
        client._transport = transport
        if route.proxy_port is not None:
            connect = f"CONNECT localhost:{route.port} HTTP/1.1\r\nhost: localhost:{route.port}"
            reply = await client.send(connect.encode() + b"\r\n\r\n")
            if reply.status != 200:
                raise ConnectionError(f"the proxy answered CONNECT with {reply.status}")
        context = ssl.create_default_context(cafile=route.authority)
        secured = await loop.start_tls(transport, client, context, server_hostname="localhost")
        assert secured is not None
        client._transport = secured
        return client

    async def send(self, request: bytes) -> Reply:
        """Send *request* and return its whole answer."""
        self._waiting = asyncio.get_running_loop().create_future()
        self._reply = Reply()
        self._hash = hashlib.sha256()
        self._left = None
        self._sent_at = time.perf_counter()
        self._transport.write(request)
        return await self._waiting

    def close(self) -> None:
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError(f"connection closed: {exc}"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._waiting is not None and not self._waiting.done() and self._advance():
            pass

    def _advance(self) -> bool:
        """Take one piece off the buffer; False when more bytes are needed."""
        if self._left is None:
            return self._take_head()
        return self._take_chunk() if self._left < 0 else self._take_rest()

    def _take_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        self._reply.status = int(head[9:12])
        length = _LENGTH.search(head)
        self._left = -1 if _CHUNKED.search(head) else int(length[1]) if length else 0
        if self._left == 0:
            self._finish()
        return True

    def _take_rest(self) -> bool:
        assert self._left is not None
        data = bytes(self._buffer[: self._left])
        del self._buffer[: self._left]
        self._left -= len(data)
        self._take_body(data)
        if self._left == 0:
            self._finish()
        return False

    def _take_chunk(self) -> bool:
        line_end = self._buffer.find(b"\r\n")
        if line_end < 0:
            return False
        size = int(self._buffer[:line_end], 16)
        start, end = line_end + 2, line_end + 2 + size
        if len(self._buffer) < end + 2:
            return False
        data = bytes(self._buffer[start:end])
        del self._buffer[: end + 2]
        if size:
            self._take_body(data)
        else:
            self._finish()
        return True

    def _take_body(self, data: bytes) -> None:
        if data and not self._reply.first_byte_s:
            self._reply.first_byte_s = time.perf_counter() - self._sent_at
        self._hash.update(data)

    def _finish(self) -> None:
        assert self._waiting is not None
        self._reply.total_s = time.perf_counter() - self._sent_at
        self._reply.digest = self._hash.hexdigest()
        self._waiting.set_result(self._reply)
