"""mitmproxy's HTTP/2 connections, which end as RFC 9113 has it, and are known to live.

Of a server:

- A server that goes away (GOAWAY, section 6.8) answers what it has begun: streams up to
  the last id go on, the connection takes no new ones, those above did not run. mitmproxy
  and h2 end all of them at once, so the frame is met before h2 acts on it.
- A server that refuses a stream (REFUSED_STREAM, section 8.7) may refuse the next one: it is
  taken for one that goes away, so that no connection is left open that nobody uses.
- Requests that wait for MAX_CONCURRENT_STREAMS, and those for a connection that ended,
  come back; mitmproxy forgets them.
- A path can die without a word (a NAT, a suspend). Whoever is quiet too long after a PING
  is gone. A request for a connection that was quiet for long leaves when the PING was
  answered; it goes elsewhere if it is not. What a client gave up without one byte of an
  answer is a reason to doubt: the next one goes elsewhere until a byte comes.
- A response that is malformed ends its stream, not all the others (section 8.1.1). What
  came in good order before the end of a connection is handed on; h2 forgets what came in
  the same piece as a frame that it does not take.

Of a client: one that sends its request and leaves it (RST_STREAM) in one go has left.
mitmproxy takes the stream for done then, and goes on with the request.

A connection that takes no new requests says so by its state, which leaves it only the
reading: `HttpLayer` then opens another one. Stands on private parts of mitmproxy and h2:
it is imported by `http_layer.own_http`, and left alone where `check` fails.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import h2.events
import h2.exceptions
from h2.errors import ErrorCodes
from mitmproxy import connection, http
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import (
    HttpEvent,
    ReceiveHttp,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Server, StreamState

from account_pool.proxy.events import SERVER_ERROR, NotProcessed, Silent, Withdrawn

#: A connection that was quiet for so long is asked whether it lives before it gets a request.
QUIET_S = 30.0
#: How long a request waits for that.
PROOF_S = 3.0
#: How long after a PING a connection may be quiet. Also how long a server may take that went
#: away because of an error, which has to close (RFC 9113, 5.4.1).
DEAD_S = 20.0
#: How long a connection may be quiet while requests wait for one of its streams.
STUCK_S = 10.0
PING = b"liveness"
#: Of a stream: no other comes after it.
HIGHEST_ID = 2**31 - 1


class GoAway(h2.events.Event):
    """A GOAWAY frame that h2 has not acted on."""

    def __init__(self, last_id: int, error_code: int) -> None:
        self.last_id, self.error_code = last_id, error_code


class Doubted(events.Event):
    """Nobody knows whether the connection still lives: it shall be asked at once."""


class Malformed(h2.events.Event):
    """A stream has ended, because what came on it is no HTTP."""

    def __init__(self, stream_id: int, why: str) -> None:
        self.stream_id, self.why = stream_id, why


class Http2Frames(Http2Client):
    """What comes on a connection to a server, and what of it is no HTTP."""

    #: what has come of the frames of the piece that is read; it is being handled
    _came: list[Any]
    _reading: bool
    #: bytes that are still to come of bodies whose length was announced, by stream
    _owed: dict[int, int]

    def goaway(self, frame: Any) -> tuple[list[Any], list[GoAway]]:
        """Take a frame in h2's place."""
        return [], [GoAway(frame.last_stream_id, int(frame.error_code))]

    def receive_frame(self, frame: Any) -> list[Any]:
        """Take a frame in by h2, and note what comes of it."""
        try:
            came = type(self.h2_conn)._receive_frame(self.h2_conn, frame)
        except h2.exceptions.ProtocolError as e:
            if not self._is_of_one_stream(frame, e):
                raise
            with suppress(h2.exceptions.StreamClosedError):
                self.h2_conn.reset_stream(frame.stream_id, ErrorCodes.PROTOCOL_ERROR)
            came = [Malformed(frame.stream_id, str(e))]
        if any(self._lacks(one) for one in came):
            came = [*_going_on(came), Malformed(frame.stream_id, "a body shorter than announced")]
        # mitmproxy's h2 acts on these at once.
        self._came += [one for one in came if type(one) is not h2.events.WindowUpdated]
        return came

    def _lacks(self, event: Any) -> bool:
        """Count what comes of a body; say whether it has ended before that was all.

        h2 compares at the end of DATA only, not where headers or trailers are the end. A
        client over HTTP/1 would wait for the rest.
        """
        match event:
            case h2.events.ResponseReceived():
                self._owed[event.stream_id] = self._announced(event)
            case h2.events.DataReceived() if event.stream_id in self._owed:
                self._owed[event.stream_id] -= len(event.data or b"")
            case h2.events.StreamEnded():
                return self._owed.pop(event.stream_id, 0) > 0
            case h2.events.StreamReset():
                self._owed.pop(event.stream_id, None)
        return False

    def _announced(self, response: h2.events.ResponseReceived) -> int:
        headers = dict(response.headers or ())
        stream = self.h2_conn.streams.get(response.stream_id)
        # The length of what is not sent.
        bare = headers.get(b":status") in (b"204", b"304")
        if bare or getattr(stream, "request_method", None) == b"HEAD":
            return 0
        length = headers.get(b"content-length", b"")
        return int(length) if length.isdigit() else 0

    def _is_of_one_stream(self, frame: Any, error: h2.exceptions.ProtocolError) -> bool:
        """Say whether *error* leaves the connection as both sides know it.

        What names another error as its cause was met on the way: while headers were unpacked,
        whose table both sides share, or in a state that knows no such frame.
        """
        kinds = (h2.exceptions.ProtocolError, h2.exceptions.InvalidBodyLengthError)
        of_message = type(error) in kinds and type(frame).__name__ in _OF_MESSAGES
        return of_message and error.__context__ is None and frame.stream_id in self.streams

    def _malformed(self, event: Malformed) -> CommandGenerator[None]:
        if self.streams.pop(event.stream_id, None) is not None:
            why = f"HTTP/2 protocol error: {event.why}"
            yield ReceiveHttp(ResponseProtocolError(event.stream_id, why, SERVER_ERROR))

    @property
    def _is_over(self) -> bool:
        return "_handle_event" in self.__dict__

    @property
    def is_busy(self) -> bool:
        return bool(self._unanswered())

    def _unanswered(self) -> list[int]:
        """Return the streams that are not at their end, whatever the connection is."""
        of_h2 = self.h2_conn.streams
        return [ours for ours in self.streams if ours in of_h2 and not of_h2[ours].closed]

    @property
    def _max_streams(self) -> int:
        said: int = self.h2_conn.remote_settings.max_concurrent_streams
        return self.provisional_max_concurrency or said


