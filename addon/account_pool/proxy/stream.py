"""The HTTP layer that replays: one stream is one client request and up to N attempts.

Follows design.md section 2. Every attempt has a stream id of its own (negative, unique)
on the server side, because a finished HTTP/2 stream cannot carry a second request;
events of abandoned attempts are dropped by their id. The base class keeps doing the
client side and everything after the commit point.

Facts about mitmproxy this file rests on:

- An `HttpStream` that yields a blocking command is paused; events that come meanwhile
  are queued, and `check_killed` finds the client's departure among them.
- `HttpLayer` routes events by `streams[id]`, timers by `command_sources[command]`.
- `Http1Client` emits the end of a message before it resets itself: a blocking hook
  between two attempts gives it that turn.

The file is longer than most: it is one state machine, and reads best in one place.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Generator
from typing import Any, assert_never, cast

from mitmproxy import http
from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import (
    GetHttpConnection,
    HttpLayer,
    HTTPMode,
    HttpStream,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
    SendHttp,
)
from mitmproxy.proxy.layers.http._events import HttpEvent
from mitmproxy.proxy.layers.http._hooks import HttpResponseHeadersHook

from account_pool.core.attempts import (
    Answer,
    Attempts,
    Broken,
    Deliver,
    Refresh,
    Send,
    Step,
    Wait,
)
from account_pool.core.outcome import OutcomeClass
from account_pool.providers.base import LocalAnswer, Route
from account_pool.proxy import compat, delivery, destination, wire
from account_pool.proxy.answer import AnswerReader, Reading
from account_pool.proxy.call import Call
from account_pool.proxy.hooks import PoolTurnHook, Turn
from account_pool.proxy.service import Service

logger = logging.getLogger(__name__)

#: Requests up to this size are kept for replay; larger ones are streamed through once.
MAX_REPLAYABLE_BYTES = 64 * 1024 * 1024
#: A connection that was used, or idle so long, may have been closed by the server
#: before our request reached it.
KEPT_AFTER_S = 1.0
#: A kept connection that closes later than this after a request was sent may have been
#: working on it (providers.md, trap 22: a replay can be billed twice).
STALE_WITHIN_S = 2.0
#: How long the rest of a refused stream is read before the attempt is cut off: the end
#: mostly comes at once, and a connection that was read to its end can be used again.
DRAIN_S = 0.25
#: Bound of the copy of a streamed answer that is kept for inspection.
MAX_COPY_BYTES = 1024 * 1024


class PoolHttpLayer(HttpLayer):
    """mitmproxy's HttpLayer with streams that replay."""

    def __init__(self, context: Context, mode: HTTPMode, service: Service) -> None:
        super().__init__(context, mode)
        self.service = service
        #: server connections that have carried an answer
        self.answered: set[Connection] = set()
        self._last_attempt_id = 0

    def make_stream(self, stream_id: int) -> CommandGenerator[None]:
        stream = PoolHttpStream(self.context.fork(), stream_id, self)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def new_attempt(self, stream: PoolHttpStream) -> int:
        """Return an id for an attempt of *stream* and route its events there."""
        self._last_attempt_id -= 1
        self.streams[self._last_attempt_id] = stream
        return self._last_attempt_id

    def get_connection(
        self, event: GetHttpConnection, *, reuse: bool = True
    ) -> CommandGenerator[None]:
        fresh = isinstance(event, _GetFreshConnection)
        yield from super().get_connection(event, reuse=reuse and not fresh)


class _GetFreshConnection(GetHttpConnection):
    """Open a connection even where a kept one would do."""


class _DeadTimer:
    """Takes the late wake-up of a stream that has ended, so that nothing holds it."""

    def handle_event(self, _event: events.Event) -> CommandGenerator[None]:
        yield from ()


_DEAD_TIMER = _DeadTimer()


