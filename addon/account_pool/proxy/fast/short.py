"""Events of a client's CONNECT tunnel go straight to the HTTP layer inside it, and back.

Between the sockets and that layer stand the proxy's own mode, the HTTP layer of the CONNECT
with its connection and its stream, and TLS towards client and server. Once a tunnel is open
they only hand on, each command through the generator of each of them: what a socket receives
is decrypted and handed to the layer inside here, and what it sends is encrypted and written.

What those in between keep of a command is kept here, too: whose its completion is, and that
of a connection which is opened. So each event may come either way. The end of a connection
takes the long way, as does whatever is not as it was when the tunnel was open; and a tunnel
of which any part is not of a kind known here is never shortened.
"""

from __future__ import annotations

from typing import Any

from mitmproxy.connection import Connection, ConnectionState
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator, Layer, NextLayer
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.http import HttpLayer, HttpStream
from mitmproxy.proxy.layers.http._http1 import Http1Connection, Http1Server
from mitmproxy.proxy.layers.tls import ClientTLSLayer, ServerTLSLayer, TLSLayer
from mitmproxy.proxy.tunnel import TunnelLayer, TunnelState
from OpenSSL import SSL

from account_pool.proxy import client_handler, tunnels
from account_pool.proxy.fast import openssl
from account_pool.proxy.fast.inline import EventQueue
from account_pool.proxy.fast.known import digest

#: Sources that this stands in for: mitmproxy 11.0.2 to 11.1.3, and 12.0 to 12.3.1.
KNOWN = frozenset({"54335298", "59ee6c37"})

#: What nobody may have put their own in place of.
_OWN = (
    "handle_event", "_handle_event", "_handle_command", "event_to_child", "receive_data",
    "send_data", "send_close",
)  # fmt: skip


