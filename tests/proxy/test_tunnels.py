"""TLS that has come to an end ends its connection, event by event."""

from __future__ import annotations

import random
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import pytest
from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.tls import ClientTLSLayer, ServerTLSLayer, TlsClienthelloHook, TLSLayer
from OpenSSL import SSL

from account_pool.proxy import tunnels
from account_pool.proxy.fast import short
from account_pool.proxy.tunnels import OPENING_S, OpeningServerTls, PoolClientTls, PoolServerTls
from tests.proxy.fast.known import needs_known
from tests.proxy.helpers import client_connection, options_of
from tests.proxy.test_next_layer import client_hello

NOT_TLS = pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\x16\x03 this is no record at all",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x17\x03\x03\x00\x20" + bytes(32),
        b"\x15\x03\x03\x00\x02\x02\x28",
    ],
    ids=["bytes", "plain text", "a record that was changed", "an alert"],
)
BOTH = pytest.mark.parametrize(
    "case",
    [
        pytest.param((side, quick), marks=needs_known if quick else ())
        for side in ("server", "client")
        for quick in (False, True)
    ],
    ids=lambda case: case[0] + (", quick" if case[1] else ""),
    indirect=True,
)


def read_all(peer: ssl.SSLObject) -> bytes:
    data = b""
    with suppress(ssl.SSLWantReadError):
        while True:
            data += peer.read(1_000_000)
    return data


class Child(layer.Layer):
    """Notes what it is told; opens the server's connection, and writes, when told to."""

    def __init__(self, context: Context, to: Connection) -> None:
        super().__init__(context)
        self.to, self.answer = to, b""
        self.told: list[events.Event] = []

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, Write):
            yield commands.SendData(self.to, event.data)
        elif isinstance(event, events.Start) and self.to.state is ConnectionState.CLOSED:
            self.told.append((yield commands.OpenConnection(self.to)))
        elif not isinstance(event, events.Start):
            self.told.append(event)
            if self.answer and isinstance(event, events.DataReceived):
                yield commands.SendData(self.to, self.answer)


class Write(events.Event):
    def __init__(self, data: bytes) -> None:
        self.data = data


class Case:
    """One TLS connection, of which the test is the peer."""

    def __init__(self, certificate, side: str, *, quick: bool = False) -> None:
        self.certificate = certificate
        self.context = Context(client_connection(), options_of())
        self.client, self.server = self.context.client, Server(address=("api.openai.com", 443))
        self.context.server = self.server
        self.of = self.server if side == "server" else self.client
        self.came, self.left = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.peer = self._peer_context(side).wrap_bio(
            self.came, self.left, server_side=side == "server"
        )
        self.commands: list[commands.Command] = []
        self._inbox: deque[events.Event] = deque()
        self.child = Child(self.context, self.of)
        self.layer: layer.Layer
        if side == "server":
            self.layer = ServerTLSLayer(self.context)
        else:
            self.context.layers.append(self.child)
            self.layer = ClientTLSLayer(self.context)
        self.layer.child_layer = self.child
        tunnels.take_tls(self.layer, quick=quick)

    def _peer_context(self, side: str) -> ssl.SSLContext:
        if side == "server":
            return self.certificate.server_context(["h2"])
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def ours(self, of: Connection) -> SSL.Connection:
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate_chain_file(str(self.certificate.chain))
        context.use_privatekey_file(str(self.certificate.key))
        made = SSL.Connection(context)
        made.set_connect_state() if of is self.server else made.set_accept_state()
        return made

    def feed(self, event: events.Event) -> None:
        self._inbox.append(event)
        while self._inbox:
            for command in self.layer.handle_event(self._inbox.popleft()):
                self._carry_out(command)

    def receive(self, data: bytes) -> None:
        self.feed(events.DataReceived(self.of, data))

    def establish(self) -> Case:
        self.feed(events.Start())
        for _ in range(3):
            with suppress(ssl.SSLWantReadError):
                self.peer.do_handshake()
            if data := self.left.read():
                self.receive(data)
        return self

    def _carry_out(self, command: commands.Command) -> None:
        match command:
            case commands.SendData() if command.connection is self.of:
                self.came.write(command.data)
            case commands.OpenConnection():
                command.connection.state = ConnectionState.OPEN
                self._inbox.append(events.OpenConnectionCompleted(command, None))
            case commands.CloseConnection():
                self.commands.append(command)
                command.connection.state = ConnectionState.CLOSED
            case commands.StartHook():
                data = command.args()[0]
                if command.name.startswith("tls_start"):
                    data.ssl_conn = self.ours(data.conn)
                if command.blocking:
                    self._inbox.append(events.HookCompleted(command))
            case commands.RequestWakeup():
                self.commands.append(command)

    @property
    def closed(self) -> int:
        return sum(isinstance(command, commands.CloseConnection) for command in self.commands)

    def told(self) -> list[type[events.Event]]:
        """What the layer above was told since this was asked last."""
        told, self.child.told = self.child.told, []
        return [type(event) for event in told if event is not None]


