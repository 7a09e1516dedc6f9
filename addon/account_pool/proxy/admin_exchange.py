"""Requests to the proxy itself: on its own port, and to `pool.mitm.it` through it.

They are answered inside the stream, without a flow: what an administrator sends (the
admin token, credentials of accounts) is never shown in mitmweb nor saved in a dump, and a
page that looks twice a second does not bury the traffic. Who may ask what is decided in
`admin/`; here it is only recognised which requests are meant for us.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.log import ALERT
from mitmproxy.proxy import events, server_hooks
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import (
    DropStream,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    SendHttp,
    validate_request,
)

from account_pool.admin.auth import NoToken, Rules, TokenGuard, admin_token, new_token
from account_pool.admin.http import ADMIN_HOST, FAILED, AdminRequest, AdminResponse
from account_pool.admin.server import AdminServer
from account_pool.admin.views import Sums
from account_pool.core.browser import is_loopback
from account_pool.core.instruments import DecisionCounter
from account_pool.providers.base import LocalResponse
from account_pool.proxy.events import BAD_REQUEST, Chunks, Pause, PoolPauseHook
from account_pool.proxy.http_stream import AttemptStream
from account_pool.proxy.pooled_request import Destination
from account_pool.proxy.service import Service
from account_pool.supervision import begun
from account_pool.workers.worker import Link

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from account_pool.admin.actions import Actions
    from account_pool.admin.requests import AskStore, Known

logger = logging.getLogger(__name__)

#: How long the start waits for the file of the admin token, seconds.
TOKEN_S = 5.0


def is_for_us(target: Destination, client: Client, *, direct: bool) -> bool:
    """Say whether a request to *target* is meant for the proxy itself.

    Args:
        direct: it has no absolute address: it was sent to the proxy as to a server. One
            that names our port and another host comes from a page that has bound its own
            name to this machine (DNS rebinding). mitmproxy would send it to itself, over
            and over; it is ours to refuse.
    """
    if target.name == ADMIN_HOST:
        return True
    address, port, *_ = client.sockname
    if target.port != port or target.tls:
        return False
    if target.name == address or is_loopback(target.name):
        return True
    return direct and is_loopback(client.peername[0])


def refuse_connection(data: server_hooks.ServerConnectionHookData) -> None:
    """Refuse connections to the name of the admin pages: they are nowhere but here.

    Whatever leads there (a tunnel, SOCKS), an admin token must not leave this machine.
    """
    address = data.server.address
    if address is not None and address[0].rstrip(".").lower() == ADMIN_HOST:
        data.server.error = "the account pool answers for this name itself"


class AdminExchange(AttemptStream):
    """Answers a request to the proxy itself.

    Attributes:
        visit: that request, or one that comes while the proxy shuts down; None for all others.
    """

    visit: AdminRequest | None = None
    #: what it is answered with, where that is known before it is read
    ready: AdminResponse | None = None
    #: of the request
    http_version = ""

    @classmethod
    def of(cls, stream: AttemptStream) -> AdminExchange:
        """Return *stream*, whose head has just come, as one that answers its request."""
        cast(Any, stream).__class__ = cls
        return cast(AdminExchange, stream)

    @property
    def under_way(self) -> bool:
        return self.visit is not None and self.ready is not None

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if self.visit is None:
            return super()._handle_event(event)
        return self._visit_event(self.visit, event)

    def begin_visit(self, event: RequestHeaders) -> CommandGenerator[None]:
        """Its head has come."""
        request = event.request
        if wrong := validate_request(self.mode, request, True):
            yield from self._refuse_visit(wrong)
            return
        self.visit, self.http_version = self._visit_of(request), request.http_version
        if request.headers.get("expect", "").lower() == "100-continue":
            go_on = http.Response.make(100)
            go_on.headers.clear()
            yield SendHttp(ResponseHeaders(self.stream_id, go_on), self.context.client)

    def turn_away(self, event: RequestHeaders, refusal: LocalResponse) -> CommandGenerator[None]:
        """Answer a request that comes while the proxy shuts down, whoever it is meant for."""
        request = event.request
        headers = tuple((n.encode(), v.encode()) for n, v in refusal.headers)
        if not request.is_http2:
            headers = (*headers, (b"connection", b"close"))
        self.ready = AdminResponse(refusal.status, headers, refusal.body)
        yield from self.begin_visit(event)
        if request.method == "CONNECT" and self.visit is not None:
            # Its end is not told.
            yield from self._answer_visit(self.visit)

    def _visit_of(self, request: http.Request) -> AdminRequest:
        client = self.context.client
        address, port, *_ = client.sockname
        return AdminRequest(
            method=request.method,
            target=request.path,
            headers=tuple(request.headers.fields),
            authority=request.authority,
            tls=client.tls,
            peer="" if self.service.recognizer.is_own(client) else client.peername[0],
            address=(address, port),
        )

    def _visit_event(self, visit: AdminRequest, event: events.Event) -> CommandGenerator[None]:
        """Handle an event of a request to the proxy itself."""
        match event:
            case RequestData():
                visit.take(event.data)
            case RequestEndOfMessage():
                yield from self._answer_visit(visit)
            case RequestProtocolError():
                yield DropStream(self.stream_id)
                self.untie()
            case _:
                pass  # trailers say nothing to us

    def _refuse_visit(self, wrong: str) -> CommandGenerator[None]:
        """The head can be read in two ways: nothing more is read from this connection."""
        yield SendHttp(
            ResponseProtocolError(self.stream_id, wrong, BAD_REQUEST), self.context.client
        )
        self.client_state = self.server_state = self.state_errored
        yield DropStream(self.stream_id)

    def _answer_visit(self, visit: AdminRequest) -> CommandGenerator[None]:
        reply = self.ready
        if reply is None:
            pause = Pause(visit)
            yield PoolPauseHook(pause)
            if _has_left(self._paused_event_queue):
                return  # the event that says so comes next
            reply = pause.reply or FAILED
        if reply.chunks is not None:
            yield from self._stream_visit(reply, reply.chunks)
            return
        response = http.Response.make(reply.status, headers=reply.headers)
        response.headers["content-length"] = str(len(reply.body))
        client, body = self.context.client, b"" if visit.method == "HEAD" else reply.body
        yield SendHttp(ResponseHeaders(self.stream_id, response, end_stream=not body), client)
        if body:
            yield SendHttp(ResponseData(self.stream_id, body), client)
        yield DropStream(self.stream_id)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), client)
        self.untie()

    def _stream_visit(
        self, reply: AdminResponse, source: AsyncGenerator[bytes]
    ) -> CommandGenerator[None]:
        """Send the chunks of *source* as they come, for as long as the client reads them."""
        client = self.context.client
        response = http.Response.make(reply.status, headers=reply.headers)
        response.headers.pop("content-length", None)
        if self.http_version == "HTTP/1.1":
            response.headers["transfer-encoding"] = "chunked"
        elif self.http_version == "HTTP/1.0":
            response.headers["connection"] = "close"
        self.is_streaming = True
        yield SendHttp(ResponseHeaders(self.stream_id, response), client)
        while True:
            pause = Pause(Chunks(source, self._is_unread))
            with self.client_watched(pause.woken.set):
                yield PoolPauseHook(pause)
            if _has_left(self._paused_event_queue):
                return  # the event that says so comes next
            if not pause.chunk:
                break
            yield SendHttp(ResponseData(self.stream_id, pause.chunk), client)
        yield DropStream(self.stream_id)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), client)
        self.untie()

    def _is_unread(self) -> bool:
        """Say whether a part of what was sent waits for the client to read on."""
        client = self.context.client
        # Of HTTP/2, what its window has no room for waits in front of the connection.
        http2 = getattr(self.layer.connections.get(client), "h2_conn", None)
        waiting = getattr(http2, "stream_buffers", {}).get(self.stream_id)
        return bool(waiting) or self.service.unsent(client, client)


def _has_left(waiting: Sequence[events.Event]) -> bool:
    return any(isinstance(event, RequestProtocolError) for event in waiting)


# -- the server that answers them


def open_admin_server(
    service: Service,
    guard: TokenGuard,
    *,
    make_actions: Callable[[], Actions],
    counted: Callable[[str], Awaitable[Sums]],
    ask_store: AskStore,
    known: Callable[[], Known | None],
    ready: Callable[[], bool],
    accounts_file: Callable[[], Path | None],
    rules: Callable[[], Rules],
    link: Link | None = None,
) -> AdminServer:
    """Let *service* answer requests to the proxy itself.

    The web application is made, and what it needs imported, at the first request.

    Args:
        guard: checks the token that changes need.
        make_actions: returns what changes the pool.
        counted, ask_store, known, ready, accounts_file: see `AdminContext`.
        rules: returns who may do what, at the moment.
        link: the launcher, where this is one of several workers.
    """
    decision_counter, started_at = DecisionCounter(), service.now()
    if link is None:
        service.fleet.started_at = started_at
    service.pool.decisions.subscribe(decision_counter.note)

    def make_app(admit: Callable[[AdminRequest], None]) -> Starlette:
        from account_pool.admin.app import make_app  # noqa: PLC0415 - see admin/server.py
        from account_pool.admin.routes import AdminContext  # noqa: PLC0415

        context = AdminContext(
            service=service,
            actions=make_actions(),
            decision_counter=decision_counter,
            counted=counted,
            ask_store=ask_store,
            known=known,
            started_at=started_at,
            ready=ready,
            accounts_file=accounts_file,
            guard=guard,
            link=link,
        )
        return make_app(context, admit)

    server = AdminServer(guard=guard, rules=rules, now=service.now, make_app=make_app)
    service.visited = server.answer
    if link is not None:
        link.say = server.answer_worker
    return server


def guard_of(path: Path) -> TokenGuard:
    """Return what checks the admin token in *path*.

    It is a random one where that cannot be kept, and as long as the disk does not answer.
    """
    guard = TokenGuard(new_token())
    read_only = "Until this is fixed, the REST API is read-only"

    def read() -> None:
        try:
            guard.token = admin_token(path)
        except NoToken as e:
            logger.log(ALERT, f"account-pool: {e}. {read_only}")

    reading = begun(read)
    wait([reading], TOKEN_S)
    if not reading.done():
        hangs = f"the disk or share of the admin token {path} does not answer"
        logger.log(ALERT, f"account-pool: {hangs}. {read_only}")
    return guard
