"""A PoolHttpLayer between a client and servers, all in memory: events in, commands out.

In the manner of mitmproxy's Playbook, which its wheel does not hold. What mitmproxy's
server would do with a command is done at once (connections open, hooks complete, closed
connections say so) unless a test holds it. An exception in a layer fails the test;
mitmproxy would log "mitmproxy has crashed!" and go on with a broken connection.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import brotli
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest
from mitmproxy import http
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client, Connection, ConnectionState, Server
from mitmproxy.flow import Error
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook, HttpResponseHook
from mitmproxy.proxy.mode_specs import ProxyMode

from account_pool.core.account import Account
from account_pool.core.attempts import Attempts
from account_pool.core.credential import Credential, Secret
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.core.sessions import session_lease_of
from account_pool.core.steps import Limits, Refresh, Wait
from account_pool.providers import openai
from account_pool.providers.base import LocalResponse, Provider
from account_pool.proxy.events import Pause, PoolPauseHook
from account_pool.proxy.http_layer import PoolHttpLayer
from account_pool.proxy.options import Settings
from account_pool.proxy.service import Service

API = ("api.openai.com", 443)
#: What the client sends; no account has it.
CLIENT_KEY = "sk-client-0000"
CHAT = b'{"model":"gpt-5","messages":[]}'


def secret(label: str) -> str:
    """The credential of the account *label*."""
    return f"sk-{label}-1111"


#: The brotli that mitmproxy 11 wants has no bound, and is not used.
OLD_BROTLI = not hasattr(brotli.Decompressor, "can_accept_more_data")
needs_brotli = pytest.mark.skipif(OLD_BROTLI, reason="this brotli cannot be bounded")
BR = pytest.param("br", marks=needs_brotli)


class FakeClock:
    """Monotonic and wall clock, moved by hand.

    Attributes:
        asleep: for how long the machine slept, which the monotonic one does not count.
    """

    def __init__(self) -> None:
        self.time = 1000.0
        self.asleep = 0.0

    def now(self) -> float:
        return self.time

    def wall_now(self) -> float:
        return self.time + self.asleep + 1_700_000_000.0

    def look(self) -> float:
        """What a service compares: time that passes here is looked at all along."""
        return self.asleep

    def advance(self, seconds: float) -> None:
        self.time += max(seconds, 0.0)


def account(label: str, provider: str = "openai", **changes: Any) -> Account:
    return Account(provider=provider, label=label, **changes)


def service_of(
    *labels: str | Account,
    clock: FakeClock | None = None,
    providers: Sequence[Provider] = (openai.PROVIDER,),
    kind: str = "key",
    companions: dict[str, str] | None = None,
    **settings: Any,
) -> Service:
    """A service of accounts that are preferred in the order given."""
    clock = clock or FakeClock()
    pool = Pool(strategy="fill-first")
    for priority, item in enumerate(labels):
        new = account(item, providers[0].name, priority=priority) if isinstance(item, str) else item
        credential = Credential(
            kind=kind, secret=Secret(secret(new.label)), companions=companions or {}
        )
        pool.accounts.add(new, {kind: credential}, now=clock.now())
    settings.setdefault("limits", Limits(max_wait_s=0.0))
    service = Service(pool, Settings(**settings), {p.name: p for p in providers})
    service.now, service.wall_now, service.chance = clock.now, clock.wall_now, lambda: 0.5
    service.suspends.clocks = (clock.look, clock.look)
    service.suspends.look()
    return service


def begun(service: Service, facts: RequestFacts, client: Client) -> Attempts:
    """Return the attempts of a request of *client*, which runs."""
    now = service.now()
    attempts = Attempts(
        pool=service.pool,
        facts=facts,
        session=session_lease_of(facts, service.sessions, service.pins, now),
        limits=service.settings.limits,
        chance=service.chance,
    )
    service.running.begin(client.id, attempts, now)
    return attempts


def options_of(**changes: Any) -> Options:
    """The options a proxy layer looks at."""
    options = Options()
    Proxyserver().load(options)  # it only adds options
    options.update(http2_ping_keepalive=0, **changes)
    return options


def client_connection(peer: str = "127.0.0.1", mode: str = "regular") -> Client:
    return Client(
        peername=(peer, 50000),
        sockname=("127.0.0.1", 8080),
        timestamp_start=0.0,
        state=ConnectionState.OPEN,
        proxy_mode=ProxyMode.parse(mode),
    )


class ReadyTls(tunnel.TunnelLayer):
    """Stands in for ServerTLSLayer: a handshake that is over before it begins."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, context.server, context.server)
        context.server.tls = True


