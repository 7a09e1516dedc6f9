"""What becomes of a request of the pool whose attempt did not serve it: it waits, or is refused.

`core.attempts` says what comes next: an account is waited for or refreshed, or a refusal is the
last word; here that is carried out. How an attempt is sent, and what a good response leads to,
is in `pooled_exchange.py`; how it works underneath, in `http_stream.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, cast

from mitmproxy import http
from mitmproxy.proxy import events
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import (
    HttpRequestHeadersHook,
    RequestProtocolError,
    ResponseData,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.utils import human

from account_pool.core import reactions
from account_pool.core.attempts import Attempts
from account_pool.core.credential import Secrets, SentSecrets
from account_pool.core.instruments import Mark, Marks
from account_pool.core.outcome import LIMITS, OutcomeClass
from account_pool.core.steps import Broken, Deliver, Refresh, Step, Synthesize, Wait, how_broken
from account_pool.core.usage import UsageFilter
from account_pool.providers.base import Provider
from account_pool.proxy import error_response, redaction
from account_pool.proxy.events import (
    NotProcessed,
    Pause,
    PoolPauseHook,
    Silent,
    Withdrawn,
)
from account_pool.proxy.flow_view import AttemptTrail, BodyCopy
from account_pool.proxy.http_stream import (
    INTERNAL,
    AttemptStream,
    only_to,
    translated,
)
from account_pool.proxy.pooled_request import PooledRequest
from account_pool.proxy.response_reader import ResponseReader
from account_pool.supervision import log_and_continue

if TYPE_CHECKING:
    from account_pool.proxy.websocket_exchange import PooledWebsocket

logger = logging.getLogger(__name__)

#: How often is asked whether anybody looks at flows, seconds.
LOOKED_AT_S = 1.0
#: How long the rest of a refused stream is read before the attempt is cut off: the end
#: mostly comes at once, and a connection that was read to its end can be used again.
DRAIN_S = 0.25
#: A request that is refused may be so at its beginning. What is longer than a usual window can
#: lie in the peer's buffer, read by nobody: what follows there meets a reset, at any time.
SURELY_READ_BYTES = 64 * 1024


class RefusedAttempts(AttemptStream):
    """The attempts of one client request, as far as they are not good.

    Attributes:
        attempts: the state machine, from the moment an account is wanted.
        reader: of the response to the running attempt, from its head on.
        marks: how far it has come, from the same moment on.
        sent_secrets: credentials it has carried.
        redactor: masks them in a response that is handed on before it is complete.
        trail: for people who look, once something was refused; None while nobody does.
        websocket: what happens inside, once it carries messages.
    """

    attempts: Attempts | None = None
    reader: ResponseReader | None = None
    marks: Marks
    sent_secrets: SentSecrets
    redactor: redaction.Redactor | None = None
    trail: AttemptTrail | None = None
    websocket: PooledWebsocket | None = None
    #: the running attempt asks for the usage of its stream, which its client does not
    asks_usage = False
    #: takes the answer out of the response
    usage_filter: UsageFilter | None = None
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

    def _tell(self, tell: Callable[[AttemptTrail], object]) -> None:
        """Let people see what *tell* tells the trail, if there are any who look."""
        try:
            service, now = self.service, self.service.now()
            if self.trail is None and now >= service.unseen_until:
                if service.is_looked_at():
                    self.trail = AttemptTrail(self.flow, service.show)
                else:
                    # It costs as much as all else that a failover takes.
                    service.unseen_until = now + LOOKED_AT_S
            if self.trail is not None:
                tell(self.trail)
        except Exception as e:
            log_and_continue.log(e)

    # -- waits

    def _wait(self, step: Wait | Refresh) -> CommandGenerator[Pause]:
        began_at = self.service.now()
        pause = yield from self.pause(step)
        self.marks.append((Mark.WAITED, self.service.now() - began_at))
        return pause

    def pause(self, step: Wait | Refresh | str) -> CommandGenerator[Pause]:
        """Let the addon wait, refresh or answer for us."""
        pause = Pause(step)

        def left() -> None:
            pause.woken.set()
            # A refresh goes on, for the others; the lease must not wait for it.
            self.client_leaves()

        with self.client_watched(left):
            yield PoolPauseHook(pause)
        if pause.failed is not None:
            raise pause.failed
        if not pause.taken:
            # After a live reload that failed there is no addon: better an error than to
            # ask again and again.
            raise RuntimeError("nobody carries out our pauses")
        return pause

    def _respond_to_login(self, provider: Provider) -> CommandGenerator[None]:
        """Answer what a client asks about its login, for the pool's."""
        pause = yield from self.pause(provider.name)
        if not (yield from self.client_gone()):
            failed = provider.refusal(500, INTERNAL, None)
            yield from self.respond_locally(pause.response or failed)

    def client_leaves(self) -> None:
        if self.attempts is not None:
            self.attempts.left(self.service.now())

    # -- refused, or broken off

    def _refused(self) -> CommandGenerator[None]:
        """Ask what the refusal means, and do what follows."""
        attempts, reader = self._attempts, self._reader
        if self.timer.command is not None:
            self.timer.clear()
        if attempts.over:
            return  # the client has left: `Service.client_gone` was quicker than its event
        outcome = self._call.provider.classify(
            reader.upstream_response(attempts.facts.model, self.service.wall_now())
        )
        if outcome.cls is OutcomeClass.OK:
            yield from self._commit(end_stream=False)
            return
        earlier, self._refusal = self._refusal, reader
        took_s = self.service.now() - self.sent_at
        self._tell(lambda t: t.refused(reader, attempts, took_s, self.service.wall_now()))
        try:
            blamed = outcome.blames_account
            if (outcome.cls in LIMITS or blamed) and not reader.in_stream:
                assert attempts.lease is not None
                self.service.refusals.remember(
                    attempts.lease.key, reader, self.sent_secrets.echoes(), blamed=blamed
                )
        except Exception as e:
            log_and_continue.log(e)
        now, model = self.service.now(), attempts.facts.model
        asked = self.asks_usage and attempts.may_send
        if asked and self.service.counted_streams.is_refused(
            reader.response.status_code, reader.opening(), model
        ):
            self._pending = reactions.refused_for_ours(attempts, outcome, now)
        else:
            self._pending = reactions.refused(attempts, outcome, now)
        for server in self.layer.http2.values():
            # What still waits for the account goes elsewhere if it may not be sent any more.
            server.withdraw()
        if attempts.keeps_earlier and earlier is not None:
            self._refusal = earlier
        if reader.complete or reader.broken or isinstance(self._pending, Deliver):
            yield from self._drained()
        else:
            self.server_state = self.state_drain
            yield from self.timer.set(DRAIN_S, self._drained)

    def state_drain(self, event: events.Event) -> CommandGenerator[None]:
        """The response is refused; its rest is read so that the connection stays good."""
        if isinstance(event, ResponseData) and not self._reader.drain(event.data):
            yield from self._drained()

    def _drained(self) -> CommandGenerator[None]:
        """The refused response was read as far as it will be: go on."""
        if self.timer.command is not None:
            self.timer.clear()
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
            self._tell(lambda trail: trail.delivered(self._attempts, self.service.now()))
            yield from self._commit(end_stream=False, secrets=self.sent_secrets.echoes())
            return
        sent = self.client_state == self.state_done and self._body_bytes < SURELY_READ_BYTES
        if complete and sent:
            yield from self.let_go()
        else:
            # Its response or our request is not at its end: nothing else can follow there.
            yield from self.cancel_attempt("refused")
        self.server_state = self.state_between_attempts
        yield from self._perform(step)

    def attempt_broke(self, event: ResponseProtocolError) -> CommandGenerator[None]:
        """The connection or stream of the attempt has ended before its response."""
        self.timer.clear()
        if isinstance(event, Silent):
            yield from self.cancel_attempt("silent")
        self.forget_attempt()
        reader = self.reader
        if self._committed:
            self.settle(served=False)
            self.put_copy(ended=False)
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
            yield from self._perform(reactions.withdrawn(self._attempts, self.service.now()))
        else:
            how = self._how_broken(event)
            self.server_state = self.state_between_attempts
            secrets = redaction.secrets_and_passwords(self.context.options, self.sent_secrets)
            reason = redaction.reason_of(event.message, secrets)
            now = self.service.now()
            yield from self._perform(reactions.broken(self._attempts, how, now, reason))

    def client_left(self, event: RequestProtocolError) -> CommandGenerator[None]:
        """The client is gone: the lease is free at once, and nobody is to blame."""
        self.timer.clear()
        # Clients hang up as soon as they have the last event: a
        # departure after the commit point is a success.
        self.settle(served=self._committed, left=True)
        self.put_copy(ended=False)
        yield from self.cancel_attempt(event.message)
        yield from translated(super().handle_protocol_error(event), only_to(self.context.client))

    def _how_broken(self, event: ResponseProtocolError) -> Broken:
        if isinstance(event, NotProcessed):
            return Broken.NOT_RUN
        if isinstance(event, Silent):
            return Broken.SILENT
        over_http2 = self.layer.http2.get(self.context.server)
        goes_away = over_http2 is not None and over_http2.last_id is not None
        return how_broken(
            event.message,
            # A server that said what it has begun did not close before it read.
            kept=self.on_kept_connection and not goes_away,
            answered=self.reader is not None or self.interim_came,
            after_s=self.service.now() - self.sent_at,
        )

    def state_between_attempts(self, event: events.Event) -> CommandGenerator[None]:
        """No attempt runs. Only the events of one could come here, and none is left."""
        raise AssertionError(f"unexpected event between attempts: {event}")

    def show_replay(self) -> None:
        """Show the people who look that a replay is on its way, once it is: nobody waits for it."""

        def replayed(trail: AttemptTrail) -> None:
            trail.replayed(self._attempts, self.sent_secrets.echoes, self.service.now())

        self._tell(lambda _trail: self.service.later(partial(self._tell, replayed)))

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
        self._tell(lambda trail: trail.delivered(self._attempts, self.service.now()))
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
        self._tell(lambda t: t.answered(self._attempts, step.message, self.service.now()))
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

    def _not_a_response(
        self, response: http.Response, wrong: str, remedy: str
    ) -> CommandGenerator[None]:
        """What came is none: a protocol nobody asked for, a status or a head there is not."""
        secrets = redaction.secrets_and_passwords(self.context.options, self.sent_secrets)
        reason = redaction.reason_of(wrong, secrets)
        why = ": ".join(filter(None, ("no valid answer", reason))) + remedy
        provider = self._call.provider
        logger.warning(f"{provider.name}: invalid answer with status {response.status_code}")
        yield from self.cancel_attempt("invalid answer")
        self.server_state = self.state_between_attempts
        step = reactions.broken(self._attempts, Broken.MAYBE_RAN, self.service.now(), why)
        yield from self._perform(step)

    def begin_copy(self) -> None:
        """Keep a bounded copy of the response that streams from here on."""
        # Where mitmproxy 12 is told to keep whole bodies, the copy is its own.
        if not getattr(self.context.options, "store_streamed_bodies", False):
            reader = self._reader
            sent = reader.response.headers
            in_chunks = sent.get("transfer-encoding", "").lower() == "chunked"
            self.copy = BodyCopy(reader.encoding, sent.fields if in_chunks else None)

    def put_copy(self, *, ended: bool) -> None:
        """Put the copy, if there is one, on the flow; *ended* tells if the body has an end."""
        copy, self.copy = self.copy, None
        if copy is not None:
            copy.put_on(self.flow, ended=ended)

    # -- what is too large

    def _check_limit(self, size: int, *, request: bool) -> CommandGenerator[bool]:
        """Refuse *size* bytes in the provider's envelope, where body_size_limit is less."""
        limit = human.parse_size(self.context.options.body_size_limit)
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
            error_response.set_should_retry(response, self.provider, again=False)
            logger.warning(f"{text} ({size} bytes)")
            yield from self.respond(response)
        return True

    # -- what `PooledExchange` does

    def _perform(self, step: Step | None) -> CommandGenerator[None]:
        """Carry out steps until the provider or the client is to be waited for."""
        raise NotImplementedError

    def _commit(self, end_stream: bool, secrets: Secrets | None = None) -> CommandGenerator[None]:
        """Hand the response to the client: no further attempt from here on."""
        raise NotImplementedError

    def let_go(self) -> CommandGenerator[None]:
        """The response is complete, and our request has been handed over."""
        raise NotImplementedError

    @property
    def _body_bytes(self) -> int:
        raise NotImplementedError
