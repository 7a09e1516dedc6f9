"""One client request as it comes in: whose business it is, and what becomes of its body.

Requests that are not the pool's go the way of mitmproxy's own class; those on a pool
host that are not its business pass as the client sent them; the rest is served
(`serving.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from mitmproxy import http
from mitmproxy.net.http import url
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator, NextLayer
from mitmproxy.proxy.layers.http import (
    DropStream,
    HttpEvent,
    HTTPMode,
    HttpRequestHeadersHook,
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
from mitmproxy.proxy.layers.websocket import WebsocketLayer
from mitmproxy.utils import human

from account_pool.admin.visit import ADMIN_HOST
from account_pool.core.attempts import STOPPING, STOPPING_PAUSE_S
from account_pool.providers.base import LocalAnswer, Route
from account_pool.proxy import (
    approval,
    causes,
    compat,
    delivery,
    destination,
    tunnels,
    visits,
    wire,
)
from account_pool.proxy.attempt_stream import takes_trailers, translated
from account_pool.proxy.call import Call
from account_pool.proxy.destination import Destination
from account_pool.proxy.interim import InterimAnswer
from account_pool.proxy.layer import NextTurn
from account_pool.proxy.serving import INTERNAL, ServingStream
from account_pool.proxy.shown import MAX_COPY_BYTES
from account_pool.proxy.visits import VisitStream

logger = logging.getLogger(__name__)

#: Says no where mitmproxy wants a generator: what comes of `yield from` is None.
_NO: Any = ()
#: Requests up to this size are kept for replay; larger ones are streamed through once.
MAX_REPLAYABLE_BYTES = 64 * 1024 * 1024


class PoolHttpStream(ServingStream, VisitStream):
    """One client request. `call` is set when it goes to a host of the pool."""

    # -- events

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, HttpEvent) and event.stream_id < 0:
            if event.stream_id != self.attempt_id:
                return  # a late event of an abandoned attempt
            event.stream_id = self.stream_id
            if type(event) is InterimAnswer:
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
            if self.call is None:
                raise  # not ours: mitmproxy's own way with it
            yield from self.fail(e)

    def _dispatch(self, event: events.Event) -> CommandGenerator[None]:
        # Returns generators instead of being one: each would be resumed for every command.
        call = self.call
        if call is None:
            if self.visit is not None:
                return self.visit_event(self.visit, event)
            return super()._handle_event(event)
        if call.route is Route.PASS:
            return translated(super()._handle_event(event), self._restore)
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
            case NextTurn():
                return self.turn_came()
            case _:
                return super()._handle_event(event)

    # -- tunnels

    def _claims(self, request: http.Request) -> bool:
        return self.service.claims(request.host.rstrip(".").lower(), request.port)

    def handle_connect_regular(self) -> CommandGenerator[None]:
        """Have the reason told in the provider's own envelope where no connection can be made.

        mitmproxy refuses the tunnel, with a page that no client shows.
        """
        if self.flow.response or not self._claims(self.flow.request):
            yield from super().handle_connect_regular()
            return
        if self.context.options.connection_strategy == "eager":
            error = yield commands.OpenConnection(self.context.server)
            if error:
                self.context.server = tunnels.failed(self.context.server, error)
        self.child_layer = NextLayer(self.context)
        yield from super().handle_connect_finish()  # type: ignore[no-untyped-call]  # theirs

    def handle_connect_finish(self) -> CommandGenerator[None]:
        if self._claims(self.flow.request):
            secrets = causes.secrets_of(self.context.options)
            tunnels.keep_error(self.child_layer, self.context.server, secrets)
        yield from super().handle_connect_finish()  # type: ignore[no-untyped-call]  # theirs

    # -- the head

    def state_wait_for_request_headers(self, event: RequestHeaders) -> CommandGenerator[None]:
        request = event.request
        if request.method != "CONNECT":
            try:
                for_us = self._open(request)
            except Exception as e:
                yield from self._refuse_head(e)
                return
            if for_us:
                yield from self.begin_visit(event)
                return
        if self.service.stopping:
            yield from self.turn_away(event, self._stopping())
            return
        call = self.call
        if call is None or call.route is Route.PASS:
            # Every byte of a tunnel passes here: leave it to mitmproxy's class alone.
            self.passthrough = partial(HttpStream.passthrough, self)  # type: ignore[method-assign]
        if call is None:
            yield from super().state_wait_for_request_headers(event)
        elif call.route is Route.PASS:
            yield from translated(super().state_wait_for_request_headers(event), self._restore)
        else:
            if _content_length(call.head.headers) > MAX_REPLAYABLE_BYTES and not self._held_by_hand:
                request.stream = True
            yield from super().state_wait_for_request_headers(event)

    def _stopping(self) -> LocalAnswer:
        """Return what is said to a request that comes while the proxy shuts down."""
        call, self.call = self.call, None
        if call is None:
            headers = (("content-type", "text/plain; charset=utf-8"), ("retry-after", "1"))
            return LocalAnswer(503, headers, f"account-pool: {STOPPING}\n".encode())
        return call.provider.refusal(503, STOPPING, STOPPING_PAUSE_S)

    @property
    def under_way(self) -> bool:
        """Whether the client waits for something that will end."""
        if self.visit is not None:
            return self.ready is not None
        flow = getattr(self, "flow", None)
        if flow is None or not flow.live or flow.request.method == "CONNECT":
            return False
        return not self.is_open_socket or self._is_in_turn

    @property
    def is_open_socket(self) -> bool:
        """Whether it is a WebSocket of the pool that has been opened and not closed."""
        is_socket = self.call is not None and isinstance(self.child_layer, WebsocketLayer)
        return is_socket and self.flow.live

    @property
    def _is_in_turn(self) -> bool:
        return self.socket is not None and self.socket.running

    def _open(self, request: http.Request) -> bool:
        """Find out whether the request is the pool's business, and mask it if so.

        Returns whether it is meant for the proxy itself.
        """
        transparent = self.mode is HTTPMode.transparent
        if transparent:
            target = destination.of_connection(self.context)
        elif request.host:
            via = self.context.server.via is not None
            target = destination.of_request(request.host, request.port, request.scheme, via=via)
        else:
            target = self._of_host_header(request)
        if target is not None:
            self.call = self.service.open(request, target, self.context.client)
        if self.call is not None and transparent:
            # mitmproxy sends it there, whatever the request says.
            assert self.context.server.address is not None
            self.call.address = self.context.server.address[:2]
        if self.call is not None or target is None:
            return False
        if transparent:
            return target.name == ADMIN_HOST
        return visits.is_for_us(target, self.context.client, direct=not request.host)

    def _of_host_header(self, request: http.Request) -> Destination | None:
        """Return where mitmproxy will send a request that was sent to the proxy itself."""
        try:
            name, port = url.parse_authority(request.host_header or "", check=True)
        except ValueError:
            return None  # mitmproxy refuses it
        tls = self.context.client.tls
        return destination.of_request(
            name,
            port or (443 if tls else 80),
            "https" if tls else "http",
            via=self.context.server.via is not None,
        )

    def _refuse_head(self, error: Exception) -> CommandGenerator[None]:
        """Our code failed before it knew whose request this is: it goes nowhere."""
        logger.error(
            f"internal error {type(error).__name__} while reading a request; request refused"
        )
        message = "internal error in the account pool"
        yield SendHttp(
            ResponseProtocolError(self.stream_id, message, compat.SERVER_ERROR),
            self.context.client,
        )
        self.client_state = self.server_state = self.state_errored
        yield DropStream(self.stream_id)

    # -- the body

    @property
    def _held_by_hand(self) -> bool:
        """Whether a person is to see the request before it goes out, whatever its size."""
        return self.service.settings.manual_approve and self._served

    @property
    def _served(self) -> bool:
        """Whether we answer the request, and not mitmproxy's class."""
        return self.call is not None and self.call.route is not Route.PASS

    def check_body_size(self, request: bool) -> CommandGenerator[bool]:
        # Each look at an option of mitmproxy's copies its value; this asks four times.
        if not self.service.settings.body_limits:
            return _NO
        # Ours are kept for a replay, whatever stream_large_bodies says.
        return (
            self._check_limit(request=request) if self._served else super().check_body_size(request)
        )

    def check_invalid(self, request: bool) -> CommandGenerator[bool]:
        # An answer was looked at before; mitmproxy would end its connection, and all others on it.
        return super().check_invalid(request) if request or self.attempts is None else _NO

    def check_killed(self, emit_error_hook: bool) -> CommandGenerator[bool]:
        # It looks for the client's departure among the events that wait.
        for event in self._paused_event_queue:
            if isinstance(event, RequestProtocolError):
                event.message = self.layer.shown(event.message)
        return super().check_killed(emit_error_hook)

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
            response = delivery.local(self.provider.refusal(status, text, None))
            delivery.say_again(response, self.provider, again=False)
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
        if (
            type(event) is RequestData
            and len(self.request_body_buf) + len(event.data) > MAX_REPLAYABLE_BYTES
            and self.call is not None
            and not self._held_by_hand
        ):
            return self._stream_from_here(event.data)
        if type(event) is RequestEndOfMessage and self._held_by_hand:
            approval.hold(self.flow)
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
        if self.call is not None and self.flow.response is not None:
            # Another addon has answered at the head (proxyauth, say); mitmproxy's class
            # cannot have both.
            self.client_state = self.state_stream_request_body
            yield from self.respond(self.flow.response)
        elif self._served:
            self.client_state = self.state_stream_request_body
            self.server_state = self.state_wait_for_response_headers
            yield from self._serve()
        else:
            yield from super().start_request_stream()

    def state_stream_request_body(self, event: Any) -> CommandGenerator[None]:
        if not self._served:
            yield from super().state_stream_request_body(event)
        elif self.attempt_id is None:
            self.client_state = self.state_errored  # nobody to stream it to
        else:
            yield from translated(super().state_stream_request_body(event), self.to_attempt)
            if isinstance(event, RequestEndOfMessage) and self.server_state == self.state_done:
                yield from self.let_go()  # its answer was complete before the request

    def make_server_connection(self) -> CommandGenerator[bool]:
        # The base class comes here when the body is complete and no addon has answered.
        return self._instead() if self._served else super().make_server_connection()

    def _instead(self) -> CommandGenerator[bool]:
        yield from self._serve()
        return False  # nothing is left for the base class to do

    def _serve(self) -> CommandGenerator[None]:
        """Answer the request: locally, or from an account of the pool."""
        call = self.call
        assert call is not None
        provider = call.provider
        if call.denied is not None:
            yield from self.answer_locally(call.denied)
        elif call.route is Route.LOCAL:
            turn = yield from self.take_turn(provider.name)
            if not (yield from self.client_gone()):
                failed = provider.refusal(500, INTERNAL, None)
                yield from self.answer_locally(turn.answer or failed)
        elif wrong := call.misdirected(self.flow.request, self.service.hosts):
            logger.warning(f"{provider.name}: {wrong}; request refused")
            yield from self.answer_locally(provider.refusal(421, wrong, None))
        else:
            yield from self.begin()

    def send_response(self, already_streamed: bool = False) -> CommandGenerator[None]:
        if self.call is not None and not (already_streamed or self._served):
            self._stand_in(self.call)
        return super().send_response(already_streamed)

    def _stand_in(self, call: Call) -> None:
        """A tool with a placeholder login asks about itself, and was not known."""
        response = self.flow.response
        # Not for a page: it was refused as what it is.
        if response is not None and response.status_code == 401 and call.denied is None:
            answer = call.provider.instead(call.head)
            if answer is not None:
                self.flow.response = delivery.local(answer)

    def _restore(self, command: commands.Command) -> commands.Command:
        """A request that is not the pool's goes out as the client sent it."""
        if isinstance(command, SendHttp) and isinstance(command.event, RequestHeaders):
            command.event.request = wire.restored(command.event.request, self._call.masked)
        return command


def _content_length(headers: Mapping[str, str]) -> int:
    """Return the announced length of the body, 0 if there is none or it is nonsense."""
    value = headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() else 0