class Short:
    """Stands in for all layers of one client but the HTTP layer *http*."""

    def __init__(
        self, queue: EventQueue, http: HttpLayer, stream: HttpStream, *ends: tunnels.EndingTls
    ) -> None:
        self._queue, self._stream = queue, stream
        self._http: Any = http
        self._server_tls, self._client_tls = ends
        self._client, self._server = http.context.client, http.context.server
        self._top = queue.handler.layer
        self._outer: Any = http.context.layers[1]

    def run(self, event: events.Event) -> None:
        """Handle *event*, by either way. Raises nothing."""
        self._queue.handler.timeout_watchdog.register_activity()
        try:
            done = self.handle(event)
        except Exception as error:
            self._break_off(event, error)
            return
        if not done:
            self._queue.hand_on(event)

    def _break_off(self, event: events.Event, error: Exception) -> None:
        """Close the connection that *event* is of, as the outer layer does after *error*."""
        try:
            for command in self._outer.broke_off(event, error):
                self._queue.carry_out(command)
        except Exception:
            self._queue.crashed()

    def handle(self, event: events.Event) -> bool:
        """Handle *event* if it may come this way; return whether it did."""
        if self._client_tls.tunnel_state is not TunnelState.OPEN or not self._is_as_begun():
            return False
        if type(event) is events.DataReceived:
            return self._receive(event)
        if not isinstance(event, events.CommandCompleted):
            return False
        command, sources = event.command, self._outer.command_sources
        if command not in self._http.command_sources or sources.get(command) is not self._stream:
            return False
        del sources[command]
        self._http.drive(event, self._carry_out)
        return True

    def _is_as_begun(self) -> bool:
        """Say whether nothing in between waits for anything, and all would hand on an event."""
        top, outer = self._top, self._outer
        server_tls, client_tls = self._server_tls, self._client_tls
        return not (
            self._queue.handler.layer is not top
            or "handle_event" in top.__dict__  # another addon's
            or server_tls.tunnel_state is TunnelState.ESTABLISHING
            or outer.doubts
            or top._paused
            or outer._paused
            or self._stream._paused
            or server_tls._paused
            or client_tls._paused
        )

    def _receive(self, event: events.DataReceived) -> bool:
        connection = event.connection
        if connection is self._client:
            tunnel = self._client_tls
        elif connection is self._server:
            tunnel = self._server_tls
            if tunnel.tunnel_state is not TunnelState.OPEN:
                return False
        elif (
            connection in self._http.connections
            and self._outer.connections.get(connection) is self._stream
        ):
            self._http.drive(event, self._carry_out)
            return True
        else:
            return False
        if tunnel.is_over:
            return False
        self._decrypt(tunnel, connection, event.data)
        return True

    def _decrypt(self, tunnel: tunnels.EndingTls, connection: Connection, data: bytes) -> None:
        """Do as `EndingTls.receive_data`."""
        plain, error = openssl.read(tunnel.tls, data)
        ended = isinstance(error, SSL.ZeroReturnError)
        if error is not None and not ended:
            self._carry_out(tunnels.error_log(error))
        if answer := openssl.pending(tunnel.tls):
            self._queue.carry_out(commands.SendData(connection, answer))
        at: Any = self._http.connections.get(connection)
        server = getattr(at, "child_layer", None)
        if getattr(server, "is_chunked", False) and plain and self._relay(server, plain):
            plain = b""
        if plain:
            self._http.drive(events.DataReceived(connection, plain), self._carry_out)
        if ended:
            connection.state &= ~ConnectionState.CAN_READ
            self._http.drive(events.ConnectionClosed(connection), self._carry_out)
        if error is not None:
            self._run(tunnel.end_if_dead())

    def _relay(self, server: Any, data: bytes) -> bool:
        """Send on *data*, which came on *server*, if `fast.relay` does; return whether it did."""
        if server.relay is None or self._http.doubts:
            return False
        sent = server.relay(server, data)
        if sent is None:
            return False
        self._send(sent.connection, sent.data)
        return True

    def _run(self, source: CommandGenerator[None]) -> None:
        for command in source:
            self._carry_out(command)

    def _carry_out(self, command: commands.Command) -> None:
        if type(command) is commands.SendData:
            self._send(command.connection, command.data)
            return
        if command.blocking or isinstance(command, commands.RequestWakeup):
            self._outer.command_sources[command] = self._stream
            if isinstance(command, commands.OpenConnection):
                self._outer.connections[command.connection] = self._stream
        elif isinstance(command, commands.CloseConnection):
            if command.connection is self._client and not _can_write(self._client):
                return
            command = commands.CloseConnection(command.connection)
        elif isinstance(command, commands.Log):
            command.message = self._outer.shown(command.message)
        self._queue.carry_out(command)

    def _send(self, connection: Connection, data: bytes) -> None:
        """Do as `EndingTls.send_data`, where *data* is to be encrypted here."""
        io = self._queue.handler.transports.get(connection)
        writer = None if io is None else io.writer
        tunnel = None
        if connection is self._client:
            tunnel = self._client_tls
        elif connection is self._server:
            tunnel = self._server_tls
        if tunnel is None:
            if writer is not None and not writer.is_closing():
                writer.write(data)
            return
        if tunnel.is_over:
            return
        pieces = (data,) if len(data) <= openssl.WRITE_BYTES else openssl.pieces(data)
        try:
            for piece in pieces:
                sent = openssl.write(tunnel.tls, piece)
                if writer is not None and not writer.is_closing():
                    writer.write(sent)
        except SSL.Error:
            self._run(tunnel.end())


def _can_write(connection: Connection) -> bool:
    return bool(connection.state & ConnectionState.CAN_WRITE)


def begin(http: HttpLayer) -> None:
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
    quick = all(at.is_quick and openssl.can_use(at.tls) for at in ends)
    if not follow or replaced or not quick:
        return None
    return Short(queue, http, stream, server_tls, client_tls)


def _after(layer: object) -> Any:
    return layer.layer if type(layer) is NextLayer else None


def is_as_known() -> bool:
    """Say whether the layers of mitmproxy hand on what this leaves them out of."""
    return _source() in KNOWN and openssl.is_as_known()


def _source() -> str:
    return digest(
        Layer.handle_event,
        NextLayer.handle_event,
        NextLayer._ask,
        modes.HttpProxy._handle_event,
        HttpLayer._handle_event,
        HttpLayer.event_to_child,
        HttpStream.passthrough,
        Http1Connection._handle_event,
        Http1Connection.passthrough,
        Http1Server.send,
        TunnelLayer._handle_event,
        TunnelLayer._handle_command,
        TunnelLayer.event_to_child,
        TunnelLayer.send_close,
        TLSLayer.receive_data,
        TLSLayer.send_data,
        TLSLayer.send_close,
        ServerTLSLayer.event_to_child,
        ClientTLSLayer.start_handshake,
    )
