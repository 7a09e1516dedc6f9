"""A request that is served from the pool: its body, its attempts, and the responses to them.

What to do next is decided by `core.attempts`; here its steps are carried out, and it learns
what happened. Our code stands between the request and the commit point, the base class does
everything after it. Whose business the request is, `stream.py` decides; what becomes of it when
an attempt did not serve it, `refused_attempts.py`.

States of the server side, in order: `state_wait_for_response_headers` (an attempt runs),
`state_read_response` (its head is held back), `state_drain` (it is refused, its rest is
read), `state_between_attempts`, and the base class's own after the commit point.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from itertools import islice
from typing import Any, assert_never, cast

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import (
    HttpEvent,
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

from account_pool.core import reactions
from account_pool.core.attempts import Attempts
from account_pool.core.credential import Secrets, SentSecrets
from account_pool.core.instruments import NOT_COUNTED, Mark
from account_pool.core.lease import Lease
from account_pool.core.sessions import session_lease_of
from account_pool.core.sse import Verdict
from account_pool.core.steps import Deliver, Refresh, Send, Step, Synthesize, Wait, how_unconnected
from account_pool.core.usage import END_BYTES
from account_pool.providers.base import CannotSwap, LocalResponse, Route
from account_pool.proxy import flow_view, headers, redaction
from account_pool.proxy.counted_streams import filter_of
from account_pool.proxy.credential_swap import Outgoing
from account_pool.proxy.events import EventHandled, InterimResponse, WholeResponse
from account_pool.proxy.http_stream import NO, AttemptStream, takes_trailers, translated
from account_pool.proxy.refused_attempts import SURELY_READ_BYTES, RefusedAttempts
from account_pool.proxy.response_reader import ResponseReader
from account_pool.supervision import log_and_continue

logger = logging.getLogger(__name__)

MOVED = "accounts.yaml was changed, and this host no longer belongs to the provider"
#: What is written at once.
SURELY_SENT_BYTES = 16 * 1024
#: Requests up to this size are kept for replay; larger ones are streamed through once.
MAX_REPLAYABLE_BYTES = 64 * 1024 * 1024


class PooledUpload(RefusedAttempts):
    """The body of one client request: kept for a replay, or streamed through once."""

    def state_wait_for_request_headers(self, event: RequestHeaders) -> CommandGenerator[None]:
        length = _content_length(self._call.head.headers)
        if length > MAX_REPLAYABLE_BYTES and not self.service.settings.manual_approve:
            event.request.stream = True
        return super().state_wait_for_request_headers(event)

    def check_body_size(self, request: bool) -> CommandGenerator[bool]:
        # Ours are kept for a replay, whatever stream_large_bodies says.
        if not self.service.settings.body_limits:
            return NO
        return self._check_limit(self._known_size(request=request), request=request)

    def check_invalid(self, request: bool) -> CommandGenerator[bool]:
        # A response was looked at before; mitmproxy would end its connection, and all others on it.
        return super().check_invalid(request) if request or self.attempts is None else NO

    def check_killed(self, emit_error_hook: bool) -> CommandGenerator[bool]:
        # Asked after each hook: mostly the client is there, and nobody has set an error.
        left = [e for e in self._paused_event_queue if isinstance(e, RequestProtocolError)]
        return super().check_killed(emit_error_hook) if left or self.flow.error else NO

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
            yield from self.let_go()  # its response was complete before the request

    def make_server_connection(self) -> CommandGenerator[bool]:
        # The base class comes here when the body is complete and no addon has answered. It has
        # nothing left to do. Generators are passed on: each is resumed for every command.
        return cast(CommandGenerator[bool], self._serve())

    def _serve(self) -> CommandGenerator[None]:
        """Answer the request: locally, or from an account of the pool."""
        call = self._call
        provider = call.provider
        if call.denied is not None:
            return self.respond_locally(call.denied)
        if call.route is Route.LOCAL:
            return self._respond_to_login(provider)
        user = self._user
        if wrong := call.misdirected(self.flow.request, self.service.recognizer.hosts):
            logger.warning(f"{provider.name}: {wrong}; request refused")
            return self.respond_locally(provider.refusal(421, wrong, None))
        service, facts = self.service, call.facts(self.flow.request, user)
        now = service.now()
        self.attempts = attempts = Attempts(
            pool=service.pool,
            facts=facts,
            session=session_lease_of(facts, service.sessions, service.pins, now),
            limits=service.settings.limits,
            chance=service.chance,
            replayable=not self.flow.request.stream,
        )
        self.marks = service.running.begin(self.context.client.id, attempts, now)
        return self._perform(attempts.begin(now))

    @property
    def _user(self) -> str:
        """The name its client gave to `proxyauth`, if that is set."""
        given = self.flow.metadata.get("proxyauth")
        return str(given[0]) if given else ""

    def let_go(self) -> CommandGenerator[None]:
        """The response is complete, and our request has been handed over.

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


