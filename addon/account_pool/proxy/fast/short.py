"""Events of a client's CONNECT tunnel go straight to the HTTP layer inside it, and back.

Between the sockets and that layer stand the proxy's own mode, the HTTP layer of the CONNECT
with its connection and its stream, and TLS towards client and server. Once a tunnel is open
they only hand on, each command through the generator of each of them: what a socket receives
is decrypted and handed to the layer inside here, and what it sends is encrypted and written.

What those in between keep of a command is kept here, too: whose its completion is, and that
of a connection which is opened. So each event may come either way. The end of a connection
takes the long way, as does whatever is not as it was when the tunnel was open.

OpenSSL is asked without an exception for each read and a copy for each record. pyOpenSSL tells
by an exception that nothing more is there, which mitmproxy meets twice for all that comes; it
copies each record (16 KiB) several times, and lets what is to be sent grow in memory until all
of it is encrypted. Here the same functions of OpenSSL are called on buffers that are used again.
Whatever is neither data nor a wait for more is left to pyOpenSSL to tell. SSL_write takes one
record at a time (pyOpenSSL sets SSL_MODE_ENABLE_PARTIAL_WRITE).

Whole chunks of a response that streams are copied through (step `relay`). Each piece of a
chunked body is taken out of its frame, handed from the server's connection to its stream and
from there to the client's connection, and put into a frame like the one it came in. Where a
read has brought whole chunks and nothing else, they go to the client as they are, once the
stream has taken its copy of what is in them. Anything else is read as ever: a chunk in parts,
the last one, extensions, and all while the stream waits for something. As long as chunks
follow on chunks, none of them is an event: the layers are as the one before has left them.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, cast

from h11._readers import ChunkedReader
from mitmproxy.connection import Connection, ConnectionState
from mitmproxy.http import HTTPFlow, Response
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator, Layer, NextLayer
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.http import HttpLayer, HttpStream
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Connection, Http1Server
from mitmproxy.proxy.layers.tls import ClientTLSLayer, ServerTLSLayer, TLSLayer
from mitmproxy.proxy.tunnel import TunnelLayer, TunnelState
from msgspec import Struct
from OpenSSL import SSL

from account_pool.proxy.fast.handler import EventQueue, is_unsent
from account_pool.proxy.fast.known import digest

if TYPE_CHECKING:
    from account_pool.proxy.flow_view import BodyCopy
    from account_pool.proxy.headers import Fields

#: Sources that the short way stands in for: mitmproxy 11.0.2 to 11.1.3, and 12.0 to 12.3.1.
KNOWN_LAYERS = frozenset({"54335298", "59ee6c37"})
#: Sources that copied chunks stand in for: mitmproxy 11.0.2 to 12.3.1, h11 0.14 to 0.16.
KNOWN_CHUNKS = frozenset({"566fbfd5", "9ea4b8d3", "f696bd3f"})


class Tls(Protocol):
    """A TLS layer of ours: see `tunnels.EndingTls`."""

    tls: Any
    is_over: bool
    tunnel_state: TunnelState
    _paused: Any

    def end_if_dead(self) -> CommandGenerator[None]: ...

    def end(self) -> CommandGenerator[None]: ...


class Decrypted(events.DataReceived):
    """What came on a connection, and what `read` has returned of it."""

    def __init__(self, came: events.DataReceived, plain: bytes, error: SSL.Error | None) -> None:
        super().__init__(came.connection, came.data)
        self.plain, self.error = plain, error


class Session(Struct, eq=False):
    """The parts of a connection of pyOpenSSL's, which takes longer to find them."""

    _ssl: Any
    _into_ssl: Any
    _from_ssl: Any
    _raise_ssl_error: Callable[[Any, int], None]

    @classmethod
    def of(cls, tls: Any) -> Session:
        return cls(tls._ssl, tls._into_ssl, tls._from_ssl, tls._raise_ssl_error)