class PoolHttp2Client(Http2Frames):
    """What `take` makes of a connection of mitmproxy's.

    Attributes:
        now: the monotonic clock.
        give_back: takes the end of a request that did not leave, or did not run.
        may_go: says of a request that waited whether it may still leave.
        last_id: of the streams that a server which goes away answers; None: it does not.
        heard_at: when something came last.
        pinged_at: when a PING was sent that nothing came after; None: there is none.
    """

    now: Callable[[], float]
    give_back: Callable[[ResponseProtocolError], None]
    may_go: Callable[[int], bool]
    last_id: int | None
    failed_at: float | None
    heard_at: float
    pinged_at: float | None
    _unheard: bool
    _held: dict[int, list[HttpEvent]]
    _gone: set[int]
    #: what we asked to be woken by: the last one counts, and none is mitmproxy's
    _timer: commands.RequestWakeup | None
    _timers: set[commands.RequestWakeup]

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, HttpEvent):
            yield from self._outgoing(event)
        elif isinstance(event, events.Wakeup) and event.command in self._timers:
            self._timers.remove(event.command)
            if event.command is self._timer:
                self._timer = None
                yield from self._look()
        elif isinstance(event, events.Wakeup):
            before = self.last_activity
            yield from super()._handle_event(event)
            if self.last_activity != before:  # mitmproxy has sent a PING
                yield from self._await_answer()
        elif isinstance(event, events.DataReceived):
            self.heard_at, self.pinged_at, self._unheard = self.now(), None, False
            self._came, self._reading = [], True
            yield from super()._handle_event(event)
            self._reading = False
            if not self._is_over:
                yield from self._heard()
        elif isinstance(event, Doubted):
            yield from self._doubt()
        else:
            yield from super()._handle_event(event)
        if not self._is_over:
            yield from self._go_on()

    # -- requests

    def _go_on(self) -> CommandGenerator[None]:
        """Send what waits for free streams as long as there are any.

        mitmproxy looks at one for each event, and none may follow if that one does not go.
        """
        while self.stream_queue and self.h2_conn.open_outbound_streams < self._max_streams:
            waited: list[Any] = self.stream_queue.pop(next(iter(self.stream_queue)))
            for event in waited:
                yield from self._outgoing(event)

    def _outgoing(self, event: HttpEvent) -> CommandGenerator[None]:
        stream_id = event.stream_id
        if stream_id in self._gone:
            return
        ours = self.our_stream_id.get(stream_id)
        if ours is None:
            if isinstance(event, RequestProtocolError):
                self._forget(stream_id)  # it never left
                return
            if self.last_id is not None:
                self._return(NotProcessed(stream_id, "the server goes away"))
                return
            if not self.may_go(stream_id):
                self._return(Withdrawn(stream_id, "the account was refused meanwhile"))
                return
            if stream_id in self._held or self._is_doubtful(event):
                self._held.setdefault(stream_id, []).append(event)
                if self.pinged_at is None:
                    yield from self._ping()
                elif self._timer is None:
                    yield from self._wake_in(PROOF_S)
                return
        if isinstance(event, RequestHeaders):
            self._unheard = True
            encoder = self.h2_conn.encoder
            if encoder.table_size_changes:
                # hpack forgets to tell of a new size that came twice before it could.
                encoder.header_table.resized = True
        waited = ours is not None and self.streams.get(ours)
        try:
            yield from super()._handle_event(event)
        except h2.exceptions.ProtocolError as e:
            yield from self._cannot_go_on(
                e, stream_id if isinstance(event, RequestHeaders) else None
            )
            return
        if isinstance(event, RequestProtocolError):
            self._owed.pop(event.stream_id, None)
            if waited and self._unheard and not self._is_over:
                yield from self._doubt()
            yield from self._close_if_done()

    def _cannot_go_on(
        self, error: h2.exceptions.ProtocolError, unsent: int | None = None
    ) -> CommandGenerator[None]:
        """End a connection that h2 lets nothing more be sent on; give back what was to be."""
        self._reading = False
        self._take_no_more(HIGHEST_ID)
        if unsent is not None:
            self._return(NotProcessed(unsent, f"not sent: {error}"))
        if not self._is_over:
            yield from self._end(f"HTTP/2 protocol error: {error}")

    def _forget(self, stream_id: int) -> None:
        self.stream_queue.pop(stream_id, None)
        self._held.pop(stream_id, None)
        self._gone.add(stream_id)

    def _return(self, ending: ResponseProtocolError) -> None:
        self._forget(ending.stream_id)
        self.give_back(ending)

    def look_at_queue(self) -> None:
        """Have what waits here go elsewhere when its turn may never come.

        An upload that its server takes no more of, or a long thought, may hold the only
        stream there is. Called again and again while there are requests.
        """
        if self.stream_queue and self.now() - self.heard_at >= STUCK_S:
            self.retire()
            for stream_id in [*self.stream_queue]:
                self._return(Withdrawn(stream_id, f"no free stream for {STUCK_S:.0f} s"))

    def withdraw(self) -> None:
        """Give back what waits here for an account that shall have no more now."""
        for stream_id in [*self.stream_queue, *self._held]:
            if not self.may_go(stream_id):
                self._return(Withdrawn(stream_id, "the account was refused meanwhile"))

    # -- the server goes away

    def handle_h2_event(self, event: Any) -> CommandGenerator[bool]:
        if type(event) is GoAway:
            return (yield from self._going_away(event))
        if isinstance(event, h2.exceptions.ProtocolError):
            self._take_no_more(HIGHEST_ID)  # nor what the responses before it make room for
            came, self._came = self._came, []
            for before in came:
                if (yield from self.handle_h2_event(before)):
                    return True
            if self._is_over:
                return True
        of = getattr(event, "stream_id", None)
        if self.last_id is not None and of is not None and of > self.last_id:
            return False
        if type(event) is Malformed:
            yield from self._malformed(event)
            return False
        reset = isinstance(event, h2.events.StreamReset)
        if reset and event.error_code == ErrorCodes.REFUSED_STREAM:
            yield from self._going_away(GoAway(HIGHEST_ID, ErrorCodes.NO_ERROR))
        return (yield from super().handle_h2_event(event))

    def _take_no_more(self, last_id: int) -> None:
        """Give back what has not left, and whatever else is to be sent here."""
        self.last_id = min(last_id, self.last_id if self.last_id is not None else HIGHEST_ID)
        self.retire()
        for stream_id in [*self.stream_queue, *self._held]:
            self._return(NotProcessed(stream_id, "the server goes away"))

    def _going_away(self, event: GoAway) -> CommandGenerator[bool]:
        self._take_no_more(event.last_id)
        assert self.last_id is not None
        for ours in [ours for ours in self.streams if ours > self.last_id]:
            self.streams.pop(ours)
            self.h2_conn.stream_buffers.pop(ours, None)
            self._return(NotProcessed(self.their_stream_id[ours], "the server goes away"))
        if event.error_code and self.failed_at is None:
            self.failed_at = self.now()
            yield from self._wake_in(DEAD_S)
        return False  # what came with it is still to be handled

    def suspect(self) -> Doubted:
        """Take nothing new until something comes; return what is to be told to ask for it."""
        self.retire()
        self.pinged_at = None  # whoever did not answer may have been asleep as well
        return Doubted()

    def retire(self) -> None:
        """Take no new requests."""
        if self.conn.state is ConnectionState.OPEN:
            self.conn.state = ConnectionState.CAN_READ

    def _close_if_done(self) -> CommandGenerator[None]:
        # For h2 a stream is closed whose end it has read; we may still be on the way to that.
        ends = self.last_id is not None and not self._reading
        if ends and not self._is_over and not self.is_busy:
            yield from self._end("the server went away")

    def _end(self, message: str) -> CommandGenerator[None]:
        """Close the connection, from outside of what translates the ids of streams."""
        waiting = self._unanswered()
        self.streams.clear()
        if not self._is_over:
            yield from self.close_connection(message)
        for ours in waiting:
            ended = ResponseProtocolError(self.their_stream_id[ours], message, SERVER_ERROR)
            yield ReceiveHttp(ended)

    def close_connection(self, msg: str) -> CommandGenerator[None]:
        for stream_id in [*self.stream_queue, *self._held]:
            self._return(NotProcessed(stream_id, msg))
        yield from super().close_connection(msg)
        self._handle_event = self._closed  # type: ignore[method-assign]

    def _closed(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, RequestHeaders):
            self.give_back(NotProcessed(event.stream_id, "the connection has ended"))
        yield from ()

    # -- is it alive?

    def _is_doubtful(self, event: HttpEvent) -> bool:
        if not isinstance(event, RequestHeaders) or event.stream_id in self.stream_queue:
            return False
        return self.now() - self.heard_at > QUIET_S or self.conn.state is ConnectionState.CAN_READ

    def _doubt(self) -> CommandGenerator[None]:
        """Somebody waited in vain: take nothing new until something comes."""
        self.retire()
        if self.pinged_at is None:
            yield from self._ping()

    def _ping(self) -> CommandGenerator[None]:
        self.h2_conn.ping(PING)
        yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        yield from self._await_answer()

    def _await_answer(self) -> CommandGenerator[None]:
        if self.pinged_at is None:
            self.pinged_at = self.now()
        yield from self._wake_in(PROOF_S if self._held else DEAD_S)

    def _wake_in(self, seconds: float) -> CommandGenerator[None]:
        self._timer = commands.RequestWakeup(max(seconds, 0.0))
        self._timers.add(self._timer)
        yield self._timer

    def _heard(self) -> CommandGenerator[None]:
        """It lives."""
        held, self._held = self._held, {}
        if self.last_id is None:
            if self.conn.state is ConnectionState.CAN_READ:
                self.conn.state = ConnectionState.OPEN
            for waiting in held.values():
                for event in waiting:
                    yield from self._handle_event(event)
        else:
            for stream_id in held:
                self._return(NotProcessed(stream_id, "the connection takes no more"))
        yield from self._close_if_done()

    def _look(self) -> CommandGenerator[None]:
        """A PING was to be answered by now, or a server that failed to have closed."""
        now = self.now()
        if self.failed_at is not None and now - self.failed_at >= DEAD_S:
            yield from self._end("the server went away")
            return
        if self.pinged_at is None:
            return
        for stream_id in [*self._held]:
            self._return(NotProcessed(stream_id, "no answer to a PING"))
        left = self.pinged_at + DEAD_S - now
        if left > 0 and self.is_busy:
            self.retire()
            yield from self._wake_in(left)
            return
        silent = [self.their_stream_id[ours] for ours in self._unanswered()]
        self.streams.clear()
        yield from self._end("no answer to a PING")
        for stream_id in silent:
            yield ReceiveHttp(Silent(stream_id, f"no sign of life for {DEAD_S:.0f} s"))


