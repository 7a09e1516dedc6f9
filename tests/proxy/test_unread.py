"""What a server said before it reset the connection, or the stream, is known."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.server import ConnectionHandler, ConnectionIO
from mitmproxy.test import taddons

from account_pool.proxy import client_handler
from account_pool.proxy.pooled_exchange import SURELY_READ_BYTES, SURELY_SENT_BYTES
from tests.proxy.helpers import (
    JSON,
    LIMIT_BODY,
    LIMITED,
    LIMITED_HEADERS,
    OK,
    OK_BODY,
    client_connection,
    http1,
    options_of,
    post1,
    secret,
)

ONE, TWO = secret("one"), secret("two")
SAID = b"HTTP/1.1 429 Too Many Requests\r\n\r\n"


@asynccontextmanager
async def refused() -> AsyncIterator[tuple[Server, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on which a long request is answered at its beginning, and then reset."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(SAID)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    connection = Server(address=None)
    connection.state = ConnectionState.OPEN
    try:
        yield connection, reader, writer
    finally:
        writer.close()
        server.close()


async def write_until_lost(writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(bytes(1 << 20))
        await writer.drain()
    await writer.drain()


async def test_it_is_read_although_writing_fails():
    async with refused() as (connection, reader, writer):
        client_handler.keep_unread_of(connection, reader, writer)
        client_handler.keep_unread_of(connection, reader, writer)
        await write_until_lost(writer)
        assert await reader.read(1000) == SAID
        assert await reader.read(1000) == b""
        # mitmproxy sends nothing more there, and takes it for no request.
        assert connection.state is ConnectionState.CAN_READ


async def test_asyncio_by_itself_loses_it():
    """If this fails, `client_handler.keep_unread` is not needed any more."""
    async with refused() as (_, reader, writer):
        with pytest.raises(ConnectionError):
            await write_until_lost(writer)
        with pytest.raises(ConnectionError):
            await reader.read(1000)


async def test_other_errors_are_left_alone():
    async with refused() as (connection, reader, writer):
        client_handler.keep_unread_of(connection, reader, writer)
        reader.set_exception(RuntimeError("another"))
        with pytest.raises(RuntimeError, match="another"):
            await reader.read(1000)
        assert connection.state is ConnectionState.OPEN


async def test_nothing_is_kept_alive():
    async with refused() as (connection, reader, writer):
        client_handler.keep_unread_of(connection, reader, writer)
        await write_until_lost(writer)
        left = weakref.ref(writer)
    gc.disable()
    try:
        del reader, writer
        await asyncio.sleep(0)
    finally:
        gc.enable()
    gc.collect()
    assert left() is None


async def test_every_server_connection_of_a_client():
    client = client_connection()
    async with refused() as (connection, reader, writer):
        transport = SimpleNamespace(reader=reader, writer=writer)
        opening = SimpleNamespace(reader=None, writer=None)
        handler = SimpleNamespace(transports={connection: transport, Server(address=None): opening})
        with taddons.context() as tctx:
            proxyserver = SimpleNamespace(connections={client.id: handler}, name="proxyserver")
            tctx.master.addons.lookup["proxyserver"] = proxyserver
            client_handler.keep_unread(client)
            client_handler.keep_unread(client_connection())
            tctx.master.addons.lookup.pop("proxyserver")
            client_handler.keep_unread(client)
        await write_until_lost(writer)
        assert await reader.read(1000) == SAID


async def test_what_waits_to_be_sent():
    client, server = client_connection(), Server(address=None)
    # Nobody accepts what connects to it, so nobody reads.
    with socket.create_server(("127.0.0.1", 0)) as peer:
        _reader, writer = await asyncio.open_connection(*peer.getsockname())
        handler = SimpleNamespace(transports={server: SimpleNamespace(writer=writer)})
        with taddons.context() as tctx:
            assert not client_handler.is_unsent(client, server)
            proxyserver = SimpleNamespace(connections={client.id: handler}, name="proxyserver")
            tctx.master.addons.lookup["proxyserver"] = proxyserver
            assert not client_handler.is_unsent(client, server)
            writer.write(bytes(64 << 20))
            assert client_handler.is_unsent(client, server)
            assert not client_handler.is_unsent(client, Server(address=None))
        writer.transport.abort()


# -- who does not read


class Handler(ConnectionHandler):
    """mitmproxy's own of a client, with a server behind it that takes no more."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        super().__init__(Context(client_connection(), options_of()))
        self.stuck = Server(address=None)
        self.transports = {
            self.client: ConnectionIO(writer=self),
            self.stuck: ConnectionIO(reader=asyncio.StreamReader(), writer=writer),
        }
        self.told = 0

    async def drain(self) -> None:
        """As the writer to the client."""
        self.told += 1

    async def handle_hook(self, _hook) -> None:
        pass


@asynccontextmanager
async def stuck() -> AsyncIterator[Handler]:
    ended = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    writer.write(bytes(64 << 20))
    handler = Handler(writer)
    with taddons.context() as tctx:
        proxyserver = SimpleNamespace(connections={handler.client.id: handler}, name="proxyserver")
        tctx.master.addons.lookup["proxyserver"] = proxyserver
        try:
            yield handler
        finally:
            writer.transport.abort()
            ended.set()
            server.close()


