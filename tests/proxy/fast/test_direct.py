"""What a connection receives comes to the layers as by mitmproxy: all, in order, no faster."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import hashlib
import random
import socket
import struct
import weakref
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import SimpleNamespace

import pytest
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events, layer, layers, server_hooks
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server import ConnectionHandler
from mitmproxy.test import taddons
from mitmproxy.version import VERSION
from packaging.version import Version

from account_pool.proxy import client_handler
from account_pool.proxy.fast.handler import READ_BYTES, EventQueue
from account_pool.proxy.fast.known import knows_reading
from account_pool.proxy.fast.steps import Steps
from tests.patience import PATIENCE_S
from tests.proxy.fast.known import NEWEST, needs_asyncio, needs_known

pytestmark = [needs_known, needs_asyncio, pytest.mark.usefixtures("factory")]

STEPS = {"mitmproxy": (), "inline": ("table", "inline"), "direct": ("table", "inline", "direct")}
each = pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
BLOCK = random.Random(1).randbytes(1 << 16)


class Passing:
    """A proxy that passes on what it gets; between a client and *serve*."""

    def __init__(self, tctx, address, steps, make=None) -> None:
        self._tctx, self._address, self._make = tctx, address, make
        self.steps = Steps(tctx.master.addons)
        self.steps.use(steps)
        self.handler: ProxyConnectionHandler | None = None
        self.drains = 0
        self.over = asyncio.Event()

    async def serve(self, reader, writer) -> None:
        tctx = self._tctx
        self.handler = handler = ProxyConnectionHandler(
            tctx.master, reader, writer, tctx.options, ProxyMode.parse("regular")
        )
        assert self.steps.take(handler) is bool(self.steps.used)
        context = handler.layer.context
        context.server.address = self._address
        handler.layer = self._make(context) if self._make else layers.TCPLayer(context, ignore=True)
        drain = handler.drain_writers

        async def drain_writers() -> None:
            self.drains += 1
            await drain()

        handler.drain_writers = drain_writers
        proxyserver = SimpleNamespace(connections={handler.client.id: handler}, name="proxyserver")
        tctx.master.addons.lookup["proxyserver"] = proxyserver
        try:
            await handler.handle_client()
        finally:
            self.over.set()

    @property
    def is_connected(self) -> bool:
        """Whether the tasks of its connections wait for data, or had some."""
        transports = self.handler.transports if self.handler is not None else {}
        return len(transports) == (1 if self._make else 2) and all(
            io.reader is not None and (io.reader._waiter or io.reader._buffer or self.drains)
            for io in transports.values()
        )

    @property
    def server(self):
        """The connection to the server."""
        assert self.handler is not None
        return next(x for x in self.handler.transports if x is not self.handler.client)

    def is_waiting(self, one, other) -> bool:
        """Whether nothing is read from *one* until *other* takes some of a little that is kept."""
        unsent = self.handler.transports[other].writer.transport.get_write_buffer_size()
        assert unsent < 1 << 20
        read = self.handler.transports[one]
        return unsent > 1 << 16 and not read.writer.transport.is_reading()


@asynccontextmanager
async def passing(serve, steps, hooks=None, **how):
    """A client that is connected through a proxy to *serve*: the proxy, and its streams."""

    serving = []

    async def served(reader, writer) -> None:
        serving.append(asyncio.current_task())
        try:
            with suppress(ConnectionError):
                await serve(reader, writer)
        finally:
            writer.close()

    async def stop() -> None:
        for task in serving:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async with AsyncExitStack() as stack:
        tctx = stack.enter_context(taddons.context())
        tctx.master.addons.add(SimpleNamespace(name="scripted", **(hooks or {})))
        upstream = await asyncio.start_server(served, "127.0.0.1", 0)
        stack.callback(upstream.close)
        stack.push_async_callback(stop)
        address = upstream.sockets[0].getsockname()[:2]
        proxy = Passing(tctx, address, steps, **how)
        listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        stack.callback(listening.close)
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname()[:2])
        stack.callback(writer.close)
        await until(lambda: proxy.is_connected)
        async with asyncio.timeout(PATIENCE_S):
            yield proxy, reader, writer


async def until(condition) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0)


async def echo(reader, writer) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def send(writer, size: int) -> None:
    for at in range(0, size, len(BLOCK)):
        writer.write(BLOCK[: size - at])
        await writer.drain()


def feed(protocol, data: bytes) -> None:
    """Let a connection receive *data* at once."""
    if isinstance(protocol, asyncio.BufferedProtocol):
        protocol.get_buffer(-1)[: len(data)] = data
        protocol.buffer_updated(len(data))
    else:
        protocol.data_received(data)


async def receive(reader) -> tuple[int, str]:
    """Return how much comes until the end, and its hash."""
    digest, size = hashlib.sha256(), 0
    while data := await reader.read(1 << 16):
        digest.update(data)
        size += len(data)
    return size, digest.hexdigest()


def sent(size: int) -> tuple[int, str]:
    whole = BLOCK * (size // len(BLOCK) + 1)
    return size, hashlib.sha256(whole[:size]).hexdigest()


def reset(writer) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def test_it_is_known_here() -> None:
    """Where it is not, mitmproxy's own way is taken: correct, but nobody would notice."""
    assert knows_reading() or Version(VERSION) > NEWEST


