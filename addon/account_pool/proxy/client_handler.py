"""What is mended in mitmproxy's handler of one client and the connections behind it.

- No end of a connection is lost because the wait to deliver it was cancelled (`keep_events`).
- No request waits for one of five connections to be free (`lift_connection_bound`).
- Opening a connection ends with a word, however it fails (`watch_opening`).
- What a server said before its connection was reset is read, and a server that does not read
  holds up nobody else (`keep_unread`).
- After a suspend, connections that were kept over it are closed, those in use are probed
  (`attend`).

Each stands on private parts of mitmproxy, and changes nothing where they are not as known.
What waits in vain then is found by `http_layer.Sweep` a little later, or given up after a
minute, except for the connection behind a CONNECT. After a suspend an idle connection stays open,
unused, until its client leaves, and one in use is probed when its layer wakes by itself.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import socket
import weakref
from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import nullcontext, suppress
from typing import Any, Literal

from mitmproxy import ctx
from mitmproxy.connection import Client, Connection, ConnectionState, Server
from mitmproxy.proxy import commands, events, tunnel
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.layers.http import HttpConnection

from account_pool.proxy.service import ClientLayer
from account_pool.supervision import log_and_continue, tasks, where

logger = logging.getLogger(__name__)

_LOCK, _BOUND = "_server_event_lock", "max_conns"
_CLOSED = "connection closed"
#: How much of what the system has received is read; its own bound is mostly lower.
MAX_UNREAD_BYTES = 4 * 1024 * 1024
#: How long a client is not listened to while a server does not read what it has sent: it may
#: want to leave.
DRAIN_S = 5.0
#: Options of TCP: seconds to the first probe and between the following ones, their number, and
#: for how long what was sent may be unacknowledged, milliseconds. Systems lack some of them.
PROBES = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPALIVE": 5,  # what macOS calls that one
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 20_000,
}


def handler_of(client: Client) -> Any:
    """Return what handles *client*; None where mitmproxy does not list it, or not at all."""
    master = getattr(ctx, "master", None)  # none where layers run by themselves
    proxyserver = None if master is None else master.addons.get("proxyserver")
    connections = getattr(proxyserver, "connections", None)
    return connections.get(client.id) if isinstance(connections, Mapping) else None


# -- events
#
# mitmproxy hands one event at a time to the layers of a client, under a lock. Where hooks
# run as eager tasks (Python 3.12 and later) whoever reads a connection may have to wait for
# it, with the news in hand that the peer has gone. When a write to the same peer fails
# meanwhile, mitmproxy cancels the reader: the news is lost, and requests on the connection
# wait for ever. Here that wait outlasts a cancellation, which takes effect right after it,
# where mitmproxy expects one.


class EventLock(asyncio.Lock):
    """A lock whose holder is cancelled after it has let go, and not while it waits."""

    def __init__(self) -> None:
        super().__init__()
        self._owed: asyncio.CancelledError | None = None

    async def acquire(self) -> Literal[True]:
        owed = None
        while True:
            try:
                await super().acquire()
            except asyncio.CancelledError as cancelled:
                owed = cancelled
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
            else:
                break
        self._owed = owed
        return True

    def release(self) -> None:
        owed, self._owed = self._owed, None
        super().release()
        if owed is not None and (task := asyncio.current_task()) is not None:
            task.cancel(*owed.args)


def keep_events(handler: object) -> bool:
    """Give *handler*, of one client, a lock of ours before it handles its first event.

    Returns whether that is done; where mitmproxy has no such lock, nothing is changed.
    """
    lock = getattr(handler, _LOCK, None)
    if type(lock) is not asyncio.Lock or lock.locked():
        return False
    setattr(handler, _LOCK, EventLock())
    return True


# -- opening connections
#
# mitmproxy opens at most five connections to one address for each client, and lets the next
# request wait until one of the five has ended. That may be never: an HTTP/2 connection that
# takes no new requests stays one of them as long as a response goes on there, and where the
# provider speaks HTTP/1 only, each response has a connection of its own. What waits so holds
# the lease of its account, and its account looks silent. How many requests there are at once
# is for `max_concurrent` to say, and for the client: over HTTP/2 it may have 100.
#
# A server may reset a connection so soon that nobody can say any more whose it is. mitmproxy
# then trips over the name that is missing (`ConnectionHandler.open_connection`), its task
# ends without a word, and the request behind it waits for ever.


def lift_connection_bound(handler: object) -> bool:
    """Let *handler*, of one client, open as many connections as there are requests.

    Returns whether that is done; where mitmproxy has no such bound, nothing is changed.
    """
    bounds = getattr(handler, _BOUND, None)
    if type(bounds) is not defaultdict or bounds:
        return False
    setattr(handler, _BOUND, defaultdict(nullcontext))
    return True


def watch_opening(handler: Any) -> bool:
    """Have *handler*, of one client, tell of each connection how opening it has ended.

    Returns whether that is done; where mitmproxy opens connections otherwise, nothing is
    changed.
    """
    opens = getattr(handler, "open_connection", None)
    if not callable(opens) or not hasattr(handler, "server_event"):
        return False

    async def open_connection(command: commands.OpenConnection) -> None:
        connection = command.connection
        try:
            await opens(command)
        except Exception as e:
            if connection.timestamp_end is not None:
                raise  # it was open, and that was told
            unnamed = connection.state is ConnectionState.OPEN and not connection.peername
            error = _CLOSED if unnamed else "internal error"
            level, why = (logging.INFO, error) if unnamed else (logging.ERROR, where(e))
            logger.log(level, f"error establishing server connection: {why}")
            connection.state, connection.error = ConnectionState.CLOSED, error
            io = handler.transports.pop(connection, None)
            if io is not None and io.writer is not None:
                io.writer.close()
            await handler.server_event(events.OpenConnectionCompleted(command, error))

    handler.open_connection = open_connection
    return True


# -- what was not read
#
# A server that refuses a long request answers early, and closes with the rest of the request
# unread: the system then resets the connection. We are still writing at that moment, and
# asyncio gives up both directions when a write fails, with the response received but not
# read; mitmproxy in turn ends its reader when a drain fails (`drain_writers`). Here such a
# connection ends as one does that was closed in good order: what there is to read is read,
# then comes its end, and nothing more is written.
#
# A server that does not read on, and does not close either: mitmproxy reads from no
# connection of a client while one of its connections takes no more, be it closed by then.
# Here it waits only for those to whom goes what was read, and what is closed with the rest of
# a request unsent is broken off.


def keep_unread(client: Client) -> None:
    """Let no server connection behind *client* lose what it has received, or hold up others."""
    handler = handler_of(client)
    if inspect.iscoroutinefunction(getattr(handler, "drain_writers", None)):
        handler.drain_writers = functools.partial(_drain, weakref.ref(handler), client)
    for connection, transport in _transports(client).items():
        if connection is not client:
            reader = getattr(transport, "reader", None)
            writer = getattr(transport, "writer", None)
            if type(reader) is asyncio.StreamReader and type(writer) is asyncio.StreamWriter:
                keep_unread_of(connection, reader, writer)


def is_unsent(client: Client, server: Connection) -> bool:
    """Say whether a part of what was written to *server* waits for it to read on.

    After an early response that may be for ever: nothing else can be sent there.
    """
    writer = getattr(_transports(client).get(server), "writer", None)
    return type(writer) is asyncio.StreamWriter and writer.transport.get_write_buffer_size() > 0


def _transports(client: Client) -> Mapping[Connection, Any]:
    return getattr(handler_of(client), "transports", {})


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


def keep_unread_of(
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


# -- after a suspend
#
# HTTP/2 has a PING to find out whether a response can still come; HTTP/1 has none, but TCP has:
# the system probes the peer, and ends the connection if nothing comes back.


def end_of(outermost: Layer) -> HttpConnection | None:
    """Return the HTTP layer of a connection; None if it has none."""
    at: Any = outermost
    while at is not None and not isinstance(at, HttpConnection):
        at = getattr(at, "child_layer", None)
    return at


def carrier(connection: Connection, layers: Collection[Layer]) -> Connection:
    """Return the connection with the socket, which is the upstream proxy's if there is one."""
    for at in reversed(list(layers)):
        if isinstance(at, tunnel.TunnelLayer) and at.conn is connection:
            connection = at.tunnel_connection
    return connection


def probe(writer: object) -> None:
    """Make the system find out, in 20 s as with a PING, whether the peer is still there."""
    sock = writer.get_extra_info("socket") if type(writer) is asyncio.StreamWriter else None
    if sock is None:
        return
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES.items():
        number = getattr(socket, name, None)
        if number is not None:
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, number, value)


def attend(http: ClientLayer, idle: Collection[Connection]) -> None:
    """Close *idle*, connections of *http*, and probe those in use."""
    handler = handler_of(http.context.client)
    transports = getattr(handler, "transports", {})
    close = getattr(handler, "close_connection", None)
    tell = getattr(handler, "server_event", None)
    if close is not None:
        for connection in idle:
            if connection in transports:
                with log_and_continue:  # all else of it is done, whatever this one comes to
                    close(connection)
    for server, outermost in http.connections.items():
        # Not a tunnel, which is not ours.
        if isinstance(server, Server) and end_of(outermost) is not None:
            io = transports.get(carrier(server, outermost.context.layers))
            probe(getattr(io, "writer", None))
    timer = http.timer
    if tell is not None and timer is not None:
        # Any event makes the layer send its PINGs; this one would come a little later.
        tasks.once("waking a connection", lambda: tell(events.Wakeup(timer)))
