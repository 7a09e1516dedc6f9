"""After a suspend: connections that were kept over it are closed, those in use are probed.

NATs and providers forget a connection that is silent for minutes without a notice: what is
sent there vanishes. `Watch` notices the suspend; `PoolHttpLayer.woke` decides, at once,
which connections take no more requests. Here mitmproxy is made to close their sockets and to
let the layers act. HTTP/2 has a PING to find out whether a response can still come; HTTP/1 has
none, but TCP has: the system probes the peer, and ends the connection if nothing comes back.
Needs `Proxyserver.connections`, `ConnectionHandler.transports`, `close_connection` and
`server_event` of mitmproxy; where they are missing, an idle connection stays open, unused,
until its client leaves, and one in use is probed when the layer wakes by itself.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

from mitmproxy.connection import Connection, Server
from mitmproxy.proxy import commands, events, layer, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpConnection, HttpStream

from account_pool.proxy import client_handler
from account_pool.supervision import tasks

#: Looks that are so far apart had a gap between them, seconds: more than a busy machine
#: delays the look that is due every five, less than it takes until connections are
#: forgotten on their way.
GAP_S = 30.0


class Gap(NamedTuple):
    """A time in which nothing ran.

    Attributes:
        seconds: how long it was.
        slept: false where only the wall clock has it, which may have been set.
    """

    seconds: float
    slept: bool


class Watch:
    """Compares each look with the one before, to notice that the proxy did not run for a while.

    The machine slept, or the process was stopped. No system tells a process of it in time, and
    which clocks go on meanwhile differs from one to the next. But somebody looks every few
    seconds, and before each request that would use a connection again: where two looks are far
    apart, nothing ran in between. Two clocks are compared, because each has its blind spot. One
    goes on in a suspend and cannot be set, but stands still with a virtual machine that is
    paused; the wall clock is put right afterwards, but may be set by anybody. What is done about
    it is harmless where it was only set, so that either will do.

    Args:
        up: a clock that goes on in a suspend, seconds.
        wall: the wall clock, seconds.
    """

    def __init__(self, up: float, wall: float) -> None:
        self._up, self._wall = up, wall

    def look(self, up: float, wall: float) -> Gap | None:
        """Return the gap since the last look; None: there was none."""
        slept, ahead = up - self._up, wall - self._wall
        self._up, self._wall = up, wall
        if slept >= GAP_S:
            return Gap(slept, slept=True)
        return Gap(ahead, slept=False) if ahead >= GAP_S else None


#: Options of TCP: seconds to the first probe and between the following ones, their number, and
#: for how long what was sent may be unacknowledged, milliseconds. Systems lack some of them.
PROBES = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPALIVE": 5,  # what macOS calls that one
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 20_000,
}


class ClientLayer(Protocol):
    """The HTTP layer of one client: see `http_layer.PoolHttpLayer`.

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
        """Stop using all of its connections; return those to be closed."""


def _running_clock() -> Callable[[], float]:
    """Return the clock that runs during a suspend."""
    name = "CLOCK_MONOTONIC_RAW" if sys.platform == "darwin" else "CLOCK_BOOTTIME"
    number: int | None = getattr(time, name, None)
    if number is not None:
        with suppress(OSError):
            time.clock_gettime(number)
            return partial(time.clock_gettime, number)
    return time.monotonic  # it does on Windows; elsewhere the wall clock has to do


#: What `Watch` compares: a clock that runs during a suspend, and the wall clock.
CLOCKS: tuple[Callable[[], float], Callable[[], float]] = (_running_clock(), time.time)


def end_of(outermost: layer.Layer) -> HttpConnection | None:
    """Return the HTTP layer of a connection; None if it has none."""
    at: Any = outermost
    while at is not None and not isinstance(at, HttpConnection):
        at = getattr(at, "child_layer", None)
    return at


def carrier(connection: Connection, layers: Collection[layer.Layer]) -> Connection:
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
    handler = client_handler.handler_of(http.context.client)
    transports = getattr(handler, "transports", {})
    close = getattr(handler, "close_connection", None)
    tell = getattr(handler, "server_event", None)
    if close is not None:
        for connection in idle:
            if connection in transports:
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
