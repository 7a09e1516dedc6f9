"""An HttpStream that can send its request more than once. Mechanics only.

How an attempt gets its id and loses it, how it is cut off, responses of our own,
timers, and what goes on to the layer of a WebSocket.
What is done with all that is in `pooled_exchange.py`.

Every attempt has a stream id of its own on the server side, because a finished HTTP/2
stream cannot carry a second request. Events of attempts that were abandoned are dropped
by their id. Facts about mitmproxy this file rests on:

- A stream that yields a blocking command is paused; events that come meanwhile are
  queued, and `check_killed` finds the client's departure among them.
- `HttpLayer` routes events by `streams[id]` and timers by `command_sources[command]`.
- `Http1Client` emits the end of a message before it resets itself: `when_handled` let it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from mitmproxy import http
from mitmproxy.connection import Connection, Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.layers.http import (
    GetHttpConnection,
    HttpEvent,
    HttpResponseHeadersHook,
    HttpStream,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    SendHttp,
)
from mitmproxy.proxy.layers.websocket import WebsocketLayer

from account_pool.providers.base import LocalResponse, Provider
from account_pool.proxy import error_response
from account_pool.proxy.events import (
    CANCEL,
    SERVER_ERROR,
    GetFreshConnection,
    InterimResponse,
    WholeRequest,
)
from account_pool.proxy.flow_view import BodyCopy
from account_pool.proxy.pooled_request import PooledRequest
from account_pool.proxy.service import Service
from account_pool.supervision import log_and_continue, where

logger = logging.getLogger(__name__)

#: A connection that was used, or idle so long, may have been closed by the server
#: before our request reached it.
KEPT_AFTER_S = 1.0
#: Says no where mitmproxy wants a generator: what comes of `yield from` is None.
NO: Any = ()
INTERNAL = "internal error in the account pool; see its log"


class AttemptRouter(Protocol):
    """The layer of one client, as its streams know it: see `http_layer.PoolHttpLayer`.

    Attributes:
        streams: where events go, by the ids of requests and of attempts.
        attempts: the same of attempts alone.
        attempt_ids: of those to come: negative, so that none is the id of a client's stream.
        when_handled: streams that get an `EventHandled` once everybody has handled the event.
            `Http1Client` emits the end of a message before it resets itself: a request sent
            right then on the same connection would crash it.
        answered: server connections that have carried a response.
        used: server connections that an attempt was sent on.
        quick: server connections that take a `WholeRequest`.
        http2: connections to servers over HTTP/2 that are ours.
    """

    service: Service
    connections: dict[Connection, Layer]
    streams: dict[int, HttpStream]
    attempts: dict[int, AttemptStream]
    attempt_ids: Iterator[int]
    when_handled: list[AttemptStream]
    answered: set[Connection]
    used: set[Connection]
    quick: set[Connection]
    http2: dict[Connection, Any]

    def ready(self, wanted: GetHttpConnection) -> Connection | None:
        """Return an open connection for *wanted*; None where one is to be opened."""

    def drop_timer(self, timer: commands.RequestWakeup) -> bool:
        """Let a timer hold nothing. Say whether it still runs."""

    def shown(self, text: str) -> str:
        """Return what may be said of *text*, which is mitmproxy's."""


class StreamTimer:
    """The timer of a stream: one thing at most is to be done later.

    Attributes:
        command: what runs; None between.
    """

    def __init__(self, layer: AttemptRouter) -> None:
        self.command: commands.RequestWakeup | None = None
        self._layer = layer
        self._then: Callable[[], CommandGenerator[None]] | None = None

    def set(
        self, delay_s: float, then: Callable[[], CommandGenerator[None]]
    ) -> CommandGenerator[None]:
        """Run *then* in *delay_s* seconds unless `clear` comes first."""
        self.clear()
        self.command, self._then = commands.RequestWakeup(delay_s), then
        yield self.command

    def clear(self) -> None:
        if self.command is not None:
            self._layer.drop_timer(self.command)
            self.command = self._then = None

    def woke(self, event: events.Wakeup) -> CommandGenerator[None]:
        """A timer has come: this one, or one that was cleared."""
        then = self._then
        if event.command is self.command and then is not None:
            self.command = self._then = None
            yield from then()