class PoolHttpStream(HttpStream):
    """One client request.

    Attributes:
        call: set when the request is the pool's business; the base class does the rest.
        attempts: the state machine, from the moment the body is complete.
        attempt_id: id of the running attempt on the server side; None between attempts.
    """

    def __init__(self, context: Context, stream_id: int, parent: PoolHttpLayer) -> None:
        super().__init__(context, stream_id)
        self.layer = parent
        self.service = parent.service
        self.call: Call | None = None
        self.attempts: Attempts | None = None
        self.attempt_id: int | None = None
        self.reader: AnswerReader | None = None
        self._sent_at = 0.0
        self._on_kept_connection = False
        self._timer: commands.RequestWakeup | None = None
        self._on_timer: Callable[[], CommandGenerator[None]] | None = None
        self._pending: Step | None = None
        self._committed = False
        self._copy: bytearray | None = None

    # -- events

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if self.call is None and not isinstance(event, RequestHeaders):
            yield from super()._handle_event(event)
            return
        if isinstance(event, HttpEvent) and event.stream_id < 0:
            if event.stream_id != self.attempt_id:
                return  # a late event of an abandoned attempt
            if self._copy is not None and type(event) is ResponseData:
                # The way of every chunk of a streamed answer: nothing more than needed.
                if len(self._copy) < MAX_COPY_BYTES:
                    self._copy += event.data
                event.stream_id = self.stream_id
                yield SendHttp(event, self.context.client)
                return
        try:
            yield from self._dispatch(event)
        except Exception as e:
            if self.call is None:
                raise  # not ours: mitmproxy's own way with it
            yield from self._fail(e)

    def _dispatch(self, event: events.Event) -> CommandGenerator[None]:
        if self.call is None:
            yield from super()._handle_event(event)
        elif self.call.route is Route.PASS:
            yield from _translated(super()._handle_event(event), self._restore)
        elif isinstance(event, ResponseProtocolError):
            yield from self._attempt_broke(event)
        elif isinstance(event, RequestProtocolError):
            yield from self._client_left(event)
        elif isinstance(event, events.Wakeup):
            yield from self._woke(event)
        elif isinstance(
            event, ResponseHeaders | ResponseData | ResponseTrailers | ResponseEndOfMessage
        ):
            event.stream_id = self.stream_id
            if isinstance(event, ResponseEndOfMessage):
                yield from self._answer_ended(event)
            else:
                yield from self.server_state(event)
        else:
            yield from super()._handle_event(event)

    # -- the request

    def state_wait_for_request_headers(self, event: RequestHeaders) -> CommandGenerator[None]:
        request = event.request
        if request.method == "CONNECT":
            # Every byte of the tunnel passes here: leave it to the base class alone.
            self.passthrough = super().passthrough  # type: ignore[method-assign]
        else:
            try:
                self._open(request)
            except Exception as e:
                yield from self._refuse_head(event, e)
                return
        if self.call is None:
            yield from super().state_wait_for_request_headers(event)
        elif self.call.route is Route.PASS:
            yield from _translated(super().state_wait_for_request_headers(event), self._restore)
        else:
            if _content_length(request) > MAX_REPLAYABLE_BYTES:
                request.stream = True
            yield from super().state_wait_for_request_headers(event)

    def _open(self, request: http.Request) -> None:
        """Find out whether the request is the pool's business, and mask it if so."""
        if self.mode is HTTPMode.transparent:
            target = destination.of_connection(self.context)
        elif request.host:
            target = destination.of_request(request.host, request.port, request.scheme)
        else:
            target = None
        if target is not None:
            self.call = self.service.open(request, target, self.context.client)

    def state_consume_request_body(self, event: events.Event) -> CommandGenerator[None]:
        if (
            self.call is not None
            and isinstance(event, RequestData)
            and len(self.request_body_buf) + len(event.data) > MAX_REPLAYABLE_BYTES
        ):
            # Longer than it said, or of unknown length: from here on it is streamed.
            self.request_body_buf += event.data
            body = bytes(self.request_body_buf)
            self.request_body_buf.clear()
            self.flow.request.stream = True
            yield from self.start_request_stream()
            yield from self.client_state(RequestData(self.stream_id, body))
            return
        if (
            self.service.settings.manual_approve
            and isinstance(event, RequestEndOfMessage)
            and self.call is not None
            and self.call.route is Route.POOL
        ):
            # The request hook that follows waits until a person resumes the flow.
            self.flow.intercept()
        yield from super().state_consume_request_body(event)

    def make_server_connection(self) -> CommandGenerator[bool]:
        # The base class comes here when the body is complete and no addon has answered.
        if self.call is None or self.call.route is Route.PASS:
            return (yield from super().make_server_connection())
        yield from self._serve()
        return False

    def start_request_stream(self) -> CommandGenerator[None]:
        if self.call is None or self.call.route is Route.PASS:
            yield from super().start_request_stream()
            return
        self.client_state = self.state_stream_request_body
        self.server_state = self.state_await_answer
        yield from self._serve()

    def state_stream_request_body(self, event: Any) -> CommandGenerator[None]:
        if self.call is None or self.call.route is Route.PASS:
            yield from super().state_stream_request_body(event)
        elif self.attempt_id is None:
            self.client_state = self.state_errored  # nobody to stream it to
        else:
            yield from _translated(super().state_stream_request_body(event), self._to_attempt)
            if isinstance(event, RequestEndOfMessage) and self.server_state == self.state_done:
                self._forget_attempt()  # its answer was complete before the request

    # -- attempts

    def _serve(self) -> CommandGenerator[None]:
        """Answer the request: locally, or from an account of the pool."""
        call = self.call
        assert call is not None
        if call.denied is not None:
            yield from self._answer_locally(call.denied)
        elif call.route is Route.LOCAL:
            turn = yield from self._take_turn(call.provider.name)
            if turn.answer is not None and not (yield from self._client_gone()):
                yield from self._answer_locally(turn.answer)
        elif not self._goes_where_it_should():
            logger.warning(f"{call.provider.name}: another addon sent a request elsewhere; refused")
            yield from self._answer_locally(
                call.provider.refusal(502, "another addon changed where this request goes", None)
            )
        else:
            self.attempts = self.service.attempts(
                call, self.flow.request, replayable=not self.flow.request.stream
            )
            self.service.begin(self.context.client, self.attempts)
            yield from self._perform(self.attempts.begin(self.service.now()))

    def _goes_where_it_should(self) -> bool:
        """Check that the flow still goes where it went when its head was read."""
        call, request = self.call, self.flow.request
        assert call is not None
        if (request.host, request.port) == call.address:
            return request.scheme == "https" or not call.destination.tls
        moved = destination.of_request(request.host, request.port, request.scheme)
        return moved.private and call.provider in self.service.hosts.find(moved.name, moved.port)

    def _perform(self, step: Step | None) -> CommandGenerator[None]:
        """Carry out steps until the provider or the client is to be waited for."""
        attempts = self.attempts
        assert attempts is not None
        while step is not None:
            match step:
                case Send():
                    if len(attempts.history) > 1:
                        self.service.log_replay(attempts)
                        yield from self._take_turn(None)
                        if (yield from self._client_gone()):
                            return
                    step = yield from self._send(step)
                case Wait():
                    yield from self._take_turn(step)
                    if (yield from self._client_gone()):
                        return
                    step = attempts.resumed(self.service.now())
                case Refresh():
                    turn = yield from self._take_turn(step)
                    if (yield from self._client_gone()):
                        return
                    step = attempts.refreshed(turn.refreshed, self.service.now())
                case Deliver():
                    yield from self._deliver(step)
                    return
                case Answer():
                    yield from self._answer_for_pool(step)
                    return
                case _:
                    assert_never(step)

    def _take_turn(self, step: Wait | Refresh | str | None) -> CommandGenerator[Turn]:
        """Let the addon wait or refresh for us, and the old connection reset itself."""
        turn = Turn(step)
        self._watch_client(turn.abandoned.set)
        yield PoolTurnHook(turn)
        self._unwatch_client()
        return turn

    def _send(self, step: Send) -> Generator[commands.Command, Any, Step | None]:
        """Send one attempt. Returns the next step if no connection could be made."""
        call, attempts, flow = self.call, self.attempts, self.flow
        assert call is not None
        assert attempts is not None
        lease = step.lease
        wire.rename(flow.request, call.masked, str(lease.key))
        flow.metadata["pool.account"] = str(lease.key)
        swap = self.service.swap(call.provider, lease)
        if swap.origin is not None:
            address, tls = (swap.origin.host, swap.origin.port), True
        else:
            address, tls = (flow.request.host, flow.request.port), flow.request.scheme == "https"
        get = _GetFreshConnection if step.fresh else GetHttpConnection
        self._watch_client(lambda: attempts.left(self.service.now()))
        connection, error = yield get(
            address, tls, flow.server_conn.via, flow.server_conn.transport_protocol
        )
        self._unwatch_client()
        if (yield from self._client_gone()):
            return None
        if error:
            return attempts.broken(Broken.CONNECT, self.service.now())
        self.context.server = flow.server_conn = connection
        self.attempt_id = self.layer.new_attempt(self)
        self.reader = None
        self._sent_at = self.service.now()
        self._on_kept_connection = self._is_kept(connection)
        self.server_state = self.state_await_answer
        yield from self._send_request(wire.outgoing(flow.request, swap, call.masked))
        return None

    def _send_request(self, request: http.Request) -> CommandGenerator[None]:
        attempt_id, server = self.attempt_id, self.context.server
        assert attempt_id is not None
        if request.stream or self.client_state == self.state_stream_request_body:
            yield SendHttp(RequestHeaders(attempt_id, request, False), server)
            return
        content, trailers = request.raw_content, request.trailers
        yield SendHttp(RequestHeaders(attempt_id, request, not (content or trailers)), server)
        if content:
            yield SendHttp(RequestData(attempt_id, content), server)
        if trailers:
            yield SendHttp(RequestTrailers(attempt_id, trailers), server)
        yield SendHttp(RequestEndOfMessage(attempt_id), server)

    def _is_kept(self, connection: Connection) -> bool:
        opened = connection.timestamp_start or 0.0
        return connection in self.layer.answered or self.service.wall_now() - opened > KEPT_AFTER_S

    # -- the answer

    def state_await_answer(self, event: events.Event) -> CommandGenerator[None]:
        """The attempt runs; nothing has come back yet."""
        assert isinstance(event, ResponseHeaders)
        assert self.call is not None
        self.layer.answered.add(self.context.server)
        self.reader = AnswerReader(event.response, self.call.provider)
        if self.reader.first is Reading.COMMIT:
            yield from self._commit(event.end_stream)
            return
        self.server_state = self.state_read_answer
        if self.reader.open_ended:
            yield from self._set_timer(self.service.settings.gate_s, self._reading_expired)

    def state_read_answer(self, event: events.Event) -> CommandGenerator[None]:
        """The head is held back until it is known what the answer is."""
        assert self.reader is not None
        if isinstance(event, ResponseData):
            yield from self._read(self.reader.feed(event.data))
        elif isinstance(event, ResponseTrailers):
            self.reader.response.trailers = event.trailers

    def state_drain(self, event: events.Event) -> CommandGenerator[None]:
        """The answer is refused; its rest is read so that the connection stays good."""
        assert self.reader is not None
        if isinstance(event, ResponseData):
            self.reader.held.append(event.data)
        yield from ()

    def _answer_ended(self, event: ResponseEndOfMessage) -> CommandGenerator[None]:
        attempts, reader = self.attempts, self.reader
        assert attempts is not None
        if self.server_state == self.state_read_answer:
            assert reader is not None
            yield from self._read(reader.end())
            if not self._committed:
                return
        elif self.server_state == self.state_drain:
            assert reader is not None
            reader.complete = True
            yield from self._drained()
            return
        if self.server_state in (self.state_errored, self.state_done):
            return
        if self.flow.response is not None and self.flow.response.status_code != 101:
            # Of a WebSocket this is only the handshake: its lease ends with the socket.
            if self.client_state == self.state_done:
                self._forget_attempt()
            self._settle(served=True)
        self._keep_copy()
        yield from self.server_state(event)

    def _read(self, reading: Reading) -> CommandGenerator[None]:
        match reading:
            case Reading.MORE:
                pass
            case Reading.COMMIT:
                yield from self._commit(end_stream=False)
            case Reading.REFUSED:
                yield from self._refused()
            case _:
                assert_never(reading)

    def _reading_expired(self) -> CommandGenerator[None]:
        if self.server_state == self.state_read_answer:
            assert self.reader is not None
            yield from self._read(self.reader.expired())

    def _refused(self) -> CommandGenerator[None]:
        """Ask what the refusal means, and do what follows."""
        call, attempts, reader = self.call, self.attempts, self.reader
        assert call is not None
        assert attempts is not None
        assert reader is not None
        self._clear_timer()
        outcome = call.provider.classify(
            reader.answer(attempts.facts.model, self.service.wall_now())
        )
        if outcome.cls is OutcomeClass.OK:
            yield from self._commit(end_stream=False)
            return
        lease = attempts.lease
        assert lease is not None
        if not reader.in_stream and outcome.cls in (OutcomeClass.RATE_LIMIT, OutcomeClass.QUOTA):
            body = reader.text().encode()
            self.service.remember(lease.key, reader.response, body)
        self._pending = attempts.refused(outcome, self.service.now())
        if reader.complete or isinstance(self._pending, Deliver):
            yield from self._drained()
        else:
            self.server_state = self.state_drain
            yield from self._set_timer(DRAIN_S, self._drained)

    def _drained(self) -> CommandGenerator[None]:
        """The refused answer was read as far as it will be: go on."""
        self._clear_timer()
        reader, step = self.reader, self._pending
        assert reader is not None
        self._pending = None
        if isinstance(step, Deliver) and not reader.complete:
            yield from self._commit(end_stream=False)
            return
        if reader.complete:
            self._forget_attempt()
        else:
            yield from self._cancel_attempt("refused")
        self.server_state = self.state_between_attempts
        yield from self._perform(step)

    def state_between_attempts(self, event: events.Event) -> CommandGenerator[None]:
        """No attempt runs. Only the events of one could come here, and none is left."""
        raise AssertionError(f"unexpected event between attempts: {event}")

    # -- delivering

    def _commit(self, end_stream: bool) -> CommandGenerator[None]:
        """Hand the answer to the client: no further attempt from here on."""
        reader, attempts = self.reader, self.attempts
        assert reader is not None
        assert attempts is not None
        self._clear_timer()
        self._committed = True
        if not attempts.over:
            attempts.committed(self.service.now())
        response = reader.response
        # A complete answer is given in one piece, as mitmproxy does by itself, so that
        # other addons may look into it; anything else streams.
        response.stream = not (end_stream or reader.complete or response.status_code == 101)
        yield from super().state_wait_for_response_headers(
            ResponseHeaders(self.stream_id, response, end_stream)
        )
        if self.server_state == self.state_errored:
            self._settle(served=False)
            yield from self._cancel_attempt("client left")
            return
        held, reader.held = reader.held, []
        if self.server_state == self.state_stream_response_body and response.stream is True:
            self._copy = bytearray()
        for data in held:
            if self._copy is not None:
                self._copy += data
            yield from self.server_state(ResponseData(self.stream_id, data))

    def start_response_stream(self) -> CommandGenerator[None]:
        # As the base class does, without its log line per answer.
        assert self.flow.response is not None
        yield SendHttp(
            ResponseHeaders(self.stream_id, self.flow.response, end_stream=False),
            self.context.client,
        )
        self.server_state = self.state_stream_response_body

    def _deliver(self, step: Deliver) -> CommandGenerator[None]:
        """Hand on the provider's own refusal, with the wait that holds for the pool."""
        call, attempts, reader = self.call, self.attempts, self.reader
        assert call is not None
        assert attempts is not None
        assert reader is not None
        response = delivery.corrected(reader, call.provider, step.retry_after_s, self._secrets())
        self.service.log_delivered(attempts, step.retry_after_s)
        yield from self._respond(response)

    def _answer_for_pool(self, step: Answer) -> CommandGenerator[None]:
        """Nothing to hand on: repeat what the provider last said, or say it ourselves."""
        call, attempts = self.call, self.attempts
        assert call is not None
        assert attempts is not None
        stored = self.service.remembered(step.like)
        if stored is not None:
            response = delivery.repeated(stored, call.provider, step.retry_after_s)
        else:
            response = delivery.local(
                call.provider.refusal(step.status, step.message, step.retry_after_s)
            )
        self.service.log_answered(attempts, step)
        yield from self._respond(response)

    def _answer_locally(self, answer: LocalAnswer) -> CommandGenerator[None]:
        yield from self._respond(delivery.local(answer))

    def _respond(self, response: http.Response) -> CommandGenerator[None]:
        """Give the client an answer that is complete, as the base class does for addons."""
        self.flow.response = response
        response.timestamp_start = self.service.wall_now()
        self.server_state = self.state_done
        self._settle(served=False)
        uploading = self.client_state == self.state_stream_request_body
        yield HttpResponseHeadersHook(self.flow)
        if (yield from self._client_gone()):
            return
        yield from self.send_response()
        if uploading:
            # The client still sends; what comes is swallowed.
            yield from self.flow_done()
            self.client_state = self.state_errored

    def _secrets(self) -> list[tuple[str, str]]:
        """What must not be echoed to the client: (secret, name of its account)."""
        attempts = self.attempts
        assert attempts is not None
        pool = self.service.pool
        return [
            (credential.secret.reveal(), str(state.key))
            for state in pool.accounts(attempts.facts.provider)
            for credential in state.credentials.values()
        ]

    # -- endings

    def _attempt_broke(self, event: ResponseProtocolError) -> CommandGenerator[None]:
        """The connection or stream of the attempt has ended before its answer."""
        attempts, reader = self.attempts, self.reader
        assert attempts is not None
        event.stream_id = self.stream_id
        self._clear_timer()
        self._forget_attempt()
        if self._committed:
            self._settle(served=False)
            self._keep_copy()
            yield from super().handle_protocol_error(event)
        elif self.server_state == self.state_drain:
            yield from self._drained_by_break()
        elif reader is not None and not reader.in_stream:
            # A refusal whose end was cut off is still a refusal.
            reader.complete = True
            yield from self._refused()
        else:
            how = self._how_it_broke(event)
            self.server_state = self.state_between_attempts
            yield from self._perform(attempts.broken(how, self.service.now()))

    def _drained_by_break(self) -> CommandGenerator[None]:
        step, self._pending = self._pending, None
        self.server_state = self.state_between_attempts
        yield from self._perform(step)

    def _how_it_broke(self, event: ResponseProtocolError) -> Broken:
        if "REFUSED_STREAM" in event.message:
            return Broken.STALE  # RFC 9113, 8.7: the request was not processed
        soon = self.service.now() - self._sent_at < STALE_WITHIN_S
        if self.reader is None and self._on_kept_connection and soon:
            return Broken.STALE
        return Broken.MAYBE_RAN

    def _client_left(self, event: RequestProtocolError) -> CommandGenerator[None]:
        """The client is gone: the lease is free at once, and nobody is to blame."""
        self._clear_timer()
        # Clients hang up as soon as they have the last event (clients.md, section 7): a
        # departure after the commit point is a success.
        self._settle(served=self._committed)
        self._keep_copy()
        yield from self._cancel_attempt(event.message)
        yield from _translated(super().handle_protocol_error(event), self._not_upstream)

    def _client_gone(self) -> CommandGenerator[bool]:
        """Look whether the client left, or somebody killed the flow, while we waited."""
        gone = yield from self.check_killed(True)
        if gone:
            self._settle(served=False)
            yield from self._cancel_attempt("client left")
        return gone

    def _settle(self, *, served: bool) -> None:
        """The request is over: its lease goes back, once."""
        attempts = self.attempts
        if attempts is None:
            return
        if not attempts.over:
            if served:
                attempts.finished(self.service.now())
            else:
                attempts.left(self.service.now())
        self.service.end(self.context.client, attempts)

    def _cancel_attempt(self, reason: str) -> CommandGenerator[None]:
        """Cut off the running attempt, if any."""
        attempt_id = self.attempt_id
        if attempt_id is not None:
            self._forget_attempt()
            yield SendHttp(
                RequestProtocolError(attempt_id, reason, compat.CANCEL), self.context.server
            )

    def _forget_attempt(self) -> None:
        if self.attempt_id is not None:
            self.layer.streams.pop(self.attempt_id, None)
            self.attempt_id = None

    def _keep_copy(self) -> None:
        """Put the bounded copy of the streamed body on the flow, for inspection."""
        if self.flow.response is not None and self._copy is not None:
            self.flow.response.data.content = bytes(self._copy)
            if len(self._copy) >= MAX_COPY_BYTES:
                self.flow.metadata["pool.truncated"] = True
        self._copy = None

    # -- our own failures

    def _fail(self, error: Exception) -> CommandGenerator[None]:
        """An unexpected error in our code: nothing goes upstream, the client is told."""
        call = self.call
        assert call is not None
        # Where, not what: the text of an exception may quote what it was about.
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        where = " < ".join(f"{f.filename}:{f.lineno} {f.name}" for f in reversed(frames))
        logger.error(f"{call.provider.name}: internal error {type(error).__name__} at {where}")
        self._clear_timer()
        self._settle(served=False)
        yield from self._cancel_attempt("internal error")
        if self._committed or self.server_state == self.state_done:
            yield SendHttp(
                ResponseProtocolError(self.stream_id, "internal error", compat.SERVER_ERROR),
                self.context.client,
            )
            self.client_state = self.server_state = self.state_errored
            return
        yield from self._answer_locally(
            call.provider.refusal(500, "internal error in the account pool; see its log", None)
        )

    def _refuse_head(self, event: RequestHeaders, error: Exception) -> CommandGenerator[None]:
        """Our code failed before it knew whose request this is: it goes nowhere."""
        logger.error(f"internal error {type(error).__name__} while reading a request; refused")
        yield SendHttp(
            ResponseProtocolError(
                self.stream_id, "internal error in the account pool", compat.SERVER_ERROR
            ),
            self.context.client,
        )
        self.client_state = self.server_state = self.state_errored

    # -- after a 101

    def passthrough(self, event: events.Event) -> CommandGenerator[None]:
        if self.call is None or self.call.route is Route.PASS:
            yield from super().passthrough(event)
            return
        if isinstance(event, HttpEvent) and event.stream_id < 0:
            event.stream_id = self.stream_id
        ended = isinstance(
            event,
            RequestEndOfMessage
            | ResponseEndOfMessage
            | RequestProtocolError
            | ResponseProtocolError,
        )
        if isinstance(event, RequestProtocolError | ResponseProtocolError):
            yield from self._socket_broke(event)
        else:
            yield from _translated(super().passthrough(event), self._to_attempt)
        if ended:
            self._settle(served=True)
            self._forget_attempt()

    def _socket_broke(self, event: HttpEvent) -> CommandGenerator[None]:
        """A reset stream closes the socket as its end would."""
        side = (
            self.context.client if isinstance(event, RequestProtocolError) else self.context.server
        )
        yield from _translated(super().passthrough(events.ConnectionClosed(side)), self._to_attempt)

    # -- timers, and watching the client while paused

    def _set_timer(
        self, delay_s: float, then: Callable[[], CommandGenerator[None]]
    ) -> CommandGenerator[None]:
        self._clear_timer()
        self._timer = commands.RequestWakeup(delay_s)
        self._on_timer = then
        yield self._timer

    def _clear_timer(self) -> None:
        if self._timer is not None and self._timer in self.layer.command_sources:
            self.layer.command_sources[self._timer] = cast(Any, _DEAD_TIMER)
        self._timer = self._on_timer = None

    def _woke(self, event: events.Wakeup) -> CommandGenerator[None]:
        if event.command is self._timer and self._on_timer is not None:
            then, self._timer, self._on_timer = self._on_timer, None, None
            yield from then()

    def _watch_client(self, on_leaving: Callable[[], None]) -> None:
        """While paused, call *on_leaving* the moment the client goes.

        The event itself stays queued for `check_killed`, as everywhere in mitmproxy.
        """

        def handle_event(event: events.Event) -> CommandGenerator[None]:
            if isinstance(event, RequestProtocolError):
                on_leaving()
            return super(PoolHttpStream, self).handle_event(event)

        self.handle_event = handle_event  # type: ignore[method-assign]

    def _unwatch_client(self) -> None:
        self.__dict__.pop("handle_event", None)

    # -- translations

    def _restore(self, command: commands.Command) -> commands.Command:
        """A request that is not the pool's goes out as the client sent it."""
        if isinstance(command, SendHttp) and isinstance(command.event, RequestHeaders):
            assert self.call is not None
            command.event.request = wire.restored(command.event.request, self.call.masked)
        return command

    def _to_attempt(self, command: commands.Command) -> commands.Command:
        """What the base class sends upstream belongs to the running attempt."""
        if isinstance(command, SendHttp) and command.connection is self.context.server:
            assert self.attempt_id is not None
            command.event.stream_id = self.attempt_id
        return command

    def _not_upstream(self, command: commands.Command) -> commands.Command | None:
        """The base class knows no attempt ids: the server is told by `_cancel_attempt`."""
        if isinstance(command, SendHttp) and command.connection is not self.context.client:
            return None
        return command


def _translated(
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
        translated = translate(command)
        reply = None if translated is None else (yield translated)


def _content_length(request: http.Request) -> int:
    """Return the announced length of the body, 0 if there is none or it is nonsense."""
    value = request.headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() else 0