class PoolHttp2Server(Http2Server):
    """What `take_server` makes of a client's connection."""

    def handle_h2_event(self, event: Any) -> CommandGenerator[bool]:
        if isinstance(event, h2.events.StreamReset):
            # It is told to nobody where it is over already.
            self.streams.setdefault(event.stream_id, StreamState.HEADERS_RECEIVED)
        return (yield from super().handle_h2_event(event))


def take_server(of_client: layer.Layer) -> None:
    """Make the HTTP/2 connection of a client one of ours, if it is one."""
    if type(of_client) is Http2Server:
        cast(Any, of_client).__class__ = PoolHttp2Server


_OF_MESSAGES = ("HeadersFrame", "DataFrame")


def _going_on(came: list[Any]) -> list[Any]:
    """Return the events of a frame as if its stream had not ended."""
    for one in came:
        if getattr(one, "stream_ended", None) is not None:
            one.stream_ended = None
    return [one for one in came if type(one) is not h2.events.StreamEnded]


def take(
    client: Http2Client,
    now: Callable[[], float],
    give_back: Callable[[ResponseProtocolError], None],
    may_go: Callable[[int], bool],
) -> PoolHttp2Client:
    """Make *client*, which has just begun, one of ours."""
    cast(Any, client).__class__ = PoolHttp2Client
    ours = cast(PoolHttp2Client, client)
    ours.now, ours.give_back, ours.may_go = now, give_back, may_go
    ours.last_id = ours.failed_at = ours.pinged_at = ours._timer = None
    ours.heard_at, ours._unheard, ours._held, ours._gone = now(), False, {}, set()
    ours._timers, ours._came, ours._owed, ours._reading = set(), [], {}, False
    h2_conn: Any = ours.h2_conn  # which has types in some versions only
    h2_conn._receive_frame = ours.receive_frame
    table = h2_conn._frame_dispatch_table
    (kind,) = (kind for kind in table if kind.__name__ == "GoAwayFrame")
    table[kind] = ours.goaway
    return ours