class AttemptStream(HttpStream):
    """One client request and its attempts on the server side.

    Attributes:
        attempt_id: id of the running attempt; None between attempts.
        sent_at: when it was sent, monotonic seconds.
        sent_among: connections there were then; one that comes after them is newer.
        heard: something came, from either side, since `quiet_since` was last looked at.
        on_kept_connection: it went out on a connection that may have gone stale.
        interim_came: it was received: a response before the response says so.
        copy: of the response while it streams; None before and after.
        timer: for what is bounded in time.
        call: set when the request goes to a host of the pool.
    """

    call: PooledRequest | None = None
    #: a response of the admin pages goes on until the proxy ends
    is_streaming = False
    #: a response is on its way to the client
    _committed = False

    def __init__(self, context: Context, stream_id: int, parent: AttemptRouter) -> None:
        super().__init__(context, stream_id)
        self.layer = parent
        self.service = parent.service
        self.attempt_id: int | None = None
        self.sent_at = 0.0
        self.sent_among = 0
        self.heard, self.quiet_since = False, 0.0
        self.on_kept_connection = False
        self.interim_came = False
        self.copy: BodyCopy | None = None
        self.timer = StreamTimer(parent)

    # -- while paused

    @contextmanager
    def client_watched(self, on_leaving: Callable[[], None]) -> Iterator[None]:
        """While paused, call *on_leaving* the moment the client goes.

        The event itself stays queued for `check_killed`, as everywhere in mitmproxy.
        """

        def handle_event(event: events.Event) -> CommandGenerator[None]:
            if isinstance(event, RequestProtocolError):
                on_leaving()
            return type(self).handle_event(self, event)

        self.handle_event = handle_event  # type: ignore[method-assign]  # for a while
        try:
            yield
        finally:
            self.__dict__.pop("handle_event", None)

    def client_leaves(self) -> None:
        """The client has gone while a connection for it was opened."""
        raise NotImplementedError

    # -- attempts

    def connect(
        self, address: tuple[str, int], tls: bool, avoided: frozenset[Connection] = frozenset()
    ) -> Generator[commands.Command, Any, str | None]:
        """Get a connection that is none of *avoided*. Returns what went wrong, None: nothing."""
        server = self.flow.server_conn
        spec = (address, tls, server.via, server.transport_protocol)
        get = GetHttpConnection(*spec)
        if avoided:
            get = GetFreshConnection(*spec)
            get.avoided = avoided
        connection: Any = self.layer.ready(get)
        if connection is None:
            with self.client_watched(self.client_leaves):
                connection, error = yield get
            if error:
                return str(error)
        self.context.server = self.flow.server_conn = connection
        return None

    def send_attempt(self, request: http.Request) -> list[commands.Command]:
        """Return what sends *request*, the copy with a credential, to the current connection."""
        layer, server = self.layer, self.context.server
        idle = _is_idle(server, self.service.wall_now())
        self.on_kept_connection = idle or server in layer.answered
        if server not in layer.used:
            layer.used.add(server)
            with log_and_continue:
                self.service.connected(self.context.client)
        self.attempt_id = attempt_id = next(layer.attempt_ids)
        layer.streams[attempt_id] = layer.attempts[attempt_id] = self
        self.sent_at, self.sent_among = self.service.now(), len(layer.connections)
        self.heard, self.quiet_since = False, self.sent_at
        self.interim_came = False
        if self.client_state == self.state_stream_request_body:
            # The body follows as it comes from the client.
            return [SendHttp(RequestHeaders(attempt_id, request, end_stream=False), server)]
        content = request.raw_content
        trailers = request.trailers
        if trailers and not takes_trailers(server):
            trailers = None
        if server in layer.quick and not trailers:
            whole = WholeRequest(attempt_id, request, not content, content=content or b"")
            return [SendHttp(whole, server)]
        end_stream = not (content or trailers)
        sent: list[HttpEvent] = [RequestHeaders(attempt_id, request, end_stream)]
        if content:
            sent.append(RequestData(attempt_id, content))
        if trailers:
            sent.append(RequestTrailers(attempt_id, trailers))
        sent.append(RequestEndOfMessage(attempt_id))
        return [SendHttp(event, server) for event in sent]

    def cancel_attempt(self, reason: str) -> CommandGenerator[None]:
        """Cut off the running attempt, if any."""
        attempt_id = self.attempt_id
        if attempt_id is not None:
            self.forget_attempt()
            yield SendHttp(RequestProtocolError(attempt_id, reason, CANCEL), self.context.server)

    def may_go(self) -> bool:
        """Say whether the running attempt, if it has not left yet, shall still do so."""
        raise NotImplementedError

    def forget_attempt(self) -> None:
        """The running attempt, if any, has ended; what still comes of it is dropped."""
        if self.attempt_id is not None:
            self.layer.streams.pop(self.attempt_id, None)
            self.layer.attempts.pop(self.attempt_id, None)
            self.attempt_id = None

    def untie(self) -> None:
        """All is over: refer to nothing that refers to this stream.

        It goes at once then, with the message bodies and whatever else it holds, and does
        not wait for the garbage collector.
        """
        self.context.layers.clear()
        self.client_state = self.server_state = _over

    # -- what flows say of errors

    def handle_protocol_error(
        self, event: RequestProtocolError | ResponseProtocolError
    ) -> CommandGenerator[None]:
        event.message = self.layer.shown(event.message)
        return super().handle_protocol_error(event)

    def check_killed(self, emit_error_hook: bool) -> CommandGenerator[bool]:
        # It looks for the client's departure among the events that wait.
        for event in self._paused_event_queue:
            if isinstance(event, RequestProtocolError):
                event.message = self.layer.shown(event.message)
        return super().check_killed(emit_error_hook)

    def check_body_size(self, request: bool) -> CommandGenerator[bool]:
        # Each look at an option of mitmproxy's copies its value; this asks four times.
        return super().check_body_size(request) if self.service.settings.body_limits else NO

    # -- responses of our own

    @property
    def provider(self) -> Provider:
        """Whose request it is. Not to be asked where it is nobody's."""
        assert self.call is not None
        return self.call.provider

    def respond_locally(self, answer: LocalResponse) -> CommandGenerator[None]:
        """Give the client a response of our own."""
        yield from self.respond(error_response.local(answer))

    def respond(self, response: http.Response) -> CommandGenerator[None]:
        """Give the client a response that is complete, as the base class does for addons."""
        self.flow.response = response
        response.timestamp_start = self.service.wall_now()
        self.server_state = self.state_done
        self.settle(served=False)
        uploading = self.client_state == self.state_stream_request_body
        yield HttpResponseHeadersHook(self.flow)
        if (yield from self.client_gone()):
            return
        yield from self.send_response()
        if uploading and self.server_state == self.state_done:
            # The client still sends; what comes is swallowed.
            yield from self.flow_done()
            self.client_state = self.state_errored

    def respond_at_head(self, response: http.Response) -> CommandGenerator[None]:
        """Give the response of another addon (proxyauth, say), while the request still comes.

        mitmproxy's class cannot have both.
        """
        self.client_state = self.state_stream_request_body
        yield from self.respond(response)

    def client_gone(self) -> CommandGenerator[bool]:
        """Look whether the client left, or somebody killed the flow, while we waited."""
        gone = yield from self.check_killed(True)
        if gone:
            self.settle(served=False, left=True)
            yield from self.cancel_attempt("client left")
        return gone

    def settle(self, *, served: bool, left: bool = False) -> None:
        """The request is over: what was held for it goes back, once. *left*: its client has gone.

        Nothing is held here.
        """

    def fail(self, error: Exception) -> CommandGenerator[None]:
        """An unexpected error in our code: nothing goes upstream, the client is told."""
        provider = self.provider
        logger.error(f"{provider.name}: internal error {where(error)}")
        self.timer.clear()
        with log_and_continue:
            self.settle(served=False)
        yield from self.cancel_attempt("internal error")
        if self._committed or self.server_state == self.state_done:
            # The response is cut off; the error hook tells every front end.
            yield from super().handle_protocol_error(
                ResponseProtocolError(self.stream_id, "internal error", SERVER_ERROR)
            )
            self.client_state = self.server_state = self.state_errored
            return
        yield from self.respond_locally(provider.refusal(500, INTERNAL, None))

    # -- while the proxy shuts down

    @property
    def under_way(self) -> bool:
        """Whether the client waits for something that will end."""
        flow = getattr(self, "flow", None)
        if flow is None or not flow.live or flow.request.method == "CONNECT":
            return False
        return not self.is_open_socket

    @property
    def is_open_socket(self) -> bool:
        """Whether it is a WebSocket of the pool that has been opened and not closed."""
        is_socket = self.call is not None and isinstance(self.child_layer, WebsocketLayer)
        return is_socket and self.flow.live

    # -- the response

    def start_response_stream(self) -> CommandGenerator[None]:
        # As the base class does, without its log line per response.
        assert self.flow.response is not None
        yield SendHttp(
            ResponseHeaders(self.stream_id, self.flow.response, end_stream=False),
            self.context.client,
        )
        self.server_state = self.state_stream_response_body

    # -- after a 101

    def socket_ended(self) -> None:
        """One side of the WebSocket is gone."""
        raise NotImplementedError

    def pass_on(self, event: events.Event) -> CommandGenerator[None]:
        """Give *event*, of the running attempt or the client, to the layer of the socket."""
        ended = False
        if type(event) is InterimResponse:
            return
        if isinstance(event, HttpEvent):
            event.stream_id = self.stream_id
            ended = isinstance(event, _SOCKET_ENDS)
        if isinstance(event, RequestProtocolError):
            event = events.ConnectionClosed(self.context.client)
        elif isinstance(event, ResponseProtocolError):
            event = events.ConnectionClosed(self.context.server)
        yield from translated(super().passthrough(event), self.to_attempt)
        if ended:
            self.socket_ended()

    # -- translations

    def to_attempt(self, command: commands.Command) -> commands.Command | None:
        """What the base class sends upstream belongs to the running attempt."""
        if isinstance(command, SendHttp) and command.connection is self.context.server:
            is_trailers = isinstance(command.event, RequestTrailers)
            if self.attempt_id is None or (is_trailers and not takes_trailers(command.connection)):
                return None
            command.event.stream_id = self.attempt_id
        return command


