"""mitmproxy's tunnels to a server: TLS, and the ways through other proxies.

TLS layers end when TLS has come to an end (`take_tls`):

- What comes on an established connection may be no TLS record (a proxy on the way that
  breaks, a server that answers in plain text), or an alert that ends it. Nothing can be read
  or written from then on. mitmproxy says so in its log and goes on: with pyOpenSSL 25 and
  later the next write crashes its layers, with older ones it is lost without a word, and
  either way the requests on the connection wait for ever. Here it is closed at once.
- mitmproxy opens the connection behind a CONNECT at once, and begins TLS there once the
  client has begun it. A server that has hung up by then is waited for for ever, as is one
  that is silent.

Why a connection could not be opened before there is a request is kept for that request.
mitmproxy opens one so behind a client's CONNECT, and in modes that know the server (reverse
mode, say) as soon as a client connects. Where that fails on a proxy on the way, it forgets
the reason, and each request would find it out anew: three wrong passwords are enough to
lock their owner out. Where it fails altogether, it hangs up on the client.

Stands on private parts of mitmproxy: nothing is changed where they are not as known.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from itertools import chain
from typing import Any, cast

from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.layers.tls import ClientTLSLayer, ServerTLSLayer, TLSLayer
from mitmproxy.proxy.tunnel import TunnelLayer, TunnelState
from OpenSSL import SSL

from account_pool.core.credential import Secrets
from account_pool.proxy import redaction
from account_pool.proxy.fast import short
from account_pool.proxy.fast.known import digest


def failed(server: Server, error: str) -> Server:
    """Return *server* anew, with the reason for the request (`PoolHttpLayer.get_connection`).

    One that failed must not be opened again, and the TLS layers will want to.
    """
    new = Server(address=server.address, transport_protocol=server.transport_protocol)
    new.via, new.tls, new.sni, new.error = server.via, server.tls, server.sni, error
    return new


def go_on_without_connection(way: Layer | None, claims: Callable[[str, int], bool]) -> None:
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
            event.reply = server.error = redaction.reason_of(event.reply, secrets)
        return hand_on(event)

    tunnel.event_to_child = event_to_child  # type: ignore[method-assign]  # of this one only


#: How long a connection may take to open, its TLS and its turn included, seconds.
OPENING_S = 60.0

_ENDED = "TLS has ended"

#: Sources that a quick layer stands in for: mitmproxy 11.0.2 to 11.1.3, and 12.0 to 12.3.1.
KNOWN = frozenset({"d37d02d1", "95bf89ee"})


class EndingTls(TLSLayer):
    """One whose connection ends when TLS has come to an end."""

    #: nothing is read or written any more
    is_over = False
    #: the layers above are still to be told that the connection is closed
    _owed = False
    #: OpenSSL is asked without pyOpenSSL in between (`fast.short`)
    is_quick = False

    def receive_handshake_data(self, data: bytes) -> CommandGenerator[tuple[bool, str | None]]:
        done, error = yield from super().receive_handshake_data(data)
        if done and self.is_over:
            return False, _ENDED
        return done, error

    def receive_data(self, data: bytes) -> CommandGenerator[None]:
        # Generators are returned and chained: each of ours would be resumed for every command.
        if self.is_over:
            return _nothing()
        if self.is_quick and short.can_use(self.tls):
            return self._read(data)
        return cast(Any, chain(super().receive_data(data), self.end_if_dead()))

    def _read(self, data: bytes) -> CommandGenerator[None]:
        """Do as `TLSLayer.receive_data`."""
        plain, error = short.read(self.tls, data)
        ended = isinstance(error, SSL.ZeroReturnError)
        if error is not None and not ended:
            yield short.error_log(error)
        if answer := short.pending(self.tls):
            yield commands.SendData(self.conn, answer)
        if plain:
            yield from self.event_to_child(events.DataReceived(self.conn, plain))
        if ended:
            self.conn.state &= ~ConnectionState.CAN_READ
            yield from self.event_to_child(events.ConnectionClosed(self.conn))
        if error is not None:
            yield from self.end_if_dead()

    def end_if_dead(self) -> CommandGenerator[None]:
        """Close the connection if nothing can be read or written any more."""
        # What was read may have been answered: a write was the first to fail then.
        if not self.is_over and self._is_dead():
            yield from self.end()

    def send_data(self, data: bytes) -> CommandGenerator[None]:
        if self.is_over:
            return
        try:
            if self.is_quick and short.can_use(self.tls):
                yield from self._write(data)
            else:
                yield from super().send_data(data)
        except SSL.Error:
            yield from self.end()

    def _write(self, data: bytes) -> CommandGenerator[None]:
        """Do as `TLSLayer.send_data`; a piece is on its way before the next is encrypted."""
        for piece in short.pieces(data):
            yield commands.SendData(self.conn, short.write(self.tls, piece))

    def receive_close(self) -> CommandGenerator[None]:
        if not self.is_over:
            yield from super().receive_close()
        elif self._owed:
            yield from self.event_to_child(events.ConnectionClosed(self.conn))

    def _is_dead(self) -> bool:
        """Say whether TLS has failed, with everything read that could be."""
        try:
            self.tls.recv(1, socket.MSG_PEEK)
        except SSL.WantReadError:
            return False
        except SSL.ZeroReturnError:
            # An alert looks like an end in good order, except that nobody was told of one.
            return self._is_read
        except SSL.Error:
            return True
        return False

    @property
    def _is_read(self) -> bool:
        return bool(self.conn.state & ConnectionState.CAN_READ)

    def end(self) -> CommandGenerator[None]:
        """Close the connection. That it is closed comes back as an event, as from its peer."""
        self.is_over, self._owed = True, self._is_read
        if self.tunnel_state is TunnelState.OPEN:
            yield commands.CloseConnection(self.conn)


class PoolClientTls(EndingTls, ClientTLSLayer):
    """The client's side."""


