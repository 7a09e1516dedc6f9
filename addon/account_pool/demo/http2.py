"""One HTTP/2 connection of the scripted provider.

h2 keeps the rules of the protocol; each request is answered by a task of its own,
so that a stream that waits does not hold up the others.
"""

from __future__ import annotations

import asyncio

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

from account_pool.demo.exchange import Ending, Exchange, Fault, Journal, Reply

READ_BYTES = 1 << 16
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
            while data := await self._reader.read(READ_BYTES):
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
