"""After a suspend: connections that were kept over it are closed, those in use are asked.

NATs and providers forget a connection that is silent for minutes, and nobody learns of it:
what is sent there vanishes. That there was a suspend is noticed by `core.suspend`; which
connections take no more requests is decided in `PoolHttpLayer.woke`, at once. Here it is
told to mitmproxy, which closes their sockets and lets the layers act. Stands on
`Proxyserver.connections`, `ConnectionHandler.transports`, `close_connection` and
`server_event`; where they are missing, what is idle stays open, unused, until its client
leaves, and what is in use is asked when the layer wakes by itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from mitmproxy import ctx
from mitmproxy.connection import Connection
from mitmproxy.proxy import events, layer, tunnel
from mitmproxy.proxy.layers.http import HttpConnection

from account_pool.proxy import event_lock
from account_pool.supervision import tasks

if TYPE_CHECKING:
    from account_pool.proxy.layer import PoolHttpLayer


def _running_clock() -> Callable[[], float]:
    """Return the clock that goes on in a suspend."""
    name = "CLOCK_MONOTONIC_RAW" if sys.platform == "darwin" else "CLOCK_BOOTTIME"
    number: int | None = getattr(time, name, None)
    if number is not None:
        with suppress(OSError):
            time.clock_gettime(number)
            return partial(time.clock_gettime, number)
    return time.monotonic  # on Windows it does; elsewhere the wall clock has to do


_up = _running_clock()


def clocks() -> tuple[float, float]:
    """Return what `core.suspend.Watch` compares: the clock that goes on, and the wall clock."""
    return _up(), time.time()


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


def attend(http: PoolHttpLayer, idle: Collection[Connection]) -> None:
    """Close *idle*, connections of *http*, and have it ask what it doubts."""
    connections = getattr(ctx.master.addons.get("proxyserver"), "connections", None)
    handler = event_lock.handler_of(connections, http.context.client.id)
    transports = getattr(handler, "transports", {})
    close = getattr(handler, "close_connection", None)
    tell = getattr(handler, "server_event", None)
    if close is not None:
        for connection in idle:
            if connection in transports:
                close(connection)
    timer = http.timer
    if tell is not None and timer is not None:
        # It would come by itself, a little later: any event makes the layer ask.
        tasks.once("waking a connection", lambda: tell(events.Wakeup(timer)))
