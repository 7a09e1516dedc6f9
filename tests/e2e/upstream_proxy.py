"""A proxy between mitmdump and the provider, as companies have one. It does what it is told."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.upstream.certificates import Certificate

HEAD_END = b"\r\n\r\n"
OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"


def refused(status: int, reason: str) -> bytes:
    """Return a refusal of a tunnel, complete."""
    return f"HTTP/1.1 {status} {reason}\r\ncontent-length: 0\r\n\r\n".encode()


@dataclass(frozen=True)
class Connect:
    """A request for a tunnel."""

    authority: str
    headers: dict[str, str]

    @property
    def password(self) -> str | None:
        """User and password, as they were given."""
        encoded = self.headers.get("proxy-authorization", "").removeprefix("Basic ")
        return base64.b64decode(encoded).decode() if encoded else None


class UpstreamProxy:
    """Answers CONNECT, and leads tunnels to a provider.

    Args:
        port: of the provider, where every tunnel ends.
        answers: of the first requests, in order; the last one stays. OPEN makes a tunnel.
        check: says of a request whether it may pass; 407 if not.
        certificate: of the proxy itself, for https.
    """

    def __init__(
        self,
        port: int,
        answers: Sequence[bytes] = (OPEN,),
        *,
        check: Callable[[Connect], bool] = lambda _: True,
        certificate: Certificate | None = None,
    ) -> None:
        self.connects: list[Connect] = []
        #: what else was asked, which needs no tunnel
        self.others: list[str] = []
        self._target = port
        self._answers = list(answers)
        self._check = check
        self._tls: ssl.SSLContext | None = (
            certificate.server_context(["http/1.1"]) if certificate else None
        )
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def mode(self) -> str:
        """What mitmproxy's option `mode` calls it."""
        return f"upstream:{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> UpstreamProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(HEAD_END)).decode()
            start, *lines = head.rstrip().split("\r\n")
            method, authority, _ = start.split()
            if method != "CONNECT":
                self.others.append(start)
                writer.write(refused(405, "Only tunnels"))
                writer.close()
                return
            pairs = (line.split(": ", 1) for line in lines)
            connect = Connect(authority, {name.lower(): value for name, value in pairs})
            self.connects.append(connect)
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            if not self._check(connect):
                answer = refused(407, "Proxy Authentication Required")
            writer.write(answer)
            if answer == OPEN:
                target = await asyncio.open_connection("127.0.0.1", self._target)
                await asyncio.gather(_pipe(reader, target[1]), _pipe(target[0], writer))
        writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