@pytest.fixture
def writes_fail(case, monkeypatch) -> Callable[[], None]:
    def fails(*_: object) -> None:
        raise SSL.Error([])

    def begin() -> None:
        case.layer.tls.sendall = fails
        monkeypatch.setattr(short, "write", fails)

    return begin


@pytest.fixture
def case(certificate, request) -> Case:
    side, quick = getattr(request, "param", ("server", False))
    made = Case(certificate, side, quick=quick).establish()
    assert made.layer.is_quick is quick
    assert made.told() == []
    assert made.closed == 0
    return made


@BOTH
def test_what_is_well_goes_on(case):
    case.peer.write(b"an answer")
    case.receive(case.left.read())
    case.feed(Write(b"a request"))
    assert case.peer.read() == b"a request"
    assert case.told() == [events.DataReceived]
    assert case.closed == 0


@BOTH
@pytest.mark.parametrize("size", [1, 16384, 16385, 65536, 65537, 131072, 1_000_000, 10_000_000])
def test_long_messages_both_ways(case, size):
    data = random.Random(size).randbytes(size)
    case.feed(Write(data))
    assert read_all(case.peer) == data
    case.peer.write(data)
    case.receive(case.left.read())
    assert b"".join(event.data for event in case.child.told) == data


@BOTH
def test_a_long_message_in_pieces(case):
    """Records end anywhere in them."""
    data = random.Random(1).randbytes(300_000)
    case.peer.write(data)
    sent = case.left.read()
    for at in range(0, len(sent), 4097):
        case.receive(sent[at : at + 4097])
    assert b"".join(event.data for event in case.child.told) == data


@BOTH
def test_what_came_with_the_end_is_handed_on_first(case):
    case.peer.write(bytes(100_000))
    with suppress(ssl.SSLWantReadError):
        case.peer.unwrap()
    case.receive(case.left.read())
    assert set(case.told()) == {events.DataReceived, events.ConnectionClosed}
    assert case.told() == []


@BOTH
@NOT_TLS
def test_what_is_no_tls_closes_the_connection_once(case, garbage):
    case.receive(garbage)
    assert case.closed == 1
    assert case.told() == []  # the end of the connection comes as an event
    case.feed(events.ConnectionClosed(case.of))
    assert case.told() == [events.ConnectionClosed]
    assert case.closed == 1


@BOTH
def test_what_came_before_it_is_handed_on_first(case):
    case.peer.write(b"an answer")
    case.receive(case.left.read() + b"\x00\xff\x16\x03 and this")
    assert case.told() == [events.DataReceived]
    assert case.closed == 1


@BOTH
def test_and_may_be_answered_in_vain(case):
    case.child.answer = b"so it is"
    case.peer.write(b"an answer")
    case.receive(case.left.read() + b"\x00\xff\x16\x03 and this")
    assert case.told() == [events.DataReceived]
    assert case.closed == 1
    case.feed(events.ConnectionClosed(case.of))
    assert case.told() == [events.ConnectionClosed]