# -- what goes over the wire


def http1(
    status: int, body: bytes = b"", headers: Iterable[str] = (), *, chunked: bool = False
) -> bytes:
    """An HTTP/1 answer, complete."""
    how = "transfer-encoding: chunked" if chunked else f"content-length: {len(body)}"
    if chunked:
        body = chunk(body) + b"0\r\n\r\n"
    return head1(status, [*headers, how]) + body


def head1(status: int, headers: Iterable[str] = ()) -> bytes:
    lines = [f"HTTP/1.1 {status} {http.status_codes.RESPONSES.get(status, 'X')}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""


JSON = "content-type: application/json"
SSE = "content-type: text/event-stream"
CHUNKED = "transfer-encoding: chunked"

OK_BODY = b'{"id":"chatcmpl-1","choices":[{"message":{"content":"hello"}}]}'
OK = http1(200, OK_BODY, [JSON])
LIMIT_BODY = json.dumps(
    {"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}}
).encode()
LIMITED_HEADERS = [JSON, "retry-after: 20", "x-ratelimit-remaining-requests: 0"]
LIMITED = http1(429, LIMIT_BODY, LIMITED_HEADERS)


def event(value: Any) -> bytes:
    return b"data: %s\n\n" % json.dumps(value).encode()


DELTA = event({"choices": [{"delta": {"content": "hi"}}]})
EMPTY_CHOICES = event({"choices": [], "prompt_filter_results": []})
LIMIT_EVENT = event(
    {"type": "error", "error": {"code": "rate_limit_exceeded", "message": "Rate limit reached"}}
)
DONE = b"data: [DONE]\n\n"


def post1(
    path: str = "/v1/chat/completions",
    body: bytes = CHAT,
    headers: Iterable[str] = (),
    *,
    host: str = API[0],
    key: str = CLIENT_KEY,
    method: str = "POST",
) -> bytes:
    """A request over HTTP/1."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {key}", *headers]
    if not any(line.lower().startswith(("transfer-encoding", "content-length")) for line in lines):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Message:
    """A request or an answer as its receiver sees it."""

    start: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    complete: bool = False
    reset: int | None = None
    stream_id: int = 0

    def get(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name]
        return ", ".join(values) if values else None

    @property
    def status(self) -> int:
        return int(self.start.split()[1])

    @property
    def key(self) -> str:
        """The credential it carries."""
        return (self.get("authorization") or "").removeprefix("Bearer ")

    def add(self, data: bytes) -> None:
        self.body += data
        self.chunks.append(data)


class Reader1:
    """Reads HTTP/1 messages out of bytes."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.raw = b""
        self._rest = b""
        self._left: int | None = 0
        self._open: Message | None = None
        self.upgraded = False

    def feed(self, data: bytes) -> None:
        self.raw += data
        self._rest += data
        while self._step():
            pass

    def _step(self) -> bool:
        if self.upgraded:
            self.messages[-1].add(self._rest) if self._rest else None
            self._rest = b""
            return False
        if self._open is None:
            head, found, rest = self._rest.partition(b"\r\n\r\n")
            if not found:
                return False
            self._rest = rest
            start, *lines = head.decode("latin-1").split("\r\n")
            pairs = [tuple(line.split(": ", 1)) for line in lines]
            message = Message(start, [(p[0], p[1] if len(p) > 1 else "") for p in pairs])
            self.messages.append(message)
            self.upgraded = start.startswith("HTTP/1.1 101")
            self._open = message
            if "chunked" in (message.get("transfer-encoding") or ""):
                self._left = None
            else:
                self._left = int(message.get("content-length") or 0)
                no_length = message.get("content-length") is None
                if start.startswith("HTTP/") and no_length and not self.upgraded:
                    self._left = 1 << 60
            return True
        return self._body(self._open)

    def _body(self, message: Message) -> bool:
        if self._left is None:
            size, found, rest = self._rest.partition(b"\r\n")
            if not found or len(rest) < int(size, 16) + 2:
                return False
            length = int(size, 16)
            self._rest = rest[length + 2 :]
            if length:
                message.add(rest[:length])
            else:
                self._ended(message)
            return True
        piece, self._rest = self._rest[: self._left], self._rest[self._left :]
        if piece:
            message.add(piece)
            self._left -= len(piece)
        if self._left == 0:
            self._ended(message)
            return bool(self._rest)
        return False

    def _ended(self, message: Message) -> None:
        message.complete = True
        self._open = None


class Peer2:
    """The other end of an HTTP/2 connection."""

    def __init__(self, *, client_side: bool) -> None:
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=client_side, header_encoding="utf-8", validate_outbound_headers=False
            )
        )
        self.h2.initiate_connection()
        self.messages: list[Message] = []
        self.gone = False

    def of(self, stream_id: int) -> Message:
        return next(m for m in self.messages if m.stream_id == stream_id)

    def feed(self, data: bytes) -> None:
        for e in self.h2.receive_data(data):
            match e:
                case h2.events.RequestReceived() | h2.events.ResponseReceived():
                    headers = [(str(name), str(value)) for name, value in e.headers]
                    pseudo = dict(headers)
                    start = f"{pseudo.get(':method', 'HTTP/2')} " + (
                        pseudo.get(":path") or pseudo[":status"]
                    )
                    self.messages.append(Message(start, headers, stream_id=e.stream_id))
                case h2.events.DataReceived():
                    if e.data:
                        self.of(e.stream_id).add(e.data)
                    if e.flow_controlled_length:
                        with suppress(h2.exceptions.StreamClosedError):
                            self.h2.acknowledge_received_data(e.flow_controlled_length, e.stream_id)
                case h2.events.StreamEnded():
                    self.of(e.stream_id).complete = True
                case h2.events.StreamReset():
                    for message in self.messages:
                        if message.stream_id == e.stream_id:
                            message.reset = int(e.error_code)
                case h2.events.ConnectionTerminated():
                    self.gone = True
                case _:
                    pass