class Copying(Struct, eq=False):
    """A response of which whole chunks come.

    Attributes:
        connection: to its server.
        server, client: what decrypts and encrypts.
        transport: to the client.
        copy: what is kept of its body.
        flow, response, framed_by: whose it is, and that it comes in chunks; others may change that.
    """

    connection: Connection
    server: Session
    client: Session
    transport: asyncio.WriteTransport
    copy: BodyCopy
    flow: HTTPFlow
    response: Response
    framed_by: Fields


class Short:
    """Stands in for all layers of one client but the HTTP layer *http*.

    Attributes:
        copying: what the last event has brought chunks of.
    """

    def __init__(self, queue: EventQueue, http: HttpLayer, stream: HttpStream, *ends: Tls) -> None:
        self._queue, self._stream, self._handler = queue, stream, queue.handler
        self._http: Any = http
        self._server_tls, self._client_tls = ends
        self._client, self._server = http.context.client, http.context.server
        self._top = self._handler.layer
        self._outer: Any = http.context.layers[1]
        self.copying: Copying | None = None

    def copied(self, event: events.DataReceived) -> events.Event | None:
        """Copy *event* to the client, as the chunks before it were.

        None: done. Otherwise the event that is to be handled instead. Raises nothing.
        """
        at = self.copying
        if (
            at is None
            or at.connection is not event.connection
            or self._handler.layer is not self._top
            or "handle_event" in self._top.__dict__
            or self._outer.doubts
            or self._http.doubts
            or at.flow.response is not at.response
            or at.response.data.headers.fields is not at.framed_by
        ):
            return event
        self._handler.timeout_watchdog.register_activity()
        try:
            plain, error = read(at.server, event.data)
            found = chunks(plain) if error is None else None
            if not found:
                return Decrypted(event, plain, error)
            if answer := pending(at.server):
                self._queue.carry_out(commands.SendData(event.connection, answer))
            for piece in found:
                at.copy.add(piece)
            for part in pieces(plain):
                sent = write(at.client, part)
                if not at.transport.is_closing():
                    at.transport.write(sent)
        except SSL.Error:
            self.copying = None
            self._run(self._client_tls.end())
        except Exception as error:
            self.copying = None
            self._break_off(event, error)
        return None

    def is_unsent(self) -> bool:
        """Say whether what was copied last waits for its client, or has none any more."""
        return self.copying is None or is_unsent(self.copying.transport)

    def _copying_of(self, stream: Any) -> Copying | None:
        """Return what copies the chunks of *stream* that follow; None where each is an event."""
        io = self._handler.transports.get(self._client)
        writer: Any = None if io is None else io.writer
        if type(writer) is not asyncio.StreamWriter or {"write", "is_closing"} & {*vars(writer)}:
            return None
        return Copying(
            self._server,
            Session.of(self._server_tls.tls),
            Session.of(self._client_tls.tls),
            writer.transport,
            stream.copy,
            stream.flow,
            stream.flow.response,
            stream.copy.framed_by,
        )

    def run(self, event: events.Event) -> None:
        """Handle *event*, by either way. Raises nothing."""
        self.copying = None
        self._handler.timeout_watchdog.register_activity()
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
        if type(event) is Decrypted:
            self._receive_plain(self._server_tls, event.connection, event.plain, event.error)
            return True
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
            self._handler.layer is not top
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
        self._receive_plain(tunnel, connection, *read(tunnel.tls, event.data))
        return True

    def _receive_plain(
        self, tunnel: Tls, connection: Connection, plain: bytes, error: SSL.Error | None
    ) -> None:
        """Do as `EndingTls.receive_data`."""
        ended = isinstance(error, SSL.ZeroReturnError)
        if error is not None and not ended:
            self._carry_out(error_log(error))
        if answer := pending(tunnel.tls):
            self._queue.carry_out(commands.SendData(connection, answer))
        at: Any = self._http.connections.get(connection)
        server: Any = getattr(at, "child_layer", None)
        if (
            plain
            and getattr(server, "is_chunked", False)
            and server.relay is not None
            and not self._http.doubts
            and (stream := server.relay(server, plain))
        ):
            self._send(self._client, plain)
            if error is None:
                self.copying = self._copying_of(stream)
            plain = b""
        if plain:
            self._http.drive(events.DataReceived(connection, plain), self._carry_out)
        if ended:
            connection.state &= ~ConnectionState.CAN_READ
            self._http.drive(events.ConnectionClosed(connection), self._carry_out)
        if error is not None:
            self._run(tunnel.end_if_dead())

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
        io = self._handler.transports.get(connection)
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
        try:
            for piece in pieces(data):
                sent = write(tunnel.tls, piece)
                if writer is not None and not writer.is_closing():
                    writer.write(sent)
        except SSL.Error:
            self._run(tunnel.end())


