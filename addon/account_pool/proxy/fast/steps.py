"""Which of the shorter ways are in use, and where the way of a tunnel can be shortened."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from mitmproxy.addonmanager import AddonManager
from mitmproxy.proxy.layer import Layer, NextLayer
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.http import HttpLayer, HttpStream
from mitmproxy.proxy.layers.http._http1 import Http1Server
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler

from account_pool.config.options import FAST_STEPS
from account_pool.proxy import client_handler, tunnels
from account_pool.proxy.fast import short
from account_pool.proxy.fast.handler import EventQueue, HookTable
from account_pool.proxy.fast.known import handler_functions, knows_handler, knows_reading
from account_pool.proxy.fast.short import Short

logger = logging.getLogger(__name__)

#: What nobody may have put their own in place of, on the layers of a tunnel.
_OWN = (
    "handle_event", "_handle_event", "_handle_command", "event_to_child", "receive_data",
    "send_data", "send_close",
)  # fmt: skip


class Steps:
    """Puts the steps that were chosen into an addon manager, and into the handlers of clients."""

    def __init__(self, manager: AddonManager) -> None:
        self._table = HookTable(manager)
        self._said = ""
        self.used: frozenset[str] = frozenset()

    def use(self, chosen: Collection[str]) -> None:
        """Use those of *chosen* that mitmproxy allows. Connected clients stay as they are."""
        used = set()
        if "table" not in chosen:
            self._table.uninstall()
        elif self._table.install():
            used.add("table")
            if "inline" in chosen and knows_handler():
                used.add("inline")
                if "direct" in chosen and knows_reading():
                    used.add("direct")
                    if "short" in chosen and short.knows_layers():
                        used.add("short")
                        if "relay" in chosen and short.knows_chunks():
                            used.add("relay")
        self.used = frozenset(used)
        line = ", ".join(name for name in FAST_STEPS if name in used) or "none"
        if line != self._said:
            self._said = line
            logger.debug("account-pool: shorter ways through mitmproxy in use: %s", line)

    def take(self, handler: object) -> bool:
        """Handle the events of one client, from the first on. Returns whether that is done."""
        if "inline" not in self.used or not self._table.is_installed:
            return False
        queue = put_into(handler, self._table)
        if queue is not None and "direct" in self.used:
            queue.read_at_once()
            queue.may_shorten = "short" in self.used and short.knows_layers()
        return queue is not None


def put_into(handler: object, table: HookTable) -> EventQueue | None:
    """Let an `EventQueue` handle the events of *handler*, before its first one.

    Returns it, or None: it is only for a client that is connected to a proxy's port, and
    where mitmproxy handles events in the way that this does.
    """
    if type(handler) is not ProxyConnectionHandler or not knows_handler():
        return None
    if {function.__name__ for function in handler_functions()} & {*vars(handler)}:
        return None  # Another addon's.
    queue = EventQueue(handler, table)
    handler.server_event = queue.server_event  # type: ignore[method-assign]
    return queue


def shorten(http: HttpLayer) -> None:
    """Let events of *http*, which starts, take the short way if all around it is as known."""
    above = http.context.layers[: http.context.layers.index(http)]
    if len(above) != 5 or any(layer.debug is not None for layer in above):
        return
    handler = client_handler.handler_of(http.context.client)
    queue = getattr(getattr(handler, "server_event", None), "__self__", None)
    if type(queue) is EventQueue and queue.may_shorten:
        queue.way = _short(queue, http, above)


def _short(queue: EventQueue, http: HttpLayer, above: list[Layer]) -> Short | None:
    top: Any
    outer: Any
    stream: Any
    server_tls: Any
    client_tls: Any
    top, outer, stream, server_tls, client_tls = above
    if not (
        queue.handler.layer is top
        and type(top) is modes.HttpProxy
        and type(outer) is type(http)
        and isinstance(stream, HttpStream)
        and type(server_tls) in (tunnels.PoolServerTls, tunnels.OpeningServerTls)
        and type(client_tls) is tunnels.PoolClientTls
    ):
        return None
    server, client = http.context.server, http.context.client
    own = outer.connections.get(client)
    follow = (
        _after(getattr(top._handle_event, "__self__", None)) is outer
        and isinstance(own, Http1Server)
        and own.state == own.passthrough
        and outer.streams.get(own.stream_id) is stream
        and stream._handle_event == stream.passthrough
        and type(stream).passthrough is HttpStream.passthrough
        and _after(stream.child_layer) is server_tls
        and server_tls.child_layer is client_tls
        and _after(client_tls.child_layer) is http
        and server_tls.conn is server_tls.tunnel_connection is server
        and client_tls.conn is client_tls.tunnel_connection is client
        and not server_tls.wait_for_clienthello
    )
    replaced = any({*_OWN} & {*vars(layer)} for layer in (outer, server_tls, client_tls))
    ends = [at for at in (server_tls, client_tls) if at.tls is not None]
    quick = all(at.is_quick and short.can_use(at.tls) for at in ends)
    if not follow or replaced or not quick:
        return None
    return Short(queue, http, stream, server_tls, client_tls)


def _after(layer: object) -> Any:
    return layer.layer if type(layer) is NextLayer else None