@dataclass(eq=False)
class Upstream:
    """One connection to a server, seen from there."""

    rig: Rig
    connection: Server
    http2: bool
    reader: Reader1 | Peer2
    #: how often the proxy closed it
    closed: int = 0

    @property
    def requests(self) -> list[Message]:
        return self.reader.messages

    def send(self, data: bytes) -> None:
        """Send bytes to the proxy."""
        if isinstance(self.reader, Reader1) and data.startswith(b"HTTP/1.1 101"):
            self.reader.upgraded = True
        self.rig.feed(events.DataReceived(self.connection, data))

    def close(self) -> None:
        """Close the connection from the server's side."""
        if self.connection.state & ConnectionState.CAN_READ:
            self.connection.state &= ~ConnectionState.CAN_READ
            self.rig.feed(events.ConnectionClosed(self.connection))

    # HTTP/2

    @property
    def h2(self) -> h2.connection.H2Connection:
        assert isinstance(self.reader, Peer2)
        return self.reader.h2

    def flush(self) -> None:
        if data := self.h2.data_to_send():
            self.send(data)

    def head(
        self, stream_id: int, status: int, headers: Iterable[str] = (), *, end: bool = False
    ) -> None:
        fields = [header.partition(": ") for header in headers]
        pairs = [(":status", str(status)), *((name, value) for name, _, value in fields)]
        self.h2.send_headers(stream_id, pairs, end_stream=end)
        self.flush()

    def data(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        self.h2.send_data(stream_id, data, end_stream=end)
        self.flush()

    def answer(self, stream_id: int, status: int, body: bytes, headers: Iterable[str]) -> None:
        self.head(stream_id, status, headers)
        self.data(stream_id, body, end=True)

    def reset(self, stream_id: int, code: int) -> None:
        self.h2.reset_stream(stream_id, code)
        self.flush()


class Rig:
    """A client connection with a PoolHttpLayer behind it, and every server it talks to.

    Attributes:
        held: names of hooks that are not completed by themselves, and "open" for
            connections; what is held waits in `waiting`.
        on: by name of a hook: called with its flow (or pause) before it completes.
        pauses: every pause that was asked for.
        hooks: names of the hooks fired, in order.
        refuse: how often opening a connection fails, next ones first: error texts.
        script: called with (server, request) when a request is complete.
    """

    def __init__(
        self,
        service: Service,
        clock: FakeClock,
        *,
        client2: bool = False,
        server2: bool = False,
        mode: HTTPMode = HTTPMode.transparent,
        address: tuple[str, int] = API,
        tls: bool = True,
        sni: str | None = None,
        peer: str = "127.0.0.1",
        options: Options | None = None,
        script: Callable[[Upstream, Message], None] | None = None,
    ) -> None:
        self.service, self.clock = service, clock
        others = service.suspends.attend
        service.suspends.attend = lambda layer, idle: (
            self._attend(idle) if layer is self.layer else others(layer, idle)
        )
        self.client = client_connection(peer)
        self.client2, self.server2 = client2, server2
        if client2:
            self.client.alpn = b"h2"
        self.context = Context(self.client, options or options_of())
        if mode is HTTPMode.transparent:
            self.context.server.address = address
            self.context.server.tls = tls
            self.client.tls, self.client.sni = tls, sni
        self.held: set[str] = set()
        self.waiting: list[commands.Command] = []
        self.on: dict[str, Callable[[Any], None]] = {}
        self.hooks: list[str] = []
        self.flows: list[http.HTTPFlow] = []
        self.ended: Counter[str] = Counter()
        self.pauses: list[Pause] = []
        self.logs: list[str] = []
        self.timers: list[tuple[float, commands.RequestWakeup]] = []
        self.servers: list[Upstream] = []
        self.opened: list[Server] = []
        self.half_closed: list[Connection] = []
        self.refuse: deque[str] = deque()
        self.refreshed = False
        self.local: LocalResponse | None = None
        self.script = script
        self.reader: Reader1 | Peer2 = Peer2(client_side=True) if client2 else Reader1()
        self.client_closed = 0
        self._inbox: deque[events.Event] = deque()
        self._busy = False
        self._seen: Counter[int] = Counter()
        self.layer = PoolHttpLayer(self.context, mode, service)
        self.feed(events.Start())
        if client2:
            self.flush()

    # -- the client

    @property
    def answers(self) -> list[Message]:
        return self.reader.messages

    @property
    def received(self) -> bytes:
        """Every byte the client got over HTTP/1."""
        assert isinstance(self.reader, Reader1)
        return self.reader.raw

    def send(self, data: bytes) -> None:
        self.feed(events.DataReceived(self.client, data))

    def ask(self, body: bytes = CHAT, *, end: bool = True, **headers: str) -> int:
        """Send a request over HTTP/2; return its stream id."""
        assert isinstance(self.reader, Peer2)
        conn = self.reader.h2
        stream_id = conn.get_next_available_stream_id()
        conn.send_headers(
            stream_id,
            [
                (":method", "POST"),
                (":scheme", "https"),
                (":authority", headers.pop("authority", API[0])),
                (":path", headers.pop("path", "/v1/chat/completions")),
                ("authorization", f"Bearer {CLIENT_KEY}"),
                *headers.items(),
            ],
        )
        conn.send_data(stream_id, body, end_stream=end)
        self.flush()
        return stream_id

    def flush(self) -> None:
        assert isinstance(self.reader, Peer2)
        if data := self.reader.h2.data_to_send():
            self.send(data)

    def cancel(self, stream_id: int) -> None:
        """The client resets one stream."""
        assert isinstance(self.reader, Peer2)
        self.reader.h2.reset_stream(stream_id, 8)
        for message in self.answers:
            if message.stream_id == stream_id:
                message.reset = 8
        self.flush()

    def leave(self) -> None:
        """The client closes its connection."""
        if self.client.state & ConnectionState.CAN_READ:
            self.client.state &= ~ConnectionState.CAN_READ
            self.feed(events.ConnectionClosed(self.client))

    # -- the servers

    @property
    def server(self) -> Upstream:
        """The connection opened last."""
        return self.servers[-1]

    @property
    def requests(self) -> list[Message]:
        """Every request that any server saw, in the order of connections."""
        return [request for server in self.servers for request in server.requests]

    @property
    def keys(self) -> list[str]:
        return [request.key for request in self.requests]

    # -- time and hooks

    def advance(self, seconds: float) -> None:
        """Let time pass; timers that are due ring."""
        self.clock.advance(seconds)
        due = [timer for at, timer in self.timers if at <= self.clock.now()]
        self.timers = [(at, timer) for at, timer in self.timers if timer not in due]
        for timer in due:
            self.feed(events.Wakeup(timer))

    def complete(self, name: str | None = None, error: str | None = None) -> None:
        """Let the oldest thing that is held (of that *name*) go on."""
        for command in self.waiting:
            if name is None or _name(command) == name:
                self.waiting.remove(command)
                self._done(command, error)
                self._run()
                return
        raise AssertionError(f"nothing is held for {name}: {self.waiting}")

    # -- at the end

    def in_flight(self) -> int:
        return sum(state.in_flight for state in self.service.pool.accounts)

    def cool(self, label: str, seconds: float) -> None:
        """Let a whole account rest."""
        key = next(s.key for s in self.service.pool.accounts if s.key.label == label)
        limit = Outcome(
            cls=OutcomeClass.RATE_LIMIT, scope=Scope.ACCOUNT, cooldown_s=seconds, signal="test"
        )
        self.service.pool.health.mark_cooldown(key, limit, now=self.clock.now())

    def cooling(self) -> set[str]:
        now = self.clock.now()
        return {
            state.key.label
            for state in self.service.pool.accounts
            if state.disabled or any(c.active(now) for c in state.cooldowns.values())
        }

    def assert_at_rest(self) -> None:
        """Nothing is left of any request, and each ended in exactly one hook."""
        assert self.in_flight() == 0
        assert not self.service.running
        # A stream that an addon killed stays with mitmproxy as long as its client.
        left = {i: s for i, s in self.layer.streams.items() if not _killed(s)}
        assert left == {}
        for flow in self.flows:
            assert self.ended[flow.id] == 1, (flow, self.ended[flow.id])
        for command, child in self.layer.command_sources.items():
            assert isinstance(command, commands.RequestWakeup)
            assert not isinstance(child, http_layers.HttpStream)

    # -- inside

    def feed(self, event: events.Event) -> None:
        self._inbox.append(event)
        self._run()

    def _run(self) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            while self._inbox:
                event = self._inbox.popleft()
                for command in self.layer.handle_event(event):
                    self._carry_out(command)
                if isinstance(event, events.ConnectionClosed):
                    self._ended(event.connection)
                self._answer_requests()
        finally:
            self._busy = False

    def _answer_requests(self) -> None:
        if self.script is None:
            return
        for server in list(self.servers):
            for request in server.requests[self._seen[id(server)] :]:
                if not request.complete:
                    break
                self._seen[id(server)] += 1
                self.script(server, request)

    def _carry_out(self, command: commands.Command) -> None:
        match command:
            case commands.StartHook():
                self._hook(command)
            case commands.OpenConnection():
                self.opened.append(command.connection)
                command.connection.timestamp_start = self.clock.wall_now()
                if "open" in self.held:
                    self.waiting.append(command)
                else:
                    self._done(command, self.refuse.popleft() if self.refuse else None)
            case commands.SendData():
                self._sent(command.connection, command.data)
            case commands.CloseTcpConnection(half_close=True):
                command.connection.state &= ~ConnectionState.CAN_WRITE
                self.half_closed.append(command.connection)
            case commands.CloseConnection():
                self._closed(command.connection)
            case commands.RequestWakeup():
                self.timers.append((self.clock.now() + command.delay, command))
            case commands.Log():
                self.logs.append(command.message)
            case _:
                raise AssertionError(f"unexpected command: {command}")

    def _hook(self, hook: commands.StartHook) -> None:
        name = hook.name
        self.hooks.append(name)
        if isinstance(hook, PoolPauseHook):
            self.pauses.append(hook.pause)
        else:
            flow = hook.args()[0]
            if isinstance(flow, http.HTTPFlow):
                if flow not in self.flows and flow.request.method != "CONNECT":
                    self.flows.append(flow)
                if isinstance(hook, HttpResponseHook | HttpErrorHook):
                    self.ended[flow.id] += 1
        if name in self.on:
            self.on[name](hook.args()[0])
        if name in self.held:
            self.waiting.append(hook)
        elif hook.blocking:
            self._done(hook, None)

    def _done(self, command: commands.Command, error: str | None) -> None:
        if isinstance(command, commands.OpenConnection):
            self._open(command, error)
            return
        assert isinstance(command, commands.StartHook)
        if isinstance(command, PoolPauseHook):
            self._end_pause(command.pause)
        self._inbox.append(events.HookCompleted(command))

    def _open(self, command: commands.OpenConnection, error: str | None) -> None:
        connection = command.connection
        assert isinstance(connection, Server)
        # As proxy/server.py does.
        if error:
            connection.error = error
        else:
            connection.state = ConnectionState.OPEN
            connection.timestamp_tcp_setup = self.clock.wall_now()
            if self.server2:
                connection.alpn = b"h2"
            reader = Peer2(client_side=False) if self.server2 else Reader1()
            self.servers.append(Upstream(self, connection, self.server2, reader))
        self._inbox.append(events.OpenConnectionCompleted(command, error))
        if self.server2 and not error:
            data = self.servers[-1].h2.data_to_send()
            self._inbox.append(events.DataReceived(connection, data))

    def _end_pause(self, pause: Pause) -> None:
        """What the addon and Service.carry_out do, without a loop."""
        pause.taken = True
        match pause.step:
            case Wait() as wait:
                if not pause.woken.is_set():
                    self.clock.advance(wait.until - self.clock.now())
            case Refresh():
                pause.refreshed = self.refreshed
            case str():
                pause.response = self.local

    def _sent(self, connection: Connection, data: bytes) -> None:
        # As proxy/server.py: a connection that only takes no new requests is written to.
        if connection.state is ConnectionState.CLOSED or connection in self.half_closed:
            return
        if connection is self.client:
            self.reader.feed(data)
            if isinstance(self.reader, Peer2) and (more := self.reader.h2.data_to_send()):
                self._inbox.append(events.DataReceived(self.client, more))
            return
        server = self._of(connection)
        server.reader.feed(data)
        if isinstance(server.reader, Peer2) and (more := server.reader.h2.data_to_send()):
            self._inbox.append(events.DataReceived(connection, more))

    def _ended(self, connection: Connection) -> None:
        # As proxy/server.py, whose task for the connection ends.
        if connection.state is ConnectionState.CLOSED:
            connection.timestamp_end = self.clock.wall_now()

    def _closed(self, connection: Connection) -> None:
        if connection is self.client:
            self.client_closed += 1
        else:
            if not any(server.connection is connection for server in self.servers):
                self._give_up_opening(connection)
                return
            self._of(connection).closed += 1
        if connection.state is not ConnectionState.CLOSED:
            said = not connection.state & ConnectionState.CAN_READ
            connection.state = ConnectionState.CLOSED
            if said:
                self._ended(connection)
            else:
                self._inbox.append(events.ConnectionClosed(connection))

    def _attend(self, idle: Iterable[Connection]) -> None:
        """What `client_handler.attend` has mitmproxy do."""
        for connection in idle:
            self._of(connection).closed += 1
            self._inbox.append(events.ConnectionClosed(connection))
        if self.layer.timer is not None:
            self._inbox.append(events.Wakeup(self.layer.timer))
        self._run()

    def _give_up_opening(self, connection: Connection) -> None:
        connection.state = ConnectionState.CLOSED
        for command in self.waiting:
            if isinstance(command, commands.OpenConnection) and command.connection is connection:
                self.waiting.remove(command)
                self._done(command, "connection cancelled")
                return

    def _of(self, connection: Connection) -> Upstream:
        return next(s for s in self.servers if s.connection is connection)


def _killed(stream: http_layers.HttpStream) -> bool:
    flow = getattr(stream, "flow", None)
    return flow is not None and flow.error is not None and flow.error.msg == Error.KILLED_MESSAGE


def _name(command: commands.Command) -> str:
    return command.name if isinstance(command, commands.StartHook) else "open"


def use_ready_tls(monkeypatch: Any) -> None:
    """Let upstream connections be TLS without a handshake."""
    monkeypatch.setattr(http_layers.tls, "ServerTLSLayer", ReadyTls)
