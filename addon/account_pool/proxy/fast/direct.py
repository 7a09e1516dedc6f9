"""What a connection receives goes to the layers at once, and its task sleeps on.

asyncio puts what it has received into a buffer and wakes the task of the connection, which
hands it to the layers, and then waits until those take more whom that was written to
(`ConnectionHandler.handle_connection`). Here the layers get it where it is received, as long
as that task waits for nothing else; and the task is woken only where there may be somebody
to wait for. All else goes through the buffer, and takes its usual course: slow readers, ends
and half-closed ends, errors. The task waits in the same place as ever, so there is one way
in which a connection ends.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

from mitmproxy.connection import Connection
from mitmproxy.proxy import events
from mitmproxy.proxy.server import ConnectionHandler, ConnectionIO

from account_pool.proxy.fast.inline import EventQueue
from account_pool.proxy.fast.known import digest

#: Sources that this stands in for: mitmproxy 11.0.2 to 12.3.1; Python 3.11, 3.12 and later.
KNOWN = frozenset({"f9faab6a"})
KNOWN_STREAMS = frozenset({"4c2f10e8", "6364270c"})

#: What mitmproxy reads at most at once.
READ_BYTES = 65535


class Direct:
    """Stands in for `handle_connection` of the handler of one client."""

    __slots__ = ("_handle", "_queue")

    def __init__(self, queue: EventQueue) -> None:
        self._queue = queue
        self._handle = queue.handler.handle_connection

    async def handle_connection(self, connection: Connection) -> None:
        """Handle *connection* by mitmproxy's own function, whose reads are shorter."""
        io = self._queue.handler.transports[connection]
        protocol = self._protocol(connection, io)
        if protocol is None:
            await self._handle(connection)
            return
        reader: Any = io.reader
        received = _Received(self._queue, connection, reader, protocol)
        protocol.data_received, reader.read = received.data_received, received.read
        try:
            await self._handle(connection)
        finally:
            vars(protocol).pop("data_received", None)
            vars(reader).pop("read", None)

    def _protocol(self, connection: Connection, io: ConnectionIO) -> Any:
        """Return what is told of what *connection* receives; None if it is not as known."""
        if self._queue.handler.server_event != self._queue.server_event:
            return None  # Another addon looks at each event.
        if connection.transport_protocol != "tcp" or type(io.reader) is not asyncio.StreamReader:
            return None
        if type(io.writer) is not asyncio.StreamWriter or "read" in vars(io.reader):
            return None
        protocol = io.writer.transport.get_protocol()
        known = type(protocol) is asyncio.StreamReaderProtocol
        return protocol if known and "data_received" not in vars(protocol) else None


class _Received:
    """Takes what one connection receives. Made by the task of that connection."""

    __slots__ = (
        "_connection", "_context", "_loop", "_owes_drain", "_put", "_queue", "_read", "_reader",
        "_task",
    )  # fmt: skip

    def __init__(
        self, queue: EventQueue, connection: Connection, reader: Any, protocol: Any
    ) -> None:
        self._queue, self._connection, self._reader = queue, connection, reader
        self._put, self._read = protocol.data_received, reader.read
        self._task: Any = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._owes_drain = False

    def data_received(self, data: bytes) -> None:
        """Hand *data* to the layers; into the buffer what comes before its turn."""
        at, size = 0, len(data)
        # The short way has no use for pieces: what comes there is encrypted.
        most = READ_BYTES if self._queue.way is None else size
        while at < size:
            # Its task waits for data: there is none before this, and it was not cancelled.
            waiter = self._reader._waiter
            if waiter is None or waiter.done() or asyncio.current_task() is not None:
                self._put(data[at:])
                return
            piece = bytes(data[at : at + most])
            at += len(piece)
            # Hooks find the task of the connection, as where it does this by itself.
            asyncio.tasks._enter_task(self._loop, self._task)
            try:
                self._queue.handle(events.DataReceived(self._connection, piece), self._context)
            finally:
                asyncio.tasks._leave_task(self._loop, self._task)
            if self._is_unsent():
                self._owes_drain = True
                self._reader._wakeup_waiter()

    async def read(self, n: int = -1) -> bytes:
        """Read as the reader does; before that, wait until those take more who were sent to."""
        while True:
            data: bytes = await self._read(n)
            if not self._owes_drain:
                return data
            self._owes_drain = False
            await self._queue.handler.drain_writers()
            if data or self._reader.at_eof():
                return data

    def _is_unsent(self) -> bool:
        """Say whether a drain may wait for somebody, or find somebody gone."""
        for io in self._queue.handler.transports.values():
            writer = io.writer
            if writer is None:
                continue
            if type(writer) is not asyncio.StreamWriter:
                return True
            transport = writer.transport
            if unsent := transport.get_write_buffer_size():
                low, _high = transport.get_write_buffer_limits()
                if unsent > low:
                    return True
            if transport.is_closing():
                return True
        return False


def put_into(queue: EventQueue) -> bool:
    """Let the layers of the handler behind *queue* get what is received at once.

    To be called before a connection of it is read. Returns whether that is done.
    """
    handler = queue.handler
    if "handle_connection" in vars(handler) or not is_as_known():
        return False
    handler.handle_connection = Direct(queue).handle_connection  # type: ignore[method-assign]
    return True


def is_as_known() -> bool:
    """Say whether mitmproxy and asyncio read in the way that this does."""
    return digest(ConnectionHandler.handle_connection) in KNOWN and knows_asyncio()


def knows_asyncio() -> bool:
    """Say whether this Python's asyncio reads in the way that this does."""
    reader: Any = asyncio.StreamReader
    streams = digest(
        reader.read,
        reader._wait_for_data,
        reader.feed_data,
        reader._wakeup_waiter,
        asyncio.StreamReaderProtocol.data_received,
        docs=False,
    )
    return streams in KNOWN_STREAMS
