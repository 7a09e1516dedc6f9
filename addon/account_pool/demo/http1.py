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
from contextlib import suppress
from http import HTTPStatus

import h11
from wsproto.connection import Connection as WebSocket
from wsproto.connection import ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from account_pool.demo.exchange import (
    Ending,
    Exchange,
    Fault,
    Framing,
    Headers,
    Message,
    Pause,
    Reply,
    Step,
    find_header,
)
from account_pool.demo.journal import Journal

READ_BYTES = 1 << 16
#: RFC 6455, section 1.3.
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


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
                keep = await self._while_connected(self._respond(exchange, reply))
            finally:
                # Whatever interrupted the answer, the other side did not get it.
                exchange.end(Ending.LEFT)
            if not keep:
                return
            self._h11.start_next_cycle()

    async def _receive(self) -> Exchange | None:
        """Return the next request, complete; None when the client is gone."""
        exchange: Exchange | None = None
        while True:
            event = self._h11.next_event()
            match event:
                case h11.NEED_DATA:
                    if self._h11.they_are_waiting_for_100_continue:
                        self._send(h11.InformationalResponse(status_code=100, headers=[]))
                    data = await self._reader.read(READ_BYTES)
                    if not data and exchange:
                        exchange.end(Ending.LEFT)
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
        headers = tuple((k.decode("latin-1"), v.decode("latin-1")) for k, v in event.headers.raw_items())
        return self._journal.begin(
            connection=self._number,
            on_connection=self._count,
            http_version=event.http_version.decode(),
            method=event.method.decode(),
            host=find_header(headers, "host") or "",
            path=event.target.decode("latin-1"),
            headers=headers,
        )

    async def _while_connected(self, answering: asyncio._CoroutineLike[bool]) -> bool:
        """Run *answering* until it is done or the client leaves; say whether to go on.

        What a client sends meanwhile (a pipelined request) is kept for later.
        """
        answer = asyncio.ensure_future(answering)
        departure = asyncio.ensure_future(self._read_until_departure())
        try:
            await asyncio.wait({answer, departure}, return_when=asyncio.FIRST_COMPLETED)
            return answer.done() and answer.result()
        finally:
            for task in (answer, departure):
                task.cancel()
                with suppress(asyncio.CancelledError, OSError):
                    await task

    async def _read_until_departure(self) -> None:
        while data := await self._reader.read(READ_BYTES):
            self._h11.receive_data(data)

    async def _respond(self, exchange: Exchange, reply: Reply) -> bool:
        """Do what *reply* says. Returns whether another request may follow."""
        match reply.fault:
            case Fault.SILENCE:
                await asyncio.Event().wait()
            case Fault.HANG_UP | Fault.REFUSED:
                exchange.end(Ending.FAULT)
                return False
            case Fault.RESET:
                exchange.end(Ending.FAULT)
                self._reset()
                return False
        if reply.status == HTTPStatus.SWITCHING_PROTOCOLS:
            return await self._websocket(exchange, reply)
        if reply.framing is Framing.CLOSE:
            return await self._respond_until_close(exchange, reply)

        self._send(h11.Response(status_code=reply.status, headers=_head(reply)))
        await self._send_steps(exchange, reply.steps)
        if reply.fault is Fault.BREAK:
            exchange.end(Ending.FAULT)
            self._reset()
            return False
        self._send(h11.EndOfMessage())
        exchange.end(Ending.ANSWERED)
        await self._writer.drain()
        return self._h11.our_state is h11.DONE and not reply.hang_up

    async def _send_steps(self, exchange: Exchange, steps: "Sequence[Step]") -> None:
        for step in steps:
            match step:
                case Pause(seconds):
                    await asyncio.sleep(seconds)
                case asyncio.Event():
                    await step.wait()
                case bytes():
                    self._send(h11.Data(data=step))
                    await self._writer.drain()
            exchange.step_done()

    async def _respond_until_close(self, exchange: Exchange, reply: Reply) -> bool: ...

    def _send(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data:
            self._writer.write(data)