async def test_the_task_of_a_connection_sleeps_on() -> None:
    async with passing(echo, STEPS["direct"]) as (proxy, reader, writer):
        for number in range(100):
            writer.write(b"%d" % number)
            assert await reader.read(10) == b"%d" % number
        assert proxy.drains == 0


@each
@pytest.mark.parametrize("size", [100_000, 1_000_000, 10_000_000])
async def test_all_that_was_sent_comes(size: int, steps) -> None:
    async with passing(echo, steps) as (proxy, reader, writer):
        coming = asyncio.create_task(receive(reader))
        await send(writer, size)
        writer.write_eof()
        assert await coming == sent(size)
        await proxy.over.wait()


@each
@pytest.mark.parametrize("minds", [False, True], ids=["mitmproxy's drain", "ours"])
async def test_who_does_not_read_is_waited_for(minds: bool, steps) -> None:
    """Nothing more is read from a server whose client reads nothing."""
    size = 64 << 20

    async def serve(_reader, writer) -> None:
        await send(writer, size)

    async with passing(serve, steps) as (proxy, reader, writer):
        if minds:
            client_handler.keep_unread(proxy.handler.client)
        server, client = proxy.server, proxy.handler.client
        await until(lambda: proxy.is_waiting(server, client))
        assert await receive(reader) == sent(size)
        writer.close()
        await proxy.over.wait()


@each
async def test_a_server_that_does_not_read_is_waited_for(steps) -> None:
    size, go_on = 64 << 20, asyncio.Event()
    got = asyncio.get_running_loop().create_future()

    async def serve(reader, _writer) -> None:
        await go_on.wait()
        got.set_result(await receive(reader))

    async with passing(serve, steps) as (proxy, reader, writer):
        sending = asyncio.create_task(send(writer, size))
        server, client = proxy.server, proxy.handler.client
        await until(lambda: proxy.is_waiting(client, server))
        go_on.set()
        await sending
        writer.write_eof()
        assert await got == sent(size)
        assert await reader.read() == b""
        await proxy.over.wait()


@each
@pytest.mark.parametrize("first", ["client", "server"])
async def test_half_closed(first: str, steps) -> None:
    """Who has said all still hears the rest."""
    size, said = 1_000_000, asyncio.get_running_loop().create_future()

    async def serve(reader, writer) -> None:
        if first == "server":
            await send(writer, size)
            writer.write_eof()
        said.set_result(await receive(reader))
        if first == "client":
            await send(writer, size)

    async with passing(serve, steps) as (proxy, reader, writer):
        if first == "server":
            assert await receive(reader) == sent(size)
        await send(writer, size)
        writer.write_eof()
        assert await said == sent(size)
        if first == "client":
            assert await receive(reader) == sent(size)
        await proxy.over.wait()


@each
@pytest.mark.parametrize("half", [False, True], ids=["open", "half-closed"])
async def test_a_client_that_is_reset(half: bool, steps) -> None:
    """Also one that had said all, of which nothing is read any more."""
    left = asyncio.Event()

    async def serve(_reader, writer) -> None:
        try:
            while True:
                writer.write(b"tick")
                await writer.drain()
                await asyncio.sleep(0)
        finally:
            left.set()

    async with passing(serve, steps) as (proxy, reader, writer):
        await reader.readexactly(100)
        if half:
            writer.write_eof()
            await until(lambda: proxy.handler.client.state is ConnectionState.CAN_WRITE)
        reset(writer)
        await left.wait()
        await proxy.over.wait()


@each
async def test_a_half_closed_client_that_is_lost_by_the_last_write(steps) -> None:
    """The server says no more, and nobody reads from the client: nothing else would tell."""
    go_on = asyncio.Event()

    async def serve(_reader, writer) -> None:
        writer.write(b"one")
        await go_on.wait()
        writer.write(b"two")
        await asyncio.get_running_loop().create_future()

    async with passing(serve, steps) as (proxy, reader, writer):
        client = proxy.handler.client
        writer.write_eof()
        assert await reader.readexactly(3) == b"one"
        await until(lambda: client.state is ConnectionState.CAN_WRITE)
        to_client = proxy.handler.transports[client].writer
        to_client.write = lambda _data: to_client.transport.abort()
        go_on.set()
        await proxy.over.wait()


