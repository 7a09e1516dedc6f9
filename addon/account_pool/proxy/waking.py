"""After a suspend: connections that were kept over it are closed, those in use are probed.

NATs and providers forget a connection that is silent for minutes, and nobody learns of it:
what is sent there vanishes. That there was a suspend is noticed by `core.suspend`; which
connections take no more requests is decided in `PoolHttpLayer.woke`, at once. Here it is
told to mitmproxy, which closes their sockets and lets the layers act. HTTP/2 has a PING to
find out whether an answer can still come; HTTP/1 has none, but TCP has: the system probes
the peer, and ends the connection if nothing comes back. Stands on
`Proxyserver.connections`, `ConnectionHandler.transports`, `close_connection` and
`server_event`; where they are missing, what is idle stays open, unused, until its client
leaves, and what is in use is asked when the layer wakes by itself.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from mitmproxy.connection import Connection, Server
from mitmproxy.proxy import commands, events, layer, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpConnection, HttpStream

from account_pool.proxy import client_handler
from account_pool.supervision import tasks

#: When the first probe is sent and the following ones are, seconds, and how many are; how
#: long what was sent before may be unacknowledged, milliseconds. Systems lack some of it.
PROBES = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPALIVE": 5,  # what macOS calls that one
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 20_000,
}


class ClientLayer(Protocol):
    """The HTTP layer of one client: see `layer.PoolHttpLayer`.

    Attributes:
        streams: its requests by their ids, and by those of their attempts, which are negative.
        connections: its own, and those to servers, each with the outermost of its layers.
        timer: what wakes it next, if anything does.
    """

    context: Context
    streams: dict[int, HttpStream]
    connections: dict[Connection, layer.Layer]

    @property
    def timer(self) -> commands.RequestWakeup | None: ...

    def woke(self) -> Collection[Connection]:
        """Take none of its connections for alive; return those that shall be closed."""


def _running_clock() -> Callable[[], float]:
    """Return the clock that goes on in a suspend."""
    name = "CLOCK_MONOTONIC_RAW" if sys.platform == "darwin" else "CLOCK_BOOTTIME"
    number: int | None = getattr(time, name, None)
    if number is not None:
        with suppress(OSError):
            time.clock_gettime(number)
            return partial(time.clock_gettime, number)
    return time.monotonic  # on Windows it does; elsewhere the wall clock has to do


#: What `core.suspend.Watch` compares: the clock that goes on, and the wall clock, seconds.
CLOCKS: tuple[Callable[[], float], Callable[[], float]] = (_running_clock(), time.time)


def end_of(outermost: layer.Layer) -> HttpConnection | None:
    """Return the HTTP at the end of a connection, if it is there."""
    at: Any = outermost
    while at is not None and not isinstance(at, HttpConnection):
        at = getattr(at, "child_layer", None)
    return at


def carrier(connection: Connection, layers: Collection[layer.Layer]) -> Connection:
    """Return the connection with the socket: another one if this goes through a proxy."""
    for at in reversed(list(layers)):
        if isinstance(at, tunnel.TunnelLayer) and at.conn is connection:
            connection = at.tunnel_connection
    return connection


def probe(writer: object) -> None:
    """Have the system find out, in 20 s as with a PING, whether the peer is still there."""
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
    """Close *idle*, connections of *http*, and have those in use probed."""
    handler = client_handler.handler_of(http.context.client)
    transports = getattr(handler, "transports", {})
    close = getattr(handler, "close_connection", None)
    tell = getattr(handler, "server_event", None)
    if close is not None:
        for connection in idle:
            if connection in transports:
                close(connection)
    for server, outermost in http.connections.items():
        # Not a tunnel of somebody else, which is none of our business.
        if isinstance(server, Server) and end_of(outermost) is not None:
            io = transports.get(carrier(server, outermost.context.layers))
            probe(getattr(io, "writer", None))
    timer = http.timer
    if tell is not None and timer is not None:
        # It would come by itself, a little later: any event makes the layer ask.
        tasks.once("waking a connection", lambda: tell(events.Wakeup(timer)))
