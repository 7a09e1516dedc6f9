"""A WebSocket of the scripted provider, after its handshake was accepted."""

from __future__ import annotations

import asyncio
import base64
import hashlib

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage

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
    if early:
        connection.receive_data(early)
    while True:
        for event in connection.events():
            writer.write(
                b"".join(connection.send(answer) for answer in _answers(event, exchange, reply))
            )
            if isinstance(event, CloseConnection):
                exchange.end(Ending.ANSWERED)
                return
        await writer.drain()
        if not (data := await reader.read(1 << 16)):
            return
        connection.receive_data(data)


def _answers(event: Event, exchange: Exchange, reply: Reply) -> list[Event]:
    match event:
        case Ping() | CloseConnection():
            return [event.response()]
        case TextMessage() | BytesMessage():
            message: Message = event.data if isinstance(event.data, str) else bytes(event.data)
            exchange.note_message(message)
            answers = reply.socket(message) if reply.socket else ()
            return [
                TextMessage(data=a) if isinstance(a, str) else BytesMessage(data=a) for a in answers
            ]
        case _:
            return []
