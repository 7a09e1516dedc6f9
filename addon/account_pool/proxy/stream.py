"""One client request: what is done about it, from its head to the end of its answer.

Follows design.md section 2. Our code stands between the request and the commit point;
the base class does the client side and everything after it. What to do next is decided
by `core.attempts`; this file carries it out and says what happened.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Generator
from functools import partial
from typing import Any, assert_never

from mitmproxy import http
from mitmproxy.net.http import url
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
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
from account_pool.providers.base import LocalAnswer, RequestHead, Route
from account_pool.proxy import compat, delivery, destination, wire
from account_pool.proxy.answer import AnswerReader, Reading
from account_pool.proxy.attempt_stream import MAX_COPY_BYTES, AttemptStream, translated
from account_pool.proxy.call import Call
from account_pool.proxy.destination import Destination
from account_pool.proxy.layer import GetFreshConnection, NextTurn, PoolHttpLayer

logger = logging.getLogger(__name__)

#: Requests up to this size are kept for replay; larger ones are streamed through once.
MAX_REPLAYABLE_BYTES = 64 * 1024 * 1024
#: A kept connection that closes later than this after a request was sent may have been
#: working on it (providers.md, trap 22: a replay can be billed twice).
STALE_WITHIN_S = 2.0
#: How long the rest of a refused stream is read before the attempt is cut off: the end
#: mostly comes at once, and a connection that was read to its end can be used again.
DRAIN_S = 0.25
_INTERNAL = "internal error in the account pool; see its log"


class PoolHttpStream(AttemptStream):
    """One client request.

    Attributes:
        call: set when the request is the pool's business; the base class does the rest.
        attempts: the state machine, from the moment the body is complete.
        attempt_id: id of the running attempt on the server side; None between attempts.
    """

    def __init__(self, context: Context, stream_id: int, parent: PoolHttpLayer) -> None:
        super().__init__(context, stream_id, parent)
        self.call: Call | None = None
        self.attempts: Attempts | None = None
        self.reader: AnswerReader | None = None
        self._refusal: AnswerReader | None = None
        self._pending: Step | None = None
        self._committed = False

    # -- events

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, HttpEvent) and event.stream_id < 0:
            if event.stream_id != self.attempt_id:
                return  # a late event of an abandoned attempt
            event.stream_id = self.stream_id
            if self.copied is not None and type(event) is ResponseData:
                # The way of every chunk of a streamed answer: nothing more than needed.
                if len(self.copied) < MAX_COPY_BYTES:
                    self.copied += event.data
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
            yield from translated(super()._handle_event(event), self._restore)
        elif isinstance(event, RequestData | RequestTrailers | RequestEndOfMessage):
            yield from self.client_state(event)
        elif isinstance(event, ResponseEndOfMessage):
            yield from self._answer_ended(event)
        elif isinstance(event, ResponseHeaders | ResponseData | ResponseTrailers):
            yield from self.server_state(event)
        elif isinstance(event, ResponseProtocolError):
            yield from self._attempt_broke(event)
        elif isinstance(event, RequestProtocolError):
            yield from self._client_left(event)
        elif isinstance(event, events.Wakeup):
            yield from self.woke(event)
        elif isinstance(event, NextTurn):
            yield from self._replay()
        else:
            yield from super()._handle_event(event)

    # -- the request

    def state_wait_for_request_headers(self, event: RequestHeaders) -> CommandGenerator[None]:
        request = event.request
        if request.method != "CONNECT":
            try:
                self._open(request)
            except Exception as e:
                yield from self._refuse_head(event, e)
                return
        if self.call is None or self.call.route is Route.PASS:
            # Every byte of a tunnel passes here: leave it to mitmproxy's class alone.
            self.passthrough = partial(HttpStream.passthrough, self)  # type: ignore[method-assign]
        if self.call is None:
            yield from super().state_wait_for_request_headers(event)
        elif self.call.route is Route.PASS:
            yield from translated(super().state_wait_for_request_headers(event), self._restore)
        else:
            if _content_length(self.call.head) > MAX_REPLAYABLE_BYTES:
                request.stream = True
            yield from super().state_wait_for_request_headers(event)

    def _open(self, request: http.Request) -> None:
        """Find out whether the request is the pool's business, and mask it if so."""
        if self.mode is HTTPMode.transparent:
            target = destination.of_connection(self.context)
        elif request.host:
            target = destination.of_request(request.host, request.port, request.scheme)
        else:
            target = self._of_host_header(request)
        if target is not None:
            self.call = self.service.open(request, target, self.context.client)
        if self.call is not None and self.mode is HTTPMode.transparent:
            # mitmproxy sends it there, whatever the request says.
            assert self.context.server.address is not None
            self.call.address = self.context.server.address[:2]

    def _of_host_header(self, request: http.Request) -> Destination | None:
        """Return where mitmproxy will send a request that was sent to the proxy itself."""
        try:
            name, port = url.parse_authority(request.host_header or "", check=True)
        except ValueError:
            return None  # mitmproxy refuses it
        tls = self.context.client.tls
        scheme = "https" if tls else "http"
        return destination.of_request(name, port or (443 if tls else 80), scheme)

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
        if self.call is not None and self.flow.response is not None:
            # Another addon has answered at the head (proxyauth, say); mitmproxy's class
            # cannot have both.
            self.client_state = self.state_stream_request_body
            yield from self._respond(self.flow.response)
            return
        if self.call is None or self.call.route is Route.PASS:
            yield from super().start_request_stream()
            return
        self.client_state = self.state_stream_request_body
        self.server_state = self.state_wait_for_response_headers
        yield from self._serve()

    def state_stream_request_body(self, event: Any) -> CommandGenerator[None]:
        if self.call is None or self.call.route is Route.PASS:
            yield from super().state_stream_request_body(event)
        elif self.attempt_id is None:
            self.client_state = self.state_errored  # nobody to stream it to
        else:
            yield from translated(super().state_stream_request_body(event), self.to_attempt)
            if isinstance(event, RequestEndOfMessage) and self.server_state == self.state_done:
                self.forget_attempt()  # its answer was complete before the request

    # -- attempts

    def _serve(self) -> CommandGenerator[None]:
        """Answer the request: locally, or from an account of the pool."""
        call = self.call
        assert call is not None
        if call.denied is not None:
            yield from self._answer_locally(call.denied)
        elif call.route is Route.LOCAL:
            turn = yield from self.take_turn(call.provider.name)
            if not (yield from self._client_gone()):
                # None: the hook failed, which mitmproxy has logged.
                failed = call.provider.refusal(500, _INTERNAL, None)
                yield from self._answer_locally(turn.answer or failed)
        elif not self._goes_where_it_should():
            logger.warning(f"{call.provider.name}: another addon sent a request elsewhere; refused")
            yield from self._answer_locally(
                call.provider.refusal(502, "another addon changed where this request goes", None)
            )
        elif self._names_another_host():
            logger.warning(f"{call.provider.name}: a request names another host; refused")
            yield from self._answer_locally(
                call.provider.refusal(421, "the Host header names a host that is not ours", None)
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

    def _names_another_host(self) -> bool:
        """Check Host and :authority, by which a front end shared with others would route."""
        call, request = self.call, self.flow.request
        assert call is not None
        ours = call.destination.name.encode("latin-1")
        names = [value for name, value in request.headers.fields if name.lower() == b"host"]
        for value in (*names, request.data.authority):
            if value in (ours, b""):
                continue
            try:
                name, port = url.parse_authority(value, check=True)
            except ValueError:
                return True
            named = destination.of_request(name, port or call.destination.port, "https")
            if (named.name, named.port) == (call.destination.name, call.destination.port):
                continue
            if call.provider not in self.service.hosts.find(named.name, named.port):
                return True
        return False

    def _perform(self, step: Step | None) -> CommandGenerator[None]:
        """Carry out steps until the provider or the client is to be waited for."""
        attempts = self.attempts
        assert attempts is not None
        turned = False
        while step is not None:
            match step:
                case Send() if len(attempts.history) > 1 and not turned:
                    self._pending = step
                    self.layer.give_turn(self)
                    return
                case Send():
                    step = yield from self._send(step)
                case Wait():
                    turned = True
                    yield from self.take_turn(step)
                    if (yield from self._client_gone()):
                        return
                    step = attempts.resumed(self.service.now())
                case Refresh():
                    turned = True
                    turn = yield from self.take_turn(step)
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

    def _replay(self) -> CommandGenerator[None]:
        """The turn that a replay was waiting for."""
        step, self._pending = self._pending, None
        assert isinstance(step, Send)
        assert self.attempts is not None
        if self.attempts.over:
            return  # the client left in the same breath
        yield from self._perform((yield from self._send(step)))

    def _send(self, step: Send) -> Generator[commands.Command, Any, Step | None]:
        """Send one attempt. Returns the next step if no connection could be made."""
        call, attempts, flow = self.call, self.attempts, self.flow
        assert call is not None
        assert attempts is not None
        lease = step.lease
        wire.rename(flow.request, call.masked, str(lease.key))
        flow.metadata["pool.account"] = str(lease.key)
        swap = self.service.swap(call.provider, lease).for_path(call.head.path)
        if swap.origin is not None:
            address, tls = (swap.origin.host, swap.origin.port), True
        else:
            address, tls = (flow.request.host, flow.request.port), flow.request.scheme == "https"
        get = GetFreshConnection if step.fresh else GetHttpConnection
        self.watch_client(self.client_leaves)
        connection, error = yield get(
            address, tls, flow.server_conn.via, flow.server_conn.transport_protocol
        )
        self.unwatch_client()
        if (yield from self._client_gone()):
            return None
        if error:
            return attempts.broken(Broken.CONNECT, self.service.now())
        self.context.server = flow.server_conn = connection
        self.reader = None
        self.server_state = self.state_wait_for_response_headers
        yield from self.send_attempt(wire.outgoing(flow.request, swap, call.masked))
        if len(attempts.history) > 1:
            # Said when the request is already on its way: nobody waits for the log.
            self.service.log_replay(attempts)
        return None

    # -- the answer

    def state_wait_for_response_headers(self, event: ResponseHeaders) -> CommandGenerator[None]:
        """The attempt runs; nothing has come back yet."""
        if self.attempts is None:
            yield from super().state_wait_for_response_headers(event)
            return
        assert self.call is not None
        self.layer.answered.add(self.context.server)
        self.reader = AnswerReader(event.response, self.call.provider)
        if self.reader.first is Reading.COMMIT:
            yield from self._commit(event.end_stream)
            return
        self.server_state = self.state_read_answer
        if self.reader.open_ended:
            yield from self.set_timer(self.service.settings.gate_s, self._reading_expired)

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
                self.forget_attempt()
            self._settle(served=True)
        self.keep_copy()
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
        self.clear_timer()
        outcome = call.provider.classify(
            reader.answer(attempts.facts.model, self.service.wall_now())
        )
        if outcome.cls is OutcomeClass.OK:
            yield from self._commit(end_stream=False)
            return
        # Kept: it is what is delivered even if attempts after it bring no answer at all.
        self._refusal = reader
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
            yield from self.set_timer(DRAIN_S, self._drained)

    def _drained(self) -> CommandGenerator[None]:
        """The refused answer was read as far as it will be: go on."""
        self.clear_timer()
        reader, step = self.reader, self._pending
        assert reader is not None
        self._pending = None
        if isinstance(step, Deliver) and not reader.complete:
            yield from self._commit(end_stream=False)
            return
        if reader.complete and self.client_state == self.state_done:
            self.forget_attempt()
        else:
            # Its answer or our request is not at its end: nothing else can follow there.
            yield from self.cancel_attempt("refused")
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
        self.clear_timer()
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
            yield from self.cancel_attempt("client left")
            return
        held, reader.held = reader.held, []
        if (
            self.server_state == self.state_stream_response_body
            and response.stream is True
            # Where mitmproxy 12 is told to keep whole bodies, the copy is its own.
            and not getattr(self.context.options, "store_streamed_bodies", False)
        ):
            self.copied = bytearray()
        for data in held:
            if self.copied is not None:
                self.copied += data
            yield from self.server_state(ResponseData(self.stream_id, data))

    def _deliver(self, step: Deliver) -> CommandGenerator[None]:
        """Hand on the provider's own refusal, with the wait that holds for the pool."""
        call, attempts, reader = self.call, self.attempts, self._refusal
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
            response = delivery.repeated(stored, call.provider, step.retry_after_s, self._secrets())
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
        if uploading and self.server_state == self.state_done:
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
        self.clear_timer()
        self.forget_attempt()
        if self._committed:
            self._settle(served=False)
            self.keep_copy()
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
        soon = self.service.now() - self.sent_at < STALE_WITHIN_S
        if self.reader is None and self.on_kept_connection and soon:
            return Broken.STALE
        return Broken.MAYBE_RAN

    def _client_left(self, event: RequestProtocolError) -> CommandGenerator[None]:
        """The client is gone: the lease is free at once, and nobody is to blame."""
        self.clear_timer()
        # Clients hang up as soon as they have the last event (clients.md, section 7): a
        # departure after the commit point is a success.
        self._settle(served=self._committed)
        self.keep_copy()
        yield from self.cancel_attempt(event.message)
        yield from translated(super().handle_protocol_error(event), self.not_upstream)

    def _client_gone(self) -> CommandGenerator[bool]:
        """Look whether the client left, or somebody killed the flow, while we waited."""
        gone = yield from self.check_killed(True)
        if gone:
            self._settle(served=False)
            yield from self.cancel_attempt("client left")
        return gone

    def client_leaves(self) -> None:
        if self.attempts is not None:
            self.attempts.left(self.service.now())

    def socket_ended(self) -> None:
        self._settle(served=True)
        self.forget_attempt()

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

    # -- our own failures

    def _fail(self, error: Exception) -> CommandGenerator[None]:
        """An unexpected error in our code: nothing goes upstream, the client is told."""
        call = self.call
        assert call is not None
        # Where, not what: the text of an exception may quote what it was about.
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        where = " < ".join(f"{f.filename}:{f.lineno} {f.name}" for f in reversed(frames))
        logger.error(f"{call.provider.name}: internal error {type(error).__name__} at {where}")
        self.clear_timer()
        self._settle(served=False)
        yield from self.cancel_attempt("internal error")
        if self._committed or self.server_state == self.state_done:
            # The answer is cut off; the error hook tells every front end.
            yield from super().handle_protocol_error(
                ResponseProtocolError(self.stream_id, "internal error", compat.SERVER_ERROR)
            )
            self.client_state = self.server_state = self.state_errored
            return
        yield from self._answer_locally(call.provider.refusal(500, _INTERNAL, None))

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
        yield DropStream(self.stream_id)

    # -- translations

    def _restore(self, command: commands.Command) -> commands.Command:
        """A request that is not the pool's goes out as the client sent it."""
        if isinstance(command, SendHttp) and isinstance(command.event, RequestHeaders):
            assert self.call is not None
            command.event.request = wire.restored(command.event.request, self.call.masked)
        return command


def _content_length(head: RequestHead) -> int:
    """Return the announced length of the body, 0 if there is none or it is nonsense."""
    value = head.headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() else 0
