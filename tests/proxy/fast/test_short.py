"""Events come and go the short way through a tunnel as they do the long way."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator, NextLayer, Paused
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode, HttpStream
from mitmproxy.proxy.layers.http._hooks import HttpRequestHook
from mitmproxy.proxy.layers.http._http1 import Http1Server
from mitmproxy.proxy.layers.modes import HttpProxy
from mitmproxy.proxy.layers.tls import ClientTLSLayer, ServerTLSLayer
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server import ConnectionIO
from mitmproxy.proxy.tunnel import TunnelState
from mitmproxy.test import taddons, tflow, tutils
from OpenSSL import SSL

from account_pool.config.options import FAST_STEPS
from account_pool.proxy.fast import short, steps
from account_pool.proxy.fast.handler import HookTable
from account_pool.proxy.fast.steps import Steps, put_into
from account_pool.proxy.flow_view import BodyCopy
from account_pool.proxy.http_layer import PoolHttpLayer
from account_pool.proxy.tunnels import take_tls
from tests.patience import PATIENCE_S
from tests.proxy.fast.known import needs_asyncio, needs_known
from tests.proxy.helpers import options_of
from tests.proxy.test_tunnels import read_all

pytestmark = [needs_known, pytest.mark.usefixtures("factory")]

PEERS = {"client": "alice", "server": "bob"}
BYTES = random.Random(2).randbytes(1_000_000)


class Pool(HttpLayer):
    """That of a CONNECT, or the one in its tunnel, which does what its test says."""

    doubts: tuple[object, ...] = ()
    script: Callable[[events.Event], list[commands.Command]] | None = None

    broke_off = PoolHttpLayer.broke_off

    def shown(self, text: str) -> str:
        return f"shown: {text}"

    def handle_event(self, event: events.Event) -> CommandGenerator[None]:
        try:
            yield from super().handle_event(event)
        except Exception as error:
            yield from self.broke_off(event, error)

    def drive(self, event: events.Event, carry_out: Callable[[commands.Command], None]) -> None:
        for command in self.handle_event(event):
            carry_out(command)

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if self.script is None:
            for command in super()._handle_event(event):
                if isinstance(command, commands.Log):
                    command.message = self.shown(command.message)
                yield command
            return
        if isinstance(event, events.CommandCompleted):
            del self.command_sources[event.command]
        for command in self.script(event):
            if command.blocking:
                command.blocking = self
            if command.blocking or isinstance(command, commands.RequestWakeup):
                self.command_sources[command] = self
            yield command


class Writer:
    """A socket; what is written to it is kept."""

    def __init__(self) -> None:
        self.sent = b""
        self.ended = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.sent += data

    def write_eof(self) -> None:
        self.ended = True

    def cancel(self, _why: str) -> None:
        self.ended = True


class Peer:
    """One end of a tunnel: TLS that is established, with its socket."""

    def __init__(self, certificate, *, is_server: bool) -> None:
        self.writer = Writer()
        self.came, self.left = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = certificate.server_context([]) if is_server else ssl.create_default_context()
        if not is_server:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.tls = context.wrap_bio(self.came, self.left, server_side=is_server)
        theirs = SSL.Context(SSL.TLS_METHOD)
        theirs.use_certificate_chain_file(str(certificate.chain))
        theirs.use_privatekey_file(str(certificate.key))
        self.ours = SSL.Connection(theirs)
        self.ours.set_connect_state() if is_server else self.ours.set_accept_state()
        for _ in range(4):
            for shake in (self.tls.do_handshake, self.ours.do_handshake):
                with contextlib.suppress(ssl.SSLWantReadError, SSL.WantReadError):
                    shake()
                if data := self.left.read():
                    self.ours.bio_write(data)
                with contextlib.suppress(SSL.WantReadError):
                    self.came.write(self.ours.bio_read(65536))

    def says(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.left.read()

    def ends(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.left.read()

    @property
    def heard(self) -> bytes:
        self.came.write(self.writer.sent)
        self.writer.sent = b""
        try:
            return read_all(self.tls)
        except ssl.SSLError:
            return b"an alert"


class Tunnel:
    """A client's CONNECT tunnel that is open, with TLS on both sides of it."""

    def __init__(self, tctx, certificate) -> None:
        self.said: list[Any] = []
        self.alice, self.bob = (Peer(certificate, is_server=x) for x in (False, True))
        self.handler = ProxyConnectionHandler(
            tctx.master, None, self.alice.writer, options_of(), ProxyMode.parse("regular")
        )
        self.handler.log = lambda text, *_, **__: self.said.append(("log", text))
        self.handler.open_connection = self._open
        tctx.master.addons.get("proxyserver").connections[self.handler.client.id] = self.handler
        queue = put_into(self.handler, HookTable(tctx.master.addons))
        assert queue is not None
        self.queue = queue
        self.queue.may_shorten = True
        self._build()

    def _build(self) -> None:
        context = self.handler.layer.context
        self.handler.layer = top = HttpProxy(context)
        self.client, self.server = context.client, context.server
        self.other = Server(address=("b", 443))
        self.names = {self.client: "client", self.server: "server", self.other: "other"}
        self.client.state = self.server.state = ConnectionState.OPEN
        self.outer = Pool(context, HTTPMode.regular)
        # Taken when it was not decided yet.
        top._handle_event = MethodType(NextLayer.handle_event, _next(context, self.outer))
        self.stream = HttpStream(context, 1)
        self.stream.flow = tflow.tflow(resp=True)
        self.stream._handle_event = self.stream.passthrough
        own = Http1Server(context.fork())
        own.state, own.response = own.passthrough, self.stream.flow.response
        self.outer.connections = {self.client: own, self.server: self.stream}
        self.outer.streams[1] = self.stream
        self.server_tls, self.client_tls = ServerTLSLayer(context), ClientTLSLayer(context)
        self.stream.child_layer = _next(context, self.server_tls)
        self.server_tls.child_layer = self.client_tls
        self.http = Pool(context, HTTPMode.transparent)
        self.http.script = self._acts
        self.http.connections = dict.fromkeys(self.names, self.http)
        self.client_tls.child_layer = _next(context, self.http)
        take_tls(self.server_tls, quick=True)
        for layer, peer in ((self.client_tls, self.alice), (self.server_tls, self.bob)):
            layer.tls, layer.tunnel_state = peer.ours, TunnelState.OPEN
            io = ConnectionIO(handler=peer.writer, writer=peer.writer)
            self.handler.transports[layer.conn] = io

    async def _open(self, command: commands.OpenConnection) -> None:
        writer = Writer()
        self.handler.transports[command.connection] = ConnectionIO(handler=writer, writer=writer)
        await self.handler.server_event(events.OpenConnectionCompleted(command, None))

    def _acts(self, event: events.Event) -> list[commands.Command]:
        """What is received says what to do."""
        if isinstance(event, events.CommandCompleted):
            self.said.append((type(event.command).__name__, "completed"))
            return []
        assert isinstance(event, events.ConnectionEvent)
        data = event.data if isinstance(event, events.DataReceived) else b"ended"
        self.said.append((self.names[event.connection], data))
        flow = tflow.tflow()
        match data:
            case b"echo" | b"long":
                text = BYTES if data == b"long" else b"echoed"
                return [commands.SendData(c, text) for c in (self.client, self.server)]
            case b"hook":
                return [HttpRequestHook(flow), commands.SendData(self.client, b"after")]
            case b"wake":
                return [commands.RequestWakeup(0)]
            case b"open":
                return [commands.OpenConnection(self.other)]
            case b"to the other":
                return [commands.SendData(self.other, b"plain")]
            case b"close the client":
                return [commands.CloseConnection(self.client)] * 2
            case b"close the server":
                return [commands.CloseTcpConnection(self.server, half_close=True)]
            case b"log":
                return [commands.Log("a line")]
            case b"fail":
                raise ValueError
        return []

    def receive(self, connection: Connection, data: bytes) -> None:
        self.queue.handle(events.DataReceived(connection, data))

    def tell(self, text: bytes) -> None:
        self.receive(self.client, self.alice.says(text))

    async def until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not what():
                await asyncio.sleep(0)

    def shown(self) -> object:
        """What everybody has seen, and what is kept of what has been asked for."""
        states = [connection.state for connection in self.names]
        ended = [self.alice.writer.ended, self.bob.writer.ended]
        kept = [len(layer.command_sources) for layer in (self.outer, self.http)]
        known = [self.names[connection] for connection in self.outer.connections]
        return self.said, self.alice.heard, self.bob.heard, states, ended, kept, known


