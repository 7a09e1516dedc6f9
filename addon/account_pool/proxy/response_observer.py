"""What responses say of the accounts that gave them, learnt while they pass.

What an account has left, whose limits it shares, what it made that only it knows, how many
tokens it served, and by the way what this machine's clock is worth. Looking on must not fail
a request: `head`, `body` and `end` raise nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from typing import Protocol

from mitmproxy import http

from account_pool.core import headroom_parsing, reset_hints
from account_pool.core.account import AccountKey
from account_pool.core.attempts import Attempts
from account_pool.core.credential import Credential
from account_pool.core.decision_text import duration
from account_pool.core.headroom_parsing import ResponseContext
from account_pool.core.lease import Lease
from account_pool.core.pool import Pool
from account_pool.core.sessions import Pins
from account_pool.core.usage import Usage, Usages
from account_pool.providers.base import Origin, Provider
from account_pool.providers.registry import HostIndex
from account_pool.proxy.pooled_request import PooledRequest, fields_by_name
from account_pool.proxy.response_reader import ResponseReader
from account_pool.supervision import log_and_continue

logger = logging.getLogger(__name__)

#: How often a response's `date` is compared with our clock, and how far they may differ: what
#: is further apart is a clock that was never set, not a slow response. Seconds.
CHECK_CLOCK_S, CLOCK_TOLERANCE_S = 60.0, 120.0


class Clock(Protocol):
    """What tells the time: monotonic seconds, and seconds since the epoch."""

    now: Callable[[], float]
    wall_now: Callable[[], float]


class ResponseObserver:
    """Observes the responses of one proxy.

    Attributes:
        pool: learns limits and owners.
        hosts: of the providers that have accounts.
        wrong_clock: what is wrong with this machine's clock, for people; "" if nothing is.
    """

    def __init__(
        self,
        pool: Pool,
        pins: Pins,
        usages: Usages,
        clock: Clock,
    ) -> None:
        self.pool = pool
        self.hosts = HostIndex([])
        self._pins, self._usages = pins, usages
        self._clock = clock
        self.wrong_clock, self._clock_said = "", False
        self._check_clock_at = -inf
        #: the credential with which an account's responses have named its owner, or not
        self._owned: dict[AccountKey, Credential] = {}

    def head(self, provider: Provider, lease: Lease, response: http.Response) -> None:
        """Learn what the head of a response says of the account of *lease*."""
        try:
            now, wall_now = self._clock.now(), self._clock.wall_now()
            if now >= self._check_clock_at:
                self._check_clock_at = now + CHECK_CLOCK_S
                self._check_clock(provider, response, wall_now)
            if self._owned.get(lease.key) is not lease.credential:
                self._learn_owner(provider, lease, response)
            if provider.issued_headers:
                self._learn_tokens(provider, lease, response, wall_now)
            context = ResponseContext(lease.facts.model, now, wall_now)
            if windows := headroom_parsing.from_headers(response.headers.fields, context):
                self.pool.accounts.observe_headroom(lease.key, windows, now=now, lease=lease)
        except Exception as e:
            log_and_continue.log(e)

    def body(self, call: PooledRequest, lease: Lease, reader: ResponseReader) -> None:
        """Learn what the beginning of a good response says, and what was made on the account."""
        try:
            provider = call.provider
            if provider.headroom_marks:
                self.events(provider, lease, reader.opening(), lease.facts.model)
            for made in provider.created_ids(call.head, reader.opening, reader.response.headers):
                self._pins.remember(lease.key, made, self._clock.wall_now())
        except Exception as e:
            log_and_continue.log(e)

    def events(self, provider: Provider, lease: Lease, content: bytes, model: str | None) -> None:
        """Learn limits from *content*, a frame or some events, of a turn with *model*."""
        marks = provider.headroom_marks
        if any(mark in content for mark in marks):
            context = ResponseContext(model, self._clock.now(), self._clock.wall_now())
            if windows := headroom_parsing.from_events(content, marks, context):
                self.pool.accounts.observe_headroom(
                    lease.key, windows, now=context.now, lease=lease
                )

    def end(
        self,
        provider: Provider,
        attempts: Attempts,
        reader: ResponseReader,
        body: bytes | bytearray,
        tail: bytearray,
    ) -> None:
        """Count what a good response took, and learn from an error it ended with.

        The client has that error, too. Of one that was cut off counts what it had told.
        *body* and *tail* are as in `ResponseReader.ended`.
        """
        try:
            model = attempts.facts.model
            usage, refused = reader.ended(body, tail)
            key, wall_now = attempts.history[-1].key, self._clock.wall_now()
            self._usages.count(key, model, usage, wall_now)
            if refused is not None:
                response = reader.late_response(refused, model, wall_now)
                attempts.refused_late(provider.classify(response), self._clock.now())
        except Exception as e:
            log_and_continue.log(e)

    def served(
        self, attempts: Attempts, model: str | None, usage: Usage | None, *, requests: int = 1
    ) -> None:
        """Count what the account of the committed attempt has served."""
        key = attempts.history[-1].key
        self._usages.count(key, model, usage, self._clock.wall_now(), requests=requests)

    def forget(self, key: AccountKey) -> None:
        """*key* is gone: nothing of it is kept."""
        self._owned.pop(key, None)

    def _check_clock(self, provider: Provider, response: http.Response, wall_now: float) -> None:
        """Note whether this machine's clock is minutes away from the providers'; say so once."""
        date = reset_hints.http_date(response.headers.get("date", ""))
        if date is None:
            return
        ahead_s = wall_now - date
        if abs(ahead_s) <= CLOCK_TOLERANCE_S:
            self.wrong_clock = ""
            return
        side = "ahead of" if ahead_s > 0 else "behind"
        self.wrong_clock = (
            f"this machine's clock is {duration(abs(ahead_s))} {side} that of {provider.name}; "
            "synchronise it: until then resets and logins end at the wrong time"
        )
        if not self._clock_said:
            self._clock_said = True
            logger.warning(self.wrong_clock)

    def _learn_owner(self, provider: Provider, lease: Lease, response: http.Response) -> None:
        """Learn whose limits the account of *lease* shares."""
        if response.status_code < 400:
            self._owned[lease.key] = lease.credential
        if host := lease.account.companions.get("host"):
            # Sent elsewhere than the client sent it: perhaps to a gateway.
            origin = Origin.parse(host)
            found = self.hosts.find(origin.host, origin.port)
            provider = next((p for p in found if p.name == provider.name), provider)
        if owner := provider.owner(fields_by_name(response.headers.fields)):
            self.pool.health.learn_owner(lease.key, owner)

    def _learn_tokens(
        self, provider: Provider, lease: Lease, response: http.Response, wall_now: float
    ) -> None:
        """Learn which tokens the account of *lease* issued."""
        # Mostly none of them is there: that much is seen without a look at every value.
        names = {name.lower() for name, _ in response.headers.fields}
        if not names.isdisjoint([name.encode() for name in provider.issued_headers]):
            headers = fields_by_name(response.headers.fields)
            for name in provider.issued_headers:
                if token := headers.get(name):
                    self._pins.remember(lease.key, token, wall_now)
