"""How the attempts of a request that is served from the pool are made, and refusals delivered.

`core.attempts` says what comes next: an account is sent to, waited for or refreshed, or a
refusal is the last word; here that is carried out. How an attempt works underneath is
`http_stream.py`; what its response leads to, `pooled_exchange.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from itertools import islice
from operator import attrgetter
from typing import Any, assert_never, cast

from mitmproxy import http
from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import (
    GetHttpConnection,
    ResponseData,
    ResponseTrailers,
)

from account_pool.core.attempts import Attempts
from account_pool.core.instruments import Mark, Marks
from account_pool.core.lease import Lease
from account_pool.core.retry_policy import Broken, how_unconnected
from account_pool.core.steps import Deliver, Refresh, Send, Step, Synthesize, Wait
from account_pool.providers.base import CannotSwap, LocalResponse
from account_pool.proxy import error_response, flow_view, redaction
from account_pool.proxy.credential_swap import Outgoing
from account_pool.proxy.events import GetFreshConnection, Pause, PoolPauseHook
from account_pool.proxy.flow_view import AttemptTrail, BodyCopy
from account_pool.proxy.http_stream import AttemptStream
from account_pool.proxy.pooled_request import PooledRequest
from account_pool.proxy.redaction import SentSecrets
from account_pool.proxy.response_reader import ResponseReader
from account_pool.proxy.websocket_exchange import PooledWebsocket
from account_pool.supervision import log_and_continue

logger = logging.getLogger(__name__)

MOVED = "accounts.yaml was changed, and this host no longer belongs to the provider"


class PooledAttempts(AttemptStream):
    """The attempts of one client request.

    Attributes:
        attempts: the state machine, from the moment an account is wanted.
        reader: of the response to the running attempt, from its head on.
        marks: how far it has come, from the same moment on.
        sent_secrets: credentials it has carried.
        redactor: masks them in a response that is handed on before it is complete.
        trail: for people who look, once something was refused.
        websocket: what happens inside, once it carries messages.
    """

    attempts: Attempts | None = None
    reader: ResponseReader | None = None
    marks: Marks
    sent_secrets: SentSecrets
    redactor: redaction.Redactor | None = None
    trail: AttemptTrail | None = None
    websocket: PooledWebsocket | None = None
    #: the last refusal, which is delivered even if attempts after it bring nothing
    _refusal: ResponseReader | None = None
    #: what comes next once the refused response is drained, or the event is handled
    _pending: Step | None = None
    #: the response is a good one, and what it took is still to be counted
    _to_count = False
    # The same for where they are known to be set; read at each event, so without a Python call.
    _call = cast(PooledRequest, property(attrgetter("call")))
    _attempts = cast(Attempts, property(attrgetter("attempts")))
    _reader = cast(ResponseReader, property(attrgetter("reader")))

    @property
    def _trail(self) -> AttemptTrail:
        if self.trail is None:
            self.trail = AttemptTrail(self.flow, self.service.show)
        return self.trail

    # -- attempts

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
                    yield from self._synthesize(step)
                    return
                case _:
                    assert_never(step)

    def _wait(self, step: Wait | Refresh) -> CommandGenerator[Pause]:
        began_at = self.service.now()
        pause = yield from self.pause(step)
        self.marks.append((Mark.WAITED, self.service.now() - began_at))
        return pause

    def _send(self, step: Send) -> Generator[commands.Command, Any, Step | None]:
        """Send one attempt. Returns the next step if no connection could be made."""
        attempts = self._attempts
        outgoing = self.outgoing(step.lease)
        if isinstance(outgoing, LocalResponse):
            yield from self.respond_locally(outgoing)
            return None
        opening_at = self.service.now()
        older = islice(self.layer.connections, self.sent_among) if step.fresh else ()
        error = yield from self.connect(outgoing, avoided=frozenset(older))
        self.marks.append((Mark.OPENED, self.service.now() - opening_at))
        disturbed = self._paused_event_queue or self.flow.error is not None
        if disturbed and (yield from self.client_gone()):
            return None
        if error:
            secrets = self.sent_secrets.and_passwords(self.context.options)
            reason = redaction.unconnected(outgoing.address[0], error, secrets)
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
            get = GetFreshConnection(*spec)
            get.avoided = avoided
        self.watch_client(self.client_leaves)
        connection, error = yield get
        self.unwatch_client()
        if not error:
            self.context.server = self.flow.server_conn = connection
        return error

    def state_between_attempts(self, event: events.Event) -> CommandGenerator[None]:
        """No attempt runs. Only the events of one could come here, and none is left."""
        raise AssertionError(f"unexpected event between attempts: {event}")

    def show_replay(self) -> None:
        """Show the people who look that a replay is on its way."""
        try:
            self._trail.replayed(self._attempts, self.sent_secrets.echoes, self.service.now())
        except Exception as e:
            log_and_continue.log(e)

    def may_go(self) -> bool:
        return self.attempts is None or self.attempts.may_go(self.service.now())

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

    def client_leaves(self) -> None:
        if self.attempts is not None:
            self.attempts.left(self.service.now())

    # -- delivering

    def _deliver(self, step: Deliver) -> CommandGenerator[None]:
        """Hand on the provider's own refusal, with the wait that holds for the pool."""
        provider, wait_s = self._call.provider, step.retry_after_s
        assert self._refusal is not None
        response = error_response.corrected(
            self._refusal, provider, wait_s, self.sent_secrets.echoes(), self.service.wall_now()
        )
        if step.again:
            error_response.set_should_retry(response, provider, again=True)
        with log_and_continue:
            self._trail.delivered(self._attempts, self.service.now())
        yield from self.respond(response)

    def _synthesize(self, step: Synthesize) -> CommandGenerator[None]:
        """Nothing to hand on: repeat what the provider last said, or say it ourselves."""
        provider, wait_s = self._call.provider, step.retry_after_s
        blamed = step.final and step.status != 402
        stored = self.service.refusals.find(step.like, blamed=blamed)
        if stored is not None:
            response = error_response.repeated(stored, provider, wait_s, self.service.wall_now())
        else:
            response = error_response.local(provider.refusal(step.status, step.message, wait_s))
        if step.final:
            error_response.set_should_retry(response, provider, again=False)
        with log_and_continue:
            self._trail.answered(self._attempts, step.message, self.service.now())
        yield from self.respond(response)

    def _redirect(self, response: http.Response) -> CommandGenerator[None]:
        """Hand on a redirect without its body, which cannot be searched for the key."""
        yield from self.cancel_attempt("redirect")
        redaction.headers(response, self.sent_secrets.echoes())
        for name in ("content-encoding", "transfer-encoding"):
            response.headers.pop(name, None)
        response.content = b""
        yield from self.respond(response)

    def redacted(self, event: ResponseData | ResponseTrailers) -> CommandGenerator[None]:
        """A piece of a response in which a credential may be echoed."""
        assert self.redactor is not None
        if isinstance(event, ResponseTrailers):
            redaction.fields(event.trailers, self.sent_secrets.echoes())
            yield from self.server_state(event)
            return
        for piece in self.redactor(event.data):
            yield from self.server_state(ResponseData(self.stream_id, piece))

    def _not_a_response(self, response: http.Response, why: str) -> CommandGenerator[None]:
        """What came is none: a protocol nobody asked for, a status or a head there is not."""
        provider = self._call.provider
        logger.warning(f"{provider.name}: invalid answer with status {response.status_code}")
        yield from self.cancel_attempt("invalid answer")
        self.server_state = self.state_between_attempts
        step = self._attempts.broken(Broken.MAYBE_RAN, self.service.now(), why)
        yield from self._perform(step)

    def begin_copy(self) -> None:
        """Keep a bounded copy of the response that streams from here on."""
        # Where mitmproxy 12 is told to keep whole bodies, the copy is its own.
        if not getattr(self.context.options, "store_streamed_bodies", False):
            self.copy = BodyCopy(self._reader.encoding)

    def put_copy(self, *, ended: bool) -> None:
        """Put the copy, if there is one, on the flow; *ended* tells if the body has an end."""
        copy, self.copy = self.copy, None
        if copy is not None:
            copy.put_on(self.flow, ended=ended)