class PoolServerTls(EndingTls, ServerTLSLayer):
    """The server's side."""


class OpeningServerTls(PoolServerTls):
    """The same until it is open, and nothing comes any more that was arranged for that time."""

    _bound: commands.RequestWakeup | None = None

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.Wakeup) and event.command is self._bound:
            return self._opened_too_long()
        return super()._handle_event(event)

    def _opened_too_long(self) -> CommandGenerator[None]:
        if self.tunnel_state is TunnelState.ESTABLISHING:
            error = f"no TLS after {OPENING_S:.0f} s"
            yield from self.on_handshake_error(error)
            yield from self._handshake_finished(error)

    def _handle_command(self, command: commands.Command) -> CommandGenerator[None]:
        if (
            isinstance(command, commands.OpenConnection)
            and self.wait_for_clienthello
            and command.connection is self.conn
        ):
            return self._open(command)
        return super()._handle_command(command)

    def _open(self, command: commands.OpenConnection) -> CommandGenerator[None]:
        if self.tunnel_connection.state & ConnectionState.CAN_READ:
            yield from super()._handle_command(command)
            self._bound = commands.RequestWakeup(OPENING_S)
            yield self._bound
        else:
            self.wait_for_clienthello = False
            yield commands.CloseConnection(self.tunnel_connection)
            closed = events.OpenConnectionCompleted(command, "connection closed")
            yield from self.event_to_child(closed)

    def _handshake_finished(self, err: str | None) -> CommandGenerator[None]:
        finished = super()._handshake_finished(err)
        if err is None and (self._bound is None or self._drop(self._bound)):
            cast(Any, self).__class__ = PoolServerTls
        return finished

    def _drop(self, timer: commands.RequestWakeup) -> bool:
        """Let *timer* come to nobody; say whether a layer above sees to it."""
        drops = (getattr(above, "drop_timer", None) for above in self.context.layers)
        return any(drop(timer) for drop in drops if drop is not None)


_OURS: dict[type[Layer], type[Layer]] = {
    ClientTLSLayer: PoolClientTls,
    ServerTLSLayer: OpeningServerTls,
}
_PARTS = (
    "tls", "receive_handshake_data", "receive_data", "receive_close", "send_data", "event_to_child",
    "on_handshake_error", "_handshake_finished", "_handle_event", "_handle_command",
)  # fmt: skip


def _nothing() -> CommandGenerator[None]:
    yield from ()


def _can_be_quick(kind: Any) -> bool:
    """Say whether layers of *kind*, mitmproxy's, read and write in the way that quick ones do."""
    return digest(kind.receive_data, kind.send_data) in KNOWN and short.knows_openssl()


def take_tls(outermost: Layer, *, quick: bool = False) -> None:
    """Make each TLS layer of mitmproxy's in *outermost* and below it one of ours.

    *quick* ones ask OpenSSL without pyOpenSSL in between, where both are as known.
    """
    if not all(hasattr(ServerTLSLayer, name) for name in _PARTS):
        return
    at: Layer | None = outermost
    while isinstance(at, Layer):
        if type(at) in _OURS:
            ours, kind = cast(Any, at), type(at)
            ours.__class__ = _OURS[kind]
            ours.is_quick = quick and at.debug is None and _can_be_quick(kind)
        at = getattr(at, "child_layer", None)