def _next(context, layer) -> NextLayer:
    """A place that was decided."""
    made = NextLayer(context)
    made.layer = layer
    made.handle_event = made._handle = layer.handle_event
    return made


@pytest.fixture
def tunnels(certificate) -> Iterator[tuple[Tunnel, Tunnel]]:
    """Two of them: events of the first take the long way, of the other the short one."""
    with taddons.context(Proxyserver()) as tctx:
        long, quick = Tunnel(tctx, certificate), Tunnel(tctx, certificate)
        steps.shorten(quick.http)
        assert quick.queue.way is not None
        yield long, quick


@pytest.mark.parametrize(
    "told",
    [
        ["nothing"],
        ["echo", "echo"],
        ["long"],
        ["hook", "echo"],
        ["wake", "echo"],
        ["open", "to the other", "log"],
        ["close the client", "echo"],
        ["close the server", "echo"],
        ["fail", "echo"],
    ],
    ids=", ".join,
)
async def test_what_a_client_says(tunnels, told: list[str]) -> None:
    seen = []
    for tunnel in tunnels:
        kept = (tunnel.outer.command_sources, tunnel.http.command_sources)
        for text in told:
            tunnel.tell(text.encode())
            await tunnel.until(lambda kept=kept: not any(kept))
        seen.append(tunnel.shown())
    assert seen[0] == seen[1]


