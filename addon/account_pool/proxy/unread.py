"""What a server said before its connection was reset: it is read all the same.

A server that refuses a long request answers early, and closes with the rest of the request
unread: the system then resets the connection. We are still writing at that moment, and
asyncio gives up both directions when a write fails, with the answer received but not read;
mitmproxy in turn ends its reader when a drain fails (`ConnectionHandler.drain_writers`).
Here such a connection ends as one does that was closed in good order: what there is to
read is read, then comes its end, and nothing more is written.

A server that does not read on, and does not close either, holds up nobody else. mitmproxy
reads from no connection of a client while one of its connections takes no more, be it
closed by then. Here it waits only for those to whom goes what was read, and what is closed
with the rest of a request unsent is broken off.

Stands on `Proxyserver.connections`, `ConnectionHandler.transports` and `drain_writers` of
mitmproxy; where they are not as known here, everything stays as it is.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mitmproxy.connection import Client, Connection, ConnectionState

from account_pool.proxy import compat

#: How much of what the system has received is read; its own bound is mostly lower.
MAX_UNREAD_BYTES = 4 * 1024 * 1024
#: How long a client is not listened to while a server does not read what it has sent: it may
#: want to leave.
DRAIN_S = 5.0


def keep(client: Client) -> None:
    """Let no server connection behind *client* lose what it has received, or hold up others."""
    handler = compat.handler_of(client)
    if inspect.iscoroutinefunction(getattr(handler, "drain_writers", None)):
        handler.drain_writers = functools.partial(_drain, weakref.ref(handler), client)
    for connection, transport in _transports(client).items():
        if connection is not client:
            reader = getattr(transport, "reader", None)
            writer = getattr(transport, "writer", None)
            if type(reader) is asyncio.StreamReader and type(writer) is asyncio.StreamWriter:
                keep_of(connection, reader, writer)


def is_unsent(client: Client, server: Connection) -> bool:
    """Say whether a part of what was written to *server* waits for it to read on.

    After an early answer that may be for ever: nothing else can be sent there.
    """
    writer = getattr(_transports(client).get(server), "writer", None)
    return type(writer) is asyncio.StreamWriter and writer.transport.get_write_buffer_size() > 0


def _transports(client: Client) -> Mapping[Connection, Any]:
    return getattr(compat.handler_of(client), "transports", {})


async def _drain(handler: weakref.ref[Any], client: Client) -> None:
    """Wait until those can take more to whom goes what the current task has read.

    In place of mitmproxy's, which waits for all of them.
    """
    transports = dict(getattr(handler(), "transports", {}))
    mine = transports.pop(client, None)
    if mine is None or mine.handler is asyncio.current_task():
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                for transport in transports.values():
                    await _drained(transport)
    else:
        await _drained(mine)


async def _drained(transport: Any) -> None:
    # As mitmproxy does.
    try:
        if transport.writer is not None:
            await transport.writer.drain()
    except OSError as e:
        if transport.handler is not None:
            transport.handler.cancel(f"Error sending data: {e}")


def keep_of(
    connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Do so for one *connection*; once, however often it is called."""
    if "set_exception" in reader.__dict__:
        return
    # Nothing here may keep the streams alive, which refer to each other.
    their_reader, their_writer = weakref.ref(reader), weakref.ref(writer)

    def set_exception(exc: Exception) -> None:
        # asyncio calls it when the connection is lost, just before it closes the socket.
        reader, writer = their_reader(), their_writer()
        if reader is None:
            return
        if writer is None or not isinstance(exc, OSError):
            asyncio.StreamReader.set_exception(reader, exc)
            return
        if rest := _received(writer.transport):
            reader.feed_data(rest)
        reader.feed_eof()
        connection.state &= ~ConnectionState.CAN_WRITE

    async def drain() -> None:
        writer = their_writer()
        if writer is not None:
            # The reader comes to the end by itself.
            with suppress(OSError):
                await asyncio.StreamWriter.drain(writer)

    def close() -> None:
        writer = their_writer()
        if writer is not None:
            unsent = writer.transport.get_write_buffer_size() > 0
            asyncio.StreamWriter.close(writer)
            if unsent:
                # Nobody would ever read it, perhaps; and nobody wants it to be read.
                writer.transport.abort()

    # Of these two only.
    reader.set_exception = set_exception  # type: ignore[method-assign]
    writer.drain = drain  # type: ignore[method-assign]
    writer.close = close  # type: ignore[method-assign]


def _received(transport: asyncio.WriteTransport) -> bytes:
    """Return what the system has received on *transport* and nobody has read."""
    # Other loops (uvloop, Windows) may have closed the socket by now, and its number may be
    # another one's.
    sock = transport.get_extra_info("socket")
    if sock is None or not isinstance(asyncio.get_running_loop(), _LOOPS):
        return b""
    data = bytearray()
    with suppress(OSError):
        while len(data) < MAX_UNREAD_BYTES and (piece := os.read(sock.fileno(), 65536)):
            data += piece
    return bytes(data)


_LOOPS = (asyncio.SelectorEventLoop,) if os.name == "posix" else ()