@each
async def test_a_server_that_is_reset(steps) -> None:
    async def serve(reader, writer) -> None:
        await reader.readexactly(5)
        writer.write(b"there")
        await writer.drain()
        await reader.readexactly(5)
        reset(writer)

    async with passing(serve, steps) as (proxy, reader, writer):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"there"
        writer.write(b"again")
        assert await reader.read() == b""
        writer.close()
        await proxy.over.wait()


class Closing(layer.Layer):
    """Closes its client's connection at the first piece; notes all that comes."""

    def __init__(self, context) -> None:
        super().__init__(context)
        self.came: list[events.Event] = []

    def _handle_event(self, event):
        self.came.append(event)
        if isinstance(event, events.DataReceived):
            yield commands.CloseConnection(event.connection)


async def test_nothing_comes_from_what_was_closed() -> None:
    async with passing(echo, STEPS["direct"], make=Closing) as (proxy, _reader, _writer):
        io = proxy.handler.transports[proxy.handler.client]
        protocol = io.writer.transport.get_protocol()
        asyncio.get_running_loop().call_soon(feed, protocol, bytes(200_000))
        asyncio.get_running_loop().call_soon(feed, protocol, b"more")
        await proxy.over.wait()
    kinds = [type(event) for event in proxy.handler.layer.came]
    assert kinds == [events.Start, events.DataReceived, events.ConnectionClosed]
    assert len(proxy.handler.layer.came[1].data) == READ_BYTES


@each
async def test_long_pieces_come_as_mitmproxy_reads_them(steps) -> None:
    class Noting(Closing):
        def _handle_event(self, event):
            self.came.append(event)
            if isinstance(event, events.ConnectionClosed):
                yield commands.CloseConnection(event.connection)

    async with passing(echo, steps, make=Noting) as (proxy, _reader, writer):
        io = proxy.handler.transports[proxy.handler.client]
        protocol = io.writer.transport.get_protocol()
        asyncio.get_running_loop().call_soon(feed, protocol, bytes(200_000))
        came = proxy.handler.layer.came
        await until(lambda: sum(len(x.data) for x in came[1:]) == 200_000)
        writer.close()
        await proxy.over.wait()
    assert [len(x.data) for x in came[1:-1]] == [65535, 65535, 65535, 3395]


async def test_long_pieces_come_whole_where_they_take_the_short_way() -> None:
    """They are encrypted: in which pieces they come, nobody sees."""

    class Noting(Closing):
        def _handle_event(self, event):
            self.came.append(event)
            if isinstance(event, events.ConnectionClosed):
                yield commands.CloseConnection(event.connection)

    async with passing(echo, STEPS["direct"], make=Noting) as (proxy, _reader, writer):
        io = proxy.handler.transports[proxy.handler.client]
        queue = proxy.handler.server_event.__self__
        queue.way = SimpleNamespace(run=queue.hand_on, copying=None)
        protocol = io.writer.transport.get_protocol()
        asyncio.get_running_loop().call_soon(feed, protocol, bytes(200_000))
        came = proxy.handler.layer.came
        await until(lambda: sum(len(x.data) for x in came[1:]) == 200_000)
        writer.close()
        await proxy.over.wait()
    assert [len(x.data) for x in came[1:-1]] == [200_000]


async def test_all_is_read_into_the_same_memory_and_stays_as_it_was() -> None:
    """asyncio takes 256 KiB for each read, which leaves gaps: a proxy grows by 2 MB of them."""

    class Keeping(Closing):
        def _handle_event(self, event):
            self.came.append(event)
            yield from ()

    async with passing(echo, STEPS["direct"]) as (proxy, _reader, _writer):
        transports = [io.writer.transport for io in proxy.handler.transports.values()]
        one, other = (x.get_protocol().get_buffer(-1) for x in transports)
        assert one is other
    async with passing(echo, STEPS["direct"], make=Keeping) as (proxy, _reader, writer):
        came = proxy.handler.layer.came
        for number, text in enumerate((b"first", b"and"), start=2):
            writer.write(text)
            await until(lambda number=number: len(came) == number)
        assert [event.data for event in came[1:]] == [b"first", b"and"]
        proxy.handler.close_connection(proxy.handler.client)
        await proxy.over.wait()


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@each
async def test_hooks_find_the_task_and_the_context_of_their_connection(steps) -> None:
    class Asking(layer.Layer):
        def _handle_event(self, event):
            if isinstance(event, events.DataReceived):
                yield server_hooks.ServerConnectHook(
                    server_hooks.ServerConnectionHookData(self.context.server, self.context.client)
                )
                yield commands.SendData(event.connection, b"done")
            elif isinstance(event, events.ConnectionClosed):
                yield commands.CloseConnection(event.connection)

    seen = []

    def client_connected(_client) -> None:
        VARIABLE.set("of this client")

    def server_connect(_data) -> None:
        seen.append((VARIABLE.get(), asyncio.current_task().get_name()))
        VARIABLE.set("of a hook")

    hooks = {"client_connected": client_connected, "server_connect": server_connect}
    async with passing(echo, steps, hooks, make=Asking) as (proxy, reader, writer):
        for _ in range(3):
            writer.write(b"ask")
            assert await reader.readexactly(4) == b"done"
        writer.close()
        await proxy.over.wait()
    assert [variable for variable, _ in seen] == ["of this client"] * 3
    if "inline" in steps:  # elsewhere that of the hook
        assert all(name.startswith("client connection handler") for _, name in seen)