async def test_what_a_server_says(tunnels) -> None:
    seen = []
    for tunnel in tunnels:
        for text in (b"echo", BYTES):
            data = tunnel.bob.says(text)
            for at in range(0, len(data), 50_001):
                tunnel.receive(tunnel.server, data[at : at + 50_001])
        said = b"".join(data for name, data in tunnel.said if name == "server")
        tunnel.said.clear()
        seen.append((said, tunnel.shown()))
    assert seen[0] == seen[1]
    assert seen[0][0] == b"echo" + BYTES


async def test_what_is_relayed(tunnels) -> None:
    tunnel = tunnels[1]

    def relay(server, data: bytes) -> commands.SendData | None:
        return commands.SendData(tunnel.client, data) if data == b"whole" else None

    end = SimpleNamespace(is_chunked=True, relay=relay)
    tunnel.http.connections[tunnel.server] = SimpleNamespace(child_layer=end)
    for text in (b"whole", b"half", b"whole"):
        tunnel.receive(tunnel.server, tunnel.bob.says(text))
    assert (tunnel.said, tunnel.alice.heard) == ([("server", b"half")], b"wholewhole")
    tunnel.tell(b"whole")
    end.is_chunked = False
    tunnel.receive(tunnel.server, tunnel.bob.says(b"whole"))
    end.is_chunked, tunnel.http.doubts = True, (1,)
    tunnel.receive(tunnel.server, tunnel.bob.says(b"whole"))
    assert [name for name, data in tunnel.said if data == b"whole"] == ["client"] + ["server"] * 2


def pause(tunnel: Tunnel, layer: Any) -> None:
    layer._paused = Paused(commands.Log("never answered"), iter(()))


MEANWHILE = {
    "the layer of the mode is another one": lambda t: setattr(t.handler, "layer", t.outer),
    "another addon handles its events": lambda t: setattr(
        t.handler.layer, "handle_event", t.handler.layer.handle_event
    ),
    "TLS to the server begins anew": lambda t: setattr(
        t.server_tls, "tunnel_state", TunnelState.ESTABLISHING
    ),
    "TLS to the client is over": lambda t: setattr(
        t.client_tls, "tunnel_state", TunnelState.CLOSED
    ),
    "somebody is to be told of a suspend": lambda t: setattr(t.outer, "doubts", (1,)),
    "the mode waits": lambda t: pause(t, t.handler.layer),
    "the layer of the CONNECT waits": lambda t: pause(t, t.outer),
    "its stream waits": lambda t: pause(t, t.stream),
    "TLS to the server waits": lambda t: pause(t, t.server_tls),
    "TLS to the client waits": lambda t: pause(t, t.client_tls),
}