@BOTH
@NOT_TLS
def test_nothing_is_read_or_written_from_then_on(case, garbage):
    case.receive(garbage)
    case.came.read()
    case.feed(Write(b"a request"))
    case.receive(garbage)
    case.receive(b"more")
    assert case.came.read() == b""
    assert (case.told(), case.closed) == ([], 1)


@BOTH
def test_an_alert_of_the_peer_does_the_same(case):
    """It cannot read what came last."""
    case.came.write(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError):
        case.peer.read()
    case.receive(case.left.read())
    assert (case.told(), case.closed) == ([], 1)
    case.feed(events.ConnectionClosed(case.of))
    assert case.told() == [events.ConnectionClosed]


@BOTH
def test_a_write_that_fails_does_the_same(case, writes_fail):
    writes_fail()
    case.feed(Write(b"a request"))
    case.feed(Write(b"and more"))
    assert (case.told(), case.closed) == ([], 1)
    case.feed(events.ConnectionClosed(case.of))
    assert case.told() == [events.ConnectionClosed]


@BOTH
def test_a_peer_that_ends_in_good_order_is_told_once(case, writes_fail):
    with suppress(ssl.SSLWantReadError):
        case.peer.unwrap()
    case.receive(case.left.read())
    assert (case.told(), case.closed) == ([events.ConnectionClosed], 0)
    writes_fail()  # as they may from then on
    case.feed(Write(b"a request"))
    case.feed(events.ConnectionClosed(case.of))
    assert (case.told(), case.closed) == ([], 1)


def test_garbage_right_behind_the_handshake_is_a_connection_that_could_not_be_made(certificate):
    """Nothing has been sent there: whoever wants it may try again."""
    case = Case(certificate, "server")
    case.feed(events.Start())
    with suppress(ssl.SSLWantReadError):
        case.peer.do_handshake()
    case.receive(case.left.read() + b"\x00\xff\x16\x03 this is no record at all")
    assert case.child.told == ["TLS has ended"]
    assert case.closed == 1
    case.feed(events.ConnectionClosed(case.server))
    assert case.child.told == ["TLS has ended"]


# -- the connection behind a CONNECT, open before its client begins TLS


class Behind(Case):
    """A ServerTLSLayer that waits for the client to begin."""

    def __init__(self, certificate) -> None:
        super().__init__(certificate, "server")
        self.server.state, self.server.tls = ConnectionState.OPEN, True
        self.context.layers.clear()
        self.layer = ServerTLSLayer(self.context)
        self.layer.child_layer = ClientTLSLayer(self.context)
        tunnels.take_tls(self.layer)
        assert [type(one) for one in self.context.layers] == [OpeningServerTls, PoolClientTls]
        self.hooks: list[str] = []
        self.feed(events.Start())

    def _carry_out(self, command: commands.Command) -> None:
        if isinstance(command, commands.StartHook):
            self.hooks.append(command.name)
        if isinstance(command, TlsClienthelloHook):
            command.data.establish_server_tls_first = True
        super()._carry_out(command)

    def begin(self) -> None:
        self.feed(events.DataReceived(self.client, client_hello("api.openai.com")))

    def answer(self) -> None:
        for _ in range(2):
            with suppress(ssl.SSLWantReadError):
                self.peer.do_handshake()
            self.receive(self.left.read())

    @property
    def bound(self) -> commands.RequestWakeup:
        (bound,) = (c for c in self.commands if isinstance(c, commands.RequestWakeup))
        assert bound.delay == OPENING_S
        return bound


@pytest.fixture
def behind(certificate) -> Behind:
    return Behind(certificate)


@pytest.mark.parametrize("told", [True, False])
def test_a_server_that_has_hung_up_by_then_keeps_nobody_waiting(behind, told):
    behind.server.state = ConnectionState.CAN_WRITE
    if told:
        behind.feed(events.ConnectionClosed(behind.server))
    behind.begin()
    assert behind.hooks == ["tls_clienthello", "tls_start_client"]
    assert behind.closed == 1
    assert behind.came.read() == b""