async def test_a_server_that_does_not_read_holds_up_no_other():
    async with stuck() as handler:
        client_handler.keep_unread(handler.client)
        await handler.drain_writers()
        assert handler.told == 1
        assert client_handler.is_unsent(handler.client, handler.stuck)


async def test_nor_a_client_that_wants_to_leave(monkeypatch):
    monkeypatch.setattr(client_handler, "DRAIN_S", 0.0)
    async with stuck() as handler:
        client_handler.keep_unread(handler.client)
        handler.transports[handler.client].handler = asyncio.current_task()
        await handler.drain_writers()
        assert handler.told == 0


async def test_mitmproxy_by_itself_waits_for_all():
    """If this fails, `drain_writers` needs no help any more."""
    async with stuck() as handler:
        waits = asyncio.create_task(handler.drain_writers())
        while handler.told == 0:
            await asyncio.sleep(0)
        client_handler.keep_unread(handler.client)
        await handler.drain_writers()
        assert not waits.done()
        waits.cancel()


async def test_what_is_closed_with_the_rest_of_a_request_unsent_is_broken_off():
    async with stuck() as handler:
        client_handler.keep_unread(handler.client)
        transport = handler.transports[handler.stuck]
        transport.writer.close()
        assert await transport.writer.drain() is None
        assert transport.writer.transport.get_write_buffer_size() == 0


# -- in the layer


def leaves_unread(rig) -> None:
    """The first server takes no more of what is written to it."""
    rig.service.unsent = lambda client, server: (
        (client, server)
        == (
            rig.client,
            rig.servers[0].connection,
        )
    )


@pytest.mark.parametrize("answer", [LIMITED, OK, http1(422, b"{}", [JSON])])
def test_a_connection_that_leaves_the_request_unread_is_not_used_again(rig_of, answer):
    rig = rig_of()
    rig.send(post1(body=b" " * (SURELY_SENT_BYTES + 1)))
    leaves_unread(rig)
    rig.server.send(answer)
    assert rig.servers[0].closed
    if answer is not LIMITED:
        rig.send(post1())
    assert len(rig.servers) == 2
    rig.server.send(OK)
    assert rig.received.endswith(OK)


def test_an_answer_that_was_complete_before_a_streamed_request(rig_of, monkeypatch):
    monkeypatch.setattr("account_pool.proxy.pooled_exchange.MAX_REPLAYABLE_BYTES", 1000)
    rig = rig_of()
    raw = post1(body=b" " * 2000)
    rig.send(raw[:-500])
    leaves_unread(rig)
    rig.server.send(OK)
    assert not rig.servers[0].closed
    rig.send(raw[-500:])
    assert rig.servers[0].closed
    rig.send(post1())
    rig.server.send(OK)
    assert rig.received == OK + OK


@pytest.mark.parametrize("size", [SURELY_READ_BYTES - 1, SURELY_READ_BYTES])
def test_a_long_request_that_is_refused_may_lie_somewhere_unread(rig_of, size):
    rig = rig_of()
    rig.send(post1(body=b" " * size))
    rig.server.send(LIMITED)
    assert len(rig.servers) == (2 if size == SURELY_READ_BYTES else 1)
    rig.server.send(OK)
    rig.send(post1(body=b" " * size))
    rig.server.send(OK)
    assert rig.received == OK + OK
    assert len(rig.servers) == (2 if size == SURELY_READ_BYTES else 1)


def test_a_stream_that_leaves_the_request_unread_is_ended(rig_of):
    """It would count as one of those that are open, and its rest be kept."""
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    rig.server.answer(1, 200, OK_BODY, [JSON])
    rig.server.reader.h2.acknowledge_received_data = lambda *_args: None
    rig.ask(b" " * 100_000)
    stopped = rig.requests[1]
    assert not stopped.complete
    rig.server.answer(3, 200, OK_BODY, [JSON])
    assert stopped.reset == 8
    assert rig.server.closed == 0
    assert [answer.complete for answer in rig.answers] == [True, True]
    assert rig.requests[0].reset is None


@pytest.mark.parametrize("cut", [0, 10, len(LIMIT_BODY)])
def test_reset_after_a_refusal_began(rig_of, cut):
    rig = rig_of()
    rig.send(post1())
    first = rig.server
    first.connection.state = ConnectionState.CAN_READ
    first.send(LIMITED[: len(LIMITED) - len(LIMIT_BODY) + cut])
    first.connection.state = ConnectionState.CLOSED
    rig.feed(events.ConnectionClosed(first.connection))
    assert rig.keys == [ONE, TWO]
    assert len(rig.servers) == 2
    rig.server.send(OK)
    assert rig.received == OK
    assert rig.cooling() == {"one"}


@pytest.mark.parametrize("code", [0, 1, 8, 11])
@pytest.mark.parametrize("sent", [0, 10, len(LIMIT_BODY)])
@pytest.mark.parametrize("ended", [False, True])
def test_a_stream_is_reset_after_a_refusal_began(rig_of, code, sent, ended):
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    whole = ended and sent == len(LIMIT_BODY)
    rig.server.head(1, 429, LIMITED_HEADERS)
    rig.server.data(1, LIMIT_BODY[:sent], end=whole)
    if not whole:
        rig.server.reset(1, code)
    rig.server.answer(3, 200, OK_BODY, [JSON])
    assert rig.keys == [ONE, TWO]
    assert [(a.status, a.body) for a in rig.answers] == [(200, OK_BODY)]
    assert rig.cooling() == {"one"}