class Socket:
    """A transport; what is written to it goes to *writer*."""

    def __init__(self, writer: Writer) -> None:
        self.write, self.unsent, self.closing = writer.write, 0, False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return 10, 20

    def is_closing(self) -> bool:
        return self.closing


@pytest.fixture
async def copying(tunnels) -> AsyncIterator[Tunnel]:
    """One whose server streams: the first chunk of its response is through."""
    tunnel = tunnels[1]
    tunnel.socket = Socket(tunnel.alice.writer)
    writer = asyncio.StreamWriter(tunnel.socket, None, None, asyncio.get_running_loop())
    tunnel.handler.transports[tunnel.client].writer = writer
    flow = tunnel.stream.flow
    flow.response.headers["transfer-encoding"] = "chunked"
    tunnel.copy = BodyCopy("", flow.response.headers.fields)
    streams = SimpleNamespace(copy=tunnel.copy, flow=flow)
    end = SimpleNamespace(is_chunked=True, relay=lambda _server, data: streams if data else None)
    tunnel.http.connections[tunnel.server] = SimpleNamespace(child_layer=end)
    tunnel.receive(tunnel.server, tunnel.bob.says(b"1\r\n1\r\n"))
    end.relay = lambda _server, _data: None
    yield tunnel
    tunnel.socket.closing = True


def came(tunnel: Tunnel, data: bytes) -> events.DataReceived:
    return events.DataReceived(tunnel.server, tunnel.bob.says(data))


async def test_chunks_that_follow_on_chunks_are_no_events(copying) -> None:
    way = copying.queue.way
    for text in (b"1\r\n2\r\n", b"1\r\n3\r\n2\r\n45\r\n"):
        assert way.copied(came(copying, text)) is None
    assert copying.alice.heard == b"1\r\n1\r\n1\r\n2\r\n1\r\n3\r\n2\r\n45\r\n"
    assert (bytes(copying.copy.head), copying.said) == (b"2345", [])
    assert not way.is_unsent()
    copying.socket.unsent = 11
    assert way.is_unsent()
    copying.socket.unsent, copying.socket.closing = 0, True
    assert way.is_unsent()
    assert way.copied(came(copying, b"1\r\n6\r\n")) is None
    assert copying.alice.heard == b""


async def test_what_are_no_whole_chunks_is_an_event(copying) -> None:
    for text in (b"half", b"0\r\n\r\n"):
        event = copying.queue.way.copied(came(copying, text))
        assert event is not None
        copying.queue.handle(event)
        copying.receive(copying.server, copying.bob.says(b"1\r\n2\r\n"))  # no more of them
    said = [data for _, data in copying.said]
    assert said == [b"half", b"1\r\n2\r\n", b"0\r\n\r\n", b"1\r\n2\r\n"]
    assert copying.alice.heard == b"1\r\n1\r\n"


async def test_an_end_behind_chunks_is_an_event(copying) -> None:
    data = copying.bob.says(b"1\r\n2\r\n") + copying.bob.ends()
    event = copying.queue.way.copied(events.DataReceived(copying.server, data))
    copying.queue.handle(event)
    assert copying.said[:2] == [("server", b"1\r\n2\r\n"), ("server", b"ended")]


SINCE = {
    "the layer of the mode is another one": MEANWHILE["the layer of the mode is another one"],
    "another addon handles its events": MEANWHILE["another addon handles its events"],
    "somebody is to be told of a suspend": MEANWHILE["somebody is to be told of a suspend"],
    "somebody inside, too": lambda t: setattr(t.http, "doubts", (1,)),
    "another addon answers": lambda t: setattr(t.stream.flow, "response", tutils.tresp()),
    "another addon changes the head": lambda t: t.stream.flow.response.headers.update(x="1"),
    "the client says something": lambda t: t.tell(b"echo"),
    "the client leaves": lambda t: t.queue.handle(events.ConnectionClosed(t.client)),
    "time passes": lambda t: t.queue.handle(events.Wakeup(commands.RequestWakeup(1))),
}


