"""What streams and the layer above them say to each other beside mitmproxy's own events."""

from __future__ import annotations

from mitmproxy.connection import Connection
from mitmproxy.proxy import events
from mitmproxy.proxy.layers.http import GetHttpConnection


class EventHandled(events.Event):
    """The event that a stream was handling is over for everybody."""


class GetOtherConnection(GetHttpConnection):
    """Get a connection that is none of those `avoided`."""

    avoided: frozenset[Connection] = frozenset()

    def connection_spec_matches(self, connection: Connection) -> bool:
        return connection not in self.avoided and super().connection_spec_matches(connection)
