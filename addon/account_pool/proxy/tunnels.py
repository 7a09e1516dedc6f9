"""Keeps why a connection that is opened before there is a request could not be opened.

mitmproxy does so behind a client's CONNECT, and in modes that know the server (reverse
mode, say) as soon as a client connects. Where that fails on a proxy on the way, it forgets
the reason, and each request would find it out anew: three wrong passwords are enough to
lock their owner out. Where it fails altogether, it hangs up on the client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mitmproxy.connection import Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.tunnel import TunnelLayer

from account_pool.proxy import causes
from account_pool.proxy.redaction import Secrets


def failed(server: Server, error: str) -> Server:
    """Return *server* anew, with the reason for the request (`PoolHttpLayer.get_connection`).

    One that failed must not be opened again, and the TLS layers will want to.
    """
    new = Server(address=server.address, transport_protocol=server.transport_protocol)
    new.via, new.tls, new.sni, new.error = server.via, server.tls, server.sni, error
    return new


def answer_all_the_same(way: Layer | None, claims: Callable[[str, int], bool]) -> None:
    """Let *way*, the layer of a mode, go on without the connection to a host of the pool.

    The request is told why then. *claims* says whether host and port are the pool's.
    """
    begin: Callable[[], CommandGenerator[str | None]] | None = getattr(way, "finish_start", None)
    if way is None or begin is None:
        return
    context = way.context

    def finish_start() -> CommandGenerator[str | None]:
        starting, reply = begin(), None
        while True:
            try:
                command: Any = starting.send(reply)
            except StopIteration as over:
                error: str | None = over.value
                return error
            reply = yield command
            if not (reply and isinstance(command, commands.OpenConnection)):
                continue
            if (server := context.server).address and claims(*server.address[:2]):
                context.server, reply = failed(server, reply), None

    way.finish_start = finish_start  # type: ignore[attr-defined]  # of this one only


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