@pytest.mark.parametrize("what", SINCE)
async def test_chunks_are_events_again_when_something_has_happened(copying, what: str) -> None:
    SINCE[what](copying)
    event = came(copying, b"1\r\n2\r\n")
    assert copying.queue.way.copied(event) is event
    assert bytes(copying.copy.head) == b""


@pytest.mark.parametrize("error", [SSL.Error, MemoryError])
async def test_chunks_that_cannot_be_sent_end_the_connection(
    copying, monkeypatch, caplog, error: type[Exception]
) -> None:
    def fails(*_: object) -> None:
        raise error

    event = came(copying, b"1\r\n2\r\n")
    with monkeypatch.context() as patch:
        patch.setattr(short, "write", fails)
        assert copying.queue.way.copied(event) is None
    closed = copying.client if error is SSL.Error else copying.server
    assert closed.state is ConnectionState.CLOSED
    assert copying.queue.way.is_unsent()
    assert copying.queue.way.copied(event) is event


async def test_a_writer_of_another_kind_gets_events(tunnels) -> None:
    assert tunnels[1].queue.way._copying_of(tunnels[1].stream) is None


async def test_a_connection_that_was_opened_meanwhile(tunnels) -> None:
    """What comes of it goes either way, whichever one asked for it."""
    seen = []
    for tunnel in tunnels:
        tunnel.tell(b"open")
        await tunnel.until(lambda tunnel=tunnel: tunnel.other in tunnel.handler.transports)
        tunnel.receive(tunnel.other, b"echo")
        tunnel.queue.way = None
        tunnel.receive(tunnel.other, b"more")
        tunnel.queue.handle(events.ConnectionClosed(tunnel.other))
        seen.append(tunnel.shown())
    assert seen[0] == seen[1]
    assert ("other", b"more") in seen[0][0]


@pytest.mark.parametrize("what", ["ends", "resets", "garbage", "an alert", "ends and resets"])
@pytest.mark.parametrize("who", ["client", "server"])
async def test_an_end(tunnels, who: str, what: str) -> None:
    seen = []
    for tunnel in tunnels:
        peer = tunnel.alice if who == "client" else tunnel.bob
        connection = tunnel.client if who == "client" else tunnel.server
        match what:
            case "garbage":
                tunnel.receive(connection, peer.says(b"echo") + b"\x00\xff\x16\x03 no record")
            case "an alert":
                tunnel.receive(connection, b"\x17\x03\x03\x00\x20" + bytes(32))
            case "ends" | "ends and resets":
                tunnel.receive(connection, peer.says(b"echo") + peer.ends())
        if "resets" in what:
            connection.state = ConnectionState.CLOSED
            tunnel.queue.handle(events.ConnectionClosed(connection))
        other = tunnel.bob if who == "client" else tunnel.alice
        tunnel.receive(
            tunnel.server if who == "client" else tunnel.client, other.says(b"to the other")
        )
        if who == "server":
            tunnel.tell(b"echo")
        seen.append(tunnel.shown())
    assert seen[0] == seen[1]
    assert any("Error" in repr(line) or b"ended" in line for line in tunnels[1].said)


@pytest.mark.parametrize("does", ["read", "write"])
@pytest.mark.parametrize("who", ["client", "server"])
async def test_what_fails_unexpectedly_ends_the_connection(
    tunnels, monkeypatch, caplog, who: str, does: str
) -> None:
    """Nobody knows how far it got, and nothing more would come of it."""

    def fails(*_: object) -> None:
        raise MemoryError

    seen = []
    for tunnel in tunnels:
        peer, connection = getattr(tunnel, PEERS[who]), getattr(tunnel, who)
        with monkeypatch.context() as patch:
            patch.setattr(short, does, fails)
            tunnel.receive(connection, peer.says(b"echo"))
        assert peer.writer.ended
        assert connection.state is ConnectionState.CLOSED
        seen.append(tunnel.shown())
    assert seen[0] == seen[1]
    lines = [message for message in caplog.messages if "connection closed" in message]
    assert len(lines) == 2
    assert all("MemoryError" in line for line in lines)


@pytest.mark.parametrize("what", MEANWHILE)
async def test_what_has_changed_since_it_began(tunnels, what: str) -> None:
    tunnel = tunnels[1]
    way = tunnel.queue.way
    assert way.handle(events.DataReceived(tunnel.client, tunnel.alice.says(b"1")))
    MEANWHILE[what](tunnel)
    assert not way.handle(events.DataReceived(tunnel.client, tunnel.alice.says(b"2")))
    assert tunnel.said == [("client", b"1")]