def test_nor_does_one_that_hangs_up_later(behind):
    behind.begin()
    assert behind.came.read() != b""
    assert behind.hooks == ["tls_clienthello", "tls_start_server"]
    behind.feed(events.ConnectionClosed(behind.server))
    assert behind.hooks[2:] == ["tls_failed_server", "tls_start_client"]


def test_nor_does_one_that_is_silent(behind):
    behind.begin()
    behind.feed(events.Wakeup(behind.bound))
    assert behind.hooks[2:] == ["tls_failed_server", "tls_start_client"]
    assert behind.closed == 1
    assert behind.server.error == f"no TLS after {OPENING_S:.0f} s"


def test_other_connections_are_opened_as_ever(behind):
    other = Server(address=("chatgpt.com", 443))
    behind.server.state = ConnectionState.CAN_WRITE
    behind.layer.child_layer = Child(behind.context, other)
    (opens,) = behind.layer.event_to_child(events.Start())
    assert isinstance(opens, commands.OpenConnection)
    assert opens.connection is other


def test_one_that_answers_in_time_is_left_alone(behind):
    behind.begin()
    behind.answer()
    assert behind.hooks[2:] == ["tls_established_server", "tls_start_client"]
    behind.feed(events.Wakeup(behind.bound))
    assert behind.closed == 0


@pytest.mark.parametrize("runs", [True, False])
def test_its_timer_comes_to_nobody_where_a_layer_above_routes_it(behind, runs):
    """What was arranged for the opening costs nothing afterwards, unless it still comes here."""
    dropped = []
    above = SimpleNamespace(drop_timer=lambda timer: dropped.append(timer) or runs)
    behind.context.layers.insert(0, above)
    behind.begin()
    assert type(behind.layer) is OpeningServerTls
    behind.answer()
    assert dropped == [behind.bound]
    assert type(behind.layer) is (PoolServerTls if runs else OpeningServerTls)
    assert behind.hooks[2:] == ["tls_established_server", "tls_start_client"]


# -- where it stands on private parts


def test_layers_of_others_are_left_alone(certificate):
    context = Context(client_connection(), options_of())

    class Theirs(ServerTLSLayer):
        pass

    theirs = Theirs(context)
    tunnels.take_tls(theirs)
    assert type(theirs) is Theirs


@pytest.mark.parametrize("gone", [short._FUNCTIONS[0], short._CODES[0]])
def test_a_private_part_of_pyopenssl_is_gone(certificate, monkeypatch, gone):
    kept = {name: None for name in (*short._FUNCTIONS, *short._CODES) if name != gone}
    monkeypatch.setattr(SSL, "_lib", SimpleNamespace(**kept))
    assert not short.knows_openssl()
    assert not Case(certificate, "server", quick=True).layer.is_quick


@needs_known
@pytest.mark.parametrize("name", ["receive_data", "send_data"])
@pytest.mark.parametrize("kind", [TLSLayer, ClientTLSLayer])
def test_what_another_addon_reads_and_writes_it_is_asked_for(certificate, monkeypatch, kind, name):
    assert Case(certificate, "client", quick=True).layer.is_quick
    own, seen = getattr(kind, name), []

    def theirs(self, data):
        seen.append(data)
        return own(self, data)

    monkeypatch.setattr(kind, name, theirs)
    case = Case(certificate, "client", quick=True).establish()
    assert not case.layer.is_quick
    seen.clear()
    case.peer.write(b"hello")
    case.receive(case.left.read())
    case.feed(Write(b"world"))
    assert len(seen) == 1
    assert read_all(case.peer) == b"world"


def test_another_connection_than_pyopenssls_is_asked_in_its_own_way(certificate):
    assert not short.can_use(SimpleNamespace(_ssl=1, _into_ssl=1, _from_ssl=1))
    with socket.socket() as sock:
        assert not short.can_use(SSL.Connection(SSL.Context(SSL.TLS_METHOD), sock))


def test_a_private_part_is_gone(monkeypatch):
    monkeypatch.setattr(tunnels, "_PARTS", (*tunnels._PARTS, "renamed"))
    own = ServerTLSLayer(Context(client_connection(), options_of()))
    tunnels.take_tls(own)
    assert type(own) is ServerTLSLayer