def _can_write(connection: Connection) -> bool:
    return bool(connection.state & ConnectionState.CAN_WRITE)


# -- OpenSSL

#: How much is encrypted at once, bytes: what follows of it fits into a buffer.
WRITE_BYTES = 65536
_BUFFER_BYTES = 2 * WRITE_BYTES
_RECORD_BYTES = 16384

_SSL: Any = SSL
_FUNCTIONS = ("BIO_read", "BIO_write", "SSL_get_error", "SSL_read", "SSL_write")
_CODES = ("SSL_ERROR_WANT_READ", "SSL_ERROR_ZERO_RETURN")
_PARTS = ("_from_ssl", "_into_ssl", "_ssl", "_raise_ssl_error")


class _Buffer(threading.local):
    """Memory for one call; a call lets other threads run."""

    def __init__(self) -> None:
        self.start: Any = _SSL._ffi.new("char[]", _BUFFER_BYTES)
        self.bytes: Any = _SSL._ffi.buffer(self.start, _BUFFER_BYTES)


def knows_openssl() -> bool:
    """Say whether pyOpenSSL has OpenSSL's functions where they are looked for here."""
    lib, ffi = getattr(SSL, "_lib", None), getattr(SSL, "_ffi", None)
    named = all(hasattr(lib, name) for name in (*_FUNCTIONS, *_CODES))
    return named and all(hasattr(ffi, name) for name in ("buffer", "from_buffer", "new"))


def can_use(tls: object) -> bool:
    """Say whether *tls* is a connection in memory of pyOpenSSL's, as mitmproxy makes them."""
    return type(tls) is SSL.Connection and all(
        getattr(tls, name, None) is not None for name in _PARTS
    )


if knows_openssl():
    _lib, _from_buffer, _buffer = _SSL._lib, _SSL._ffi.from_buffer, _Buffer()
    _bio_read, _bio_write = _lib.BIO_read, _lib.BIO_write
    _ssl_read, _ssl_write = _lib.SSL_read, _lib.SSL_write
    _WANT_READ, _ENDED = _lib.SSL_ERROR_WANT_READ, _lib.SSL_ERROR_ZERO_RETURN


def read(tls: Any, data: bytes) -> tuple[bytes, SSL.Error | None]:
    """Return what *data*, which came from the peer, adds to what it says.

    Beside it, what keeps more from coming: None for a mere wait, `SSL.ZeroReturnError` for
    an end in good order.
    """
    if data and _bio_write(tls._into_ssl, data, len(data)) != len(data):
        raise MemoryError("OpenSSL takes no more")
    ssl, start = tls._ssl, _buffer.start
    parts, at = [], 0
    count = _ssl_read(ssl, start, _BUFFER_BYTES)
    while count > 0:
        at += count
        if at > _BUFFER_BYTES - _RECORD_BYTES:
            parts.append(_buffer.bytes[:at])
            at = 0
        count = _ssl_read(ssl, start + at, _BUFFER_BYTES - at)
    error = _lib.SSL_get_error(ssl, count)
    plain: bytes = _buffer.bytes[:at] if at else b""
    if parts:
        plain = b"".join([*parts, plain])
    return plain, None if error == _WANT_READ else _error(tls, count)


def _error(tls: Any, result: int) -> SSL.Error:
    try:
        tls._raise_ssl_error(tls._ssl, result)
    except SSL.Error as error:
        return error
    return SSL.Error()