class Differs(Exception):
    """A connection does not end as it should."""


_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
_GOAWAY_AFTER_1 = b"\0\0\x08\7\0\0\0\0\0" + b"\0\0\0\1" + b"\0\0\0\0"
_ANSWER_TO_1 = b"\0\0\1\1\5\0\0\0\1\x88"
_EMPTY_PING = b"\0\0\0\6\0\0\0\0\0"


def check() -> None:
    """Let a server go away between two requests, and send what is no HTTP/2 behind a response.

    Raises Differs, or whatever else comes of it.
    """
    options = types.SimpleNamespace(
        http2_ping_keepalive=0, validate_inbound_headers=True, normalize_outbound_headers=True
    )
    client = connection.Client(peername=("", 0), sockname=("", 0))
    context = Context(client, cast(Any, options))
    context.server.state = ConnectionState.OPEN
    plain = Http2Client(context)
    list(plain.handle_event(events.Start()))
    back: list[ResponseProtocolError] = []
    ours = take(plain, lambda: 0.0, back.append, lambda _id: True)
    for stream_id in (-1, -2):
        request = http.Request.make("GET", "https://a/")
        list(ours.handle_event(RequestHeaders(stream_id, request, True)))
        list(ours.handle_event(RequestEndOfMessage(stream_id)))
    fed = _SETTINGS + _GOAWAY_AFTER_1 + _ANSWER_TO_1 + _EMPTY_PING
    come = list(ours.handle_event(events.DataReceived(context.server, fed)))
    answers = [c.event.stream_id for c in come if isinstance(c, ReceiveHttp)]
    closed = any(isinstance(command, commands.CloseConnection) for command in come)
    kinds = [type(c.event) for c in come if isinstance(c, ReceiveHttp)]
    if (
        [(type(end), end.stream_id) for end in back] != [(NotProcessed, -2)]
        or answers[:1] != [-1]
        or kinds[:1] != [ResponseHeaders]
        or not closed
    ):
        raise Differs
