"""A WebSocket of the scripted provider, after its handshake was accepted."""

from __future__ import annotations

import asyncio
import base64
import hashlib

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from account_pool.demo.exchange import Ending, Exchange, Headers, Message, Reply, Request

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
