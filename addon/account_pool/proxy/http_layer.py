"""mitmproxy's HttpLayer with streams that replay.

Below it are our own HTTP/1 and HTTP/2, each where it fits the mitmproxy that runs. `Sweep`
looks after the attempts of one client: none waits for a connection that has gone.
"""

from __future__ import annotations

import importlib
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from types import ModuleType
from typing import Any, cast

from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import (
    GetHttpConnection,
    Http1Client,
    Http2Client,
    HttpLayer,
    HTTPMode,
    ReceiveHttp,
    RegisterHttpConnection,
    ResponseProtocolError,
)

from account_pool.proxy import client_handler, pooled_request, redaction, tunnels
from account_pool.proxy.events import SERVER_ERROR, EventHandled, Silent
from account_pool.proxy.fast import short, steps
from account_pool.proxy.http_stream import AttemptStream
from account_pool.proxy.service import Service
from account_pool.proxy.stream import PoolHttpStream
from account_pool.proxy.tunnels import OPENING_S
from account_pool.supervision import where

logger = logging.getLogger(__name__)


def own_http(version: int) -> ModuleType | None:
    """Return `http1` or `http2`; None where the private parts it stands on are not as known."""
    try:
        module = importlib.import_module(f"account_pool.proxy.http{version}")
        module.check()
    except Exception as e:
        logger.info(f"account-pool: mitmproxy's own HTTP/{version} is used ({type(e).__name__})")
        return None
    return module


_QUICK, _HTTP2 = own_http(1), own_http(2)

#: Writes are put together up to this size; beyond it, copying costs more than it saves.
MAX_WRITE_BYTES = 65536
#: Connections there may be until those that are over are forgotten.
KEPT_CLOSED = 8
#: How often attempts are looked at, seconds.
SWEEP_S = 5.0
#: mitmproxy's bound where it has no option for it.
TCP_TIMEOUT_S = 600.0
_CAN_READ = ConnectionState.CAN_READ