def pending(tls: Any) -> bytes:
    """Return what OpenSSL has to say to the peer."""
    count = _bio_read(tls._from_ssl, _buffer.start, _BUFFER_BYTES)
    if count <= 0:
        return b""
    found: bytes = _buffer.bytes[:count]
    return found if count < _BUFFER_BYTES else found + pending(tls)


def pieces(data: bytes) -> Iterable[bytes | memoryview]:
    """Return *data* in pieces for `write`."""
    if len(data) <= WRITE_BYTES:
        return (data,)
    view = memoryview(data)
    return [view[at : at + WRITE_BYTES] for at in range(0, len(data), WRITE_BYTES)]


def write(tls: Any, data: bytes | memoryview) -> bytes:
    """Return *data*, of at most WRITE_BYTES, encrypted.

    As in mitmproxy, what is said to a peer that has ended is lost. Raises SSL.Error.
    """
    size, at, ssl = len(data), 0, tls._ssl
    lent = data if type(data) is bytes else _from_buffer(data)
    while at < size:
        count = _ssl_write(ssl, _from_buffer(data) + at if at else lent, size - at)
        if count <= 0:
            error = _error(tls, count)
            if isinstance(error, SSL.ZeroReturnError | SSL.SysCallError):
                break
            raise error
        at += count
    return pending(tls)


def error_log(error: SSL.Error) -> commands.Log:
    """Return what mitmproxy says of an error of a peer."""
    return commands.Log(f"TLS Error: {error}", logging.WARNING)


# -- chunks

#: The first line of a chunk that is not the last, without extensions, as most write it.
_SIZE = re.compile(rb"([1-9a-fA-F][0-9a-fA-F]{0,7})\r\n")


class Streams(Protocol):
    """The HTTP layer of a client."""

    context: Context
    connections: dict[Connection, Any]
    streams: dict[int, HttpStream]


def chunks(data: bytes) -> list[bytes] | None:
    """Return what is in *data*, if that is whole chunks and nothing else."""
    found = []
    at, end = 0, len(data)
    while at < end:
        size = _SIZE.match(data, at)
        if size is None:
            return None
        begin = size.end()
        at = begin + int(size[1], 16)
        if data[at : at + 2] != b"\r\n":
            return None
        found.append(data[begin:at])
        at += 2
    return found


def relayed(http: Streams, server: Http1Client, data: bytes) -> HttpStream | None:
    """Return whose *data*, which came on *server*, goes to the client as it is; copy what does."""
    stream: Any = http.streams.get(server.stream_id or 0)
    copy = getattr(stream, "copy", None)
    if copy is None or stream._paused is not None or stream.usage_filter is not None:
        return None
    reader: Any = server.body_reader
    if (
        server.buf
        or stream.attempt_id != server.stream_id
        or not isinstance(reader, ChunkedReader)
        or reader._bytes_in_chunk
        or reader._bytes_to_discard
        or reader._reading_trailer
        or getattr(server.state, "__func__", None) is not Http1Connection.read_body
    ):
        return None
    ours = http.connections[http.context.client]
    if (
        getattr(type(ours), "send", None) is not Http1Server.send
        or ours.stream_id != stream.stream_id
        or ours.response is not stream.flow.response
        # HTTP/1 looks at them for each piece; nobody has changed them since it began.
        or copy.framed_by is not ours.response.headers.fields
    ):
        return None
    pieces = chunks(data)
    if not pieces:
        return None
    stream.heard = True
    for piece in pieces:
        copy.add(piece)
    return cast(HttpStream, stream)


# -- what is known


def knows_layers() -> bool:
    """Say whether the layers of mitmproxy hand on what this leaves them out of."""
    return _source() in KNOWN_LAYERS and knows_openssl()


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


def knows_chunks() -> bool:
    """Say whether chunks are read and written in the way that this leaves out."""
    source = digest(ChunkedReader.__call__, Http1Connection.read_body, Http1Server.send)
    return source in KNOWN_CHUNKS
