"""A provider that does what a script says: TLS on loopback, HTTP/1.1 and HTTP/2.

It records what it received, byte for byte, and never interprets it: what a request means is
the script's business.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import ssl
import struct
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from http import HTTPStatus, client
from types import TracebackType

import h11
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from tests.upstream.certificates import Certificate
from tests.upstream.exchange import (
    Ending,
    Exchange,
    Fault,
    Framing,
    Headers,
    Journal,
    Message,
    Reply,
    Request,
    Script,
    find_header,
)

_READ_BYTES = 1 << 16


class Provider:
    """Serves a script for as long as its `async with` block runs.

    Args:
        script: says what is answered.
        certificate: of the TLS server; None for plain HTTP.
        alpn: protocols offered, in order of preference.
    """

    def __init__(
        self,
        script: Script,
        certificate: Certificate | None = None,
        alpn: Sequence[str] = ("h2", "http/1.1"),
    ) -> None:
        self.journal = Journal(script)
        self._tls = certificate.server_context(alpn) if certificate else None
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None, "the provider is not running"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}"

    async def __aenter__(self) -> Provider:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        chosen = tls.selected_alpn_protocol() if tls else None
        connection_class = Http2Connection if chosen == "h2" else Http1Connection
        # The client may go away, or talk nonsense, at any moment: both end the connection.
        try:
            with suppress(OSError, h11.RemoteProtocolError):
                await connection_class(self.journal, reader, writer).run()
        finally:
            writer.close()


# -- HTTP/1.1: h11 keeps its rules; here are the ways in which real servers fail

#: RFC 6455, section 1.3.
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accept_headers(request: Request) -> Headers:
    """Return the headers that accept the handshake *request*."""
    key = (request.header("sec-websocket-key") or "") + _GUID
    accept = base64.b64encode(hashlib.sha1(key.encode(), usedforsecurity=False).digest())
    return (
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-accept", accept.decode()),
    )


async def serve_websocket(
    exchange: Exchange,
    reply: Reply,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    early: bytes,
) -> None:
    """Answer each message as *reply* says until the client closes.

    *early* is what arrived together with the handshake.
    """
    connection = Connection(ConnectionType.SERVER)
    parts: list[Message] = []
    if early:
        connection.receive_data(early)
    while True:
        for event in connection.events():
            match event:
                case Ping():
                    writer.write(connection.send(event.response()))
                case CloseConnection():
                    writer.write(connection.send(event.response()))
                    exchange.end(Ending.ANSWERED)
                    return
                case TextMessage() | BytesMessage():
                    # A long message comes in pieces, one per read of the socket.
                    parts.append(event.data if isinstance(event.data, str) else bytes(event.data))
                    if event.message_finished:
                        message = _joined(parts)
                        parts = []
                        exchange.note_message(message)
                        writer.write(_answers(connection, message, reply))
                case _:
                    pass
        await writer.drain()
        if not (data := await reader.read(_READ_BYTES)):
            return
        connection.receive_data(data)


def _joined(parts: list[Message]) -> Message:
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) or b"".join(part for part in parts if isinstance(part, bytes))


def _answers(connection: Connection, message: Message, reply: Reply) -> bytes:
    answers = reply.socket(message) if reply.socket else ()
    return b"".join(
        connection.send(TextMessage(data=a) if isinstance(a, str) else BytesMessage(data=a))
        for a in answers
    )


class Http1Connection:
    """Serves requests one after the other until either side is done."""

    def __init__(
        self, journal: Journal, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._journal = journal
        self._reader = reader
        self._writer = writer
        self._h11 = h11.Connection(h11.SERVER)
        self._number = journal.connect()
        self._count = 0

    async def run(self) -> None:
        while (exchange := await self._receive()) is not None:
            reply = self._journal.answer(exchange)
            try:
                if reply.status == HTTPStatus.SWITCHING_PROTOCOLS:
                    return await self._switch_protocols(exchange, reply)
                if not await self._while_connected(self._respond(exchange, reply)):
                    return None
            finally:
                # Whatever interrupted the answer, the other side did not get all of it.
                exchange.end(Ending.LEFT)
            self._h11.start_next_cycle()
        return None

    async def _receive(self) -> Exchange | None:
        """Return the next request, complete; None when the client is gone."""
        exchange: Exchange | None = None
        while True:
            event = self._h11.next_event()
            match event:
                case h11.NEED_DATA:
                    if self._h11.they_are_waiting_for_100_continue:
                        await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                    if not (data := await self._reader.read(_READ_BYTES)):
                        if exchange:
                            exchange.end(Ending.LEFT)
                        return None
                    self._h11.receive_data(data)
                case h11.Request():
                    exchange = self._begin(event)
                case h11.Data() if exchange:
                    self._journal.receive(exchange, bytes(event.data))
                case h11.EndOfMessage():
                    return exchange
                case _:
                    return None

    def _begin(self, event: h11.Request) -> Exchange:
        self._count += 1
        headers = tuple(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in event.headers.raw_items()
        )
        return self._journal.begin(
            connection=self._number,
            on_connection=self._count,
            http_version=event.http_version.decode(),
            method=event.method.decode(),
            host=find_header(headers, "host") or "",
            path=event.target.decode("latin-1"),
            headers=headers,
        )

    async def _while_connected(self, answering: Coroutine[None, None, bool]) -> bool:
        """Run *answering* until it is done or the client leaves; say whether to go on."""
        answer = asyncio.ensure_future(answering)
        departure = asyncio.ensure_future(self._read_until_departure())
        try:
            await asyncio.wait({answer, departure}, return_when=asyncio.FIRST_COMPLETED)
            return answer.done() and answer.result()
        finally:
            for task in (answer, departure):
                task.cancel()
            await asyncio.gather(answer, departure, return_exceptions=True)

    async def _read_until_departure(self) -> None:
        # What a client sends meanwhile (a pipelined request) is kept for later.
        while data := await self._reader.read(_READ_BYTES):
            self._h11.receive_data(data)

    async def _respond(self, exchange: Exchange, reply: Reply) -> bool:
        """Do what *reply* says. Returns whether another request may follow."""
        if reply.not_before is not None:
            await reply.not_before.wait()
        if reply.fault and await self._fail_early(exchange, reply.fault):
            return False
        if reply.framing is Framing.CLOSE:
            await self._send_until_close(exchange, reply)
        else:
            await self._send(h11.Response(status_code=reply.status, headers=_head(reply)))
            await exchange.play(reply.steps, lambda data: self._send(h11.Data(data=data)))
        if reply.fault is Fault.BREAK:
            exchange.end(Ending.FAULT)
            self._reset()
            return False
        if reply.framing is not Framing.CLOSE:
            await self._send(h11.EndOfMessage(), exchange)
        exchange.end(Ending.ANSWERED)
        return self._h11.our_state is h11.DONE and not reply.hang_up

    async def _fail_early(self, exchange: Exchange, fault: Fault) -> bool:
        """Do what *fault* says if it comes before any answer; say whether it did."""
        match fault:
            case Fault.SILENCE:
                await asyncio.Event().wait()
            case Fault.HANG_UP | Fault.REFUSED:
                exchange.end(Ending.FAULT)
            case Fault.RESET:
                exchange.end(Ending.FAULT)
                self._reset()
            case Fault.BREAK:
                return False
        return True

    async def _send(self, event: h11.Event, last_of: Exchange | None = None) -> None:
        if data := self._h11.send(event):
            self._writer.write(data)
        if last_of:
            # Before the drain: a client may leave as soon as it has the last byte.
            last_of.end(Ending.ANSWERED)
        await self._writer.drain()

    async def _send_until_close(self, exchange: Exchange, reply: Reply) -> None:
        """Send a body whose end is the end of the connection.

        By hand, because h11 turns it into chunks for a client that knows HTTP/1.1.
        """
        lines = [
            f"HTTP/1.1 {reply.status} {client.responses.get(reply.status, '')}",
            "connection: close",
        ]
        lines += [f"{name}: {value}" for name, value in reply.headers]

        async def send(data: bytes) -> None:
            self._writer.write(data)
            await self._writer.drain()

        await send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        await exchange.play(reply.steps, send)

    async def _switch_protocols(self, exchange: Exchange, reply: Reply) -> None:
        headers = accept_headers(exchange.request) + reply.headers
        await self._send(h11.InformationalResponse(status_code=101, headers=list(headers)))
        early, _closed = self._h11.trailing_data
        await serve_websocket(exchange, reply, self._reader, self._writer, early)

    def _reset(self) -> None:
        # Linger 0 turns the close into a TCP reset.
        linger = struct.pack("ii", 1, 0)
        with suppress(OSError):
            sock = self._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()


def _head(reply: Reply) -> list[tuple[str, str]]:
    """Return the headers of *reply* with the framing it asks for."""
    headers: Headers = reply.headers
    if reply.framing is Framing.LENGTH and find_header(headers, "content-length") is None:
        headers += (("content-length", str(len(reply.body))),)
    return list(headers)


# -- HTTP/2: h2 keeps its rules; a task for each request, so that none holds up the others

#: Headers of one connection only; HTTP/2 forbids them (RFC 9113, section 8.2.2).
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade"})


class Http2Connection:
    """Serves all streams of one connection until either side is done."""

    def __init__(
        self, journal: Journal, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._journal = journal
        self._reader = reader
        self._writer = writer
        config = H2Configuration(client_side=False, header_encoding="utf-8")
        self._h2 = H2Connection(config=config)
        self._number = journal.connect()
        self._count = 0
        self._receiving: dict[int, Exchange] = {}
        self._answering: dict[int, asyncio.Task[None]] = {}
        self._window_opened = asyncio.Event()

    async def run(self) -> None:
        self._h2.initiate_connection()
        try:
            await self._flush()
            while data := await self._reader.read(_READ_BYTES):
                for event in self._h2.receive_data(data):
                    self._handle(event)
                await self._flush()
        except ProtocolError:
            # The other side broke the rules: h2 has queued the GOAWAY that says so.
            await self._flush()
        finally:
            for exchange in self._receiving.values():
                exchange.end(Ending.LEFT)
            for task in self._answering.values():
                task.cancel()
            await asyncio.gather(*self._answering.values(), return_exceptions=True)

    def _handle(self, event: events.Event) -> None:
        match event:
            case events.RequestReceived():
                self._begin(event)
            case events.DataReceived():
                if exchange := self._receiving.get(event.stream_id):
                    self._journal.receive(exchange, event.data)
                # At once: nothing here needs the client to slow down.
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case events.StreamEnded():
                if exchange := self._receiving.pop(event.stream_id, None):
                    self._start(event.stream_id, exchange)
            case events.StreamReset():
                if exchange := self._receiving.pop(event.stream_id, None):
                    exchange.end(Ending.LEFT)
                if task := self._answering.get(event.stream_id):
                    task.cancel()
            case events.WindowUpdated() | events.RemoteSettingsChanged():
                self._window_opened.set()
                self._window_opened = asyncio.Event()
            case _:
                pass

    def _begin(self, event: events.RequestReceived) -> None:
        self._count += 1
        fields = [(str(name), str(value)) for name, value in event.headers]
        pseudo = dict(field for field in fields if field[0].startswith(":"))
        self._receiving[event.stream_id] = self._journal.begin(
            connection=self._number,
            on_connection=self._count,
            http_version="2",
            method=pseudo[":method"],
            host=pseudo.get(":authority", ""),
            path=pseudo[":path"],
            headers=tuple(field for field in fields if not field[0].startswith(":")),
        )

    def _start(self, stream_id: int, exchange: Exchange) -> None:
        reply = self._journal.answer(exchange)
        task = asyncio.create_task(self._answer(stream_id, exchange, reply))
        self._answering[stream_id] = task
        task.add_done_callback(lambda _task: self._answering.pop(stream_id, None))

    async def _answer(self, stream_id: int, exchange: Exchange, reply: Reply) -> None:
        try:
            await self._respond(stream_id, exchange, reply)
        except (OSError, ProtocolError):
            # The connection or the stream went away under us: that is the client leaving.
            return
        finally:
            exchange.end(Ending.LEFT)

    async def _respond(self, stream_id: int, exchange: Exchange, reply: Reply) -> None:
        if reply.not_before is not None:
            await reply.not_before.wait()
        if reply.fault and await self._fail_early(stream_id, exchange, reply.fault):
            return
        fields = [(name.lower(), value) for name, value in reply.headers]
        head = [(":status", str(reply.status))]
        head += [field for field in fields if field[0] not in _HOP_BY_HOP]
        self._h2.send_headers(stream_id, head)
        await self._flush()
        await exchange.play(reply.steps, lambda data: self._send(stream_id, data))
        if reply.fault is Fault.BREAK:
            await self._reset(stream_id, exchange, ErrorCodes.INTERNAL_ERROR)
            return
        self._h2.end_stream(stream_id)
        exchange.end(Ending.ANSWERED)
        await self._flush()
        if reply.hang_up:
            self._writer.close()

    async def _fail_early(self, stream_id: int, exchange: Exchange, fault: Fault) -> bool:
        """Do what *fault* says if it comes before any answer; say whether it did."""
        match fault:
            case Fault.SILENCE:
                await asyncio.Event().wait()
            case Fault.HANG_UP:
                exchange.end(Ending.FAULT)
                self._writer.close()
            case Fault.RESET:
                await self._reset(stream_id, exchange, ErrorCodes.INTERNAL_ERROR)
            case Fault.REFUSED:
                await self._reset(stream_id, exchange, ErrorCodes.REFUSED_STREAM)
            case Fault.BREAK:
                return False
        return True

    async def _reset(self, stream_id: int, exchange: Exchange, code: ErrorCodes) -> None:
        self._h2.reset_stream(stream_id, code)
        exchange.end(Ending.FAULT)
        await self._flush()

    async def _send(self, stream_id: int, data: bytes) -> None:
        """Send *data* in frames as large and as soon as the client's windows allow."""
        while data:
            room = min(
                self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size
            )
            if room <= 0:
                await self._window_opened.wait()
                continue
            self._h2.send_data(stream_id, data[:room])
            data = data[room:]
            await self._flush()

    async def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._writer.write(data)
        await self._writer.drain()
