"""A provider that says the bytes it is told to, and breaks off where it is told to.

For what `tests.upstream.provider` is too well-behaved for.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tests.upstream.certificates import Certificate


class Line:
    """One connection to the peer.

    Attributes:
        keys: the credentials of the requests so far, over HTTP/1.1.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.keys: list[str] = []

    async def head(self) -> dict[str, str]:
        """Read the head of a request. Raises EOFError when none comes any more."""
        text = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        pairs = (line.partition(": ") for line in text.splitlines()[1:] if line)
        headers = {name.lower(): value for name, _, value in pairs}
        self.keys.append(headers.get("authorization", "").removeprefix("Bearer "))
        return headers

    async def request(self) -> bytes:
        """Read a whole request; return its body."""
        headers = await self.head()
        return await self.body(int(headers.get("content-length", "0")))

    async def body(self, length: int) -> bytes:
        """Read the body of a request."""
        return await self._reader.readexactly(length)

    async def read(self) -> bytes:
        """Read whatever comes next."""
        return await self._reader.read(65536)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        """End the connection in good order."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    def take_little(self) -> None:
        """Let the system receive little that has not been read."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)

    def reset(self) -> None:
        """Break the connection off, whatever is under way."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


class Line2:
    """One connection to the peer over HTTP/2; frames are sent by `h2` and `flush`.

    Attributes:
        keys: the credentials of the requests so far, by stream.
        acknowledge: take in what is sent; without, a large upload comes to a halt.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.keys: dict[int, str] = {}
        self.acknowledge = False

    async def begin(self) -> None:
        self.h2.initiate_connection()
        await self.flush()

    async def flush(self) -> None:
        await self._line.send(self.h2.data_to_send())

    async def until(self, kind: type[h2.events.Event]) -> int:
        """Read until an event of *kind* comes; return the id of its stream."""
        while True:
            data = await self._line.read()
            if not data:
                raise EOFError
            found = 0
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    headers = {str(name): str(value) for name, value in event.headers}
                    self.keys[event.stream_id] = headers.get("authorization", "")[7:]
                if isinstance(event, h2.events.DataReceived) and self.acknowledge:
                    size = event.flow_controlled_length
                    with suppress(h2.exceptions.ProtocolError):
                        self.h2.acknowledge_received_data(size, event.stream_id)
                if isinstance(event, kind):
                    found = int(getattr(event, "stream_id", 0))
            await self.flush()
            if found:
                return found


Talk = Callable[[Line], Awaitable[None]]


class Peer:
    """Serves *talk*, once a connection, for as long as its `async with` block runs.

    Attributes:
        lines: every connection so far.
    """

    def __init__(
        self, talk: Talk, certificate: Certificate, alpn: Sequence[str] = ("http/1.1",)
    ) -> None:
        self._talk = talk
        self._tls = certificate.server_context(alpn)
        self._tasks: set[asyncio.Task[None]] = set()
        self.lines: list[Line] = []
        self.errors: list[BaseException] = []

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def keys(self) -> list[str]:
        """The credentials of all requests over HTTP/1.1, connection by connection."""
        return [key for line in self.lines for key in line.keys]

    async def __aenter__(self) -> Peer:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        assert not self.errors, self.errors

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer)
        self.lines.append(line)
        try:
            # The other side may go at any moment.
            with suppress(OSError, EOFError):
                await self._talk(line)
        except Exception as e:
            self.errors.append(e)
        finally:
            writer.close()
