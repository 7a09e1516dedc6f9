"""Looks after the attempts of one client: none waits for a connection that has gone.

The end of a connection is told by an event. Should one not come (mitmproxy may lose it,
see `proxy.event_lock`), what it would have told is seen here, every few seconds while an
attempt runs. What is dead is decided by what mitmproxy notes of a connection.

Looking counts as activity for mitmproxy, which would end a silent client after
`tcp_timeout`: so that is kept here, for each attempt.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Protocol

from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.layers.http import (
    GetHttpConnection,
    ReceiveHttp,
    RegisterHttpConnection,
    ResponseProtocolError,
)

from account_pool.proxy import compat
from account_pool.proxy.endings import Silent
from account_pool.proxy.http_stream import AttemptRouter

#: How often attempts are looked at, seconds.
SWEEP_S = 5.0
#: How long a connection may take to open, its TLS and its turn included, seconds.
OPENING_S = 60.0
#: mitmproxy's bound where it has no option for it.
TCP_TIMEOUT_S = 600.0


class SweptLayer(AttemptRouter, Protocol):
    """What is looked after: see `layer.PoolHttpLayer`."""

    context: Context
    command_sources: dict[commands.Command, Layer]
    waiting_for_establishment: defaultdict[Connection, list[GetHttpConnection]]

    def is_dead(self, connection: Connection) -> bool:
        """Say whether nothing can come from *connection* any more."""


class Sweep:
    """Takes the wake-ups of one layer.

    Attributes:
        timer: the next one, if it is arranged.
    """

    def __init__(self, layer: SweptLayer) -> None:
        self._layer = layer
        self.timer: commands.RequestWakeup | None = None
        #: when connections were looked at first that have not begun to open
        self._not_begun: dict[Connection, float] = {}

    def arm(self) -> CommandGenerator[None]:
        """Look again soon; not to be called while that is arranged."""
        self.timer = commands.RequestWakeup(min(SWEEP_S, self._timeout_s() / 4))
        self._layer.command_sources[self.timer] = self  # type: ignore[assignment]
        yield self.timer

    def handle_event(self, _event: events.Event) -> CommandGenerator[None]:
        """Time has passed. Whatever is still looked after, the layer arms this again."""
        self.timer = None
        for connection, waiting in list(self._layer.waiting_for_establishment.items()):
            if waiting and self._opens_too_long(connection):
                yield commands.CloseConnection(connection)
                yield RegisterHttpConnection(connection, f"not open after {OPENING_S:.0f} s")
        for client in self._layer.http2.values():
            client.look_at_queue()
        now = self._layer.service.now()
        for attempt_id, stream in list(self._layer.attempts.items()):
            if attempt_id not in self._layer.attempts:
                continue  # what another's end led to has ended it
            if stream.heard:
                stream.heard, stream.quiet_since = False, now
            if now - stream.quiet_since >= self._timeout_s():
                yield ReceiveHttp(Silent(attempt_id, f"silence of {self._timeout_s():.0f} s"))
            elif self._layer.is_dead(stream.context.server):
                yield ReceiveHttp(
                    ResponseProtocolError(
                        attempt_id, "the connection has ended", compat.SERVER_ERROR
                    )
                )

    def _timeout_s(self) -> float:
        """Return how long nothing may come (mitmproxy 11 has no option for it)."""
        return float(getattr(self._layer.context.options, "tcp_timeout", TCP_TIMEOUT_S))

    def _opens_too_long(self, connection: Connection) -> bool:
        now = self._layer.service.wall_now()
        started = connection.timestamp_start or self._not_begun.setdefault(connection, now)
        return now - started > OPENING_S