class PoolHttpLayer(HttpLayer):
    """Routes the events of attempts, which have ids of their own, to their streams.

    Attributes: those of `http_stream.AttemptRouter`, and
        doubts: what is to be told after a suspend, and to whom.
    """

    def __init__(self, context: Context, mode: HTTPMode, service: Service) -> None:
        super().__init__(context, mode)
        self.service = service
        self.answered: set[Connection] = set()
        self.quick: set[Connection] = set()
        self.used: set[Connection] = set()
        self._unopened: set[Connection] = set()
        self.attempts: dict[int, AttemptStream] = {}
        self._sweep = Sweep(self)
        #: connections to servers over HTTP/2 that are ours, and those that were looked at
        self.http2: dict[Connection, Any] = {}
        self._looked_at: set[Connection] = set()
        self.doubts: list[tuple[layer.Layer, events.Event]] = []
        self._given_back: list[ResponseProtocolError] = []
        self.attempt_ids: Iterator[int] = count(-1, -1)
        #: a request was told why the connection that mitmproxy opened by itself is none
        self._told_early = False
        self.when_handled: list[AttemptStream] = []
        quick = "relay" in service.settings.fast and short.knows_chunks()
        self._relay = partial(short.relayed, self) if quick else None
        service.layers.add(self)
        opened = context.server.timestamp_tcp_setup
        if opened is not None and opened < service.suspends.woke_at:
            # Its client connected, slept, and only now asks for something.
            service.suspends.renew(self)

    def handle_event(self, event: events.Event) -> CommandGenerator[None]:
        """Handle *event* as the base class does, with fewer and larger writes.

        The head and the body of a message leave mitmproxy as writes of their own, each a
        TLS record and a system call. What one event causes for one connection leaves
        together here: the same bytes at the same time, for less.

        Nothing pauses this layer (a command that blocks, blocks the stream it is of), so
        the base class's part in that is left out: every command would pass through it.
        """
        held: list[bytes] = []
        to: Connection = self.context.client
        size = 0
        source: CommandGenerator[None] | None = self._handle_event(event)
        while source is not None:
            try:
                for command in source:
                    if type(command) is commands.SendData:
                        length = len(command.data)
                        if held and (
                            to is not command.connection or size + length > MAX_WRITE_BYTES
                        ):
                            yield commands.SendData(to, b"".join(held))
                            held, size = [], 0
                        to = command.connection
                        held.append(command.data)
                        size += length
                        continue
                    if held:
                        yield commands.SendData(to, b"".join(held))
                        held, size = [], 0
                    if type(command) is commands.Log:
                        command.message = self.shown(command.message)
                    yield command
            except Exception as e:
                source = self.broke_off(event, e)
                continue
            source = self._next_source()
        if held:
            yield commands.SendData(to, b"".join(held))

    def drive(self, event: events.Event, carry_out: Callable[[commands.Command], object]) -> None:
        """Handle *event* as `handle_event` does, and have each command carried out at once.

        The same without a generator that is resumed for each command.
        """
        held: list[bytes] = []
        to: Connection = self.context.client
        size = 0
        source: CommandGenerator[None] | None = self._handle_event(event)
        while source is not None:
            try:
                command = next(source, None)
            except Exception as e:
                source = self.broke_off(event, e)
                continue
            if command is None:
                idle = self._sweep.timer is not None or not self.attempts
                if idle and not (
                    self.when_handled
                    or self.waiting_for_establishment
                    or self._given_back
                    or self.doubts
                ):
                    break
                source = self._next_source()
                continue
            if type(command) is commands.SendData:
                size += len(command.data)
                if held and (to is not command.connection or size > MAX_WRITE_BYTES):
                    carry_out(commands.SendData(to, b"".join(held)))
                    held, size = [], len(command.data)
                to = command.connection
                held.append(command.data)
                continue
            if held:
                carry_out(commands.SendData(to, b"".join(held)))
                held, size = [], 0
            if type(command) is commands.Log:
                command.message = self.shown(command.message)
            carry_out(command)
        if held:
            carry_out(commands.SendData(to, b"".join(held)))

    def _next_source(self) -> CommandGenerator[None] | None:
        """Return what is to be done once the event was handled; mostly there is nothing."""
        if self.waiting_for_establishment:
            self._take_opening()
        # Connections below have finished with the event by now.
        if self._given_back:
            ending = self._given_back.pop(0)
            stream = self.streams.get(ending.stream_id)
            return _nothing() if stream is None else self.event_to_child(stream, ending)
        if self.when_handled:
            return self.event_to_child(self.when_handled.pop(0), EventHandled())
        if self.doubts:
            return self.event_to_child(*self.doubts.pop())
        if self._sweep.timer is None and (self.attempts or self.waiting_for_establishment):
            return self._sweep.arm()
        return None

    def broke_off(self, event: events.Event, error: Exception) -> CommandGenerator[None]:
        """Close the connection that *event* is of: what was broken off there waits for ever.

        Nobody knows how far it got. A server's connection takes its requests with it, which
        are told or sent again; all others end with their client's.
        """
        logger.error(f"account-pool: {where(error)}; connection closed")
        closed: Connection = self.context.client
        if isinstance(event, events.ConnectionEvent):
            closed = event.connection
            if (at := self.connections.get(closed)) is not None:
                closed = client_handler.carrier(closed, at.context.layers)
        yield commands.CloseConnection(closed)

    def shown(self, text: str) -> str:
        """Return what may be said of *text*, which is mitmproxy's, on a connection of the pool."""
        target = pooled_request.of_connection(self.context)
        if target is not None and not self.service.recognizer.claims(target.name, target.port):
            return text
        return redaction.without_quotes(text)

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if type(event) is events.Wakeup:
            self.service.suspends.look()  # before anybody takes the time asleep for a silence
            if event.command not in self.command_sources:
                return _nothing()  # it was brought forward (`client_handler.attend`)
        elif type(event) is events.ConnectionClosed and len(self.connections) > KEPT_CLOSED:
            self._drop_closed()
        handled = super()._handle_event(event)
        return self._started(handled) if isinstance(event, events.Start) else handled

    def _drop_closed(self) -> None:
        """Forget connections that are over; mitmproxy keeps them until their client leaves.

        No event may come of one any more: its task has ended, or it never had one.
        """
        used: set[Connection] = {stream.context.server for stream in self.streams.values()}
        used.add(self.context.server)  # mitmproxy would take it for one nobody has used yet
        used.update(self.waiting_for_establishment)
        at: list[int] = []
        for number, server in enumerate([*self.connections]):
            if not isinstance(server, Server) or server in used:
                continue
            over = server.timestamp_end or server.via or server in self._unopened
            if over and server.state is ConnectionState.CLOSED:
                at.append(number)
                del self.connections[server]
                self.http2.pop(server, None)
                for known in (
                    self.answered,
                    self.quick,
                    self.used,
                    self._looked_at,
                    self._unopened,
                ):
                    known.discard(server)
        for stream in {cast("AttemptStream", stream) for stream in self.streams.values()}:
            stream.sent_among -= bisect_left(at, stream.sent_among)

    def _started(self, handled: CommandGenerator[None]) -> CommandGenerator[None]:
        yield from handled
        client = self.context.client
        if _QUICK is not None:
            self.connections[client] = _QUICK.quick_server(self.connections[client])
        if _HTTP2 is not None:
            _HTTP2.take_server(self.connections[client])
        steps.shorten(self)

    # -- after a suspend

    @property
    def timer(self) -> commands.RequestWakeup | None:
        """What wakes this layer next, while there are attempts."""
        return self._sweep.timer

    def woke(self) -> set[Connection]:
        """Nobody knows what has become of connections meanwhile: take none of them for alive.

        No new request goes out on one, until something comes on it. Returns those that no
        request is on, which shall be closed.
        """
        for stream in self.attempts.values():
            stream.heard = True  # that nothing came is no silence
        idle = set()
        kept: dict[Connection, Any] = dict(self.connections)
        if not any(getattr(stream, "child_layer", None) for stream in self.streams.values()):
            kept = {self.context.server: None, **kept}  # else it is for those in the tunnel
        for server, at in kept.items():
            if not isinstance(server, Server) or not server.state & _CAN_READ:
                continue
            if at is not None and server.alpn == b"h2":
                self._take(server)  # it may have spoken before there was a request
            if at is None or self._is_idle(server, at):  # None: it was opened in advance
                server.state = ConnectionState.CLOSED
                above = self.context if at is None else at.context
                idle.add(client_handler.carrier(server, above.layers))
        return idle

    def _is_idle(self, server: Server, outermost: layer.Layer) -> bool:
        """Say whether no request is on *server*; otherwise see to it that no other follows."""
        end = client_handler.end_of(outermost)
        ours: Any = next((client for client in self.http2.values() if client is end), None)
        if ours is not None:
            if ours.is_busy:
                self.doubts.append((outermost, ours.suspect()))
            return not ours.is_busy
        if isinstance(end, Http1Client):
            return end.stream_id is None  # a response that comes to its end proves it alive
        if end is not None and server.state is ConnectionState.OPEN:
            server.state = _CAN_READ
        return False

    def register_connection(self, command: RegisterHttpConnection) -> CommandGenerator[None]:
        if command.connection not in self.waiting_for_establishment:
            return _nothing()  # it was given up
        if not command.err:
            self._take(command.connection)
        elif command.connection.timestamp_tcp_setup is None:  # type: ignore[attr-defined]
            self._unopened.add(command.connection)
        if not command.err and _QUICK is not None:
            outermost = self.connections[command.connection]
            if _QUICK.make_client_quick(outermost, self._relay):
                self.quick.add(command.connection)
        return super().register_connection(command)

    def _take(self, server: Connection) -> None:
        """Make the HTTP/2 connection to *server* one of ours, if it is one."""
        if server in self._looked_at or _HTTP2 is None:
            return
        self._looked_at.add(server)
        end = client_handler.end_of(self.connections[server])
        if type(end) is Http2Client:  # mitmproxy's, and not ours yet
            self.http2[server] = _HTTP2.take(
                end, self.service.now, self._given_back.append, self._may_go
            )

    def _may_go(self, attempt_id: int) -> bool:
        stream = self.attempts.get(attempt_id)
        return stream is None or stream.may_go()

    @staticmethod
    def is_dead(connection: Connection) -> bool:
        """Say whether nothing can come from *connection* any more."""
        return connection.timestamp_end is not None or not connection.state & _CAN_READ

    def make_stream(self, stream_id: int) -> CommandGenerator[None]:
        stream = PoolHttpStream(_fork(self.context), stream_id, self)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def drop_timer(self, timer: commands.RequestWakeup) -> bool:
        """Let a timer hold nothing: its stream may be long over. Say whether it still runs."""
        if timer not in self.command_sources:
            return False
        self.command_sources[timer] = cast(Any, _NOBODY)
        return True

    def get_connection(
        self, event: GetHttpConnection, *, reuse: bool = True
    ) -> CommandGenerator[None]:
        self._look_over(event)
        early = self.context.server
        if early.error and early not in self.connections and event.connection_spec_matches(early):
            # Opened before there was a request. The first one is told, instead of a try of
            # its own: wrong passwords are counted. Later ones try again.
            if self._told_early:
                early.error = None
            self._told_early = True
        return super().get_connection(event, reuse=reuse)

    def ready(self, wanted: GetHttpConnection) -> Connection | None:
        """Return what `get_connection` finds without opening one; None if there is none.

        A stream that asks here need not be paused, nor its client be watched meanwhile.
        """
        self._look_over(wanted)
        over_http2 = self.context.client.alpn == b"h2"
        for connection in self.connections:
            if not wanted.connection_spec_matches(connection):
                continue
            if connection in self.waiting_for_establishment:
                return None  # mitmproxy waits for it
            # Many requests over HTTP/2 go to one over HTTP/1 on a connection each.
            if connection.connected and (connection.alpn == b"h2" or not over_http2):
                return connection
        return None

    def _look_over(self, wanted: GetHttpConnection) -> None:
        """See to it that no connection that could be taken for *wanted* is dead, or has failed."""
        suspends = self.service.suspends
        up, wall = suspends.clocks
        if up() >= suspends.overdue[0] or wall() >= suspends.overdue[1]:
            suspends.look()
        for connection in self.connections:
            if connection in self.waiting_for_establishment:
                continue  # a protocol may be agreed on already, but nobody speaks it yet
            if connection.error and wanted.connection_spec_matches(connection):
                # mitmproxy would repeat it to every later request of this client, which
                # keeps its connection to us: we have answered it in its own envelope.
                connection.error = None
            if isinstance(connection, Server) and connection.alpn == b"h2":
                self._take(connection)  # it may have spoken before there was a request
            if connection.connected and connection.timestamp_end is not None:
                connection.state = ConnectionState.CLOSED  # nobody reads it any more

    def _take_opening(self) -> None:
        for connection in self.waiting_for_establishment:
            quick = "direct" in self.service.settings.fast
            tunnels.take_tls(self.connections[connection], quick=quick)