def _is_idle(connection: Connection, wall_now: float) -> bool:
    # When it was ready; `timestamp_start` is before a look-up that may take long.
    opened = connection.timestamp_tls_setup or connection.timestamp_start or 0.0
    if isinstance(connection, Server):
        opened = max(opened, connection.timestamp_tcp_setup or 0.0)
    return wall_now - opened > KEPT_AFTER_S


def takes_trailers(connection: Connection) -> bool:
    """Say whether *connection* can be sent trailers; mitmproxy's HTTP/1 cannot.

    They may be left out (RFC 9110, 6.5.1).
    """
    return connection.alpn == b"h2"


_SOCKET_ENDS = (
    RequestEndOfMessage,
    ResponseEndOfMessage,
    RequestProtocolError,
    ResponseProtocolError,
)


def _over(event: events.Event) -> CommandGenerator[None]:
    raise AssertionError(f"unexpected event after the end: {event}")


def only_to(client: Connection) -> Callable[[commands.Command], commands.Command | None]:
    """Return what drops commands to servers: the base class knows no ids of attempts.

    A server is told by `cancel_attempt`.
    """

    def translate(command: commands.Command) -> commands.Command | None:
        upstream = isinstance(command, SendHttp) and command.connection is not client
        return None if upstream else command

    return translate


def translated(
    generator: CommandGenerator[None],
    translate: Callable[[commands.Command], commands.Command | None],
) -> CommandGenerator[None]:
    """Run *generator* with its commands translated or dropped, replies handed through."""
    reply: Any = None
    while True:
        try:
            command = generator.send(reply)
        except StopIteration:
            return
        kept = translate(command)
        reply = None if kept is None else (yield kept)