async def test_an_error_that_nobody_expects_ends_the_connection(caplog) -> None:
    """As in the task of the connection; not one of a layer, which is caught."""

    class Ends(BaseException):
        pass

    class Failing(layer.Layer):
        def _handle_event(self, event):
            if isinstance(event, events.DataReceived):
                raise Ends
            yield from ()

    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    for steps in STEPS.values():
        async with passing(echo, steps, make=Failing) as (proxy, _reader, writer):
            writer.write(b"x")
            await proxy.over.wait()
            assert "connection handler has crashed" in caplog.text
            caplog.clear()
            proxy.handler.transports[proxy.handler.client].writer.close()


async def test_other_addons_that_look_at_what_comes_go_on_to(monkeypatch) -> None:
    """Those that put something of their own in the way of it."""
    queue = SimpleNamespace()

    async def watching(self, connection) -> None:
        pass

    with taddons.context() as tctx:
        writer = SimpleNamespace(get_extra_info=lambda _name, default=None: default)
        handler = ProxyConnectionHandler(
            tctx.master, None, writer, tctx.options, ProxyMode.parse("regular")
        )
        queue = EventQueue(handler, None)
        with monkeypatch.context() as patch:
            patch.setattr(ConnectionHandler, "handle_connection", watching)
            assert not knows_reading() and not queue.read_at_once()
        with monkeypatch.context() as patch:
            patch.setattr(asyncio.StreamReader, "feed_data", lambda _reader, _data: None)
            assert not knows_reading()
        handler.handle_connection = watching
        assert not queue.read_at_once()
        del handler.handle_connection
        assert queue.read_at_once()


@pytest.mark.parametrize("where", ["server_event", "read", "data_received"])
async def test_nothing_is_changed_where_another_addon_was_first(where: str, monkeypatch) -> None:
    """It is asked, each time."""
    asked = []
    serve = Passing.serve

    async def hand_over(self, reader, writer) -> None:
        if where == "read":
            read = reader.read

            async def noted(n=-1):
                asked.append(where)
                return await read(n)

            reader.read = noted
        if where == "data_received":
            protocol = writer.transport.get_protocol()
            received = protocol.data_received

            def passed_on(data) -> None:
                asked.append(where)
                received(data)

            protocol.data_received = passed_on
        await serve(self, reader, writer)

    take = Steps.take

    def take_and_wrap(self, handler) -> bool:
        taken = take(self, handler)
        if where == "server_event":
            event_of = handler.server_event

            async def server_event(event) -> None:
                asked.append(type(event).__name__)
                await event_of(event)

            handler.server_event = server_event
        return taken

    monkeypatch.setattr(Passing, "serve", hand_over)
    monkeypatch.setattr(Steps, "take", take_and_wrap)
    async with passing(echo, STEPS["direct"]) as (proxy, reader, writer):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.write_eof()
        assert await reader.read() == b""
        await proxy.over.wait()
    assert where in asked or "DataReceived" in asked


async def test_nothing_is_left_of_a_client_that_has_gone() -> None:
    async with passing(echo, STEPS["direct"]) as (proxy, reader, writer):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        io = proxy.handler.transports[proxy.handler.client]
        protocol = io.writer.transport.get_protocol()
        left = weakref.ref(io.reader)
        assert type(protocol) is not asyncio.StreamReaderProtocol
        writer.write_eof()
        assert await reader.read() == b""
        await proxy.over.wait()
        assert "read" not in vars(io.reader)
        del io, protocol
    proxy.handler = None
    await asyncio.sleep(0)
    gc.collect()
    assert left() is None
