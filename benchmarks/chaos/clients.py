"""Clients that go through a proxy: HTTP/1.1 by h11, HTTP/2 by h2, each able to leave.

They hand back what they saw, and judge nothing.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum

import h11
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

from benchmarks.chaos.breaking import GARBAGE, under_tls
from benchmarks.chaos.plan import CLIENT, HEADER, Ask, Leave
from benchmarks.chaos.replies import ANTHROPIC, PATHS

READ_BYTES = 1 << 16
#: Seconds a slow reader takes before each piece.
SLOW_S = 0.01
#: How long after its client has left a fault may come, in seconds.
MOMENT_S = 2.0
#: Seconds between a tunnel and its TLS, where that comes late.
LATE_S = 0.2
#: Pieces after which who leaves in the middle of an answer does so.
ENOUGH = 2


class End(Enum):
    """How an answer ended, as its client sees it."""

    WHOLE = "whole"
    CUT = "cut"
    #: nothing came
    NONE = "none"
    LEFT = "left"
    HANG = "hang"


@dataclass(slots=True)
class Seen:
    """What a client saw of its answer.

    Attributes:
        company: rows of the requests that shared its connection: over HTTP/2 those at the
            same time or a moment before, over HTTP/1.1 the one before.
    """

    status: int | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    end: End = End.NONE
    note: str = ""
    company: set[str] = field(default_factory=set)

    def header(self, name: str) -> str:
        return next((value for n, value in self.headers if n == name), "")


class Gone(Exception):
    """The proxy ended the connection, or refused it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A proxy, and what is behind it.

    Attributes:
        ports: of the provider, by vendor.
    """

    proxy_port: int
    ports: dict[str, int]
    tls: dict[str, ssl.SSLContext]


#: Called when the whole request was handed to the socket.
OnSent = Callable[[], None]


def _nothing() -> None:
    pass


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def tunnel(target: Target, port: int, protocol: str, ask: Ask) -> Streams:
    """Open a tunnel to the provider's *port*, and TLS inside. Raises Gone, OSError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.proxy_port, limit=1 << 20)
    try:
        host = f"localhost:{port}"
        writer.write(f"CONNECT {host} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in answer.partition(b"\r\n")[0]:
            raise Gone(answer.decode("latin-1"))
        if ask.row.late_hello:
            await asyncio.sleep(LATE_S)
        await writer.start_tls(target.tls[protocol], server_hostname="localhost")
    except (asyncio.IncompleteReadError, ssl.SSLError) as error:
        writer.transport.abort()
        raise Gone(f"no tunnel: {error}") from None
    except BaseException:
        writer.transport.abort()
        raise
    return reader, writer


def fields_of(ask: Ask, port: int) -> list[tuple[str, str]]:
    """Return the header fields of a request, Host or :authority aside."""
    own = (
        ("x-api-key", CLIENT) if ask.vendor == ANTHROPIC else ("authorization", f"Bearer {CLIENT}")
    )
    more = [("anthropic-version", "2023-06-01")] if ask.vendor == ANTHROPIC else []
    if ask.session and ask.vendor == ANTHROPIC:
        more.append(("x-claude-code-session-id", ask.session))
    elif ask.session:
        more.append(("session_id", ask.session))
    return [own, *more, ("content-type", "application/json"), (HEADER, ask.mark)]


class H1Client:
    """One connection at a time, kept from request to request."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._open: tuple[int, Streams, h11.Connection] | None = None
        self._before: set[str] = set()

    async def ask(self, ask: Ask, port: int, seen: Seen, on_sent: OnSent = _nothing) -> None:
        """Send one request to the provider's *port*; *seen* is what came of it."""
        seen.company, self._before = self._before, {ask.row.name}
        try:
            await self._ask(ask, port, seen, on_sent)
        except (OSError, Gone, asyncio.IncompleteReadError, h11.RemoteProtocolError) as error:
            seen.end = End.NONE if seen.status is None else End.CUT
            seen.note = f"{type(error).__name__}: {error}"
        finally:
            if seen.end is not End.WHOLE:
                self.close()

    def close(self) -> None:
        if self._open is not None:
            self._open[1][1].transport.abort()
            self._open = None

    async def _ask(self, ask: Ask, port: int, seen: Seen, on_sent: OnSent) -> None:
        if self._open is None or self._open[0] != port:
            self.close()
            streams = await tunnel(self._target, port, "h1", ask)
            self._open = port, streams, h11.Connection(h11.CLIENT)
        if ask.leave is Leave.TUNNEL:
            seen.end = End.LEFT
            return
        _, (reader, writer), state = self._open
        body = ask.body()
        fields = [("host", f"localhost:{port}"), *fields_of(ask, port)]
        request = h11.Request(
            method="POST",
            target=PATHS[ask.vendor],
            headers=[*fields, ("content-length", f"{len(body)}")],
        )
        writer.write(_sent(state, request))
        if ask.leave is Leave.UPLOAD:
            writer.write(_sent(state, h11.Data(data=body[: len(body) // 2])))
            await writer.drain()
            seen.end = End.LEFT
            return
        writer.write(_sent(state, h11.Data(data=body)) + _sent(state, h11.EndOfMessage()))
        sending = asyncio.create_task(writer.drain())
        on_sent()
        try:
            if ask.leave is Leave.WAITING:
                async with asyncio.timeout(ask.patience_s):
                    await self._read(ask, reader, state, seen)
            else:
                await self._read(ask, reader, state, seen)
        except TimeoutError:
            seen.end = End.LEFT
        finally:
            sending.cancel()
        if seen.end is End.WHOLE:
            if state.our_state is h11.DONE and state.their_state is h11.DONE:
                state.start_next_cycle()
            else:
                self.close()

    async def _read(
        self, ask: Ask, reader: asyncio.StreamReader, state: h11.Connection, seen: Seen
    ) -> None:
        pieces = 0
        while True:
            match state.next_event():
                case h11.NEED_DATA:
                    if ask.slow:
                        await asyncio.sleep(SLOW_S)
                    state.receive_data(await reader.read(READ_BYTES))
                case h11.Response(status_code=status, headers=headers):
                    seen.status = status
                    seen.headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in headers]
                case h11.Data(data=data):
                    seen.body += data
                    pieces += 1
                    if ask.leave is Leave.BODY and pieces >= ENOUGH:
                        seen.end = End.LEFT
                        return
                    if ask.leave is Leave.GARBAGE:
                        seen.end = End.LEFT
                        await self._babble(reader)
                        return
                case h11.EndOfMessage():
                    seen.end = End.WHOLE
                    return
                case h11.ConnectionClosed():
                    raise Gone("closed")

    async def _babble(self, reader: asyncio.StreamReader) -> None:
        """Send what is no TLS, and see the proxy hang up."""
        assert self._open is not None
        under_tls(self._open[1][1], GARBAGE)
        with suppress(ssl.SSLError):
            while await reader.read(READ_BYTES):
                pass


def _sent(state: h11.Connection, event: h11.Event) -> bytes:
    return state.send(event) or b""


class H2Client:
    """One connection that many requests share; another once it has ended."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._connections: dict[int, asyncio.Task[_H2Connection]] = {}

    async def ask(self, ask: Ask, port: int, seen: Seen, on_sent: OnSent = _nothing) -> None:
        """Send one request to the provider's *port*; *seen* is what came of it."""
        try:
            connection = await self._connection(port, ask)
            if ask.leave is Leave.TUNNEL:
                seen.end = End.LEFT
                return
            await connection.ask(ask, port, seen, on_sent)
        except (OSError, Gone, asyncio.IncompleteReadError, ProtocolError) as error:
            seen.end = End.NONE if seen.status is None else End.CUT
            seen.note = f"{type(error).__name__}: {error}"

    def close(self) -> None:
        for task in self._connections.values():
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().abort()
            task.cancel()
        self._connections.clear()

    async def _connection(self, port: int, ask: Ask) -> _H2Connection:
        task = self._connections.get(port)
        if task is not None and task.done() and (task.cancelled() or task.exception()):
            task = None
        if task is None or (task.done() and not task.result().is_usable):
            task = self._connections[port] = asyncio.create_task(self._connect(port, ask))
        return await asyncio.shield(task)

    async def _connect(self, port: int, ask: Ask) -> _H2Connection:
        return _H2Connection(*await tunnel(self._target, port, "h2", ask))


class _H2Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._queues: dict[int, asyncio.Queue[events.Event | None]] = {}
        self._seen: dict[int, tuple[Ask, Seen]] = {}
        #: rows of those that have ended, and when: a fault may come after its client has left
        self._before: deque[tuple[float, str]] = deque()
        self._opening = asyncio.Event()
        self._asked = 0
        self.is_usable = writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        if not self.is_usable:
            raise Gone("the proxy does not speak HTTP/2")
        self._h2.initiate_connection()
        self._flush()
        self._reading = asyncio.create_task(self._read())

    def abort(self) -> None:
        self.is_usable = False
        self._reading.cancel()
        self._writer.transport.abort()

    async def ask(self, ask: Ask, port: int, seen: Seen, on_sent: OnSent) -> None:
        number = self._h2.get_next_available_stream_id()
        self._asked += 1
        # Connections come and go, as those of real clients do.
        self.is_usable = self.is_usable and self._asked < 150
        queue = self._queues[number] = asyncio.Queue()
        for other, its in self._seen.values():
            its.company.add(ask.row.name)
            seen.company.add(other.row.name)
        while self._before and self._before[0][0] < time.monotonic() - MOMENT_S:
            self._before.popleft()
        seen.company.update(name for _, name in self._before)
        self._seen[number] = ask, seen
        pseudo = [
            (":method", "POST"), (":scheme", "https"),
            (":authority", f"localhost:{port}"), (":path", PATHS[ask.vendor]),
        ]  # fmt: skip
        body = ask.body()
        length = ("content-length", f"{len(body)}")
        self._h2.send_headers(number, [*pseudo, *fields_of(ask, port), length])
        sending = None
        try:
            if ask.leave is Leave.UPLOAD:
                await self._send(number, body[: len(body) // 2], end=False)
                seen.end = End.LEFT
                return
            sending = asyncio.create_task(self._send(number, body, end=True))
            on_sent()
            if ask.leave is Leave.WAITING:
                async with asyncio.timeout(ask.patience_s):
                    await self._answer(ask, number, queue, seen)
            else:
                await self._answer(ask, number, queue, seen)
        except TimeoutError:
            seen.end = End.LEFT
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            del self._queues[number], self._seen[number]
            # What came and was not read takes room on the connection, which all share.
            while not queue.empty():
                if isinstance(event := queue.get_nowait(), events.DataReceived):
                    self._acknowledge(event.flow_controlled_length or 0, number)
            self._before.append((time.monotonic(), ask.row.name))
            if seen.end is not End.WHOLE and self.is_usable:
                self._reset(number)

    def _reset(self, number: int) -> None:
        try:
            self._h2.reset_stream(number, ErrorCodes.CANCEL)
            self._flush()
        except ProtocolError:
            return  # it is over already

    async def _send(self, number: int, data: bytes, *, end: bool) -> None:
        while data:
            room = min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size)
            if room <= 0:
                await self._opening.wait()
                continue
            self._h2.send_data(number, data[:room])
            data = data[room:]
            self._flush()
            await self._writer.drain()
        if end:
            self._h2.end_stream(number)
        self._flush()

    async def _answer(
        self, ask: Ask, number: int, queue: asyncio.Queue[events.Event | None], seen: Seen
    ) -> None:
        pieces = 0
        while True:
            match await queue.get():
                case events.ResponseReceived(headers=headers):
                    fields = [(str(name), str(value)) for name, value in headers or ()]
                    seen.status = int(dict(fields)[":status"])
                    seen.headers = fields
                case events.DataReceived(data=data, flow_controlled_length=size):
                    if ask.slow:
                        await asyncio.sleep(SLOW_S)
                    seen.body += data or b""
                    pieces += 1
                    self._acknowledge(size or 0, number)
                    if ask.leave is Leave.BODY and pieces >= ENOUGH:
                        seen.end = End.LEFT
                        return
                case events.StreamEnded():
                    seen.end = End.WHOLE
                    return
                case events.StreamReset(error_code=code):
                    raise Gone(f"stream reset: {code}")
                case None:
                    raise Gone("the connection ended")
                case _:
                    pass

    def _acknowledge(self, size: int, number: int) -> None:
        try:
            self._h2.acknowledge_received_data(size, number)
            self._flush()
        except ProtocolError:
            return

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(READ_BYTES):
                for event in self._h2.receive_data(data):
                    number = getattr(event, "stream_id", None)
                    queue = self._queues.get(number) if number else None
                    if queue is not None:
                        queue.put_nowait(event)
                    elif isinstance(event, events.DataReceived):
                        self._h2.acknowledge_received_data(
                            event.flow_controlled_length or 0, number or 0
                        )
                    if isinstance(event, events.WindowUpdated | events.RemoteSettingsChanged):
                        self._opening.set()
                        self._opening = asyncio.Event()
                    if isinstance(event, events.ConnectionTerminated):
                        self.is_usable = False
                self._flush()
        except (OSError, ProtocolError):
            pass
        finally:
            self.is_usable = False
            for queue in self._queues.values():
                queue.put_nowait(None)
            self._writer.transport.abort()

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._writer.write(data)
