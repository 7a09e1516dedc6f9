"""Keeps why the connection behind a client's CONNECT could not be opened.

mitmproxy opens it before there is a request. Where that fails on a proxy on the way, it
forgets the reason, and each request would find it out anew: three wrong passwords are
enough to lock their owner out.
"""

from __future__ import annotations

from mitmproxy.connection import Server
from mitmproxy.proxy import events
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.tunnel import TunnelLayer

from account_pool.proxy import causes
from account_pool.proxy.scrub import Secrets


def keep_error(way: Layer | None, server: Server, secrets: Secrets) -> None:
    """Let *server* know what goes wrong while the tunnels of *way* lead to it.

    As the TLS layer does by itself. *secrets* are taken out, here and in mitmproxy's log.
    """
    while isinstance(way, TunnelLayer):
        if way.conn is server and way.tunnel_connection is not server:
            _watch(way, server, secrets)
        way = way.child_layer


def _watch(tunnel: TunnelLayer, server: Server, secrets: Secrets) -> None:
    hand_on = tunnel.event_to_child

    def event_to_child(event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.OpenConnectionCompleted) and event.reply:
            event.reply = server.error = causes.told(event.reply, secrets)
        return hand_on(event)

    tunnel.event_to_child = event_to_child  # type: ignore[method-assign]  # of this one only