class PooledExchange(PooledUpload):
    """One client request that is served from the pool."""

    #: it was refused without an attempt, and that is noted
    _noted = False

    @classmethod
    def of(cls, stream: AttemptStream) -> PooledExchange:
        """Return *stream*, whose head has just come, as the exchange that serves its request."""
        cast(Any, stream).__class__ = cls
        exchange = cast(PooledExchange, stream)
        exchange.client_state = exchange.state_wait_for_request_headers
        exchange.sent_secrets = SentSecrets()
        return exchange

    @property
    def under_way(self) -> bool:
        in_turn = self.websocket is not None and self.websocket.reader.running
        return super().under_way or (self.is_open_socket and in_turn)

    # -- events

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if type(event) is WholeResponse:
            yield from self._whole(event)
            return
        if isinstance(event, HttpEvent) and event.stream_id < 0:
            if event.stream_id != self.attempt_id:
                return  # a late event of an abandoned attempt
            event.stream_id = self.stream_id
            if type(event) is InterimResponse:
                # No sign that a response will come: that is waited for as long as without one.
                self.interim_came = True
                return
            if type(event) is ResponseData and not event.data:
                return  # an empty frame, which would pass for the end of the body
            if type(event) is ResponseTrailers and not takes_trailers(self.context.client):
                return
            self.heard = True
            if type(event) is ResponseData and self.usage_filter is not None:
                event = ResponseData(event.stream_id, self.usage_filter.feed(event.data))
                if not event.data:
                    return
            if type(event) is ResponseData and (copy := self.copy) is not None:
                # The way of every chunk of a streamed response: nothing more than needed.
                copy.add(event.data)
                yield SendHttp(event, self.context.client)
                return
        elif isinstance(event, HttpEvent):
            self.heard = True
        try:
            yield from self._dispatch(event)
        except Exception as e:
            yield from self.fail(e)

    def _whole(self, event: WholeResponse) -> CommandGenerator[None]:
        """The response is all here: once its head is known, the rest is read at once."""
        head, body, end = event.parts
        yield from self._handle_event(head)
        if self.server_state != self.state_read_response or self.usage_filter is not None:
            yield from self._handle_event(body)
            yield from self._handle_event(end)
            return
        self.marks.append((Mark.FIRST_BYTE, self.service.now()))
        try:
            yield from self._read(self._reader.end(body.data))
            if self._committed:
                yield from self.response_ended(end)
        except Exception as e:
            yield from self.fail(e)

    def _dispatch(self, event: events.Event) -> CommandGenerator[None]:
        # Returns generators instead of being one: each would be resumed for every command.
        match event:
            case RequestData() | RequestTrailers() | RequestEndOfMessage():
                return self.client_state(event)
            case ResponseEndOfMessage():
                return self.response_ended(event)
            case ResponseData() | ResponseTrailers() if self.redactor is not None:
                return self.redacted(event)
            case ResponseHeaders() | ResponseData() | ResponseTrailers():
                return self.server_state(event)
            case ResponseProtocolError():
                return self.attempt_broke(event)
            case RequestProtocolError():
                return self.client_left(event)
            case events.Wakeup():
                return self.timer.woke(event)
            case EventHandled():
                return self.event_handled()
            case _:
                return super()._handle_event(event)

    def event_handled(self) -> CommandGenerator[None]:
        """Everybody has handled the event: send the replay, or bound the reading in time."""
        if self.server_state == self.state_read_response:
            yield from self.timer.set(self.service.settings.gate_s, self._reading_expired)
        elif self.server_state == self.state_between_attempts and not self._attempts.over:
            step, self._pending = self._pending, None
            if isinstance(step, Send):
                yield from self._perform((yield from self._send(step)))

    # -- attempts

    def _perform(self, step: Step | None) -> CommandGenerator[None]:
        """Carry out steps until the provider or the client is to be waited for."""
        attempts = self._attempts
        paused = False
        while step is not None:
            match step:
                case Send() if len(attempts.history) > 1 and not paused:
                    self._pending = step
                    if self not in self.layer.when_handled:
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
                    now = self.service.now()
                    step = reactions.stopped(attempts, now) if stopped else attempts.resumed(now)
                case Refresh():
                    paused = True
                    pause = yield from self._wait(step)
                    if (yield from self.client_gone()):
                        return
                    step = reactions.refreshed(attempts, pause.refreshed, self.service.now())
                case Deliver():
                    yield from self._deliver(step)
                    return
                case Synthesize():
                    yield from self._synthesize(step)
                    return
                case _:
                    assert_never(step)

    def _send(self, step: Send) -> Generator[commands.Command, Any, Step | None]:
        """Send one attempt. Returns the next step if no connection could be made."""
        attempts = self._attempts
        outgoing = self.outgoing(step.lease)
        if isinstance(outgoing, LocalResponse):
            yield from self.respond_locally(outgoing)
            return None
        opening_at = self.service.now()
        older = islice(self.layer.connections, self.sent_among) if step.fresh else ()
        error = yield from self.connect(outgoing.address, outgoing.tls, frozenset(older))
        self.marks.append((Mark.OPENED, self.service.now() - opening_at))
        disturbed = self._paused_event_queue or self.flow.error is not None
        if disturbed and (yield from self.client_gone()):
            return None
        if error:
            secrets = redaction.secrets_and_passwords(self.context.options, self.sent_secrets)
            reason = redaction.unconnected(outgoing.address[0], error, secrets)
            return reactions.broken(attempts, how_unconnected(error), self.service.now(), reason)
        self.reader = None
        self.server_state = self.state_wait_for_response_headers
        yield from self.send_attempt(outgoing.request)
        self.marks.append((Mark.SENT, self.service.now()))
        if len(attempts.history) > 1:
            self.show_replay()
        return None

    def outgoing(self, lease: Lease) -> Outgoing | LocalResponse:
        """Return the request with the credential of *lease*, or why it must not be sent."""
        call, attempts, flow = self._call, self._attempts, self.flow
        if call.hosts is not self.service.recognizer.hosts:
            current = self.service.recognizer.current(call)
            if current is None:
                return call.provider.refusal(421, MOVED, None)
            call.provider = current
        flow.metadata["pool.account"] = name = str(lease.key)
        # For whoever looks at a list of flows; of a replay the trail says more.
        if len(attempts.history) == 1 and flow.comment:
            with log_and_continue:
                flow_view.comment(flow, name)
        elif len(attempts.history) == 1:
            flow.comment = flow.metadata[flow_view.COMMENT] = name
        flow.metadata["pool.attempts"] = len(attempts.history)
        self.sent_secrets.append(lease.credential.secret)
        try:
            outgoing = self.service.swaps.outgoing(
                flow.request,
                call.masked,
                call.head,
                call.provider,
                lease,
                insecure=self.service.settings.insecure,
            )
        except CannotSwap as why:
            return call.provider.refusal(400, str(why), None)
        if self.service.settings.count_streams and not flow.request.stream:
            self.asks_usage = self.service.counted_streams.ask(
                outgoing.request, outgoing.address[0], call.head, attempts.facts.model
            )
        return outgoing

    def may_go(self) -> bool:
        return self.attempts is None or self.attempts.may_go(self.service.now())

    # -- the response

    def state_wait_for_response_headers(self, event: ResponseHeaders) -> CommandGenerator[None]:
        """The attempt runs; nothing has come back yet."""
        call, attempts = self._call, self._attempts
        wrong = headers.wrong_with(
            event.response,
            self.flow.request,
            over_http2=self.context.client.alpn == b"h2",
            validates=self.service.settings.validates,
        )
        if wrong is not None:
            yield from self._not_a_response(event.response, *wrong)
            return
        self.marks.append((Mark.HEAD, self.service.now()))
        self.layer.answered.add(self.context.server)
        lease, provider = attempts.lease, call.provider
        assert lease is not None
        self.usage_filter = (
            filter_of(event.response, self.context.client) if self.asks_usage else None
        )
        self.reader = reader = ResponseReader(event.response, provider, call.head)
        self.service.observer.head(provider, lease, event.response)
        if reader.first is Verdict.COMMIT:
            if not 300 <= event.response.status_code < 400:
                yield from self._commit(event.end_stream)
            elif reader.encoding:
                yield from self._redirect(event.response)
            else:
                # It may name the key in its address, and in its body.
                yield from self._commit(event.end_stream, self.sent_secrets.echoes())
            return
        self.server_state = self.state_read_response
        # Mostly the response comes with its head, and no timer is needed.
        self.layer.when_handled.append(self)

    def state_read_response(self, event: events.Event) -> CommandGenerator[None]:
        """The head is held back until it is known what the response is."""
        reader = self._reader
        if isinstance(event, ResponseData):
            if not reader.held:
                now = self.service.now()
                self.marks.append((Mark.FIRST_BYTE, now))
                self._attempts.began(now)
            verdict = reader.feed(event.data)
            if verdict is not Verdict.CONTINUE:
                yield from self._read(verdict)
        elif isinstance(event, ResponseTrailers):
            reader.response.trailers = event.trailers

    def response_ended(self, event: ResponseEndOfMessage) -> CommandGenerator[None]:
        """The response of the running attempt is complete, whatever state we are in."""
        if self.usage_filter is not None and (rest := self.usage_filter.end()):
            # Not the end of an event: as it came.
            yield from self._dispatch(ResponseData(self.stream_id, rest))
        if self.server_state == self.state_read_response:
            yield from self._read(self._reader.end())
            if not self._committed:
                return
        elif self.server_state == self.state_drain:
            self._reader.complete = True
            yield from self._drained()
            return
        if self.server_state in (self.state_errored, self.state_done):
            return
        if self.redactor is not None:
            yield from self.redacted(ResponseData(self.stream_id, b""))
        if self.flow.response is not None and self.flow.response.status_code != 101:
            # Of a WebSocket this is only the handshake: its lease ends with the socket.
            if self.client_state == self.state_done:
                yield from self.let_go()
            self.settle(served=True)
        if self.copy is not None:
            self.put_copy(ended=True)
        yield from self.server_state(event)
        if self.stream_id not in self.layer.streams:
            self.untie()

    def _read(self, verdict: Verdict) -> CommandGenerator[None]:
        if verdict is Verdict.CONTINUE:
            return NO
        return self._refused() if verdict is Verdict.REFUSE else self._commit(end_stream=False)

    def _reading_expired(self) -> CommandGenerator[None]:
        if self.server_state == self.state_read_response:
            yield from self._read(self._reader.expired())

    # -- delivering

    def _commit(self, end_stream: bool, secrets: Secrets | None = None) -> CommandGenerator[None]:
        """Hand the response to the client: no further attempt from here on.

        *secrets* must not be echoed in it; None for a success, which echoes nothing.
        """
        call, reader, attempts = self._call, self._reader, self._attempts
        if self.timer.command is not None:
            self.timer.clear()
        self._committed = True
        if self in self.layer.when_handled:
            self.layer.when_handled.remove(self)  # there is no reading to be bounded any more
        if (lease := attempts.lease) is not None:
            if secrets is None:
                # Responses that are only fetched have been counted when they were made.
                self._to_count = self.flow.request.method == "POST"
                self.marks.append((Mark.HANDED_ON, self.service.now()))
                self.service.observer.body(call, lease, reader)
            attempts.committed(self.service.now())
        response = reader.response
        # A complete response is given in one piece, as mitmproxy does by itself, so that
        # other addons may look into it; anything else streams.
        response.stream = not (end_stream or reader.complete or response.status_code == 101)
        if secrets is not None:
            redaction.headers(response, secrets)
            self.redactor = redaction.Redactor(secrets)
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
        if self.redactor is not None:
            held = [piece for data in held for piece in self.redactor(data)]
        elif self.server_state == self.state_stream_response_body and response.stream is True:
            self.begin_copy()
        for data in held:
            if self.copy is not None:
                self.copy.head += data
            yield from self.server_state(ResponseData(self.stream_id, data))

    # -- endings

    def settle(self, *, served: bool, left: bool = False) -> None:
        """The request is over: its lease goes back, once. *left*: the client has gone."""
        attempts = self.attempts
        if attempts is None:
            self._refused_at_once()
            return
        if not attempts.over:
            if served:
                attempts.finished(self.service.now())
            else:
                attempts.left(self.service.now())
        try:
            if self.trail is not None:
                self.trail.ended(attempts, self.sent_secrets.echoes, self.service.now())
        except Exception as e:
            log_and_continue.log(e)
        served_as = NOT_COUNTED
        if self._to_count:
            self._to_count = False
            body: bytes | bytearray = bytes(self.response_body_buf)
            tail = bytearray()
            if self.copy is not None:
                body, tail = self.copy.head, self.copy.tail
            if self.usage_filter is not None and self.usage_filter.taken:
                tail = bytearray((tail or body)[-END_BYTES:]) + self.usage_filter.taken
            served_as = self.service.observer.end(
                self._call.provider, attempts, self._reader, body, tail, cut_off=left or not served
            )
        elif self._committed:
            served_as = NOT_COUNTED._replace(whole=served and not left)
        if self.websocket is not None:
            self.websocket.ended()
        response, service = self.flow.response, self.service
        status = None if response is None else response.status_code
        client, now, wall_now = self.context.client.id, service.now(), service.wall_now()
        service.running.end(
            client, attempts, now, wall_now, status=status, served_as=served_as, left=left
        )

    def _refused_at_once(self) -> None:
        """Note a request that no account may serve, once."""
        call, response = self._call, self.flow.response
        if response is None or call.route is Route.LOCAL or self._noted:
            return
        self._noted = True
        with log_and_continue:
            self.service.refused_at_once(call.bare_facts(self._user), response.status_code)

    def socket_ended(self) -> None:
        self.settle(served=True)
        self.forget_attempt()

    def passthrough(self, event: events.Event) -> CommandGenerator[None]:
        if self.websocket is None:
            # Most proxies never see one.
            from account_pool.proxy.websocket_exchange import PooledWebsocket  # noqa: PLC0415

            self.websocket = PooledWebsocket(self)
        for part in event.parts if type(event) is WholeResponse else (event,):
            yield from self.websocket.handle(part)


def _content_length(fields: Mapping[str, str]) -> int:
    """Return the announced length of the body, 0 if there is none or it is nonsense."""
    value = fields.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() else 0