def _fork(context: Context) -> Context:
    """As `Context.fork`, which first makes a server connection that nobody wants."""
    fork = Context.__new__(Context)
    fork.__dict__.update(context.__dict__)
    fork.layers = context.layers.copy()
    return fork


def _nothing() -> CommandGenerator[None]:
    yield from ()


class _Nobody:
    """Takes events that concern nobody any more."""

    def handle_event(self, _event: events.Event) -> CommandGenerator[None]:
        yield from ()


_NOBODY = _Nobody()


class Sweep:
    """Takes the wake-ups of one layer.

    The end of a connection is told by an event. Should one not come (mitmproxy may lose it,
    see `client_handler`), what it would have told is seen here, every few seconds while an
    attempt runs. What is dead is decided by what mitmproxy notes of a connection. Looking
    counts as activity for mitmproxy, which would end a silent client after `tcp_timeout`: so
    that is kept here, for each attempt.

    Attributes:
        timer: the next one, if it is arranged.
    """

    def __init__(self, layer: PoolHttpLayer) -> None:
        self._layer = layer
        self.timer: commands.RequestWakeup | None = None
        #: when connections were looked at first that have not begun to open
        self._not_begun: dict[Connection, float] = {}

    def arm(self) -> CommandGenerator[None]:
        """Look again soon; not to be called while that is arranged."""
        self.timer = commands.RequestWakeup(min(SWEEP_S, self._timeout_s() / 4))
        self._layer.command_sources[self.timer] = self  # type: ignore[assignment]
        yield self.timer

    def handle_event(self, _event: events.Event) -> CommandGenerator[None]:
        """Time has passed. Whatever is still looked after, the layer arms this again."""
        self.timer = None
        for connection, waiting in list(self._layer.waiting_for_establishment.items()):
            if waiting and self._opens_too_long(connection):
                yield commands.CloseConnection(connection)
                yield RegisterHttpConnection(connection, f"not open after {OPENING_S:.0f} s")
        for client in self._layer.http2.values():
            client.look_at_queue()
        now = self._layer.service.now()
        for attempt_id, stream in list(self._layer.attempts.items()):
            if attempt_id not in self._layer.attempts:
                continue  # what another's end led to has ended it
            if stream.heard:
                stream.heard, stream.quiet_since = False, now
            if now - stream.quiet_since >= self._timeout_s():
                yield ReceiveHttp(Silent(attempt_id, f"silence of {self._timeout_s():.0f} s"))
            elif self._layer.is_dead(stream.context.server):
                yield ReceiveHttp(
                    ResponseProtocolError(attempt_id, "the connection has ended", SERVER_ERROR)
                )

    def _timeout_s(self) -> float:
        """Return how long nothing may come (mitmproxy 11 has no option for it)."""
        return float(getattr(self._layer.context.options, "tcp_timeout", TCP_TIMEOUT_S))

    def _opens_too_long(self, connection: Connection) -> bool:
        now = self._layer.service.wall_now()
        started = connection.timestamp_start or self._not_begun.setdefault(connection, now)
        return now - started > OPENING_S