async def test_ends_and_completions_of_others_take_the_long_way(tunnels) -> None:
    tunnel = tunnels[1]
    way, hook = tunnel.queue.way, HttpRequestHook(tflow.tflow())
    for connection in tunnel.names:
        assert not way.handle(events.ConnectionClosed(connection))
    assert not way.handle(events.HookCompleted(hook))
    tunnel.outer.command_sources[hook] = tunnel.stream
    assert not way.handle(events.HookCompleted(hook))  # asked for by a layer in between
    assert not way.handle(events.DataReceived(Server(address=("c", 1)), b"unknown"))


OTHERWISE = {
    "a step that is off": lambda t: setattr(t.queue, "may_shorten", False),
    "proxy_debug": lambda t: setattr(t.stream, "debug", " "),
    "another mode": lambda t: setattr(
        t.handler.layer, "__class__", type("Other", (HttpLayer,), {})
    ),
    "another layer of the mode": lambda t: setattr(t.handler, "layer", t.outer),
    "another kind of layer inside": lambda t: setattr(
        t.http, "__class__", type("Other", (Pool,), {})
    ),
    "a stream that is no tunnel": lambda t: delattr(t.stream, "_handle_event"),
    "a tunnel of another connection": lambda t: setattr(
        t.outer.connections[t.client], "state", None
    ),
    "another stream": lambda t: t.outer.streams.clear(),
    "something between TLS and the layer": lambda t: setattr(
        t.client_tls, "child_layer", _next(t.http.context, t.outer)
    ),
    "a layer between TLS and TLS": lambda t: setattr(t.server_tls, "child_layer", t.http),
    "TLS of somebody else": lambda t: setattr(t.client_tls, "__class__", ClientTLSLayer),
    "TLS of another connection": lambda t: setattr(t.server_tls, "conn", t.other),
    "TLS that waits for the client": lambda t: setattr(t.server_tls, "wait_for_clienthello", True),
    "TLS that is not quick": lambda t: setattr(t.client_tls, "is_quick", False),
    "TLS that another addon made": lambda t: setattr(t.server_tls, "tls", object()),
    "a function that was replaced": lambda t: setattr(t.client_tls, "event_to_child", print),
    "a function that writes": lambda t: setattr(t.server_tls, "send_data", print),
    "another layer above": lambda t: t.http.context.layers.insert(0, t.outer),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_a_tunnel_that_is_not_as_known(certificate, what: str) -> None:
    with taddons.context(Proxyserver()) as tctx:
        tunnel = Tunnel(tctx, certificate)
        OTHERWISE[what](tunnel)
        steps.shorten(tunnel.http)
        assert tunnel.queue.way is None


def test_a_client_that_mitmproxy_does_not_list(certificate) -> None:
    with taddons.context(Proxyserver()) as tctx:
        tunnel = Tunnel(tctx, certificate)
        tctx.master.addons.get("proxyserver").connections.clear()
        steps.shorten(tunnel.http)
        assert tunnel.queue.way is None


def test_a_mitmproxy_that_is_not_as_known(monkeypatch) -> None:
    assert short.knows_layers()
    monkeypatch.setattr(HttpStream, "passthrough", lambda self, event: iter(()))
    assert not short.knows_layers()


@needs_asyncio
async def test_an_addon_that_changes_mitmproxy_after_the_start(monkeypatch) -> None:
    """What it has put there is asked, for each client that connects from then on."""
    with taddons.context(Proxyserver()) as tctx:
        steps = Steps(tctx.master.addons)
        steps.use(FAST_STEPS)

        def may_shorten() -> bool:
            mode = ProxyMode.parse("regular")
            handler = ProxyConnectionHandler(tctx.master, None, Writer(), options_of(), mode)
            assert steps.take(handler)
            return handler.server_event.__self__.may_shorten

        assert may_shorten()
        monkeypatch.setattr(HttpStream, "passthrough", lambda self, event: iter(()))
        assert not may_shorten()
        steps.use(())
