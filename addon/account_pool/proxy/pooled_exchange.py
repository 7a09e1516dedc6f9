"""A request that is served from the pool: its body, attempts, answers, deliveries, endings.

What to do next is decided by `core.attempts`; here it is carried out, and what happened
is told. Our code stands between the request and the commit point, the base class does
everything after it. Whose business the request is, `stream.py` decides; how attempts work
underneath is `http_stream.py`.

States of the server side, in order: `state_wait_for_response_headers` (an attempt runs),
`state_read_answer` (its head is held back), `state_drain` (it is refused, its rest is
read), `state_between_attempts`, and the base class's own after the commit point.

The file is longer than most: it is one state machine, and reads best in one place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from itertools import islice
from typing import Any, assert_never, cast

from mitmproxy import http
from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import (
    GetHttpConnection,
    HttpEvent,
    HttpRequestHeadersHook,
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
from mitmproxy.proxy.layers.websocket import WebsocketLayer, WebsocketMessageHook
from mitmproxy.utils import human
from mitmproxy.websocket import WebSocketMessage

from account_pool.core import websocket_moves
from account_pool.core.attempts import Attempts
from account_pool.core.credential import Secret
from account_pool.core.instruments import Mark, Marks
from account_pool.core.lease import Lease
from account_pool.core.outcome import OutcomeClass
from account_pool.core.retry_policy import Broken, how_broken, how_unconnected
from account_pool.core.steps import Deliver, Refresh, Send, Step, Synthesize, Wait
from account_pool.core.usage import of_frame
from account_pool.core.verdicts import is_about_account
from account_pool.providers.base import CannotSwap, LocalResponse, Route
from account_pool.providers.request_head import RequestHead
from account_pool.proxy import (
    error_response,
    flow_view,
    redaction,
    response_reader,
)
from account_pool.proxy.credential_swap import Outgoing
from account_pool.proxy.events import (
    EventHandled,
    GetOtherConnection,
    InterimResponse,
    NotProcessed,
    Pause,
    PoolPauseHook,
    Silent,
    Withdrawn,
)
from account_pool.proxy.flow_view import MAX_COPY_BYTES, AttemptTrail
from account_pool.proxy.http_stream import (
    INTERNAL,
    NO,
    AttemptStream,
    takes_trailers,
    translated,
)
from account_pool.proxy.pooled_request import PooledRequest
from account_pool.proxy.redaction import Secrets
from account_pool.proxy.response_reader import Reading, ResponseReader, is_answer
from account_pool.proxy.view_retention import MessageRetention
from account_pool.proxy.websocket import (
    GOING_AWAY,
    TRY_AGAIN_LATER,
    GoingAway,
    WebsocketReader,
    closing_event,
    grow_in_place,
)
from account_pool.proxy.websocket_replay import WebsocketReplay
from account_pool.supervision import log_and_continue, where

logger = logging.getLogger(__name__)

#: How long the rest of a refused stream is read before the attempt is cut off: the end
#: mostly comes at once, and a connection that was read to its end can be used again.
DRAIN_S = 0.25
#: A request that is refused may be so at its beginning. What is longer than a usual window can
#: lie in the peer's buffer, read by nobody: what follows there meets a reset, at any time.
SURELY_READ_BYTES = 64 * 1024
#: What is written at once.
SURELY_SENT_BYTES = 16 * 1024
#: Requests up to this size are kept for replay; larger ones are streamed through once.
MAX_REPLAYABLE_BYTES = 64 * 1024 * 1024
MOVED = "accounts.yaml was changed, and this host no longer belongs to the provider"


class PooledExchange(AttemptStream):
    """One client request that is served from the pool.

    Attributes:
        call: set when the request is the pool's business.
        attempts: the state machine, from the moment an account is wanted.
        reader: of the answer to the running attempt, from its head on.
        marks: how far it has come, from the same moment on.
    """

    attempts: Attempts | None = None
    reader: ResponseReader | None = None
    marks: Marks
    #: the last refusal, which is delivered even if attempts after it bring nothing
    _refusal: ResponseReader | None = None
    #: what comes next once the refused answer is drained, or the event is handled
    _pending: Step | None = None
    #: the answer is a good one, and what it took is still to be counted
    _to_count = False
    #: credentials this request has carried: an answer may echo them
    _sent_secrets: list[Secret]
    #: how many of them there were when they were last asked for, and what is not to be echoed
    _known_secrets: tuple[int, Secrets] = (0, frozenset())
    #: masks them in an answer that is handed on before it is complete
    scrubber: redaction.Redactor | None = None
    #: for people who look, once something was refused
    trail: AttemptTrail | None = None
    #: of a WebSocket, once it carries messages
    socket: WebsocketReader | None = None
    #: of its first turn, if that can be sent elsewhere
    replay: WebsocketReplay | None = None
    _messages: MessageRetention | None = None

    @classmethod
    def of(cls, stream: AttemptStream) -> PooledExchange:
        """Return *stream*, whose head has just come, as one that serves its request."""
        cast(Any, stream).__class__ = cls
        serving = cast(PooledExchange, stream)
        serving.client_state = serving.state_wait_for_request_headers
        serving._sent_secrets = []
        return serving

    @property
    def _call(self) -> PooledRequest:
        assert self.call is not None
        return self.call

    @property
    def _attempts(self) -> Attempts:
        assert self.attempts is not None
        return self.attempts

    @property
    def _reader(self) -> ResponseReader:
        assert self.reader is not None
        return self.reader

    @property
    def _trail(self) -> AttemptTrail:
        if self.trail is None:
            self.trail = AttemptTrail(self.flow, self.service.show)
        return self.trail

    @property
    def under_way(self) -> bool:
        in_turn = self.socket is not None and self.socket.running
        return super().under_way or (self.is_open_socket and in_turn)

    # -- events

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, HttpEvent) and event.stream_id < 0:
            if event.stream_id != self.attempt_id:
                return  # a late event of an abandoned attempt
            event.stream_id = self.stream_id
            if type(event) is InterimResponse:
                # No sign that an answer will come: that is waited for as long as without one.
                self.interim_came = True
                return
            if type(event) is ResponseData and not event.data:
                return  # an empty frame, which would pass for the end of the body
            if type(event) is ResponseTrailers and not takes_trailers(self.context.client):
                return
            self.heard = True
            if type(event) is ResponseData and self.copied is not None:
                # The way of every chunk of a streamed answer: nothing more than needed.
                if len(self.copied) < MAX_COPY_BYTES:
                    self.copied += event.data
                else:
                    self.keep_tail(event.data)
                yield SendHttp(event, self.context.client)
                return
        elif isinstance(event, HttpEvent):
            self.heard = True
        try:
            yield from self._dispatch(event)
        except Exception as e:
            yield from self.fail(e)

    def _dispatch(self, event: events.Event) -> CommandGenerator[None]:
        # Returns generators instead of being one: each would be resumed for every command.
        match event:
            case RequestData() | RequestTrailers() | RequestEndOfMessage():
                return self.client_state(event)
            case ResponseEndOfMessage():
                return self.answer_ended(event)
            case ResponseData() | ResponseTrailers() if self.scrubber is not None:
                return self.scrubbed(event)
            case ResponseHeaders() | ResponseData() | ResponseTrailers():
                return self.server_state(event)
            case ResponseProtocolError():
                return self.attempt_broke(event)
            case RequestProtocolError():
                return self.client_left(event)
            case events.Wakeup():
                return self.woke(event)
            case EventHandled():
                return self.event_handled()
            case _:
                return super()._handle_event(event)

    # -- the request

    def state_wait_for_request_headers(self, event: RequestHeaders) -> CommandGenerator[None]:
        length = _content_length(self._call.head.headers)
        if length > MAX_REPLAYABLE_BYTES and not self.service.settings.manual_approve:
            event.request.stream = True
        return super().state_wait_for_request_headers(event)

    def check_body_size(self, request: bool) -> CommandGenerator[bool]:
        # Ours are kept for a replay, whatever stream_large_bodies says.
        return self._check_limit(request=request) if self.service.settings.body_limits else NO

    def check_invalid(self, request: bool) -> CommandGenerator[bool]:
        # An answer was looked at before; mitmproxy would end its connection, and all others on it.
        return super().check_invalid(request) if request or self.attempts is None else NO

    def check_killed(self, emit_error_hook: bool) -> CommandGenerator[bool]:
        # Asked after each hook: mostly the client is there, and nobody has set an error.
        left = [e for e in self._paused_event_queue if isinstance(e, RequestProtocolError)]
        return super().check_killed(emit_error_hook) if left or self.flow.error else NO

    def _check_limit(self, *, request: bool) -> CommandGenerator[bool]:
        """Refuse what is larger than mitmproxy's body_size_limit, in the provider's envelope."""
        limit = human.parse_size(self.context.options.body_size_limit)
        size = self._known_size(request=request)
        if limit is None or size <= limit:
            return False
        if request and not self.request_body_buf:
            yield HttpRequestHeadersHook(self.flow)
            if (yield from self.check_killed(True)):
                return True
        self.request_body_buf.clear()
        if request:
            # Its client still sends; `respond` swallows the rest.
            self.client_state = self.state_stream_request_body
        answered = self.flow.response if request else None
        yield from self.cancel_attempt("body_size_limit")
        if answered is not None:
            yield from self.respond(answered)
        else:
            what, status = ("request", 413) if request else ("answer", 502)
            text = f"{self.provider.name}: the {what} is larger than mitmproxy's body_size_limit"
            response = error_response.local(self.provider.refusal(status, text, None))
            error_response.say_again(response, self.provider, again=False)
            logger.warning(f"{text} ({size} bytes)")
            yield from self.respond(response)
        return True

    def _known_size(self, *, request: bool) -> int:
        """Return the size of a body as far as it is known, in bytes."""
        if request:
            return max(len(self.request_body_buf), _content_length(self._call.head.headers))
        assert self.flow.response is not None
        return max(sum(map(len, self._reader.held)), _content_length(self.flow.response.headers))

    def state_consume_request_body(self, event: events.Event) -> CommandGenerator[None]:
        # A person is to see the request before it goes out, whatever its size.
        by_hand = self.service.settings.manual_approve
        if (
            type(event) is RequestData
            and len(self.request_body_buf) + len(event.data) > MAX_REPLAYABLE_BYTES
            and not by_hand
        ):
            return self._stream_from_here(event.data)
        if type(event) is RequestEndOfMessage and by_hand:
            flow_view.hold_for_approval(self.flow)
        return super().state_consume_request_body(event)

    def _stream_from_here(self, data: bytes) -> CommandGenerator[None]:
        """The body is longer than it said, or of unknown length: it is streamed."""
        self.request_body_buf += data
        body = bytes(self.request_body_buf)
        self.request_body_buf.clear()
        self.flow.request.stream = True
        yield from self.start_request_stream()
        yield from self.client_state(RequestData(self.stream_id, body))

    def start_request_stream(self) -> CommandGenerator[None]:
        if self.flow.response is not None:
            yield from self.respond_at_head(self.flow.response)
        else:
            self.client_state = self.state_stream_request_body
            self.server_state = self.state_wait_for_response_headers
            yield from self._serve()

    def state_stream_request_body(self, event: Any) -> CommandGenerator[None]:
        if self.attempt_id is None:
            self.client_state = self.state_errored  # nobody to stream it to
            return
        yield from translated(super().state_stream_request_body(event), self.to_attempt)
        if isinstance(event, RequestEndOfMessage) and self.server_state == self.state_done:
            yield from self.let_go()  # its answer was complete before the request

    def make_server_connection(self) -> CommandGenerator[bool]:
        # The base class comes here when the body is complete and no addon has answered.
        yield from self._serve()
        return False  # nothing is left for it to do

    def _serve(self) -> CommandGenerator[None]:
        """Answer the request: locally, or from an account of the pool."""
        call = self.call
        assert call is not None
        provider = call.provider
        if call.denied is not None:
            yield from self.answer_locally(call.denied)
        elif call.route is Route.LOCAL:
            pause = yield from self.pause(provider.name)
            if not (yield from self.client_gone()):
                failed = provider.refusal(500, INTERNAL, None)
                yield from self.answer_locally(pause.answer or failed)
        elif wrong := call.misdirected(self.flow.request, self.service.recognizer.hosts):
            logger.warning(f"{provider.name}: {wrong}; request refused")
            yield from self.answer_locally(provider.refusal(421, wrong, None))
        else:
            yield from self.begin()

    # -- attempts

    def begin(self) -> CommandGenerator[None]:
        """Have the request served by an account of the pool."""
        self.attempts, self.marks = self.service.begin(
            self._call, self.flow.request, self.context.client
        )
        yield from self._perform(self.attempts.begin(self.service.now()))

    def _perform(self, step: Step | None) -> CommandGenerator[None]:
        """Carry out steps until the provider or the client is to be waited for."""
        attempts = self._attempts
        paused = False
        while step is not None:
            match step:
                case Send() if len(attempts.history) > 1 and not paused:
                    self._pending = step
                    self.layer.when_handled.append(self)
                    return
                case Send():
                    step = yield from self._send(step)
                case Wait():
                    paused = True
                    yield from self._wait(step)
                    if (yield from self.client_gone()):
                        return
                    stopped = self.service.turns_away and step.ticket is not None
                    go_on = attempts.stopped if stopped else attempts.resumed
                    step = go_on(self.service.now())
                case Refresh():
                    paused = True
                    pause = yield from self._wait(step)
                    if (yield from self.client_gone()):
                        return
                    step = attempts.refreshed(pause.refreshed, self.service.now())
                case Deliver():
                    yield from self._deliver(step)
                    return
                case Synthesize():
                    yield from self._answer_for_pool(step)
                    return
                case _:
                    assert_never(step)

    def _wait(self, step: Wait | Refresh) -> CommandGenerator[Pause]:
        began_at = self.service.now()
        pause = yield from self.pause(step)
        self.marks.append((Mark.WAITED, self.service.now() - began_at))
        return pause

    def event_handled(self) -> CommandGenerator[None]:
        """Everybody has handled the event: send the replay, or bound the reading in time."""
        if self.server_state == self.state_read_answer:
            yield from self.set_timer(self.service.settings.gate_s, self._reading_expired)
        elif self.server_state == self.state_between_attempts and not self._attempts.over:
            step, self._pending = self._pending, None
            if isinstance(step, Send):
                yield from self._perform((yield from self._send(step)))

    def _send(self, step: Send) -> Generator[commands.Command, Any, Step | None]:
        """Send one attempt. Returns the next step if no connection could be made."""
        attempts = self._attempts
        outgoing = self.outgoing(step.lease)
        if isinstance(outgoing, LocalResponse):
            yield from self.answer_locally(outgoing)
            return None
        opening_at = self.service.now()
        older = islice(self.layer.connections, self.sent_among) if step.fresh else ()
        error = yield from self.connect(outgoing, avoided=frozenset(older))
        self.marks.append((Mark.OPENED, self.service.now() - opening_at))
        disturbed = self._paused_event_queue or self.flow.error is not None
        if disturbed and (yield from self.client_gone()):
            return None
        if error:
            reason = redaction.unconnected(outgoing.address[0], error, self._not_told())
            return attempts.broken(how_unconnected(error), self.service.now(), reason)
        self.reader = None
        self.server_state = self.state_wait_for_response_headers
        yield from self.send_attempt(outgoing.request)
        self.marks.append((Mark.SENT, self.service.now()))
        if len(attempts.history) > 1:
            # Shown when the request is really on its way: nobody waits for it.
            self.service.later(self.show_replay)
        return None

    def outgoing(self, lease: Lease) -> Outgoing | LocalResponse:
        """Return the request with the credential of *lease*, or why it must not be sent."""
        call, attempts, flow = self._call, self._attempts, self.flow
        if call.hosts is not self.service.recognizer.hosts:
            current = self.service.recognizer.current(call)
            if current is None:
                return call.provider.refusal(421, MOVED, None)
            call.provider = current
        flow.metadata["pool.account"] = str(lease.key)
        flow.metadata["pool.attempts"] = len(attempts.history)
        self._sent_secrets.append(lease.credential.secret)
        try:
            return self.service.swaps.outgoing(
                flow.request,
                call.masked,
                call.head,
                call.provider,
                lease,
                insecure=self.service.settings.insecure,
            )
        except CannotSwap as why:
            return call.provider.refusal(400, str(why), None)

    def connect(
        self, outgoing: Outgoing, *, avoided: frozenset[Connection] = frozenset()
    ) -> Generator[commands.Command, Any, str | None]:
        """Get a connection for *outgoing*. Returns what went wrong, None if nothing did."""
        server = self.flow.server_conn
        spec = (outgoing.address, outgoing.tls, server.via, server.transport_protocol)
        get = GetHttpConnection(*spec)
        if avoided:
            get = GetOtherConnection(*spec)
            get.avoided = avoided
        self.watch_client(self.client_leaves)
        connection, error = yield get
        self.unwatch_client()
        if not error:
            self.context.server = self.flow.server_conn = connection
        return error

    def show_replay(self) -> None:
        """Show the people who look that a replay is on its way."""
        try:
            self._trail.replayed(self._attempts, self._secrets, self.service.now())
        except Exception as e:
            log_and_continue.log(e)

    # -- while paused

    def pause(self, step: Wait | Refresh | str) -> CommandGenerator[Pause]:
        """Let the addon wait, refresh or answer for us."""
        pause = Pause(step)

        def left() -> None:
            pause.woken.set()
            # A refresh goes on, for the others; the lease must not wait for it.
            self.client_leaves()

        self.watch_client(left)
        yield PoolPauseHook(pause)
        self.unwatch_client()
        if pause.failed is not None:
            raise pause.failed
        if not pause.taken:
            # After a live reload that failed there is no addon: better an error than to
            # ask again and again.
            raise RuntimeError("nobody carries out our pauses")
        return pause

    def watch_client(self, on_leaving: Callable[[], None]) -> None:
        """While paused, call *on_leaving* the moment the client goes.

        The event itself stays queued for `check_killed`, as everywhere in mitmproxy.
        """

        def handle_event(event: events.Event) -> CommandGenerator[None]:
            if isinstance(event, RequestProtocolError):
                on_leaving()
            return super(PooledExchange, self).handle_event(event)

        self.handle_event = handle_event  # type: ignore[method-assign]  # for a while

    def unwatch_client(self) -> None:
        self.__dict__.pop("handle_event", None)

    # -- the answer

    def state_wait_for_response_headers(self, event: ResponseHeaders) -> CommandGenerator[None]:
        """The attempt runs; nothing has come back yet."""
        call, attempts = self._call, self._attempts
        if wrong := self._wrong_with(event.response):
            yield from self._no_answer(event.response, wrong)
            return
        self.marks.append((Mark.HEAD, self.service.now()))
        self.layer.answered.add(self.context.server)
        lease, provider = attempts.lease, call.provider
        assert lease is not None
        self.service.observer.head(provider, lease, event.response)
        self.reader = reader = ResponseReader(event.response, provider)
        if reader.first is Reading.COMMIT:
            if not 300 <= event.response.status_code < 400:
                yield from self._commit(event.end_stream)
            elif reader.encoding:
                yield from self._redirect(event.response)
            else:
                # It may name the key in its address, and in its body.
                yield from self._commit(event.end_stream, self._secrets())
            return
        self.server_state = self.state_read_answer
        # Mostly the answer comes with its head, and no timer is needed.
        self.layer.when_handled.append(self)

    def _wrong_with(self, response: http.Response) -> str | None:
        """Return why *response* is no answer, None if it is one."""
        if not is_answer(response, self.flow.request):
            return "no valid answer"
        if self.context.client.alpn == b"h2" and response_reader.is_too_long(response):
            return "no valid answer: its head is too long"
        response_reader.in_one_line(response)
        validates = self.context.options.validate_inbound_headers
        wrong = response_reader.wrong_with(response) if validates else None
        if wrong is None:
            return None
        if response.status_code >= 400:
            response_reader.set_right(response)
            return None
        why = redaction.reason_of(wrong, self._not_told())
        return f"no valid answer: {why}; see the option validate_inbound_headers"

    def _no_answer(self, response: http.Response, why: str) -> CommandGenerator[None]:
        """What came is none: a protocol nobody asked for, a status or a head there is not."""
        provider = self._call.provider
        logger.warning(f"{provider.name}: invalid answer with status {response.status_code}")
        yield from self.cancel_attempt("invalid answer")
        self.server_state = self.state_between_attempts
        step = self._attempts.broken(Broken.MAYBE_RAN, self.service.now(), why)
        yield from self._perform(step)

    def _redirect(self, response: http.Response) -> CommandGenerator[None]:
        """Hand on a redirect without its body, which cannot be searched for the key."""
        yield from self.cancel_attempt("redirect")
        redaction.headers(response, self._secrets())
        for name in ("content-encoding", "transfer-encoding"):
            response.headers.pop(name, None)
        response.content = b""
        yield from self.respond(response)

    def state_read_answer(self, event: events.Event) -> CommandGenerator[None]:
        """The head is held back until it is known what the answer is."""
        reader = self._reader
        if isinstance(event, ResponseData):
            if not reader.held:
                now = self.service.now()
                self.marks.append((Mark.FIRST_BYTE, now))
                self._attempts.began(now)
            reading = reader.feed(event.data)
            if reading is not Reading.MORE:
                yield from self._read(reading)
        elif isinstance(event, ResponseTrailers):
            reader.response.trailers = event.trailers

    def state_drain(self, event: events.Event) -> CommandGenerator[None]:
        """The answer is refused; its rest is read so that the connection stays good."""
        if isinstance(event, ResponseData) and not self._reader.drain(event.data):
            yield from self._drained()

    def state_between_attempts(self, event: events.Event) -> CommandGenerator[None]:
        """No attempt runs. Only the events of one could come here, and none is left."""
        raise AssertionError(f"unexpected event between attempts: {event}")

    def answer_ended(self, event: ResponseEndOfMessage) -> CommandGenerator[None]:
        """The answer of the running attempt is complete, whatever state we are in."""
        if self.server_state == self.state_read_answer:
            yield from self._read(self._reader.end())
            if not self._committed:
                return
        elif self.server_state == self.state_drain:
            self._reader.complete = True
            yield from self._drained()
            return
        if self.server_state in (self.state_errored, self.state_done):
            return
        if self.scrubber is not None:
            yield from self.scrubbed(ResponseData(self.stream_id, b""))
        if self.flow.response is not None and self.flow.response.status_code != 101:
            # Of a WebSocket this is only the handshake: its lease ends with the socket.
            if self.client_state == self.state_done:
                yield from self.let_go()
            self.settle(served=True)
        if self.copied is not None:
            self.keep_copy(ended=True)
        yield from self.server_state(event)
        if self.stream_id not in self.layer.streams:
            self.untie()

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
            yield from self._read(self._reader.expired())

    def _refused(self) -> CommandGenerator[None]:
        """Ask what the refusal means, and do what follows."""
        attempts, reader = self._attempts, self._reader
        self.clear_timer()
        if attempts.over:
            return  # the client has left: `Service.client_gone` was quicker than its event
        outcome = self._call.provider.classify(
            reader.answer(attempts.facts.model, self.service.wall_now())
        )
        if outcome.cls is OutcomeClass.OK:
            yield from self._commit(end_stream=False)
            return
        earlier, self._refusal = self._refusal, reader
        try:
            took_s = self.service.now() - self.sent_at
            self._trail.refused(reader, attempts, took_s, self.service.wall_now())
            blamed = is_about_account(outcome)
            limited = outcome.cls in (OutcomeClass.RATE_LIMIT, OutcomeClass.QUOTA)
            if (limited or blamed) and not reader.in_stream:
                assert attempts.lease is not None
                self.service.refusals.remember(
                    attempts.lease.key, reader, self._secrets(), blamed=blamed
                )
        except Exception as e:
            log_and_continue.log(e)
        self._pending = attempts.refused(outcome, self.service.now())
        self.layer.withdraw()
        if attempts.keeps_earlier and earlier is not None:
            self._refusal = earlier
        if reader.complete or reader.broken or isinstance(self._pending, Deliver):
            yield from self._drained()
        else:
            self.server_state = self.state_drain
            yield from self.set_timer(DRAIN_S, self._drained)

    def _drained(self) -> CommandGenerator[None]:
        """The refused answer was read as far as it will be: go on."""
        self.clear_timer()
        complete = self._reader.complete
        step, self._pending = self._pending, None
        if isinstance(step, Deliver) and self._refusal is self._reader and self._reader.may_follow:
            if step.retry_after_s is not None and not self._reader.in_stream:
                error_response.set_wait(
                    self._reader.response,
                    self._call.provider,
                    step.retry_after_s,
                    self.service.wall_now(),
                )
            with log_and_continue:
                self._trail.delivered(self._attempts, self.service.now())
            yield from self._commit(end_stream=False, secrets=self._secrets())
            return
        sent = self.client_state == self.state_done and self._body_bytes < SURELY_READ_BYTES
        if complete and sent:
            yield from self.let_go()
        else:
            # Its answer or our request is not at its end: nothing else can follow there.
            yield from self.cancel_attempt("refused")
        self.server_state = self.state_between_attempts
        yield from self._perform(step)

    def let_go(self) -> CommandGenerator[None]:
        """The answer is complete, and our request has been handed over.

        What its server has not read of it would be in the way of all that follows there.
        """
        server = self.context.server
        unread = server in self.layer.http2  # takes no note of what was read to its end
        if self._body_bytes > SURELY_SENT_BYTES and not unread:
            with log_and_continue:
                unread = self.service.unsent(self.context.client, server)
        if unread:
            yield from self.cancel_attempt("answered early")
        else:
            self.forget_attempt()

    @property
    def _body_bytes(self) -> int:
        """The length of the request; one that was streamed is a long one."""
        if self.flow.request.stream:
            return SURELY_READ_BYTES
        return len(self.flow.request.raw_content or b"")

    # -- delivering

    def _commit(self, end_stream: bool, secrets: Secrets | None = None) -> CommandGenerator[None]:
        """Hand the answer to the client: no further attempt from here on.

        *secrets* must not be echoed in it; None for a success, which echoes nothing.
        """
        call, reader, attempts = self._call, self._reader, self._attempts
        if self._timer is not None:
            self.clear_timer()
        self._committed = True
        if (lease := attempts.lease) is not None:
            if secrets is None:
                # Answers that are only fetched have been counted when they were made.
                self._to_count = self.flow.request.method == "POST"
                self.marks.append((Mark.HANDED_ON, self.service.now()))
                self.service.observer.body(call, lease, reader)
            attempts.committed(self.service.now())
        response = reader.response
        # A complete answer is given in one piece, as mitmproxy does by itself, so that
        # other addons may look into it; anything else streams.
        response.stream = not (end_stream or reader.complete or response.status_code == 101)
        if secrets is not None:
            redaction.headers(response, secrets)
            self.scrubber = redaction.Redactor(secrets)
        yield from super().state_wait_for_response_headers(
            ResponseHeaders(self.stream_id, response, end_stream)
        )
        if self.server_state == self.state_errored:
            self.settle(served=False, left=True)
            yield from self.cancel_attempt("client left")
            return
        if self.flow.response is not response:
            return  # it was larger than `body_size_limit`
        held, reader.held = reader.held, []
        if self.scrubber is not None:
            held = [piece for data in held for piece in self.scrubber(data)]
        elif self.server_state == self.state_stream_response_body and response.stream is True:
            self.begin_copy()
        for data in held:
            if self.copied is not None:
                self.copied += data
            yield from self.server_state(ResponseData(self.stream_id, data))

    def scrubbed(self, event: ResponseData | ResponseTrailers) -> CommandGenerator[None]:
        """A piece of an answer in which a credential may be echoed."""
        assert self.scrubber is not None
        if isinstance(event, ResponseTrailers):
            redaction.fields(event.trailers, self._secrets())
            yield from self.server_state(event)
            return
        for piece in self.scrubber(event.data):
            yield from self.server_state(ResponseData(self.stream_id, piece))

    def _deliver(self, step: Deliver) -> CommandGenerator[None]:
        """Hand on the provider's own refusal, with the wait that holds for the pool."""
        provider, wait_s = self._call.provider, step.retry_after_s
        assert self._refusal is not None
        response = error_response.corrected(
            self._refusal, provider, wait_s, self._secrets(), self.service.wall_now()
        )
        if step.again:
            error_response.say_again(response, provider, again=True)
        with log_and_continue:
            self._trail.delivered(self._attempts, self.service.now())
        yield from self.respond(response)

    def _answer_for_pool(self, step: Synthesize) -> CommandGenerator[None]:
        """Nothing to hand on: repeat what the provider last said, or say it ourselves."""
        provider, wait_s = self._call.provider, step.retry_after_s
        blamed = step.final and step.status != 402
        stored = self.service.refusals.find(step.like, blamed=blamed)
        if stored is not None:
            response = error_response.repeated(stored, provider, wait_s, self.service.wall_now())
        else:
            response = error_response.local(provider.refusal(step.status, step.message, wait_s))
        if step.final:
            error_response.say_again(response, provider, again=False)
        with log_and_continue:
            self._trail.answered(self._attempts, step.message, self.service.now())
        yield from self.respond(response)

    def _secrets(self) -> Secrets:
        """What must not be echoed to the client."""
        count, known = self._known_secrets
        if count != len(self._sent_secrets):
            known = redaction.secrets_of([secret.reveal() for secret in self._sent_secrets])
            self._known_secrets = (len(self._sent_secrets), known)
        return known

    def _not_told(self) -> Secrets:
        """What must not be repeated of that which mitmproxy says of a connection."""
        sent = [secret.reveal() for secret in self._sent_secrets]
        return redaction.secrets_and_passwords(self.context.options, sent)

    # -- endings

    def attempt_broke(self, event: ResponseProtocolError) -> CommandGenerator[None]:
        """The connection or stream of the attempt has ended before its answer."""
        self.clear_timer()
        if isinstance(event, Silent):
            yield from self.cancel_attempt("silent")
        self.forget_attempt()
        reader = self.reader
        if self._committed:
            self.settle(served=False)
            self.keep_copy(ended=False)
            yield from super().handle_protocol_error(event)
        elif self.server_state == self.state_drain:
            step, self._pending = self._pending, None
            self.server_state = self.state_between_attempts
            yield from self._perform(step)
        elif reader is not None and not reader.in_stream:
            # A refusal whose end was cut off is still a refusal.
            reader.broken = True
            yield from self._refused()
        elif self._attempts.over:
            pass
        elif isinstance(event, Withdrawn):
            self.server_state = self.state_between_attempts
            yield from self._perform(self._attempts.withdrawn(self.service.now()))
        else:
            how = self._how_broken(event)
            self.server_state = self.state_between_attempts
            reason = redaction.reason_of(event.message, self._not_told())
            yield from self._perform(self._attempts.broken(how, self.service.now(), reason))

    def _how_broken(self, event: ResponseProtocolError) -> Broken:
        if isinstance(event, NotProcessed):
            return Broken.NOT_RUN
        if isinstance(event, Silent):
            return Broken.SILENT
        return how_broken(
            event.message,
            # A server that said what it has begun did not close before it read.
            kept=self.on_kept_connection and not self.layer.goes_away(self.context.server),
            answered=self.reader is not None or self.interim_came,
            after_s=self.service.now() - self.sent_at,
        )

    def may_go(self) -> bool:
        return self.attempts is None or self.attempts.may_go(self.service.now())

    def client_left(self, event: RequestProtocolError) -> CommandGenerator[None]:
        """The client is gone: the lease is free at once, and nobody is to blame."""
        self.clear_timer()
        # Clients hang up as soon as they have the last event (clients.md, section 7): a
        # departure after the commit point is a success.
        self.settle(served=self._committed, left=True)
        self.keep_copy(ended=False)
        yield from self.cancel_attempt(event.message)
        yield from translated(super().handle_protocol_error(event), self.not_upstream)

    # -- inside a WebSocket

    def passthrough(self, event: events.Event) -> CommandGenerator[None]:
        replay = self.replay
        try:
            if isinstance(event, GoingAway):
                yield from self._close_socket(GOING_AWAY)
            elif replay is None or replay.over:
                yield from self.relay(event)
            else:
                yield from replay.handle(event)
        except Exception as e:
            yield from self._socket_failed(e)

    def _socket_failed(self, error: Exception) -> CommandGenerator[None]:
        """An unexpected error in our code: the socket ends, and its account is free at once."""
        logger.error(f"{self.provider.name}: internal error in a WebSocket: {where(error)}")
        self.clear_timer()
        with log_and_continue:
            self.settle(served=False)
        replay, self.replay = self.replay, None
        if replay is not None and not replay.over:
            yield from replay.fail()
        else:
            yield from self._close_socket(TRY_AGAIN_LATER)

    def relay(self, event: events.Event) -> CommandGenerator[None]:
        """Give *event* to mitmproxy's layer of the socket."""
        if isinstance(self.child_layer, WebsocketLayer):
            grow_in_place(self.child_layer)
        return self._watched(self.pass_on(event))

    def _watched(self, relay: CommandGenerator[None]) -> CommandGenerator[None]:
        """Relay, and close the socket when a message tells of a limit in time."""
        reply, closing = None, False
        while True:
            try:
                command = relay.send(reply)
            except StopIteration:
                break
            reply = yield command
            if isinstance(command, WebsocketMessageHook):
                with log_and_continue:
                    closing = self._message(command.flow) or closing
                    if self.service.settings.view_kept:
                        self._messages = self._messages or MessageRetention()
                        self._messages.added(command.flow)
                if self.replay is not None and self.replay.elsewhere is not None:
                    # What follows of the message has no attempt to be sent with.
                    self.replay.hook = command
                    yield from self.cancel_attempt("limited")
        if closing:
            yield from self._close_socket(TRY_AGAIN_LATER)

    def _close_socket(self, code: int) -> CommandGenerator[None]:
        assert isinstance(self.child_layer, WebsocketLayer)
        close = closing_event(self.child_layer, self.service.wall_now(), code)
        yield from self.pass_on(close)

    def _message(self, flow: http.HTTPFlow) -> bool:
        """Look at a message that every addon has seen; say if the socket should close."""
        if self.attempts is None or self.attempts.over:
            return False
        if self.socket is None:
            self.socket = WebsocketReader(self._call.provider)
        assert flow.websocket is not None
        message = flow.websocket.messages[-1]
        if message.from_client:
            if self.replay is not None:
                self.replay.client_said(message)
            self._client_said(self.socket, self.attempts, message)
            return False
        if usage := of_frame(message.content):
            self.service.observer.served(self.attempts, self.socket.model, usage, requests=0)
        lease, provider = self.attempts.lease, self._call.provider
        assert lease is not None
        self.service.observer.events(provider, lease, message.content, self.socket.model)
        outcome = self.socket.server_said(message.content, self.service.wall_now())
        if outcome is None:
            return False
        now, model = self.service.now(), self.socket.model
        may_close = not self.socket.answered
        return websocket_moves.refused_inside(
            self.attempts, outcome, model, now, may_close=may_close
        )

    def _client_said(
        self, socket: WebsocketReader, attempts: Attempts, message: WebSocketMessage
    ) -> None:
        first, idle = not socket.begun, not socket.running
        if self.replay is not None and not self.replay.over:
            idle = False
        if not socket.client_said(message.content):
            return
        if idle and socket.turns_only and not self._names_something(message.content):
            send = (
                None
                if first
                else websocket_moves.next_turn(attempts, socket.model, self.service.now())
            )
            if first or send is not None:
                self.replay = WebsocketReplay(self, message, send)
        self.service.observer.served(attempts, socket.model, None)

    def _names_something(self, content: bytes) -> bool:
        """Say whether a message names what only the account knows that made it."""
        head = self._call.head
        asked = RequestHead(
            method="POST", host=head.host, port=head.port, path=head.path, headers={}, body=content
        )
        return bool(self._call.provider.conversation(asked).named)

    def learn_messages(self, messages: Iterable[WebSocketMessage]) -> None:
        """Learn what messages of the server say of the account, which nobody else will see."""
        assert self.socket is not None
        lease = self._attempts.lease
        assert lease is not None
        for message in messages:
            self.service.observer.events(
                self._call.provider, lease, message.content, self.socket.model
            )

    def client_leaves(self) -> None:
        if self.attempts is not None:
            self.attempts.left(self.service.now())

    def socket_ended(self) -> None:
        self.settle(served=True)
        self.forget_attempt()

    def settle(self, *, served: bool, left: bool = False) -> None:
        """The request is over: its lease goes back, once. *left*: the client has gone."""
        attempts = self.attempts
        if attempts is None:
            return
        if not attempts.over:
            if served:
                attempts.finished(self.service.now())
            else:
                attempts.left(self.service.now())
        try:
            if self.trail is not None:
                self.trail.ended(attempts, self._secrets, self.service.now())
        except Exception as e:
            log_and_continue.log(e)
        if self._to_count:
            self._to_count = False
            body = bytes(self.response_body_buf) if self.copied is None else self.copied
            self.service.observer.end(self._call.provider, attempts, self._reader, body, self.tail)
        self.service.end(self.context.client, attempts, left=left)


def _content_length(headers: Mapping[str, str]) -> int:
    """Return the announced length of the body, 0 if there is none or it is nonsense."""
    value = headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() else 0
