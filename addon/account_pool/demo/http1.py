"""One HTTP/1.1 connection of the scripted provider.

h11 keeps the rules of HTTP; this module reads, asks the script, and does what the
reply says, including the ways in which real servers fail.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import struct
from collections.abc import Coroutine
from contextlib import suppress
from http import HTTPStatus, client

import h11
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from account_pool.demo.exchange import (
    Ending,
    Exchange,
    Fault,
    Framing,
    Headers,
    Journal,
    Message,
    Reply,
    Request,
    find_header,
)

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
        if not (data := await reader.read(1 << 16)):
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


READ_BYTES = 1 << 16


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
                    if not (data := await self._reader.read(READ_BYTES)):
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
        while data := await self._reader.read(READ_BYTES):
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
